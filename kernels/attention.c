/* Attention and its gradients, one thread an item: matrix products in register blocks of ROWS rows
 * by COLS columns, softmax online over blocks of keys, nothing computed above the causal diagonal.
 * Widths (d of queries and keys, dv of values) are multiples of COLS; attention_cpu.py sees to that.
 * Keys, and for the gradients values, are packed (see tiles.h) head by head, which stays in cache.
 */
#include "tiles.h"

#ifndef BQ
#define BQ 48   /* queries in a block, a multiple of ROWS */
#endif
#ifndef BK
#define BK 256  /* keys in a block, a multiple of COLS */
#endif
#define FEW 4   /* queries that are cheaper one by one than packing the keys */

/* One row of scores against one block of keys, n of which it sees: scores become weights relative
 * to the row's highest score so far, and what was summed for it before is brought to that height. */
INLINE void soften(GLOBAL float *s, int n, int stop, float factor, GLOBAL const float *mask,
                   GLOBAL float *top, GLOBAL float *sum, GLOBAL float *o, int dv) {
    if (mask) {
        for (int j = 0; j < n; j++) s[j] = s[j] * factor + mask[j];
        factor = 1.0f;
    }
    for (int j = n; j < stop; j++) s[j] = -INFINITY_F;
    vec high = CVEC(s);
    for (int j = LANES; j < stop; j += LANES) high = greater(CVEC(s + j), high);
    float height = MAX(most(high) * factor, *top);
    if (height > *top) {
        float by = exponential(ALL(*top - height))[0]; /* quicker than a library's e^x */
        *sum *= by;
        *top = height;
        for (int c = 0; c < dv; c += LANES) VEC(o + c) = CVEC(o + c) * by;
    }
    if (height == -INFINITY_F) height = 0.0f; /* nothing seen yet: weights of 0, not NaN */
    vec added = ALL(0.0f);
    for (int j = 0; j < stop; j += LANES) {
        vec p = exponential(CVEC(s + j) * factor - height);
        VEC(s + j) = p;
        added += p;
    }
    *sum += sum_of(added);
}

/* Queries q0 and after of one head. s is room for BQ * BK scores and 2 * BQ numbers. */
INLINE void forward_block(GLOBAL const float *q, GLOBAL const float *kt, GLOBAL const float *v,
                          float factor, GLOBAL const float *mask, int mask_q, int q0, int tq, int keys,
                          int shift, int d, int dv, GLOBAL float *out, GLOBAL float *lse,
                          GLOBAL float *s) {
    int rows = MIN(BQ, tq - q0);
    GLOBAL float *top = s + BQ * BK, *sum = top + BQ;
    for (int r = 0; r < rows; r++) {
        top[r] = -INFINITY_F;
        sum[r] = 0;
        for (int c = 0; c < dv; c += LANES) VEC(out + (i64)(q0 + r) * dv + c) = ALL(0.0f);
    }
    /* row r sees the keys before min(keys, q0 + r + shift) */
    int end = MIN(keys, q0 + rows - 1 + shift);
    for (int k0 = 0; k0 < end; k0 += BK) {
        int width = MIN(BK, end - k0);
        for (int c = 0; c < width; c += COLS)
            for (int r = 0; r < rows; r += ROWS)
                if (MIN(r + ROWS, rows) - 1 + q0 + shift > k0 + c)
                    product(q + (i64)(q0 + r) * d, d, 1, kt + (i64)(k0 + c) * d, COLS, d,
                            s + r * BK + c, BK, MIN(ROWS, rows - r), 0);
        for (int r = 0; r < rows; r += ROWS) {
            int here = MIN(ROWS, rows - r);
            int stop = MIN(width, q0 + r + here - 1 + shift - k0);
            if (stop <= 0) continue;
            for (int i = r; i < r + here; i++) {
                int n = MAX(0, MIN(stop, q0 + i + shift - k0));
                soften(s + i * BK, n, UP(stop, LANES), factor,
                       mask ? mask + (i64)(q0 + i) * mask_q + k0 : 0, top + i, sum + i,
                       out + (i64)(q0 + i) * dv, dv);
            }
            for (int c = 0; c < dv; c += COLS)
                product(s + r * BK, BK, 1, v + (i64)k0 * dv + c, dv, stop,
                        out + (i64)(q0 + r) * dv + c, dv, here, 1);
        }
    }
    for (int r = 0; r < rows; r++) {
        float by = sum[r] != 0.0f ? 1.0f / sum[r] : 0.0f;
        for (int c = 0; c < dv; c += LANES)
            VEC(out + (i64)(q0 + r) * dv + c) = CVEC(out + (i64)(q0 + r) * dv + c) * by;
        lse[q0 + r] = sum[r] != 0.0f ? top[r] + LOG(sum[r]) : -INFINITY_F;
    }
}

