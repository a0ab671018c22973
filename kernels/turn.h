/* Rows and columns exchanged, four by four: most of what it costs to lay numbers out for vectors. */
#ifndef TURN_H
#define TURN_H
#include "vectors.h"

/* to[c * to_apart + r] = from[r * apart + c] for r and c from 0 to 3. */
INLINE void turn_four(GLOBAL const float *from, int apart, GLOBAL float *to, int to_apart) {
#ifdef __OPENCL_VERSION__
#define ROW(r) (*(GLOBAL const four *)(from + r * apart))
#define COLUMN(c) (*(GLOBAL four *)(to + c * to_apart))
    four a = ROW(0), b = ROW(1), c = ROW(2), d = ROW(3);
    COLUMN(0) = (four)(a.s0, b.s0, c.s0, d.s0);
    COLUMN(1) = (four)(a.s1, b.s1, c.s1, d.s1);
    COLUMN(2) = (four)(a.s2, b.s2, c.s2, d.s2);
    COLUMN(3) = (four)(a.s3, b.s3, c.s3, d.s3);
#undef ROW
#undef COLUMN
#elif defined(__SSE__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + apart);
    __m128 c = _mm_loadu_ps(from + 2 * apart), d = _mm_loadu_ps(from + 3 * apart);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_apart, b);
    _mm_storeu_ps(to + 2 * to_apart, c);
    _mm_storeu_ps(to + 3 * to_apart, d);
#else
    for (int c = 0; c < 4; c++)
        for (int r = 0; r < 4; r++) to[c * to_apart + r] = from[r * apart + c];
#endif
}

#endif
