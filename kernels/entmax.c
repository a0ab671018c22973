/* Sparsemax and 1.5-entmax of rows, and attention with them.
 *
 * With d_j = max(0, x_j - t) the threshold t makes sum d_j (sparsemax) or sum d_j^2 (1.5-entmax)
 * one. It is found without sorting: from a t on, the numbers above it give the t that would be
 * right if they were the chosen ones, until they are (a few passes over the row).
 *
 * Attention computes all scores of a block of queries; from there on only the chosen keys count.
 * Widths are multiples of COLS; entmax.py sees to that. `alpha` is 1.5 or 2 everywhere.
 */
#include "tiles.h"

#define MOST_PASSES 64

/* Lanes of a comparison as bits, where the compiler knows how. */
#if !defined(__OPENCL_VERSION__) && LANES == 16 && defined(__AVX512DQ__)
#define CHOSEN(v) ((u32)(u16)__builtin_ia32_cvtd2mask512((veci)(v)))
#elif !defined(__OPENCL_VERSION__) && LANES == 8 && defined(__AVX__)
#define CHOSEN(v) ((u32)__builtin_ia32_movmskps256((vec)(v)))
#endif

INLINE vec both(vec a, veci mask) { return FLOATS(BITS(a) & mask); }

/* The largest of n numbers (a multiple of LANES); plus infinity if one is NaN. */
INLINE float highest(GLOBAL const float *x, int n) {
    vec high = CVEC(x);
    veci odd = high != high;
    for (int j = LANES; j < n; j += LANES) {
        vec here = CVEC(x + j);
        odd |= here != here;
        high = greater(here, high);
    }
    for (int i = 0; i < LANES; i++)
        if (odd[i]) return INFINITY_F;
    return most(high);
}

/* x -> (x - its largest) for n numbers; returns whether there is a distribution over them, which
 * needs one that is not minus infinity and neither NaN nor plus infinity. */
INLINE int shift(GLOBAL float *x, int n, GLOBAL float *t) {
    float top = highest(x, n);
    *t = top == -INFINITY_F ? INFINITY_F : top - top;
    if (*t != 0.0f) return 0;
    for (int j = 0; j < n; j += LANES) VEC(x + j) = CVEC(x + j) - top;
    return 1;
}

/* The threshold of n numbers, a multiple of LANES, times (alpha - 1) and shifted.
 *
 * A step from the left of the solution goes too far or is right, because numbers below the solution
 * count; one from the right falls short. `low` is the best tangent's root, which is never too far. */
INLINE float threshold(GLOBAL const float *x, int n, float alpha) {
    float t = -1.0f, low = t, before = -1.0f;
    for (int pass = 0; pass < MOST_PASSES; pass++) {
        vec sum = ALL(0.0f), squares = sum;
        veci lanes = BITS(sum);
        for (int j = 0; j < n; j += LANES) {
            vec d = CVEC(x + j) - t;
            veci in = d > ALL(0.0f);
            d = both(d, in);
            lanes -= in;
            sum += d;
            squares += d * d;
        }
        float count = 0, b = sum_of(sum), c = sum_of(squares) - 1.0f;
        for (int i = 0; i < LANES; i++) count += lanes[i];
        int settled = count == before; /* one step more from near by, which loses less */
        before = count;
        if (alpha == 2.0f) {
            t += (b - 1.0f) / count;
            if (settled) break;
            continue;
        }
        low = MAX(low, t + c / (2 * b));
        float inside = b * b - count * c;
        if (inside < 0) before = -1.0f; /* too many numbers: none is right for all of them */
        t = inside < 0 ? low : MAX(low, t + c / (b + ROOT(inside)));
        if (settled) break;
    }
    return t;
}

/* Shifted numbers -> their weights. */
INLINE void weigh(GLOBAL float *x, int n, float t, float alpha) {
    for (int j = 0; j < n; j += LANES) {
        vec d = CVEC(x + j) - t;
        d = both(d, d > ALL(0.0f));
        if (alpha != 2.0f) d *= d;
        VEC(x + j) = d;
    }
}

