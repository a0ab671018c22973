/* Attention and its gradients, one thread an item: matrix products in register blocks of ROWS rows
 * by COLS columns, softmax online over blocks of keys, nothing computed above the causal diagonal.
 * Widths (d of queries and keys, dv of values) are multiples of COLS; attention_cpu.py sees to that.
 * Keys, and for the gradients values, come packed: see tiles.h.
 */
#include "tiles.h"

#ifdef __OPENCL_VERSION__
#define EXP(x) exp(x)
#define LOG(x) log(x)
#else
#define EXP(x) expf(x)
#define LOG(x) logf(x)
#endif

#ifndef BQ
#define BQ 96   /* queries in a block, a multiple of ROWS */
#endif
#ifndef BK
#define BK 64  /* keys in a block, a multiple of COLS */
#endif

/* e^x for x up to about 80; 0 below -87, NaN for NaN. Cephes' polynomial, error 2 ulp. */
INLINE vec exponential(vec x) {
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the low bits hold the integer */
    vec whole = shifted - 12582912.0f;
    vec r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    veci tiny = x < ALL(-87.0f);
    veci bits = (BITS(p) + (BITS(shifted) << 23)) & ~tiny;
    return *(vec *)&bits;
}

/* x (items, t, d) -> packed (items, panels, d, COLS) */
KERNEL attention_pack(GLOBAL const float *x, GLOBAL float *packed, int t, int d, int items) {
    int panels = UP(t, COLS) / COLS;
    FOR_ITEMS(i, items) {
        for (int panel = 0; panel < panels; panel++) {
            GLOBAL float *to = packed + ((i64)i * panels + panel) * d * COLS;
            for (int j = 0; j < COLS; j++) {
                int key = panel * COLS + j;
                GLOBAL const float *from = x + ((i64)i * t + MIN(key, t - 1)) * d;
                for (int c = 0; c < d; c++) to[c * COLS + j] = key < t ? from[c] : 0.0f;
            }
        }
    }
}

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
    float most = -INFINITY_F;
    for (int i = 0; i < LANES; i++) most = MAX(high[i], most);
    most = MAX(most * factor, *top);
    if (most > *top) {
        float by = EXP(*top - most);
        *sum *= by;
        *top = most;
        for (int c = 0; c < dv; c += LANES) VEC(o + c) = CVEC(o + c) * by;
    }
    if (most == -INFINITY_F) most = 0.0f; /* nothing seen yet: weights of 0, not NaN */
    vec added = ALL(0.0f);
    for (int j = 0; j < stop; j += LANES) {
        vec p = exponential(CVEC(s + j) * factor - most);
        VEC(s + j) = p;
        added += p;
    }
    *sum += total(added);
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

/* q (b, heads, tq, d), kt packed (b, heads / group, tk, d), v (b, heads / group, tk, dv) ->
 * out (b, heads, tq, dv), lse (b, heads, tq). Scores are q k factor[head] + mask, the mask's rows
 * at b * mask_b + head * mask_h + query * mask_q. Query i sees the keys before i + shift, and no
 * more than lengths[b]. */
KERNEL attention_forward(GLOBAL const float *q, GLOBAL const float *kt, GLOBAL const float *v,
                         GLOBAL const float *factor, GLOBAL const float *mask,
                         GLOBAL const int *lengths, GLOBAL float *out, GLOBAL float *lse,
                         GLOBAL float *room, int batch, int heads, int group, int tq, int tk, int d,
                         int dv, int shift, int mask_b, int mask_h, int mask_q, int items) {
    int blocks = UP(tq, BQ) / BQ, padded = UP(tk, COLS);
    int units = batch * heads * blocks;
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + (i64)worker * (2 * BQ * BK + 2 * BQ);
        for (int unit = worker; unit < units; unit += items) {
            int at = unit / blocks, b = at / heads, h = at % heads;
            i64 kv = at / group;
            forward_block(q + (i64)at * tq * d, kt + kv * padded * d, v + kv * tk * dv, factor[h],
                          mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0, mask_q,
                          unit % blocks * BQ, tq, lengths ? lengths[b] : tk, shift, d, dv,
                          out + (i64)at * tq * dv, lse + (i64)at * tq, s);
        }
    }
}

/* Weights and gradients of scores (times the factor) of one row: s -> p, t -> ds. */
INLINE void gradients(GLOBAL float *s, GLOBAL float *t, int n, int stop, float factor,
                      GLOBAL const float *mask, float lse, float delta) {
    float by = factor;
    if (mask) {
        for (int j = 0; j < n; j++) s[j] = s[j] * factor + mask[j];
        by = 1.0f;
    }
    for (int j = n; j < stop; j++) s[j] = -INFINITY_F, t[j] = 0.0f;
    if (lse == -INFINITY_F) { /* sees nothing: weights of 0 */
        for (int j = 0; j < stop; j++) s[j] = -INFINITY_F;
        lse = 0.0f;
    }
    for (int j = 0; j < stop; j += LANES) {
        vec p = exponential(CVEC(s + j) * by - lse);
        VEC(s + j) = p;
        VEC(t + j) = p * (CVEC(t + j) - delta) * factor;
    }
}

/* Gradients of one head; those of keys and values are added to, so that heads may share them. */
INLINE void backward_head(GLOBAL const float *go, GLOBAL const float *q, GLOBAL const float *k,
                          GLOBAL const float *kt, GLOBAL const float *vt, float factor,
                          GLOBAL const float *mask, int mask_q, GLOBAL const float *lse,
                          GLOBAL const float *delta, int tq, int keys, int shift, int d, int dv,
                          GLOBAL float *gq, GLOBAL float *gk, GLOBAL float *gv, GLOBAL float *s) {
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
                int stop = UP(width, LANES);
                int done = UP(n, LANES);
                gradients(s + i * BK, t + i * BK, n, done, factor,
                          mask ? mask + (i64)(q0 + i) * mask_q + k0 : 0, lse[q0 + i],
                          delta[q0 + i]);
                for (int j = done; j < stop; j += LANES)
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

/* Gradients gq, gk, gv, which are zeros before. go (b, heads, tq, dv) is the gradient of out,
 * delta = sum(go * out) - (the gradient of lse); k as it is and packed, v packed; the rest as in
 * attention_forward. */
KERNEL attention_backward(GLOBAL const float *go, GLOBAL const float *q, GLOBAL const float *k,
                          GLOBAL const float *kt, GLOBAL const float *vt,
                          GLOBAL const float *factor, GLOBAL const float *mask,
                          GLOBAL const int *lengths, GLOBAL const float *lse,
                          GLOBAL const float *delta, GLOBAL float *gq, GLOBAL float *gk,
                          GLOBAL float *gv, GLOBAL float *room, int batch, int heads, int group,
                          int tq, int tk, int d, int dv, int shift, int mask_b, int mask_h,
                          int mask_q, int items) {
    int padded = UP(tk, COLS), units = batch * (heads / group);
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + (i64)worker * (2 * BQ * BK + 2 * BQ);
        for (int unit = worker; unit < units; unit += items) {
            i64 kv = unit;
            for (int i = 0; i < group; i++) {
                i64 at = kv * group + i;
                int b = at / heads, h = at % heads;
                backward_head(go + at * tq * dv, q + at * tq * d, k + kv * tk * d,
                              kt + kv * padded * d, vt + kv * padded * dv, factor[h],
                              mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0, mask_q,
                              lse + at * tq, delta + at * tq, tq, lengths ? lengths[b] : tk, shift,
                              d, dv, gq + at * tq * d, gk + kv * tk * d, gv + kv * tk * dv, s);
            }
        }
    }
}
