/* Attention and its gradients on a GPU without tensor cores (float32, and bfloat16 computed in
 * float32): softmax online over blocks of keys, as in FlashAttention-2 (Dao 2023), no atomics.
 *
 * A block owns ROWS rows and walks over the other side COLS at a time, see simt_tiles.h. Compiled
 * once for each WIDTH (of queries, keys and values, padded), STORED and BACKWARD.
 */
#include "simt_tiles.h"

#if !BACKWARD
/* q (b, heads, tq, d), k (b, heads / group, tk, d), v (b, heads / group, tk, dv) ->
 * out (b, heads, tq, dv), lse (b, heads, tq). Scores are q k factor[head] + mask, the mask's rows
 * at b * mask_b + head * mask_h + query * mask_q. Query i sees the keys before i + shift, and no
 * more than lengths[b]. */
KERNEL attention_forward(GLOBAL const stored *q, GLOBAL const stored *k, GLOBAL const stored *v,
                         GLOBAL const float *factor, GLOBAL const float *mask,
                         GLOBAL const int *lengths, GLOBAL stored *out, GLOBAL float *lse,
                         int heads, int group, int tq, int tk, int d, int dv, int shift,
                         int mask_b, int mask_h, int mask_q ROOM_ARGUMENT) {
    ROOM;
    SHARED float *mine = room, *theirs = mine + ROWS * PITCH, *weights = theirs + COLS * PITCH;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS; /* those that see most begin first */
    int keys = lengths ? lengths[b] : tk, end = MIN(keys, q0 + ROWS - 1 + shift);
    int tx = THREAD % 16, ty = THREAD / 16;
    i64 kv = at / group;
    float by = factor[h], o[MINE][SPREAD], s[MINE][THEIRS], top[MINE], sum[MINE];
    for (int i = 0; i < MINE; i++) {
        top[i] = -INFINITY_F, sum[i] = 0.0f;
        for (int c = 0; c < SPREAD; c++) o[i][c] = 0.0f;
    }
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    load(q + (i64)at * tq * d, q0, ROWS, tq, d, mine);
    for (int k0 = 0; k0 < end; k0 += COLS) {
        BARRIER;
        load(k + kv * tk * d, k0, COLS, keys, d, theirs);
        BARRIER;
        compare(mine, theirs, s);
        for (int i = 0; i < MINE; i++) {
            int r = q0 + ty + 16 * i, stop = r < tq ? MIN(keys, r + shift) : 0;
            float most = top[i];
            for (int j = 0; j < THEIRS; j++) {
                int key = k0 + tx + 16 * j;
                s[i][j] *= by;
                if (key >= stop) s[i][j] = -INFINITY_F;
                else if (mask) s[i][j] += mask[(i64)r * mask_q + key];
                most = MAX(s[i][j], most);
            }
            most = largest_of(most, 16, weights);
            float height = most == -INFINITY_F ? 0.0f : most; /* nothing seen: 0, not NaN */
            float less = EXP(top[i] - height);
            top[i] = most, sum[i] *= less;
            for (int j = 0; j < THEIRS; j++) sum[i] += s[i][j] = EXP(s[i][j] - height);
            for (int c = 0; c < SPREAD; c++) o[i][c] *= less;
        }
        BARRIER; /* keys are read, and what largest_of left in the weights */
        for (int i = 0; i < MINE; i++)
            for (int j = 0; j < THEIRS; j++) weights[(ty + 16 * i) * STEP + tx + 16 * j] = s[i][j];
        load(v + kv * tk * dv, k0, COLS, keys, dv, theirs);
        BARRIER;
        blend(weights, theirs, o);
    }
    for (int i = 0; i < MINE; i++) {
        int r = q0 + ty + 16 * i;
        sum[i] = sum_of(sum[i], 16, weights);
        float share = sum[i] != 0.0f ? 1.0f / sum[i] : 0.0f;
        for (int c = 0; c < SPREAD; c++) o[i][c] *= share;
        if (r < tq && tx == 0)
            lse[(i64)at * tq + r] = sum[i] != 0.0f ? top[i] + LOG(sum[i]) : -INFINITY_F;
    }
    STORE(out + (i64)at * tq * dv, q0, tq, dv, o, 1.0f, narrow)
}

#else
/* Weight p of query r and key j with score s, and the gradient of the score times the factor. */
#define GRADIENT(s, t, r, key, p, ds)                                                           \
    float p = 0.0f, ds = 0.0f;                                                                  \
    if ((r) < tq && (key) < MIN(keys, (r) + shift)) {                                           \
        float height = lse[r];                                                                  \
        float score = (s) * by + (mask ? mask[(i64)(r) * mask_q + (key)] : 0.0f);               \
        p = height == -INFINITY_F ? 0.0f : EXP(score - height);                                 \
        ds = p * ((t) - delta[r]) * by;                                                         \
    }

/* gq (b, heads, tq, d) in float32, and moments (b, heads, tq, 3), every query's sums of ds s, ds and
 * p s. go (b, heads, tq, dv) is the gradient of out, delta = sum(go * out) - (the gradient of lse);
 * the rest as in attention_forward. A block owns queries. */
