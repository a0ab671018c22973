/* Causal language models on a GPU: GPT-2 and Llama, prefill, cache, sampling and scores, float32.
 *
 * One launch answers all prompts. A team of blocks owns a few sequences: it reads their prompts and
 * writes token after token until every answer has ended, so nothing waits for the processor between
 * tokens. That suits small models, whose weights stay in the GPU's cache. `forward` is the only pass
 * through the model; its rows are tokens of any of the team's sequences.
 *
 * The blocks of a team split the outputs of every product and the heads of every row, and give each
 * other what they have made through global memory. Each phase begins at a TEAM_BARRIER. What is
 * small is done by every block for itself: norms, which rows come next (in `room`).
 *
 * Every number of a row is computed in the same order whatever the other rows are, so an answer
 * does not depend on the batch it stands in. Names are those of gpt.c: a sequence has a `slot` in
 * the cache; a token stands at place `at` of its sequence and tells the model position `where`.
 *
 * All threads of a block take the same turns, because they meet at barriers. With THREADS 1 there
 * are none: PoCL repeats what follows a barrier that it cannot prove to be met by all, and does not
 * come to an end here.
 */
#ifndef THREADS
#define THREADS 128 /* two blocks a processor: one multiplies while the other waits for memory */
#endif
#include "simt.h"

#ifdef __OPENCL_VERSION__
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif

#define ROWS 10                      /* tokens in one pass, and sequences of a team, at most */
#define AHEAD 4                      /* quads of inputs whose weights are on their way */
#define LINE MIN(32, THREADS)        /* threads that share a row, or a part of a head's tokens */
#define LINES (THREADS / LINE)
#define FEW MIN(8, THREADS)          /* that share a row where all rows come at once */
#define HELD MAX(4 * ROWS * THREADS, 2048) /* floats that a block shares: multiplies, attends */
#define APART(R) (HELD / (R) / 4 * 4) /* floats from one held row to the next */
#define STEPS 8                      /* quads that a thread loads at once */
#define WAYS 8                       /* parts in which the tokens of a head are attended to */
#define ALL(i, n) for (int i = THREAD; i < (n); i += THREADS)
#define UNROLL _Pragma("unroll")

enum { GELU_TANH, RELU, SILU }; /* activations, in the order of ACTIVATIONS in gpt.py */
enum { PUT, ADD, ACTIVATE, GATE }; /* what becomes of a product */

/* Lies in `room`, for all threads. Sizes that end in _p are padded, with zeros: that of a head to
 * quads, others so that every block of a team has as many quads. */
typedef struct {
    int layers, width, heads, groups, size, words, places, rms, gated, activation, learned;
    int slots, span, width_p, size_p, mix, qkv_p, hidden_p, words_p;
    float epsilon, share; /* 1 / width */
    GLOBAL const float *embedding, *position, *layer; /* weights, in this order */
    GLOBAL const float *turns;                        /* (places, 2, size / 2): cos and sin */
    GLOBAL float *x, *last, *qkv, *attended, *middle, *logits;
    GLOBAL float *chances;       /* of this block */
    GLOBAL float *keys, *values; /* (slot, layer, group) of (span, size_p) */
    GLOBAL int *picks;           /* of this block */
    SHARED float *line;          /* a float for every thread */
    SHARED float *mean, *by;     /* of every row, for its norm */
    SHARED int *token, *slot, *at, *where, *live, *was, *word, *next; /* of every row */
    SHARED int *begin, *length;  /* of every slot: the position after its prompt; its prompt */
    SHARED int *heads_here, *head; /* how many heads of rows this block attends to, and which */
} Model;

/* A head of a row, as `head` has it. */
#define HEAD_OF(row, group, head) ((row) << 24 | (group) << 12 | (head))
#define ITS_ROW(head) ((head) >> 24)
#define ITS_GROUP(head) ((head) >> 12 & 4095)
#define ITS_HEAD(head) ((head) & 4095)

/* HELD floats behind the Model in `room`, then AHEAD times 4 quads of every thread: weights that
 * come. */
#define HELD_OF(room) (ROOM_AT(float, room) + UP(sizeof(Model) / 4, 4))
#define RING_OF(room) (HELD_OF(room) + HELD)

/* Lays the model over its weights and the memory of a team; gpt_gpu.py's `_room` and `_shared`
 * count it. */
