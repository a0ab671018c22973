/* What attention_tensor.cu and attention_hopper.cu share: tiles in shared memory, and the softmax
 * on fragments (c of tensor.h) of a tile of scores. A warp has M times 16 rows of its block's ROWS,
 * and all COLS columns of the other side's tile.
 */
#ifndef ATTENTION_TENSOR_H
#define ATTENTION_TENSOR_H

/* q (b, heads, tq, WIDTH), k and v (b, heads / group, tk, WIDTH) -> out as q, lse (b, heads, tq).
 * Scores are q k factor[head] + mask, the mask's rows at b * mask_b + head * mask_h +
 * query * mask_q. Query i sees the keys before i + shift, and no more than lengths[b]. */
#define ATTENTION_FORWARD                                                                         \
    KERNEL attention_forward(const u16 *q, const u16 *k, const u16 *v, const float *factor,       \
                             const float *mask, const int *lengths, u16 *out, float *lse,         \
                             int heads, int group, int tq, int tk, int shift, int mask_b,         \
                             int mask_h, int mask_q)

/* What both parts of the gradient are given: go is the gradient of out, delta = sum(go * out) - (the
 * gradient of lse); the rest as above. Where blocks own queries: gq as q, and dots (b, heads, tq),
 * the sums of q gq, if they are wanted. */
#define ATTENTION_GIVEN                                                                           \
    const u16 *go, const u16 *q, const u16 *k, const u16 *v, const float *factor,                 \
        const float *mask, const int *lengths, const float *lse, const float *delta
#define ATTENTION_QUERIES                                                                         \
    KERNEL attention_queries(ATTENTION_GIVEN, u16 *gq, float *dots, int heads, int group, int tq, \
                             int tk, int shift, int mask_b, int mask_h, int mask_q)

/* Where blocks own keys and values: gk and gv (b, heads / group, tk, WIDTH). A block walks over the
 * queries of all heads that share them: its rows are keys, its columns queries. */
#define ATTENTION_KEYS                                                                            \
    KERNEL attention_keys(ATTENTION_GIVEN, u16 *gk, u16 *gv, int heads, int group, int tq, int tk, \
                          int shift, int mask_b, int mask_h, int mask_q)

#define PIECES (WIDTH / 8)
#define N (COLS / 8)       /* fragments across a tile of scores */
#define SPREAD (WIDTH / 8) /* and across the width */
#define LOG2E 1.4426950408889634f

#define STEP (THREADS / PIECES) /* rows that a piece a thread is */

/* A tile lies in panels of 64 columns, row by row; the 16-byte pieces of a row are exchanged so
 * that eight rows of one column lie in different banks. */
#define PLACE(rows, r, piece) (((piece) / 8 * (rows) + (r)) * 64 + ((piece) % 8 ^ ((r) & 7)) * 8)

/* Begins to load rows from..from + rows of x (stop, WIDTH), zeros after the last. */
DEVICE void load(const u16 *x, int from, int rows, int stop, u16 *tile) {
    int first = THREAD / PIECES, piece = THREAD % PIECES;
    u16 *to = tile + PLACE(rows, first, piece); /* so it goes on: a step is whole eights of rows */
    const u16 *start = x; /* where there is something to point at */
    x += (i64)from * WIDTH + THREAD * 8;
#pragma unroll
    for (int r = 0; r < rows; r += STEP) {
        if (rows % STEP && first + r >= rows) break;
        int there = from + first + r < stop;
        begin_copy(to + r * 64, there ? x + r * WIDTH : start, there);
    }
}

/* The row of a tile that half i (0 or 1) of this thread's part m holds. */
#define ROW(m, i) (THREAD / 32 * 16 * M + 16 * (m) + THREAD % 32 / 4 + 8 * (i))
#define COLUMN(n) (8 * (n) + THREAD % 4 * 2) /* and the first of its two columns */

DEVICE void clear(float (&o)[SPREAD][4]) {
#pragma unroll
    for (int n = 0; n < SPREAD; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
}

/* Part m of rows from.. of y (stop, WIDTH), by way of a tile that is not needed any more: there a
 * warp turns its own rows, so that neighbours write neighbouring pieces of 16 bytes. */
DEVICE void store(const float (&o)[SPREAD][4], int m, int from, int stop, u16 *tile, u16 *y) {
    int lane = THREAD % 32, mine = ROW(m, 0) - lane / 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < SPREAD; n++) {
            u16 *to = tile + PLACE(ROWS, ROW(m, i), n) + lane % 4 * 2;
            *(u32 *)to = pair(o[n][2 * i], o[n][2 * i + 1]);
        }
    __syncwarp();
#pragma unroll
    for (int j = lane; j < 16 * PIECES; j += 32) {
        int r = mine + j / PIECES, piece = j % PIECES;
        u16 *to = y + (i64)(from + r) * WIDTH + piece * 8;
        if (from + r < stop) *(float4 *)to = *(float4 *)(tile + PLACE(ROWS, r, piece));
    }
}

