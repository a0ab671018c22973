/* Routing of tokens to experts: the choice of k experts a token, the sort of the pairs by expert,
 * and rows moved to expert order and back.
 *
 * Choosing works on LANES tokens at a time, one in each lane: their logits are transposed, and an
 * expert is put into the sorted lists of all of them at once, without a branch.
 */
#include "turn.h"

#define PICKI(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))
#define IVEC(p) (*(GLOBAL veci *)(p))
#define AT_ONCE 8 /* experts that are chosen in one pass, at most */

/* -- choosing ----------------------------------------------------------------------- */

/* sigmoid(x) = e^min(x, 0) / (1 + e^-|x|), which never overflows: min(x, 0) and e^-|x|. */
INLINE vec below_zero(vec x) {
    veci negative = x < ALL(0.0f);
    return FLOATS(BITS(x) & negative);
}
INLINE vec tail(vec x) { return exponential(FLOATS(BITS(x) | ALLI((int)0x80000000))); }

/* Logits of LANES tokens (the last one repeated after the end) -> (experts, LANES). Returns 0 in
 * every lane, or NaN where a logit is not finite. */
INLINE vec transposed(GLOBAL const float *logits, int left, int experts, GLOBAL float *to) {
    vec spoiled = ALL(0.0f);
    int whole = left < LANES ? 0 : experts / 4 * 4;
    for (int lane = 0; lane < LANES; lane += 4)
        for (int e = 0; e < whole; e += 4)
            turn_four(logits + (i64)lane * experts + e, experts, to + e * LANES + lane, LANES);
    for (int lane = 0; lane < LANES && whole < experts; lane++) {
        GLOBAL const float *from = logits + (i64)MIN(lane, left - 1) * experts;
        for (int e = whole; e < experts; e++) to[e * LANES + lane] = from[e];
    }
    for (int e = 0; e < experts; e++) spoiled += CVEC(to + e * LANES) * 0.0f;
    return spoiled;
}

/* Logits become what decides: score + bias. */
INLINE void steer(GLOBAL float *x, GLOBAL const float *bias, int experts, int sigmoid) {
    if (sigmoid) {
        for (int e = 0; e < experts; e++) {
            vec logit = CVEC(x + e * LANES);
            vec small = tail(logit);
            veci negative = logit < ALL(0.0f);
            VEC(x + e * LANES) = PICK(negative, small, ALL(1.0f)) / (small + 1.0f) + bias[e];
        }
        return;
    }
    vec top = CVEC(x), sum = ALL(0.0f);
    for (int e = 1; e < experts; e++) top = greater(CVEC(x + e * LANES), top);
    for (int e = 0; e < experts; e++) {
        vec p = exponential(CVEC(x + e * LANES) - top);
        VEC(x + e * LANES) = p;
        sum += p;
    }
    for (int e = 0; e < experts; e++) VEC(x + e * LANES) = CVEC(x + e * LANES) / sum + bias[e];
}

/* The next K experts of LANES tokens, best first, after the one in (last, last_expert): keys
 * (experts, LANES) -> found, which (K, LANES). Equal keys: the lower expert first. The list lies in
 * named variables, for OpenCL keeps an array in memory. */
#define PAIR(f) f(0) f(1)
#define QUAD(f) PAIR(f) f(2) f(3)
#define OCTET(f) QUAD(f) f(4) f(5) f(6) f(7)
#define PUSH_1
#define PUSH_2 PUSH(1, 0)
#define PUSH_4 PUSH(3, 2) PUSH(2, 1) PUSH_2
#define PUSH_8 PUSH(7, 6) PUSH(6, 5) PUSH(5, 4) PUSH(4, 3) PUSH_4
#define OPEN(j)                                                                                 \
    vec top##j = ALL(-INFINITY_F);                                                              \
    veci at##j = ALLI(0);
#define PUSH(j, before)                                                                         \
    {                                                                                           \
        veci over = key > top##before; /* then the list moves down by one at j */               \
        top##j = PICK(over, top##before, PICK(above, key, top##j));                             \
        at##j = PICKI(over, at##before, PICKI(above, expert, at##j));                           \
        above = over;                                                                           \
    }
