/* Matrix products in register blocks of ROWS rows by COLS columns, for attention and entmax.
 *
 * Keys, and for some gradients values, come packed: panels of COLS positions, in each panel COLS
 * neighbouring numbers for every component, zeros after the last position.
 */
#ifndef TILES_H
#define TILES_H
#include "turn.h"

#if LANES == 16 /* half as many registers hold 6 rows */
#define ROWS 8
#else
#define ROWS 6
#endif
#define COLS (2 * LANES)
#define UP(n, to) (((n) + (to) - 1) / (to) * (to))

/* A product's rows one by one, in registers of their own: PoCL keeps arrays in memory. */
#define ONCE(f) f(0) f(1) f(2) f(3) f(4) f(5)
#if ROWS == 8
#define EACH(f) ONCE(f) f(6) f(7)
#else
#define EACH(f) ONCE(f)
#endif
#define AT(r) GLOBAL const float *a##r = a + MIN(r, rows - 1) * ai;
#define TO(r) GLOBAL float *c##r = c + MIN(r, rows - 1) * ci;
#define OPEN(r) vec x##r = ALL(0.0f), y##r = ALL(0.0f);
#define LOAD(r) x##r = CVEC(c##r), y##r = CVEC(c##r + LANES);
#define TAKE(r) by = ALL(a##r[at]), x##r += by * left, y##r += by * right;
#define MEET(k, EACH)                                                                           \
    left = CVEC(b), right = CVEC(b + LANES);                                                    \
    LOADED(left) LOADED(right)                                                                  \
    EACH(TAKE)                                                                                  \
    at += ak, b += bk;
#define STORE(r) VEC(c##r) = x##r, VEC(c##r + LANES) = y##r;
/* c (rows x COLS) = or += a (rows x depth) b (depth x COLS), a[i][k] at a[i * ai + k * ak]. Rows
 * after the last repeat it, in a and in c, and so write the same numbers once more. */
INLINE void product(GLOBAL const float *a, int ai, int ak, GLOBAL const float *b, int bk, int depth,
                    GLOBAL float *c, int ci, int rows, int add) {
    EACH(AT) EACH(TO) EACH(OPEN)
    if (add) { EACH(LOAD) }
    vec left, right, by;
    int at = 0;
    IN_STEPS(depth, MEET, EACH)
    EACH(STORE)
}

/* x (n, d) -> panels (d, COLS) of COLS positions, zeros after the last. */
INLINE void pack(GLOBAL const float *x, int n, int d, GLOBAL float *panels) {
    for (int p = 0; p < n; p += COLS, panels += d * COLS) {
        int here = MIN(COLS, n - p), j = 0;
        GLOBAL const float *from = x + (i64)p * d;
        for (; j + 4 <= here; j += 4)
            for (int c = 0; c < d; c += 4)
                turn_four(from + j * d + c, d, panels + c * COLS + j, COLS);
        for (; j < COLS; j++)
            for (int c = 0; c < d; c++) panels[c * COLS + j] = j < here ? from[j * d + c] : 0.0f;
    }
}

/* Widths are multiples of COLS. */
INLINE float dot(GLOBAL const float *a, GLOBAL const float *b, int width) {
    vec x = ALL(0.0f), y = x;
    for (int c = 0; c < width; c += COLS)
        x += CVEC(a + c) * CVEC(b + c), y += CVEC(a + c + LANES) * CVEC(b + c + LANES);
    return sum_of(x + y);
}

#endif
