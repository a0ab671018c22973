/* Training of GPT-2 and Llama models on the processor: gradients of a batch, then its update.
 *
 * `train_gradients` reads sequences in blocks whose activations stay in the nearest cache, each
 * forward and at once backward, and adds up the gradients. Nothing is computed that the loss does
 * not see: sequences are not padded, their last token is not read, and in the last layer only
 * tokens whose successor is to be learned ask, pass the MLP and reach the head.
 * `train_update` clips the gradients and applies AdamW and Muon.
 *
 * Weights are (inputs, outputs), and zero from the last column to the stride. Activations and
 * gradients hold anything there, and no operation lets it reach a column.
 */
#include "optimizers.h"

enum { GELU_TANH, RELU, SILU }; /* in the order of ACTIVATIONS in weights.py */

/* Where parameters lie, in the order of train.py: these, then PARTS for every layer. */
enum { EMBEDDING, POSITION, HEAD, SCALE, SHIFT, BLOCKS };
enum {
    SCALE_1, SHIFT_1, QUERY, QUERY_BIAS, KEYS, KEYS_BIAS, OUT, OUT_BIAS,
    SCALE_2, SHIFT_2, MIDDLE, MIDDLE_BIAS, DOWN, DOWN_BIAS, PARTS
};

/* -- the model and its memory ------------------------------------------------------- */

typedef struct {
    int layers, width, heads, groups, size, hidden, words, rms, gated, activation, learned;
    int silent; /* a word whose embedding does not learn from being read, or -1 */
    int rows; /* tokens of a block, at most */
    int span; /* tokens of a sequence, at most */
    int mix, kv, middle;                                          /* columns */
    i64 width_s, mix_s, kv_s, middle_s, hidden_s, words_s, size_s, span_s; /* strides */
    float epsilon, sharpness; /* scores are multiplied by `sharpness` */
    GLOBAL const float *weights, *turned;
    GLOBAL float *gradients;
    GLOBAL const i64 *places;
    GLOBAL const float *turns; /* (positions, 2, size / 2): cos and sin */
    GLOBAL float *zero;        /* as wide as anything */
    GLOBAL float *layer, *xa, *na, *x, *n, *moments, *logits;    /* forward */
    GLOBAL float *d, *d_all, *dn, *dq, *dkv, *dmixed, *dmiddle, *dactive; /* backward */
    GLOBAL float *keys, *values, *s, *t, *o, *dkeys, *dvalues;   /* one head of one sequence */
    GLOBAL int *token, *where, *label, *first, *length, *from, *asking;
    int count, read, asked; /* of this block: sequences, tokens, tokens that the head sees */
} Model;

/* What a layer keeps for the way back. In the last one xa and na are the rows of x and n that
 * ask; in the others all do. */
typedef struct {
    int last, rows, layer;
    GLOBAL float *x, *n, *q, *kv, *mixed, *y, *z, *middle, *active, *moments, *moments_2, *lse;
    GLOBAL float *xa, *na;
} Layer;

#define WEIGHT(m, at) ((m)->weights + (m)->places[at])
#define TURNED(m, at) ((m)->turned + (m)->places[at])
#define GRADIENT(m, at) ((m)->gradients + (m)->places[at])

/* Floats that a layer keeps, see `layer_of` and train.py's `_room`. */
static i64 layer_floats(const Model *m) {
    i64 row = 4 * m->width_s + 2 * m->mix_s + m->kv_s + m->middle_s + m->hidden_s + 4 + m->heads;
    return m->rows * row;
}

static Layer layer_of(const Model *m, int n) {
    Layer l;
    i64 rows = m->rows;
    GLOBAL float *at = m->layer + n * layer_floats(m);
    l.layer = BLOCKS + n * PARTS, l.last = n == m->layers - 1;
    l.rows = l.last ? m->asked : m->read;
    l.x = taken(&at, rows * m->width_s), l.n = taken(&at, rows * m->width_s);
    l.q = taken(&at, rows * m->mix_s), l.kv = taken(&at, rows * m->kv_s);
    l.mixed = taken(&at, rows * m->mix_s), l.y = taken(&at, rows * m->width_s);
    l.z = taken(&at, rows * m->width_s), l.middle = taken(&at, rows * m->middle_s);
    l.active = taken(&at, rows * m->hidden_s), l.moments = taken(&at, 2 * rows);
    l.moments_2 = taken(&at, 2 * rows), l.lse = taken(&at, rows * m->heads);
    l.xa = l.last ? m->xa : l.x, l.na = l.last ? m->na : l.n;
    return l;
}

