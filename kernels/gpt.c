/* Causal language models on the processor: GPT-2 and Llama, prefill, cache, sampling and scores.
 *
 * One call of `generate` answers whole blocks of prompts: it reads the prompts, then writes token
 * after token until every answer has ended. `forward` is the only pass through the model. Its
 * rows are tokens that may belong to any sequences of the block: many of one prompt when prompts
 * are read, one of each answer when answers are written.
 *
 * Every number of a row is computed by the same operations in the same order whatever the other
 * rows are: sums run over the inputs in order, one accumulator an output, and rows only share
 * the weights that are loaded. So an answer does not depend on the batch it stands in.
 *
 * Names: a sequence has a `slot` in the cache; a token stands at place `at` of its sequence and
 * tells the model the position `where` (positions may restart, so the two differ).
 * Widths ending in `_p` are padded to whole panels; what is in the padding is zero.
 */
#include "vectors.h"

#define WIDE (2 * LANES) /* outputs of a panel, see `product` */
#define PADDED(n) (((n) + WIDE - 1) / WIDE * WIDE)

enum { GELU_TANH, RELU, SILU }; /* activations, in the order of ACTIVATIONS in weights.py */
enum { FLOAT32, BFLOAT16, INT8 }; /* how weights are stored, in the order of KINDS in gpt.py */
#ifndef GROUP
#define GROUP 32 /* inputs that share a scale of int8 weights */
#endif
#define NEAR 256 /* inputs whose part of a panel stays near while all rows pass: 32 KiB */
enum { BIAS, BOTH, SUM }; /* what a product starts from: b, y + b or y */

/* y = e^((x - top) * by) for n floats, n a multiple of LANES; returns their sum. */
static float exponentials(GLOBAL const float *x, GLOBAL float *y, int n, float top, float by) {
    vec total = ALL(0.0f);
    for (int i = 0; i < n; i += LANES) {
        vec e = exponential((CVEC(x + i) - top) * by);
        VEC(y + i) = e;
        total += e;
    }
    return sum_of(total);
}

/* -- products with weights ---------------------------------------------------------- */

/* Weights lie in panels of WIDE outputs: for each input, WIDE numbers side by side, as floats, as
 * bfloat16 (a word holds output o below and output o + LANES above) or as int8 (a word holds both
 * of an input, then both of the next), where GROUP inputs at a time follow their WIDE scales. They
 * are the same floats in every path through here: a product with int8 weights gives, bit for bit,
 * what it gives with the floats they stand for. */
#define LOW(words) FLOATS((words) << 16)
#define HIGH(words) FLOATS((words) & -65536)
#define WORDS(p) (*(GLOBAL const veci *)(p))
#define FLOATS_AT(p) ((GLOBAL const float *)(p))

/* Byte k of every word, as a float. */
#define BYTES(words, k) __builtin_convertvector((words) << (24 - 8 * (k)) >> 24, vec)

/* Bytes of a panel. */
static i64 panel_bytes(int kind, int inputs) {
    if (kind == INT8)
        return ((i64)(inputs + 1) / 2 * 2 + (i64)(inputs + GROUP - 1) / GROUP * 4) * WIDE;
    return (i64)inputs * WIDE * (kind == FLOAT32 ? 4 : 2);
}

/* A panel as floats. */
static void unpack(GLOBAL const u8 *from, int kind, int inputs, GLOBAL float *to) {
    if (kind == FLOAT32)
        for (int i = 0; i < inputs * WIDE; i += LANES) VEC(to + i) = CVEC(FLOATS_AT(from) + i);
    if (kind == BFLOAT16)
        for (int i = 0; i < inputs; i++, to += WIDE) {
            veci words = WORDS(from + i * LANES * 4);
            VEC(to) = LOW(words), VEC(to + LANES) = HIGH(words);
        }
    if (kind == INT8)
        for (int g = 0; g < inputs; g += GROUP) {
            vec low = CVEC(FLOATS_AT(from)), high = CVEC(FLOATS_AT(from) + LANES);
            from += WIDE * 4;
            for (int i = g; i < g + GROUP && i < inputs; i += 2, from += 2 * WIDE, to += 2 * WIDE) {
                veci words = WORDS(from);
                VEC(to) = BYTES(words, 0) * low, VEC(to + LANES) = BYTES(words, 1) * high;
                VEC(to + WIDE) = BYTES(words, 2) * low;
                VEC(to + WIDE + LANES) = BYTES(words, 3) * high;
            }
        }
}

/* A tile is some rows by one panel of floats: every weight that is loaded serves all its rows, from
 * registers. Meanwhile it fetches its share of the weights that come next, `pace` bytes an input:
 * the first tile of a panel would wait for each line of it. */