DEVICE SHARED Model *opened(GLOBAL const int *shape, GLOBAL const float *weights,
                            GLOBAL const float *turns, float epsilon, int slots, int span,
                            GLOBAL float *memory, GLOBAL int *notes, GLOBAL const i64 *each,
                            SHARED float *room) {
    SHARED Model *m = (SHARED Model *)room;
    if (THREAD == 0) {
        m->layers = shape[0], m->width = shape[1], m->heads = shape[2], m->groups = shape[3];
        m->size = shape[4], m->words = shape[6], m->places = shape[7], m->rms = shape[8];
        m->gated = shape[9], m->activation = shape[10], m->learned = shape[11];
        m->slots = slots, m->span = span, m->epsilon = epsilon, m->turns = turns;
        m->share = 1.0f / m->width;
        m->width_p = UP(m->width, 4 * TEAM), m->size_p = UP(m->size, 4);
        m->mix = m->heads * m->size_p, m->hidden_p = UP(shape[5], 4 * TEAM);
        m->qkv_p = UP(m->mix + 2 * m->groups * m->size_p, 4 * TEAM);
        m->words_p = UP(m->words, 4 * TEAM);
        m->embedding = weights, m->position = weights + (i64)m->words * m->width_p;
        m->layer = m->position + (m->learned ? (i64)shape[12] * m->width_p : 0);
        memory += BLOCK / TEAM * each[0], notes += BLOCK / TEAM * each[1];
        m->x = memory, m->last = m->x + ROWS * m->width_p, m->qkv = m->last + ROWS * m->width_p;
        m->attended = m->qkv + ROWS * m->qkv_p, m->middle = m->attended + ROWS * m->mix;
        m->logits = m->middle + ROWS * m->hidden_p;
        m->chances = m->logits + (i64)(ROWS + RANK) * m->words_p;
        m->keys = m->logits + (i64)(ROWS + TEAM) * m->words_p;
        m->values = m->keys + (i64)slots * m->layers * m->groups * span * m->size_p;
        m->picks = notes + RANK * m->words;
        m->line = RING_OF(room) + 16 * AHEAD * THREADS;
        m->mean = m->line + THREADS, m->by = m->mean + ROWS;
        m->token = (SHARED int *)(m->by + ROWS), m->slot = m->token + ROWS, m->at = m->slot + ROWS;
        m->where = m->at + ROWS, m->live = m->where + ROWS, m->word = m->live + ROWS;
        m->next = m->word + ROWS, m->begin = m->next + ROWS, m->length = m->begin + ROWS;
        m->was = m->length + ROWS;
        m->heads_here = m->was + ROWS, m->head = m->heads_here + 1;
    }
    BARRIER;
    return m;
}

/* Where in the cache the tokens of (slot, layer, group) begin. */
DEVICE i64 cached(SHARED const Model *m, int slot, int layer, int group) {
    return (((i64)slot * m->layers + layer) * m->groups + group) * m->span * m->size_p;
}

DEVICE float4 quad(float x, float y, float z, float w) {
    float4 all;
    all.x = x, all.y = y, all.z = z, all.w = w;
    return all;
}

/* -- of the whole block ------------------------------------------------------------- */

CALLED float largest(float x, SHARED float *room) {
    x = largest_of(x, LINE, room);
    BARRIER;
    if (THREAD % LINE == 0) room[THREAD / LINE] = x;
    BARRIER;
    for (int i = 0; i < LINES; i++) x = MAX(room[i], x);
    BARRIER;
    return x;
}

CALLED float sum(float x, SHARED float *room) {
    x = sum_of(x, LINE, room);
    BARRIER;
    if (THREAD % LINE == 0) room[THREAD / LINE] = x;
    BARRIER;
    x = 0.0f;
    for (int i = 0; i < LINES; i++) x += room[i];
    BARRIER;
    return x;
}

/* -- products ------------------------------------------------------------------------ */

/* SiLU is x * sigmoid(x), GELU (tanh form) x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
DEVICE float activated(float x, int activation) {
    if (activation == RELU) return x > 0.0f ? x : 0.0f;
    float u = activation == SILU ? x : x * 1.5957691216f * (x * x * 0.044715f + 1.0f);
    return x / (1.0f + EXP(-u));
}

/* Quads q0, q0 + FEW, ... of a row; zeros beyond its end. */
DEVICE void row_of(float4 v[STEPS], GLOBAL const float *row, int q0, int quads) {
    UNROLL for (int i = 0; i < STEPS; i++) {
        v[i] = quad(0.0f, 0.0f, 0.0f, 0.0f);
        if (q0 + i * FEW < quads) v[i] = FAR_QUAD(row + 4 * (q0 + i * FEW));
    }
}

/* The square of x, nothing for what only fills the row up. */
DEVICE float squared(float x, int i, int width) { return i < width ? x * x : 0.0f; }

/* Mean and 1 / deviation of every row of x; RMSNorm takes 0 for the mean. What a norm scales by and
 * shifts by is in the weights that follow it. */
DEVICE void measure(SHARED const Model *m, GLOBAL const float *x, int rows) {
    int lane = THREAD % FEW, width = m->width;
    IS_GLOBAL(x);
    for (int first = 0; first < rows; first += THREADS / FEW) { /* all threads share sums */
        int r = first + THREAD / FEW, quads = r < rows ? m->width_p / 4 : 0;
        GLOBAL const float *row = x + (i64)r * m->width_p;
        float4 v[STEPS];
        float mean = 0.0f, square = 0.0f;
        for (int q = lane; q < quads; q += STEPS * FEW) {
            row_of(v, row, q, quads);
            UNROLL for (int i = 0; i < STEPS; i++) mean += v[i].x + v[i].y + (v[i].z + v[i].w);
        }
        mean = m->rms ? 0.0f : sum_of(mean, FEW, m->line) * m->share;
        for (int q = lane; q < quads; q += STEPS * FEW) {
            if (quads > STEPS * FEW) row_of(v, row, q, quads);
            UNROLL for (int i = 0; i < STEPS; i++) {
                int n = 4 * (q + i * FEW);
                square += squared(v[i].x - mean, n, width) + squared(v[i].y - mean, n + 1, width);
                square += squared(v[i].z - mean, n + 2, width) + squared(v[i].w - mean, n + 3, width);
            }
        }
        square = sum_of(square, FEW, m->line);
        if (quads && lane == 0)
            m->mean[r] = mean, m->by[r] = INVERSE_ROOT(square * m->share + m->epsilon);
    }
    BARRIER;
}

/* Quads `from` .. `until` of the inputs of R rows into shared memory, rows APART(R) apart; rows that
 * there are not are 0. With `measured`, x is normed, and is measured before. */
