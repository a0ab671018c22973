/* Products of each expert's few rows with its weights: they take as long as reading the weights,
 * so every weight is read once, for all rows of its expert. Many rows are better served by a
 * matrix product that packs its operands: see experts.py.
 */
#include "vectors.h"

/* Sums of two vectors' neighbours: those of a, then those of b. */
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#else
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (veci){__VA_ARGS__})
#endif
INLINE vec folded(vec a, vec b) {
    return SHUFFLE(a, b, EVEN) + SHUFFLE(a, b, ODD);
}

/* LANES vectors -> the sum of each in a lane of the first. Every loop has a constant length, for
 * OpenCL to keep the vectors in registers. */
#define HALVED(v, n)                                                                             \
    for (int j = 0; j < (n); j++) v[j] = folded(v[2 * j], v[2 * j + 1]);
#if LANES == 16
#define FOLDED(v) HALVED(v, 8) HALVED(v, 4) HALVED(v, 2) HALVED(v, 1)
#else
#define FOLDED(v) HALVED(v, 4) HALVED(v, 2) HALVED(v, 1)
#endif

/* Up to ROWS rows by TILE outputs, whose LANES sums, named one by one for OpenCL to keep them in
 * registers, end in one vector. `next` is what will be read
 * next, and is fetched meanwhile. */
#define ROWS 4
#define TILE (LANES / ROWS)
#if LANES == 16
#define EACH(f, ...) f(0, __VA_ARGS__) f(1, __VA_ARGS__) f(2, __VA_ARGS__) f(3, __VA_ARGS__)
#else
#define EACH(f, ...) f(0, __VA_ARGS__) f(1, __VA_ARGS__)
#endif
#define OPEN(o, ...) vec a##o = ALL(0.0f), b##o = a##o, c##o = a##o, d##o = a##o;
#define TAKE(o, LOAD)                                                                            \
    by = LOAD(w + o * inputs + i);                                                               \
    __builtin_prefetch(next + o * inputs + i);                                                   \
    a##o += a * by, b##o += b * by, c##o += c * by, d##o += d * by;
#define CLOSE(o, ...)                                                                            \
    sums[o] = a##o, sums[TILE + o] = b##o, sums[2 * TILE + o] = c##o, sums[3 * TILE + o] = d##o;
#define PRODUCT(type, T, LOAD)                                                                   \
    INLINE void tile_##type(GLOBAL const float *x, int rows, GLOBAL const T *w, int inputs,      \
                            GLOBAL float *y, int outputs, GLOBAL const T *next) {                \
        GLOBAL const float *x1 = x + (rows > 1) * inputs, *x2 = x1 + (rows > 2) * inputs;        \
        GLOBAL const float *x3 = x2 + (rows > 3) * inputs;                                       \
        EACH(OPEN)                                                                               \
        for (int i = 0; i < inputs; i += LANES) {                                                \
            vec a = CVEC(x + i), b = CVEC(x1 + i), c = CVEC(x2 + i), d = CVEC(x3 + i), by;       \
            EACH(TAKE, LOAD)                                                                     \
        }                                                                                        \
        vec sums[LANES];                                                                         \
        EACH(CLOSE)                                                                              \
        FOLDED(sums)                                                                             \
        for (int r = 0; r < rows; r++)                                                           \
            for (int o = 0; o < TILE; o++) y[(i64)r * outputs + o] = sums[0][r * TILE + o];      \
    }

#define SAME(p) CVEC(p)
#define LOAD_HALVES(p) FLOATS(__builtin_convertvector(HALVES(p), veci) << 16)
PRODUCT(f32, float, SAME)
PRODUCT(bf16, u16, LOAD_HALVES)

/* y = x w^T: x (rows, inputs) by expert, w (experts, outputs, inputs), y (rows, outputs). Expert
 * e has the rows from offsets[e] to offsets[e + 1]. inputs and outputs are multiples of LANES. */
KERNEL experts_product_f32(GLOBAL const float *x, GLOBAL const float *w, GLOBAL const i64 *offsets,
                           GLOBAL float *y, int experts, int inputs, int outputs, int items) {
    FOR_ITEMS(worker, items) {
        i64 tiles = outputs / TILE, step = TILE * inputs;
        i64 first = tiles * worker / items, end = tiles * (worker + 1) / items;
        for (int e = 0; e < experts; e++)
            for (i64 o = first; o < end; o++) {
                GLOBAL const float *at = w + (e * tiles + o) * step;
                for (i64 r = offsets[e]; r < offsets[e + 1]; r += ROWS)
                    tile_f32(x + r * inputs, MIN(ROWS, offsets[e + 1] - r), at, inputs,
                             y + r * outputs + o * TILE, outputs, o + 1 < end ? at + step : at);
            }
    }
}

/* The same with weights in bfloat16. Those of many rows are widened once, in room for
 * TILE inputs numbers an item. */
KERNEL experts_product_bf16(GLOBAL const float *x, GLOBAL const u16 *w, GLOBAL const i64 *offsets,
                            GLOBAL float *y, GLOBAL float *room, int experts, int inputs,
                            int outputs, int items) {
    FOR_ITEMS(worker, items) {
        i64 tiles = outputs / TILE, step = TILE * inputs;
        i64 first = tiles * worker / items, end = tiles * (worker + 1) / items;
        GLOBAL float *wide = room + worker * step;
        for (int e = 0; e < experts; e++)
            for (i64 o = first; o < end; o++) {
                GLOBAL const u16 *at = w + (e * tiles + o) * step;
                i64 r = offsets[e], stop = offsets[e + 1];
                if (stop - r <= ROWS) {
                    if (r < stop)
                        tile_bf16(x + r * inputs, stop - r, at, inputs, y + r * outputs + o * TILE,
                                  outputs, o + 1 < end ? at + step : at);
                    continue;
                }
                for (i64 i = 0; i < step; i += LANES) {
                    VEC(wide + i) = LOAD_HALVES(at + i);
                    __builtin_prefetch(at + i + (o + 1 < end) * step);
                }
                for (; r < stop; r += ROWS)
                    tile_f32(x + r * inputs, MIN(ROWS, stop - r), wide, inputs,
                             y + r * outputs + o * TILE, outputs, wide);
            }
    }
}
