/* The smallest kernel: whether this machine can build one at all. */
#include "items.h"

KERNEL scale(GLOBAL const float *x, GLOBAL float *y, float by, int items) {
    FOR_ITEMS(i, items) y[i] = x[i] * by;
}