INLINE void fill(GLOBAL float *x, int n, float value) {
    for (int j = 0; j < n; j += LANES) VEC(x + j) = ALL(value);
}

/* x, y (rows, n). room: UP(n, LANES) + LANES floats a worker. */
KERNEL entmax_rows(GLOBAL const float *x, GLOBAL float *y, GLOBAL float *room, int rows, int n,
                   float alpha, int items) {
    int wide = UP(n, LANES);
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + (i64)worker * (wide + LANES), *t = s + wide;
        int end = (i64)rows * (worker + 1) / items;
        for (int r = (i64)rows * worker / items; r < end; r++) {
            GLOBAL const float *from = x + (i64)r * n;
            GLOBAL float *to = y + (i64)r * n;
            for (int j = 0; j < n; j++) s[j] = from[j] * (alpha - 1);
            for (int j = n; j < wide; j++) s[j] = -INFINITY_F;
            if (shift(s, wide, t))
                weigh(s, wide, threshold(s, wide, alpha), alpha);
            else
                fill(s, wide, *t == INFINITY_F ? 0.0f : *t); /* else NaN */
            for (int j = 0; j < n; j++) to[j] = s[j];
        }
    }
}

/* -- attention ---------------------------------------------------------------------- */

/* Scores of up to ROWS queries times (alpha - 1), each row's minus infinity where it sees nothing;
 * returns the number of keys that matter, a multiple of LANES. */
INLINE int scored(GLOBAL const float *q, GLOBAL const float *kt, float factor,
                  GLOBAL const float *mask, int mask_q, float alpha, int q0, int rows, int keys,
                  int offset, int d, GLOBAL float *s, int stride) {
    int stop = MAX(0, MIN(keys, q0 + rows - 1 + offset));
    float by = factor * (alpha - 1);
    for (int c = 0; c < stop; c += COLS)
        product(q + (i64)q0 * d, d, 1, kt + (i64)c * d, COLS, d, s + c, stride, rows, 0);
    for (int r = 0; r < rows; r++) {
        GLOBAL float *row = s + (i64)r * stride;
        int n = MAX(0, MIN(stop, q0 + r + offset));
        if (mask) {
            GLOBAL const float *more = mask + (i64)(q0 + r) * mask_q;
            for (int j = 0; j < n; j++) row[j] = row[j] * by + more[j] * (alpha - 1);
        } else
            for (int j = 0; j < n; j += LANES) VEC(row + j) = CVEC(row + j) * by;
        for (int j = n; j < UP(stop, LANES); j++) row[j] = -INFINITY_F;
    }
    return UP(stop, LANES);
}

/* The places of the numbers above t in a row of n; filled up to a multiple of 4 with the last. */
INLINE int chosen(GLOBAL const float *x, int n, float t, GLOBAL int *places) {
    int count = 0;
    for (int j = 0; j < n; j += LANES) {
#ifdef CHOSEN
        for (u32 bits = CHOSEN(CVEC(x + j) - t > ALL(0.0f)); bits; bits &= bits - 1)
            places[count++] = j + __builtin_ctz(bits);
#else
        for (int i = j; i < j + LANES; i++) {
            places[count] = i;
            count += x[i] - t > 0.0f;
        }
#endif
    }
    for (int i = count; i < UP(count, 4) && count; i++) places[i] = places[count - 1];
    return count;
}