/* Where a sequence's queries begin: their place in the sequence, and their row. */
static int first_query(const Model *m, const Layer *l, int s) { return l->last ? m->from[s] : 0; }
static int query_row(const Model *m, const Layer *l, int s) {
    return l->last ? m->asking[s] : m->first[s];
}

#define QUERIES 64 /* of a head at a time */

static Model opened(GLOBAL const int *shape, float epsilon, float sharpness,
                    GLOBAL const float *weights, GLOBAL const float *turned,
                    GLOBAL float *gradients, GLOBAL const i64 *places, GLOBAL const float *turns,
                    GLOBAL float *memory, GLOBAL int *notes) {
    Model m;
    m.layers = shape[0], m.width = shape[1], m.heads = shape[2], m.groups = shape[3];
    m.size = shape[4], m.hidden = shape[5], m.words = shape[6], m.rms = shape[7];
    m.gated = shape[8], m.activation = shape[9], m.learned = shape[10];
    m.silent = shape[11], m.rows = shape[12], m.span = shape[13];
    m.epsilon = epsilon, m.sharpness = sharpness;
    m.mix = m.heads * m.size, m.kv = 2 * m.groups * m.size;
    m.middle = m.gated ? UP(m.hidden) + m.hidden : m.hidden;
    m.width_s = STRIDE(m.width), m.mix_s = STRIDE(m.mix), m.kv_s = STRIDE(m.kv);
    m.middle_s = STRIDE(m.middle), m.hidden_s = STRIDE(m.hidden), m.words_s = STRIDE(m.words);
    m.size_s = STRIDE(m.size), m.span_s = STRIDE(m.span);
    m.weights = weights, m.turned = turned, m.gradients = gradients, m.places = places;
    m.turns = turns;
    i64 rows = m.rows;
    m.zero = taken(&memory, m.width_s + m.mix_s + m.kv_s + m.middle_s + m.words_s + m.span_s);
    m.layer = taken(&memory, m.layers * layer_floats(&m));
    m.xa = taken(&memory, rows * m.width_s), m.na = taken(&memory, rows * m.width_s);
    m.x = taken(&memory, rows * m.width_s), m.n = taken(&memory, rows * m.width_s);
    m.moments = taken(&memory, 2 * rows), m.logits = taken(&memory, rows * m.words_s);
    m.d = taken(&memory, rows * m.width_s), m.d_all = taken(&memory, rows * m.width_s);
    m.dn = taken(&memory, rows * m.width_s), m.dq = taken(&memory, rows * m.mix_s);
    m.dkv = taken(&memory, rows * m.kv_s), m.dmixed = taken(&memory, rows * m.mix_s);
    m.dmiddle = taken(&memory, rows * m.middle_s), m.dactive = taken(&memory, rows * m.hidden_s);
    m.keys = taken(&memory, m.size * m.span_s), m.values = taken(&memory, m.size * m.span_s);
    m.s = taken(&memory, QUERIES * m.span_s), m.t = taken(&memory, QUERIES * m.span_s);
    m.o = taken(&memory, QUERIES * m.size_s);
    m.dkeys = taken(&memory, m.span * m.size_s), m.dvalues = taken(&memory, m.span * m.size_s);
    m.token = notes, m.where = notes + rows, m.label = notes + 2 * rows;
    m.first = notes + 3 * rows, m.length = notes + 4 * rows, m.from = notes + 5 * rows;
    m.asking = notes + 6 * rows;
    return m;
}

/* -- forward ------------------------------------------------------------------------ */

static void embed(const Model *m, GLOBAL float *to) {
    for (int r = 0; r < m->read; r++) {
        GLOBAL const float *word = WEIGHT(m, EMBEDDING) + m->token[r] * m->width_s;
        GLOBAL const float *place = WEIGHT(m, POSITION) + m->where[r] * m->width_s;
        GLOBAL float *x = to + r * m->width_s;
        FOR_VECTORS(i, m->width) VEC(x + i) = CVEC(word + i);
        if (m->learned) FOR_VECTORS(i, m->width) VEC(x + i) += CVEC(place + i);
    }
}

/* n = (x - mean) / deviation * scale + shift; RMSNorm takes 0 for the mean. `moments` keeps the
 * mean and 1 / deviation of each row. */