#define ONE(f) f(0)
#define TWO(f) f(0) f(1)
#define THREE(f) TWO(f) f(2)
#define FOUR(f) THREE(f) f(3)
#define FIVE(f) FOUR(f) f(4)
#define SIX(f) FIVE(f) f(5)
#define SEVEN(f) SIX(f) f(6)
#define EIGHT(f) SEVEN(f) f(7)
#define OPEN(r)                                                                                 \
    vec low##r = add ? CVEC(y + r * y_p) : CVEC(bias);                                          \
    vec high##r = add ? CVEC(y + r * y_p + LANES) : CVEC(bias + LANES);                         \
    if (add == BOTH) low##r += CVEC(bias), high##r += CVEC(bias + LANES);
#define TAKE(r)                                                                                 \
    {                                                                                           \
        float s = x[r * x_p + i];                                                               \
        low##r += s * low;                                                                      \
        high##r += s * high;                                                                    \
    }
#define INPUT(at, EACH)                                                                         \
    {                                                                                           \
        const int i = at;                                                                       \
        vec low = CVEC(panel + i * WIDE), high = CVEC(panel + i * WIDE + LANES);                \
        FETCH(ahead);                                                                           \
        LOADED(low) LOADED(high)                                                                \
        EACH(TAKE)                                                                              \
        ahead += pace;                                                                          \
    }
#define CLOSE(r) \
    VEC(y + r * y_p) = low##r, VEC(y + r * y_p + LANES) = high##r;
#define TILE(name, EACH)                                                                        \
    static void name(GLOBAL const float *x, int x_p, int inputs, GLOBAL const float *bias,      \
                     GLOBAL const float *panel, GLOBAL float *y, int y_p, int add,              \
                     GLOBAL const u8 *ahead, int pace) {                                        \
        EACH(OPEN)                                                                              \
        IN_STEPS(inputs, INPUT, EACH)                                                           \
        EACH(CLOSE)                                                                             \
    }
TILE(tile_of_1, ONE)
TILE(tile_of_2, TWO)
TILE(tile_of_3, THREE)
TILE(tile_of_4, FOUR)
TILE(tile_of_5, FIVE)
TILE(tile_of_6, SIX)
#if LANES == 16 /* twice as many registers */
TILE(tile_of_7, SEVEN)
TILE(tile_of_8, EIGHT)
#define TALL 8
#define EVERY_TILE(f) SIX_TILES(f) f(7) f(8)
#else
#define TALL 6
#define EVERY_TILE(f) SIX_TILES(f)
#endif
#define SIX_TILES(f) f(1) f(2) f(3) f(4) f(5) f(6)

/* One row by four panels at once, for a single sum would wait for each of its additions. */
#define PANEL_OPEN(p)                                                                           \
    vec low##p = CVEC(bias + p * WIDE), high##p = CVEC(bias + p * WIDE + LANES);                \
    if (add) low##p = CVEC(y + p * WIDE) + low##p, high##p = CVEC(y + p * WIDE + LANES) + high##p;
#define PANEL_CLOSE(p)                                                                          \
    VEC(y + p * WIDE) = low##p, VEC(y + p * WIDE + LANES) = high##p;
#define FLOAT_TAKE(p)                                                                           \
    low##p += s * CVEC(FLOATS_AT(panel + p * next) + i * WIDE);                                 \
    high##p += s * CVEC(FLOATS_AT(panel + p * next) + i * WIDE + LANES);
#define BFLOAT_TAKE(p)                                                                          \
    {                                                                                           \
        veci words = WORDS(panel + p * next + i * LANES * 4);                                   \
        low##p += s * LOW(words);                                                               \
        high##p += s * HIGH(words);                                                             \
    }
#define SCALES(p)                                                                               \
    vec small##p = CVEC(FLOATS_AT(panel + p * next));                                           \
    vec great##p = CVEC(FLOATS_AT(panel + p * next) + LANES);
#define INT_TAKE(p)                                                                             \
    {                                                                                           \
        veci words = WORDS(panel + p * next);                                                   \
        low##p += s * (BYTES(words, 0) * small##p);                                             \
        high##p += s * (BYTES(words, 1) * great##p);                                            \
        low##p += t * (BYTES(words, 2) * small##p);                                             \
        high##p += t * (BYTES(words, 3) * great##p);                                            \
    }
static void single(GLOBAL const float *x, int kind, int inputs, GLOBAL const float *bias,
                   GLOBAL const u8 *panel, GLOBAL float *y, int add) {
    i64 next = panel_bytes(kind, inputs);
    FOUR(PANEL_OPEN)
    if (kind == FLOAT32)
        for (int i = 0; i < inputs; i++) {
            float s = x[i];
            FOUR(FLOAT_TAKE)
        }
    if (kind == BFLOAT16)
        for (int i = 0; i < inputs; i++) {
            float s = x[i];
            FOUR(BFLOAT_TAKE)
        }
    if (kind == INT8)
        for (int g = 0; g < inputs; g += GROUP) {
            FOUR(SCALES)
            panel += WIDE * 4;
            for (int i = g; i < g + GROUP && i < inputs; i += 2, panel += 2 * WIDE) {
                float s = x[i], t = i + 1 < inputs ? x[i + 1] : 0.0f;
                FOUR(INT_TAKE)
            }
        }
    FOUR(PANEL_CLOSE)
}