DEVICE void hold(const int R, SHARED const Model *m, SHARED float *held, GLOBAL const float *x,
                 int inputs, int from, int until, int normed, int rows) {
    int row = THREAD / LINE, lane = THREAD % LINE;
    for (int r = row; r < R; r += LINES)
        for (int q = from + lane; q < until; q += LINE)
            begin_copy(held + r * APART(R) + 4 * (q - from), x + (i64)r * inputs + 4 * q, r < rows);
    close_group();
    if (normed && from == 0) measure(m, x, rows);
    WAIT_FOR_COPIES(0);
    if (normed) {
        for (int r = row; r < MIN(R, rows); r += LINES) {
            float mean = m->mean[r], by = m->by[r];
            for (int q = lane; q < until - from; q += LINE) {
                SHARED float4 *v = (SHARED float4 *)(held + r * APART(R) + 4 * q);
                *v = quad((v->x - mean) * by, (v->y - mean) * by, (v->z - mean) * by,
                          (v->w - mean) * by);
            }
        }
    }
    BARRIER;
}

/* Asks for the weights of four inputs and four outputs, or for nothing. */
DEVICE void ask(SHARED float *to, GLOBAL const float *from, int apart, int there) {
    if (there) {
        UNROLL for (int i = 0; i < 4; i++) begin_copy(to + 4 * i * THREADS, from + (i64)i * apart, 1);
    }
    close_group();
}

/* What was asked for. */
DEVICE void take(float4 w[4], SHARED const float *from) {
    UNROLL for (int i = 0; i < 4; i++) w[i] = QUAD(from + 4 * i * THREADS);
}

/* made[r] += the products of four inputs of each of R rows. */
DEVICE void multiply(const int R, float4 *made, SHARED const float *given, const float4 *w) {
    UNROLL for (int r = 0; r < R; r++) {
        float4 x = QUAD(given + r * APART(R));
        made[r].x += x.x * w[0].x, made[r].y += x.x * w[0].y;
        made[r].z += x.x * w[0].z, made[r].w += x.x * w[0].w;
        made[r].x += x.y * w[1].x, made[r].y += x.y * w[1].y;
        made[r].z += x.y * w[1].z, made[r].w += x.y * w[1].w;
        made[r].x += x.z * w[2].x, made[r].y += x.z * w[2].y;
        made[r].z += x.z * w[2].z, made[r].w += x.z * w[2].w;
        made[r].x += x.w * w[3].x, made[r].y += x.w * w[3].y;
        made[r].z += x.w * w[3].z, made[r].w += x.w * w[3].w;
    }
}

/* The sum of what `parts` parts made of four outputs. */
DEVICE float4 gathered(SHARED const float *made, int apart, int parts) {
    float4 s = QUAD(made);
    _Pragma("unroll 4") for (int p = 1; p < parts; p++) {
        float4 more = QUAD(made + p * apart);
        s = quad(s.x + more.x, s.y + more.y, s.z + more.z, s.w + more.w);
    }
    return s;
}

/* Puts four outputs of a row where they belong: see `product`. */
DEVICE void put(SHARED const Model *m, float4 s, GLOBAL float *to, float4 old, int ending) {
    int activation = m->activation;
    if (ending == GATE) {
        to[0] = activated(s.x, activation) * s.y;
        to[1] = activated(s.z, activation) * s.w;
        return;
    }
    if (ending == ADD) s = quad(old.x + s.x, old.y + s.y, old.z + s.z, old.w + s.w);
    if (ending == ACTIVATE)
        s = quad(activated(s.x, activation), activated(s.y, activation),
                 activated(s.z, activation), activated(s.w, activation));
    *(GLOBAL float4 *)to = s;
}

/* Outputs of `n` threads, four each, from output o0 of this block on; the inputs are split over as
 * many groups of n threads as there are. R, a constant, rows or fewer. See `product`. */
DEVICE void tile(const int R, SHARED const Model *m, GLOBAL const float *x, int inputs, int normed,
                 GLOBAL const float *w, GLOBAL const float *bias, GLOBAL float *y, int outputs,
                 int rows, int ending, int o0) {
    SHARED float *held = HELD_OF(m), *ring = RING_OF(m) + 4 * THREAD;
    int mine = outputs / TEAM, quads = inputs / 4, most = APART(R) / 4;
    int n = MIN(mine / 4 - o0 / 4, THREADS), parts = MIN(THREADS / n, quads);
    int part = THREAD / n, c = THREAD % n, o = o0 + 4 * c, k = part < parts ? part : quads;
    int width = ending == GATE ? 2 : 4, y_p = outputs / 4 * width, stage = 0;
    float4 made[ROWS], now[4], next[4], more = quad(0.0f, 0.0f, 0.0f, 0.0f), old = more;
    UNROLL for (int r = 0; r < R; r++) made[r] = more;
    if (o0) BARRIER;
    UNROLL for (int a = 0; a < AHEAD; a++) { /* weights do not wait for what others make */
        int then = k + a * parts;
        ask(ring + 16 * a * THREADS, w + (i64)4 * then * mine + o, mine, then < quads);
    }
    y += (RANK * mine + o) / 4 * width;
    if (part < parts) more = FAR_QUAD(bias + RANK * mine + o);
    if (part < MIN(parts, rows) && ending == ADD) old = FAR_QUAD(y + (i64)part * y_p);
    if (!o0) TEAM_WAIT;
    for (int from = 0; from < quads; from += most) {
        int until = MIN(from + most, quads);
        if (from) BARRIER;
        hold(R, m, held, x, inputs, from, until, normed, rows);
        if (from == 0) take(now, ring);
        for (; k < until; k += parts) { /* `now` is multiplied, `next` read, AHEAD on their way */
            int then = k + AHEAD * parts;
            ask(ring + 16 * stage * THREADS, w + (i64)4 * then * mine + o, mine, then < quads);
            stage = stage + 1 < AHEAD ? stage + 1 : 0;
            WAIT_FOR_COPIES(AHEAD - 1);
            take(next, ring + 16 * stage * THREADS);
            multiply(R, made, held + 4 * (k - from), now);
            UNROLL for (int i = 0; i < 4; i++) now[i] = next[i];
        }
    }
    BARRIER;
    if (part < parts) {
        UNROLL for (int r = 0; r < R; r++)
            *(SHARED float4 *)(held + 4 * ((part * R + r) * n + c)) = made[r];
    }
    BARRIER;
    if (part >= parts) return;
    for (int r = part; r < rows; r += parts) {
        GLOBAL float *to = y + (i64)r * y_p;
        if (r != part && ending == ADD) old = FAR_QUAD(to);
        float4 s = gathered(held + 4 * (r * n + c), 4 * n * R, parts);
        put(m, quad(s.x + more.x, s.y + more.y, s.z + more.z, s.w + more.w), to, old, ending);
    }
}

