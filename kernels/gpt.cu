/* Causal language models on a GPU: GPT-2 and Llama, prefill, cache, sampling and scores, float32.
 *
 * One launch answers all prompts. A block of threads owns a few sequences: it reads their prompts
 * and writes token after token until every answer has ended, so nothing waits for the processor
 * between tokens. That suits small models, whose weights stay in the GPU's cache. `forward` is the
 * only pass through the model; its rows are tokens of any of the block's sequences.
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
#define THREADS 512
#endif
#include "simt.h"

#ifdef __OPENCL_VERSION__
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif

#define ROWS 8    /* tokens in one pass, and sequences of a block, at most */
#define CHUNK 128 /* inputs of a product that are held in shared memory */
#define LINE MIN(32, THREADS) /* threads that share a row */
#define TILE MIN(64, THREADS) /* outputs of a product at a time */
#define PARTS (THREADS / TILE)
#define ALL(i, n) for (int i = THREAD; i < (n); i += THREADS)

enum { GELU_TANH, RELU, SILU }; /* activations, in the order of ACTIVATIONS in gpt.py */

typedef struct {
    int layers, width, heads, groups, size, hidden, words, places, rms, gated, activation, learned;
    int slots, span, mix, qkv_p, middle_p;
    float epsilon;
    GLOBAL const float *embedding, *position, *layer; /* weights, in this order */
    GLOBAL const float *turns;                        /* (places, 2, size / 2): cos and sin */
    GLOBAL float *x, *n, *qkv, *attended, *middle, *last, *logits, *scores;
    GLOBAL float *keys, *values; /* (slot, layer, group) of (size, span) and (span, size) */
    GLOBAL int *token, *slot, *at, *where, *live, *picks;
    SHARED float *room;
} Model;

/* Lays the model over its weights and the memory of one block; gpt_gpu.py's `room` counts it. */
DEVICE Model opened(GLOBAL const int *shape, GLOBAL const float *weights,
                    GLOBAL const float *turns, float epsilon, int slots, int span,
                    GLOBAL float *memory, GLOBAL int *notes, SHARED float *room) {
    Model m;
    m.layers = shape[0], m.width = shape[1], m.heads = shape[2], m.groups = shape[3];
    m.size = shape[4], m.hidden = shape[5], m.words = shape[6], m.places = shape[7];
    m.rms = shape[8], m.gated = shape[9], m.activation = shape[10], m.learned = shape[11];
    m.slots = slots, m.span = span, m.epsilon = epsilon, m.turns = turns, m.room = room;
    m.mix = m.heads * m.size, m.qkv_p = m.mix + 2 * m.groups * m.size;
    m.middle_p = m.gated ? 2 * m.hidden : m.hidden;
    m.embedding = weights, m.position = weights + (i64)m.words * m.width;
    m.layer = m.position + (m.learned ? (i64)shape[12] * m.width : 0);
    m.x = memory, m.n = m.x + ROWS * m.width, m.last = m.n + ROWS * m.width;
    m.qkv = m.last + ROWS * m.width, m.attended = m.qkv + ROWS * m.qkv_p;
    m.middle = m.attended + ROWS * m.mix, m.logits = m.middle + ROWS * m.middle_p;
    m.scores = m.logits + (i64)(ROWS + 1) * m.words, m.keys = m.scores + (i64)ROWS * m.heads * span;
    m.values = m.keys + (i64)slots * m.layers * m.groups * m.size * span;
    m.token = notes, m.slot = notes + ROWS, m.at = notes + 2 * ROWS, m.where = notes + 3 * ROWS;
    m.live = notes + 4 * ROWS, m.picks = notes + 5 * ROWS;
    return m;
}

/* Which (slot, layer, group) of the cache. */
DEVICE i64 cached(const Model *m, int slot, int layer, int group) {
    return (((i64)slot * m->layers + layer) * m->groups + group) * m->size * m->span;
}

/* -- of the whole block ------------------------------------------------------------- */

CALLED float largest(float x, SHARED float *room) {
    x = largest_of(x, LINE, room);
    BARRIER;
    if (THREAD % LINE == 0) room[THREAD / LINE] = x;
    BARRIER;
    for (int i = 0; i < THREADS / LINE; i++) x = MAX(room[i], x);
    BARRIER;
    return x;
}