/* -- the model and the memory of a block -------------------------------------------- */

typedef struct {
    int layers, width, heads, groups, size, hidden, words, places, rms, gated, activation, learned;
    int rows;  /* tokens in one pass, and sequences in a block, at most */
    int slots; /* sequences that the cache has room for */
    int kind;  /* of the weights of products */
    int table; /* kind of the embeddings: FLOAT32 or BFLOAT16 */
    int whitened; /* queries and keys are normalised, head by head */
    int span;  /* tokens that a sequence may have, a multiple of LANES */
    int width_p, mix, mix_p, qkv_p, hidden_p, middle_p, words_p, size_p;
    float epsilon;
    GLOBAL const u8 *embedding, *position, *blocks; /* weights, in this order */
    GLOBAL const float *turns;                      /* (places, 2, size / 2): cos and sin */
    GLOBAL float *x, *n, *qkv, *attended, *middle, *scores, *last, *logits, *chances, *panel;
    GLOBAL float *cache; /* see `cached` */
    GLOBAL int *token, *slot, *at, *where, *live, *heap;
} Model;

static int larger(int a, int b) { return a > b ? a : b; }

/* Bytes of a row of an embedding. */
static i64 row_bytes(int kind, int n) { return (i64)n * (kind == FLOAT32 ? 4 : 2); }

/* Lays the model over its weights and the memory of one block; gpt.py's `room` counts it. */
static Model opened(GLOBAL const int *shape, GLOBAL const u8 *weights, GLOBAL const float *turns,
                    float epsilon, int span, GLOBAL float *memory, GLOBAL int *notes) {
    Model m;
    m.layers = shape[0], m.width = shape[1], m.heads = shape[2], m.groups = shape[3];
    m.size = shape[4], m.hidden = shape[5], m.words = shape[6], m.places = shape[7];
    m.rms = shape[8], m.gated = shape[9], m.activation = shape[10], m.learned = shape[11];
    m.whitened = shape[12], m.kind = shape[13], m.table = shape[14], m.rows = shape[15];
    m.slots = shape[16], m.span = span, m.epsilon = epsilon, m.turns = turns;
    m.width_p = PADDED(m.width), m.hidden_p = PADDED(m.hidden), m.words_p = PADDED(m.words);
    m.mix = m.heads * m.size, m.mix_p = PADDED(m.mix) + WIDE, m.size_p = PADDED(m.size);
    m.qkv_p = PADDED(m.mix + 2 * m.groups * m.size);
    m.middle_p = m.gated ? 2 * m.hidden_p : m.hidden_p;
    m.embedding = weights;
    m.position = m.embedding + m.words * row_bytes(m.table, m.width_p);
    m.blocks = m.position + (m.learned ? m.places * row_bytes(m.table, m.width_p) : 0);
    i64 rows = m.rows;
    m.x = memory, m.n = m.x + rows * m.width_p, m.qkv = m.n + rows * m.width_p;
    m.attended = m.qkv + rows * m.qkv_p, m.middle = m.attended + rows * m.mix_p;
    m.last = m.middle + rows * m.middle_p, m.logits = m.last + rows * m.width_p;
    m.chances = m.logits + rows * m.words_p, m.scores = m.chances + m.words_p;
    m.panel = m.scores + span;
    m.cache = m.panel + larger(larger(m.width_p, m.hidden_p), m.mix_p) * WIDE;
    m.token = notes, m.slot = m.token + rows, m.at = m.slot + rows, m.where = m.at + rows;
    m.live = m.where + rows, m.heap = m.live + rows;
    return m;
}

/* Floats that LANES tokens take in the cache of a layer: of a group, of all groups. */
static int chunk(const Model *m) { return LANES * (m->size + m->size_p); }
static int chunks(const Model *m) { return m->groups * chunk(m); }

/* The cache of a sequence in a layer: for LANES tokens at a time, for each group, keys dimension
 * after dimension (size, LANES), then values (LANES, size_p). What a row reads lies together. */
static GLOBAL float *cached(const Model *m, int slot, int layer) {
    return m->cache + ((i64)slot * m->layers + layer) * (m->span / LANES) * chunks(m);
}

static int blocks_of(int tokens) { return (tokens + LANES - 1) / LANES; }

/* y = x W + b, or y += x W + b. x (rows, inputs) at stride x_p; y (rows, outputs) at stride y_p,
 * outputs a multiple of WIDE. At w: b, then the panels of W. Returns where the next weights lie:
 * the weights of a model stand in the order in which they are used. */
