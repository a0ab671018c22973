/* Sparsemax and 1.5-entmax of rows on a GPU, and attention with them, forward and backward.
 *
 * The threshold is found as in entmax.c, by passes over the numbers without sorting; attention
 * computes its scores again in every pass and never stores them, as AdaSplash does (Goncalves,
 * Treviso and Martins 2025, arXiv 2502.12082). No atomics. What is not chosen is multiplied by 0, so
 * that NaN among its values spoils the sum, as in plain torch. `alpha` is 1.5 or 2 everywhere.
 *
 * Compiled once for each THREADS and EACH (rows), and for each WIDTH and BACKWARD (attention, see
 * simt_tiles.h); entmax_gpu.py knows how.
 */
#ifdef EACH
#include "simt.h"
#else
#include "simt_tiles.h"
#endif

#ifdef __OPENCL_VERSION__
#define ROOT(x) sqrt((float)(x))
#else
#define ROOT(x) sqrtf(x)
#endif

/* What is known of a row's threshold t: of its numbers times (alpha - 1), below the largest. */
typedef struct {
    float t, low, before; /* `low` is never too far, `before` is how many numbers were above */
    int settled;
} Search;

/* A row whose largest number is `top`, plus infinity if one is NaN. With no distribution t is plus
 * infinity (where all numbers are minus infinity) or NaN: nothing is above it. */
DEVICE Search begin(float top) {
    Search s = {-1.0f, -1.0f, -1.0f, 0};
    if (top - top != 0.0f) {
        s.t = top == -INFINITY_F ? INFINITY_F : top - top;
        s.settled = 1;
    }
    return s;
}

/* A step, from the count, the sum and the squares of what is above t. One from the left of the
 * solution goes too far or is right, because numbers below the solution count; one from the right
 * falls short. `low` is the best tangent's root, which is never too far. */
DEVICE Search moved(Search s, float count, float sum, float squares, float alpha) {
    if (s.settled) return s;
    s.settled = count == s.before; /* one step more from near by, which loses less */
    s.before = count;
    if (alpha == 2.0f) {
        s.t += (sum - 1.0f) / count;
        return s;
    }
    float c = squares - 1.0f, inside = sum * sum - count * c;
    s.low = LARGER(s.low, s.t + c / (2.0f * sum));
    if (inside < 0.0f) s.before = -1.0f; /* too many numbers: none is right for all of them */
    s.t = inside < 0.0f ? s.low : LARGER(s.low, s.t + c / (sum + ROOT(inside)));
    return s;
}

/* The weight of a number that is d above t, and its slope: how it grows with the number. */
DEVICE float weight(float d, float alpha) { return d > 0.0f ? (alpha == 2.0f ? d : d * d) : 0.0f; }
DEVICE float slope(float d, float alpha) { return d > 0.0f ? (alpha == 2.0f ? 1.0f : d) : 0.0f; }

#ifdef EACH
/* -- rows ---------------------------------------------------------------------------- */

/* The largest x of the block, and the sum; all threads get the same. `room` has THREADS floats. */
DEVICE float largest_of_all(float x, SHARED float *room) {
    x = largest_of(x, 32, room);
#if THREADS > 32
    BARRIER;
    room[THREAD / 32] = x; /* by all of a line, the same */
    BARRIER;
    for (int i = 0; i < THREADS / 32; i++) x = MAX(room[i], x);
#endif
    return x;
}

DEVICE float sum_of_all(float x, SHARED float *room) {
    x = sum_of(x, 32, room);
#if THREADS > 32
    BARRIER;
    room[THREAD / 32] = x;
    BARRIER;
    x = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) x += room[i];
#endif
    return x;
}

/* This thread's numbers j of a row of n: in registers where EACH says how many, else read again. */
#if EACH
#define OWN(e, j) for (int e = 0, j = THREAD; e < EACH; e++, j += THREADS)
#define AT(e, j) x[e]
#else
#define OWN(e, j) for (int e = 0, j = THREAD; j < n; j += THREADS)
#define AT(e, j) (from[j] * (alpha - 1.0f) - top)
#endif