#define CLOSE(j) VEC(found + j * LANES) = top##j, IVEC(which + j * LANES) = at##j;
#define ITSELF(f) f(0)
#define BEST(K, EACH, end)                                                                      \
    INLINE void best_##K(GLOBAL const float *keys, int experts, int first, vec last,            \
                         veci last_expert, GLOBAL float *found, GLOBAL int *which) {            \
        EACH(OPEN)                                                                              \
        for (int e = 0; e < experts; e++) {                                                     \
            vec key = CVEC(keys + e * LANES);                                                   \
            veci expert = ALLI(e);                                                              \
            if (!first) {                                                                       \
                veci later = (key < last) | ((key == last) & (expert > last_expert));           \
                key = PICK(later, key, ALL(-INFINITY_F));                                       \
            }                                                                                   \
            veci above = key > top##end;                                                        \
            PUSH_##K                                                                            \
            top0 = PICK(above, key, top0);                                                      \
            at0 = PICKI(above, expert, at0);                                                    \
        }                                                                                       \
        EACH(CLOSE)                                                                             \
    }
BEST(1, ITSELF, 0)
BEST(2, PAIR, 1)
BEST(4, QUAD, 3)
BEST(8, OCTET, 7)

/* The k experts of LANES tokens, AT_ONCE at a time: registers hold no more. */
INLINE void choose(GLOBAL const float *keys, int experts, int k, GLOBAL float *found,
                   GLOBAL int *which) {
    vec last = ALL(INFINITY_F);
    veci last_expert = ALLI(0);
    for (int done = 0; done < k; done += AT_ONCE) {
        GLOBAL float *f = found + done * LANES;
        GLOBAL int *w = which + done * LANES;
        if (k - done == 1) best_1(keys, experts, !done, last, last_expert, f, w);
        else if (k - done == 2) best_2(keys, experts, !done, last, last_expert, f, w);
        else if (k - done <= 4) best_4(keys, experts, !done, last, last_expert, f, w);
        else best_8(keys, experts, !done, last, last_expert, f, w);
        last = CVEC(f + (AT_ONCE - 1) * LANES);
        last_expert = IVEC(w + (AT_ONCE - 1) * LANES);
    }
}

/* Logits of the chosen, best first -> scores that sum to 1. */
INLINE void normalise(GLOBAL float *x, int k, int sigmoid) {
    vec top = CVEC(x), sum = ALL(0.0f);
    for (int j = 1; j < k; j++) top = greater(CVEC(x + j * LANES), top);
    if (sigmoid) top = below_zero(top);
    for (int j = 0; j < k; j++) {
        vec logit = CVEC(x + j * LANES);
        vec score = exponential((sigmoid ? below_zero(logit) : logit) - top);
        if (sigmoid) score = score / (tail(logit) + 1.0f);
        VEC(x + j * LANES) = score;
        sum += score;
    }
    for (int j = 0; j < k; j++) VEC(x + j * LANES) = CVEC(x + j * LANES) / sum;
}

/* -- sorting ------------------------------------------------------------------------ */

/* How many pairs each expert has, one place further in offsets (count + 1). Returns whether every
 * expert is one of those there are; without, nothing else is of use. */
INLINE int counted(GLOBAL const i64 *experts, int pairs, int count, GLOBAL i64 *offsets) {
    for (int e = 0; e <= count; e++) offsets[e] = 0;
    for (int i = 0; i < pairs; i++) {
        if (experts[i] < 0 || experts[i] >= count) return 0;
        offsets[experts[i] + 1]++;
    }
    return 1;
}

/* Pairs of token and choice by expert, in their order: a counting sort of what was counted. */
INLINE void sort(GLOBAL const i64 *experts, int pairs, int count, GLOBAL i64 *order,
                 GLOBAL i64 *place, GLOBAL i64 *offsets) {
    for (int e = 0; e < count; e++) offsets[e + 1] += offsets[e];
    for (int i = 0; i < pairs; i++) {
        i64 to = offsets[experts[i]]++;
        place[i] = to;
        order[to] = i;
    }
    for (int e = count; e > 0; e--) offsets[e] = offsets[e - 1];
    offsets[0] = 0;
}

/* logits (n, experts) -> weights and chosen (n, k), order and place (n k), offsets (experts + 1);
 * fault becomes 1 if a logit is not finite, 2 if a bias is not, else 0. room holds
 * (experts + 2 (k + AT_ONCE)) LANES numbers. One item. */