static GLOBAL const u8 *product(const Model *m, GLOBAL const float *x, int x_p, int inputs,
                                GLOBAL const u8 *w, GLOBAL float *y, int y_p, int outputs, int rows,
                                int add) {
    GLOBAL const float *bias = FLOATS_AT(w);
    GLOBAL const u8 *panel = w + (i64)outputs * 4;
    i64 next = panel_bytes(m->kind, inputs);
    /* as many rows in each tile as in the others: few would wait for their sums */
    int o = 0, tiles = (rows + TALL - 1) / TALL, few = rows / tiles, more = rows % tiles;
    if (rows == 1)
        for (; o + 4 * WIDE <= outputs; o += 4 * WIDE, panel += 4 * next)
            single(x, m->kind, inputs, bias + o, panel, y + o, add);
    for (; o < outputs; o += WIDE, panel += next)
        for (int i = 0; i < inputs; i += NEAR) {
            int deep = inputs - i < NEAR ? inputs - i : NEAR, from = i ? SUM : add, r = 0;
            GLOBAL const u8 *part = panel + panel_bytes(m->kind, i);
            GLOBAL const float *floats = FLOATS_AT(part);
            GLOBAL const u8 *ahead = part + panel_bytes(m->kind, deep);
            int each = (panel_bytes(m->kind, deep) / deep + rows - 1) / rows; /* row and input */
            if (m->kind != FLOAT32) unpack(part, m->kind, deep, m->panel), floats = m->panel;
#define CASE(n)                                                                                 \
    case n:                                                                                     \
        tile_of_##n(x + (i64)r * x_p + i, x_p, deep, bias + o, floats, y + (i64)r * y_p + o,    \
                    y_p, from, ahead + (i64)r * each * deep, n * each);                         \
        break;
            for (int t = 0, n; t < tiles; t++, r += n) {
                n = few + (t < more);
                switch (n) { EVERY_TILE(CASE) }
            }
#undef CASE
        }
    return panel;
}

/* -- one pass ----------------------------------------------------------------------- */

static void embed(const Model *m, int r) {
    i64 row = row_bytes(m->table, m->width_p);
    GLOBAL float *x = m->x + (i64)r * m->width_p, *place = m->panel;
    unpack(m->embedding + m->token[r] * row, m->table, m->width_p / WIDE, x);
    if (!m->learned) return;
    unpack(m->position + m->where[r] * row, m->table, m->width_p / WIDE, place);
    for (int i = 0; i < m->width_p; i += LANES) VEC(x + i) += CVEC(place + i);
}

/* n = (x - mean) / deviation * scale + shift; RMSNorm takes 0 for the mean. */
static GLOBAL const u8 *normed(const Model *m, GLOBAL const u8 *w, int rows) {
    GLOBAL const float *scale = FLOATS_AT(w), *shift = scale + m->width_p;
    int whole = m->width / LANES * LANES;
    for (int r = 0; r < rows; r++) {
        GLOBAL const float *x = m->x + (i64)r * m->width_p;
        GLOBAL float *n = m->n + (i64)r * m->width_p;
        float mean = 0;
        if (!m->rms) {
            vec sum = ALL(0.0f);
            for (int i = 0; i < m->width_p; i += LANES) sum += CVEC(x + i);
            mean = sum_of(sum) / m->width;
        }
        vec squares = ALL(0.0f);
        for (int i = 0; i < whole; i += LANES) {
            vec gap = CVEC(x + i) - mean;
            squares += gap * gap;
        }
        float square = sum_of(squares);
        for (int i = whole; i < m->width; i++) square += (x[i] - mean) * (x[i] - mean);
        float by = 1.0f / ROOT(square / m->width + m->epsilon);
        for (int i = 0; i < m->width_p; i += LANES)
            VEC(n + i) = (CVEC(x + i) - mean) * by * CVEC(scale + i) + CVEC(shift + i);
    }
    return (GLOBAL const u8 *)(shift + m->width_p);
}

/* Rotates a head by its position: the first half of the dimensions against the second. */
static void rotate(const Model *m, GLOBAL float *head, int where) {
    int middle = m->size / 2;
    GLOBAL const float *cosine = m->turns + (i64)where * m->size, *sine = cosine + middle;
    for (int i = 0; i < middle; i++) {
        float a = head[i], b = head[i + middle];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + middle] = b * cosine[i] + a * sine[i];
    }
}

static void whiten(const Model *m, GLOBAL float *head, GLOBAL const float *scale) {
    float square = 0;
    for (int i = 0; i < m->size; i++) square += head[i] * head[i];
    float by = 1.0f / ROOT(square / m->size + m->epsilon);
    for (int i = 0; i < m->size; i++) head[i] = head[i] * by * scale[i];
}

/* How a layer makes queries and keys ready: what queries are multiplied by, head by head, whether
 * it rotates, and what normalised queries and keys are multiplied by. */
typedef struct {
    GLOBAL const float *factor, *queries, *keys;
    int turns;
} Ready;