CALLED float sum(float x, SHARED float *room) {
    x = sum_of(x, LINE, room);
    BARRIER;
    if (THREAD % LINE == 0) room[THREAD / LINE] = x;
    BARRIER;
    x = 0.0f;
    for (int i = 0; i < THREADS / LINE; i++) x += room[i];
    BARRIER;
    return x;
}

/* -- one pass ----------------------------------------------------------------------- */

/* y = x W + b, or y += x W + b. x (rows, inputs) at stride x_p, y (rows, outputs) at stride y_p. At
 * w: W (inputs, outputs), then b. Returns where the next weights lie. A thread has one output and
 * one of PARTS parts of the inputs. */
CALLED GLOBAL const float *product(GLOBAL const float *x, int x_p, int inputs,
                                   GLOBAL const float *w, GLOBAL float *y, int y_p, int outputs,
                                   int rows, int add, SHARED float *room) {
    GLOBAL const float *bias = w + (i64)inputs * outputs;
    SHARED float *given = room, *parts = room + ROWS * CHUNK;
    int o = THREAD % TILE, part = THREAD / TILE;
    for (int o0 = 0; o0 < outputs; o0 += TILE) {
        float made[ROWS];
        for (int r = 0; r < ROWS; r++) made[r] = 0.0f;
        for (int i0 = 0; i0 < inputs; i0 += CHUNK) {
            int n = MIN(CHUNK, inputs - i0);
            BARRIER;
            ALL(j, ROWS * CHUNK) {
                int r = j / CHUNK, i = j % CHUNK;
                given[j] = r < rows && i < n ? x[(i64)r * x_p + i0 + i] : 0.0f;
            }
            BARRIER;
            if (o0 + o < outputs)
                for (int i = part; i < n; i += PARTS) {
                    float weight = w[(i64)(i0 + i) * outputs + o0 + o];
                    for (int r = 0; r < ROWS; r++) made[r] += given[r * CHUNK + i] * weight;
                }
        }
        for (int r = 0; r < ROWS; r++) parts[(part * ROWS + r) * TILE + o] = made[r];
        BARRIER;
        ALL(j, rows * TILE) {
            int r = j / TILE, c = j % TILE;
            if (o0 + c < outputs) {
                GLOBAL float *to = y + (i64)r * y_p + o0 + c;
                float s = bias[o0 + c];
                for (int p = 0; p < PARTS; p++) s += parts[(p * ROWS + r) * TILE + c];
                *to = add ? *to + s : s;
            }
        }
    }
    BARRIER;
    return bias + outputs;
}

/* n = (x - mean) / deviation * scale + shift; RMSNorm takes 0 for the mean. A line of threads a row. */
CALLED GLOBAL const float *normed(const Model *m, GLOBAL const float *w, int rows) {
    GLOBAL const float *scale = w, *shift = w + m->width;
    int lane = THREAD % LINE;
    for (int first = 0; first < rows; first += THREADS / LINE) {
        int r = first + THREAD / LINE, width = r < rows ? m->width : 0;
        GLOBAL const float *x = m->x + (i64)r * m->width;
        float mean = 0.0f, square = 0.0f;
        for (int i = lane; i < width; i += LINE) mean += x[i];
        mean = m->rms ? 0.0f : sum_of(mean, LINE, m->room) / m->width;
        for (int i = lane; i < width; i += LINE) square += (x[i] - mean) * (x[i] - mean);
        square = sum_of(square, LINE, m->room);
        float by = 1.0f / ROOT(square / m->width + m->epsilon);
        for (int i = lane; i < width; i += LINE)
            m->n[(i64)r * m->width + i] = (x[i] - mean) * by * scale[i] + shift[i];
    }
    BARRIER;
    return shift + m->width;
}

/* Rotates the queries and keys of all rows, the first half of a head against the second, and puts
 * keys and values into the cache. */
DEVICE void keep(const Model *m, int layer, int rows) {
    int middle = m->size / 2, turned = m->heads + m->groups, each = m->groups * m->size;
    if (!m->learned)
        ALL(j, rows * turned * middle) {
            int i = j % middle, h = j / middle % turned, r = j / middle / turned;
            GLOBAL float *head = m->qkv + (i64)r * m->qkv_p + h * m->size;
            GLOBAL const float *turn = m->turns + (i64)m->where[r] * m->size;
            float a = head[i], b = head[i + middle], cosine = turn[i], sine = turn[i + middle];
            head[i] = a * cosine - b * sine;
            head[i + middle] = b * cosine + a * sine;
        }
    BARRIER;
    ALL(j, rows * each) {
        int i = j % m->size, g = j % each / m->size, r = j / each;
        GLOBAL const float *key = m->qkv + (i64)r * m->qkv_p + m->mix + j % each;
        i64 place = cached(m, m->slot[r], layer, g);
        m->keys[place + (i64)i * m->span + m->at[r]] = key[0];
        m->values[place + (i64)m->at[r] * m->size + i] = key[each];
    }
    BARRIER;
}

