/* CUDA sources on the processor, to test them where there is no GPU: the real source is compiled as
 * C++ with this before it. The threads of a block are fibres. One runs until it has to wait, for
 * its block at __syncthreads or for its warp where the warp works together (shuffles, ldmatrix,
 * mma), so a barrier that is missing shows: warps, and the lanes of a warp, take turns in random
 * order and run as far ahead of each other as they may. Shared memory begins as NaN. So it is with
 * the blocks of a team (-DTEAM): each runs until it waits for the others, in random order.
 *
 * What ldmatrix, mma.m16n8k16 and wgmma do with the registers of a warp is written after NVIDIA's
 * PTX ISA, sections "Warp Level Matrix Multiply-Accumulate Instructions" and "Asynchronous Warpgroup
 * Level Matrix Multiply-Accumulate Instructions".
 */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#define EMULATED 1
#ifndef TEAM
#define TEAM 1
#endif
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n)
#define __cluster_dims__(...)

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct Place { int x; };

namespace emulator {

constexpr int STACK = 1 << 16, ROOM = 1 << 18, GUARD = 4096, MOST = 1024;
enum State { READY, AT_WARP, AT_BLOCK, AT_TEAM, DONE };

struct Copy { char *to; const char *from; bool there; };

struct Product { /* a thread's part of c += a b */
    float (*c)[4];
    int columns, thread;
    bool add, held, down; /* a in registers, b down its rows */
    float a[2][16];
    uint64_t from, by; /* descriptors of a and b */
};

struct Fibre {
    jmp_buf here;
    ucontext_t start;
    bool started;
    State state;
    int turns; /* how often it met its warp */
    std::vector<std::vector<Copy>> groups; /* copies not waited for yet, the last one is open */
    std::vector<std::vector<Product>> products; /* likewise */
    bool hidden; /* copies have arrived that tensor cores may not see yet */
};

struct Warp { uint64_t given[2][32][8]; int kind[2][32]; };

static Fibre fibres[MOST];
static Warp warps[MOST / 32];
static char stacks[MOST][STACK];
static jmp_buf scheduler;
static int current, asked; /* the running thread, and the bytes of shared memory it may use */
static int block, block_threads; /* which of the team has its shared memory in place; in a block */
static bool early;         /* asynchronous copies arrive at once, or as late as they may */
static bool hidden;        /* a barrier was passed with such copies */
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

static void trapped(int) { /* the compiler looks for it: see FLAGS in cuda_emulator.py */
    stop("a vector at no multiple of its size, or an integer beyond 32 bits");
}

static void wait(State state) {
    fibres[current].state = state;
    if (!_setjmp(fibres[current].here)) _longjmp(scheduler, 1);
}

static void run_body() {
    body();
    for (auto &group : fibres[current].groups)
        if (!group.empty()) stop("a thread ends before its copies are there");
    for (auto &group : fibres[current].products)
        if (!group.empty()) stop("a thread ends before its products are there");
    fibres[current].state = DONE;
    _longjmp(scheduler, 1);
}

} /* namespace emulator */

alignas(1024) float4 all_room[(emulator::ROOM + emulator::GUARD) / sizeof(float4)];
static char rooms[TEAM][sizeof all_room]; /* of the blocks that are not running */
static Place threadIdx, blockIdx, gridDim;