KERNEL attention_queries(GLOBAL const stored *go, GLOBAL const stored *q, GLOBAL const stored *k,
                         GLOBAL const stored *v, GLOBAL const float *factor,
                         GLOBAL const float *mask, GLOBAL const int *lengths,
                         GLOBAL const float *lse, GLOBAL const float *delta, GLOBAL float *gq,
                         GLOBAL float *moments, int heads, int group, int tq, int tk, int d,
                         int dv, int shift, int mask_b, int mask_h, int mask_q ROOM_ARGUMENT) {
    ROOM;
    SHARED float *queries = room, *above = queries + ROWS * PITCH, *near_k = above + ROWS * PITCH;
    SHARED float *near_v = near_k + COLS * PITCH, *weights = near_v + COLS * PITCH;
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks, b = at / heads, h = at % heads;
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS;
    int keys = lengths ? lengths[b] : tk, end = MIN(keys, q0 + ROWS - 1 + shift);
    int tx = THREAD % 16, ty = THREAD / 16;
    i64 kv = at / group;
    float by = factor[h], o[MINE][SPREAD], s[MINE][THEIRS], t[MINE][THEIRS], sums[MINE][3];
    for (int i = 0; i < MINE; i++) {
        for (int c = 0; c < SPREAD; c++) o[i][c] = 0.0f;
        for (int c = 0; c < 3; c++) sums[i][c] = 0.0f;
    }
    if (mask) mask += (i64)b * mask_b + (i64)h * mask_h;
    lse += (i64)at * tq, delta += (i64)at * tq, moments += (i64)at * tq * 3;
    load(q + (i64)at * tq * d, q0, ROWS, tq, d, queries);
    load(go + (i64)at * tq * dv, q0, ROWS, tq, dv, above);
    for (int k0 = 0; k0 < end; k0 += COLS) {
        BARRIER;
        load(k + kv * tk * d, k0, COLS, keys, d, near_k);
        load(v + kv * tk * dv, k0, COLS, keys, dv, near_v);
        BARRIER;
        compare(queries, near_k, s);
        compare(above, near_v, t);
        for (int i = 0; i < MINE; i++)
            for (int j = 0; j < THEIRS; j++) {
                int r = q0 + ty + 16 * i, key = k0 + tx + 16 * j;
                GRADIENT(s[i][j], t[i][j], r, key, p, ds)
                weights[(ty + 16 * i) * STEP + tx + 16 * j] = ds;
                sums[i][0] += ds * s[i][j], sums[i][1] += ds, sums[i][2] += p * s[i][j];
            }
        BARRIER;
        blend(weights, near_k, o);
    }
    for (int i = 0; i < MINE; i++)
        for (int c = 0; c < 3; c++) {
            int r = q0 + ty + 16 * i;
            float all = sum_of(sums[i][c], 16, weights);
            if (r < tq && tx == 0) moments[(i64)r * 3 + c] = all;
        }
    STORE(gq + (i64)at * tq * d, q0, tq, d, o, 1.0f, )
}

/* gk (b, heads / group, tk, d) and gv (b, heads / group, tk, dv). A block owns keys and values, and
 * walks over the queries of all heads that share them. */
KERNEL attention_keys(GLOBAL const stored *go, GLOBAL const stored *q, GLOBAL const stored *k,
                      GLOBAL const stored *v, GLOBAL const float *factor,
                      GLOBAL const float *mask, GLOBAL const int *lengths,
                      GLOBAL const float *lse, GLOBAL const float *delta, GLOBAL stored *gk,
                      GLOBAL stored *gv, int heads, int group, int tq, int tk, int d, int dv,
                      int shift, int mask_b, int mask_h, int mask_q ROOM_ARGUMENT) {
    ROOM;
    SHARED float *mine_k = room, *mine_v = mine_k + ROWS * PITCH, *queries = mine_v + ROWS * PITCH;
    SHARED float *above = queries + COLS * PITCH, *weights = above + COLS * PITCH;
    SHARED float *slopes = weights + ROWS * STEP;
    int blocks = UP(tk, ROWS) / ROWS, k0 = BLOCK % blocks * ROWS, per = heads / group;
    i64 kv = BLOCK / blocks;
    int b = kv / per, keys = lengths ? lengths[b] : tk, tx = THREAD % 16, ty = THREAD / 16;
    int first = MAX(0, k0 + 1 - shift) / COLS * COLS; /* earlier queries see none of these keys */
    float o_k[MINE][SPREAD], o_v[MINE][SPREAD], s[MINE][THEIRS], t[MINE][THEIRS];
    for (int i = 0; i < MINE; i++)
        for (int c = 0; c < SPREAD; c++) o_k[i][c] = o_v[i][c] = 0.0f;
    load(k + kv * tk * d, k0, ROWS, keys, d, mine_k);
    load(v + kv * tk * dv, k0, ROWS, keys, dv, mine_v);
    GLOBAL const float *all_lse = lse, *all_delta = delta, *all_mask = mask;
    for (int i = 0; i < group && k0 < keys; i++) {
        i64 at = kv * group + i;
        int h = at % heads;
        float by = factor[h];
        lse = all_lse + at * tq, delta = all_delta + at * tq;
        if (all_mask) mask = all_mask + (i64)b * mask_b + (i64)h * mask_h;
        for (int q0 = first; q0 < tq; q0 += COLS) {
            BARRIER;
            load(q + at * tq * d, q0, COLS, tq, d, queries);
            load(go + at * tq * dv, q0, COLS, tq, dv, above);
            BARRIER;
            compare(mine_k, queries, s);
            compare(mine_v, above, t);
            for (int a = 0; a < MINE; a++)
                for (int j = 0; j < THEIRS; j++) {
                    int key = k0 + ty + 16 * a, r = q0 + tx + 16 * j;
                    int place = (ty + 16 * a) * STEP + tx + 16 * j;
                    GRADIENT(s[a][j], t[a][j], r, key, p, ds)
                    weights[place] = p, slopes[place] = ds;
                }
            BARRIER;
            blend(weights, above, o_v);
            blend(slopes, queries, o_k);
        }
    }
    STORE(gk + kv * tk * d, k0, tk, d, o_k, 1.0f, narrow)
    STORE(gv + kv * tk * dv, k0, tk, dv, o_v, 1.0f, narrow)
}
#endif