static void normalize(const Model *m, GLOBAL const float *x, int rows, int at, GLOBAL float *n,
                      GLOBAL float *moments) {
    GLOBAL const float *scale = WEIGHT(m, at), *shift = WEIGHT(m, at + 1);
    int whole = m->width / LANES * LANES;
    for (int r = 0; r < rows; r++, x += m->width_s, n += m->width_s) {
        float mean = 0;
        if (!m->rms) {
            vec sum = ALL(0.0f);
            FOR_VECTORS(i, m->width) sum += CVEC(x + i);
            mean = sum_of(sum) / m->width;
        }
        vec squares = ALL(0.0f);
        FOR_VECTORS(i, whole) {
            vec gap = CVEC(x + i) - mean;
            squares += gap * gap;
        }
        float square = sum_of(squares);
        for (int i = whole; i < m->width; i++) square += (x[i] - mean) * (x[i] - mean);
        float by = 1.0f / ROOT(square / m->width + m->epsilon);
        FOR_VECTORS(i, m->width)
        VEC(n + i) = (CVEC(x + i) - mean) * by * CVEC(scale + i) + CVEC(shift + i);
        moments[2 * r] = mean, moments[2 * r + 1] = by;
    }
}

/* Turns a head by its position, the first half of its numbers against the second; `back` undoes
 * it, which is also what its gradient needs. */
INLINE void rotate(const Model *m, GLOBAL float *head, int where, int back) {
    int middle = m->size / 2, i = 0;
    GLOBAL const float *cosine = m->turns + (i64)where * m->size, *sine = cosine + middle;
    float sign = back ? -1.0f : 1.0f;
    for (; i + LANES <= middle; i += LANES) {
        vec a = CVEC(head + i), b = CVEC(head + middle + i), c = CVEC(cosine + i);
        vec s = CVEC(sine + i) * sign;
        VEC(head + i) = a * c - b * s;
        VEC(head + middle + i) = b * c + a * s;
    }
    for (; i < middle; i++) {
        float a = head[i], b = head[middle + i], c = cosine[i], s = sine[i] * sign;
        head[i] = a * c - b * s;
        head[middle + i] = b * c + a * s;
    }
}

/* Turns queries (at q) and keys (at kv) of all sequences. */
static void rotate_all(const Model *m, const Layer *l, GLOBAL float *q, GLOBAL float *kv,
                       int back) {
    for (int s = 0; s < m->count; s++) {
        int first = first_query(m, l, s), row = query_row(m, l, s);
        for (int t = 0; t < m->length[s]; t++) {
            int where = m->where[m->first[s] + t];
            for (int g = 0; g < m->groups; g++)
                rotate(m, kv + (m->first[s] + t) * m->kv_s + g * m->size, where, back);
            for (int h = 0; t >= first && h < m->heads; h++)
                rotate(m, q + (row + t - first) * m->mix_s + h * m->size, where, back);
        }
    }
}

/* scores = a keys for queries q0 .. q0 + rows of a sequence: nothing where only later keys are. */
static void compare(const Model *m, GLOBAL const float *a, GLOBAL const float *keys, int q0,
                    int rows, GLOBAL float *scores) {
    for (int r = 0; r < rows; r += TALL) {
        int here = MIN(TALL, rows - r);
        multiply(a + r * m->mix_s, m->mix_s, keys, m->span_s, m->size, scores + r * m->span_s,
                 m->span_s, here, q0 + r + here, m->zero, 0, m->zero);
    }
}

/* Scores of a query that sees the first `seen` keys -> weights, zeros up to `stop`. Returns their
 * sum; `lse` gets its logarithm. */
static float soften(GLOBAL float *s, int seen, int stop, float by, GLOBAL float *lse) {
    int whole = UP(seen);
    for (int j = seen; j < whole; j++) s[j] = -INFINITY_F;
    float top = largest(s, whole) * by;
    vec sum = ALL(0.0f);
    FOR_VECTORS(j, whole) {
        vec e = exponential(CVEC(s + j) * by - top);
        VEC(s + j) = e;
        sum += e;
    }
    for (int j = whole; j < stop; j += LANES) VEC(s + j) = ALL(0.0f);
    float total = sum_of(sum);
    *lse = top + LOG(total);
    return total;
}