static GLOBAL const u8 *ready(const Model *m, GLOBAL const u8 *w, Ready *how) {
    how->factor = FLOATS_AT(w);
    how->turns = how->factor[m->heads] != 0;
    how->queries = how->factor + PADDED(m->heads + 1), how->keys = how->queries + m->size_p;
    return w + 4 * (PADDED(m->heads + 1) + (m->whitened ? 2 * m->size_p : 0));
}

/* Makes the queries and keys of a row ready and puts its keys and values into the cache. */
static void keep(const Model *m, const Ready *how, int layer, int r) {
    GLOBAL float *query = m->qkv + (i64)r * m->qkv_p, *key = query + m->mix;
    GLOBAL const float *value = key + m->groups * m->size;
    for (int h = 0; h < m->heads + m->groups; h++) {
        GLOBAL float *head = query + h * m->size;
        if (m->whitened) whiten(m, head, h < m->heads ? how->queries : how->keys);
        if (how->turns) rotate(m, head, m->where[r]);
        for (int i = 0; h < m->heads && i < m->size; i++) head[i] *= how->factor[h];
    }
    int lane = m->at[r] % LANES;
    GLOBAL float *keys = cached(m, m->slot[r], layer) + (i64)(m->at[r] / LANES) * chunks(m);
    for (int g = 0; g < m->groups; g++, keys += chunk(m)) {
        GLOBAL float *values = keys + m->size * LANES;
        if (lane == 0) /* tokens to come have a share of 0, which must not meet a NaN */
            for (int i = 0; i < m->size_p * LANES; i += LANES) VEC(values + i) = ALL(0.0f);
        for (int i = 0; i < m->size; i++) keys[i * LANES + lane] = key[g * m->size + i];
        for (int i = 0; i < m->size; i++) values[lane * m->size_p + i] = value[g * m->size + i];
    }
}

/* scores = query . key for whole blocks of LANES tokens, as many at a time as keep the processor
 * busy. Blocks lie `next` floats apart. */
#define START(b) vec s##b = ALL(0.0f);
#define MEET(b) s##b += q * CVEC(k + (i64)b * next);
#define STORE(b) VEC(scores + b * LANES) = s##b;
#define COMPARE(n, EACH)                                                                        \
    for (; blocks >= n; blocks -= n, keys += (i64)n * next, scores += n * LANES) {              \
        EACH(START)                                                                             \
        for (int i = 0; i < size; i++) {                                                        \
            float q = query[i];                                                                 \
            GLOBAL const float *k = keys + i * LANES;                                           \
            EACH(MEET)                                                                          \
        }                                                                                       \
        EACH(STORE)                                                                             \
    }
static void compare(GLOBAL const float *query, int size, GLOBAL const float *keys, int next,
                    int blocks, GLOBAL float *scores) {
    COMPARE(8, EIGHT)
    COMPARE(4, FOUR)
    COMPARE(2, TWO)
    COMPARE(1, ONE)
}

/* y = sum of share * value over whole blocks of tokens, divided by `total`. Writes `size` floats, a
 * multiple of WIDE. Blocks are read four at a time, as memory likes it, each into sums of its own. */
#define BLEND(b)                                                                                \
    s = shares[b * LANES + t], low##b += s * CVEC(v + (i64)b * next),                           \
    high##b += s * CVEC(v + (i64)b * next + LANES);
#define BLENDS(n, EACH)                                                                         \
    for (; left >= n; left -= n, shares += n * LANES, v += (i64)n * next - LANES * size)        \
        for (int t = 0; t < LANES; t++, v += size) {                                            \
            float s;                                                                            \
            EACH(BLEND)                                                                         \
        }
static void blend(GLOBAL const float *shares, GLOBAL const float *values, int size, int next,
                  int blocks, float total, GLOBAL float *y) {
    for (int i = 0; i < size; i += WIDE, shares -= blocks * LANES) {
        vec low0 = ALL(0.0f), low1 = low0, low2 = low0, low3 = low0;
        vec high0 = low0, high1 = low0, high2 = low0, high3 = low0;
        GLOBAL const float *v = values + i;
        int left = blocks;
        BLENDS(4, FOUR)
        BLENDS(2, TWO)
        BLENDS(1, ONE)
        VEC(y + i) = ((low0 + low1) + (low2 + low3)) / total;
        VEC(y + i + LANES) = ((high0 + high1) + (high2 + high3)) / total;
    }
}

