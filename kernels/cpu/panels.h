// Products of rows with a packed matrix: C[i][j] = Σ_k A_i[k] B_j[k], summed over k in ascending order.
//
// The rows of B (atoms) are packed in panels of WIDE columns, k by k, so that a register tile of TALL × WIDE results
// reads two vectors of B and TALL scalars of A for each k. The order of summation does not depend on the tiling.
#pragma once

#include <algorithm>
#include <cstring>

#include "common.h"

namespace {

constexpr int WIDE = 2 * WIDTH;
#if defined(__AVX512F__)
constexpr int TALL = 12;
#elif defined(__AVX2__)
constexpr int TALL = 6;
#else
constexpr int TALL = 4;
#endif
// Columns of A and B taken at a time: a panel of B of this depth stays in L1 beside the rows of A.
constexpr int64_t DEEP = 160;

inline int64_t panels(int64_t m) { return (m + WIDE - 1) / WIDE; }

// Packs panel `panel` of B (m, d) into to (d, WIDE); columns past m are zero.
inline void pack_panel(const float* b, int64_t m, int64_t d, int64_t panel, float* to) {
    const int64_t first = panel * WIDE;
    const int64_t count = std::min<int64_t>(WIDE, m - first);
    if (count < WIDE) std::memset(to, 0, sizeof(float) * WIDE * d);
    // Short runs of k keep both the reads and the strided writes in cache.
    for (int64_t at = 0; at < d; at += 16) {
        const int64_t end = std::min(at + 16, d);
        for (int64_t j = 0; j < count; j++)
            for (int64_t k = at; k < end; k++) to[k * WIDE + j] = b[(first + j) * d + k];
    }
}

// Packs n rows of a (each d long) in groups of TALL: of each group all rows' k-th entries lie together.
inline void pack_rows(const float* const* a, int64_t n, int64_t d, float* to) {
    for (int64_t first = 0; first < n; first += TALL) {
        const int64_t rows = std::min<int64_t>(TALL, n - first);
        for (int64_t i = 0; i < TALL; i++)
            for (int64_t k = 0; k < d; k++) to[first * d + k * TALL + i] = i < rows ? a[first + i][k] : 0;
    }
}

// Rows rounded up to whole groups.
inline int64_t grouped(int64_t n) { return (n + TALL - 1) / TALL * TALL; }

inline void tile(const float* a, const float* panel, int64_t depth, float* c, bool fresh) {
    Vector sum[TALL][2];
#pragma GCC unroll 16
    for (int i = 0; i < TALL; i++) {
        sum[i][0] = fresh ? Vector{} : load(c + i * WIDE);
        sum[i][1] = fresh ? Vector{} : load(c + i * WIDE + WIDTH);
    }
    for (int64_t k = 0; k < depth; k++) {
        const Vector left = load(panel + k * WIDE), right = load(panel + k * WIDE + WIDTH);
        __builtin_prefetch(panel + (k + 8) * WIDE);
        __builtin_prefetch(panel + (k + 8) * WIDE + WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < TALL; i++) {
            const Vector value = spread(a[k * TALL + i]);
            sum[i][0] = fma(value, left, sum[i][0]);
            sum[i][1] = fma(value, right, sum[i][1]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < TALL; i++) {
        store(c + i * WIDE, sum[i][0]);
        store(c + i * WIDE + WIDTH, sum[i][1]);
    }
}

// c (grouped(n), WIDE) = products of packed rows with one packed panel, both d deep.
inline void multiply_panel(const float* a, int64_t n, int64_t d, const float* panel, float* c) {
    for (int64_t from = 0; from < d || from == 0; from += DEEP) {
        const int64_t depth = std::min(DEEP, d - from);
        for (int64_t i = 0; i < n; i += TALL)
            tile(a + i * d + from * TALL, panel + from * WIDE, depth, c + i * WIDE, from == 0);
    }
}

}  // namespace
