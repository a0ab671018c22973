/* Routing of tokens to experts on a GPU: the choice of k experts a token, and the sort of the pairs
 * by expert.
 *
 * A block owns `each` neighbouring tokens; a line of threads decides for one at a time. The sort is
 * by counting and stable, without atomics: `route` counts the pairs of every block, `route_starts`
 * finds where each block's pairs of an expert begin, `route_places` puts them there. One block
 * alone does all three in one launch.
 */
#ifndef THREADS
#define THREADS 512
#endif
#include "simt.h"

#define LINE MIN(32, THREADS)
#define LINES (THREADS / LINE)
#define ALL(i, n) for (int i = THREAD; i < (n); i += THREADS)

/* What the sort works with: counts (blocks + 1, experts + 1), in whose last column stands how many
 * tokens of a block are at fault, and first of its last row what is wrong with all of them. */
typedef struct {
    GLOBAL const i64 *chosen;
    GLOBAL int *counts;
    GLOBAL i64 *order, *place, *offsets;
    int pairs, experts, each, blocks; /* `each` pairs of a block */
} Sort;

/* -- choosing ----------------------------------------------------------------------- */

/* log(1 / (1 + e^-x)) */
DEVICE float log_sigmoid(float x) { return MIN(x, 0.0f) - LOG(1.0f + EXP(-LARGER(x, -x))); }

/* Logits of a token become what decides, in shared memory: score + bias, or as they are without a
 * bias. Returns how many of this thread's are not finite. */
DEVICE int steer(GLOBAL const float *logits, GLOBAL const float *bias, int experts, int sigmoid,
                 SHARED float *keys, SHARED float *line) {
    int lane = THREAD % LINE, spoiled = 0;
    float top = -INFINITY_F, total = 0.0f;
    for (int e = lane; e < experts; e += LINE) {
        float x = keys[e] = logits[e];
        spoiled += x * 0.0f != 0.0f;
        top = MAX(x, top);
    }
    top = largest_of(top, LINE, line);
    for (int e = lane; e < experts; e += LINE) total += EXP(keys[e] - top);
    total = sum_of(total, LINE, line);
    for (int e = lane; bias && e < experts; e += LINE) {
        float x = keys[e], small = EXP(-LARGER(x, -x));
        keys[e] = (sigmoid ? (x < 0.0f ? small : 1.0f) / (1.0f + small) : EXP(x - top) / total) +
                  bias[e];
    }
    return spoiled;
}

/* The expert of the highest key, the lower one among equals, by a line of threads; it is not found
 * again. Something below `experts` where there are only NaN. */
DEVICE int best(SHARED float *keys, int experts, SHARED float *line) {
    int lane = THREAD % LINE;
    float top = -INFINITY_F, at = -INFINITY_F; /* numbers of experts are exact in a float */
    for (int e = lane; e < experts; e += LINE)
        if (keys[e] > top) top = keys[e], at = -(float)e;
    float highest = largest_of(top, LINE, line);
    at = largest_of(top == highest ? at : -INFINITY_F, LINE, line);
    int expert = at == -INFINITY_F ? 0 : (int)-at;
    if (expert % LINE == lane) keys[expert] = -INFINITY_F;
    return expert;
}

/* Chosen logits of a token -> weights: the scores in proportion. */
DEVICE void normalise(SHARED const float *found, GLOBAL float *weights, int k, int sigmoid,
                      int there, SHARED float *line) {
    int lane = THREAD % LINE;
    float top = -INFINITY_F, total = 0.0f;
    for (int j = lane; j < k; j += LINE) {
        float x = sigmoid ? log_sigmoid(found[j]) : found[j];
        top = MAX(x, top);
    }
    top = largest_of(top, LINE, line);
    for (int j = lane; j < k; j += LINE)
        total += EXP((sigmoid ? log_sigmoid(found[j]) : found[j]) - top);
    total = sum_of(total, LINE, line);
    for (int j = lane; there && j < k; j += LINE)
        weights[j] = EXP((sigmoid ? log_sigmoid(found[j]) : found[j]) - top) / total;
}

/* -- the sort ----------------------------------------------------------------------- */

/* Counts this block's pairs of each expert. An expert that is none is at fault, and counts as 0. */
DEVICE void count(Sort s, int faults, SHARED int *mine) {
    int first = BLOCK * s.each, here = MIN(s.each, s.pairs - first);
    GLOBAL int *counts = s.counts + (i64)BLOCK * (s.experts + 1);
    ALL(p, here) {
        i64 expert = s.chosen[first + p];
        mine[p] = expert < 0 || expert >= s.experts ? -1 : (int)expert;
    }
    BARRIER;
    ALL(e, s.experts + 1) {
        int found = e == s.experts ? faults : 0;
        for (int p = 0; p < here; p++)
            found += mine[p] == e || (mine[p] < 0 && (e == 0 || e == s.experts));
        counts[e] = found;
    }
    BARRIER;
}

/* Counts become where a block's pairs of an expert begin among all of that expert; and offsets. By
 * one block. */
