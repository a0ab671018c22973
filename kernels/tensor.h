/* What tensor cores need beside simt.h, for GPUs from sm_80 on: products of 16 x 16 by 16 x 8
 * matrices, and loads of their fragments.
 *
 * Fragments are those of PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
 * Lane l of a warp stands for row g = l / 4 and column pair t = l % 4:
 *     a (16 x 16): a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8)
 *     b (16 x 8):  b0 (2t, g), b1 (2t + 8, g), the pair runs down the column
 *     c (16 x 8):  c[0], c[1] (g, 2t), c[2], c[3] (g + 8, 2t), in float32
 * where (row, column) is the first of two neighbours. STORED says what 16 bits are: 1 bfloat16,
 * 2 float16.
 */
#ifndef TENSOR_H
#define TENSOR_H

#ifndef EMULATED /* tests bring their own, see tests/cuda_emulator.h */
/* Four 8 x 8 matrices, row by row: lane l gives where row l % 8 of matrix l / 8 lies, and gets of
 * every matrix the two neighbours at (l / 4, 2 (l % 4)). */
DEVICE void load_matrices(u32 r[4], const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_place(row))
                 : "memory");
}

/* The same transposed: a lane gets the two at (2 (l % 4), l / 4) and below. */
DEVICE void load_turned(u32 r[4], const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_place(row))
                 : "memory");
}

#if STORED == 2
#define KIND "f16"
#else
#define KIND "bf16"
#endif

/* c += a b */
DEVICE void multiply(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two neighbours as 16 bits each, the first in the low half. */
DEVICE u32 pair(float first, float second) {
    u32 both;
    asm("cvt.rn." KIND "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

/* One of the two again. */
DEVICE float unpaired(u32 both, int second) {
    u32 bits = second ? both >> 16 : both & 0xffff;
#if STORED == 2
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)bits));
    return x;
#else
    return AS_FLOAT(bits << 16);
#endif
}

/* 2^x to 2 units in the last place, 0 below -126. */
DEVICE float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

#endif
