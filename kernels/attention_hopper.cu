/* Attention and its gradients on Hopper's tensor cores (sm_90a), bfloat16 or float16 with float32
 * sums, for widths of 64 and 128. What attention_tensor.cu does, with products that a warpgroup
 * begins and waits for later (hopper.h): a tile's scores are multiplied while the tile before is
 * blended, and weighed meanwhile, as in FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608, 3.2).
 *
 * A block of GROUPS warpgroups owns ROWS rows, 64 a warpgroup, and walks over COLS columns of the
 * other side at a time. Compiled once for each WIDTH, STORED and BACKWARD, and with and without a
 * mask (MASKED): the registers just suffice.
 */
#define THREADS (128 * GROUPS)
#include "simt.h"
#include "hopper.h"

#define M 1
#define ROWS (64 * GROUPS)
#define TILE (COLS * WIDTH)
#define NEXT(turn) ((turn) == 2 ? 0 : (turn) + 1) /* of three rooms for a pair of tiles */
#include "attention_tensor.h"

/* Steps of matrices in a tile, in descriptors: 16 columns or 16 rows further. */
#define FURTHER(k, rows) ((k) / 4 * (rows) * 8 + (k) % 4 * 2)
#define BELOW(k) ((k) * 128)

/* Begins s = my rows of a tile times all rows of another. */
DEVICE void compare(const u16 *rows, const u16 *columns, float (&s)[N][4]) {
    u64 a = along(rows + THREAD / 128 * 64 * 64), b = along(columns);
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++)
        if (k) begin_product<1>(s, a + FURTHER(k, ROWS), b + FURTHER(k, COLS));
        else begin_product<0>(s, a, b);
}

/* Begins o += w times a tile. */
DEVICE void blend(const u32 (&w)[COLS / 16][4], const u16 *tile, float (&o)[SPREAD][4]) {
    u64 b = down(tile, COLS * 64);
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) begin_blend(o, w[k], b + BELOW(k));
}

