/* Vectors, and products of matrices in tiles of registers, for kernels that train.
 *
 * Rows of a matrix lie a `stride` apart, an odd number of vectors, so that a column falls into all
 * sets of a cache. What lies from the last column to the stride is read and written, never used.
 */
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "vectors.h"

#define UP(n) (((n) + LANES - 1) / LANES * LANES)
#define STRIDE(n) (UP(n) + (UP(n) / LANES % 2 ? 0 : LANES))
#define FOR_VECTORS(i, n) for (int i = 0; i < (n); i += LANES)

static void copy(GLOBAL const float *from, GLOBAL float *to, i64 n) {
    for (i64 i = 0; i < n; i++) to[i] = from[i];
}

static void clear(GLOBAL float *x, i64 n) {
    for (i64 i = 0; i < n; i++) x[i] = 0;
}

/* -- products ----------------------------------------------------------------------- */

/* A tile is some rows by one or two vectors of c = init + bias + a b, its sums in registers.
 * a[r][k] stands at a[r * ar + k * ak], so a may be read transposed; `init` may be c itself, and
 * comes last: the sum of a block of tokens is rounded less than one sum of all blocks. */
#define ONE(f) f(0)
#define TWO(f) ONE(f) f(1)
#define FOUR(f) TWO(f) f(2) f(3)
#define SIX(f) FOUR(f) f(4) f(5)
#define EIGHT(f) SIX(f) f(6) f(7)
#define OPEN_1(r) vec x##r = ALL(0.0f);
#define OPEN_2(r) vec x##r = ALL(0.0f), y##r = ALL(0.0f);
#define LOAD_1 vec left = CVEC(b + k * br); LOADED(left)
#define LOAD_2 LOAD_1 vec right = CVEC(b + k * br + LANES); LOADED(right)
#define TAKE_1(r) x##r += a[r * ar + k * ak] * left;
#define TAKE_2(r)                                                                               \
    {                                                                                           \
        float s = a[r * ar + k * ak];                                                           \
        x##r += s * left;                                                                       \
        y##r += s * right;                                                                      \
    }
#define MEET(at, EACH, LOAD, TAKE)                                                              \
    {                                                                                           \
        const i64 k = at;                                                                       \
        LOAD EACH(TAKE)                                                                         \
    }
#define CLOSE_1(r) VEC(c + r * cr) = x##r + (CVEC(init + r * ir) + low);
#define CLOSE_2(r) CLOSE_1(r) VEC(c + r * cr + LANES) = y##r + (CVEC(init + r * ir + LANES) + high);
#define BIAS_1                                                                                  \
    vec low = ALL(0.0f);                                                                        \
    if (bias) low = CVEC(bias);
#define BIAS_2                                                                                  \
    BIAS_1 vec high = ALL(0.0f);                                                                \
    if (bias) high = CVEC(bias + LANES);
#define TILE(name, EACH, OPEN, LOAD, TAKE, BIAS, CLOSE)                                         \
    INLINE void name(GLOBAL const float *a, i64 ar, i64 ak, GLOBAL const float *b, i64 br,      \
                     int depth, GLOBAL float *c, i64 cr, GLOBAL const float *init, i64 ir,      \
                     GLOBAL const float *bias) {                                                \
        EACH(OPEN)                                                                              \
        IN_STEPS(depth, MEET, EACH, LOAD, TAKE)                                                 \
        BIAS EACH(CLOSE)                                                                        \
    }
#define TILES(rows, EACH)                                                                       \
    TILE(tile_##rows##_1, EACH, OPEN_1, LOAD_1, TAKE_1, BIAS_1, CLOSE_1)                        \
    TILE(tile_##rows##_2, EACH, OPEN_2, LOAD_2, TAKE_2, BIAS_2, CLOSE_2)
TILES(1, ONE)
TILES(2, TWO)
TILES(4, FOUR)
#if LANES == 16 /* half as many registers hold 6 rows */
#define TALL 8
TILES(8, EIGHT)
#else
#define TALL 6
TILES(6, SIX)
#endif

/* c (rows, columns) = init + bias + a (rows, depth) b (depth, columns), in whole vectors: up to
 * UP(columns) columns of b, init and bias are read and of c written. `init` has rows `ir` apart.
 * DEPTH rows of b for the columns of a tile stay in the nearest cache while all rows pass. */
#define DEPTH 256
#define WHILE(n, wide)                                                                          \
    for (; r + n <= rows; r += n)                                                               \
        tile_##n##_##wide(a + r * ar, ar, ak, b + o, br, part, c + r * cr + o, cr,              \
                          init + r * ir + o, ir, bias ? bias + o : 0);
#if LANES == 16
#define COLUMN(wide) { i64 r = 0; WHILE(8, wide) WHILE(4, wide) WHILE(2, wide) WHILE(1, wide) }
#else
#define COLUMN(wide) { i64 r = 0; WHILE(6, wide) WHILE(4, wide) WHILE(2, wide) WHILE(1, wide) }
#endif
INLINE void product(GLOBAL const float *a, i64 ar, i64 ak, GLOBAL const float *b, i64 br,
                    int depth, GLOBAL float *c, i64 cr, int rows, int columns,
                    GLOBAL const float *init, i64 ir, GLOBAL const float *bias) {
    for (int k = 0; k == 0 || k < depth; k += DEPTH) {
        int o = 0, part = MIN(DEPTH, depth - k);
        for (; o + LANES < columns; o += 2 * LANES) COLUMN(2)
        if (o < columns) COLUMN(1)
        a += DEPTH * ak, b += DEPTH * br, init = c, ir = cr, bias = 0;
    }
}

/* c = init + bias + a b. */
static void multiply(GLOBAL const float *a, i64 ar, GLOBAL const float *b, i64 br, int depth,
                     GLOBAL float *c, i64 cr, int rows, int columns, GLOBAL const float *init,
                     i64 ir, GLOBAL const float *bias) {
    product(a, ar, 1, b, br, depth, c, cr, rows, columns, init, ir, bias);
}

/* c = init + a^T b, a being (depth, rows): gradients of weights, and of keys and values. */
static void multiply_turned(GLOBAL const float *a, i64 ak, GLOBAL const float *b, i64 br,
                            int depth, GLOBAL float *c, i64 cr, int rows, int columns,
                            GLOBAL const float *init, i64 ir, GLOBAL const float *zero) {
    product(a, 1, ak, b, br, depth, c, cr, rows, columns, init, ir, zero);
}

/* to (columns, rows) = from (rows, columns) transposed. */
static void turn(GLOBAL const float *from, i64 stride, int rows, int columns, GLOBAL float *to,
                 i64 to_stride) {
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < rows; r++) to[c * to_stride + r] = from[r * stride + c];
}

/* The next n floats of memory. */
static GLOBAL float *taken(GLOBAL float **memory, i64 n) {
    GLOBAL float *at = *memory;
    *memory += n;
    return at;
}

#endif