/* out (width) = sum of w[i] rows[places[i]], a multiple of 4 of them. */
INLINE void gather(GLOBAL const float *w, GLOBAL const int *places, int count,
                   GLOBAL const float *rows, int width, GLOBAL float *out) {
    for (int c = 0; c < width; c += COLS) {
        GLOBAL const float *from = rows + c;
        vec x0 = ALL(0.0f), x1 = x0, x2 = x0, x3 = x0, y0 = x0, y1 = x0, y2 = x0, y3 = x0;
        for (int i = 0; i < count; i += 4) {
            GLOBAL const float *a = from + (i64)places[i] * width;
            GLOBAL const float *b = from + (i64)places[i + 1] * width;
            GLOBAL const float *e = from + (i64)places[i + 2] * width;
            GLOBAL const float *f = from + (i64)places[i + 3] * width;
            x0 += w[i] * CVEC(a), y0 += w[i] * CVEC(a + LANES);
            x1 += w[i + 1] * CVEC(b), y1 += w[i + 1] * CVEC(b + LANES);
            x2 += w[i + 2] * CVEC(e), y2 += w[i + 2] * CVEC(e + LANES);
            x3 += w[i + 3] * CVEC(f), y3 += w[i + 3] * CVEC(f + LANES);
        }
        VEC(out + c) = (x0 + x1) + (x2 + x3);
        VEC(out + c + LANES) = (y0 + y1) + (y2 + y3);
    }
}

/* Room of a worker: ROWS rows of scores, then places, weights and gradients of the chosen keys, then
 * packed keys. */
#define ROOM(keys) ((ROWS + 3) * ((i64)UP(keys, COLS) + COLS) + (i64)UP(keys, COLS) * d)

/* q (b, heads, tq, d), k (b, heads / group, tk, d), v (b, heads / group, tk, dv) ->
 * out (b, heads, tq, dv), t (b, heads, tq): the thresholds below the highest score. Scores are
 * q k factor[head] + mask, the mask's rows at b * mask_b + head * mask_h + query * mask_q. Query i
 * sees the keys before i + offset, and no more than lengths[b]. */
KERNEL entmax_forward(GLOBAL const float *q, GLOBAL const float *k, GLOBAL const float *v,
                      GLOBAL const float *factor, GLOBAL const float *mask,
                      GLOBAL const int *lengths, GLOBAL float *out, GLOBAL float *t,
                      GLOBAL float *room, int batch, int heads, int group, int tq, int tk, int d,
                      int dv, int offset, int mask_b, int mask_h, int mask_q, float alpha,
                      int items) {
    int stride = UP(tk, COLS) + COLS;
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + worker * ROOM(tk), *w = s + (ROWS + 1) * stride;
        GLOBAL int *places = (GLOBAL int *)(s + ROWS * stride);
        GLOBAL float *kt = s + (ROWS + 3) * stride;
        for (int at = worker; at < batch * heads; at += items) {
            int b = at / heads, h = at % heads;
            i64 kv = at / group;
            pack(k + kv * tk * d, tk, d, kt);
            GLOBAL const float *values = v + kv * tk * dv;
            for (int q0 = 0; q0 < tq; q0 += ROWS) {
                int rows = MIN(ROWS, tq - q0);
                int n = scored(q + (i64)at * tq * d, kt, factor[h],
                               mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0, mask_q, alpha,
                               q0, rows, lengths ? lengths[b] : tk, offset, d, s, stride);
                for (int r = 0; r < rows; r++) {
                    GLOBAL float *row = s + r * stride, *to = out + ((i64)at * tq + q0 + r) * dv;
                    GLOBAL float *mine = t + (i64)at * tq + q0 + r;
                    if (!n) *mine = INFINITY_F;
                    if (!n || !shift(row, n, mine)) {
                        fill(to, dv, *mine == INFINITY_F ? 0.0f : *mine);
                        continue;
                    }
                    *mine = threshold(row, n, alpha);
                    int count = chosen(row, n, *mine, places);
                    for (int i = 0; i < count; i++) {
                        float high = row[places[i]] - *mine;
                        w[i] = alpha == 2.0f ? high : high * high;
                    }
                    for (int i = count; i < UP(count, 4); i++) w[i] = 0;
                    gather(w, places, UP(count, 4), values, dv, to);
                }
            }
        }
    }
}

