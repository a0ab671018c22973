/* Lossless weights: decoding of blocks of 256 values, and the checksum. Layout: lossless.py. */
#include "items.h"

#define BLOCK 256
#define SUM_LANES 64

/* The three bits of value k * 32 + j of a block: two of low[64], one of high[32]. */
#define CODE(low, high, k, j) \
    (u8)((((low)[((k) & 1) * 32 + (j)] >> ((k) >> 1) * 2) & 3) | (((high)[j] >> (k)) & 1) << 2)

KERNEL decode_bf16(GLOBAL const u8 *restrict raw, GLOBAL const u8 *restrict codes,
                   GLOBAL const int *restrict ends, GLOBAL const u8 *restrict places,
                   GLOBAL const u8 *restrict exponents, GLOBAL u16 *restrict out, int base,
                   int items) {
    FOR_ITEMS(b, items) {
        GLOBAL const u8 *restrict r = raw + (i64)b * BLOCK;
        GLOBAL const u8 *restrict low = codes + (i64)b * 96;
        GLOBAL const u8 *restrict high = low + 64;
        GLOBAL u16 *restrict o = out + (i64)b * BLOCK;
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            for (int j = 0; j < 32; j++) {
                u8 e = (u8)(CODE(low, high, k, j) + base);
                u8 v = r[k * 32 + j];
                o[k * 32 + j] = (u16)((v & 0x7f) | e << 7 | (v & 0x80) << 8);
            }
        for (int n = b ? ends[b - 1] : 0; n < ends[b]; n++) {
            int i = places[n];
            o[i] = (u16)((o[i] & 0x807f) | exponents[n] << 7);
        }
    }
}

KERNEL decode_fp16(GLOBAL const u8 *restrict raw, GLOBAL const u8 *restrict codes,
                   GLOBAL const u8 *restrict rest, GLOBAL const int *restrict ends,
                   GLOBAL const u8 *restrict places, GLOBAL const u8 *restrict exponents,
                   GLOBAL u16 *restrict out, int base, int items) {
    FOR_ITEMS(b, items) {
        GLOBAL const u8 *restrict r = raw + (i64)b * BLOCK;
        GLOBAL const u8 *restrict low = codes + (i64)b * 96;
        GLOBAL const u8 *restrict high = low + 64;
        GLOBAL const u8 *restrict low2 = rest + (i64)b * 96;
        GLOBAL const u8 *restrict high2 = low2 + 64;
        GLOBAL u16 *restrict o = out + (i64)b * BLOCK;
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            for (int j = 0; j < 32; j++) {
                u8 e = (u8)(CODE(low, high, k, j) + base) & 31;
                u8 m = CODE(low2, high2, k, j);
                u8 v = r[k * 32 + j];
                o[k * 32 + j] = (u16)((v & 0x7f) | m << 7 | e << 10 | (v & 0x80) << 8);
            }
        for (int n = b ? ends[b - 1] : 0; n < ends[b]; n++) {
            int i = places[n];
            o[i] = (u16)((o[i] & 0x83ff) | (exponents[n] & 31) << 10);
        }
    }
}

KERNEL decode_fp32(GLOBAL const u8 *restrict raw, GLOBAL const u8 *restrict codes,
                   GLOBAL const u16 *restrict rest, GLOBAL const int *restrict ends,
                   GLOBAL const u8 *restrict places, GLOBAL const u8 *restrict exponents,
                   GLOBAL u32 *restrict out, int base, int items) {
    FOR_ITEMS(b, items) {
        GLOBAL const u8 *restrict r = raw + (i64)b * BLOCK;
        GLOBAL const u8 *restrict low = codes + (i64)b * 96;
        GLOBAL const u8 *restrict high = low + 64;
        GLOBAL const u16 *restrict h = rest + (i64)b * BLOCK;
        GLOBAL u32 *restrict o = out + (i64)b * BLOCK;
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            for (int j = 0; j < 32; j++) {
                u8 e = (u8)(CODE(low, high, k, j) + base);
                u32 v = r[k * 32 + j];
                o[k * 32 + j] = h[k * 32 + j] | (v & 0x7f) << 16 | (u32)e << 23 | (v & 0x80) << 24;
            }
        for (int n = b ? ends[b - 1] : 0; n < ends[b]; n++) {
            int i = places[n];
            o[i] = (o[i] & 0x807fffff) | (u32)exponents[n] << 23;
        }
    }
}

/* Fletcher's sums of rows of 64 words, lane by lane: sums[0:64] and the sums of those. */
KERNEL checksum(GLOBAL const u32 *restrict words, GLOBAL u32 *restrict sums, int rows,
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