/* LANES numbers from place i on: floats, or their upper halves (bfloat16) if upper. */
INLINE vec numbers(GLOBAL const float *x, i64 i, int upper) {
    if (!upper) return CVEC(x + i);
    veci wide = __builtin_convertvector(*(GLOBAL const halves *)((GLOBAL const u16 *)x + i), veci);
    return FLOATS(wide << 16);
}

/* One query against all its keys, as they are: reading them is what takes the time. Keys and values
 * are bfloat16 if upper. */
INLINE void forward_one(GLOBAL const float *q, GLOBAL const float *k, GLOBAL const float *v,
                        float factor, GLOBAL const float *mask, int keys, int d, int dv,
                        GLOBAL float *out, GLOBAL float *lse, GLOBAL float *s, i64 kv, int upper) {
    int stop = UP(keys, LANES);
    i64 at = kv * d;
    for (int j = 0; j < keys; j++, at += d) {
        vec x = ALL(0.0f), y = x;
        for (int c = 0; c < d; c += COLS) {
            x += CVEC(q + c) * numbers(k, at + c, upper);
            y += CVEC(q + c + LANES) * numbers(k, at + c + LANES, upper);
        }
        s[j] = sum_of(x + y) * factor;
    }
    for (int j = 0; j < keys && mask; j++) s[j] += mask[j];
    for (int j = keys; j < stop; j++) s[j] = -INFINITY_F;
    vec high = ALL(-INFINITY_F), sums = ALL(0.0f);
    for (int j = 0; j < stop; j += LANES) high = greater(CVEC(s + j), high);
    float top = most(high) == -INFINITY_F ? 0.0f : most(high);
    for (int j = 0; j < stop; j += LANES) sums += VEC(s + j) = exponential(CVEC(s + j) - top);
    float sum = sum_of(sums), by = sum != 0.0f ? 1.0f / sum : 0.0f;
    *lse = sum != 0.0f ? top + LOG(sum) : -INFINITY_F;
    for (int c = 0; c < dv; c += COLS) {
        vec x0 = ALL(0.0f), x1 = x0, y0 = x0, y1 = x0; /* odd keys in sums of their own */
        int j = 0;
        at = kv * dv + c;
        for (; j + 2 <= keys; j += 2, at += 2 * dv) {
            x0 += s[j] * numbers(v, at, upper), y0 += s[j] * numbers(v, at + LANES, upper);
            x1 += s[j + 1] * numbers(v, at + dv, upper);
            y1 += s[j + 1] * numbers(v, at + dv + LANES, upper);
        }
        if (j < keys)
            x0 += s[j] * numbers(v, at, upper), y0 += s[j] * numbers(v, at + LANES, upper);
        VEC(out + c) = (x0 + x1) * by;
        VEC(out + c + LANES) = (y0 + y1) * by;
    }
}

/* Room of a worker: scores and gradients of a block, or scores of all keys; packed keys and values. */
#define ROOM ((i64)2 * BQ * BK + 2 * BQ + (i64)UP(tk, COLS) * (d + dv + 1))

/* q (b, heads, tq, d), k (b, heads / group, tk, d), v (b, heads / group, tk, dv) ->
 * out (b, heads, tq, dv), lse (b, heads, tq). Scores are q k factor[head] + mask, the mask's rows
 * at b * mask_b + head * mask_h + query * mask_q. Query i sees the keys before i + shift, and no
 * more than lengths[b]. Up to FEW queries may have k and v in bfloat16 (upper). */
