/* What the dialect's vectors do not offer by themselves: bits, choices, sums, e^x. */
#ifndef VECTORS_H
#define VECTORS_H
#include "items.h"
#if !defined(__OPENCL_VERSION__) && defined(__SSE__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#ifdef __OPENCL_VERSION__
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
typedef float four __attribute__((ext_vector_type(4), aligned(4)));
typedef u16 halves __attribute__((ext_vector_type(LANES), aligned(2)));
typedef u32 vecu __attribute__((ext_vector_type(LANES), aligned(4)));
#define BITS(v) __builtin_astype((v), veci) /* of floats, and floats of bits */
#define FLOATS(v) __builtin_astype((v), vec)
#define UNSIGNED(v) __builtin_astype((v), vecu)
#define ALLI(s) ((veci)(s))
#define EXP(x) exp((float)(x))
#define LOG(x) log((float)(x))
#define ROOT(x) sqrt((float)(x))
#else
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef u16 halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef u32 vecu __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define BITS(v) ((veci)(v))
#define FLOATS(v) ((vec)(v))
#define UNSIGNED(v) ((vecu)(v))
#define ALLI(s) ((s) - (veci){0})
#define EXP(x) expf(x)
#define LOG(x) logf(x)
#define ROOT(x) sqrtf(x)
#endif
#define HALVES(p) (*(GLOBAL const halves *)(p))
#define PICK(mask, a, b) FLOATS(((mask) & BITS(a)) | (~(mask) & BITS(b)))

/* Keeps gcc from loading v again wherever it is used. */
#if !defined(__OPENCL_VERSION__) && \
    ((LANES == 8 && defined(__AVX__)) || (LANES == 16 && defined(__AVX512F__)))
#define LOADED(v) __asm__("" : "+v"(v));
#else
#define LOADED(v)
#endif

/* STEP(0, ...) to STEP(n - 1, ...). With vectors of 8 two at a time: counting and jumping take their
 * turn from what computes, above all where another thread shares the core. With vectors of 16 there
 * are fewer instructions for as much work, and two steps need more addresses than there are
 * registers (attention took 1.05 to 1.1 of the time). */
#if LANES == 16
#define IN_STEPS(n, STEP, ...)                                                                  \
    for (int step = 0; step < (n); step++) { STEP(step, __VA_ARGS__) }
#else
#define IN_STEPS(n, STEP, ...)                                                                  \
    {                                                                                           \
        int step = 0;                                                                           \
        for (; step + 2 <= (n); step += 2) {                                                    \
            STEP(step, __VA_ARGS__) STEP(step + 1, __VA_ARGS__)                                 \
        }                                                                                       \
        if (step < (n)) { STEP(step, __VA_ARGS__) }                                             \
    }
#endif

/* The larger in every lane; b where one of the two is NaN. */
INLINE vec greater(vec a, vec b) {
#if !defined(__OPENCL_VERSION__) && LANES == 16 && defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif !defined(__OPENCL_VERSION__) && LANES == 8 && defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    veci first = a > b;
    return PICK(first, a, b);
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

/* The largest of n floats, n a multiple of LANES. */
INLINE float largest(GLOBAL const float *x, int n) {
    vec top = CVEC(x);
    for (int i = LANES; i < n; i += LANES) top = greater(CVEC(x + i), top);
    return most(top);
}

/* Halves are added as long as there are any: lane after lane each addition waits for the last. */
INLINE float sum_of(vec x) {
    four *parts = (four *)&x;
#if LANES == 16
    four sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
#else
    four sum = parts[0] + parts[1];
#endif
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* e^x for x up to 88, to 2 units in the last place; 0 below -87, where it is not a normal number;
 * NaN for NaN. Cephes' polynomial: x = n log 2 + r, and adding 1.5 * 2^23 rounds n and leaves it in
 * the low bits. */
INLINE vec exponential(vec x) {
#if !defined(__OPENCL_VERSION__) && LANES == 16 && defined(__AVX512F__)
    __m512 rounded = _mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
    vec whole = (vec)rounded;
#else
    vec shifted = x * 1.44269504f + 12582912.0f;
    vec whole = shifted - 12582912.0f;
#endif
    vec r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f); /* the other way round takes a step longer */
#if !defined(__OPENCL_VERSION__) && LANES == 16 && defined(__AVX512F__)
    /* far below, r is no longer small and p may be infinite */
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return (vec)_mm512_maskz_scalef_ps(normal, (__m512)p, rounded);
#else
    veci tiny = x < ALL(-87.0f);
    /* unsigned: in a lane that is tiny the sum goes anywhere */
    return FLOATS((UNSIGNED(p) + (UNSIGNED(shifted) << 23)) & UNSIGNED(~tiny));
#endif
}

/* 1 / sigmoid(x) = 1 + e^-x. */
INLINE vec one_over_sigmoid(vec x) {
    return exponential(ALL(0.0f) - greater(ALL(-88.0f), x)) + 1.0f;
}

#endif