/* Softmax attention of every row over its own sequence up to itself. Queries come scaled. */
DEVICE void attend(const Model *m, int layer, int rows) {
    int per = m->heads / m->groups, pairs = rows * m->heads, size = m->size, span = m->span;
    ALL(j, pairs * span) {
        int t = j % span, h = j / span % m->heads, r = j / span / m->heads;
        if (t <= m->at[r]) {
            GLOBAL const float *query = m->qkv + (i64)r * m->qkv_p + h * size;
            GLOBAL const float *keys = m->keys + cached(m, m->slot[r], layer, h / per) + t;
            float s = 0.0f;
            for (int i = 0; i < size; i++) s += query[i] * keys[(i64)i * span];
            m->scores[j] = s;
        }
    }
    BARRIER;
    for (int first = 0; first < pairs; first += THREADS / LINE) { /* a line a pair */
        int pair = first + THREAD / LINE, lane = THREAD % LINE;
        int tokens = pair < pairs ? m->at[pair / m->heads] + 1 : 0;
        GLOBAL float *scores = m->scores + (i64)pair * span;
        float top = -INFINITY_F, total = 0.0f;
        for (int t = lane; t < tokens; t += LINE) top = MAX(scores[t], top);
        top = largest_of(top, LINE, m->room);
        for (int t = lane; t < tokens; t += LINE) total += scores[t] = EXP(scores[t] - top);
        total = sum_of(total, LINE, m->room);
        for (int t = lane; t < tokens; t += LINE) scores[t] /= total;
    }
    BARRIER;
    ALL(j, pairs * size) {
        int i = j % size, h = j / size % m->heads, r = j / size / m->heads;
        GLOBAL const float *shares = m->scores + (i64)(j / size) * span;
        GLOBAL const float *values = m->values + cached(m, m->slot[r], layer, h / per) + i;
        float y = 0.0f;
        for (int t = 0; t <= m->at[r]; t++) y += shares[t] * values[(i64)t * size];
        m->attended[(i64)r * m->mix + h * size + i] = y;
    }
    BARRIER;
}

/* SiLU is x * sigmoid(x), GELU (tanh form) x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
DEVICE float activated(float x, int activation) {
    if (activation == RELU) return x > 0.0f ? x : 0.0f;
    float u = activation == SILU ? x : x * 1.5957691216f * (x * x * 0.044715f + 1.0f);
    return x / (1.0f + EXP(-u));
}

/* Reads `rows` tokens into the cache and leaves what the head reads in m->n. Tokens of a sequence
 * must come in order, within a pass or over several. Returns the weights of the head. */
CALLED GLOBAL const float *forward(const Model *m, int rows) {
    GLOBAL const float *w = m->layer;
    int width = m->width, hidden = m->hidden;
    ALL(j, rows * width) {
        int r = j / width, i = j % width;
        float x = m->embedding[(i64)m->token[r] * width + i];
        m->x[j] = m->learned ? x + m->position[(i64)m->where[r] * width + i] : x;
    }
    BARRIER;
    for (int layer = 0; layer < m->layers; layer++) {
        w = normed(m, w, rows);
        w = product(m->n, width, width, w, m->qkv, m->qkv_p, m->qkv_p, rows, 0, m->room);
        keep(m, layer, rows);
        attend(m, layer, rows);
        w = product(m->attended, m->mix, m->mix, w, m->x, width, width, rows, 1, m->room);
        w = normed(m, w, rows);
        w = product(m->n, width, width, w, m->middle, m->middle_p, m->middle_p, rows, 0, m->room);
        ALL(j, rows * hidden) {
            GLOBAL float *x = m->middle + (i64)(j / hidden) * m->middle_p + j % hidden;
            float y = activated(x[0], m->activation);
            x[0] = m->gated ? y * x[hidden] : y;
        }
        w = product(m->middle, m->middle_p, hidden, w, m->x, width, width, rows, 1, m->room);
    }
    return normed(m, w, rows);
}