/* y = x W + b, or what `ending` says. x (rows, inputs) is normed first, or not; y (rows, outputs),
 * with GATE half as many: a gate and what it lets through stand side by side. At w: of every block
 * its part of W, (inputs, outputs / TEAM); then b. Returns where the next weights lie. Begins with a
 * TEAM_BARRIER; y is there after the next one. */
CALLED GLOBAL const float *product(SHARED const Model *m, GLOBAL const float *x, int inputs,
                                   int normed, GLOBAL const float *w, GLOBAL float *y, int outputs,
                                   int rows, int ending) {
    GLOBAL const float *bias = w + (i64)inputs * outputs;
    int mine = outputs / TEAM;
    IS_GLOBAL(x);
    IS_GLOBAL(w);
    IS_GLOBAL(y);
    m = ROOM_AT(const Model, m);
    w += (i64)RANK * inputs * mine;
    TEAM_ARRIVE;
    for (int o0 = 0; o0 < mine; o0 += 4 * THREADS) {
        if (rows == 1) tile(1, m, x, inputs, normed, w, bias, y, outputs, rows, ending, o0);
        else if (rows <= 4) tile(4, m, x, inputs, normed, w, bias, y, outputs, rows, ending, o0);
        else if (rows <= 8) tile(8, m, x, inputs, normed, w, bias, y, outputs, rows, ending, o0);
        else tile(ROWS, m, x, inputs, normed, w, bias, y, outputs, rows, ending, o0);
    }
    return bias + outputs;
}

/* -- attention ----------------------------------------------------------------------- */

/* Rotates the queries and keys of this block's heads, the first half of a head against the second,
 * and puts keys and values into the cache. */
DEVICE void keep(SHARED const Model *m, int layer) {
    int per = m->heads / m->groups, middle = m->size / 2, size = m->size_p, quads = size / 4;
    int pairs = *m->heads_here / per; /* of row and group */
    if (!m->learned)
        ALL(j, pairs * (per + 1) * middle) {
            int i = j % middle, h = j / middle % (per + 1);
            int pair = m->head[j / middle / (per + 1) * per], r = ITS_ROW(pair), g = ITS_GROUP(pair);
            int mine = h < per ? g * per + h : m->heads + g;
            GLOBAL float *head = m->qkv + (i64)r * m->qkv_p + mine * size;
            GLOBAL const float *turn = m->turns + (i64)m->where[r] * m->size;
            float a = head[i], b = head[i + middle], cosine = turn[i], sine = turn[i + middle];
            head[i] = a * cosine - b * sine;
            head[i + middle] = b * cosine + a * sine;
        }
    BARRIER;
    ALL(j, pairs * quads) {
        int pair = m->head[j / quads * per], q = j % quads, r = ITS_ROW(pair), g = ITS_GROUP(pair);
        GLOBAL const float *key = m->qkv + (i64)r * m->qkv_p + (m->heads + g) * size + 4 * q;
        i64 place = cached(m, m->slot[r], layer, g) + (i64)m->at[r] * size + 4 * q;
        *(GLOBAL float4 *)(m->keys + place) = FAR_QUAD(key);
        *(GLOBAL float4 *)(m->values + place) = FAR_QUAD(key + m->groups * size);
    }
    BARRIER;
}

/* How many threads share a token. */
DEVICE int together(SHARED const Model *m) {
    int quads = m->size_p / 4, n = quads <= 8 ? 8 : quads <= 16 ? 16 : 32;
    return MIN(n, LINE);
}

/* Quad q of STEPS tokens from `first` on, `apart` from each other, the last one in place of those
 * behind it. */
DEVICE void load(float4 some[STEPS], SHARED const Model *m, GLOBAL const float *from, int first,
                 int apart, int tokens, int q) {
    q = MIN(q, m->size_p / 4 - 1);
    UNROLL for (int i = 0; i < STEPS; i++)
        some[i] = FAR_QUAD(from + (i64)MIN(first + i * apart, tokens - 1) * m->size_p + 4 * q);
}

/* Softmax attention of one query over every WAYS-th run of the tokens, by a line of threads, of which
 * `share`, a constant, share a token: leaves the sum of e^(score - top) * value, then top and the sum
 * of e^(score - top). */