/* Attention of sequence s, the heads of one group. */
static void attend(const Model *m, const Layer *l, int s, int group) {
    int first = first_query(m, l, s), row = query_row(m, l, s), per = m->heads / m->groups;
    GLOBAL const float *k = l->kv + m->first[s] * m->kv_s + group * m->size;
    GLOBAL const float *v = k + m->groups * m->size;
    turn(k, m->kv_s, m->length[s], m->size, m->keys, m->span_s);
    for (int h = group * per; h < (group + 1) * per; h++)
        for (int q0 = first; q0 < m->length[s]; q0 += QUERIES) {
            int rows = MIN(QUERIES, m->length[s] - q0), at = row + q0 - first;
            compare(m, l->q + at * m->mix_s + h * m->size, m->keys, q0, rows, m->s);
            for (int r = 0; r < rows; r += TALL) {
                int here = MIN(TALL, rows - r), end = q0 + r + here;
                float totals[TALL];
                for (int i = r; i < r + here; i++)
                    totals[i - r] = soften(m->s + i * m->span_s, q0 + i + 1, UP(end),
                                           m->sharpness, l->lse + (at + i) * m->heads + h);
                multiply(m->s + r * m->span_s, m->span_s, v, m->kv_s, end, m->o, m->size_s, here,
                         m->size, m->zero, 0, m->zero);
                for (int i = 0; i < here; i++) {
                    GLOBAL float *to = l->mixed + (at + r + i) * m->mix_s + h * m->size;
                    float by = 1.0f / totals[i];
                    for (int c = 0; c < m->size; c++) to[c] = m->o[i * m->size_s + c] * by;
                }
            }
        }
}

/* SiLU is x * sigmoid(x), GELU (tanh form) x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
INLINE vec activated(vec x, int activation) {
    if (activation == RELU) return PICK(x > ALL(0.0f), x, ALL(0.0f));
    vec u = x;
    if (activation == GELU_TANH) u = x * 1.5957691216f * (x * x * 0.044715f + 1.0f);
    return x / one_over_sigmoid(u);
}

/* The activation's derivative. */
INLINE vec slope(vec x, int activation) {
    if (activation == RELU) return PICK(x > ALL(0.0f), ALL(1.0f), ALL(0.0f));
    vec u = x, du = ALL(1.0f);
    if (activation == GELU_TANH) {
        u = x * 1.5957691216f * (x * x * 0.044715f + 1.0f);
        du = (x * x * 0.134145f + 1.0f) * 1.5957691216f;
    }
    vec share = ALL(1.0f) / one_over_sigmoid(u);
    return share + x * share * (ALL(1.0f) - share) * du;
}

INLINE void activate_as(const Model *m, const Layer *l, int activation) {
    for (int r = 0; r < l->rows; r++) {
        GLOBAL const float *x = l->middle + r * m->middle_s, *up = x + UP(m->hidden);
        GLOBAL float *y = l->active + r * m->hidden_s;
        FOR_VECTORS(i, m->hidden) {
            vec v = activated(CVEC(x + i), activation);
            if (m->gated) v = v * CVEC(up + i);
            VEC(y + i) = v;
        }
    }
}

INLINE void deactivate_as(const Model *m, const Layer *l, int activation) {
    for (int r = 0; r < l->rows; r++) {
        GLOBAL const float *x = l->middle + r * m->middle_s, *up = x + UP(m->hidden);
        GLOBAL const float *dy = m->dactive + r * m->hidden_s;
        GLOBAL float *dx = m->dmiddle + r * m->middle_s, *dup = dx + UP(m->hidden);
        FOR_VECTORS(i, m->hidden) {
            vec v = CVEC(x + i), d = CVEC(dy + i);
            if (m->gated) {
                VEC(dup + i) = d * activated(v, activation);
                d = d * CVEC(up + i);
            }
            VEC(dx + i) = d * slope(v, activation);
        }
    }
}

static void activate(const Model *m, const Layer *l) {
    if (m->activation == RELU) activate_as(m, l, RELU);
    if (m->activation == SILU) activate_as(m, l, SILU);
    if (m->activation == GELU_TANH) activate_as(m, l, GELU_TANH);
}

static void deactivate(const Model *m, const Layer *l) {
    if (m->activation == RELU) deactivate_as(m, l, RELU);
    if (m->activation == SILU) deactivate_as(m, l, SILU);
    if (m->activation == GELU_TANH) deactivate_as(m, l, GELU_TANH);
}

/* The rows that ask, side by side. */
static void gather(const Model *m, GLOBAL const float *all, GLOBAL float *asked) {
    for (int s = 0; s < m->count; s++)
        copy(all + (m->first[s] + m->from[s]) * m->width_s, asked + m->asking[s] * m->width_s,
             (m->length[s] - m->from[s]) * m->width_s);
}