KERNEL attention_forward(GLOBAL const float *q, GLOBAL const float *k, GLOBAL const float *v,
                         GLOBAL const float *factor, GLOBAL const float *mask,
                         GLOBAL const int *lengths, GLOBAL float *out, GLOBAL float *lse,
                         GLOBAL float *room, int batch, int heads, int group, int tq, int tk, int d,
                         int dv, int shift, int mask_b, int mask_h, int mask_q,
                         int upper, int items) {
    int units = batch * (heads / group);
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + worker * ROOM, *kt = s + 2 * BQ * BK + 2 * BQ;
        for (i64 kv = worker; kv < units; kv += items) {
            GLOBAL const float *values = v + kv * tk * dv;
            if (tq > FEW) pack(k + kv * tk * d, tk, d, kt);
            for (i64 at = kv * group; at < (kv + 1) * group; at++) {
                int b = at / heads, h = at % heads, length = lengths ? lengths[b] : tk;
                GLOBAL const float *queries = q + at * tq * d;
                GLOBAL const float *more = mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0;
                for (int i = 0; i < tq && tq <= FEW; i++) {
                    GLOBAL const float *mine = more ? more + (i64)i * mask_q : 0;
                    GLOBAL float *to = out + (at * tq + i) * dv, *log = lse + at * tq + i;
                    int n = MAX(0, MIN(length, i + shift));
                    if (upper)
                        forward_one(queries + i * d, k, v, factor[h], mine, n, d, dv, to, log, kt,
                                    kv * tk, 1);
                    else
                        forward_one(queries + i * d, k, v, factor[h], mine, n, d, dv, to, log, kt,
                                    kv * tk, 0);
                }
                for (int i = 0; i < tq && tq > FEW; i += BQ)
                    forward_block(queries, kt, values, factor[h], more, mask_q, i, tq, length,
                                  shift, d, dv, out + at * tq * dv, lse + at * tq, s);
            }
        }
    }
}

/* What is added to LANES scores, of which the first n are seen: the mask, or nothing. */
INLINE vec added(GLOBAL const float *mask, int n) {
    vec more = ALL(n < LANES ? -INFINITY_F : 0.0f);
    if (n >= LANES) return mask ? CVEC(mask) : more;
    for (int j = 0; j < n; j++) more[j] = mask ? mask[j] : 0.0f;
    return more;
}

/* Weights and gradients of scores (times the factor) of one row: s -> p, t -> ds. To `moments` come
 * the sums of ds s, ds and p s: what the gradient of the temperature is made of. */
INLINE void gradients(GLOBAL float *s, GLOBAL float *t, int n, float factor,
                      GLOBAL const float *mask, float lse, float delta, GLOBAL float *moments) {
    if (lse == -INFINITY_F) lse = INFINITY_F; /* sees nothing: weights of 0 */
    for (int j = n; j < UP(n, LANES); j++) s[j] = t[j] = 0.0f;
    vec both = ALL(0.0f), slope = both, level = both;
    for (int j = 0; j < n; j += LANES) {
        vec score = CVEC(s + j);
        vec p = exponential(score * factor + (added(mask ? mask + j : 0, n - j) - lse));
        vec ds = p * (CVEC(t + j) - delta) * factor;
        VEC(s + j) = p, VEC(t + j) = ds;
        both += ds * score, slope += ds, level += p * score;
    }
    moments[0] += sum_of(both), moments[1] += sum_of(slope), moments[2] += sum_of(level);
}

