/* Attention and its gradients on tensor cores, bfloat16 or float16 with float32 sums, for widths of
 * 64 and 128: the algorithm of FlashAttention-2 (Dao 2023), gradients without atomics.
 *
 * A block of four warps owns ROWS rows; a warp has M times 16 of them and all COLS columns of the
 * other side's tile, so scores and weights never leave its registers: what a product leaves in
 * them (c of tensor.h) is what the next one reads (a of tensor.h). Tiles lie in shared memory row
 * by row, the 16-byte pieces of a row exchanged so that eight rows of one column lie in different
 * banks. Compiled once for each WIDTH, STORED and BACKWARD.
 */
#define WARPS 4
#define THREADS (32 * WARPS)
#include "simt.h"
#include "tensor.h"

#define M (BACKWARD ? 1 : 2)
#define ROWS (16 * M * WARPS)
#define COLS 64
#define PIECES (WIDTH / 8)
#define N (COLS / 8)      /* products of 16 x 8 across a tile of scores */
#define SPREAD (WIDTH / 8) /* and across the width */
#define LOG2E 1.4426950408889634f
#define PLACE(r, piece) (((r) * PIECES + ((piece) ^ ((r) & 7))) * 8)

/* Begins to load rows from..from + rows of x (stop, WIDTH), zeros after the last. */
DEVICE void load(const u16 *x, int from, int rows, int stop, u16 *tile) {
    for (int i = THREAD; i < rows * PIECES; i += THREADS) {
        int r = i / PIECES, piece = i % PIECES, there = from + r < stop;
        const u16 *source = x + (i64)(there ? from + r : stop - 1) * WIDTH + piece * 8;
        begin_copy(tile + PLACE(r, piece), source, there);
    }
}

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
            load_matrices(a[m], rows + PLACE(mine + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            int row = 8 * n + lane / 16 * 8 + lane % 8;
            load_matrices(b, columns + PLACE(row, 2 * k + lane / 8 % 2));
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
            load_turned(b, tile + PLACE(16 * k + lane % 16, n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(o[m][n], a[m], b[0], b[1]);
                multiply(o[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

DEVICE void clear(float o[M][SPREAD][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < SPREAD; n++) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0.0f;
}

/* The row of a tile that half i (0 or 1) of this thread's part m holds. */
#define ROW(m, i) (THREAD / 32 * 16 * M + 16 * (m) + THREAD % 32 / 4 + 8 * (i))
#define COLUMN(n) (8 * (n) + THREAD % 4 * 2) /* and the first of its two columns */

/* Rows from.. of y (stop, WIDTH). */
DEVICE void store(float o[M][SPREAD][4], int from, int stop, u16 *y) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = from + ROW(m, i);
            if (r >= stop) continue;
#pragma unroll
            for (int n = 0; n < SPREAD; n++)
                *(u32 *)(y + (i64)r * WIDTH + COLUMN(n)) = pair(o[m][n][2 * i], o[m][n][2 * i + 1]);
        }
}

#if !BACKWARD
DEVICE float most_of_quad(float x) {
    float other = __shfl_xor_sync(0xffffffffu, x, 1);
    x = MAX(other, x);
    other = __shfl_xor_sync(0xffffffffu, x, 2);
    return MAX(other, x);
}

/* q (b, heads, tq, WIDTH), k and v (b, heads / group, tk, WIDTH) -> out as q, lse (b, heads, tq).
 * Scores are q k factor[head] + mask, the mask's rows at b * mask_b + head * mask_h +
 * query * mask_q. Query i sees the keys before i + shift, and no more than lengths[b]. */
KERNEL attention_forward(const u16 *q, const u16 *k, const u16 *v, const float *factor,
                         const float *mask, const int *lengths, u16 *out, float *lse, int heads,
                         int group, int tq, int tk, int shift, int mask_b, int mask_h,
                         int mask_q) {
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
    clear(o);
    for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITY_F, sum[m][0] = sum[m][1] = 0.0f;
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
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int r = q0 + ROW(m, i), stop = r < tq ? MIN(keys, r + shift) : 0;
                    float most = top[m][i];
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            float *score = &s[m][n][2 * i + j];
                            int key = k0 + COLUMN(n) + j;
                            if (edge && key >= stop) *score = -INFINITY_F;
                            else if (mask) *score = *score * by + mask[(i64)r * mask_q + key];
                            most = MAX(*score, most);
                        }
                    most = most_of_quad(most);
                    float height = most == -INFINITY_F ? 0.0f : most * unit;
                    float less = power(top[m][i] * unit - height);
                    top[m][i] = most, sum[m][i] *= less;
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int j = 2 * i; j < 2 * i + 2; j++)
                            sum[m][i] += s[m][n][j] = power(s[m][n][j] * unit - height);
#pragma unroll
                    for (int n = 0; n < SPREAD; n++) o[m][n][2 * i] *= less, o[m][n][2 * i + 1] *= less;
                }
        }
        WAIT_FOR_COPIES(0);
        BARRIER; /* values are there, the keys are read */
        if (k0 + COLS < end) load(k, k0 + COLS, COLS, keys, near_k);
        close_group();
        if (seen) blend(s, near_v, o);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = q0 + ROW(m, i);
            float total = sum[m][i];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            float share = total != 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
            for (int n = 0; n < SPREAD; n++) o[m][n][2 * i] *= share, o[m][n][2 * i + 1] *= share;
            if (r < tq && THREAD % 4 == 0)
                lse[r] = total != 0.0f ? top[m][i] * (mask ? 1.0f : by) + LOG(total) : -INFINITY_F;
        }
    store(o, q0, tq, out + (i64)at * tq * WIDTH);
    WAIT_FOR_COPIES(0);
}