/* The sum of x over the four lanes that share a row. */
DEVICE float sum_of_quad(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Scores of part m of rows q0.., of keys k0..: what a query does not see is -inf; a mask, of rows
 * `mask_q` apart, is added. */
DEVICE void limit(float (&s)[N][4], int m, int q0, int tq, int k0, int keys, int shift,
                  const float *mask, int mask_q, float by) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = q0 + ROW(m, i), stop = r < tq ? MIN(keys, r + shift) : 0;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float *score = &s[n][2 * i + j];
                int key = k0 + COLUMN(n) + j;
                if (key >= stop) *score = -INFINITY_F;
                else if (mask) *score = *score * by + mask[(i64)r * mask_q + key];
            }
    }
}

#if !BACKWARD
DEVICE float most_of_quad(float x) {
    float other = __shfl_xor_sync(0xffffffffu, x, 1);
    x = LARGER(other, x);
    other = __shfl_xor_sync(0xffffffffu, x, 2);
    return LARGER(other, x);
}

/* Scores of a row's halves, to be multiplied by `unit` as powers of two -> weights, relative to
 * `top`, and their sum. Where a score exceeds top by far, top follows, and earlier weights are to
 * be multiplied by `less`; a weight of 2^SLACK does no harm yet. Maxima and sums are taken in two
 * chains each, because an operation waits four clocks for the one before. */
#define SLACK 8.0f
DEVICE void weigh(float (&s)[N][4], float unit, float top[2], float sum[2], float less[2]) {
    float most[2][2] = {top[0], top[0], top[1], top[1]}, added[2][2] = {}, height[2];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) most[j / 2][j % 2] = LARGER(s[n][j], most[j / 2][j % 2]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float found = most_of_quad(LARGER(most[i][0], most[i][1]));
        int near = (found - top[i]) * unit <= SLACK; /* not where top is -inf */
        float next = near ? top[i] : found;
        height[i] = next == -INFINITY_F ? 0.0f : next * unit;
        less[i] = near ? 1.0f : power(top[i] * unit - height[i]), top[i] = next;
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            added[j / 2][j % 2] += s[n][j] = power(s[n][j] * unit - height[j / 2]);
#pragma unroll
    for (int i = 0; i < 2; i++) sum[i] = sum[i] * less[i] + (added[i][0] + added[i][1]);
}

DEVICE void shrink(float (&o)[SPREAD][4], const float less[2]) {
    if (!__any_sync(0xffffffffu, less[0] != 1.0f || less[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < SPREAD; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) o[n][j] *= less[j / 2];
}

/* Divides part m of rows q0.. by the sums of their weights; lse (tq): the logsumexp. */
DEVICE void finish(float (&o)[SPREAD][4], int m, const float top[2], const float sum[2], float by,
                   int q0, int tq, float *lse) {
    float share[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = q0 + ROW(m, i);
        float total = sum_of_quad(sum[i]);
        share[i] = total != 0.0f ? 1.0f / total : 0.0f;
        if (r < tq && THREAD % 4 == 0)
            lse[r] = total != 0.0f ? top[i] * by + LOG(total) : -INFINITY_F;
    }
#pragma unroll
    for (int n = 0; n < SPREAD; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) o[n][j] *= share[j / 2];
}

#else
/* The logsumexp in powers of two, or infinity for a query that sees nothing: 2^(x - inf) is 0. */
DEVICE float height_of(const float *lse, int r, int tq) {
    return r < tq && lse[r] != -INFINITY_F ? lse[r] * LOG2E : INFINITY_F;
}

/* delta (rows) = sum(go * out) - glse, of rows of WIDTH numbers. */
KERNEL attention_delta(const u16 *go, const u16 *out, const float *glse, float *delta, int rows) {
    int at = BLOCK * THREADS + THREAD, r = at / PIECES;
    float sum = 0.0f;
    if (r < rows) {
        float4 a = ((const float4 *)go)[at], b = ((const float4 *)out)[at];
        u32 x[4] = {AS_U32(a.x), AS_U32(a.y), AS_U32(a.z), AS_U32(a.w)};
        u32 y[4] = {AS_U32(b.x), AS_U32(b.y), AS_U32(b.z), AS_U32(b.w)};
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum += unpaired(x[i], 0) * unpaired(y[i], 0) + unpaired(x[i], 1) * unpaired(y[i], 1);
    }
    for (int step = PIECES / 2; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (r < rows && at % PIECES == 0) delta[r] = sum - glse[r];
}

/* dots (tq): the sums of q gq of rows q0.., q in a tile; nothing where they are not wanted. */
DEVICE void dot(const u16 *queries, const float (&gq)[SPREAD][4], int q0, int tq, float *dots) {
    if (!dots) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = q0 + ROW(0, i);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < SPREAD; n++) {
            u32 two = *(const u32 *)(queries + PLACE(ROWS, ROW(0, i), n) + THREAD % 4 * 2);
            sum += unpaired(two, 0) * gq[n][2 * i] + unpaired(two, 1) * gq[n][2 * i + 1];
        }
        sum = sum_of_quad(sum);
        if (r < tq && THREAD % 4 == 0) dots[r] = sum;
    }
}
#endif

#endif