/* Gradients of one head; those of keys and values are added to, so that heads may share them. */
INLINE void backward_head(GLOBAL const float *go, GLOBAL const float *q, GLOBAL const float *k,
                          GLOBAL const float *kt, GLOBAL const float *vt, float factor,
                          GLOBAL const float *mask, int mask_q, GLOBAL const float *lse,
                          GLOBAL const float *delta, int tq, int keys, int shift, int d, int dv,
                          GLOBAL float *gq, GLOBAL float *gk, GLOBAL float *gv,
                          GLOBAL float *moments, GLOBAL float *s) {
    GLOBAL float *t = s + BQ * BK;
    for (int k0 = 0; k0 < keys; k0 += BK) {
        for (int q0 = 0; q0 < tq; q0 += BQ) {
            int rows = MIN(BQ, tq - q0);
            int width = MIN(BK, MIN(keys, q0 + rows - 1 + shift) - k0);
            if (width <= 0) continue;
            for (int c = 0; c < width; c += COLS)
                for (int r = 0; r < rows; r += ROWS)
                    if (MIN(r + ROWS, rows) - 1 + q0 + shift > k0 + c) {
                        int here = MIN(ROWS, rows - r);
                        product(q + (i64)(q0 + r) * d, d, 1, kt + (i64)(k0 + c) * d, COLS, d,
                                s + r * BK + c, BK, here, 0);
                        product(go + (i64)(q0 + r) * dv, dv, 1, vt + (i64)(k0 + c) * dv, COLS, dv,
                                t + r * BK + c, BK, here, 0);
                    }
            for (int i = 0; i < rows; i++) {
                int n = MAX(0, MIN(width, q0 + i + shift - k0));
                gradients(s + i * BK, t + i * BK, n, factor,
                          mask ? mask + (i64)(q0 + i) * mask_q + k0 : 0, lse[q0 + i],
                          delta[q0 + i], moments + (q0 + i) * 3);
                for (int j = UP(n, LANES); j < width; j += LANES)
                    VEC(s + i * BK + j) = ALL(0.0f), VEC(t + i * BK + j) = ALL(0.0f);
            }
            for (int c = 0; c < d; c += COLS)
                for (int r = 0; r < rows; r += ROWS) {
                    int here = MIN(ROWS, rows - r);
                    int depth = MIN(width, q0 + r + here - 1 + shift - k0);
                    if (depth > 0)
                        product(t + r * BK, BK, 1, k + (i64)k0 * d + c, d, depth,
                                gq + (i64)(q0 + r) * d + c, d, here, 1);
                }
            for (int j = 0; j < width; j += ROWS) {
                int here = MIN(ROWS, width - j);
                int first = MAX(0, k0 + j + 1 - shift - q0); /* the first row that sees key j */
                GLOBAL const float *p = s + first * BK + j, *ds = t + first * BK + j;
                for (int c = 0; c < dv; c += COLS)
                    product(p, 1, BK, go + (i64)(q0 + first) * dv + c, dv, rows - first,
                            gv + (i64)(k0 + j) * dv + c, dv, here, 1);
                for (int c = 0; c < d; c += COLS)
                    product(ds, 1, BK, q + (i64)(q0 + first) * d + c, d, rows - first,
                            gk + (i64)(k0 + j) * d + c, d, here, 1);
            }
        }
    }
}

/* Gradients gq, gk, gv, and moments (b, heads, tq, 3) of every query (see `gradients`), which are
 * zeros before. go (b, heads, tq, dv) is the gradient of out, delta = sum(go * out) - (the gradient
 * of lse); the rest as in attention_forward. */
KERNEL attention_backward(GLOBAL const float *go, GLOBAL const float *q, GLOBAL const float *k,
                          GLOBAL const float *v, GLOBAL const float *factor,
                          GLOBAL const float *mask, GLOBAL const int *lengths, GLOBAL const float *lse,
                          GLOBAL const float *delta, GLOBAL float *gq, GLOBAL float *gk,
                          GLOBAL float *gv, GLOBAL float *moments, GLOBAL float *room, int batch,
                          int heads, int group, int tq, int tk, int d, int dv, int shift,
                          int mask_b, int mask_h, int mask_q, int items) {
    int units = batch * (heads / group);
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + worker * ROOM, *kt = s + 2 * BQ * BK + 2 * BQ;
        GLOBAL float *vt = kt + (i64)UP(tk, COLS) * d;
        for (int unit = worker; unit < units; unit += items) {
            i64 kv = unit;
            pack(k + kv * tk * d, tk, d, kt);
            pack(v + kv * tk * dv, tk, dv, vt);
            for (int i = 0; i < group; i++) {
                i64 at = kv * group + i;
                int b = at / heads, h = at % heads;
                backward_head(go + at * tq * dv, q + at * tq * d, k + kv * tk * d,
                              kt, vt, factor[h],
                              mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0, mask_q,
                              lse + at * tq, delta + at * tq, tq, lengths ? lengths[b] : tk, shift,
                              d, dv, gq + at * tq * d, gk + kv * tk * d, gv + kv * tk * dv,
                              moments + at * tq * 3, s);
            }
        }
    }
}
