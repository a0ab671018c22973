/* Lossless weights: decoding block by block, and the checksum. Layout: lossless.py. */
#include "vectors.h"

#define UNIT 256
#define BLOCK 2048 /* values that a kernel decodes at a time, as in lossless.py */
#define SUM_LANES 64

/* Fields of a payload begin anywhere. */
#ifdef __OPENCL_VERSION__
typedef u64 word __attribute__((aligned(1)));
typedef u16 pair __attribute__((aligned(1)));
typedef u32 quad __attribute__((aligned(1)));
#else
typedef u64 word __attribute__((aligned(1), may_alias));
typedef u16 pair __attribute__((aligned(1), may_alias));
typedef u32 quad __attribute__((aligned(1), may_alias));
#endif

/* 64 bits from bit `at` on; the bytes after the stream belong to the payload as well. */
INLINE u64 stream(GLOBAL const u8 *restrict from, i64 at) {
    GLOBAL const u8 *p = from + (at >> 3);
    int s = at & 7;
    return *(GLOBAL const word *)p >> s | (u64)p[8] << 1 << (63 - s); /* 64 - s may be too far */
}

/* The lowest bits of x at the places of mask's bits, in order. */
INLINE u64 deposit(u64 x, u64 mask) {
#if defined(__OPENCL_VERSION__) && defined(__BMI2__)
    return __builtin_ia32_pdep_di(x, mask);
#elif defined(__BMI2__)
    return _pdep_u64(x, mask);
#else
    u64 y = 0;
    for (; mask; mask &= mask - 1, x >>= 1) y |= mask & -mask & -(x & 1);
    return y;
#endif
}

INLINE int ones(u64 x) { return __builtin_popcountll(x); }

#ifdef __OPENCL_VERSION__
typedef u8 bytes __attribute__((ext_vector_type(64), aligned(1)));
typedef i8 chosen __attribute__((ext_vector_type(64)));
#define EIGHT(n) n, n, n, n, n, n, n, n
#define BIT_BY_BIT 1, 2, 4, 8, 16, 32, 64, 128

/* Byte i is -1 where bit i is set. */
INLINE chosen spread(u64 mask) {
    uchar8 parts = __builtin_astype(mask, uchar8);
    bytes each = __builtin_shufflevector(parts, parts, EIGHT(0), EIGHT(1), EIGHT(2), EIGHT(3),
                                         EIGHT(4), EIGHT(5), EIGHT(6), EIGHT(7));
    bytes bit = (bytes)(BIT_BY_BIT, BIT_BY_BIT, BIT_BY_BIT, BIT_BY_BIT, BIT_BY_BIT, BIT_BY_BIT,
                        BIT_BY_BIT, BIT_BY_BIT);
    return (each & bit) != (bytes)(0);
}
#endif

/* table[code] for 64 codes of four bits, given as four planes */
INLINE void look_up(u64 k0, u64 k1, u64 k2, u64 k3, GLOBAL const u8 *restrict table, u8 *e) {
#if !defined(__OPENCL_VERSION__) && defined(__AVX512BW__)
    __m512i code = _mm512_maskz_set1_epi8(k0, 1);
    code = _mm512_or_si512(code, _mm512_maskz_set1_epi8(k1, 2));
    code = _mm512_or_si512(code, _mm512_maskz_set1_epi8(k2, 4));
    code = _mm512_or_si512(code, _mm512_maskz_set1_epi8(k3, 8));
    __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    _mm512_storeu_si512(e, _mm512_shuffle_epi8(all, code));
#elif !defined(__OPENCL_VERSION__) && defined(__AVX2__)
    u64 planes[4] = {k0, k1, k2, k3};
    __m256i bit = _mm256_set1_epi64x(0x8040201008040201);
    __m256i owner = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                      0x0101010101010101, 0);
    __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    for (int i = 0; i < 64; i += 32) {
        __m256i code = _mm256_setzero_si256();
        for (int p = 3; p >= 0; p--) { /* a set bit is -1: code = 2 code - bit */
            __m256i mine = _mm256_shuffle_epi8(_mm256_set1_epi32((int)(planes[p] >> i)), owner);
            __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(mine, bit), bit);
            code = _mm256_sub_epi8(_mm256_add_epi8(code, code), set);
        }
        _mm256_storeu_si256((__m256i *)(e + i), _mm256_shuffle_epi8(all, code));
    }
#elif defined(__OPENCL_VERSION__)
    chosen m0 = spread(k0), m1 = spread(k1), m2 = spread(k2), m3 = spread(k3);
#define OF_2(n) (m0 ? (bytes)(table[n + 1]) : (bytes)(table[n]))
#define OF_4(n) (m1 ? OF_2(n + 2) : OF_2(n))
#define OF_8(n) (m2 ? OF_4(n + 4) : OF_4(n))
    *(bytes *)e = m3 ? OF_8(8) : OF_8(0);
#else
    for (int i = 0; i < 64; i++)
        e[i] = table[(k0 >> i & 1) | (k1 >> i & 1) << 1 | (k2 >> i & 1) << 2 | (k3 >> i & 1) << 3];
#endif
}