/* s rounded to 16 bits, as products read it. */
DEVICE void pack(const float (&s)[N][4], u32 (&w)[COLS / 16][4]) {
#pragma unroll
    for (int k = 0; k < COLS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[k][i] = pair(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

/* Waits for my copies and shows all threads' to the tensor cores. */
DEVICE void meet_copies() {
    WAIT_FOR_COPIES(0);
    show_tensor_cores();
    BARRIER;
}

#if !BACKWARD
ATTENTION_FORWARD {
    ROOM;
    if (!MASKED) mask = 0;
    u16 *queries = (u16 *)room, *near_k = queries + ROWS * WIDTH, *near_v = near_k + 2 * TILE;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS; /* those that see most begin first */
    int keys = lengths ? lengths[b] : tk, end = MIN(keys, MIN(q0 + ROWS, tq) - 1 + shift);
    int tiles = UP(MAX(end, 0), COLS) / COLS, first = q0 + THREAD / 32 * 16; /* of this warp */
    i64 kv = at / group;
    k += kv * tk * WIDTH, v += kv * tk * WIDTH, lse += (i64)at * tq;
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    float by = factor[h], unit = (mask ? 1.0f : by) * LOG2E; /* of scores, in powers of two */
    float o[SPREAD][4], s[N][4], top[2], sum[2], less[2];
    u32 w[COLS / 16][4];

    auto weighed = [&](int tile) {
        int k0 = tile * COLS;
        if (mask || k0 + COLS > MIN(keys, first + shift))
            limit(s, 0, q0, tq, k0, keys, shift, mask, mask_q, by);
        weigh(s, unit, top, sum, less);
    };

    clear(o);
    top[0] = top[1] = -INFINITY_F, sum[0] = sum[1] = 0.0f;
    if (tiles) {
        load(q + (i64)at * tq * WIDTH, q0, ROWS, tq, queries);
        load(k, 0, COLS, keys, near_k);
        close_group();
        meet_copies();
        load(v, 0, COLS, keys, near_v);
        if (tiles > 1) load(k, COLS, COLS, keys, near_k + TILE);
        close_group();
        open_products();
        compare(queries, near_k, s);
        close_products();
        wait_for_product<0>(s);
        weighed(0);
        pack(s, w);
    }
    for (int tile = 0; tile < tiles - 1; tile++) {
        int even = tile % 2 * TILE, odd = TILE - even;
        meet_copies(); /* these values and the next keys are there, those before are read */
        load(v, (tile + 1) * COLS, COLS, keys, near_v + odd);
        if (tile + 2 < tiles) load(k, (tile + 2) * COLS, COLS, keys, near_k + even);
        close_group();
        open_products();
        compare(queries, near_k + odd, s);
        close_products();
        blend(w, near_v + even, o);
        close_products();
        wait_for_product<1>(s);
        weighed(tile + 1);
        settle(sum[0] + sum[1]);
        wait_for_product<0>(o);
        shrink(o, less);
        pack(s, w);
    }
    if (tiles) {
        meet_copies();
        open_products();
        blend(w, near_v + (tiles - 1) % 2 * TILE, o);
        close_products();
        wait_for_product<0>(o);
    }
    finish(o, 0, top, sum, mask ? 1.0f : by, q0, tq, lse);
    store(o, 0, q0, tq, queries, out + (i64)at * tq * WIDTH);
}

#else
/* Loads my warp's rows of a tile into registers, as products read them. */
DEVICE void hold(const u16 *rows, u32 (&a)[WIDTH / 16][4]) {
    int r = THREAD / 32 * 16 + THREAD % 16, half = THREAD % 32 / 16;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) load_matrices(a[k], rows + PLACE(ROWS, r, 2 * k + half));
}

/* Begins s = rows that are held times all rows of a tile. */
DEVICE void compare_held(const u32 (&a)[WIDTH / 16][4], const u16 *columns, float (&s)[N][4]) {
    u64 b = along(columns);
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++)
        if (k) begin_product<1>(s, a[k], b + FURTHER(k, COLS));
        else begin_product<0>(s, a[k], b);
}

/* Scores -> weights, of queries whose logsumexps are `height`, in powers of two. */
DEVICE void weigh_rows(float (&s)[N][4], float unit, const float height[2]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[n][j] = power(s[n][j] * unit - height[j / 2]);
}

/* t: the gradient of the weights s -> that of the scores, times `by`; less: delta times `by`. */
DEVICE void differentiate_rows(const float (&s)[N][4], float (&t)[N][4], float by,
                               const float less[2]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) t[n][j] = s[n][j] * (t[n][j] * by - less[j / 2]);
}