/* given, y (rows, n); a block has a row, and makes at most `passes`. */
KERNEL entmax_rows(GLOBAL const float *given, GLOBAL float *y, int n, int passes,
                   float alpha ROOM_ARGUMENT) {
    ROOM;
    GLOBAL const float *from = given + (i64)BLOCK * n;
    GLOBAL float *to = y + (i64)BLOCK * n;
    float top = -INFINITY_F, most = top;
#if EACH
    float x[EACH];
    OWN(e, j) x[e] = j < n ? from[j] * (alpha - 1.0f) : -INFINITY_F;
    OWN(e, j) most = x[e] != x[e] ? INFINITY_F : MAX(x[e], most);
#else
    OWN(e, j) {
        float x = from[j] * (alpha - 1.0f);
        most = x != x ? INFINITY_F : MAX(x, most);
    }
#endif
    top = largest_of_all(most, room);
#if EACH
    OWN(e, j) x[e] -= top;
#endif
    Search s = begin(top);
    for (int pass = 0; pass < passes && !s.settled; pass++) {
        float count = 0.0f, sum = 0.0f, squares = 0.0f;
        OWN(e, j) {
            float d = AT(e, j) - s.t;
            if (d > 0.0f) count += 1.0f, sum += d, squares += d * d;
        }
        count = sum_of_all(count, room);
        sum = sum_of_all(sum, room);
        squares = sum_of_all(squares, room);
        s = moved(s, count, sum, squares, alpha);
    }
    OWN(e, j) {
        float w = s.t != s.t ? s.t : weight(AT(e, j) - s.t, alpha);
        if (j < n) to[j] = w;
    }
}

#else
/* -- attention ------------------------------------------------------------------------ */

/* What every kernel is given: q (b, heads, tq, d), k (b, heads / group, tk, d) and v (b, heads /
 * group, tk, dv). Scores are q k factor[head] + mask, the mask's rows at b * mask_b + head * mask_h
 * + query * mask_q. Query i sees the keys before i + shift, and no more than lengths[b]. */
#define GIVEN                                                                                   \
    GLOBAL const float *q, GLOBAL const float *k, GLOBAL const float *v,                        \
        GLOBAL const float *factor, GLOBAL const float *mask, GLOBAL const int *lengths,        \
        int heads, int group, int tq, int tk, int d, int dv, int shift, int mask_b, int mask_h, \
        int mask_q, float alpha

/* How products with the queries of a head become scores times (alpha - 1). */
typedef struct {
    GLOBAL const float *mask;
    int mask_q, tq, keys, shift;
    float by, more;
} Scores;

#define SCORES(b, h)                                                                            \
    {mask ? mask + (i64)(b) * mask_b + (i64)(h) * mask_h : 0, mask_q, tq,                       \
     lengths ? lengths[b] : tk, shift, factor[h] * (alpha - 1.0f), alpha - 1.0f}

DEVICE float scored(Scores a, float s, int query, int key) {
    if (query >= a.tq || key >= MIN(a.keys, query + a.shift)) return -INFINITY_F;
    return s * a.by + (a.mask ? a.mask[(i64)query * a.mask_q + key] * a.more : 0.0f);
}

/* A block that owns queries: which ones, and what they look at. */
#define OF_QUERIES                                                                              \
    int blocks = UP(tq, ROWS) / ROWS, at = BLOCK / blocks;                                      \
    int q0 = (blocks - 1 - BLOCK % blocks) * ROWS; /* those that see most begin first */        \
    int tx = THREAD % 16, ty = THREAD / 16;                                                     \
    Scores a = SCORES(at / heads, at % heads);                                                  \
    int end = MIN(a.keys, q0 + ROWS - 1 + shift);                                               \
    k += (i64)(at / group) * tk * d, v += (i64)(at / group) * tk * dv, q += (i64)at * tq * d;

