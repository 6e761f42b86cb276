// What every kernel shares: the exported C interface, the vector type, and the rules of the house.
//
// Rules: rows are contiguous float32, indices int32, sizes int64. One thread owns each element of the output and sums
// it in a fixed order, so that bytes depend neither on the number of threads nor on which rows share a call.
// Arguments were checked in Python.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

typedef int32_t Integers __attribute__((vector_size(WIDTH * 4)));
typedef int32_t UnalignedIntegers __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

static inline Vector load(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }
static inline void store(float *to, Vector value) { *reinterpret_cast<Unaligned *>(to) = value; }
static inline Integers load(const int32_t *from) { return *reinterpret_cast<const UnalignedIntegers *>(from); }
// A broadcast from memory does not take a slot of the multipliers, as one from a register does: hence the intrinsics.
#if defined(__AVX512F__)
static inline Vector spread(float value) { return (Vector)_mm512_set1_ps(value); }
#elif defined(__AVX2__)
static inline Vector spread(float value) { return (Vector)_mm256_set1_ps(value); }
#else
static inline Vector spread(float value) { return Vector{value, value, value, value}; }
#endif

// a·b + c; fused where the variant has the instruction (contraction is off, so that this is the only place). One
// number is rounded as a lane of a vector is, so that bytes do not depend on where a loop's vector part ends.
#if defined(__AVX512F__)
static inline Vector fma(Vector a, Vector b, Vector c) {
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#elif defined(__AVX2__)
static inline Vector fma(Vector a, Vector b, Vector c) {
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
static inline float fma(float a, float b, float c) { return a * b + c; }
#endif

// Comparisons of lanes, as bits: bit j is set where the comparison holds for lane j.
enum Comparison { ABOVE, AT_LEAST, NOT_AT_MOST };
constexpr uint32_t ALL = (1u << WIDTH) - 1;

template <Comparison C>
static inline uint32_t compare(Vector a, Vector b) {
#if defined(__AVX2__)
    constexpr int code = C == ABOVE ? _CMP_GT_OQ : C == AT_LEAST ? _CMP_GE_OQ : _CMP_NLE_UQ;
#endif
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, code);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, code));
#else
    uint32_t bits = 0;
    for (int j = 0; j < WIDTH; ++j)
        bits |= uint32_t(C == ABOVE ? a[j] > b[j] : C == AT_LEAST ? a[j] >= b[j] : !(a[j] <= b[j])) << j;
    return bits;
#endif
}

// Write the lanes whose bit is set, packed, to `values` and `columns`: up to WIDTH places of both are overwritten.
// Returns how many lanes were kept.
static inline int keep(uint32_t bits, Vector value, Integers column, float *values, int32_t *columns) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(bits, (__m512)value));
    _mm512_storeu_si512(columns, _mm512_maskz_compress_epi32(bits, (__m512i)column));
    return __builtin_popcount(bits);
#else
    int kept = 0;
    for (; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        values[kept] = value[lane];
        columns[kept++] = column[lane];
    }
    return kept;
#endif
}

// 0, 1, 2 … in the lanes.
static inline Integers lane_numbers() {
    Integers numbers;
    for (int j = 0; j < WIDTH; ++j) numbers[j] = j;
    return numbers;
}

// Sum of the lanes, always in the same order.
static inline float sum(Vector value) {
#if defined(__AVX512F__)
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)value), _mm512_extractf32x8_ps((__m512)value, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float lanes[WIDTH];
    store(lanes, value);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
#endif
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
    for (; i < d; ++i) total = fma(a[i], b[i], total);
    return total;
}

// y += scale·x over d dimensions.
static inline void add_scaled(float *y, float scale, const float *x, int64_t d) {
    const Vector by = spread(scale);
    int64_t i = 0;
    for (; i + WIDTH <= d; i += WIDTH) store(y + i, fma(by, load(x + i), load(y + i)));
    for (; i < d; ++i) y[i] = fma(scale, x[i], y[i]);
}
