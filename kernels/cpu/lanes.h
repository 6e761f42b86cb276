// More of what vectors can do, and arithmetic whose bytes do not depend on them.
//
// Every output element is one chain of multiply-adds in a fixed order: fused where the variant has FMA (in vectors and
// in scalar tails alike), rounded twice where it has not. An element's bytes therefore depend on the variant alone, not
// on its position in a vector, a tile, a block or a thread.
#pragma once

#include "common.h"

static inline float fma(float a, float b, float c) {
#if defined(__AVX512F__) || defined(__AVX2__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// The value in every lane. (Adding it to zeros would be an addition: −0 + 0 is not −0. Subtracting zeros is nothing.)
static inline Vector broadcast(float value) { return value - Vector{}; }

static inline Vector magnitude_of(Vector value) {
    typedef int32_t Bits __attribute__((vector_size(WIDTH * 4)));
    return (Vector)((Bits)value & (Bits{} + 0x7fffffff));
}

// One bit per lane in which a > b; a NaN is greater than nothing.
static inline uint32_t greater(Vector a, Vector b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < WIDTH; lane++) bits |= uint32_t(a[lane] > b[lane]) << lane;
    return bits;
#endif
}
