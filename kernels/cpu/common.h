// What every kernel shares: the exported C interface, the vector type, and the rules of the house.
//
// Rules: rows are contiguous float32, indices int32, sizes int64. One thread owns each element of the output and sums
// it in a fixed order, so that bytes depend neither on the number of threads nor on which rows share a call.
// Arguments were checked in Python.
#pragma once

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

// One vector register of floats, and the same without alignment for loads and stores.
typedef float Vector __attribute__((vector_size(WIDTH * 4)));
typedef float Unaligned __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

static inline Vector load(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }
static inline void store(float *to, Vector value) { *reinterpret_cast<Unaligned *>(to) = value; }
static inline Vector spread(float value) { return Vector{} + value; }

// a·b + c; fused where the variant has the instruction (contraction is off, so that this is the only place).
#if defined(__AVX512F__)
#include <immintrin.h>
static inline Vector fma(Vector a, Vector b, Vector c) { return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX2__)
#include <immintrin.h>
static inline Vector fma(Vector a, Vector b, Vector c) { return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
static inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
#endif

// Sum of the lanes, always in the same order.
static inline float sum(Vector value) {
    float lanes[WIDTH];
    store(lanes, value);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// a·b over d dimensions.
static inline float dot(const float *a, const float *b, int64_t d) {
    Vector first = {}, second = {}, third = {}, fourth = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= d; i += 4 * WIDTH) {
        first = fma(load(a + i), load(b + i), first);
        second = fma(load(a + i + WIDTH), load(b + i + WIDTH), second);
        third = fma(load(a + i + 2 * WIDTH), load(b + i + 2 * WIDTH), third);
        fourth = fma(load(a + i + 3 * WIDTH), load(b + i + 3 * WIDTH), fourth);
    }
    for (; i + WIDTH <= d; i += WIDTH) first = fma(load(a + i), load(b + i), first);
    float total = sum((first + second) + (third + fourth));
    for (; i < d; ++i) total += a[i] * b[i];
    return total;
}

// y += scale·x over d dimensions.
static inline void add_scaled(float *y, float scale, const float *x, int64_t d) {
    const Vector by = spread(scale);
    int64_t i = 0;
    for (; i + WIDTH <= d; i += WIDTH) store(y + i, fma(by, load(x + i), load(y + i)));
    for (; i < d; ++i) y[i] += scale * x[i];
}
