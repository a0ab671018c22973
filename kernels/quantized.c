/* Products with weights of 8 or 4 bits, y = x W^T, a worker an item.
 *
 * Weights lie in panels of WIDE outputs. A panel is one 32-bit word an output for every `per`
 * neighbouring inputs (4 of 8 bits or 8 of 4 bits, the first input lowest), words of WIDE outputs
 * side by side: a vector of words holds `per` inputs of LANES outputs, and two shifts give one of
 * them. `group` inputs (a multiple of `per`) share a scale an output.
 */
#include "vectors.h"

#define WIDE 32  /* outputs of a panel, as in quantized.py */
#ifndef FAR
#define FAR 2048 /* words between what is used and what is fetched */
#endif
#define WORDS(p) (*(GLOBAL const veci *)(p))

/* Input `n` of a vector of words, as floats. */
#define SIGNED(w, bits, n) \
    __builtin_convertvector((w) << (32 - (bits) * ((n) + 1)) >> (32 - (bits)), vec)

/* The same for 4 bits: gcc looks all 16 numbers up in one instruction, which reads 4 bits a lane. */
#if LANES == 16 && defined(__GNUC__) && !defined(__clang__)
#define NIBBLE(w, n) __builtin_shuffle(((vec){0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1}), (w) >> (4 * (n)))
#else
#define NIBBLE(w, n) SIGNED(w, 4, n)
#endif
#define NUMBER(w, bits, n) ((bits) == 4 ? NIBBLE(w, n) : SIGNED(w, bits, n))

/* -- one row: limited by the memory the weights come from ----------------------------- */

/* `count` vectors side by side, inputs in turns to two sums each: additions wait for one another. */
#define SUMS(v) vec even##v = ALL(0.0f), odd##v = even##v;
#define TOTAL(v) VEC(y + v * LANES) = CVEC(y + v * LANES) + (even##v + odd##v) * CVEC(scale + v * LANES);
#define PAIR(v, bits, n)                                                                        \
    even##v += x[n] * NUMBER(w##v, bits, n);                                                    \
    odd##v += x[n + 1] * NUMBER(w##v, bits, n + 1);
#define LOAD(v) veci w##v = WORDS(words + v * LANES);
/* The processor's own fetching ahead stops at every page, so the weights are asked for here. */
#define AHEAD __builtin_prefetch(words + FAR, 0, 2), __builtin_prefetch(words + FAR + WIDE / 2, 0, 2);
#define EIGHT_BITS(v) LOAD(v) PAIR(v, 8, 0) PAIR(v, 8, 2)
#define FOUR_BITS(v) LOAD(v) PAIR(v, 4, 0) PAIR(v, 4, 2) PAIR(v, 4, 4) PAIR(v, 4, 6)
#if LANES == 16
#define EVERY(f) f(0) f(1)
#else
#define EVERY(f) f(0) f(1) f(2) f(3)
#endif

/* y (WIDE) += one group's words times x */
INLINE void single(GLOBAL const float *x, GLOBAL const int *words, GLOBAL const float *scale,
                   GLOBAL float *y, int bits, int group) {
    EVERY(SUMS)
    if (bits == 8)
        for (int i = 0; i < group; i += 4, x += 4, words += WIDE) {
            AHEAD EVERY(EIGHT_BITS)
        }
    else
        for (int i = 0; i < group; i += 8, x += 8, words += WIDE) {
            AHEAD EVERY(FOUR_BITS)
        }
    EVERY(TOTAL)
}

/* -- several rows: unpacked in cache, then tiles of rows by 2 * LANES outputs in registers -- */

#define PUT(v, bits, n) VEC(to + (n) * across + v * LANES) = by##v * NUMBER(w##v, bits, n);
#define SCALE(v) vec by##v = CVEC(scale + v * LANES);
#define PUT_EIGHT_BITS(v) LOAD(v) PUT(v, 8, 0) PUT(v, 8, 1) PUT(v, 8, 2) PUT(v, 8, 3)
#define PUT_FOUR_BITS(v)                                                                        \
    LOAD(v) PUT(v, 4, 0) PUT(v, 4, 1) PUT(v, 4, 2) PUT(v, 4, 3)                                 \
    PUT(v, 4, 4) PUT(v, 4, 5) PUT(v, 4, 6) PUT(v, 4, 7)

/* One panel's floats for some inputs of one group, `across` floats from one input to the next. */
INLINE void unpack(GLOBAL const int *words, GLOBAL const float *scale, int bits, int inputs,
                   GLOBAL float *to, i64 across) {
    EVERY(SCALE)
    if (bits == 8)
        for (int i = 0; i < inputs; i += 4, words += WIDE, to += 4 * across) {
            AHEAD EVERY(PUT_EIGHT_BITS)
        }
    else
        for (int i = 0; i < inputs; i += 8, words += WIDE, to += 8 * across) {
            AHEAD EVERY(PUT_FOUR_BITS)
        }
}