INLINE void add_to(GLOBAL float *to, float by, GLOBAL const float *x, int width) {
    for (int c = 0; c < width; c += LANES) VEC(to + c) = CVEC(to + c) + by * CVEC(x + c);
}

/* Gradients gq, gk, gv of entmax_forward, gk and gv zeros before; go (b, heads, tq, dv) is that of
 * out. With slopes s_j (1, or the weight's root) the gradient of score j is
 * s_j (dp_j - sum(s dp) / sum(s)), where dp_j = go v_j. */
KERNEL entmax_backward(GLOBAL const float *go, GLOBAL const float *q, GLOBAL const float *k,
                       GLOBAL const float *v, GLOBAL const float *factor,
                       GLOBAL const float *mask, GLOBAL const int *lengths, GLOBAL const float *t,
                       GLOBAL float *gq, GLOBAL float *gk, GLOBAL float *gv, GLOBAL float *room,
                       int batch, int heads, int group, int tq, int tk, int d, int dv, int offset,
                       int mask_b, int mask_h, int mask_q, float alpha, int items) {
    int stride = UP(tk, COLS) + COLS, units = batch * (heads / group);
    FOR_ITEMS(worker, items) {
        GLOBAL float *s = room + worker * ROOM(tk), *w = s + (ROWS + 1) * stride, *dp = w + stride;
        GLOBAL int *places = (GLOBAL int *)(s + ROWS * stride);
        GLOBAL float *kt = dp + stride;
        for (int unit = worker * group; unit < units * group; unit += items * group) {
            pack(k + (i64)(unit / group) * tk * d, tk, d, kt);
            for (int at = unit; at < unit + group; at++) {
                int b = at / heads, h = at % heads;
                i64 kv = at / group;
                GLOBAL const float *queries = q + (i64)at * tq * d, *keys = k + kv * tk * d;
                GLOBAL const float *values = v + kv * tk * dv, *gout = go + (i64)at * tq * dv;
                for (int q0 = 0; q0 < tq; q0 += ROWS) {
                    int rows = MIN(ROWS, tq - q0);
                    int n = scored(queries, kt, factor[h],
                                   mask ? mask + (i64)b * mask_b + (i64)h * mask_h : 0, mask_q,
                                   alpha, q0, rows, lengths ? lengths[b] : tk, offset, d, s, stride);
                    for (int r = 0; r < rows; r++) {
                        GLOBAL float *row = s + r * stride, *to = gq + ((i64)at * tq + q0 + r) * d;
                        GLOBAL const float *from = gout + (i64)(q0 + r) * dv;
                        float mine = t[(i64)at * tq + q0 + r];
                        if (!n || !shift(row, n, dp)) {
                            fill(to, d, mine == INFINITY_F ? 0.0f : mine);
                            continue;
                        }
                        int count = chosen(row, n, mine, places);
                        float slopes = 0, sum = 0;
                        for (int i = 0; i < count; i++) {
                            float slope = alpha == 2.0f ? 1.0f : row[places[i]] - mine;
                            w[i] = slope;
                            dp[i] = dot(from, values + (i64)places[i] * dv, dv);
                            slopes += slope;
                            sum += slope * dp[i];
                        }
                        for (int i = 0; i < count; i++) {
                            float high = row[places[i]] - mine;
                            dp[i] = w[i] * (dp[i] - sum / slopes) * factor[h];
                            add_to(gv + (kv * tk + places[i]) * dv,
                                   alpha == 2.0f ? high : high * high, from, dv);
                            add_to(gk + (kv * tk + places[i]) * d, dp[i],
                                   queries + (i64)(q0 + r) * d, d);
                        }
                        for (int i = count; i < UP(count, 4); i++) dp[i] = 0;
                        gather(dp, places, UP(count, 4), keys, d, to);
                    }
                }
            }
        }
    }
}