ATTENTION_QUERIES {
    ROOM;
    if (!MASKED) mask = 0;
    u16 *queries = (u16 *)room, *above = queries + ROWS * WIDTH, *near = above + ROWS * WIDTH;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS, first = q0 + THREAD / 32 * 16;
    int keys = lengths ? lengths[b] : tk, end = MIN(keys, MIN(q0 + ROWS, tq) - 1 + shift);
    i64 kv = at / group;
    k += kv * tk * WIDTH, v += kv * tk * WIDTH, lse += (i64)at * tq, delta += (i64)at * tq;
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    float by = factor[h], unit = (mask ? 1.0f : by) * LOG2E, height[2], less[2];
    float o[SPREAD][4], s[N][4], t[N][4];
    u32 mine[WIDTH / 16][4], over[WIDTH / 16][4], w[COLS / 16][4];
    int tiles = UP(MAX(end, 0), COLS) / COLS;

    auto begin_tile = [&](int tile, int turn) {
        u16 *to = near + turn * 2 * TILE;
        if (tile < tiles) {
            load(k, tile * COLS, COLS, keys, to);
            load(v, tile * COLS, COLS, keys, to + TILE);
        }
        close_group();
    };
    auto begin_scores = [&](int turn) { /* and the gradients of their weights */
        open_products();
        compare_held(mine, near + turn * 2 * TILE, s);
        close_products();
        compare_held(over, near + turn * 2 * TILE + TILE, t);
        close_products();
    };
    auto weighed = [&](int tile) {
        int k0 = tile * COLS;
        if (mask || k0 + COLS > MIN(keys, first + shift))
            limit(s, 0, q0, tq, k0, keys, shift, mask, mask_q, by);
        weigh_rows(s, unit, height);
    };

    clear(o);
    load(q + (i64)at * tq * WIDTH, q0, ROWS, tq, queries);
    load(go + (i64)at * tq * WIDTH, q0, ROWS, tq, above);
    begin_tile(0, 0);
    meet_copies();
    begin_tile(1, 1);
    hold(queries, mine), hold(above, over);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = q0 + ROW(0, i);
        height[i] = height_of(lse, r, tq), less[i] = r < tq ? delta[r] * by : 0.0f;
    }
    if (tiles) {
        begin_scores(0);
        wait_for_product<1>(s);
        weighed(0);
        wait_for_product<0>(t);
        differentiate_rows(s, t, by, less);
        pack(t, w);
    }
    int turn = 0;
    for (int tile = 0; tile < tiles - 1; tile++, turn = NEXT(turn)) {
        meet_copies(); /* the next tile is there, the one before is read */
        begin_tile(tile + 2, NEXT(NEXT(turn)));
        begin_scores(NEXT(turn));
        blend(w, near + turn * 2 * TILE, o);
        close_products();
        wait_for_product<2>(s);
        weighed(tile + 1);
        wait_for_product<1>(t);
        differentiate_rows(s, t, by, less);
        settle(t);
        wait_for_product<0>(o);
        pack(t, w);
    }
    if (tiles) {
        open_products();
        blend(w, near + turn * 2 * TILE, o);
        close_products();
        wait_for_product<0>(o);
    }
    dot(queries, o, q0, tq, dots ? dots + (i64)at * tq : 0);
    store(o, 0, q0, tq, above, gq + (i64)at * tq * WIDTH);
}

/* Which queries come next: of head h from q0 on. */
struct Walk { int h, q0; };

DEVICE void advance(Walk &walk, int first, int stop) {
    walk.q0 += COLS;
    if (walk.q0 >= stop) walk.q0 = first, walk.h++;
}

/* As `limit`, `weigh_rows` and `differentiate_rows`, where columns are queries: of a tile. */
DEVICE void limit_columns(float (&s)[N][4], int q0, int tq, int k0, int keys, int shift,
                          const float *mask, int mask_q, float by) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = q0 + COLUMN(n) + j % 2, key = k0 + ROW(0, j / 2);
            if (key >= (r < tq ? MIN(keys, r + shift) : 0)) s[n][j] = -INFINITY_F;
            else if (mask) s[n][j] = s[n][j] * by + mask[(i64)r * mask_q + key];
        }
}

DEVICE void weigh_columns(float (&s)[N][4], float unit, const float *heights) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 height = *(const float2 *)(heights + COLUMN(n));
#pragma unroll
        for (int j = 0; j < 4; j++)
            s[n][j] = power(s[n][j] * unit - (j % 2 ? height.y : height.x));
    }
}

DEVICE void differentiate_columns(const float (&s)[N][4], float (&t)[N][4], float by,
                                  const float *deltas) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 less = *(const float2 *)(deltas + COLUMN(n));
#pragma unroll
        for (int j = 0; j < 4; j++)
            t[n][j] = s[n][j] * (t[n][j] * by - (j % 2 ? less.y : less.x));
    }
}