KERNEL route(GLOBAL const float *logits, GLOBAL const float *bias, GLOBAL float *weights,
             GLOBAL i64 *chosen, GLOBAL i64 *order, GLOBAL i64 *place, GLOBAL i64 *offsets,
             GLOBAL i64 *fault, GLOBAL float *room, int n, int experts, int k, int sigmoid,
             int items) {
    GLOBAL float *found = room + experts * LANES;
    GLOBAL int *which = (GLOBAL int *)(found + (k + AT_ONCE) * LANES);
    FOR_ITEMS(item, items) {
        vec spoiled = ALL(0.0f);
        for (int e = 0; e <= experts; e++) offsets[e] = 0;
        for (int t = 0; t < n; t += LANES) {
            int here = MIN(LANES, n - t);
            GLOBAL const float *x = logits + (i64)t * experts;
            spoiled += transposed(x, here, experts, room);
            if (bias) steer(room, bias, experts, sigmoid);
            choose(room, experts, k, found, which);
            if (bias)
                for (int j = 0; j < k; j++)
                    for (int i = 0; i < here; i++)
                        found[j * LANES + i] = x[i * experts + which[j * LANES + i]];
            normalise(found, k, sigmoid);
            for (int i = 0; i < here; i++)
                for (int j = 0; j < k; j++) {
                    i64 to = (i64)(t + i) * k + j;
                    int expert = which[j * LANES + i];
                    weights[to] = found[j * LANES + i];
                    chosen[to] = expert;
                    offsets[expert + 1]++;
                }
        }
        *fault = 0;
        for (int i = 0; i < LANES; i++)
            if (spoiled[i] != 0.0f) *fault = 1;
        for (int e = 0; bias && e < experts; e++)
            if (bias[e] * 0.0f != 0.0f) *fault = 2;
        if (!*fault) sort(chosen, n * k, experts, order, place, offsets);
    }
}

/* experts (pairs) -> order, place, offsets as in `route`; fault becomes 1 for an expert that is
 * none. One item. */
KERNEL route_sort(GLOBAL const i64 *chosen, GLOBAL i64 *order, GLOBAL i64 *place,
                  GLOBAL i64 *offsets, GLOBAL i64 *fault, int pairs, int experts, int items) {
    FOR_ITEMS(item, items) {
        *fault = !counted(chosen, pairs, experts, offsets);
        if (!*fault) sort(chosen, pairs, experts, order, place, offsets);
    }
}

/* The gradient of the logits, which is zeros before; an item is a token. */
KERNEL route_backward(GLOBAL const float *grad, GLOBAL const float *weights,
                      GLOBAL const i64 *chosen, GLOBAL const float *logits, GLOBAL float *out,
                      int experts, int k, int sigmoid, int items) {
    FOR_ITEMS(t, items) {
        i64 at = (i64)t * k, row = (i64)t * experts;
        float mean = 0.0f;
        for (int j = 0; j < k; j++) mean += grad[at + j] * weights[at + j];
        for (int j = 0; j < k; j++) {
            i64 to = row + chosen[at + j];
            float slope = weights[at + j] * (grad[at + j] - mean);
            if (sigmoid) slope /= 1.0f + EXP(MIN(logits[to], 80.0f));
            out[to] = slope;
        }
    }
}

/* -- moving rows -------------------------------------------------------------------- */

