/* Attention and its gradients on tensor cores, bfloat16 or float16 with float32 sums, for widths of
 * 64 and 128: the algorithm of FlashAttention-2 (Dao 2023), gradients without atomics.
 *
 * A block of four warps owns ROWS rows; a warp has M times 16 of them and all COLS columns of the
 * other side's tile, so scores and weights never leave its registers: what a product leaves in
 * them (c of tensor.h) is what the next one reads (a of tensor.h). Compiled once for each WIDTH,
 * STORED and BACKWARD.
 */
#define WARPS 4
#define THREADS (32 * WARPS)
#include "simt.h"
#include "tensor.h"

#define M (BACKWARD ? 1 : 2)
#define ROWS (16 * M * WARPS)
#define COLS 64
#include "attention_tensor.h"

/* s = my rows of a tile times all rows of another. */
DEVICE void compare(const u16 *rows, const u16 *columns, float s[M][N][4]) {
    int lane = THREAD % 32, mine = THREAD / 32 * 16 * M;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        u32 a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            load_matrices(a[m], rows + PLACE(ROWS, mine + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            int row = 8 * n + lane / 16 * 8 + lane % 8;
            load_matrices(b, columns + PLACE(COLS, row, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(s[m][n], a[m], b[0], b[1]);
                multiply(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* o += s, rounded to 16 bits, times a tile. */
DEVICE void blend(float s[M][N][4], const u16 *tile, float o[M][SPREAD][4]) {
    int lane = THREAD % 32;
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
        u32 a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *two = s[m][2 * k + i / 2] + i % 2 * 2;
                a[m][i] = pair(two[0], two[1]);
            }
#pragma unroll
        for (int n = 0; n < SPREAD; n += 2) {
            load_turned(b, tile + PLACE(COLS, 16 * k + lane % 16, n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(o[m][n], a[m], b[0], b[1]);
                multiply(o[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

#if !BACKWARD
ATTENTION_FORWARD {
    ROOM;
    u16 *queries = (u16 *)room, *near_k = queries + ROWS * WIDTH, *near_v = near_k + COLS * WIDTH;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS; /* those that see most begin first */
    int keys = lengths ? lengths[b] : tk, end = MIN(keys, MIN(q0 + ROWS, tq) - 1 + shift);
    int first = q0 + THREAD / 32 * 16 * M; /* of this warp */
    i64 kv = at / group;
    k += kv * tk * WIDTH, v += kv * tk * WIDTH, lse += (i64)at * tq;
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    float by = factor[h], unit = (mask ? 1.0f : by) * LOG2E; /* of scores, in powers of two */
    float o[M][SPREAD][4], s[M][N][4], top[M][2], sum[M][2];
    for (int m = 0; m < M; m++) {
        clear(o[m]);
        top[m][0] = top[m][1] = -INFINITY_F, sum[m][0] = sum[m][1] = 0.0f;
    }
    load(q + (i64)at * tq * WIDTH, q0, ROWS, tq, queries);
    if (end > 0) load(k, 0, COLS, keys, near_k);
    close_group();
    for (int k0 = 0; k0 < end; k0 += COLS) {
        int seen = k0 < first + 16 * M - 1 + shift; /* anything of this tile, by this warp */
        int edge = mask || k0 + COLS > MIN(keys, first + shift);
        WAIT_FOR_COPIES(0);
        BARRIER; /* keys are there, the values before them are read */
        load(v, k0, COLS, keys, near_v);
        close_group();
        if (seen) {
            compare(queries, near_k, s);
#pragma unroll
            for (int m = 0; m < M; m++) {
                float less[2];
                if (edge) limit(s[m], m, q0, tq, k0, keys, shift, mask, mask_q, by);
                weigh(s[m], unit, top[m], sum[m], less);
                shrink(o[m], less);
            }
        }
        WAIT_FOR_COPIES(0);
        BARRIER; /* values are there, the keys are read */
        if (k0 + COLS < end) load(k, k0 + COLS, COLS, keys, near_k);
        close_group();
        if (seen) blend(s, near_v, o);
    }
    WAIT_FOR_COPIES(0);
    BARRIER; /* the queries, in whose room the output is turned, are read */
#pragma unroll
    for (int m = 0; m < M; m++) {
        finish(o[m], m, top[m], sum[m], mask ? 1.0f : by, q0, tq, lse);
        store(o[m], m, q0, tq, queries, out + (i64)at * tq * WIDTH);
    }
}

#else
/* s: score -> weight; t: the weight's gradient -> that of the score, times the factor. */
DEVICE void gradient(float *s, float *t, int r, int key, int stop, float by, const float *mask,
                     int mask_q, float height, float delta) {
    float score = *s * by, weight = 0.0f;
    if (key < stop) {
        if (mask && height != INFINITY_F) score += mask[(i64)r * mask_q + key];
        weight = power(score * LOG2E - height);
    }
    *s = weight;
    *t = weight * (*t - delta) * by;
}

ATTENTION_QUERIES {
    ROOM;
    u16 *queries = (u16 *)room, *above = queries + ROWS * WIDTH, *near = above + ROWS * WIDTH;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS;
    int keys = lengths ? lengths[b] : tk, last = MIN(q0 + ROWS, tq) - 1;
    int end = MAX(0, MIN(keys, last + shift));
    i64 kv = at / group;
    k += kv * tk * WIDTH, v += kv * tk * WIDTH, lse += (i64)at * tq, delta += (i64)at * tq;
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    float by = factor[h], o[M][SPREAD][4], s[M][N][4], t[M][N][4];
    clear(o[0]);
    load(q + (i64)at * tq * WIDTH, q0, ROWS, tq, queries);
    load(go + (i64)at * tq * WIDTH, q0, ROWS, tq, above);
    for (int k0 = -COLS, turn = 1; k0 < end; k0 += COLS, turn ^= 1) {
        u16 *here = near + turn * 2 * COLS * WIDTH, *next = near + (turn ^ 1) * 2 * COLS * WIDTH;
        if (k0 + COLS < end) {
            load(k, k0 + COLS, COLS, keys, next);
            load(v, k0 + COLS, COLS, keys, next + COLS * WIDTH);
        }
        close_group();
        if (k0 < 0) continue; /* only to load the first */
        WAIT_FOR_COPIES(1);
        BARRIER; /* keys and values are there */
        compare(queries, here, s);
        compare(above, here + COLS * WIDTH, t);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int r = q0 + ROW(m, i);
                float height = height_of(lse, r, tq), less = r < tq ? delta[r] : 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        gradient(&s[m][n][2 * i + j], &t[m][n][2 * i + j], r, k0 + COLUMN(n) + j,
                                 MIN(keys, r + shift), by, mask, mask_q, height, less);
            }
        blend(t, here, o);
        BARRIER; /* they are read */
    }
    WAIT_FOR_COPIES(0);
    BARRIER; /* the queries are there, also where there was no tile */
    dot(queries, o[0], q0, tq, dots ? dots + (i64)at * tq : 0);
    store(o[0], 0, q0, tq, above, gq + (i64)at * tq * WIDTH);
}

ATTENTION_KEYS {
    ROOM;
    u16 *mine_k = (u16 *)room, *mine_v = mine_k + ROWS * WIDTH, *near = mine_v + ROWS * WIDTH;
    float *heights = (float *)(near + 4 * COLS * WIDTH), *deltas = heights + 2 * COLS;
    int blocks = UP(tk, ROWS) / ROWS, k0 = BLOCK % blocks * ROWS, per = heads / group;
    i64 kv = BLOCK / blocks;
    int b = kv / per, keys = lengths ? lengths[b] : tk;
    int first = MAX(0, k0 + 1 - shift) / COLS * COLS; /* earlier queries see none of these keys */
    int tiles = k0 < keys && first < tq ? (tq - first + COLS - 1) / COLS : 0;
    float o_k[M][SPREAD][4], o_v[M][SPREAD][4], s[M][N][4], t[M][N][4];
    clear(o_k[0]), clear(o_v[0]);
    load(k + kv * tk * WIDTH, k0, ROWS, keys, mine_k);
    load(v + kv * tk * WIDTH, k0, ROWS, keys, mine_v);
    for (int tile = -1, turn = 1; tile < group * tiles; tile++, turn ^= 1) {
        u16 *here = near + turn * 2 * COLS * WIDTH, *next = near + (turn ^ 1) * 2 * COLS * WIDTH;
        if (tile + 1 < group * tiles) {
            i64 at = kv * group + (tile + 1) / tiles;
            int q0 = first + (tile + 1) % tiles * COLS;
            load(q + at * tq * WIDTH, q0, COLS, tq, next);
            load(go + at * tq * WIDTH, q0, COLS, tq, next + COLS * WIDTH);
            if (THREAD < COLS) {
                int r = q0 + THREAD;
                heights[(turn ^ 1) * COLS + THREAD] = height_of(lse + at * tq, r, tq);
                deltas[(turn ^ 1) * COLS + THREAD] = r < tq ? delta[at * tq + r] : 0.0f;
            }
        }
        close_group();
        if (tile < 0) continue; /* only to load the first */
        i64 at = kv * group + tile / tiles;
        int h = at % heads, q0 = first + tile % tiles * COLS;
        const float *bias = mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0;
        float by = factor[h];
        WAIT_FOR_COPIES(1);
        BARRIER; /* queries and what comes from above are there */
        compare(mine_k, here, s);
        compare(mine_v, here + COLS * WIDTH, t);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int column = COLUMN(n) + j % 2, r = q0 + column;
                    gradient(&s[m][n][j], &t[m][n][j], r, k0 + ROW(m, j / 2), MIN(keys, r + shift),
                             by, bias, mask_q, heights[turn * COLS + column],
                             deltas[turn * COLS + column]);
                }
        blend(s, here + COLS * WIDTH, o_v);
        blend(t, here, o_k);
        BARRIER; /* they are read */
    }
    WAIT_FOR_COPIES(0);
    BARRIER; /* keys and values, in whose room the gradients are turned, are read */
    store(o_k[0], 0, k0, tk, mine_k, gk + kv * tk * WIDTH);
    store(o_v[0], 0, k0, tk, mine_v, gv + kv * tk * WIDTH);
}
#endif