DEVICE void find_starts(Sort s, GLOBAL const float *bias, SHARED int *sums) {
    int spoiled = 0;
    ALL(e, s.experts + 1) {
        int total = 0;
        for (int b = 0; b < s.blocks; b++) {
            GLOBAL int *counted = s.counts + (i64)b * (s.experts + 1) + e;
            int found = *counted;
            *counted = total, total += found;
        }
        sums[e] = total;
    }
    BARRIER;
    ALL(e, s.experts + 1) {
        i64 before = 0;
        for (int other = 0; other < e; other++) before += sums[other];
        s.offsets[e] = before;
    }
    if (THREAD == 0) {
        for (int e = 0; bias && e < s.experts; e++) spoiled |= bias[e] * 0.0f != 0.0f;
        s.counts[(i64)s.blocks * (s.experts + 1)] = spoiled ? 2 : sums[s.experts] > 0;
    }
    BARRIER;
}

/* Puts this block's pairs in their places. */
DEVICE void put(Sort s, SHARED int *mine) {
    int first = BLOCK * s.each, here = MIN(s.each, s.pairs - first);
    GLOBAL const int *starts = s.counts + (i64)BLOCK * (s.experts + 1);
    ALL(p, here) {
        i64 expert = s.chosen[first + p];
        mine[p] = expert < 0 || expert >= s.experts ? 0 : (int)expert;
    }
    BARRIER;
    ALL(p, here) {
        int expert = mine[p], before = 0;
        for (int q = 0; q < p; q++) before += mine[q] == expert;
        i64 at = s.offsets[expert] + starts[expert] + before;
        s.place[first + p] = at, s.order[at] = first + p;
    }
    BARRIER;
}

#define SORT {chosen, counts, order, place, offsets, pairs, experts, each, blocks}

/* -- kernels ------------------------------------------------------------------------ */

/* logits (n, experts) -> weights, chosen (n, k); order (n k), place (n, k), offsets (experts + 1) if
 * there is only one block. `each` pairs of a block are those of whole tokens. bias (experts), or
 * none. Shared memory: THREADS floats, then of every line experts + k, then `each` ints, and not
 * less than experts + 1 of them. */
KERNEL route(GLOBAL const float *logits, GLOBAL const float *bias, GLOBAL float *weights,
             GLOBAL i64 *chosen, GLOBAL int *counts, GLOBAL i64 *order, GLOBAL i64 *place,
             GLOBAL i64 *offsets, int pairs, int experts, int each, int blocks, int k,
             int sigmoid ROOM_ARGUMENT) {
    ROOM;
    Sort s = SORT;
    int lane = THREAD % LINE, row = THREAD / LINE, n = pairs / k, spoiled = 0;
    SHARED float *keys = room + THREADS + row * (experts + k);
    SHARED int *mine = (SHARED int *)(room + THREADS + LINES * (experts + k));
    for (int t0 = 0; t0 < each / k; t0 += LINES) {
        int t = BLOCK * (each / k) + t0 + row, there = t0 + row < each / k && t < n;
        i64 at = (i64)MIN(t, n - 1);
        spoiled += steer(logits + at * experts, bias, experts, sigmoid, keys, room) * there;
        for (int j = 0; j < k; j++) {
            int expert = best(keys, experts, room);
            if (lane == 0) keys[experts + j] = logits[at * experts + expert];
            if (lane == 0 && there) chosen[at * k + j] = expert;
        }
        BARRIER;
        normalise(keys + experts, weights + at * k, k, sigmoid, there, room);
        BARRIER;
    }
    BARRIER;
    room[THREAD] = (float)spoiled;
    BARRIER;
    spoiled = 0;
    for (int i = 0; i < THREADS; i++) spoiled += room[i] > 0.0f;
    count(s, spoiled, mine);
    if (blocks == 1) {
        find_starts(s, bias, mine);
        put(s, mine);
    }
}

/* Counts the pairs of experts that were chosen elsewhere; the rest too, if there is only one block. */
KERNEL route_counts(GLOBAL const i64 *chosen, GLOBAL int *counts, GLOBAL i64 *order,
                    GLOBAL i64 *place, GLOBAL i64 *offsets, int pairs, int experts, int each,
                    int blocks ROOM_ARGUMENT) {
    ROOM;
    Sort s = SORT;
    SHARED int *mine = (SHARED int *)room;
    count(s, 0, mine);
    if (blocks == 1) {
        find_starts(s, 0, mine);
        put(s, mine);
    }
}

KERNEL route_starts(GLOBAL const float *bias, GLOBAL const i64 *chosen, GLOBAL int *counts,
                    GLOBAL i64 *order, GLOBAL i64 *place, GLOBAL i64 *offsets, int pairs,
                    int experts, int each, int blocks ROOM_ARGUMENT) {
    ROOM;
    Sort s = SORT;
    find_starts(s, bias, (SHARED int *)room);
}

KERNEL route_places(GLOBAL const i64 *chosen, GLOBAL int *counts, GLOBAL i64 *order,
                    GLOBAL i64 *place, GLOBAL i64 *offsets, int pairs, int experts, int each,
                    int blocks ROOM_ARGUMENT) {
    ROOM;
    Sort s = SORT;
    put(s, (SHARED int *)room);
}