/* y = init + x W + b for the linear layer whose weights stand at `at`, its bias next. */
static void linear(const Model *m, GLOBAL const float *x, i64 x_s, int inputs, int at,
                   GLOBAL float *y, i64 y_s, int outputs, int rows, GLOBAL const float *init,
                   i64 init_s) {
    multiply(x, x_s, WEIGHT(m, at), STRIDE(outputs), inputs, y, y_s, rows, outputs, init, init_s,
             WEIGHT(m, at + 1));
}

static void forward(const Model *m) {
    embed(m, layer_of(m, 0).x);
    for (int n = 0; n < m->layers; n++) {
        Layer l = layer_of(m, n);
        GLOBAL float *next = l.last ? m->x : layer_of(m, n + 1).x;
        normalize(m, l.x, m->read, l.layer + SCALE_1, l.n, l.moments);
        if (l.last) gather(m, l.x, m->xa), gather(m, l.n, m->na);
        linear(m, l.na, m->width_s, m->width, l.layer + QUERY, l.q, m->mix_s, m->mix, l.rows,
               m->zero, 0);
        linear(m, l.n, m->width_s, m->width, l.layer + KEYS, l.kv, m->kv_s, m->kv, m->read,
               m->zero, 0);
        if (!m->learned) rotate_all(m, &l, l.q, l.kv, 0);
        for (int s = 0; s < m->count; s++)
            for (int g = 0; g < m->groups; g++) attend(m, &l, s, g);
        linear(m, l.mixed, m->mix_s, m->mix, l.layer + OUT, l.y, m->width_s, m->width, l.rows,
               l.xa, m->width_s);
        normalize(m, l.y, l.rows, l.layer + SCALE_2, l.z, l.moments_2);
        linear(m, l.z, m->width_s, m->width, l.layer + MIDDLE, l.middle, m->middle_s, m->middle,
               l.rows, m->zero, 0);
        activate(m, &l);
        linear(m, l.active, m->hidden_s, m->hidden, l.layer + DOWN, next, m->width_s, m->width,
               l.rows, l.y, m->width_s);
    }
    normalize(m, m->x, m->asked, SCALE, m->n, m->moments);
    multiply(m->n, m->width_s, TURNED(m, HEAD), m->words_s, m->width, m->logits, m->words_s,
             m->asked, m->words, m->zero, 0, m->zero);
}

/* -- backward ----------------------------------------------------------------------- */

/* Sum of the cross-entropies; logits -> their gradient, times `share`. */
static double losses(const Model *m, float share) {
    double loss = 0;
    for (int r = 0; r < m->asked; r++) {
        GLOBAL float *x = m->logits + r * m->words_s;
        int whole = UP(m->words);
        for (int v = m->words; v < whole; v++) x[v] = -INFINITY_F;
        float top = largest(x, whole), right = x[m->label[r]];
        vec sum = ALL(0.0f);
        FOR_VECTORS(v, whole) {
            vec e = exponential(CVEC(x + v) - top);
            VEC(x + v) = e;
            sum += e;
        }
        float total = sum_of(sum);
        loss += LOG(total) + (top - right);
        FOR_VECTORS(v, whole) VEC(x + v) = CVEC(x + v) * (share / total);
        x[m->label[r]] -= share;
    }
    return loss;
}

/* Gradients of a linear layer's weights and bias, and of its input x: dx = init + dy W^T. */
static void linear_back(const Model *m, GLOBAL const float *x, i64 x_s, int inputs, int at,
                        GLOBAL const float *dy, i64 dy_s, int outputs, int rows, GLOBAL float *dx,
                        GLOBAL const float *init, i64 init_s) {
    i64 stride = STRIDE(outputs);
    GLOBAL float *dw = GRADIENT(m, at), *db = GRADIENT(m, at + 1);
    multiply_turned(x, x_s, dy, dy_s, rows, dw, stride, inputs, outputs, dw, stride, m->zero);
    for (int r = 0; r < rows; r++)
        FOR_VECTORS(i, outputs) VEC(db + i) += CVEC(dy + r * dy_s + i);
    multiply(dy, dy_s, TURNED(m, at), STRIDE(inputs), outputs, dx, STRIDE(inputs), rows, inputs,
             init, init_s, m->zero);
}

