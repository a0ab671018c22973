/* Tiles of a GPU-shaped source without tensor cores, for attention.cu and entmax.cu.
 *
 * A block of 16 x 16 threads owns ROWS rows and walks over the other side COLS at a time. Thread
 * (ty, tx) holds what belongs to the rows ty, ty + 16, ... and the columns tx, tx + 16, ...
 * WIDTH is that of queries, keys and values, padded; attention_gpu.py knows ROWS and the room that
 * is needed.
 */
#ifndef SIMT_TILES_H
#define SIMT_TILES_H
#define THREADS 256
#include "simt.h"

#if WIDTH > 128
#define ROWS (BACKWARD ? 16 : 32)
#elif WIDTH > 64
#define ROWS (BACKWARD ? 32 : 64)
#else
#define ROWS 64
#endif
#define COLS (BACKWARD ? MIN(ROWS, 32) : ROWS)
#define PITCH (WIDTH + 4) /* of a tile of queries, keys or values: no two rows in one bank */
#define STEP (COLS + 4)   /* of a tile of weights */
#define MINE (ROWS / 16)
#define THEIRS (COLS / 16)
#define SPREAD (WIDTH / 16)

/* Rows from..from + rows of x (stop, width) into a tile, zeros where there is nothing. */
DEVICE void load(GLOBAL const stored *x, int from, int rows, int stop, int width,
                 SHARED float *tile) {
    for (int i = THREAD; i < rows * WIDTH; i += THREADS) {
        int r = i / WIDTH, c = i % WIDTH;
        int there = from + r < stop && c < width;
        tile[r * PITCH + c] = there ? wide(x[(i64)(from + r) * width + c]) : 0.0f;
    }
}

/* s = products of my rows of a tile with my columns' rows of another. */
DEVICE void compare(SHARED const float *rows, SHARED const float *columns, float s[MINE][THEIRS]) {
    int tx = THREAD % 16, ty = THREAD / 16;
    for (int i = 0; i < MINE; i++)
        for (int j = 0; j < THEIRS; j++) s[i][j] = 0.0f;
    for (int c = 0; c < WIDTH; c += 4) {
        float4 b[THEIRS];
        for (int j = 0; j < THEIRS; j++) b[j] = QUAD(columns + (tx + 16 * j) * PITCH + c);
        for (int i = 0; i < MINE; i++) {
            float4 a = QUAD(rows + (ty + 16 * i) * PITCH + c);
            for (int j = 0; j < THEIRS; j++)
                s[i][j] += a.x * b[j].x + a.y * b[j].y + a.z * b[j].z + a.w * b[j].w;
        }
    }
}

/* o += weights (ROWS, COLS) times a tile (COLS, WIDTH). */
DEVICE void blend(SHARED const float *weights, SHARED const float *tile, float o[MINE][SPREAD]) {
    int tx = THREAD % 16, ty = THREAD / 16;
    for (int k = 0; k < COLS; k += 4) {
        float4 w[MINE];
        for (int i = 0; i < MINE; i++) w[i] = QUAD(weights + (ty + 16 * i) * STEP + k);
        for (int c = 0; c < SPREAD; c++) {
            SHARED const float *x = tile + k * PITCH + tx + 16 * c;
            float x0 = x[0], x1 = x[PITCH], x2 = x[2 * PITCH], x3 = x[3 * PITCH];
            for (int i = 0; i < MINE; i++)
                o[i][c] += w[i].x * x0 + w[i].y * x1 + w[i].z * x2 + w[i].w * x3;
        }
    }
}

/* My part of o, times `by`, as rows from.. of y (stop, width). */
#define STORE(y, from, stop, width, o, by, as)                                                  \
    for (int i = 0; i < MINE; i++)                                                              \
        for (int c = 0; c < SPREAD; c++) {                                                      \
            int r = (from) + THREAD / 16 + 16 * i, column = THREAD % 16 + 16 * c;               \
            if (r < (stop) && column < (width)) (y)[(i64)r * (width) + column] = as(o[i][c] * (by)); \
        }

#endif
