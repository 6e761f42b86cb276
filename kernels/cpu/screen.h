// A screen of the encoder's product in 16-bit integers, twice as fast as float32 where the processor has VNNI.
//
// Rows y = x − b and atoms w are rounded to integers y' = round(s·y), w' = round(t·w) with Euclidean norms below √2³¹, so
// that sums of products are exact in 32 bits (Cauchy and Schwarz). No rounding exceeds 1/2, hence by the same inequality
//   |y·w − y'·w' / (s·t)| ≤ ‖y'‖/s · √d/2/t + √d/2/s · ‖w‖.
// With E at least this, plus the rounding of the float32 score itself, every atom whose float32 score can be among the
// k largest lies within 2E of the k-th largest screened score, and a score above a threshold has a screened score above
// the threshold − E. Those few are scored in float32 and judged by that: the outcome is that of float32 throughout.
#pragma once

#include "product.h"

#if defined(__AVX512VNNI__)
#define SCREEN 1

// Sums stay below this: 2³¹ is out of reach.
constexpr float NORM = 46300.0f;
constexpr float ROUNDING = 0.505f;  // of one number, in units of the integers; 1/2 and the rounding of s·y before it
// Norms for which neither scores nor their errors leave the range of float32.
constexpr float TINY = 1e-12f, HUGE_NORM = 1e12f, HUGE_BIAS = 1e30f;

constexpr int FACTS = 16;  // places per panel for what is known of it; 3 are used, the rest keeps lines of the cache whole

// The packed encoder: scales 1/t of all atoms, three numbers per panel, then the integers of the panels, two dimensions
// of PANEL atoms after the other.
struct Screened {
    int64_t P, pairs;
    float *scales, *facts;
    int16_t *integers;

    Screened(float *packed, int64_t m, int64_t d)
        : P(panels(m)), pairs((d + 1) / 2), scales(packed), facts(packed + P * PANEL),
          integers(reinterpret_cast<int16_t *>(packed + P * (PANEL + FACTS))) {}

    static int64_t size(int64_t m, int64_t d) { return panels(m) * (PANEL + FACTS + PANEL * ((d + 1) / 2)); }
    int16_t *panel(int64_t p) const { return integers + p * pairs * PANEL * 2; }
};

// The lanes of the vector at i that lie within d dimensions.
static inline __mmask16 within(int64_t i, int64_t d) { return d - i >= 16 ? 0xffff : (1u << (d - i)) - 1; }

// round(s·x) of up to 16 numbers, those beyond d zero.
static inline __m256i rounded(const float *x, int64_t i, int64_t d, float scale) {
    if (i >= d) return _mm256_setzero_si256();
    const __m512 value = _mm512_maskz_loadu_ps(within(i, d), x + i);
    return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(scale))));
}

// Norm and scale s of one vector whose products are summed over `stretch` dimensions at a time; s is 0 for the zero
// vector. False when it cannot be screened.
static inline bool scale_of(const float *x, int64_t d, int64_t stretch, float &norm, float &scale) {
    __m512 magnitudes = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16)
        magnitudes = _mm512_max_ps(magnitudes, _mm512_abs_ps(_mm512_maskz_loadu_ps(within(i, d), x + i)));
    const float most = _mm512_reduce_max_ps(magnitudes);
    norm = std::sqrt(dot(x, x, d)) * 1.0001f;
    scale = 0;
    if (norm == 0 && most == 0) return true;
    if (!(norm >= TINY && norm <= HUGE_NORM)) return false;
    float part = norm;
    if (stretch < d) {
        part = 0;
        for (int64_t i = 0; i < d; i += stretch)
            part = std::max(part, dot(x + i, x + i, std::min(stretch, d - i)));
        part = std::sqrt(part) * 1.0001f;
    }
    scale = std::min((NORM - ROUNDING * std::sqrt(float(std::min(stretch, d)))) / part, 32767.0f / most);
    return true;
}