#else
/* The logsumexp in powers of two, or infinity for a query that sees nothing: 2^(x - inf) is 0. */
DEVICE float height_of(const float *lse, int r, int tq) {
    return r < tq && lse[r] != -INFINITY_F ? lse[r] * LOG2E : INFINITY_F;
}

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

/* gq (b, heads, tq, WIDTH) in float32. go is the gradient of out, delta = sum(go * out) - (the
 * gradient of lse); the rest as in attention_forward. A block owns queries. */
KERNEL attention_queries(const u16 *go, const u16 *q, const u16 *k, const u16 *v,
                         const float *factor, const float *mask, const int *lengths,
                         const float *lse, const float *delta, float *gq, int heads, int group,
                         int tq, int tk, int shift, int mask_b, int mask_h, int mask_q) {
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
    clear(o);
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
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = q0 + ROW(m, i);
            if (r >= tq) continue;
            float *to = gq + ((i64)at * tq + r) * WIDTH;
#pragma unroll
            for (int n = 0; n < SPREAD; n++)
                *(float2 *)(to + COLUMN(n)) = {o[m][n][2 * i], o[m][n][2 * i + 1]};
        }
    WAIT_FOR_COPIES(0);
}

/* gk and gv (b, heads / group, tk, WIDTH). A block owns keys and values, and walks over the queries
 * of all heads that share them: its rows are keys, its columns queries. */
KERNEL attention_keys(const u16 *go, const u16 *q, const u16 *k, const u16 *v,
                      const float *factor, const float *mask, const int *lengths,
                      const float *lse, const float *delta, u16 *gk, u16 *gv, int heads, int group,
                      int tq, int tk, int shift, int mask_b, int mask_h, int mask_q) {
    ROOM;
    u16 *mine_k = (u16 *)room, *mine_v = mine_k + ROWS * WIDTH, *near = mine_v + ROWS * WIDTH;
    float *heights = (float *)(near + 4 * COLS * WIDTH), *deltas = heights + 2 * COLS;
    int blocks = UP(tk, ROWS) / ROWS, k0 = BLOCK % blocks * ROWS, per = heads / group;
    i64 kv = BLOCK / blocks;
    int b = kv / per, keys = lengths ? lengths[b] : tk;
    int first = MAX(0, k0 + 1 - shift) / COLS * COLS; /* earlier queries see none of these keys */
    int tiles = k0 < keys && first < tq ? (tq - first + COLS - 1) / COLS : 0;
    float o_k[M][SPREAD][4], o_v[M][SPREAD][4], s[M][N][4], t[M][N][4];
    clear(o_k), clear(o_v);
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
    store(o_k, k0, tk, gk + kv * tk * WIDTH);
    store(o_v, k0, tk, gv + kv * tk * WIDTH);
    WAIT_FOR_COPIES(0);
}
#endif