DEVICE void attend_way(const int share, SHARED const Model *m, GLOBAL const float *query,
                       GLOBAL const float *keys, GLOBAL const float *values, int tokens, int way,
                       SHARED float *to) {
    int lane = THREAD % LINE, l = lane % share, row = lane / share;
    int apart = LINE / share, run = STEPS * apart, quads = m->size_p / 4;
    IS_GLOBAL(query);
    IS_GLOBAL(keys);
    IS_GLOBAL(values);
    SHARED float *scores = m->line + THREAD / LINE * LINE;
    float top = -INFINITY_F, total = 0.0f;
    for (int first = way * run, begun = 0; first < tokens; first += WAYS * run, begun = 1) {
        float4 some[STEPS], value[STEPS];
        float s[STEPS], best = top, more = 0.0f;
        UNROLL for (int i = 0; i < STEPS; i++) s[i] = 0.0f;
        load(value, m, values, first + row, apart, tokens, l);
        for (int q = l; q < quads; q += share) {
            float4 x = FAR_QUAD(query + 4 * q);
            load(some, m, keys, first + row, apart, tokens, q);
            UNROLL for (int i = 0; i < STEPS; i++)
                s[i] += x.x * some[i].x + x.y * some[i].y + x.z * some[i].z + x.w * some[i].w;
        }
        UNROLL for (int i = 0; i < STEPS; i++) { /* threads that share a token know its score */
            s[i] = sum_of(s[i], share, scores);
            if (first + i * apart + row >= tokens) s[i] = -INFINITY_F;
            best = MAX(s[i], best);
        }
        best = largest_of(best, LINE, scores);
        float by = begun ? EXP(top - best) : 0.0f;
        UNROLL for (int i = 0; i < STEPS; i++) more += s[i] = EXP(s[i] - best);
        total = total * by + sum_apart(more, share, scores);
        for (int q = l; q < UP(quads, share); q += share) {
            float4 y = quad(0.0f, 0.0f, 0.0f, 0.0f);
            if (q != l) load(value, m, values, first + row, apart, tokens, q);
            UNROLL for (int i = 0; i < STEPS; i++) {
                y.x += s[i] * value[i].x, y.y += s[i] * value[i].y;
                y.z += s[i] * value[i].z, y.w += s[i] * value[i].w;
            }
            y = quad(sum_apart(y.x, share, scores), sum_apart(y.y, share, scores),
                     sum_apart(y.z, share, scores), sum_apart(y.w, share, scores));
            if (row || q >= quads) continue;
            float4 old = quad(0.0f, 0.0f, 0.0f, 0.0f);
            if (begun) old = QUAD(to + 4 * q);
            *(SHARED float4 *)(to + 4 * q) = quad(old.x * by + y.x, old.y * by + y.y,
                                                  old.z * by + y.z, old.w * by + y.w);
        }
        top = best;
    }
    if (lane == 0) to[m->size_p] = top, to[m->size_p + 1] = total;
}

/* Softmax attention of heads first .. first + now of this block over their own sequences up to
 * themselves, in WAYS parts each, which lines of threads take in turns. `share` is a constant. */
DEVICE void attend_ways(const int share, SHARED const Model *m, int layer, int first, int now,
                        int each) {
    int run = STEPS * (LINE / share), size = m->size_p;
    for (int way = 0, n = THREAD / LINE;; n += LINES) {
        for (; n >= now && way < WAYS; n -= now) way++;
        if (way == WAYS) break;
        int head = m->head[first + n], r = ITS_ROW(head), tokens = m->at[r] + 1;
        if (way * run >= tokens) continue;
        i64 place = cached(m, m->slot[r], layer, ITS_GROUP(head));
        attend_way(share, m, m->qkv + (i64)r * m->qkv_p + ITS_HEAD(head) * size, m->keys + place,
                   m->values + place, tokens, way, HELD_OF(m) + n * each + way * (size + 4));
    }
}

/* Puts together what the ways have made of heads first .. first + now. */
DEVICE void combine(SHARED const Model *m, int first, int now, int each) {
    int size = m->size_p, quads = size / 4, run = STEPS * (LINE / together(m));
    ALL(j, now * quads) {
        int n = j / quads, q = j % quads, head = m->head[first + n], r = ITS_ROW(head);
        int ways = MIN(WAYS, (m->at[r] + run) / run);
        SHARED const float *of = HELD_OF(m) + n * each;
        float top = of[size], total = 0.0f;
        float4 y = quad(0.0f, 0.0f, 0.0f, 0.0f);
        for (int w = 1; w < ways; w++) top = MAX(of[w * (size + 4) + size], top);
        for (int w = 0; w < ways; w++, of += size + 4) {
            float by = EXP(of[size] - top);
            float4 v = QUAD(of + 4 * q);
            y = quad(y.x + by * v.x, y.y + by * v.y, y.z + by * v.z, y.w + by * v.w);
            total += by * of[size + 1];
        }
        *(GLOBAL float4 *)(m->attended + (i64)r * m->mix + ITS_HEAD(head) * size + 4 * q) =
            quad(y.x / total, y.y / total, y.z / total, y.w / total);
    }
}

/* Softmax attention of every head of this block over its own sequence up to itself. Queries come
 * scaled. */
