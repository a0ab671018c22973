/* The dialect of every CPU-shaped source: the same file is compiled by gcc or clang as C and by
 * OpenCL (PoCL). A kernel is a function of pointers, ints and floats whose last parameter is
 * `int items`, the number of independent pieces of work, and whose body is one FOR_ITEMS loop:
 *
 *     KERNEL scale(GLOBAL const float *x, GLOBAL float *y, float by, int items) {
 *         FOR_ITEMS(i, items) y[i] = x[i] * by;
 *     }
 *
 * Numbers of a known width are i64, u64, u32, u16, u8, i8 (OpenCL's own `uint8` is a vector).
 * Vectors have LANES floats: 8 (AVX2, NEON in two halves) or 16 (AVX-512).
 */
#ifndef ITEMS_H
#define ITEMS_H

#ifdef __OPENCL_VERSION__
#define KERNEL __kernel void
#define GLOBAL __global
#define FOR_ITEMS(i, n) for (int i = get_global_id(0); i < (n); i += get_global_size(0))
#define INFINITY_F INFINITY
typedef long i64;
typedef ulong u64;
typedef uint u32;
typedef ushort u16;
typedef uchar u8;
typedef char i8;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#define KERNEL void
#define GLOBAL
#define FOR_ITEMS(i, n) for (int i = 0; i < (n); i++)
#define INFINITY_F ((float)INFINITY)
typedef int64_t i64;
typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
typedef int8_t i8;
#endif

#ifndef LANES
#define LANES 8
#endif

/* Vectors may lie anywhere in memory, hence aligned(4). `may_alias` does not exist for OpenCL. */
#ifdef __OPENCL_VERSION__
typedef float vec __attribute__((ext_vector_type(LANES), aligned(4)));
typedef int veci __attribute__((ext_vector_type(LANES), aligned(4)));
#else
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t veci __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#endif
#define VEC(p) (*(GLOBAL vec *)(p))              /* lvalue: LANES floats at p */
#define CVEC(p) (*(GLOBAL const vec *)(p))       /* the same, read only */
#ifdef __OPENCL_VERSION__                       /* s in every lane */
#define ALL(s) ((vec)(s))
#else
#define ALL(s) ((s) - (vec){0})                  /* `(vec){} + s` halves gcc's speed */
#endif
#define FETCH(p) __builtin_prefetch(p, 0, 2)     /* the line at p comes as near as the second level */

#endif
