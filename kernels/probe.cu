/* The smallest kernel: whether a GPU, or OpenCL in its place, works at all. */
#define THREADS 64
#include "simt.h"

KERNEL scale(GLOBAL const float *x, GLOBAL float *y, float by, int n ROOM_ARGUMENT) {
    ROOM;
    for (int i = BLOCK * THREADS + THREAD; i < n; i += BLOCKS * THREADS) {
        float sum = sum_of(x[i], 1, room);
        y[i] = sum * by;
    }
}