CALLED void attend(SHARED const Model *m, int layer) {
    TEAM_BARRIER;
    m = ROOM_AT(const Model, m);
    keep(m, layer);
    int each = WAYS * (m->size_p + 4), count = *m->heads_here, most = HELD / each;
    int share = together(m);
    for (int first = 0; first < count; first += most) {
        int now = MIN(most, count - first);
        if (share == 8) attend_ways(MIN(8, LINE), m, layer, first, now, each);
        else if (share == 16) attend_ways(MIN(16, LINE), m, layer, first, now, each);
        else attend_ways(LINE, m, layer, first, now, each);
        BARRIER;
        combine(m, first, now, each);
        BARRIER;
    }
}

/* -- one pass ----------------------------------------------------------------------- */

/* Reads `rows` tokens into the cache and leaves what the head reads in m->x, for this block what it
 * has made of it until the next TEAM_BARRIER. Tokens of a sequence must come in order, within a
 * pass or over several. Returns the weights of the head. */
CALLED GLOBAL const float *forward(SHARED const Model *m, int rows) {
    GLOBAL const float *w = m->layer;
    int width = m->width_p, mine = width / TEAM;
    ALL(j, rows * mine) {
        int r = j / mine, i = RANK * mine + j % mine;
        float x = m->embedding[(i64)m->token[r] * width + i];
        m->x[(i64)r * width + i] = m->learned ? x + m->position[(i64)m->where[r] * width + i] : x;
    }
    for (int layer = 0; layer < m->layers; layer++) {
        int inner = m->gated ? 2 * m->hidden_p : m->hidden_p;
        w = product(m, m->x, width, 1, w, m->qkv, m->qkv_p, rows, PUT);
        attend(m, layer);
        w = product(m, m->attended, m->mix, 0, w, m->x, width, rows, ADD);
        w = product(m, m->x, width, 1, w, m->middle, inner, rows, m->gated ? GATE : ACTIVATE);
        w = product(m, m->middle, m->hidden_p, 0, w, m->x, width, rows, ADD);
    }
    BARRIER;
    return w;
}

/* Logits of what `forward` left, for the whole team. */
DEVICE void predict(SHARED const Model *m, GLOBAL const float *head, int rows) {
    product(m, m->x, m->width_p, 1, head, m->logits, m->words_p, rows, PUT);
    TEAM_BARRIER;
}

/* How words are sampled; top_k 0, top_p 1 and min_p 0 cut nothing off. Temperature 0 is greedy. */
typedef struct {
    float temperature, top_p, min_p;
    int top_k;
} Taste;

/* -- choosing ----------------------------------------------------------------------- */

/* The highest of the logits; NaN counts for nothing. */
CALLED float most(SHARED const Model *m, GLOBAL const float *x) {
    float top = -INFINITY_F;
    ALL(v, m->words) top = MAX(x[v], top);
    return largest(top, HELD_OF(m));
}

/* The first word with the number x, the last word of all where there is none. */
CALLED int first_with(SHARED const Model *m, GLOBAL const float *numbers, float x, int after) {
    float found = -INFINITY_F; /* words are below 2^24: a float holds them exactly */
    ALL(v, m->words) if (v > after && numbers[v] == x) found = MAX(-(float)v, found);
    found = largest(found, HELD_OF(m));
    return found == -INFINITY_F ? m->words - 1 : (int)-found;
}

/* log P(word) under the model itself: temperature 1. `top` is the highest of the logits. */
DEVICE float logprob_of(SHARED const Model *m, GLOBAL const float *logits, float top, int word) {
    float total = 0.0f;
    ALL(v, m->words) total += EXP(logits[v] - top);
    return logits[word] - top - LOG(sum(total, HELD_OF(m)));
}

/* The word at `draw` of the whole, the words standing in their own order: a thread has a run of
 * neighbours, and the one whose run the draw falls into looks for the word. */
CALLED int among_all(SHARED const Model *m, GLOBAL const float *chances, double draw) {
    SHARED double *sums = (SHARED double *)HELD_OF(m);
    SHARED int *chosen = (SHARED int *)(sums + THREADS);
    int each = (m->words + THREADS - 1) / THREADS, from = MIN(THREAD * each, m->words);
    int to = MIN(from + each, m->words);
    double mine = 0, before = 0, total = 0;
    for (int v = from; v < to; v++) mine += chances[v];
    BARRIER;
    sums[THREAD] = mine;
    if (THREAD == 0) *chosen = m->words - 1;
    BARRIER;
    for (int i = 0; i < THREADS; i++) {
        if (i == THREAD) before = total;
        total += sums[i];
    }
    draw *= total;
    if (before <= draw && draw < before + mine) {
        int v = from;
        while (v < to - 1 && !((before += chances[v]) > draw)) v++;
        *chosen = v;
    }
    BARRIER;
    int word = *chosen;
    BARRIER;
    return word;
}

/* The word at `draw` of those that top_k, then top_p of what is left, then min_p let through (see
 * gpt.c), found one after the other, the most probable first. */