namespace emulator {

static void resume(int i) {
    current = i, threadIdx.x = i % block_threads;
    if (_setjmp(scheduler)) return;
    Fibre &f = fibres[i];
    if (f.started) _longjmp(f.here, 1);
    f.started = true;
    setcontext(&f.start);
}

/* Lets a warp run until all of it is at a barrier or at its end. */
static void run_warp(int first) {
    while (!fault) {
        int count[5] = {0}, turn = random_below(32), step = 2 * random_below(16) + 1;
        for (int i = 0; i < 32 && !fault; i++) {
            int lane = first + (turn + i * step) % 32;
            if (fibres[lane].state == READY) resume(lane);
        }
        for (int i = 0; i < 32; i++) count[fibres[first + i].state]++;
        if (count[AT_BLOCK] == 32 || count[AT_TEAM] == 32 || count[DONE] == 32) return;
        if (fault) return;
        if (count[AT_WARP] != 32) fault = "the lanes of a warp part where they should work together";
        for (int i = 0; i < 32; i++) fibres[first + i].state = READY;
    }
}

/* Puts the shared memory of a block of the team in place. */
static void enter(int b) {
    if (b != block) {
        memcpy(rooms[block], all_room, asked + GUARD);
        memcpy((void *)all_room, rooms[b], asked + GUARD);
    }
    block = b;
}

/* Lets a block run until all of it waits for its team or is at its end: that state. */
static State run_block(int b, int threads) {
    enter(b);
    blockIdx.x += b;
    State state = READY;
    while (state == READY && !fault) {
        int count = threads / 32, turn = random_below(count), ended[5] = {0};
        for (int i = 0; i < count && !fault; i++) run_warp(b * threads + (turn + i) % count * 32);
        for (int i = 0; i < threads; i++) ended[fibres[b * threads + i].state]++;
        for (State end : {AT_TEAM, DONE}) {
            if (ended[end] == threads) state = end;
            else if (ended[end] && !fault) fault = "threads end while others wait for them";
        }
        for (int i = 0; i < threads && state != DONE; i++) fibres[b * threads + i].state = READY;
    }
    blockIdx.x -= b;
    return state;
}

static void run_team(int threads) {
    memset((void *)all_room, 0xff, sizeof all_room);
    memset(rooms, 0xff, sizeof rooms);
    hidden = false;
    for (int i = 0; i < TEAM * threads; i++) {
        Fibre &f = fibres[i];
        f.started = false, f.state = READY, f.turns = 0, f.groups.assign(1, {});
        f.products.assign(1, {}), f.hidden = false;
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = stacks[i], f.start.uc_stack.ss_size = STACK;
        f.start.uc_link = nullptr;
        makecontext(&f.start, run_body, 0);
    }
    for (int done = 0; !done && !fault;) {
        int turn = random_below(TEAM);
        for (int i = 0; i < TEAM && !fault; i++)
            done += run_block((turn + i) % TEAM, threads) == DONE;
        if (done && done < TEAM && !fault) fault = "blocks end while their team waits for them";
    }
    for (int b = 0; b < TEAM; b++) {
        enter(b);
        const unsigned char *guard = (const unsigned char *)all_room + asked;
        for (int i = 0; i < GUARD && !fault; i++)
            if (guard[i] != 0xff) fault = "more shared memory is written than was asked for";
    }
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
    if (threads % 32 || TEAM * threads > MOST || room > ROOM) return "too much of something";
    if (blocks % TEAM) return "blocks that are in no team";
    body = [&] { call(kernel, given, std::index_sequence_for<A...>()); };
    block_threads = threads;
    struct sigaction trap = {}, before;
    trap.sa_handler = trapped, trap.sa_flags = SA_NODEFER; /* it is left by a jump */
    sigaction(SIGILL, &trap, &before);
    for (int i = 0, teams = blocks / TEAM, first = random_below(teams); i < teams && !fault; i++) {
        blockIdx.x = (first + i) % teams * TEAM;
        run_team(threads);
    }
    sigaction(SIGILL, &before, nullptr);
    return fault;
}

} /* namespace emulator */

#define EMULATE(kernel)                                                                         \
    extern "C" const char *emulate_##kernel(void **given, int blocks, int threads, int room,    \
                                            int seed, int early) {                              \
        return emulator::launch(kernel, given, blocks, threads, room, seed, early);             \
    }

/* -- what CUDA gives to a source ------------------------------------------------------ */

static void __syncthreads() {
    emulator::hidden |= emulator::fibres[emulator::current].hidden;
    emulator::wait(emulator::AT_BLOCK);
}

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