#define ONE(f) f(0)
#define TWO(f) ONE(f) f(1)
#define FOUR(f) TWO(f) f(2) f(3)
#define SIX(f) FOUR(f) f(4) f(5)
#define EIGHT(f) SIX(f) f(6) f(7)
#define TWELVE(f) EIGHT(f) f(8) f(9) f(10) f(11)
#define OPEN(r) vec low##r = ALL(0.0f), high##r = low##r;
#define TAKE(r)                                                                                 \
    {                                                                                           \
        float s = x[r * inputs + i];                                                            \
        low##r += s * low;                                                                      \
        high##r += s * high;                                                                    \
    }
#define INPUT(at, EACH)                                                                         \
    {                                                                                           \
        const int i = at;                                                                       \
        vec low = CVEC(w + i * WIDE), high = CVEC(w + i * WIDE + LANES);                        \
        LOADED(low) LOADED(high)                                                                \
        EACH(TAKE)                                                                              \
    }
#define CLOSE(r)                                                                                \
    VEC(y + r * WIDE) = CVEC(y + r * WIDE) + low##r;                                            \
    VEC(y + r * WIDE + LANES) = CVEC(y + r * WIDE + LANES) + high##r;
#define TILE(name, EACH)                                                                        \
    static void name(GLOBAL const float *x, GLOBAL const float *w, int inputs,                  \
                     GLOBAL float *y) {                                                         \
        EACH(OPEN)                                                                              \
        IN_STEPS(inputs, INPUT, EACH)                                                           \
        EACH(CLOSE)                                                                             \
    }
TILE(tile_of_1, ONE)
TILE(tile_of_2, TWO)
TILE(tile_of_4, FOUR)
#if LANES == 16
TILE(tile_of_8, EIGHT)
TILE(tile_of_12, TWELVE)
#else
TILE(tile_of_6, SIX)
#endif
#define STEP(n)                                                                                 \
    for (; r + n <= rows; r += n) tile_of_##n(x + r * inputs, w + c, inputs, y + r * WIDE + c);

/* y (rows, WIDE) += x (rows, inputs) w (inputs, WIDE) */
INLINE void tiles(GLOBAL const float *x, GLOBAL const float *w, int inputs, GLOBAL float *y,
                  int rows) {
    for (int c = 0; c < WIDE; c += 2 * LANES) {
        int r = 0;
#if LANES == 16
        STEP(12) STEP(8)
#else
        STEP(6)
#endif
        STEP(4) STEP(2) STEP(1)
    }
}

/* x (inputs / step, rows, step), packed (panels, inputs / per, WIDE), scales (inputs / group,
 * panels * WIDE) -> y (rows, panels * WIDE). The smaller of step and group divides the other.
 * room: (step + rows) * WIDE floats a worker; one row needs none. */
KERNEL quantized_linear(GLOBAL const float *x, GLOBAL const int *packed, GLOBAL const float *scales,
                        GLOBAL float *y, GLOBAL float *room, int rows, int inputs, int panels,
                        int bits, int group, int step, int items) {
    int outputs = panels * WIDE, here = step < group ? step : group;
    FOR_ITEMS(worker, items) {
        GLOBAL float *unpacked = rows == 1 ? room : room + (i64)worker * (step + rows) * WIDE;
        int end = (int)((i64)panels * (worker + 1) / items);
        for (int panel = (int)((i64)panels * worker / items); panel < end; panel++) {
            GLOBAL const int *words = packed + (i64)panel * inputs * bits; /* WIDE / 32 is 1 */
            GLOBAL const float *scale = scales + panel * WIDE;
            GLOBAL float *sums = rows == 1 ? y + panel * WIDE : unpacked + step * WIDE;
            for (int i = 0; i < rows * WIDE; i += LANES) VEC(sums + i) = ALL(0.0f);
            if (rows == 1) {
                for (int i = 0; i < inputs; i += group)
                    single(x + i, words + (i64)i * bits, scale + (i64)(i / group) * outputs, sums,
                           bits, group);
                continue;
            }
            for (int i = 0; i < inputs; i += step) {
                for (int j = 0; j < step; j += here)
                    unpack(words + (i64)(i + j) * bits, scale + (i64)((i + j) / group) * outputs,
                           bits, here, unpacked + j * WIDE, WIDE);
                tiles(x + (i64)i * rows, unpacked, step, sums, rows);
            }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < WIDE; c += LANES)
                    VEC(y + (i64)r * outputs + panel * WIDE + c) = CVEC(sums + r * WIDE + c);
        }
    }
}

/* Some panels from the first of packed and scales on -> w (inputs, panels * WIDE), a group an
 * item. */
KERNEL quantized_unpack(GLOBAL const int *packed, GLOBAL const float *scales, GLOBAL float *w,
                        int first, int panels, int inputs, int outputs, int bits, int group,
                        int items) {
    i64 across = (i64)panels * WIDE;
    FOR_ITEMS(g, items) {
        for (int p = 0; p < panels; p++)
            unpack(packed + ((i64)(first + p) * inputs + (i64)g * group) * bits,
                   scales + (i64)g * outputs + (first + p) * WIDE, bits, group,
                   w + (i64)g * group * across + p * WIDE, across);
    }
}
