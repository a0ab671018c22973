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
 * time) and do not know what kind of memory they are given: there, ROOM_AT is the room as an array
 * of some kind, and IS_GLOBAL says that a pointer leads to global memory. Numbers of a known width
 * are i64, u32, u16. STORED 1 makes `stored` a bfloat16, else a float.
 *
 * With -DTEAM=8, on sm_90 and later, neighbouring blocks work in teams of 8 (a thread block
 * cluster) and see each other's global memory as it was written before TEAM_BARRIER. Every thread of
 * the team meets it: TEAM_ARRIVE says that a thread is there, TEAM_WAIT waits for the others.
 */
#ifndef SIMT_H
#define SIMT_H

#ifndef TEAM
#define TEAM 1
#endif

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
#define TEAM_ARRIVE
#define TEAM_WAIT BARRIER
#define ROOM_AT(kind, room) ((__local kind *)(room))
#define IS_GLOBAL(p)
#define INFINITY_F INFINITY
#define EXP(x) exp((float)(x))
#define LOG(x) log((float)(x))
#define INVERSE_ROOT(x) rsqrt((float)(x))
#define LARGER(x, y) fmax((float)(x), (float)(y))
#define AS_FLOAT(x) as_float(x)
#define AS_U32(x) as_uint(x)
typedef long i64;
typedef uint u32;
typedef ushort u16;
#else
#if TEAM > 1
#define KERNEL extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS)
#else
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#endif
#define DEVICE static __device__ __forceinline__
#define CALLED static __device__ __noinline__
#define GLOBAL
#define SHARED
#define ROOM_ARGUMENT
#define ROOM float *room = (float *)all_room
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCKS ((int)gridDim.x)
#define BARRIER __syncthreads()
#if defined(EMULATED)
#define TEAM_ARRIVE
#define TEAM_WAIT emulator::wait(emulator::AT_TEAM)
#elif TEAM > 1
#define TEAM_ARRIVE asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory")
#define TEAM_WAIT asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory")
#else
#define TEAM_ARRIVE
#define TEAM_WAIT BARRIER
#endif
#ifdef EMULATED
#define IS_GLOBAL(p)
#else
#define IS_GLOBAL(p) __builtin_assume(__isGlobal(p))
extern __shared__ __align__(1024) float4 all_room[];
#endif
#define ROOM_AT(kind, room) ((kind *)all_room)
#define INFINITY_F __int_as_float(0x7f800000)
#define EXP(x) expf(x)
#define LOG(x) logf(x)
#define INVERSE_ROOT(x) rsqrtf(x)
#define LARGER(x, y) fmaxf(x, y) /* NaN counts for nothing */
#define AS_FLOAT(x) __uint_as_float(x)
#define AS_U32(x) __float_as_uint(x)
typedef long long i64;
typedef unsigned u32;
typedef unsigned short u16;
#endif

#define TEAM_BARRIER do { TEAM_ARRIVE; TEAM_WAIT; } while (0)
#define RANK (BLOCK % TEAM) /* of a block in its team */

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define QUAD(p) (*(SHARED const float4 *)(p)) /* four floats at a multiple of 16 bytes */
#define FAR_QUAD(p) (*(GLOBAL const float4 *)(p))

/* Begins to copy 16 bytes into shared memory, zeros where they are not there: copies go on while
 * something else is computed. They are made in groups; `close_group` ends one, and
 * WAIT_FOR_COPIES waits until this thread's copies have come, but for those of its last `open`
 * groups. Threads that did not ask for them see them after a BARRIER. */
#if defined(EMULATED) /* tests bring their own, see tests/cuda_emulator.h */
#elif defined(__OPENCL_VERSION__) || __CUDA_ARCH__ < 800
DEVICE void begin_copy(SHARED void *to, GLOBAL const void *from, int there) {
    float4 none = {0.0f, 0.0f, 0.0f, 0.0f};
    *(SHARED float4 *)to = there ? *(GLOBAL const float4 *)from : none;
}
DEVICE void close_group() {}
#define WAIT_FOR_COPIES(open)
#else
DEVICE u32 shared_place(const void *p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void begin_copy(void *to, const void *from, int there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_place(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}

DEVICE void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define WAIT_FOR_COPIES(open) asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory")
#endif

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

/* The sum of every n-th x of the 32 neighbours (of all, where a block has fewer). */
DEVICE float sum_apart(float x, int n, SHARED float *room) {
    for (int step = MIN(32, THREADS) / 2; step >= n; step /= 2) {
#ifdef __OPENCL_VERSION__
        BARRIER;
        room[THREAD] = x;
        BARRIER;
        x += room[THREAD ^ step];
#else
        x += __shfl_xor_sync(0xffffffffu, x, step);
#endif
    }
    return x;
}

#endif
