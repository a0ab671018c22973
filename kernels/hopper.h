/* What Hopper's tensor cores need beside tensor.h: products of 64 x 16 by 16 x (8 N) matrices by a
 * warpgroup, four warps together, which read shared memory by themselves while the warps go on.
 *
 * Warp w of the four has the rows 16 w .. of c and of a, in the fragments of tensor.h. A matrix in
 * shared memory is a tile: panels of 64 columns, a panel's rows of 128 bytes one after the other,
 * the 16-byte pieces of row r exchanged by r % 8 (PTX ISA, "128-byte swizzling"). Tiles begin at
 * multiples of 1024 bytes.
 */
#ifndef HOPPER_H
#define HOPPER_H
#include "tensor.h"

typedef unsigned long long u64;

#ifndef EMULATED
DEVICE u64 described(const u16 *p, u32 lead) {
    u64 start = (shared_place(p) & 0x3ffff) >> 4, eight_rows = 1024 >> 4, swizzled = 1;
    return start | (u64)(lead >> 4) << 16 | eight_rows << 32 | swizzled << 62;
}

/* Where a matrix lies in a tile. Along its rows (16 columns of them): from `p` on. Down its rows
 * (16 rows, all columns): from row `p` on, the next panel `panel` numbers further. */
DEVICE u64 along(const u16 *p) { return described(p, 16); }
DEVICE u64 down(const u16 *p, int panel) { return described(p, 2 * panel); }

#define EACH4(kind, x) kind(x[0]), kind(x[1]), kind(x[2]), kind(x[3])
#define EACH16(kind, x, n)                                                                       \
    EACH4(kind, x[n]), EACH4(kind, x[n + 1]), EACH4(kind, x[n + 2]), EACH4(kind, x[n + 3])
#define EACH32(kind, x) EACH16(kind, x, 0), EACH16(kind, x, 4)
#define EACH64(kind, x) EACH32(kind, x), EACH16(kind, x, 8), EACH16(kind, x, 12)
#define MADE(x) "=f"(x)
#define KEPT(x) "+f"(x)
#define P8(a, b, c, d, e, f, g, h)                                                               \
    "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define P32                                                                                      \
    P8(0, 1, 2, 3, 4, 5, 6, 7) "," P8(8, 9, 10, 11, 12, 13, 14, 15) ","                          \
    P8(16, 17, 18, 19, 20, 21, 22, 23) "," P8(24, 25, 26, 27, 28, 29, 30, 31)
#define P64                                                                                      \
    P32 "," P8(32, 33, 34, 35, 36, 37, 38, 39) "," P8(40, 41, 42, 43, 44, 45, 46, 47) ","        \
    P8(48, 49, 50, 51, 52, 53, 54, 55) "," P8(56, 57, 58, 59, 60, 61, 62, 63)
#define WGMMA(columns) "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." KIND "." KIND " "
/* Both matrices in shared memory, or the first in registers. The last numbers: 1 to add to c, twice
 * 1 for no change of signs, 1 for what lies down its rows. */
#define TILES(columns, c, a, b, add)                                                             \
    WGMMA(columns) "{" c "}, " a ", " b ", " add ", 1, 1, 0, 0;"
#define HELD(columns, c, a, b, add, down)                                                        \
    WGMMA(columns) "{" c "}, {" a "}, " b ", " add ", 1, 1, " down ";"

/* Begins c = a b, or c += a b where ADD; both lie along their rows in shared memory. */
template <int ADD, int N> DEVICE void begin_product(float (&c)[N][4], u64 a, u64 b) {
    static_assert(N == 8 || N == 16, "written for 64 and 128 columns");
    if constexpr (N == 8 && ADD)
        asm volatile(TILES("64", P32, "%32", "%33", "1") : EACH32(KEPT, c) : "l"(a), "l"(b));
    else if constexpr (N == 8)
        asm volatile(TILES("64", P32, "%32", "%33", "0") : EACH32(MADE, c) : "l"(a), "l"(b));
    else if constexpr (ADD)
        asm volatile(TILES("128", P64, "%64", "%65", "1") : EACH64(KEPT, c) : "l"(a), "l"(b));
    else
        asm volatile(TILES("128", P64, "%64", "%65", "0") : EACH64(MADE, c) : "l"(a), "l"(b));
}

#define REGISTERS(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define A32 "%32, %33, %34, %35"
#define A64 "%64, %65, %66, %67"

/* The same with a in registers, for 64 columns. */
template <int ADD> DEVICE void begin_product(float (&c)[8][4], const u32 (&a)[4], u64 b) {
    if constexpr (ADD)
        asm volatile(HELD("64", P32, A32, "%36", "1", "0")
                     : EACH32(KEPT, c) : REGISTERS(a), "l"(b));
    else
        asm volatile(HELD("64", P32, A32, "%36", "0", "0")
                     : EACH32(MADE, c) : REGISTERS(a), "l"(b));
}

/* Begins c += a b, a in registers, b down its rows. */
template <int N> DEVICE void begin_blend(float (&c)[N][4], const u32 (&a)[4], u64 b) {
    static_assert(N == 8 || N == 16, "written for 64 and 128 columns");
    if constexpr (N == 8)
        asm volatile(HELD("64", P32, A32, "%36", "1", "1")
                     : EACH32(KEPT, c) : REGISTERS(a), "l"(b));
    else
        asm volatile(HELD("128", P64, A64, "%68", "1", "1")
                     : EACH64(KEPT, c) : REGISTERS(a), "l"(b));
}

/* Before the first product that reads registers which were written since. */
DEVICE void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/* Closes a group of products. */
DEVICE void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Waits until c is there, which is written by none of the last OPEN groups. */
template <int OPEN, int N> DEVICE void wait_for_product(float (&c)[N][4]) {
    if constexpr (N == 8)
        asm volatile("wgmma.wait_group.sync.aligned %32;"
                     : EACH32(KEPT, c) : "n"(OPEN) : "memory");
    else
        asm volatile("wgmma.wait_group.sync.aligned %64;"
                     : EACH64(KEPT, c) : "n"(OPEN) : "memory");
}

/* Has x computed before what follows. ptxas would wait for products first, and compute afterwards
 * what was meant to go on beside them: but not across a branch (no number is below -inf). */
DEVICE void settle(float x) {
    asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0fff800000; @p nanosleep.u32 1; }" ::"f"(x)
                 : "memory");
}

template <int N> DEVICE void settle(float (&x)[N][4]) {
    if constexpr (N == 8)
        asm volatile("" : EACH32(KEPT, x));
    else
        asm volatile("" : EACH64(KEPT, x));
    settle(x[N - 1][3]);
}

/* Lets tensor cores see what this thread has written to shared memory; before the barrier. */
DEVICE void show_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

#endif
