/* The dialect of every GPU-shaped source (*.cu without tensor cores): the same file is compiled by
 * NVRTC as CUDA C++ and, so that it can be tested without a GPU, by OpenCL. A kernel runs BLOCKS
 * blocks of THREADS threads, which share the floats of `room`:
 *
 *     #define THREADS 64
 *     #include "simt.h"
 *     KERNEL scale(GLOBAL const float *x, GLOBAL float *y, float by, int n ROOM_ARGUMENT) {
 *         ROOM;
 *         for (int i = THREAD + BLOCK * THREADS; i < n; i += BLOCKS * THREADS) y[i] = x[i] * by;
 *     }
 *
 * DEVICE functions are inlined, CALLED ones are not (which spares a large kernel half its compile
 * time). Numbers of a known width are i64, u32, u16. STORED 1 makes `stored` a bfloat16, else a float.
 */
#ifndef SIMT_H
#define SIMT_H

#ifdef __OPENCL_VERSION__
#define KERNEL __kernel __attribute__((reqd_work_group_size(THREADS, 1, 1))) void
#define DEVICE static inline __attribute__((always_inline))
#define CALLED static inline
#define GLOBAL __global
#define SHARED __local
#define ROOM_ARGUMENT , __local float *room
#define ROOM
#define THREAD ((int)get_local_id(0))
#define BLOCK ((int)get_group_id(0))
#define BLOCKS ((int)get_num_groups(0))
#if THREADS > 1
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#else
#define BARRIER
#endif
#define INFINITY_F INFINITY
#define EXP(x) exp((float)(x))
#define LOG(x) log((float)(x))
#define ROOT(x) sqrt((float)(x))
#define AS_FLOAT(x) as_float(x)
#define AS_U32(x) as_uint(x)
typedef long i64;
typedef uint u32;
typedef ushort u16;
#else
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#define DEVICE static __device__ __forceinline__
#define CALLED static __device__ __noinline__
#define GLOBAL
#define SHARED
#define ROOM_ARGUMENT
#define ROOM extern __shared__ float4 all_room[]; float *room = (float *)all_room
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCKS ((int)gridDim.x)
#define BARRIER __syncthreads()
#define INFINITY_F __int_as_float(0x7f800000)
#define EXP(x) expf(x)
#define LOG(x) logf(x)
#define ROOT(x) sqrtf(x)
#define AS_FLOAT(x) __uint_as_float(x)
#define AS_U32(x) __float_as_uint(x)
typedef long long i64;
typedef unsigned u32;
typedef unsigned short u16;
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define QUAD(p) (*(SHARED const float4 *)(p)) /* four floats at a multiple of 16 bytes */

#if STORED == 1
typedef u16 stored;
DEVICE float wide(stored x) { return AS_FLOAT((u32)x << 16); }
DEVICE stored narrow(float x) { /* to the nearest, ties to even; NaN stays NaN */
    u32 bits = AS_U32(x);
    if (x != x) return (stored)(bits >> 16 | 64);
    return (stored)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float stored;
DEVICE float wide(stored x) { return x; }
DEVICE stored narrow(float x) { return x; }
#endif

/* The largest x of the `n` neighbouring threads that this one stands among; n is a power of 2 up to
 * 32. All threads of the block call it. `room` holds THREADS floats. */
DEVICE float largest_of(float x, int n, SHARED float *room) {
#ifdef __OPENCL_VERSION__
    int first = THREAD / n * n;
    BARRIER;
    room[THREAD] = x;
    BARRIER;
    for (int i = 0; i < n; i++) x = MAX(room[first + i], x);
#else
    for (int step = n / 2; step; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, step);
        x = MAX(other, x);
    }
#endif
    return x;
}

/* The sum, in the same way and in the same order of additions. */
DEVICE float sum_of(float x, int n, SHARED float *room) {
#ifdef __OPENCL_VERSION__
    for (int step = n / 2; step; step /= 2) {
        BARRIER;
        room[THREAD] = x;
        BARRIER;
        x += room[THREAD ^ step];
    }
#else
    for (int step = n / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
#endif
    return x;
}

#endif
