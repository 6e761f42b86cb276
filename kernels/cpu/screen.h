// A screen of the encoder's product in 16-bit integers, twice as fast as float32 where the processor has VNNI.
//
// Rows y = x − b and atoms w are rounded to integers y' = round(s·y), w' = round(t·w) with Euclidean norms below √2³¹, so
// that sums of products are exact in 32 bits (Cauchy and Schwarz). No rounding exceeds 1/2, hence by the same inequality
//   |y·w − y'·w' / (s·t)| ≤ ‖y'‖/s · √d/2/t + √d/2/s · ‖w‖.
// With E at least this, plus the rounding of the float32 score itself, every atom whose float32 score can be among the
// k largest lies within 2E of the k-th largest screened score. Those few are scored in float32, and the k largest of
// them chosen: the outcome is that of float32 throughout.
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

// Norm and scale s of one vector; s is 0 for the zero vector. False when it cannot be screened.
static inline bool scale_of(const float *x, int64_t d, float &norm, float &scale) {
    __m512 magnitudes = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16)
        magnitudes = _mm512_max_ps(magnitudes, _mm512_abs_ps(_mm512_maskz_loadu_ps(within(i, d), x + i)));
    const float most = _mm512_reduce_max_ps(magnitudes);
    norm = std::sqrt(dot(x, x, d)) * 1.0001f;
    scale = 0;
    if (norm == 0 && most == 0) return true;
    if (!(norm >= TINY && norm <= HUGE_NORM)) return false;
    scale = std::min((NORM - ROUNDING * std::sqrt(float(d))) / norm, 32767.0f / most);
    return true;
}

// Round atoms p·PANEL … to integers.
static inline void screen_panel(const float *encoder, int64_t m, int64_t d, int64_t p, Screened &to) {
    int16_t *out = to.panel(p);
    float least = INFINITY, longest = 0;
    bool good = true;
    float scales[PANEL];
    for (int64_t j = 0; j < PANEL; ++j) {
        const int64_t atom = p * PANEL + j;
        float norm = 0, scale = 0;
        if (atom < m) good &= scale_of(encoder + atom * d, d, norm, scale);
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
#endif

// Pack atoms p·PANEL … as encode_topk reads them.
static inline void pack_for_topk(const float *encoder, int64_t m, int64_t d, int64_t p, float *packed) {
#if defined(SCREEN)
    Screened to(packed, m, d);
    screen_panel(encoder, m, d, p, to);
#else
    pack_panel(encoder, m, d, p, packed);
#endif
}