// Round atoms p·PANEL … to integers.
static inline void screen_panel(const float *encoder, int64_t m, int64_t d, int64_t stretch, int64_t p, Screened &to) {
    int16_t *out = to.panel(p);
    float least = INFINITY, longest = 0;
    bool good = true;
    float scales[PANEL];
    for (int64_t j = 0; j < PANEL; ++j) {
        const int64_t atom = p * PANEL + j;
        float norm = 0, scale = 0;
        if (atom < m) good &= scale_of(encoder + atom * d, d, stretch, norm, scale);
        scales[j] = scale;
        if (scale > 0) least = std::min(least, scale);
        longest = std::max(longest, norm);
        to.scales[atom] = scale > 0 ? 1 / scale : 0;
    }
    for (int64_t i = 0; i < 2 * to.pairs; i += 16)
        for (int64_t j = 0; j < PANEL; ++j) {
            const int64_t atom = p * PANEL + j;
            int32_t couples[8] = {};
            if (good && atom < m)
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(couples),
                                    rounded(encoder + atom * d, i, d, scales[j]));
            for (int64_t at = 0; at < 8 && i / 2 + at < to.pairs; ++at)
                std::memcpy(out + ((i / 2 + at) * PANEL + j) * 2, couples + at, 4);
        }
    float *facts = to.facts + p * FACTS;
    std::fill_n(facts, FACTS, 0.0f);
    facts[0] = ROUNDING * std::sqrt(float(d)) / least;
    facts[1] = longest;
    facts[2] = good;
}

// Integer products of R rows (pairs × R) with one panel.
template <int R>
static __attribute__((noinline)) void integer_tile(const int32_t *rows, const int16_t *panel, int64_t pairs,
                                                   __m512i (*out)[2]) {
    __m512i sums[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < pairs; ++i) {
        const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 2 * WIDTH);
        __builtin_prefetch(panel + 16 * PANEL);
        __builtin_prefetch(panel + 16 * PANEL + 2 * WIDTH);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512i x = _mm512_set1_epi32(rows[r]);
            sums[r][0] = _mm512_dpwssd_epi32(sums[r][0], x, left);
            sums[r][1] = _mm512_dpwssd_epi32(sums[r][1], x, right);
        }
        panel += 2 * PANEL;
        rows += R;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        out[r][0] = sums[r][0];
        out[r][1] = sums[r][1];
    }
}

