/* Matrix products in register blocks of ROWS rows by COLS columns, for attention and entmax.
 *
 * Keys, and for some gradients values, come packed: panels of COLS positions, in each panel COLS
 * neighbouring numbers for every component, zeros after the last position.
 */
#ifndef TILES_H
#define TILES_H
#include "items.h"
#if !defined(__OPENCL_VERSION__) && defined(__AVX__)
#include <immintrin.h> /* what the vectors of the dialect do not offer */
#endif

#define ROWS 6
#define COLS (2 * LANES)
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define BITS(x) (*(veci *)&(x))
#ifdef __OPENCL_VERSION__
typedef float four __attribute__((ext_vector_type(4), aligned(4)));
#else
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
#endif

/* The larger in every lane; b where one of the two is NaN. */
INLINE vec greater(vec a, vec b) {
#if !defined(__OPENCL_VERSION__) && LANES == 16 && defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif !defined(__OPENCL_VERSION__) && LANES == 8 && defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    veci first = a > b;
    veci chosen = (first & BITS(a)) | (~first & BITS(b));
    return *(vec *)&chosen;
#endif
}

/* The largest lane. */
INLINE float most(vec x) {
    four *parts = (four *)&x;
    float top = -INFINITY_F;
    for (int i = 0; i < 4; i++) {
        float a = MAX(parts[0][i], parts[1][i]);
#if LANES == 16
        float b = MAX(parts[2][i], parts[3][i]);
        a = MAX(a, b);
#endif
        top = MAX(a, top);
    }
    return top;
}

/* Halves are added as long as there are any: lane after lane each addition waits for the last. */
INLINE float total(vec x) {
    four *parts = (four *)&x;
#if LANES == 16
    four sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
#else
    four sum = parts[0] + parts[1];
#endif
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* c (rows x COLS) = or += a (rows x depth) b (depth x COLS), a[i][k] at a[i * ai + k * ak]. Rows
 * after the last repeat it, in a and in c, and so write the same numbers once more. */
INLINE void product(GLOBAL const float *a, int ai, int ak, GLOBAL const float *b, int bk, int depth,
                    GLOBAL float *c, int ci, int rows, int add) {
    int r1 = MIN(1, rows - 1), r2 = MIN(2, rows - 1), r3 = MIN(3, rows - 1);
    int r4 = MIN(4, rows - 1), r5 = MIN(5, rows - 1);
    GLOBAL const float *a0 = a, *a1 = a + r1 * ai, *a2 = a + r2 * ai;
    GLOBAL const float *a3 = a + r3 * ai, *a4 = a + r4 * ai, *a5 = a + r5 * ai;
    GLOBAL float *c0 = c, *c1 = c + r1 * ci, *c2 = c + r2 * ci;
    GLOBAL float *c3 = c + r3 * ci, *c4 = c + r4 * ci, *c5 = c + r5 * ci;
    vec x0 = ALL(0.0f), x1 = x0, x2 = x0, x3 = x0, x4 = x0, x5 = x0;
    vec y0 = x0, y1 = x0, y2 = x0, y3 = x0, y4 = x0, y5 = x0;
    if (add) {
        x0 = CVEC(c0), x1 = CVEC(c1), x2 = CVEC(c2), x3 = CVEC(c3), x4 = CVEC(c4), x5 = CVEC(c5);
        y0 = CVEC(c0 + LANES), y1 = CVEC(c1 + LANES), y2 = CVEC(c2 + LANES);
        y3 = CVEC(c3 + LANES), y4 = CVEC(c4 + LANES), y5 = CVEC(c5 + LANES);
    }
    for (int k = 0, at = 0; k < depth; k++, at += ak, b += bk) {
        vec left = CVEC(b), right = CVEC(b + LANES), by;
        by = ALL(a0[at]), x0 += by * left, y0 += by * right;
        by = ALL(a1[at]), x1 += by * left, y1 += by * right;
        by = ALL(a2[at]), x2 += by * left, y2 += by * right;
        by = ALL(a3[at]), x3 += by * left, y3 += by * right;
        by = ALL(a4[at]), x4 += by * left, y4 += by * right;
        by = ALL(a5[at]), x5 += by * left, y5 += by * right;
    }
    VEC(c0) = x0, VEC(c1) = x1, VEC(c2) = x2, VEC(c3) = x3, VEC(c4) = x4, VEC(c5) = x5;
    VEC(c0 + LANES) = y0, VEC(c1 + LANES) = y1, VEC(c2 + LANES) = y2;
    VEC(c3 + LANES) = y3, VEC(c4 + LANES) = y4, VEC(c5 + LANES) = y5;
}

/* x (n, d) -> panels (d, COLS) of COLS positions, zeros after the last. */
INLINE void pack(GLOBAL const float *x, int n, int d, GLOBAL float *panels) {
    for (int p = 0; p < n; p += COLS, panels += d * COLS) {
        int here = MIN(COLS, n - p), j = 0;
        GLOBAL const float *from = x + (i64)p * d;
#if !defined(__OPENCL_VERSION__) && defined(__SSE__)
        for (; j + 4 <= here; j += 4)
            for (int c = 0; c < d; c += 4) {
                __m128 a = _mm_loadu_ps(from + j * d + c), b = _mm_loadu_ps(from + (j + 1) * d + c);
                __m128 e = _mm_loadu_ps(from + (j + 2) * d + c);
                __m128 f = _mm_loadu_ps(from + (j + 3) * d + c);
                _MM_TRANSPOSE4_PS(a, b, e, f);
                _mm_storeu_ps(panels + c * COLS + j, a);
                _mm_storeu_ps(panels + (c + 1) * COLS + j, b);
                _mm_storeu_ps(panels + (c + 2) * COLS + j, e);
                _mm_storeu_ps(panels + (c + 3) * COLS + j, f);
            }
#endif
        for (; j < COLS; j++)
            for (int c = 0; c < d; c++) panels[c * COLS + j] = j < here ? from[j * d + c] : 0.0f;
    }
}

/* Widths are multiples of COLS. */
INLINE float dot(GLOBAL const float *a, GLOBAL const float *b, int width) {
    vec x = ALL(0.0f), y = x;
    for (int c = 0; c < width; c += COLS)
        x += CVEC(a + c) * CVEC(b + c), y += CVEC(a + c + LANES) * CVEC(b + c + LANES);
    return total(x + y);
}

#endif