DEVICE void predict(const Model *m, GLOBAL const float *head, int rows) {
    product(m->n, m->width, m->width, head, m->logits, m->words, m->words, rows, 0, m->room);
}

/* How words are sampled; top_k 0, top_p 1 and min_p 0 cut nothing off. Temperature 0 is greedy. */
typedef struct {
    float temperature, top_p, min_p;
    int top_k;
} Taste;

/* -- choosing ----------------------------------------------------------------------- */

/* The highest of the logits; NaN counts for nothing. */
CALLED float most(const Model *m, GLOBAL const float *x) {
    float top = -INFINITY_F;
    ALL(v, m->words) top = MAX(x[v], top);
    return largest(top, m->room);
}

/* The first word with the number x, the last word of all where there is none. */
CALLED int first_with(const Model *m, GLOBAL const float *numbers, float x, int after) {
    float found = -INFINITY_F; /* words are below 2^24: a float holds them exactly */
    ALL(v, m->words) if (v > after && numbers[v] == x) found = MAX(-(float)v, found);
    found = largest(found, m->room);
    return found == -INFINITY_F ? m->words - 1 : (int)-found;
}

/* log P(word) under the model itself: temperature 1. */
DEVICE float logprob_of(const Model *m, GLOBAL const float *logits, int word) {
    float top = most(m, logits), total = 0.0f;
    ALL(v, m->words) total += EXP(logits[v] - top);
    return logits[word] - top - LOG(sum(total, m->room));
}

/* The word at `draw` of the whole, the words standing in their own order: a thread has a run of
 * neighbours, and the one whose run the draw falls into looks for the word. */