#define QUERY(i) (q0 + ty + 16 * (i)) /* of my rows */
#define KEY(j) (k0 + tx + 16 * (j))   /* of my columns */

#if !BACKWARD
/* Whether a row of the block is still to move. */
DEVICE int unsettled(const Search *found, SHARED float *room) {
    float open = 0.0f;
    for (int i = 0; i < MINE; i++) open += !found[i].settled;
    BARRIER;
    room[THREAD] = open;
    BARRIER;
    open = 0.0f;
    for (int ty = 0; ty < 16; ty++) open += room[16 * ty];
    return open > 0.0f;
}

/* top, t (b, heads, tq): a query's highest score and the threshold below it, times (alpha - 1). A
 * first pass finds the highest, with nothing above a threshold of plus infinity; at most `passes`
 * more find the threshold. */
KERNEL entmax_thresholds(GIVEN, int passes, GLOBAL float *top, GLOBAL float *t ROOM_ARGUMENT) {
    ROOM;
    SHARED float *queries = room, *keys = queries + ROWS * PITCH, *spare = keys + COLS * PITCH;
    OF_QUERIES
    float s[MINE][THEIRS], high[MINE];
    Search found[MINE];
    for (int i = 0; i < MINE; i++) high[i] = -INFINITY_F, found[i].t = INFINITY_F;
    load(q, q0, ROWS, tq, d, queries);
    int open = 1;
    for (int pass = 0; open && pass <= passes; pass++) {
        float most[MINE], count[MINE], sum[MINE], squares[MINE];
        for (int i = 0; i < MINE; i++) most[i] = high[i], count[i] = sum[i] = squares[i] = 0.0f;
        for (int k0 = 0; k0 < end; k0 += COLS) {
            BARRIER;
            load(k, k0, COLS, a.keys, d, keys);
            BARRIER;
            compare(queries, keys, s);
            for (int i = 0; i < MINE; i++)
                for (int j = 0; j < THEIRS; j++) {
                    float x = scored(a, s[i][j], QUERY(i), KEY(j));
                    float over = x - high[i] - found[i].t;
                    most[i] = x != x ? INFINITY_F : MAX(x, most[i]);
                    if (over > 0.0f) count[i] += 1.0f, sum[i] += over, squares[i] += over * over;
                }
        }
        for (int i = 0; i < MINE; i++) {
            most[i] = largest_of(most[i], 16, spare);
            count[i] = sum_of(count[i], 16, spare);
            sum[i] = sum_of(sum[i], 16, spare);
            squares[i] = sum_of(squares[i], 16, spare);
            found[i] = pass ? moved(found[i], count[i], sum[i], squares[i], alpha) : begin(most[i]);
            high[i] = most[i];
        }
        open = unsettled(found, spare);
    }
    for (int i = 0; i < MINE; i++) {
        i64 mine = (i64)at * tq + QUERY(i);
        if (QUERY(i) < tq && tx == 0) top[mine] = high[i], t[mine] = found[i].t;
    }
}

/* out (b, heads, tq, dv): what the thresholds leave of the keys, as weights of the values. */
KERNEL entmax_forward(GIVEN, GLOBAL const float *top, GLOBAL const float *t,
                      GLOBAL float *out ROOM_ARGUMENT) {
    ROOM;
    SHARED float *queries = room, *tile = queries + ROWS * PITCH, *weights = tile + COLS * PITCH;
    OF_QUERIES
    float o[MINE][SPREAD], s[MINE][THEIRS], high[MINE], below[MINE];
    for (int i = 0; i < MINE; i++) {
        i64 mine = (i64)at * tq + MIN(QUERY(i), tq - 1);
        high[i] = top[mine], below[i] = t[mine];
        for (int c = 0; c < SPREAD; c++) o[i][c] = below[i] != below[i] ? below[i] : 0.0f;
    }
    load(q, q0, ROWS, tq, d, queries);
    for (int k0 = 0; k0 < end; k0 += COLS) {
        BARRIER;
        load(k, k0, COLS, a.keys, d, tile);
        BARRIER;
        compare(queries, tile, s);
        BARRIER; /* keys are read */
        for (int i = 0; i < MINE; i++)
            for (int j = 0; j < THEIRS; j++) {
                float x = scored(a, s[i][j], QUERY(i), KEY(j));
                weights[(ty + 16 * i) * STEP + tx + 16 * j] = weight(x - high[i] - below[i], alpha);
            }
        load(v, k0, COLS, a.keys, dv, tile);
        BARRIER;
        blend(weights, tile, o);
    }
    STORE(out + (i64)at * tq * dv, q0, tq, dv, o, 1.0f, )
}