static inline void integer_tile_of(int width, const int32_t *rows, const int16_t *panel, int64_t pairs,
                                   __m512i (*out)[2]) {
    switch (width) {
    case 1: return integer_tile<1>(rows, panel, pairs, out);
    case 2: return integer_tile<2>(rows, panel, pairs, out);
    case 4: return integer_tile<4>(rows, panel, pairs, out);
    case 8: return integer_tile<8>(rows, panel, pairs, out);
    default: return integer_tile<ROWS>(rows, panel, pairs, out);
    }
}
// Float32 products of R rows with A atoms: lane by lane over the dimensions, then the sum of the lanes. The order does
// not depend on R and A, so that it does not show whether a score was found alone or with others. Meanwhile the `next`
// A atoms are sent for, where they are given.
template <int R, int A>
static inline void products(const float *const *rows, const float *const *atoms, int64_t d, float (*out)[A],
                            const float *const *next = nullptr) {
    Vector sums[R][A] = {};
    for (int64_t i = 0; i < d; i += WIDTH) {
        const __mmask16 lanes = within(i, d);
        Vector weights[A];
#pragma GCC unroll 4
        for (int a = 0; a < A; ++a) {
            weights[a] = (Vector)_mm512_maskz_loadu_ps(lanes, atoms[a] + i);
            if (next) __builtin_prefetch(next[a] + i);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Vector x = (Vector)_mm512_maskz_loadu_ps(lanes, rows[r] + i);
#pragma GCC unroll 4
            for (int a = 0; a < A; ++a) sums[r][a] = fma(x, weights[a], sums[r][a]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int a = 0; a < A; ++a) out[r][a] = sum(sums[r][a]);
}

// The encoder as it was given.
struct Encoder {
    const float *weights, *biases;
    int64_t m, d;

    void prefetch(int64_t column) const {
        for (int64_t at = 0; at < d; at += WIDTH) __builtin_prefetch(weights + column * d + at);
    }

    // scores (count,) of one centred row at these columns.
    void score(const float *row, const int32_t *columns, int64_t count, float *scores) const {
        for (int64_t i = 0; i < count; i += 4) {
            const int64_t four = std::min<int64_t>(4, count - i);
            const float *atoms[4], *next[4];
            for (int64_t a = 0; a < 4; ++a) {
                atoms[a] = weights + int64_t(columns[std::min(i + a, count - 1)]) * d;
                next[a] = weights + int64_t(columns[std::min(i + a + 4, count - 1)]) * d;
            }
            float found[1][4];
            if (four > 1) {
                products<1, 4>(&row, atoms, d, found, next);
            } else {
                float one[1][1];
                products<1, 1>(&row, atoms, d, one);
                found[0][0] = one[0][0];
            }
            for (int64_t a = 0; a < four; ++a) scores[i + a] = found[0][a] + biases[columns[i + a]];
        }
    }

    // scores (count, PANEL) of centred rows with the atoms of one panel, anything beyond the last atom.
    void score_panel(const float *rows, int64_t count, int64_t column, float (*scores)[PANEL]) const {
        for (int64_t r = 0; r < count; r += 4)
            for (int64_t at = 0; at < PANEL && column + at < m; at += 4) {
                const float *four[4], *atoms[4];
                for (int64_t i = 0; i < 4; ++i) {
                    four[i] = rows + std::min(r + i, count - 1) * d;
                    atoms[i] = weights + std::min(column + at + i, m - 1) * d;
                }
                float found[4][4];
                products<4, 4>(four, atoms, d, found);
                for (int64_t i = 0; i < std::min<int64_t>(4, count - r); ++i)
                    for (int64_t j = 0; j < 4; ++j)
                        scores[r + i][at + j] = found[i][j] + (column + at + j < m ? biases[column + at + j] : 0);
            }
    }
};

// Rows of a block as the screen reads them.
struct Block {
    int64_t first = 0, rows = 0;
    std::vector<float> centred, scales, errors;  // x − b; 1/s; E, infinite for a row that cannot be screened
    std::vector<int32_t> integers;

    Block(int64_t most, int64_t d) : centred(most * d), scales(most), errors(most), integers(most * ((d + 1) / 2)) {}
};

// As `harvest`, through the screen. A sink is made by each thread for blocks of at most `most` rows:
//   start(block);
//   wants_screen(): false to be given no scores for the next tile of the same panel;
//   take(first row of a group, rows, column, valid columns' bits, screened scores of a tile or null);
//   finish(): write the block's results; false when scores were NaN.
template <class Make>
static int64_t screened_harvest(const float *X, int64_t n, const Screened &packed, const Encoder &encoder,
                                const float *bias, int threads, Make make) {
    const int64_t P = packed.P, pairs = packed.pairs, m = encoder.m, d = encoder.d;
    const int64_t groups = (n + ROWS - 1) / ROWS;
    const int64_t most = std::max<int64_t>(1, std::min(MOST_GROUPS, BLOCK_BYTES / (4 * ROWS * pairs)));
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, groups)));
    const int64_t blocks = threads * ((groups + threads * most - 1) / (threads * most));
    std::vector<float> starts(P * PANEL, 0.0f);
    std::copy(encoder.biases, encoder.biases + m, starts.begin());
    float rounding = 0, longest = 0, largest_bias = 0;
    bool possible = true;
    for (int64_t p = 0; p < P; ++p) {
        rounding = std::max(rounding, packed.facts[p * FACTS]);
        longest = std::max(longest, packed.facts[p * FACTS + 1]);
        possible &= packed.facts[p * FACTS + 2] == 1;
    }
    for (int64_t j = 0; j < m; ++j) largest_bias = std::max(largest_bias, std::fabs(encoder.biases[j]));
    possible &= largest_bias <= HUGE_BIAS;
    std::atomic<int64_t> status{GOOD};