CALLED int among_top(SHARED const Model *m, GLOBAL const float *chances, const Taste *taste,
                     double draw) {
    int both = taste->top_k && taste->top_p < 1.0f;
    double total = 0, edge = 0;
    float chance = INFINITY_F, last = 0.0f, least = 0.0f;
    int word = -1, kept = 0;
    for (; kept < m->words; kept++) {
        int next = first_with(m, chances, chance, word); /* another word as probable as the last */
        if (kept == 0 || next <= word || chances[next] != chance) {
            float top = -INFINITY_F;
            ALL(v, m->words) if (chances[v] < chance) top = MAX(chances[v], top);
            chance = largest(top, HELD_OF(m));
            next = first_with(m, chances, chance, -1);
        }
        if (chances[next] != chance) break; /* NaN everywhere */
        if (kept && taste->top_k && kept >= taste->top_k && chance < last) break;
        if (kept && !taste->top_k && taste->top_p < 1.0f &&
            !((float)(total + chance) - chance < taste->top_p))
            break;
        if (!kept) least = taste->min_p * chance;
        if (!both && chance < least) break;
        word = next, last = chance;
        total += chance;
        if (THREAD == 0) m->picks[kept] = word;
    }
    BARRIER;
    if (both) { /* top_p of what top_k left, before min_p */
        double limit = taste->top_p * total;
        int all = kept;
        for (kept = 0, total = 0; kept < all && (!kept || total < limit); kept++)
            total += chances[m->picks[kept]];
        while (kept > 1 && chances[m->picks[kept - 1]] < least) total -= chances[m->picks[--kept]];
    }
    word = kept ? m->picks[kept - 1] : m->words - 1;
    for (int i = 0; i < kept; i++)
        if ((edge += chances[m->picks[i]]) > draw * total) {
            word = m->picks[i];
            break;
        }
    BARRIER;
    return word;
}

/* The next word, for `draw` uniform in [0, 1). `top` is the highest of the logits. */
DEVICE int choose(SHARED const Model *m, GLOBAL const float *logits, float top, const Taste *taste,
                  double draw) {
    GLOBAL float *chances = m->chances;
    float total = 0.0f;
    if (taste->temperature == 0.0f) {
        int word = first_with(m, logits, top, -1);
        return logits[word] == top ? word : 0;
    }
    float by = 1.0f / taste->temperature;
    ALL(v, m->words) total += chances[v] = EXP((logits[v] - top) * by);
    total = sum(total, HELD_OF(m));
    ALL(v, m->words) chances[v] /= total;
    BARRIER;
    int whole = taste->top_p >= 1.0f && !taste->top_k && taste->min_p == 0.0f;
    return whole ? among_all(m, chances, draw) : among_top(m, chances, taste, draw);
}

/* -- kernels ------------------------------------------------------------------------ */

/* The first of the groups of a sequence's heads that this block attends to, every TEAM-th from there
 * on: a group stays with a block. */
DEVICE int first_group(int slot, int groups) { return (RANK + TEAM - slot * groups % TEAM) % TEAM; }

/* A row of the next pass, whose heads in this block stand from `count` on. Returns where others
 * stand. */
DEVICE int add(SHARED const Model *m, int row, int token, int where, int slot, int at, int count) {
    int groups = m->groups, per = m->heads / groups;
    SHARED int *head = m->head;
    m->token[row] = token, m->where[row] = where, m->slot[row] = slot, m->at[row] = at;
    for (int g = first_group(slot, groups); g < groups; g += TEAM)
        for (int h = g * per; h < (g + 1) * per; h++) head[count++] = HEAD_OF(row, g, h);
    return count;
}

/* One more row, after those there are. */
DEVICE int added(SHARED const Model *m, int row, int token, int where, int slot, int at) {
    if (THREAD == 0)
        *m->heads_here = add(m, row, token, where, slot, at, row ? *m->heads_here : 0);
    return row + 1;
}

/* How many of the first `live` sequences go on, and how many of their heads this block attends to. */
DEVICE int going_on(SHARED const Model *m, int live, int *heads) {
    int groups = m->groups, rows = 0, all = 0;
    for (int a = 0; a < live; a++) {
        int left = groups - first_group(m->was[a], groups);
        if (m->next[a] < 0) continue;
        all += (left + TEAM - 1) / TEAM, rows++;
    }
    *heads = all * (m->heads / groups);
    return rows;
}

/* A row for every sequence that goes on after its word number i; they stay alive. Returns how many
 * there are. */
DEVICE int follow(SHARED const Model *m, int live, int i) {
    int heads, rows = going_on(m, live, &heads);
    if (THREAD == 0) *m->heads_here = heads;
    ALL(a, live) {
        int s = m->was[a], row = going_on(m, a, &heads);
        if (m->next[a] < 0) continue;
        add(m, row, m->word[a], m->next[a], s, m->length[s] + i, heads);
        m->live[row] = s;
    }
    BARRIER;
    return rows;
}

/* Gives a slot what another has read: the first `tokens` tokens. */
DEVICE void share(SHARED const Model *m, int from, int to, int tokens) {
    int each = tokens * m->size_p;
    for (int layer = 0; layer < m->layers; layer++)
        for (int g = 0; g < m->groups; g++) {
            i64 source = cached(m, from, layer, g), place = cached(m, to, layer, g);
            if ((to * m->groups + g) % TEAM == RANK)
                ALL(j, each) {
                    m->keys[place + j] = m->keys[source + j];
                    m->values[place + j] = m->values[source + j];
                }
        }
}

/* Copies what this block has made of a row. */
DEVICE void copy(SHARED const Model *m, GLOBAL const float *from, GLOBAL float *to) {
    int mine = m->width_p / TEAM;
    ALL(i, mine) to[RANK * mine + i] = from[RANK * mine + i];
}

/* Answers prompts. Team b owns the sequences edges[b] .. edges[b + 1]. Sequence s has the prompt
 * tokens[starts[s] .. starts[s + 1]] and shares that of sequence source[s] <= s of its team.
 * said (sequences, longest) gets `counts` tokens each, the end included; counts is -1 where a
 * position lies beyond the table. `logprob` is a sum of doubles. `end` -1 never comes. */
