// Scatter of rows about their mean: Σ(x−μ)(x−μ)ᵀ, summed in float64 from float32 or bfloat16 rows.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "common.h"

namespace {

// Columns are packed in panels of WIDTH: two registers of doubles. A tile is HIGH × WIDTH.
typedef double Doubles __attribute__((vector_size(WIDTH * 4)));
constexpr int LANES = WIDTH / 2;
constexpr int HIGH = WIDTH == 16 ? 8 : 4;
constexpr int64_t CHUNK = 256;  // rows packed at a time
constexpr int64_t PART = 64;    // rows of a tile's sum: two panels of them stay in the first-level cache

inline Doubles read(const double *from) {
    Doubles value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void write(double *to, Doubles value) { std::memcpy(to, &value, sizeof value); }

inline Doubles multiply_add(double a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_fmadd_pd(_mm512_set1_pd(a), (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (Doubles)_mm256_fmadd_pd(_mm256_set1_pd(a), (__m256d)b, (__m256d)c);
#else
    return Doubles{a, a} * b + c;
#endif
}

inline double value_of(float value) { return value; }

// bfloat16 is the upper half of a float32.
inline double value_of(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// to (HIGH, WIDTH) at distance `stride` += Σ over rows of left (rows, WIDTH)[:, 0:HIGH] ⊗ right (rows, WIDTH).
inline __attribute__((always_inline)) void tile(const double *left, const double *right, int64_t rows, double *to,
                                                int64_t stride) {
    Doubles sum[HIGH][2];
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; ++i) {
        sum[i][0] = read(to + i * stride);
        sum[i][1] = read(to + i * stride + LANES);
    }
    for (int64_t row = 0; row < rows; ++row, left += WIDTH, right += WIDTH) {
        const Doubles first = read(right), second = read(right + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < HIGH; ++i) {
            sum[i][0] = multiply_add(left[i], first, sum[i][0]);
            sum[i][1] = multiply_add(left[i], second, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; ++i) {
        write(to + i * stride, sum[i][0]);
        write(to + i * stride + LANES, sum[i][1]);
    }
}

// sum += Σ of `rows` rows of `count` columns at distance d.
template <class Value>
inline __attribute__((always_inline)) void add_rows(const Value *from, int64_t rows, int64_t d, int64_t count,
                                                    double *sum) {
    double own[WIDTH] = {};
    for (int64_t row = 0; row < rows; ++row, from += d)
        for (int64_t j = 0; j < count; ++j) own[j] += value_of(from[j]);
    std::copy_n(own, WIDTH, sum);
}

// Packs them less `mean`, filled up with zeros.
template <class Value>
inline __attribute__((always_inline)) void pack(const Value *from, int64_t rows, int64_t d, int64_t count,
                                                const double *mean, double *to) {
    double own[WIDTH] = {};
    std::copy_n(mean, count, own);
    for (int64_t row = 0; row < rows; ++row, from += d, to += WIDTH) {
        for (int64_t j = 0; j < count; ++j) to[j] = value_of(from[j]) - own[j];
        for (int64_t j = count; j < WIDTH; ++j) to[j] = 0;
    }
}

template <class Value>
int64_t block(const Value *x, int64_t n, int64_t d, double *mean, double *scatter, int64_t stride, int threads) {
    const int64_t panels = stride / WIDTH;
    std::vector<double> packed;
    try {
        packed.resize(std::min(CHUNK, n) * stride);
    } catch (const std::bad_alloc &) {
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        // A column belongs to one thread, and is summed from the first row to the last.
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t first = panel * WIDTH, count = std::min<int64_t>(WIDTH, d - first);
            double sum[WIDTH];
            // Whole panels with a constant width, so that they become vectors.
            if (count == WIDTH) add_rows(x + first, n, d, WIDTH, sum);
            else add_rows(x + first, n, d, count, sum);
            for (int64_t j = 0; j < count; ++j) mean[first + j] = sum[j] / double(n);
        }
        for (int64_t start = 0; start < n; start += CHUNK) {
            const int64_t rows = std::min(CHUNK, n - start);
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; ++panel) {
                const int64_t first = panel * WIDTH, count = std::min<int64_t>(WIDTH, d - first);
                double *to = packed.data() + panel * rows * WIDTH;
                const Value *from = x + start * d + first;
                if (count == WIDTH) pack(from, rows, d, WIDTH, mean + first, to);
                else pack(from, rows, d, count, mean + first, to);
            }
            // The upper triangle, in whole tiles.
#pragma omp for schedule(dynamic)
            for (int64_t above = 0; above < panels; ++above)
                for (int64_t at = 0; at < rows; at += PART) {
                    const int64_t part = std::min(PART, rows - at);
                    const double *left = packed.data() + (above * rows + at) * WIDTH;
                    for (int64_t beside = above; beside < panels; ++beside)
                        for (int64_t i = 0; i < WIDTH; i += HIGH)
                            tile(left + i, packed.data() + (beside * rows + at) * WIDTH, part,
                                 scatter + (above * WIDTH + i) * stride + beside * WIDTH, stride);
                }
        }
    }
    return 0;
}

}  // namespace

// Columns of a scatter matrix of d dimensions: whole panels.
EXPORT int64_t covariance_stride(int64_t d) { return (d + WIDTH - 1) / WIDTH * WIDTH; }

// mean (d) of n ≥ 1 rows (n, d), and their scatter about it added to the upper triangle of scatter (stride, stride).
// half: the rows are bfloat16. Returns 0, or 1 when memory runs out.
EXPORT int64_t covariance_block(const void *x, int64_t half, int64_t n, int64_t d, double *mean, double *scatter,
                                int64_t threads) {
    const int64_t stride = covariance_stride(d);
    if (half) return block(static_cast<const uint16_t *>(x), n, d, mean, scatter, stride, int(threads));
    return block(static_cast<const float *>(x), n, d, mean, scatter, stride, int(threads));
}