/* bfloat16 is the upper half of a float; rounding is to the nearest, ties to even. */
INLINE vec widened(halves x) {
    veci bits = __builtin_convertvector(x, veci) << 16;
    return FLOATS(bits);
}
INLINE halves narrowed(vec x) {
    veci bits = BITS(x), number = x == x;
    veci rounded = bits + 0x7fff + ((bits >> 16) & 1);
    rounded = PICKI(number, rounded, ALLI(0x7fc00000)) >> 16;
    return __builtin_convertvector(rounded & 0xffff, halves);
}
INLINE float widened1(u16 x) {
    union { u32 bits; float number; } u;
    u.bits = (u32)x << 16;
    return u.number;
}
INLINE u16 narrowed1(float x) {
    union { u32 bits; float number; } u;
    u.number = x;
    return x == x ? (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16 : 0x7fc0;
}
#define SAME(x) (x)

INLINE int strays(GLOBAL const i64 *place, int k, i64 rows) {
    int found = 0;
    for (int j = 0; j < k; j++) found |= place[j] < 0 || place[j] >= rows;
    return found;
}

/* rows (n k, width) in expert order; x and out by token (n, width); order and place as in `route`;
 * weights (n, k) or none. fault becomes 1 for an index that is none.
 *   dispatch: an item is a row,   rows[r] = weights[order[r]] x[order[r] / k]
 *   combine:  an item is a token, out[t] = sum_j weights[t, j] rows[place[t, j]]
 *   match:    an item is a token, dots[t, j] = x[t] . rows[place[t, j]]                        */
#define MOVING(type, T, LOAD, STORE, LOAD1, STORE1)                                              \
    KERNEL dispatch_##type(GLOBAL const T *x, GLOBAL const i64 *order,                           \
                           GLOBAL const float *weights, GLOBAL T *rows, GLOBAL int *fault,       \
                           int width, int k, int items) {                                        \
        FOR_ITEMS(r, items) {                                                                    \
            i64 pair = order[r];                                                                 \
            if (pair < 0 || pair >= items) {                                                     \
                *fault = 1;                                                                      \
                continue;                                                                        \
            }                                                                                    \
            GLOBAL const T *from = x + pair / k * width;                                         \
            GLOBAL T *to = rows + (i64)r * width;                                                \
            int c = 0;                                                                           \
            if (!weights) {                                                                      \
                for (; c < width; c++) to[c] = from[c];                                          \
                continue;                                                                        \
            }                                                                                    \
            float by = weights[pair];                                                            \
            for (; c + LANES <= width; c += LANES) STORE(to + c, LOAD(from + c) * by);           \
            for (; c < width; c++) to[c] = STORE1(LOAD1(from[c]) * by);                          \
        }                                                                                        \
    }                                                                                            \
    KERNEL combine_##type(GLOBAL const T *rows, GLOBAL const i64 *place,                         \
                          GLOBAL const float *weights, GLOBAL T *out, GLOBAL int *fault,         \
                          int width, int k, int items) {                                         \
        FOR_ITEMS(t, items) {                                                                    \
            GLOBAL const i64 *at = place + (i64)t * k;                                           \
            GLOBAL const float *by = weights + (i64)t * k;                                       \
            if (strays(at, k, (i64)items * k)) {                                                 \
                *fault = 1;                                                                      \
                continue;                                                                        \
            }                                                                                    \
            GLOBAL T *to = out + (i64)t * width;                                                 \
            int c = 0;                                                                           \
            for (; c + LANES <= width; c += LANES) {                                             \
                vec sum = ALL(0.0f);                                                             \
                for (int j = 0; j < k; j++)                                                      \
                    sum += LOAD(rows + at[j] * width + c) * (weights ? by[j] : 1.0f);            \
                STORE(to + c, sum);                                                              \
            }                                                                                    \
            for (; c < width; c++) {                                                             \
                float sum = 0.0f;                                                                \
                for (int j = 0; j < k; j++)                                                      \
                    sum += LOAD1(rows[at[j] * width + c]) * (weights ? by[j] : 1.0f);            \
                to[c] = STORE1(sum);                                                             \
            }                                                                                    \
        }                                                                                        \
    }                                                                                            \
    KERNEL match_##type(GLOBAL const T *x, GLOBAL const T *rows, GLOBAL const i64 *place,        \
                        GLOBAL float *dots, GLOBAL int *fault, int width, int k, int items) {    \
        FOR_ITEMS(t, items) {                                                                    \
            GLOBAL const i64 *at = place + (i64)t * k;                                           \
            if (strays(at, k, (i64)items * k)) {                                                 \
                *fault = 1;                                                                      \
                continue;                                                                        \
            }                                                                                    \
            for (int j = 0; j < k; j++) {                                                        \
                GLOBAL const T *a = x + (i64)t * width, *b = rows + at[j] * width;               \
                vec sum = ALL(0.0f);                                                             \
                float rest = 0.0f;                                                               \
                int c = 0;                                                                       \
                for (; c + LANES <= width; c += LANES) sum += LOAD(a + c) * LOAD(b + c);         \
                for (; c < width; c++) rest += LOAD1(a[c]) * LOAD1(b[c]);                        \
                for (int i = 0; i < LANES; i++) rest += sum[i];                                  \
                dots[(i64)t * k + j] = rest;                                                     \
            }                                                                                    \
        }                                                                                        \
    }

#define PUT(p, v) (VEC(p) = (v))
#define LOAD_HALVES(p) widened(HALVES(p))
#define PUT_HALVES(p, v) (*(GLOBAL halves *)(p) = narrowed(v))
MOVING(f32, float, CVEC, PUT, SAME, SAME)
MOVING(bf16, u16, LOAD_HALVES, PUT_HALVES, widened1, narrowed1)
