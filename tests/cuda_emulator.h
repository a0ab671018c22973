/* CUDA sources on the processor, to test them where there is no GPU: the real source is compiled as
 * C++ with this before it. The threads of a block are fibres. One runs until it has to wait, for
 * its block at __syncthreads or for its warp where the warp works together (shuffles, ldmatrix,
 * mma), so a barrier that is missing shows: warps, and the lanes of a warp, take turns in random
 * order and run as far ahead of each other as they may. Shared memory begins as NaN.
 *
 * What ldmatrix and mma.m16n8k16 do with the registers of a warp is written after NVIDIA's PTX ISA,
 * section "Warp Level Matrix Multiply-Accumulate Instructions".
 */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#define EMULATED 1
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct Place { int x; };

namespace emulator {

constexpr int STACK = 1 << 16, ROOM = 1 << 18, GUARD = 4096, MOST = 1024;
enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Copy { char *to; const char *from; bool there; };

struct Fibre {
    jmp_buf here;
    ucontext_t start;
    bool started;
    State state;
    int turns; /* how often it met its warp */
    std::vector<std::vector<Copy>> groups; /* copies not waited for yet, the last one is open */
};

struct Warp { uint64_t given[2][32][8]; int kind[2][32]; };

static Fibre fibres[MOST];
static Warp warps[MOST / 32];
static char stacks[MOST][STACK];
static jmp_buf scheduler;
static int current, asked; /* the running thread, and the bytes of shared memory it may use */
static bool early;         /* asynchronous copies arrive at once, or as late as they may */
static const char *fault;
static uint32_t random_state;
static std::function<void()> body;

static int random_below(int n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % n;
}

static void stop(const char *why) {
    fault = why;
    _longjmp(scheduler, 1);
}

static void wait(State state) {
    fibres[current].state = state;
    if (!_setjmp(fibres[current].here)) _longjmp(scheduler, 1);
}

static void run_body() {
    body();
    for (auto &group : fibres[current].groups)
        if (!group.empty()) stop("a thread ends before its copies are there");
    fibres[current].state = DONE;
    _longjmp(scheduler, 1);
}

} /* namespace emulator */

alignas(1024) float4 all_room[(emulator::ROOM + emulator::GUARD) / sizeof(float4)];
static Place threadIdx, blockIdx, gridDim;

namespace emulator {

static void resume(int i) {
    current = i, threadIdx.x = i;
    if (_setjmp(scheduler)) return;
    Fibre &f = fibres[i];
    if (f.started) _longjmp(f.here, 1);
    f.started = true;
    setcontext(&f.start);
}

/* Lets a warp run until all of it is at the block's barrier or at its end. */
static void run_warp(int first) {
    while (!fault) {
        int count[4] = {0}, turn = random_below(32), step = 2 * random_below(16) + 1;
        for (int i = 0; i < 32 && !fault; i++) {
            int lane = first + (turn + i * step) % 32;
            if (fibres[lane].state == READY) resume(lane);
        }
        for (int i = 0; i < 32; i++) count[fibres[first + i].state]++;
        if (count[AT_BLOCK] == 32 || count[DONE] == 32) return;
        if (fault) return;
        if (count[AT_WARP] != 32) fault = "the lanes of a warp part where they should work together";
        for (int i = 0; i < 32; i++) fibres[first + i].state = READY;
    }
}

static void run_block(int threads) {
    memset((void *)all_room, 0xff, sizeof all_room);
    for (int i = 0; i < threads; i++) {
        Fibre &f = fibres[i];
        f.started = false, f.state = READY, f.turns = 0, f.groups.assign(1, {});
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = stacks[i], f.start.uc_stack.ss_size = STACK;
        f.start.uc_link = nullptr;
        makecontext(&f.start, run_body, 0);
    }
    for (bool live = true; live && !fault;) {
        int count = threads / 32, turn = random_below(count);
        for (int i = 0; i < count && !fault; i++) run_warp((turn + i) % count * 32);
        int done = 0;
        for (int i = 0; i < threads; i++) done += fibres[i].state == DONE;
        if (done && done < threads && !fault) fault = "threads end while others wait for them";
        for (int i = 0; i < threads && !done; i++) fibres[i].state = READY;
        live = !done;
    }
    const unsigned char *guard = (const unsigned char *)all_room + asked;
    for (int i = 0; i < GUARD && !fault; i++)
        if (guard[i] != 0xff) fault = "more shared memory is written than was asked for";
}

/* Gives what this lane brings to the warp, and all that its lanes have brought. */
static Warp &meet(int kind, const uint64_t *given, int n, int &side) {
    Fibre &f = fibres[current];
    Warp &warp = warps[current / 32];
    side = f.turns++ & 1; /* a lane is at most one turn ahead: two sides are enough */
    memcpy(warp.given[side][current % 32], given, n * sizeof *given);
    warp.kind[side][current % 32] = kind;
    wait(AT_WARP);
    for (int i = 0; i < 32; i++)
        if (warp.kind[side][i] != kind) stop("the lanes of a warp do different things together");
    return warp;
}

static void check_shared(const void *p, int bytes) {
    long at = (const char *)p - (const char *)all_room;
    if (at < 0 || at + bytes > asked) stop("an address outside of shared memory");
    if (at % bytes) stop("an address that is not a multiple of 16 bytes");
}

static void perform(const Copy &c) {
    if (c.there) memcpy(c.to, c.from, 16);
    else memset(c.to, 0, 16);
}

static float wide(uint16_t x) { /* as the source says: bfloat16 or float16 */
#if STORED == 2
    _Float16 h;
    memcpy(&h, &x, 2);
    return (float)h;
#else
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
#endif
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **given, std::index_sequence<I...>) {
    kernel(*(A *)given[I]...);
}

template <class... A>
static const char *launch(void (*kernel)(A...), void **given, int blocks, int threads, int room,
                          int seed, int at_once) {
    random_state = seed, early = at_once, fault = nullptr, asked = room, gridDim.x = blocks;
    if (threads % 32 || threads > MOST || room > ROOM) return "too much of something";
    body = [&] { call(kernel, given, std::index_sequence_for<A...>()); };
    for (int i = 0, first = random_below(blocks); i < blocks && !fault; i++) {
        blockIdx.x = (first + i) % blocks;
        run_block(threads);
    }
    return fault;
}

} /* namespace emulator */