#else
/* mean (b, heads, tq) = sum(slope * dp) / sum(slope) over the keys of a query, 0 where none is
 * chosen; dp_j = go v_j, where go (b, heads, tq, dv) is the gradient of out. */
KERNEL entmax_means(GIVEN, GLOBAL const float *go, GLOBAL const float *top, GLOBAL const float *t,
                    GLOBAL float *mean ROOM_ARGUMENT) {
    ROOM;
    SHARED float *queries = room, *above = queries + ROWS * PITCH, *near_k = above + ROWS * PITCH;
    SHARED float *near_v = near_k + COLS * PITCH, *spare = near_v + COLS * PITCH;
    OF_QUERIES
    float s[MINE][THEIRS], dp[MINE][THEIRS], high[MINE], below[MINE], sum[MINE], slopes[MINE];
    for (int i = 0; i < MINE; i++) {
        i64 mine = (i64)at * tq + MIN(QUERY(i), tq - 1);
        high[i] = top[mine], below[i] = t[mine], sum[i] = slopes[i] = 0.0f;
    }
    load(q, q0, ROWS, tq, d, queries);
    load(go + (i64)at * tq * dv, q0, ROWS, tq, dv, above);
    for (int k0 = 0; k0 < end; k0 += COLS) {
        BARRIER;
        load(k, k0, COLS, a.keys, d, near_k);
        load(v, k0, COLS, a.keys, dv, near_v);
        BARRIER;
        compare(queries, near_k, s);
        compare(above, near_v, dp);
        for (int i = 0; i < MINE; i++)
            for (int j = 0; j < THEIRS; j++) {
                float x = scored(a, s[i][j], QUERY(i), KEY(j));
                float grows = slope(x - high[i] - below[i], alpha);
                slopes[i] += grows;
                if (grows > 0.0f) sum[i] += grows * dp[i][j];
            }
    }
    for (int i = 0; i < MINE; i++) {
        sum[i] = sum_of(sum[i], 16, spare);
        slopes[i] = sum_of(slopes[i], 16, spare);
        if (QUERY(i) < tq && tx == 0)
            mean[(i64)at * tq + QUERY(i)] = slopes[i] > 0.0f ? sum[i] / slopes[i] : 0.0f;
    }
}

/* gq (b, heads, tq, d); NaN where the query has no distribution. */
KERNEL entmax_queries(GIVEN, GLOBAL const float *go, GLOBAL const float *top, GLOBAL const float *t,
                      GLOBAL const float *mean, GLOBAL float *gq ROOM_ARGUMENT) {
    ROOM;
    SHARED float *queries = room, *above = queries + ROWS * PITCH, *near_k = above + ROWS * PITCH;
    SHARED float *near_v = near_k + COLS * PITCH, *weights = near_v + COLS * PITCH;
    OF_QUERIES
    float o[MINE][SPREAD], s[MINE][THEIRS], dp[MINE][THEIRS], high[MINE], below[MINE], less[MINE];
    for (int i = 0; i < MINE; i++) {
        i64 mine = (i64)at * tq + MIN(QUERY(i), tq - 1);
        high[i] = top[mine], below[i] = t[mine], less[i] = mean[mine];
        for (int c = 0; c < SPREAD; c++) o[i][c] = below[i] != below[i] ? below[i] : 0.0f;
    }
    load(q, q0, ROWS, tq, d, queries);
    load(go + (i64)at * tq * dv, q0, ROWS, tq, dv, above);
    for (int k0 = 0; k0 < end; k0 += COLS) {
        BARRIER;
        load(k, k0, COLS, a.keys, d, near_k);
        load(v, k0, COLS, a.keys, dv, near_v);
        BARRIER;
        compare(queries, near_k, s);
        compare(above, near_v, dp);
        for (int i = 0; i < MINE; i++)
            for (int j = 0; j < THEIRS; j++) {
                float x = scored(a, s[i][j], QUERY(i), KEY(j));
                float grows = slope(x - high[i] - below[i], alpha);
                weights[(ty + 16 * i) * STEP + tx + 16 * j] =
                    grows > 0.0f ? grows * (dp[i][j] - less[i]) : 0.0f;
            }
        BARRIER;
        blend(weights, near_k, o);
    }
    STORE(gq + (i64)at * tq * d, q0, tq, d, o, factor[at % heads], )
}