/* Exponents of one block of n values; 0 if its planes are not those that were counted. */
INLINE int expand(GLOBAL const word *restrict planes, GLOBAL const u8 *restrict seconds,
                  GLOBAL const u8 *restrict thirds, GLOBAL const u8 *restrict table,
                  GLOBAL const i64 *restrict starts, int n, u8 *e) {
    i64 one = starts[0], three = starts[1];
    int found1 = 0, found2 = 0;
    for (int g = 0; g < n / 64; g++) {
        u64 low = planes[2 * g], high = planes[2 * g + 1];
        found1 += ones(high & ~low), found2 += ones(high & low);
    }
    if (found1 != starts[3] - one || found2 != starts[4] - three) return 0;
    three *= 3;
    for (int g = 0; g < n / 64; g++) {
        u64 low = planes[2 * g], high = planes[2 * g + 1];
        u64 second = high & ~low, third = high & low;
        int count = ones(third);
        u64 k0 = (low & ~high) | deposit(stream(seconds, one), second) |
                 deposit(stream(thirds, three), third);
        u64 k1 = second | deposit(stream(thirds, three + count), third);
        u64 k2 = deposit(stream(thirds, three + 2 * count), third);
        look_up(k0, k1, k2, third, table, e + g * 64);
        one += ones(second);
        three += 3 * count;
    }
    return 1;
}

/* The three bits of value k * 32 + j of a unit: two of low[64], one of high[32]. */
#define CODE(low, high, k, j) \
    (u8)((((low)[((k) & 1) * 32 + (j)] >> ((k) >> 1) * 2) & 3) | (((high)[j] >> (k)) & 1) << 2)

/* What every decoder begins with: `starts` has the bits of `seconds`, a third of those of `thirds`
 * and the escapes before each block and, at the end, of all; damaged[0] becomes 1 where these are
 * not the planes' own numbers. `values` is a multiple of UNIT. */
#define FIELDS                                                                                  \
    GLOBAL const word *restrict planes, GLOBAL const u8 *restrict seconds,                       \
        GLOBAL const u8 *restrict thirds, GLOBAL const u8 *restrict table,                      \
        GLOBAL const i64 *restrict starts, GLOBAL const u8 *restrict raw
#define ESCAPES GLOBAL const pair *restrict places, GLOBAL const u8 *restrict exponents
#define BEGIN                                                                                   \
    i64 first = (i64)b * BLOCK;                                                                 \
    int n = values - first < BLOCK ? (int)(values - first) : BLOCK;                             \
    u8 e[BLOCK];                                                                                \
    if (!expand(planes + first / 32, seconds, thirds, table, starts + 3 * b, n, e)) {           \
        damaged[0] = 1;                                                                         \
        continue;                                                                               \
    }                                                                                           \
    for (i64 i = starts[3 * b + 2]; i < starts[3 * b + 5]; i++)                                 \
        e[places[i] % BLOCK] = exponents[i];                                                    \
    GLOBAL const u8 *restrict r = raw + first;

KERNEL decode_bf16(FIELDS, ESCAPES, GLOBAL u16 *restrict out, GLOBAL int *damaged, int units,
                   int items) {
    i64 values = (i64)units * UNIT;
    FOR_ITEMS(b, items) {
        BEGIN
        GLOBAL u16 *restrict o = out + first;
        for (int i = 0; i < n; i++)
            o[i] = (u16)((r[i] & 0x7f) | e[i] << 7 | (r[i] & 0x80) << 8);
    }
}

KERNEL decode_fp16(FIELDS, GLOBAL const u8 *restrict rest, ESCAPES, GLOBAL u16 *restrict out,
                   GLOBAL int *damaged, int units, int items) {
    i64 values = (i64)units * UNIT;
    FOR_ITEMS(b, items) {
        BEGIN
        for (int u = 0; u < n; u += UNIT) {
            GLOBAL const u8 *restrict low = rest + (first + u) / UNIT * 96;
            GLOBAL const u8 *restrict high = low + 64;
            GLOBAL u16 *restrict o = out + first + u;
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++)
                for (int j = 0; j < 32; j++) {
                    u8 m = CODE(low, high, k, j), v = r[u + k * 32 + j];
                    o[k * 32 + j] = (u16)((v & 0x7f) | m << 7 | (e[u + k * 32 + j] & 31) << 10 |
                                          (v & 0x80) << 8);
                }
        }
    }
}

KERNEL decode_fp32(FIELDS, GLOBAL const pair *restrict rest, ESCAPES, GLOBAL u32 *restrict out,
                   GLOBAL int *damaged, int units, int items) {
    i64 values = (i64)units * UNIT;
    FOR_ITEMS(b, items) {
        BEGIN
        GLOBAL const pair *restrict h = rest + first;
        GLOBAL u32 *restrict o = out + first;
        for (int i = 0; i < n; i++)
            o[i] = h[i] | (r[i] & 0x7f) << 16 | (u32)e[i] << 23 | (u32)(r[i] & 0x80) << 24;
    }
}

/* Fletcher's sums of rows of 64 words, lane by lane: sums[0:64] and the sums of those. */
KERNEL checksum(GLOBAL const quad *restrict words, GLOBAL u32 *restrict sums, int rows,
                int items) {
    FOR_ITEMS(unused, items) {
        u32 a[SUM_LANES], b[SUM_LANES];
        for (int l = 0; l < SUM_LANES; l++) a[l] = b[l] = 0;
        for (i64 r = 0; r < rows; r++)
            for (int l = 0; l < SUM_LANES; l++) {
                a[l] += words[r * SUM_LANES + l];
                b[l] += a[l];
            }
        for (int l = 0; l < SUM_LANES; l++) {
            sums[l] = a[l];
            sums[SUM_LANES + l] = b[l];
        }
    }
}