/* Softmax attention of a row over its own sequence up to itself. Queries come scaled. */
static void attend(const Model *m, int layer, int r) {
    GLOBAL const float *query = m->qkv + (i64)r * m->qkv_p;
    GLOBAL float *attended = m->attended + (i64)r * m->mix_p;
    int tokens = m->at[r] + 1, blocks = blocks_of(tokens), per = m->heads / m->groups;
    GLOBAL const float *keys = cached(m, m->slot[r], layer);
    for (int h = 0; h < m->heads; h++) {
        GLOBAL const float *own = keys + h / per * chunk(m);
        compare(query + h * m->size, m->size, own, chunks(m), blocks, m->scores);
        for (int t = tokens; t < blocks * LANES; t++) m->scores[t] = -INFINITY_F;
        float top = largest(m->scores, blocks * LANES);
        float total = exponentials(m->scores, m->scores, blocks * LANES, top, 1.0f);
        /* The padding of a head falls where the next head, or nothing, is written. */
        blend(m->scores, own + m->size * LANES, m->size_p, chunks(m), blocks, total,
              attended + h * m->size);
    }
}

/* SiLU is x * sigmoid(x), GELU (tanh form) x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
static vec activated(vec x, int activation) {
    if (activation == RELU) return PICK(x > ALL(0.0f), x, ALL(0.0f));
    vec u = x;
    if (activation == GELU_TANH) u = x * 1.5957691216f * (x * x * 0.044715f + 1.0f);
    return x / one_over_sigmoid(u);
}

static void activate(const Model *m, int rows) {
    for (int r = 0; r < rows; r++) {
        GLOBAL float *x = m->middle + (i64)r * m->middle_p;
        for (int i = 0; i < m->hidden_p; i += LANES) {
            VEC(x + i) = activated(CVEC(x + i), m->activation);
            if (m->gated) VEC(x + i) *= CVEC(x + m->hidden_p + i);
        }
    }
}

/* Reads `rows` tokens into the cache and leaves what the head reads in m->n. Tokens of a sequence
 * must come in order, within a pass or over several. Returns the weights of the head. */
static GLOBAL const u8 *forward(const Model *m, int rows) {
    GLOBAL const u8 *w = m->blocks;
    Ready how;
    for (int r = 0; r < rows; r++) embed(m, r);
    for (int layer = 0; layer < m->layers; layer++) {
        w = normed(m, w, rows);
        w = product(m, m->n, m->width_p, m->width, w, m->qkv, m->qkv_p, m->qkv_p, rows, 0);
        w = ready(m, w, &how);
        /* at once, so that the two wait for memory together */
        for (int r = 0; r < rows; r++) keep(m, &how, layer, r), attend(m, layer, r);
        w = product(m, m->attended, m->mix_p, m->mix, w, m->x, m->width_p, m->width_p, rows, 1);
        w = normed(m, w, rows);
        w = product(m, m->n, m->width_p, m->width, w, m->middle, m->middle_p, m->middle_p, rows, 0);
        activate(m, rows);
        w = product(m, m->middle, m->middle_p, m->hidden, w, m->x, m->width_p, m->width_p, rows, 1);
    }
    return normed(m, w, rows);
}

/* logits of what is in m->n. Padding has a bias of minus infinity in the head. */
static void predict(const Model *m, GLOBAL const u8 *head, int rows) {
    product(m, m->n, m->width_p, m->width, head, m->logits, m->words_p, m->words_p, rows, 0);
}

/* -- choosing ----------------------------------------------------------------------- */

/* How words are sampled; top_k 0, top_p 1 and min_p 0 cut nothing off. Temperature 0 is greedy. */
typedef struct {
    float temperature, top_p, min_p;
    int top_k;
} Taste;

/* log P(word) under the model itself: temperature 1. `top` is the largest of the logits. */
static float logprob_of(const Model *m, GLOBAL const float *logits, float top, int word) {
    return logits[word] - top - LOG(exponentials(logits, m->chances, m->words_p, top, 1.0f));
}

static int before(GLOBAL const float *chances, int a, int b) {
    return chances[a] > chances[b] || (chances[a] == chances[b] && a < b);
}

/* Restores a heap whose first word is the most probable one, from its place i down. */
static void sift(GLOBAL int *heap, GLOBAL const float *chances, int count, int i) {
    for (int child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(chances, heap[child + 1], heap[child])) child++;
        if (!before(chances, heap[child], heap[i])) return;
        int word = heap[i];
        heap[i] = heap[child], heap[child] = word;
    }
}

/* The word at `draw` of the whole, the words standing in their own order. */
static int among_all(const Model *m, double draw) {
    double total = 0, edge = 0;
    for (int v = 0; v < m->words; v++) total += m->chances[v];
    for (int v = 0; v < m->words; v++)
        if ((edge += m->chances[v]) > draw * total) return v;
    return m->words - 1;
}

/* Moves the most probable words of a heap to its end, the first of them last: those that together
 * first reach top_p, or top_k (and what is as probable as the last of them). Returns how many. */
static int kept_of(const Model *m, const Taste *taste, int count) {
    GLOBAL const float *chances = m->chances;
    GLOBAL int *heap = m->heap;
    double sum = 0;
    float last = 0;
    int kept = 0;
    for (; count; count--, kept++) {
        int word = heap[0];
        sum += chances[word];
        if (kept && taste->top_k && kept >= taste->top_k && chances[word] < last) break;
        if (kept && !taste->top_k && taste->top_p < 1 &&
            !((float)sum - chances[word] < taste->top_p))
            break;
        last = chances[word];
        heap[0] = heap[count - 1], heap[count - 1] = word;
        sift(heap, chances, count - 1, 0);
    }
    return kept;
}

