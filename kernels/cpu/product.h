// The encoder's product, tile by tile: scores (x − b)·Wᵀ + c of a few rows × one panel of atoms, in registers.
//
// The encoder is packed into panels of PANEL atoms, dimension by dimension, padded with zeros; rows are packed alike, in
// groups of up to ROWS. Every score is c_j + Σ_i (x_i − b_i)·w_ji with fused steps in the order of i, whatever the
// group, so that a row gives the same bytes in any company. Scores go from the registers to a sink that keeps a few of
// them: no rows × atoms array exists.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "common.h"

constexpr int PANEL = 2 * WIDTH;
// Accumulators (2 per row), two registers of weights and one of a broadcast fill the register file.
#if defined(__AVX512F__)
constexpr int ROWS = 14;
#else
constexpr int ROWS = 6;
#endif
// A thread's packed rows stay in its second-level cache while panel after panel passes by.
constexpr int64_t BLOCK_BYTES = 384 * 1024;
constexpr int64_t MOST_GROUPS = 12;

enum Status : int64_t { GOOD = 0, ROWS_NOT_FINITE = 1, SCORES_NAN = 2 };

static inline int64_t panels(int64_t m) { return (m + PANEL - 1) / PANEL; }

// Scores of R packed rows (d × R) with one panel (d × PANEL).
// Never inlined: it needs every register.
template <int R>
static __attribute__((noinline)) void tile(const float *rows, const float *panel, const float *start,
                                           int64_t d, Vector (*out)[2]) {
    Vector scores[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        scores[r][0] = load(start);
        scores[r][1] = load(start + WIDTH);
    }
    for (int64_t i = 0; i < d; ++i) {
        const Vector left = load(panel), right = load(panel + WIDTH);
        __builtin_prefetch(panel + 8 * PANEL);
        __builtin_prefetch(panel + 8 * PANEL + WIDTH);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vector x = spread(rows[r]);
            scores[r][0] = fma(x, left, scores[r][0]);
            scores[r][1] = fma(x, right, scores[r][1]);
        }
        panel += PANEL;
        rows += R;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        out[r][0] = scores[r][0];
        out[r][1] = scores[r][1];
    }
}

// The smallest compiled group that holds `rows` rows.
static inline int group_width(int64_t rows) {
    for (int width : {1, 2, 4})
        if (rows <= width) return width;
    return ROWS > 8 && rows <= 8 ? 8 : ROWS;
}

static inline void tile_of(int width, const float *rows, const float *panel, const float *start, int64_t d,
                           Vector (*out)[2]) {
    switch (width) {
    case 1: return tile<1>(rows, panel, start, d, out);
    case 2: return tile<2>(rows, panel, start, d, out);
    case 4: return tile<4>(rows, panel, start, d, out);
#if defined(__AVX512F__)
    case 8: return tile<8>(rows, panel, start, d, out);
#endif
    default: return tile<ROWS>(rows, panel, start, d, out);
    }
}

// Pack atoms p·PANEL … of the encoder (m, d); what lies beyond the last atom is zero.
static inline void pack_panel(const float *encoder, int64_t m, int64_t d, int64_t p, float *packed) {
    float *to = packed + p * PANEL * d;
    const int64_t valid = std::min<int64_t>(PANEL, m - p * PANEL);
    // A few dimensions at a time, so that the lines written to stay in the first-level cache.
    for (int64_t i = 0; i < d; i += 16) {
        const int64_t end = std::min<int64_t>(d, i + 16);
        for (int64_t j = 0; j < PANEL; ++j) {
            const float *from = encoder + (p * PANEL + j) * d;
            for (int64_t at = i; at < end; ++at) to[at * PANEL + j] = j < valid ? from[at] : 0;
        }
    }
}