static int __any_sync(unsigned, int x) {
    uint64_t given = x != 0, any = 0;
    int side;
    emulator::Warp &warp = emulator::meet(7, &given, 1, side);
    for (auto &lane : warp.given[side]) any |= lane[0];
    return (int)any;
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

static float unpaired(unsigned both, int second) {
    return emulator::wide((uint16_t)(both >> 16 * second));
}

static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float power(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

static void begin_copy(void *to, const void *from, int there) {
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
        emulator::fibres[emulator::current].hidden |= !groups.front().empty() || emulator::early;
        for (auto &copy : groups.front()) emulator::perform(copy);
        groups.erase(groups.begin());
    }
}

/* -- what hopper.h gives ------------------------------------------------------------------ */

static unsigned long long described(const uint16_t *p, unsigned lead) {
    unsigned long long start = (const char *)p - (const char *)all_room;
    emulator::check_shared(p, 16);
    return start >> 4 | (unsigned long long)(lead >> 4) << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}
static unsigned long long along(const uint16_t *p) { return described(p, 16); }
static unsigned long long down(const uint16_t *p, int panel) { return described(p, 2 * panel); }

namespace emulator {

/* A number of a matrix in shared memory: along its rows it has 16 columns, down them 16 rows. */
static float number(uint64_t descriptor, int row, int column, bool down) {
    auto bytes = [&](int bit) { return (long)(descriptor >> bit & 0x3fff) << 4; };
    long at = bytes(0) + row / 8 * bytes(32) + row % 8 * 128 + column % 64 * 2;
    if (down) at += column / 64 * bytes(16);
    at ^= (at >> 7 & 7) << 4;
    uint16_t x;
    if (at + 2 > asked) stop("a matrix that reaches out of shared memory");
    memcpy(&x, (const char *)all_room + at, 2);
    return wide(x);
}

static void perform(const Product &p) {
    int lane = p.thread % 32, first = p.thread / 32 % 4 * 16 + lane / 4;
    for (int n = 0; n < p.columns; n++)
        for (int i = 0; i < 4; i++) {
            int column = 8 * n + lane % 4 * 2 + i % 2;
            double sum = 0;
            for (int k = 0; k < 16; k++) {
                float a = p.held ? p.a[i / 2][k] : number(p.from, first + i / 2 * 8, k, false);
                sum += (double)a * number(p.by, p.down ? k : column, p.down ? column : k, p.down);
            }
            p.c[n][i] = (float)((p.add ? p.c[n][i] : 0.0f) + sum);
        }
}

static void begin(Product p, const unsigned *a) {
    uint64_t given[4] = {p.from, 0, 0, 0};
    for (int i = 0; a && i < 4; i++) given[i] = a[i];
    int side, lane = threadIdx.x % 32;
    auto &all = meet(6, given, 4, side).given[side];
    for (int row = 0; a && row < 2; row++)
        for (int k = 0; k < 16; k++) {
            uint64_t two = all[lane / 4 * 4 + k % 8 / 2][row + k / 8 * 2];
            p.a[row][k] = wide((uint16_t)(two >> k % 2 * 16));
        }
    if (hidden) stop("copies that were not shown to the tensor cores");
    p.thread = threadIdx.x, p.held = a;
    if (early) perform(p);
    else fibres[current].products.back().push_back(p);
}

} /* namespace emulator */

template <int ADD, int N>
static void begin_product(float (&c)[N][4], unsigned long long a, unsigned long long b) {
    emulator::begin({c, N, 0, ADD, false, false, {}, a, b}, nullptr);
}

template <int ADD>
static void begin_product(float (&c)[8][4], const unsigned (&a)[4], unsigned long long b) {
    emulator::begin({c, 8, 0, ADD, true, false, {}, 0, b}, a);
}

template <int N>
static void begin_blend(float (&c)[N][4], const unsigned (&a)[4], unsigned long long b) {
    emulator::begin({c, N, 0, true, true, true, {}, 0, b}, a);
}

static void open_products() {}
static void close_products() { emulator::fibres[emulator::current].products.push_back({}); }

template <int OPEN, int N> static void wait_for_product(float (&)[N][4]) {
    auto &products = emulator::fibres[emulator::current].products;
    while ((int)products.size() - 1 > OPEN) {
        for (auto &product : products.front()) emulator::perform(product);
        products.erase(products.begin());
    }
}

static void settle(float) {}
template <int N> static void settle(float (&)[N][4]) {}
static void show_tensor_cores() { emulator::fibres[emulator::current].hidden = false; }