/* d = init + the gradient of a norm's input, given dn, that of its output. */
static void normalize_back(const Model *m, GLOBAL const float *x, int rows, int at,
                           GLOBAL const float *moments, GLOBAL const float *dn, GLOBAL float *d,
                           GLOBAL const float *init, i64 init_s) {
    GLOBAL const float *scale = WEIGHT(m, at);
    GLOBAL float *dscale = GRADIENT(m, at), *dshift = GRADIENT(m, at + 1);
    for (int r = 0; r < rows; r++, x += m->width_s, dn += m->width_s, d += m->width_s) {
        float mean = moments[2 * r], by = moments[2 * r + 1];
        vec plain = ALL(0.0f), along = ALL(0.0f);
        FOR_VECTORS(i, m->width) {
            vec g = CVEC(dn + i), n = (CVEC(x + i) - mean) * by;
            VEC(dscale + i) += g * n;
            VEC(dshift + i) += g;
            g = g * CVEC(scale + i);
            plain += g;
            along += g * n;
        }
        float middle = m->rms ? 0.0f : sum_of(plain) / m->width;
        float tilt = sum_of(along) / m->width;
        FOR_VECTORS(i, m->width) {
            vec g = CVEC(dn + i) * CVEC(scale + i), n = (CVEC(x + i) - mean) * by;
            VEC(d + i) = CVEC(init + i) + (g - middle - n * tilt) * by;
        }
        init += init_s;
    }
}

/* Scores s and gradients of weights t of a query -> weights s, gradients of scores t. */
static void soften_back(GLOBAL float *s, GLOBAL float *t, int seen, int stop, float by, float lse) {
    int whole = UP(seen);
    for (int j = seen; j < whole; j++) s[j] = -INFINITY_F, t[j] = 0;
    vec sum = ALL(0.0f);
    FOR_VECTORS(j, whole) {
        vec p = exponential(CVEC(s + j) * by - lse);
        VEC(s + j) = p;
        sum += p * CVEC(t + j);
    }
    float mean = sum_of(sum);
    FOR_VECTORS(j, whole) VEC(t + j) = CVEC(s + j) * (CVEC(t + j) - mean) * by;
    for (int j = whole; j < stop; j += LANES) VEC(s + j) = VEC(t + j) = ALL(0.0f);
}

/* dk += ds^T q, or dv += p^T do, for queries q0 .. q0 + rows: key j is seen from query j on. */
static void collect(const Model *m, GLOBAL const float *s, GLOBAL const float *a, int q0, int rows,
                    GLOBAL float *to) {
    for (int j = 0; j < q0 + rows; j += TALL) {
        int here = MIN(TALL, q0 + rows - j), skip = MAX(0, j - q0);
        GLOBAL float *at = to + j * m->size_s;
        multiply_turned(s + skip * m->span_s + j, m->span_s, a + skip * m->mix_s, m->mix_s,
                        rows - skip, at, m->size_s, here, m->size, at, m->size_s, m->zero);
    }
}

/* Gradients of queries, keys and values of sequence s, the heads of one group. */
static void attend_back(const Model *m, const Layer *l, int s, int group) {
    int first = first_query(m, l, s), row = query_row(m, l, s), per = m->heads / m->groups;
    int length = m->length[s], gap = m->groups * m->size;
    GLOBAL const float *k = l->kv + m->first[s] * m->kv_s + group * m->size;
    GLOBAL float *dk = m->dkv + m->first[s] * m->kv_s + group * m->size;
    turn(k, m->kv_s, length, m->size, m->keys, m->span_s);
    turn(k + gap, m->kv_s, length, m->size, m->values, m->span_s);
    clear(m->dkeys, length * m->size_s), clear(m->dvalues, length * m->size_s);
    for (int h = group * per; h < (group + 1) * per; h++)
        for (int q0 = first; q0 < length; q0 += QUERIES) {
            int rows = MIN(QUERIES, length - q0), at = row + q0 - first;
            GLOBAL const float *q = l->q + at * m->mix_s + h * m->size;
            GLOBAL const float *go = m->dmixed + at * m->mix_s + h * m->size;
            compare(m, q, m->keys, q0, rows, m->s);
            compare(m, go, m->values, q0, rows, m->t);
            for (int r = 0; r < rows; r++)
                soften_back(m->s + r * m->span_s, m->t + r * m->span_s, q0 + r + 1, UP(q0 + rows),
                            m->sharpness, l->lse[(at + r) * m->heads + h]);
            for (int r = 0; r < rows; r += TALL) {
                int here = MIN(TALL, rows - r);
                multiply(m->t + r * m->span_s, m->span_s, k, m->kv_s, q0 + r + here,
                         m->o + r * m->size_s, m->size_s, here, m->size, m->zero, 0, m->zero);
            }
            for (int r = 0; r < rows; r++)
                copy(m->o + r * m->size_s, m->dq + (at + r) * m->mix_s + h * m->size, m->size);
            collect(m, m->s, go, q0, rows, m->dvalues);
            collect(m, m->t, q, q0, rows, m->dkeys);
        }
    for (int t = 0; t < length; t++) {
        copy(m->dkeys + t * m->size_s, dk + t * m->kv_s, m->size);
        copy(m->dvalues + t * m->size_s, dk + t * m->kv_s + gap, m->size);
    }
}