CALLED int among_all(const Model *m, GLOBAL const float *chances, double draw) {
    SHARED double *sums = (SHARED double *)m->room;
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
CALLED int among_top(const Model *m, GLOBAL const float *chances, const Taste *taste, double draw) {
    int both = taste->top_k && taste->top_p < 1.0f;
    double total = 0, edge = 0;
    float chance = INFINITY_F, last = 0.0f, least = 0.0f;
    int word = -1, kept = 0;
    for (; kept < m->words; kept++) {
        int next = first_with(m, chances, chance, word); /* another word as probable as the last */
        if (kept == 0 || next <= word || chances[next] != chance) {
            float top = -INFINITY_F;
            ALL(v, m->words) if (chances[v] < chance) top = MAX(chances[v], top);
            chance = largest(top, m->room);
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

/* The next word, for `draw` uniform in [0, 1). `chances` is room for as many numbers as there are
 * words. */
DEVICE int choose(const Model *m, GLOBAL const float *logits, GLOBAL float *chances,
                  const Taste *taste, double draw) {
    float top = most(m, logits), total = 0.0f;
    if (taste->temperature == 0.0f) {
        int word = first_with(m, logits, top, -1);
        return logits[word] == top ? word : 0;
    }
    float by = 1.0f / taste->temperature;
    ALL(v, m->words) total += chances[v] = EXP((logits[v] - top) * by);
    total = sum(total, m->room);
    ALL(v, m->words) chances[v] /= total;
    BARRIER;
    int whole = taste->top_p >= 1.0f && !taste->top_k && taste->min_p == 0.0f;
    return whole ? among_all(m, chances, draw) : among_top(m, chances, taste, draw);
}

/* -- kernels ------------------------------------------------------------------------ */

/* One more row of the next pass. */
DEVICE int added(const Model *m, int row, int token, int where, int slot, int at) {
    if (THREAD == 0) m->token[row] = token, m->where[row] = where, m->slot[row] = slot, m->at[row] = at;
    return row + 1;
}

/* Gives a slot what another has read: the first `tokens` tokens. */
DEVICE void share(const Model *m, int from, int to, int tokens) {
    i64 each = cached(m, 1, 0, 0), all = each;
    for (i64 j = THREAD; j < all; j += THREADS) {
        if (j % m->span < tokens) m->keys[to * each + j] = m->keys[from * each + j];
        if (j / m->size % m->span < tokens) m->values[to * each + j] = m->values[from * each + j];
    }
    BARRIER;
}

/* Answers prompts. Block b owns the sequences edges[b] .. edges[b + 1]. Sequence s has the prompt
 * tokens[starts[s] .. starts[s + 1]] and shares that of sequence source[s] <= s of its block.
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
    Model all = opened(shape, weights, turns, epsilon, slots, span, memory + BLOCK * each[0],
                       notes + BLOCK * each[1], room);
    const Model *m = &all;
    Taste taste = {temperature, top_p, min_p, top_k};
    GLOBAL const float *head = 0;
    int first = edges[BLOCK], count = edges[BLOCK + 1] - first, rows = 0, width = m->width;
    for (int s = 0; s < count; s++) { /* read every prompt once */
        int from = starts[first + s], length = starts[first + s + 1] - from;
        if (source[first + s] != first + s) length = 0;
        for (int t = 0; t <= length; t++) {
            if (rows && (rows == ROWS || (s == count - 1 && t == length))) {
                BARRIER;
                head = forward(m, rows);
                for (int r = 0; r < rows; r++) { /* what comes last in a prompt stays */
                    GLOBAL float *last = m->last + (i64)m->slot[r] * width;
                    ALL(i, width) last[i] = m->n[(i64)r * width + i];
                }
                BARRIER;
                rows = 0;
            }
            if (t < length) rows = added(m, rows, tokens[from + t], where[from + t], s, t);
        }
    }
    for (int s = 0; s < count; s++) {
        int other = source[first + s] - first;
        if (other != s) share(m, other, s, starts[first + s + 1] - starts[first + s]);
        ALL(i, width) m->n[(i64)s * width + i] = m->last[(i64)other * width + i];
        if (THREAD == 0) m->live[s] = s, counts[first + s] = 0, logprob[first + s] = 0;
    }
    BARRIER;
    for (int i = 0, live = count; live; i++) {
        predict(m, head, live);
        rows = 0;
        for (int a = 0; a < live; a++) {
            int s = m->live[a], it = first + s, last = starts[it + 1] - 1;
            GLOBAL const float *logits = m->logits + (i64)a * m->words;
            double draw = temperature == 0.0f ? 0 : draws[(i64)it * longest + i];
            int word = choose(m, logits, m->logits + (i64)ROWS * m->words, &taste, draw);
            float chance = logprob_of(m, logits, word);
            int beyond = word != end && i + 1 < longest && where[last] + 1 + i >= m->places;
            if (THREAD == 0) {
                logprob[it] += chance;
                said[(i64)it * longest + i] = word, counts[it] = beyond ? -1 : i + 1;
                m->live[rows] = s; /* rows <= a: what is overwritten was read */
            }
            if (word != end && i + 1 < longest && !beyond)
                rows = added(m, rows, word, where[last] + 1 + i, s, last + 1 - starts[it] + i);
            BARRIER;
        }
        live = rows;
        if (live) forward(m, live);
    }
}

/* Log-probability of tokens[starts[s] + begins[s] .. starts[s + 1]] after what stands before. */
KERNEL score(GLOBAL const int *shape, GLOBAL const float *weights, GLOBAL const float *turns,
             float epsilon, GLOBAL const int *tokens, GLOBAL const int *where,
             GLOBAL const int *starts, GLOBAL const int *begins, GLOBAL const int *edges,
             GLOBAL float *memory, GLOBAL int *notes, GLOBAL const i64 *each, int slots, int span,
             GLOBAL double *logprob ROOM_ARGUMENT) {
    ROOM;
    Model all = opened(shape, weights, turns, epsilon, slots, span, memory + BLOCK * each[0],
                       notes + BLOCK * each[1], room);
    const Model *m = &all;
    int first = edges[BLOCK], count = edges[BLOCK + 1] - first, rows = 0;
    ALL(s, count) logprob[first + s] = 0;
    for (int s = 0; s < count; s++) {
        int from = starts[first + s], length = starts[first + s + 1] - from - 1;
        for (int t = 0; t <= length; t++) { /* nothing comes after the last token */
            if (rows && (rows == ROWS || (s == count - 1 && t == length))) {
                BARRIER;
                predict(m, forward(m, rows), rows);
                for (int r = 0; r < rows; r++) {
                    int it = first + m->slot[r], next = m->at[r] + 1;
                    if (next < begins[it]) continue;
                    int word = tokens[starts[it] + next];
                    float chance = logprob_of(m, m->logits + (i64)r * m->words, word);
                    if (THREAD == 0) logprob[it] += chance;
                }
                BARRIER;
                rows = 0;
            }
            if (t < length) rows = added(m, rows, tokens[from + t], where[from + t], s, t);
        }
    }
}