/* The word at `draw` of those that top_k, then top_p of what is left, then min_p let through, the
 * most probable first. A word that has less than an even share of what top_p cuts off anyway, or
 * less than min_p of the best, is never looked at, so few are sorted. */
static int among_top(const Model *m, const Taste *taste, double draw) {
    GLOBAL const float *chances = m->chances;
    GLOBAL int *heap = m->heap;
    int both = taste->top_k && taste->top_p < 1;
    float floor = taste->min_p * largest(chances, m->words_p), least = both ? 0 : floor;
    float even = taste->top_k || taste->top_p >= 1 ? 0 : 0.5f * (1.0f - taste->top_p) / m->words;
    if (least < even) least = even;
    int all = 0;
    for (int v = 0; v < m->words; v++)
        if (chances[v] >= least) heap[all++] = v;
    for (int i = all / 2 - 1; i >= 0; i--) sift(heap, chances, all, i);
    int kept = kept_of(m, taste, all);
    double sum = 0, total = 0, edge = 0;
    for (int i = 0; i < kept; i++) total += chances[heap[all - 1 - i]];
    if (both) { /* top_p of what top_k left, before min_p */
        double limit = taste->top_p * total;
        int i = 0;
        for (; i < kept && (i == 0 || sum < limit); i++) sum += chances[heap[all - 1 - i]];
        kept = i, total = sum;
        while (kept > 1 && chances[heap[all - kept]] < floor) total -= chances[heap[all - kept--]];
    }
    for (int i = 0; i < kept; i++)
        if ((edge += chances[heap[all - 1 - i]]) > draw * total) return heap[all - 1 - i];
    return kept ? heap[all - kept] : m->words - 1;
}

/* The next word, for `draw` uniform in [0, 1). `top` is the largest of the logits. */
static int choose(const Model *m, GLOBAL const float *logits, float top, const Taste *taste,
                  double draw) {
    if (taste->temperature == 0) {
        for (int v = 0; v < m->words; v++)
            if (logits[v] == top) return v;
        return 0;
    }
    float total = exponentials(logits, m->chances, m->words_p, top, 1.0f / taste->temperature);
    for (int v = 0; v < m->words_p; v += LANES) VEC(m->chances + v) = CVEC(m->chances + v) / total;
    int whole = taste->top_p >= 1 && !taste->top_k && taste->min_p == 0;
    return whole ? among_all(m, draw) : among_top(m, taste, draw);
}

/* -- kernels ------------------------------------------------------------------------ */

static void copy(GLOBAL const float *from, GLOBAL float *to, i64 n) {
    for (i64 i = 0; i < n; i++) to[i] = from[i];
}

/* Gives a slot what another has read: its first `tokens` tokens. */
static void share(const Model *m, int from, int to, int tokens) {
    int lane = tokens % LANES;
    for (int layer = 0; layer < m->layers; layer++) {
        GLOBAL float *own = cached(m, to, layer);
        copy(cached(m, from, layer), own, (i64)blocks_of(tokens) * chunks(m));
        own += (i64)(tokens / LANES) * chunks(m) + m->size * LANES; /* values; see `keep` */
        for (int g = 0; lane && g < m->groups; g++, own += chunk(m))
            for (int i = lane * m->size_p; i < LANES * m->size_p; i++) own[i] = 0;
    }
}

/* Rows that are read in blocks: sequence s is tokens[starts[s] .. starts[s + 1]], the first known[s]
 * of which it takes from sequence source[s] < s of its block. */
typedef struct {
    GLOBAL const int *tokens, *where, *starts, *source, *known;
    int first, count; /* the sequences of the block */
    int s, t, read;   /* where reading stands; sequences before `read` are in the cache */
} Text;

/* The next tokens to read, as many as a pass takes; sequence s has its last `less` tokens left out.
 * A sequence that takes what is not read yet waits for the next pass. */
static int gathered(const Model *m, Text *x, int less) {
    int rows = 0;
    for (x->read = x->s; x->s < x->count; x->s++, x->t = 0) {
        int s = x->first + x->s, from = x->starts[s], length = x->starts[s + 1] - from - less;
        if (x->t == 0 && x->known[s]) {
            int other = x->source[s] - x->first;
            if (other >= x->read && rows) return rows;
            share(m, other, x->s, x->t = x->known[s]);
        }
        for (; x->t < length; x->t++, rows++) {
            if (rows == m->rows) return rows;
            m->token[rows] = x->tokens[from + x->t], m->where[rows] = x->where[from + x->t];
            m->slot[rows] = x->s, m->at[rows] = x->t;
        }
    }
    return rows;
}