/* Adds the rows that asked to all rows. */
static void scatter(const Model *m, GLOBAL const float *asked, GLOBAL float *all) {
    for (int s = 0; s < m->count; s++) {
        GLOBAL float *to = all + (m->first[s] + m->from[s]) * m->width_s;
        GLOBAL const float *x = asked + m->asking[s] * m->width_s;
        for (i64 i = 0; i < (m->length[s] - m->from[s]) * m->width_s; i++) to[i] += x[i];
    }
}

/* m->d, the gradient of what layer `l` gives -> that of what it takes. */
static void layer_back(Model *m, const Layer *l) {
    i64 width_s = m->width_s;
    int at = l->layer, rows = l->rows;
    linear_back(m, l->active, m->hidden_s, m->hidden, at + DOWN, m->d, width_s, m->width, rows,
                m->dactive, m->zero, 0);
    deactivate(m, l);
    linear_back(m, l->z, width_s, m->width, at + MIDDLE, m->dmiddle, m->middle_s, m->middle, rows,
                m->dn, m->zero, 0);
    normalize_back(m, l->y, rows, at + SCALE_2, l->moments_2, m->dn, m->d, m->d, width_s);
    linear_back(m, l->mixed, m->mix_s, m->mix, at + OUT, m->d, width_s, m->width, rows, m->dmixed,
                m->zero, 0);
    for (int s = 0; s < m->count; s++)
        for (int g = 0; g < m->groups; g++) attend_back(m, l, s, g);
    if (!m->learned) rotate_all(m, l, m->dq, m->dkv, 1);
    GLOBAL float *dn = l->last ? m->xa : m->dn; /* nobody needs xa any more */
    linear_back(m, l->na, width_s, m->width, at + QUERY, m->dq, m->mix_s, m->mix, rows, dn, m->zero,
                0);
    linear_back(m, l->n, width_s, m->width, at + KEYS, m->dkv, m->kv_s, m->kv, m->read, m->dn,
                l->last ? m->zero : m->dn, l->last ? 0 : width_s);
    if (l->last) {
        scatter(m, dn, m->dn);
        clear(m->d_all, m->read * width_s);
        scatter(m, m->d, m->d_all);
        GLOBAL float *d = m->d;
        m->d = m->d_all, m->d_all = d;
    }
    normalize_back(m, l->x, m->read, at + SCALE_1, l->moments, m->dn, m->d, m->d, width_s);
}

static void backward(Model *m) {
    GLOBAL float *dhead = GRADIENT(m, HEAD);
    multiply_turned(m->logits, m->words_s, m->n, m->width_s, m->asked, dhead, m->width_s, m->words,
                    m->width, dhead, m->width_s, m->zero);
    multiply(m->logits, m->words_s, WEIGHT(m, HEAD), m->width_s, m->words, m->dn, m->width_s,
             m->asked, m->width, m->zero, 0, m->zero);
    normalize_back(m, m->x, m->asked, SCALE, m->moments, m->dn, m->d, m->zero, 0);
    for (int n = m->layers - 1; n >= 0; n--) {
        Layer l = layer_of(m, n);
        layer_back(m, &l);
    }
    for (int r = 0; r < m->read; r++) {
        GLOBAL const float *d = m->d + r * m->width_s;
        GLOBAL float *word = GRADIENT(m, EMBEDDING) + m->token[r] * m->width_s;
        GLOBAL float *place = GRADIENT(m, POSITION) + m->where[r] * m->width_s;
        if (m->token[r] != m->silent) FOR_VECTORS(i, m->width) VEC(word + i) += CVEC(d + i);
        if (m->learned) FOR_VECTORS(i, m->width) VEC(place + i) += CVEC(d + i);
    }
}