ATTENTION_KEYS {
    ROOM;
    if (!MASKED) mask = 0;
    u16 *mine_k = (u16 *)room, *mine_v = mine_k + ROWS * WIDTH, *near = mine_v + ROWS * WIDTH;
    float *heights = (float *)(near + 6 * TILE), *deltas = heights + 3 * COLS;
    int blocks = UP(tk, ROWS) / ROWS, k0 = BLOCK % blocks * ROWS, per = heads / group;
    i64 kv = BLOCK / blocks;
    int b = kv / per, keys = lengths ? lengths[b] : tk, last = k0 + THREAD / 32 * 16 + 15;
    int first = MAX(0, k0 + 1 - shift) / COLS * COLS; /* earlier queries see none of these keys */
    int left = k0 < keys && first < tq ? group * ((tq - first + COLS - 1) / COLS) : 0, turn = 0;
    float o_k[SPREAD][4], o_v[SPREAD][4], s[N][4], t[N][4];
    u32 w_s[COLS / 16][4], w_t[COLS / 16][4];

    Walk loaded = {int(kv % per) * group, first}, scored = loaded;

    auto begin_tile = [&](int left, int turn) { /* queries, gradients and what is known of them */
        if (left > 0) {
            i64 at = (i64)b * heads + loaded.h;
            u16 *to = near + turn * 2 * TILE;
            load(q + at * tq * WIDTH, loaded.q0, COLS, tq, to);
            load(go + at * tq * WIDTH, loaded.q0, COLS, tq, to + TILE);
            if (THREAD < COLS) {
                int r = loaded.q0 + THREAD;
                float less = r < tq ? delta[at * tq + r] * factor[loaded.h] : 0.0f;
                heights[turn * COLS + THREAD] = height_of(lse + at * tq, r, tq);
                deltas[turn * COLS + THREAD] = less;
            }
            advance(loaded, first, tq);
        }
        close_group();
    };
    auto begin_scores = [&](int turn) {
        open_products();
        compare(mine_k, near + turn * 2 * TILE, s);
        close_products();
        compare(mine_v, near + turn * 2 * TILE + TILE, t);
        close_products();
    };
    auto weighed = [&](int turn) {
        float by = factor[scored.h], unit = (mask ? 1.0f : by) * LOG2E;
        const float *bias = mask ? mask + (i64)b * mask_b + (i64)scored.h * mask_h : 0;
        if (mask || last >= MIN(keys, scored.q0 + shift))
            limit_columns(s, scored.q0, tq, k0, keys, shift, bias, mask_q, by);
        weigh_columns(s, unit, heights + turn * COLS);
    };
    auto differentiated = [&](int turn) {
        differentiate_columns(s, t, factor[scored.h], deltas + turn * COLS);
        advance(scored, first, tq);
    };

    clear(o_k), clear(o_v);
    if (left) {
        load(k + kv * tk * WIDTH, k0, ROWS, keys, mine_k);
        load(v + kv * tk * WIDTH, k0, ROWS, keys, mine_v);
        begin_tile(left, 0);
        meet_copies();
        begin_tile(left - 1, 1);
        begin_scores(0);
        wait_for_product<1>(s);
        weighed(0);
        wait_for_product<0>(t);
        differentiated(0);
        pack(s, w_s), pack(t, w_t);
    }
    for (; left > 1; left--, turn = NEXT(turn)) {
        u16 *here = near + turn * 2 * TILE;
        meet_copies(); /* the next tile is there, the one before is read */
        begin_tile(left - 2, NEXT(NEXT(turn)));
        begin_scores(NEXT(turn));
        blend(w_s, here + TILE, o_v);
        blend(w_t, here, o_k);
        close_products();
        wait_for_product<2>(s);
        weighed(NEXT(turn));
        wait_for_product<1>(t);
        differentiated(NEXT(turn));
        settle(t);
        wait_for_product<0>(o_v);
        wait_for_product<0>(o_k);
        pack(s, w_s), pack(t, w_t);
    }
    if (left) {
        u16 *here = near + turn * 2 * TILE;
        open_products();
        blend(w_s, here + TILE, o_v);
        blend(w_t, here, o_k);
        close_products();
        wait_for_product<0>(o_v);
        wait_for_product<0>(o_k);
    }
    BARRIER; /* keys and values, in whose room the gradients are turned, are read */
    store(o_k, 0, k0, tk, mine_k, gk + kv * tk * WIDTH);
    store(o_v, 0, k0, tk, mine_v, gv + kv * tk * WIDTH);
}
#endif