#define EMULATE(kernel)                                                                         \
    extern "C" const char *emulate_##kernel(void **given, int blocks, int threads, int room,    \
                                            int seed, int early) {                              \
        return emulator::launch(kernel, given, blocks, threads, room, seed, early);             \
    }

/* -- what CUDA gives to a source ------------------------------------------------------ */

static void __syncthreads() { emulator::wait(emulator::AT_BLOCK); }

static void __syncwarp() {
    uint64_t nothing = 0;
    int side;
    emulator::meet(1, &nothing, 1, side);
}

static float __int_as_float(int x) { float f; memcpy(&f, &x, 4); return f; }
static float __uint_as_float(unsigned x) { float f; memcpy(&f, &x, 4); return f; }
static unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }

static float __shfl_xor_sync(unsigned, float x, int step) {
    uint64_t given = __float_as_uint(x);
    int side;
    emulator::Warp &warp = emulator::meet(2, &given, 1, side);
    return __uint_as_float((unsigned)warp.given[side][(emulator::current % 32) ^ step][0]);
}

/* -- what tensor.h gives ----------------------------------------------------------------- */

static void meet_matrices(unsigned r[4], const uint16_t *row, bool turned) {
    emulator::check_shared(row, 16);
    uint64_t given = (uint64_t)row;
    int side, lane = threadIdx.x % 32;
    auto &rows = emulator::meet(turned ? 4 : 3, &given, 1, side).given[side];
    for (int i = 0; i < 4; i++) {
        unsigned banks = 0;
        for (int j = 0; j < 8; j++) banks |= 1u << (rows[8 * i + j][0] / 16 % 8);
        if (banks != 0xff) emulator::stop("rows of a matrix in the same banks");
        uint16_t two[2];
        for (int j = 0; j < 2; j++) {
            int line = lane / 4, column = lane % 4 * 2 + j;
            if (turned) std::swap(line, column);
            two[j] = ((const uint16_t *)rows[8 * i + line][0])[column];
        }
        memcpy(&r[i], two, 4);
    }
}

static void load_matrices(unsigned r[4], const uint16_t *row) { meet_matrices(r, row, false); }
static void load_turned(unsigned r[4], const uint16_t *row) { meet_matrices(r, row, true); }

static void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    uint64_t given[] = {a[0], a[1], a[2], a[3], b0, b1};
    int side, lane = threadIdx.x % 32;
    auto &all = emulator::meet(5, given, 6, side).given[side];
    auto half = [&](int from, int which, int place) {
        return (double)emulator::wide((uint16_t)(all[from][which] >> 16 * place));
    };
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            /* a[row][k]: lane (row % 8, k % 8 / 2); b[k][column]: lane (column, k % 8 / 2) */
            int pairs = k % 8 / 2;
            double x = half(row % 8 * 4 + pairs, row / 8 + k / 8 * 2, k % 2);
            sum += x * half(column * 4 + pairs, 4 + k / 8, k % 2);
        }
        c[i] = (float)(c[i] + sum);
    }
}

static unsigned pair(float first, float second) {
    unsigned both = 0;
    for (int i = 0; i < 2; i++) {
        float x = i ? second : first;
#if STORED == 2
        _Float16 h = (_Float16)x;
        uint16_t bits;
        memcpy(&bits, &h, 2);
#else
        unsigned all = __float_as_uint(x);
        uint16_t bits = x != x ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;
#endif
        both |= (unsigned)bits << 16 * i;
    }
    return both;
}

static float power(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

static void begin_copy(uint16_t *to, const uint16_t *from, int there) {
    emulator::check_shared(to, 16);
    if ((uint64_t)from % 16) emulator::stop("a copy from an address that is no multiple of 16");
    emulator::Copy copy = {(char *)to, (const char *)from, there != 0};
    if (emulator::early) emulator::perform(copy);
    else emulator::fibres[emulator::current].groups.back().push_back(copy);
}

static void close_group() { emulator::fibres[emulator::current].groups.push_back({}); }

static void WAIT_FOR_COPIES(int open) {
    auto &groups = emulator::fibres[emulator::current].groups;
    while ((int)groups.size() - 1 > open) {
        for (auto &copy : groups.front()) emulator::perform(copy);
        groups.erase(groups.begin());
    }
}