/* -- gradients ---------------------------------------------------------------------- */

/* What the way back, and the head, read transposed. */
static void turn_weights(const Model *m, GLOBAL float *turned) {
    for (int n = 0; n < m->layers; n++) {
        int at = BLOCKS + n * PARTS;
#define TURN(part, inputs, outputs)                                                             \
    turn(WEIGHT(m, at + part), STRIDE(outputs), inputs, outputs, turned + m->places[at + part], \
         STRIDE(inputs));
        TURN(QUERY, m->width, m->mix)
        TURN(KEYS, m->width, m->kv)
        TURN(OUT, m->mix, m->width)
        TURN(MIDDLE, m->width, m->middle)
        TURN(DOWN, m->hidden, m->width)
    }
    turn(WEIGHT(m, HEAD), m->width_s, m->words, m->width, turned + m->places[HEAD], m->words_s);
}

/* Puts sequence `s` into the block: all its tokens but the last. Its queries in the last layer
 * are the tokens before those to be learned, which begin at place `begin`. */
static void put(Model *m, GLOBAL const int *tokens, GLOBAL const int *where, int length, int begin,
                int offset) {
    int s = m->count++;
    m->first[s] = m->read, m->length[s] = length - 1;
    m->from[s] = begin - 1, m->asking[s] = m->asked;
    for (int t = 0; t < length - 1; t++, m->read++) {
        m->token[m->read] = tokens[t], m->where[m->read] = where[t] + offset;
        if (t >= begin - 1) m->label[m->asked++] = tokens[t + 1];
    }
}

/* Mean cross-entropy of what is to be learned of a batch, and its gradients. The batch is rows
 * picked[0 .. batch] of the examples: row i is tokens[starts[i] .. starts[i + 1]] at positions
 * where[...] + offset, to be learned from place begins[i] on; `count` tokens in all. Weights,
 * gradients and `turned`, which holds weights transposed, have their parts at `places`, whose
 * last number is the size of all. */
KERNEL train_gradients(GLOBAL const int *shape, float epsilon, float sharpness,
                       GLOBAL const float *weights, GLOBAL float *turned, GLOBAL float *gradients,
                       GLOBAL const i64 *places, GLOBAL const float *turns,
                       GLOBAL float *memory, GLOBAL int *notes, GLOBAL const int *tokens,
                       GLOBAL const int *where, GLOBAL const int *starts, GLOBAL const int *begins,
                       GLOBAL const int *picked, GLOBAL const int *offsets, int batch, int count,
                       GLOBAL float *loss, int items) {
    FOR_ITEMS(item, items) {
        Model m = opened(shape, epsilon, sharpness, weights, turned, gradients, places, turns,
                         memory, notes);
        double total = 0;
        clear(gradients, places[BLOCKS + m.layers * PARTS]);
        turn_weights(&m, turned);
        for (int b = 0; b < batch;) {
            m.count = m.read = m.asked = 0;
            for (; b < batch; b++) {
                int i = picked[b], length = starts[i + 1] - starts[i];
                if (m.read + length - 1 > m.rows || m.count == m.rows) break;
                put(&m, tokens + starts[i], where + starts[i], length, begins[i], offsets[b]);
            }
            forward(&m);
            total += losses(&m, 1.0f / count);
            backward(&m);
        }
        *loss = total / count;
    }
}

/* -- the update --------------------------------------------------------------------- */

/* One step for `count` parts; `means` and `squares` are averages of earlier gradients. */
KERNEL train_update(GLOBAL const i64 *parts, int count, GLOBAL const float *rates,
                    GLOBAL float *weights, GLOBAL const float *gradients, GLOBAL float *means,
                    GLOBAL float *squares, GLOBAL float *memory, int items) {
    FOR_ITEMS(item, items) {
        float by = clipping(parts, count, gradients, rates[CLIP]);
        for (int i = 0; i < count;) {
            GLOBAL const i64 *part = parts + i * FIELDS;
            if (part[MATRIX] >= 0) {
                i += muon(part, count - i, weights, gradients, means, by, rates, memory);
                continue;
            }
            for (i64 r = 0; r < part[ROWS]; r++) {
                i64 at = part[AT] + r * part[APART];
                adam(weights + at, gradients + at, means + at, squares + at, part[COLUMNS], by,
                     rates);
            }
            i++;
        }
    }
}
