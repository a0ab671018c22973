/* AdamW and Muon on weights that lie in parts, see train.py. */
#ifndef OPTIMIZERS_H
#define OPTIMIZERS_H
#include "products.h"

/* A part of the weights that is one parameter, or some columns of one that Muon takes whole:
 * parts with the same matrix number stand side by side in it. */
enum { AT, ROWS, COLUMNS, APART, MATRIX, FLIPPED, FIELDS };
/* Numbers of a step, in the order of train.py. */
enum { CLIP, ADAM_RATE, ADAM_KEEP, ADAM_ROOT, MUON_RATE, MUON_KEEP };
#define REST_1 0.1f /* 1 - beta, which 1 - 0.9f is not */
#define BETA_2 0.95f
#define REST_2 0.05f
#define EPSILON 1e-8f
#define REST 0.05f /* 1 - momentum */
#define SHORTEST 1e-7f

static double square_of(GLOBAL const float *restrict x, int n) {
    vec sum = ALL(0.0f);
    int whole = n / LANES * LANES;
    FOR_VECTORS(i, whole) sum += CVEC(x + i) * CVEC(x + i);
    double total = sum_of(sum);
    for (int i = whole; i < n; i++) total += x[i] * x[i];
    return total;
}

/* What gradients are multiplied by: 1, and less where their norm is above `clip`. */
static float clipping(GLOBAL const i64 *parts, int count, GLOBAL const float *gradients,
                      float clip) {
    double square = 0;
    for (int i = 0; i < count; i++, parts += FIELDS)
        for (i64 r = 0; r < parts[ROWS]; r++)
            square += square_of(gradients + parts[AT] + r * parts[APART], parts[COLUMNS]);
    float by = clip / (ROOT(square) + 1e-6f);
    return by > 1 ? 1 : by;
}

/* AdamW (Loshchilov and Hutter, 2019) on n numbers. */
static void adam(GLOBAL float *restrict w, GLOBAL const float *restrict gradients,
                 GLOBAL float *restrict mean, GLOBAL float *restrict square, int n, float by,
                 GLOBAL const float *restrict rates) {
    float keep = rates[ADAM_KEEP], rate = rates[ADAM_RATE], root = rates[ADAM_ROOT];
    for (int i = 0; i < n; i++) {
        float g = gradients[i] * by;
        mean[i] += (g - mean[i]) * REST_1;
        square[i] = square[i] * BETA_2 + g * g * REST_2;
        w[i] = w[i] * keep - rate * (mean[i] / (ROOT(square[i]) / root + EPSILON));
    }
}

/* c = a^T b, which is known to be symmetric, (n, n): little more than half of it is computed, in
 * eight bands at most, so that what a band loads serves many rows. */
static void symmetric(GLOBAL const float *a, GLOBAL const float *b, int depth, int n,
                      GLOBAL float *c, GLOBAL const float *zero) {
    i64 stride = STRIDE(n);
    int band = MAX(n / 8 / TALL, 1) * TALL;
    for (int r = 0; r < n; r += band) {
        int from = r / LANES * LANES;
        multiply_turned(a + r, stride, b + from, stride, depth, c + r * stride + from, stride,
                        MIN(band, n - r), n - from, zero, 0, zero);
    }
    for (int r = LANES; r < n; r++) {
        int end = r / band * band / LANES * LANES;
        for (int i = 0; i < end; i++) c[r * stride + i] = c[i * stride + r];
    }
}

/* x (rows, n) of norm 1 -> singular values near 1, by a quintic Newton-Schulz iteration. Returns
 * where it lies. memory: a row of zeros, x, room as large as x, two squares. */
static GLOBAL float *orthogonal(GLOBAL float *memory, int rows, int n) {
    const float first = 3.4445f, second = -4.7750f, third = 2.0315f;
    i64 stride = STRIDE(n);
    GLOBAL float *zero = taken(&memory, stride), *x = taken(&memory, rows * stride);
    GLOBAL float *other = taken(&memory, rows * stride), *gram = taken(&memory, n * stride);
    GLOBAL float *twice = taken(&memory, n * stride);
    for (int step = 0; step < 5; step++) {
        symmetric(x, x, rows, n, gram, zero);
        symmetric(gram, gram, n, n, twice, zero);
        for (i64 i = 0; i < n * stride; i += LANES)
            VEC(twice + i) = CVEC(twice + i) * third + CVEC(gram + i) * second;
        for (i64 i = 0; i < rows * stride; i += LANES) VEC(other + i) = CVEC(x + i) * first;
        multiply(x, stride, twice, stride, n, other, stride, rows, n, other, stride, zero);
        GLOBAL float *old = x;
        x = other, other = old;
    }
    return x;
}

/* Muon (Jordan et al., 2024) on the matrix that begins with part 0; returns the parts it has. */
static int muon(GLOBAL const i64 *parts, int count, GLOBAL float *weights,
                GLOBAL const float *gradients, GLOBAL float *means, float by,
                GLOBAL const float *rates, GLOBAL float *memory) {
    int rows = parts[ROWS], columns = 0, many = 0;
    for (; many < count && parts[many * FIELDS + MATRIX] == parts[MATRIX]; many++)
        columns += parts[many * FIELDS + COLUMNS];
    int wide = columns > rows, across = wide ? rows : columns, along = wide ? columns : rows;
    i64 stride = STRIDE(across), row = wide ? 1 : stride, column = wide ? stride : 1;
    GLOBAL float *x = memory + stride;
    double square = 0;
    clear(memory, (along + 1) * stride); /* other matrices had other strides */
    for (int p = 0, before = 0; p < many; before += parts[p * FIELDS + COLUMNS], p++)
        for (int r = 0; r < rows; r++) {
            i64 at = parts[p * FIELDS + AT] + r * parts[p * FIELDS + APART];
            GLOBAL float *to = x + r * row + before * column;
            for (int c = 0; c < parts[p * FIELDS + COLUMNS]; c++) {
                float g = gradients[at + c] * by;
                float mean = means[at + c] += (g - means[at + c]) * REST;
                float ahead = mean - (mean - g) * REST;
                to[c * column] = ahead;
                square += ahead * ahead;
            }
        }
    float norm = ROOT(square), scale = 1.0f / (norm > SHORTEST ? norm : SHORTEST);
    for (i64 i = 0; i < along * stride; i++) x[i] *= scale;
    x = orthogonal(memory, along, across);
    float shape = parts[FLIPPED] ? (float)columns / rows : (float)rows / columns;
    float rate = rates[MUON_RATE] * ROOT(shape > 1 ? shape : 1);
    for (int p = 0, before = 0; p < many; before += parts[p * FIELDS + COLUMNS], p++)
        for (int r = 0; r < rows; r++) {
            GLOBAL float *w = weights + parts[p * FIELDS + AT] + r * parts[p * FIELDS + APART];
            GLOBAL const float *from = x + r * row + before * column;
            for (int c = 0; c < parts[p * FIELDS + COLUMNS]; c++)
                w[c] = w[c] * rates[MUON_KEEP] - rate * from[c * column];
        }
    return many;
}

#endif