/* gk (b, heads / group, tk, d) and gv (b, heads / group, tk, dv). A block owns keys and values, and
 * walks over the queries of all heads that share them. */
KERNEL entmax_keys(GIVEN, GLOBAL const float *go, GLOBAL const float *top, GLOBAL const float *t,
                   GLOBAL const float *mean, GLOBAL float *gk, GLOBAL float *gv ROOM_ARGUMENT) {
    ROOM;
    SHARED float *mine_k = room, *mine_v = mine_k + ROWS * PITCH, *queries = mine_v + ROWS * PITCH;
    SHARED float *above = queries + COLS * PITCH, *weights = above + COLS * PITCH;
    SHARED float *slopes = weights + ROWS * STEP;
    int blocks = UP(tk, ROWS) / ROWS, k0 = BLOCK % blocks * ROWS, per = heads / group;
    i64 kv = BLOCK / blocks;
    int b = kv / per, keys = lengths ? lengths[b] : tk, tx = THREAD % 16, ty = THREAD / 16;
    int first = MAX(0, k0 + 1 - shift) / COLS * COLS; /* earlier queries see none of these keys */
    float o_k[MINE][SPREAD], o_v[MINE][SPREAD], s[MINE][THEIRS], dp[MINE][THEIRS];
    for (int i = 0; i < MINE; i++)
        for (int c = 0; c < SPREAD; c++) o_k[i][c] = o_v[i][c] = 0.0f;
    load(k + kv * tk * d, k0, ROWS, keys, d, mine_k);
    load(v + kv * tk * dv, k0, ROWS, keys, dv, mine_v);
    for (int i = 0; i < group && k0 < keys; i++) {
        i64 at = kv * group + i;
        int h = at % heads;
        Scores a = SCORES(b, h);
        for (int q0 = first; q0 < tq; q0 += COLS) {
            BARRIER;
            load(q + at * tq * d, q0, COLS, tq, d, queries);
            load(go + at * tq * dv, q0, COLS, tq, dv, above);
            BARRIER;
            compare(mine_k, queries, s);
            compare(mine_v, above, dp);
            for (int m = 0; m < MINE; m++)
                for (int j = 0; j < THEIRS; j++) {
                    int r = q0 + tx + 16 * j, place = (ty + 16 * m) * STEP + tx + 16 * j;
                    i64 row = at * tq + MIN(r, tq - 1);
                    float over = scored(a, s[m][j], r, k0 + ty + 16 * m) - top[row] - t[row];
                    float grows = slope(over, alpha);
                    weights[place] = weight(over, alpha);
                    float ds = grows * (dp[m][j] - mean[row]) * factor[h];
                    slopes[place] = grows > 0.0f ? ds : 0.0f;
                }
            BARRIER;
            blend(weights, above, o_v);
            blend(slopes, queries, o_k);
        }
    }
    STORE(gk + kv * tk * d, k0, tk, d, o_k, 1.0f, )
    STORE(gv + kv * tk * dv, k0, tk, dv, o_v, 1.0f, )
}
#endif
#endif