// Pack x − b of `count` rows as d × width, absent rows zero. False when a row is not finite.
static inline bool pack_rows(const float *X, const float *bias, int64_t count, int64_t d, int width, float *to) {
    bool finite = true;
    for (int64_t i = 0; i < d; i += WIDTH) {
        const int64_t end = std::min<int64_t>(WIDTH, d - i);
        float *block = to + i * width;
        for (int r = 0; r < width; ++r) {
            if (r >= count) {
                for (int64_t j = 0; j < end; ++j) block[j * width + r] = 0;
                continue;
            }
            const float *x = X + r * d + i;
            float centred[WIDTH];
            if (end == WIDTH) {
                const Vector value = load(x);
                // Of finite numbers and no others, the difference with themselves is 0.
                finite &= compare<AT_LEAST>(value - value, Vector{}) == ALL;
                store(centred, value - load(bias + i));
            } else {
                for (int64_t j = 0; j < end; ++j) {
                    finite &= std::fabs(x[j]) <= FLT_MAX;
                    centred[j] = x[j] - bias[i + j];
                }
            }
            for (int64_t j = 0; j < end; ++j) block[j * width + r] = centred[j];
        }
    }
    return finite;
}

// Run a sink over the scores of all rows. A sink is made by each thread for blocks of at most `most` rows:
//   start(first row, rows): begin a block;  take(row in block, column, valid lanes' bits, scores of half a panel);
//   finish(): write the block's results; false when scores were NaN.
template <class Make>
static int64_t harvest(const float *X, int64_t n, int64_t d, const float *packed, const float *encoder_bias,
                       const float *bias, int64_t m, int threads, Make make) {
    const int64_t groups = (n + ROWS - 1) / ROWS;
    const int64_t most = std::max<int64_t>(1, std::min(MOST_GROUPS, BLOCK_BYTES / (4 * ROWS * d)));
    // As many blocks for every thread, each of as many groups as fit.
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, groups)));
    const int64_t blocks = threads * ((groups + threads * most - 1) / (threads * most));
    const int64_t P = panels(m);
    std::vector<float> starts(P * PANEL, 0.0f);
    std::copy(encoder_bias, encoder_bias + m, starts.begin());
    std::atomic<int64_t> status{GOOD};
#pragma omp parallel num_threads(threads)
    {
        auto sink = make(most * ROWS);
        std::vector<float> rows(most * ROWS * d);
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < blocks; ++block) {
            if (status.load(std::memory_order_relaxed) != GOOD) continue;
            const int64_t first = groups * block / blocks * ROWS;
            const int64_t last = std::min(n, groups * (block + 1) / blocks * ROWS);
            bool finite = true;
            for (int64_t at = first; at < last; at += ROWS) {
                const int64_t count = std::min<int64_t>(ROWS, last - at);
                finite &= pack_rows(X + at * d, bias, count, d, group_width(count), &rows[(at - first) * d]);
            }
            if (!finite) {
                status = ROWS_NOT_FINITE;
                continue;
            }
            sink.start(first, last - first);
            for (int64_t p = 0; p < P; ++p) {
                const int64_t column = p * PANEL;
                const int64_t valid = std::min<int64_t>(PANEL, m - column);
                const uint64_t bits = (uint64_t(1) << valid) - 1;
                const uint32_t low = bits & ((uint64_t(1) << WIDTH) - 1), high = bits >> WIDTH;
                for (int64_t at = first; at < last; at += ROWS) {
                    const int64_t count = std::min<int64_t>(ROWS, last - at);
                    Vector scores[ROWS][2];
                    tile_of(group_width(count), &rows[(at - first) * d], packed + column * d, &starts[column], d,
                            scores);
                    for (int64_t r = 0; r < count; ++r) {
                        sink.take(at - first + r, column, low, scores[r][0]);
                        sink.take(at - first + r, column + WIDTH, high, scores[r][1]);
                    }
                }
            }
            if (!sink.finish()) {
                int64_t good = GOOD;
                status.compare_exchange_strong(good, SCORES_NAN);
            }
        }
    }
    return status;
}