#pragma omp parallel num_threads(threads)
    {
        auto sink = make(most * ROWS);
        Block block(most * ROWS, d);
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < blocks; ++number) {
            if (status.load(std::memory_order_relaxed) != GOOD) continue;
            block.first = groups * number / blocks * ROWS;
            block.rows = std::min(n, groups * (number + 1) / blocks * ROWS) - block.first;
            bool finite = true;
            for (int64_t row = 0; row < block.rows; ++row) {
                const float *x = X + (block.first + row) * d;
                float *y = &block.centred[row * d];
                for (int64_t i = 0; i < d; i += 16) {
                    const __mmask16 lanes_used = within(i, d);
                    const __m512 value = _mm512_maskz_loadu_ps(lanes_used, x + i);
                    // Of finite numbers and no others, the difference with themselves is 0.
                    finite &= compare<AT_LEAST>((Vector)value - (Vector)value, Vector{}) == ALL;
                    _mm512_mask_storeu_ps(y + i, lanes_used,
                                          _mm512_sub_ps(value, _mm512_maskz_loadu_ps(lanes_used, bias + i)));
                }
                float norm = 0, scale = 0;
                const bool screened = possible && scale_of(y, d, d, norm, scale);
                if (!screened) scale = norm = 0;
                const int64_t group = row / ROWS * ROWS;
                const int width = group_width(std::min<int64_t>(ROWS, block.rows - group));
                for (int64_t i = 0; i < pairs; i += 8) {
                    int32_t couples[8] = {};
                    if (scale > 0)
                        _mm256_storeu_si256(reinterpret_cast<__m256i *>(couples), rounded(y, 2 * i, d, scale));
                    for (int64_t at = i; at < std::min(i + 8, pairs); ++at)
                        block.integers[group * pairs + at * width + row - group] = couples[at - i];
                }
                block.scales[row] = scale > 0 ? 1 / scale : 0;
                // Of the integers; of the float32 score (at most d + 2 roundings); of the screened score itself.
                const float product = norm * longest;
                const float error = norm * rounding +
                                    ROUNDING * std::sqrt(float(d)) * block.scales[row] * longest +
                                    float(d + 32) * 6e-8f * (product + largest_bias) + 1e-37f;
                block.errors[row] = screened ? 1.01f * error : INFINITY;
            }
            if (!finite) {
                status = ROWS_NOT_FINITE;
                continue;
            }
            sink.start(block);
            for (int64_t p = 0; p < P; ++p) {
                const int64_t column = p * PANEL;
                const uint32_t valid = uint32_t((uint64_t(1) << std::min<int64_t>(PANEL, m - column)) - 1);
                const Vector by[2] = {load(packed.scales + column), load(packed.scales + column + WIDTH)};
                const Vector from[2] = {load(&starts[column]), load(&starts[column + WIDTH])};
                for (int64_t group = 0; group < block.rows; group += ROWS) {
                    const int64_t count = std::min<int64_t>(ROWS, block.rows - group);
                    if (group && !sink.wants_screen()) {
                        sink.take(group, count, column, valid, nullptr);
                        continue;
                    }
                    __m512i sums[ROWS][2];
                    Vector scores[ROWS][2];
                    integer_tile_of(group_width(count), &block.integers[group * pairs], packed.panel(p), pairs, sums);
                    for (int64_t r = 0; r < count; ++r)
                        for (int half = 0; half < 2; ++half)
                            scores[r][half] = fma((Vector)_mm512_cvtepi32_ps(sums[r][half]) *
                                                      spread(block.scales[group + r]),
                                                  by[half], from[half]);
                    sink.take(group, count, column, valid, scores);
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
#endif

// Pack atoms p·PANEL … as the encoders read them.
static inline void pack_for_topk(const float *encoder, int64_t m, int64_t d, int64_t p, float *packed) {
#if defined(SCREEN)
    Screened to(packed, m, d);
    screen_panel(encoder, m, d, d, p, to);
#else
    pack_panel(encoder, m, d, p, packed);
#endif
}
