// Products of rows with a packed matrix: C[i][j] = Σ_k A_i[k] B_j[k], summed over k in ascending order.
//
// The rows of B (atoms) are packed in panels of WIDE columns, k by k, so that a register tile of TALL × WIDE results
// reads two vectors of B and TALL scalars of A for each k. The order of summation does not depend on the tiling.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.h"

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

template <int ROWS>
inline void tile(const float* const* a, int64_t from, int64_t to, const float* panel, float* const* c, bool fresh) {
    Vector sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        sum[i][0] = fresh ? Vector{} : load(c[i]);
        sum[i][1] = fresh ? Vector{} : load(c[i] + WIDTH);
    }
    for (int64_t k = from; k < to; k++) {
        const Vector left = load(panel + k * WIDE), right = load(panel + k * WIDE + WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const Vector value = spread(a[i][k]);
            sum[i][0] = fma(value, left, sum[i][0]);
            sum[i][1] = fma(value, right, sum[i][1]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        store(c[i], sum[i][0]);
        store(c[i] + WIDTH, sum[i][1]);
    }
}

template <int ROWS>
inline void tile_of(int rows, const float* const* a, int64_t from, int64_t to, const float* panel, float* const* c,
                    bool fresh) {
    if (rows == ROWS)
        tile<ROWS>(a, from, to, panel, c, fresh);
    else if constexpr (ROWS > 1)
        tile_of<ROWS - 1>(rows, a, from, to, panel, c, fresh);
}

// c[i][0:WIDE] = products of rows a[0:n] (each d long) with one packed panel.
inline void multiply_panel(const float* const* a, int64_t n, int64_t d, const float* panel, float* const* c) {
    for (int64_t from = 0; from < d || from == 0; from += DEEP) {
        const int64_t to = std::min(from + DEEP, d);
        for (int64_t i = 0; i < n; i += TALL)
            tile_of<TALL>(int(std::min<int64_t>(TALL, n - i)), a + i, from, to, panel, c + i, from == 0);
    }
}

}  // namespace