/* Answers prompts. An item is a block of sequences, edges[item] .. edges[item + 1]. said
 * (sequences, longest) gets `counts` tokens each, the end included; counts is -1 where a position
 * lies beyond the table. `logprob` is a sum of doubles. `end` -1 never comes. */
KERNEL generate(GLOBAL const int *shape, GLOBAL const u8 *weights, GLOBAL const float *turns,
                float epsilon, GLOBAL const int *tokens, GLOBAL const int *where,
                GLOBAL const int *starts, GLOBAL const int *source, GLOBAL const int *known,
                GLOBAL const int *edges, GLOBAL float *memory, GLOBAL int *notes,
                GLOBAL const i64 *room, int span, GLOBAL const double *draws, float temperature,
                float top_p, int top_k, float min_p, int longest, int end, GLOBAL int *said,
                GLOBAL int *counts, GLOBAL double *logprob, int items) {
    FOR_ITEMS(item, items) {
        Model m = opened(shape, weights, turns, epsilon, span, memory + item * room[0],
                         notes + item * room[1]);
        Taste taste = {temperature, top_p, min_p, top_k};
        GLOBAL const u8 *head = 0;
        int first = edges[item], count = edges[item + 1] - first, width = m.width_p;
        Text text = {tokens, where, starts, source, known, first, count, 0, 0, 0};
        for (int rows; (rows = gathered(&m, &text, 0));) {
            head = forward(&m, rows);
            for (int r = 0; r < rows; r++) /* what comes last in a prompt stays */
                copy(m.n + (i64)r * width, m.last + (i64)m.slot[r] * width, width);
        }
        for (int s = 0; s < count; s++) {
            int all = first + s, whole = known[all] == starts[all + 1] - starts[all];
            int other = whole ? source[all] - first : s; /* whose prompt is the same */
            copy(m.last + (i64)other * width, m.n + (i64)s * width, width);
            m.live[s] = s, counts[all] = 0, logprob[all] = 0;
        }
        for (int i = 0, live = count, rows; live; i++) {
            predict(&m, head, live);
            rows = 0;
            for (int a = 0; a < live; a++) {
                int s = m.live[a], all = first + s, last = starts[all + 1] - 1;
                GLOBAL const float *logits = m.logits + (i64)a * m.words_p;
                double draw = temperature == 0 ? 0 : draws[(i64)all * longest + i];
                float top = largest(logits, m.words_p);
                int word = choose(&m, logits, top, &taste, draw);
                logprob[all] += logprob_of(&m, logits, top, word);
                said[(i64)all * longest + i] = word, counts[all] = i + 1;
                if (word == end || i + 1 == longest) continue;
                if (where[last] + 1 + i >= m.places) {
                    counts[all] = -1;
                    continue;
                }
                m.token[rows] = word, m.where[rows] = where[last] + 1 + i;
                m.slot[rows] = s, m.at[rows] = last + 1 - starts[all] + i, m.live[rows++] = s;
            }
            if ((live = rows)) forward(&m, rows);
        }
    }
}

/* Log-probability of tokens[starts[s] + begins[s] .. starts[s + 1]] after what stands before;
 * known[s] < begins[s]. */
KERNEL score(GLOBAL const int *shape, GLOBAL const u8 *weights, GLOBAL const float *turns,
             float epsilon, GLOBAL const int *tokens, GLOBAL const int *where,
             GLOBAL const int *starts, GLOBAL const int *source, GLOBAL const int *known,
             GLOBAL const int *edges, GLOBAL float *memory, GLOBAL int *notes,
             GLOBAL const i64 *room, int span, GLOBAL const int *begins, GLOBAL double *logprob,
             int items) {
    FOR_ITEMS(item, items) {
        Model m = opened(shape, weights, turns, epsilon, span, memory + item * room[0],
                         notes + item * room[1]);
        int first = edges[item], count = edges[item + 1] - first, width = m.width_p;
        Text text = {tokens, where, starts, source, known, first, count, 0, 0, 0};
        for (int s = 0; s < count; s++) logprob[first + s] = 0;
        for (int rows; (rows = gathered(&m, &text, 1));) { /* nothing comes after the last token */
            GLOBAL const u8 *head = forward(&m, rows);
            int asked = 0;
            for (int r = 0; r < rows; r++)
                if (m.at[r] + 1 >= begins[first + m.slot[r]]) {
                    if (asked != r)
                        copy(m.n + (i64)r * width, m.n + (i64)asked * width, width);
                    m.live[asked++] = r;
                }
            if (asked) predict(&m, head, asked);
            for (int a = 0; a < asked; a++) {
                int r = m.live[a], all = first + m.slot[r];
                int word = tokens[starts[all] + m.at[r] + 1];
                GLOBAL const float *logits = m.logits + (i64)a * m.words_p;
                logprob[all] += logprob_of(&m, logits, largest(logits, m.words_p), word);
            }
        }
    }
}