KERNEL generate(GLOBAL const int *shape, GLOBAL const float *weights, GLOBAL const float *turns,
                float epsilon, GLOBAL const int *tokens, GLOBAL const int *where,
                GLOBAL const int *starts, GLOBAL const int *source, GLOBAL const int *edges,
                GLOBAL float *memory, GLOBAL int *notes, GLOBAL const i64 *each, int slots, int span,
                GLOBAL const double *draws, float temperature, float top_p, int top_k, float min_p,
                int longest, int end,
                GLOBAL int *said, GLOBAL int *counts, GLOBAL double *logprob ROOM_ARGUMENT) {
    ROOM;
    SHARED const Model *m =
        opened(shape, weights, turns, epsilon, slots, span, memory, notes, each, room);
    Taste taste = {temperature, top_p, min_p, top_k};
    GLOBAL const float *head = 0;
    int first = edges[BLOCK / TEAM], count = edges[BLOCK / TEAM + 1] - first, rows = 0;
    int width = m->width_p;
    for (int s = 0; s < count; s++) { /* read every prompt once */
        int from = starts[first + s], length = starts[first + s + 1] - from;
        if (source[first + s] != first + s) length = 0;
        for (int t = 0; t <= length; t++) {
            if (rows && (rows == ROWS || (s == count - 1 && t == length))) {
                BARRIER;
                head = forward(m, rows);
                for (int r = 0; r < rows; r++) { /* what comes last in a prompt stays */
                    int it = first + m->slot[r];
                    if (m->at[r] + 1 == starts[it + 1] - starts[it])
                        copy(m, m->x + (i64)r * width, m->last + (i64)m->slot[r] * width);
                }
                BARRIER;
                rows = 0;
            }
            if (t < length) rows = added(m, rows, tokens[from + t], where[from + t], s, t);
        }
    }
    TEAM_BARRIER;
    for (int s = 0; s < count; s++) {
        int it = first + s, other = source[it] - first;
        if (other != s) share(m, other, s, starts[it + 1] - starts[it]);
        copy(m, m->last + (i64)other * width, m->x + (i64)s * width);
        if (THREAD == 0) {
            m->live[s] = s, m->length[s] = starts[it + 1] - starts[it];
            m->begin[s] = where[starts[it + 1] - 1] + 1;
        }
        if (THREAD == 0 && RANK == 0) logprob[it] = 0;
    }
    BARRIER;
    for (int i = 0, live = count; live; i++) {
        predict(m, head, live);
        for (int a = RANK; a < live; a += TEAM) {
            int it = first + m->live[a];
            GLOBAL const float *logits = m->logits + (i64)a * m->words_p;
            float top = most(m, logits);
            double draw = temperature == 0.0f ? 0 : draws[(i64)it * longest + i];
            int word = choose(m, logits, top, &taste, draw);
            float chance = logprob_of(m, logits, top, word);
            if (THREAD == 0) logprob[it] += chance, said[(i64)it * longest + i] = word;
        }
        TEAM_BARRIER;
        ALL(a, live) { /* what was chosen, and at which position it stands: -1 where nothing follows */
            int s = m->was[a] = m->live[a], it = first + s, word = said[(i64)it * longest + i];
            int next = m->begin[s] + i, more = word != end && i + 1 < longest;
            if (RANK == 0) counts[it] = more && next >= m->places ? -1 : i + 1;
            m->word[a] = word, m->next[a] = more && next < m->places ? next : -1;
        }
        BARRIER;
        live = follow(m, live, i);
        if (live) forward(m, live);
    }
}

/* Log-probability of tokens[starts[s] + begins[s] .. starts[s + 1]] after what stands before. No
 * row takes tokens from another. */
KERNEL score(GLOBAL const int *shape, GLOBAL const float *weights, GLOBAL const float *turns,
             float epsilon, GLOBAL const int *tokens, GLOBAL const int *where,
             GLOBAL const int *starts, GLOBAL const int *source, GLOBAL const int *edges,
             GLOBAL float *memory, GLOBAL int *notes, GLOBAL const i64 *each, int slots, int span,
             GLOBAL const int *begins, GLOBAL double *logprob ROOM_ARGUMENT) {
    ROOM;
    SHARED const Model *m =
        opened(shape, weights, turns, epsilon, slots, span, memory, notes, each, room);
    int first = edges[BLOCK / TEAM], count = edges[BLOCK / TEAM + 1] - first, rows = 0;
    ALL(s, count) if (s % TEAM == RANK) logprob[first + s] = 0;
    BARRIER;
    for (int s = 0; s < count; s++) {
        int from = starts[first + s], length = starts[first + s + 1] - from - 1;
        for (int t = 0; t <= length; t++) { /* nothing comes after the last token */
            if (rows && (rows == ROWS || (s == count - 1 && t == length))) {
                BARRIER;
                predict(m, forward(m, rows), rows);
                for (int r = 0; r < rows; r++) {
                    int it = first + m->slot[r], next = m->at[r] + 1;
                    if (m->slot[r] % TEAM != RANK || next < begins[it]) continue;
                    GLOBAL const float *logits = m->logits + (i64)r * m->words_p;
                    float chance = logprob_of(m, logits, most(m, logits), tokens[starts[it] + next]);
                    if (THREAD == 0) logprob[it] += chance;
                }
                BARRIER;
                rows = 0;
            }
            if (t < length) rows = added(m, rows, tokens[from + t], where[from + t], s, t);
        }
    }
}
