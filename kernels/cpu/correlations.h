// Correlations of residuals with atoms, screened: close values with a proven bound on their distance from the exact
// ones, so that the few atoms which may have the largest correlation can be found before any is computed exactly.
//
// Two sources. The product of residuals with packed atoms, in 16-bit integers where the processor has VNNI (screen.h), in
// float32 elsewhere. And the Gram matrix G = D·Dᵀ, in float32 or rounded to 16-bit integers: once atoms j are taken
// with values a, correlations move by −Σ a·G[j].
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "screen.h"

namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr double UNIT = 6e-8;        // half a unit in the last place of float32, and a little
constexpr int64_t FETCH = 2048;      // rows of the Gram matrix come from memory: ask for them this many bytes earlier
constexpr int MANY = 128;            // from here on an insertion is slower than a partial sort
constexpr int GRAM_VECTORS = 16;     // vectors of columns that share one vector of peaks, with a Gram matrix
constexpr int PRODUCT_VECTORS = 4;   // the same without
enum Source : int64_t { FLOATS = 0, INTEGERS = 1 };

// Dimensions over which a product is summed at a time, a multiple of 16; then these sums are. Of floats, such sums err
// less than one over all dimensions. Of integers, a sum over few leaves room for larger ones, whose roundings are
// smaller. A pursuit's residual shrinks from round to round, while the errors of its first products stay.
constexpr int64_t STRETCH = 80;

double stretches(int64_t d) { return double((d + STRETCH - 1) / STRETCH); }
// What a float32 `dot` of d dimensions errs by, and what an element of a `Product` does, at most: as shares of the product
// of the norms. No term passes through more roundings than these.
double share(int64_t d) { return UNIT * (double(d) / (4 * WIDTH) + WIDTH + 12); }
double product_share(int64_t d) { return UNIT * (double(std::min(d, STRETCH)) + stretches(d) + 8); }

// Unit atoms (m, d) as given, and what their packed form says of them.
struct Atoms {
    const float *rows;
    int64_t m, d;
    const float *packed;
    bool integers, possible;
    double longest, rounding;  // largest norm, and largest distance of an atom from its integers

    static bool screened(int64_t source) {
#if defined(SCREEN)
        return source == INTEGERS;
#else
        (void)source;
        return false;
#endif
    }

    // Places of the packed form: panels, then three numbers.
    static int64_t panel_floats(int64_t m, int64_t d, int64_t source) {
#if defined(SCREEN)
        if (screened(source)) return Screened::size(m, d);
#endif
        (void)source;
        return panels(m) * PANEL * d;
    }

    Atoms(const float *rows, int64_t m, int64_t d, const float *packed, int64_t source)
        : rows(rows), m(m), d(d), packed(packed), integers(screened(source)) {
        const float *facts = packed + panel_floats(m, d, source);
        longest = facts[0], rounding = facts[1], possible = facts[2] == 1;
    }

    const float *operator[](int64_t j) const { return rows + j * d; }

    void fetch(int64_t j) const {
        for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(rows + j * d + i);
    }
};

#if defined(SCREEN)
// Distance of x from its rounded form, at least.
inline double rounding_error(const float *x, int64_t d, float scale) {
    const __m512 by = _mm512_set1_ps(1 / scale);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
        const __m512 value = _mm512_maskz_loadu_ps(within(i, d), x + i);
        const __m512 back = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(rounded(x, i, d, scale)));
        const __m512 error = _mm512_fnmadd_ps(back, by, value);
        sum = _mm512_fmadd_ps(error, error, sum);
    }
    return std::sqrt(double(::sum((Vector)sum))) * 1.001;
}
#endif

// Pack the atoms and write down the three numbers.
inline void pack_atoms(const float *rows, int64_t m, int64_t d, float *packed, int64_t source, int threads) {
    double longest = 0, rounding = 0;
    bool possible = true;
#if defined(SCREEN)
    Screened to(packed, m, d);
#endif
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : longest, rounding) \
    reduction(&& : possible)
    for (int64_t p = 0; p < panels(m); ++p) {
#if defined(SCREEN)
        if (Atoms::screened(source)) screen_panel(rows, m, d, STRETCH, p, to);
        else pack_panel(rows, m, d, p, packed);
#else
        pack_panel(rows, m, d, p, packed);
#endif
        for (int64_t j = p * PANEL; j < std::min(m, (p + 1) * PANEL); ++j) {
            const float *atom = rows + j * d;
            const double norm = std::sqrt(double(dot(atom, atom, d))) * (1 + share(d));
            longest = std::max(longest, norm);
            possible = possible && norm <= 1e12 && (norm >= 1e-12 || norm == 0);
#if defined(SCREEN)
            float length = 0, scale = 0;
            if (Atoms::screened(source) && scale_of(atom, d, STRETCH, length, scale) && scale > 0)
                rounding = std::max(rounding, rounding_error(atom, d, scale));
#endif
        }
    }
    float *facts = packed + Atoms::panel_floats(m, d, source);
    facts[0] = float(longest) * 1.0001f;
    facts[1] = float(rounding) * 1.0001f;
    facts[2] = possible;
}

// Screened products of a block of rows with all atoms.
class Product {
  public:
    Product(const Atoms &atoms, int64_t most)
        : atoms_(atoms), pairs_((atoms.d + 1) / 2), most_((most + ROWS - 1) / ROWS * ROWS),
          rows_(atoms.integers ? 0 : most_ * atoms.d), scales_(most_), zeros_(PANEL, 0.0f),
          couples_(atoms.integers ? most_ * pairs_ : 0), errors_(most_) {}

    // What the products of a row may err by.
    double error(int64_t row) const { return errors_[row]; }

    // Hands take(row, first column, two vectors of products) every panel of every row, from panel `begin` on.
    template <class Take>
    void run(const float *const *rows, int64_t n, Take take, int64_t begin = 0) {
        for (int64_t row = 0; row < n; ++row) pack(rows[row], row, n);
        for (int64_t p = begin; p < panels(atoms_.m); ++p)
            for (int64_t first = 0; first < n; first += ROWS) {
                const int64_t count = std::min<int64_t>(ROWS, n - first);
                const int width = group_width(count);
                Vector totals[ROWS][2] = {};
#if defined(SCREEN)
                if (atoms_.integers) {
                    const Screened packed(const_cast<float *>(atoms_.packed), atoms_.m, atoms_.d);
                    const Vector left = load(packed.scales + p * PANEL), right = load(packed.scales + p * PANEL + WIDTH);
                    for (int64_t at = 0; at < pairs_; at += STRETCH / 2) {
                        __m512i sums[ROWS][2];
                        integer_tile_of(width, &couples_[first * pairs_ + at * width], packed.panel(p) + at * 2 * PANEL,
                                        std::min(STRETCH / 2, pairs_ - at), sums);
                        for (int64_t i = 0; i < count; ++i)
                            for (int half = 0; half < 2; ++half)
                                totals[i][half] += (Vector)_mm512_cvtepi32_ps(sums[i][half]);
                    }
                    for (int64_t i = 0; i < count; ++i) {
                        const Vector by = spread(scales_[first + i]);
                        take(first + i, p * PANEL, totals[i][0] * by * left, totals[i][1] * by * right);
                    }
                    continue;
                }
#endif
                for (int64_t at = 0; at < atoms_.d; at += STRETCH) {
                    Vector sums[ROWS][2];
                    tile_of(width, &rows_[first * atoms_.d + at * width], atoms_.packed + (p * atoms_.d + at) * PANEL,
                            zeros_.data(), std::min(STRETCH, atoms_.d - at), sums);
                    for (int64_t i = 0; i < count; ++i)
                        for (int half = 0; half < 2; ++half) totals[i][half] += sums[i][half];
                }
                for (int64_t i = 0; i < count; ++i) take(first + i, p * PANEL, totals[i][0], totals[i][1]);
            }
    }

  private:
    // Packs one of n rows beside the others of its group; absent rows of the last group are zero.
    void pack(const float *x, int64_t row, int64_t n) {
        const int64_t d = atoms_.d, first = row / ROWS * ROWS, count = std::min<int64_t>(ROWS, n - first);
        const int width = group_width(count);
        const double norm = std::sqrt(double(dot(x, x, d))) * (1 + share(d));
        errors_[row] = product_share(d) * norm * atoms_.longest;
#if defined(SCREEN)
        if (atoms_.integers) {
            int32_t *to = &couples_[first * pairs_];
            float length = 0, scale = 0;
            const bool good = scale_of(x, d, STRETCH, length, scale);
            if (!good) scale = 0;
            for (int64_t i = 0; i < pairs_; i += 8) {
                int32_t couples[8] = {};
                if (scale > 0) _mm256_storeu_si256(reinterpret_cast<__m256i *>(couples), rounded(x, 2 * i, d, scale));
                for (int64_t at = i; at < std::min(i + 8, pairs_); ++at) {
                    to[at * width + row - first] = couples[at - i];
                    if (row == n - 1)
                        for (int64_t rest = count; rest < width; ++rest) to[at * width + rest] = 0;
                }
            }
            scales_[row] = scale > 0 ? 1 / scale : 0;
            const double error = scale > 0 ? rounding_error(x, d, scale) : 0;
            // Of the row, of the atom, and of the roundings after the exact sums: two for each of them, and a few.
            const double after = UNIT * (2 * stretches(d) + 8);
            errors_[row] = error * atoms_.longest + (norm + error) * atoms_.rounding + after * norm * atoms_.longest;
            if (!good) errors_[row] = std::numeric_limits<double>::infinity();
            return;
        }
#endif
        float *to = &rows_[first * d];
        for (int64_t i = 0; i < d; ++i) {
            to[i * width + row - first] = x[i];
            if (row == n - 1)
                for (int64_t rest = count; rest < width; ++rest) to[i * width + rest] = 0;
        }
    }

    const Atoms &atoms_;
    int64_t pairs_, most_;
    std::vector<float> rows_, scales_, zeros_;
    std::vector<int32_t> couples_;
    std::vector<double> errors_;
};

// The Gram matrix (m, m): float32, or integers round(scale·G).
struct Gram {
    const float *floats;
    const int16_t *integers;
    double scale, error;  // error: of an entry, at most

    Gram(const void *entries, int64_t source, const Atoms &atoms)
        : floats(source == FLOATS ? static_cast<const float *>(entries) : nullptr),
          integers(source == INTEGERS ? static_cast<const int16_t *>(entries) : nullptr), scale(scale_of(atoms)),
          error(product_share(atoms.d) * atoms.longest * atoms.longest + (integers ? 0.51 / scale : 0)) {}

    static double scale_of(const Atoms &atoms) {
        return atoms.longest > 0 ? 32700 / (atoms.longest * atoms.longest) : 1;
    }

    explicit operator bool() const { return floats || integers; }
};

Vector magnitude_of(Vector value) { return (Vector)((Integers)value & (Integers{} + 0x7fffffff)); }
Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline Vector entries(const float *from) { return load(from); }
inline Vector entries(const int16_t *from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtepi32_ps(
        _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
#elif defined(__AVX2__)
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
    return Vector{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
#endif
}

// c += Σ_i factor[i]·row[i] over columns [from, to).
template <int COUNT, class Entry>
void add(float *c, const Entry *const *row, const float *factor, int64_t from, int64_t to) {
    // In registers: as far as the compiler knows, a store to c may change what `row` points to.
    Vector by[COUNT];
    const Entry *source[COUNT];
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) by[i] = spread(factor[i]), source[i] = row[i];
    int64_t j = from;
    for (; j + 2 * WIDTH <= to; j += 2 * WIDTH) {
        Vector left = load(c + j), right = load(c + j + WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; i++) {
            const Entry *at = source[i] + j;
            __builtin_prefetch(reinterpret_cast<const char *>(at) + FETCH, 0, 2);
            if (2 * WIDTH * sizeof(Entry) > 64) __builtin_prefetch(reinterpret_cast<const char *>(at) + FETCH + 64, 0, 2);
            left = fma(by[i], entries(at), left);
            right = fma(by[i], entries(at + WIDTH), right);
        }
        store(c + j, left);
        store(c + j + WIDTH, right);
    }
    for (; j < to; j++)
        for (int i = 0; i < COUNT; i++) c[j] = fma(factor[i], float(row[i][j]), c[j]);
}

// The same for any number of rows, in order.
template <class Entry>
void add_rows(float *c, const Entry *const *row, const float *factor, int64_t count, int64_t from, int64_t to) {
    for (int64_t i = 0; i < count;) {
        switch (std::min<int64_t>(count - i, 8)) {
            case 1: add<1>(c, row + i, factor + i, from, to), i += 1; break;
            case 2: add<2>(c, row + i, factor + i, from, to), i += 2; break;
            case 3: add<3>(c, row + i, factor + i, from, to), i += 3; break;
            case 4: add<4>(c, row + i, factor + i, from, to), i += 4; break;
            case 5: add<5>(c, row + i, factor + i, from, to), i += 5; break;
            case 6: add<6>(c, row + i, factor + i, from, to), i += 6; break;
            case 7: add<7>(c, row + i, factor + i, from, to), i += 7; break;
            default: add<8>(c, row + i, factor + i, from, to), i += 8; break;
        }
    }
}

// The count largest of the scores that pass by in ascending order of column; of equal scores the first stays. NaN is
// never among them.
struct Largest {
    std::vector<float> score;
    std::vector<int32_t> column;
    int count = 0, held = 0;

    explicit Largest(int64_t most) : score(std::min<int64_t>(most, MANY)), column(score.size()) {}

    void reset(int wanted) { count = wanted, held = 0; }

    void offer(float value, int32_t at) {
        if (held < count ? value != value : !(value > score[count - 1])) return;
        int place = held < count ? held++ : count - 1;
        while (place > 0 && value > score[place - 1]) {
            score[place] = score[place - 1];
            column[place] = column[place - 1];
            place--;
        }
        score[place] = value;
        column[place] = at;
    }
};

// The wanted-th largest of count values; NEVER where there are fewer.
inline float rank(const float *value, int64_t count, int64_t wanted, Largest &largest, std::vector<float> &scratch) {
    if (count < wanted) return NEVER;
    if (wanted > MANY) {
        scratch.assign(value, value + count);
        std::nth_element(scratch.begin(), scratch.begin() + (wanted - 1), scratch.end(), std::greater<float>());
        return scratch[wanted - 1];
    }
    largest.reset(int(wanted));
    float bar = NEVER;
    if (wanted <= WIDTH && count >= 4 * WIDTH) {
        // The wanted-th largest of the lanes' maxima is no larger than that of all values: what lies below is passed over.
        // A maximum forgets NaN, or is one itself and then not counted: either way it is no larger than without.
        Vector most = load(value);
        for (int64_t i = WIDTH; i + WIDTH <= count; i += WIDTH) most = larger(load(value + i), most);
        float lanes[WIDTH];
        store(lanes, most);
        for (int lane = 0; lane < WIDTH; lane++) largest.offer(lanes[lane], 0);
        if (largest.held == wanted) bar = largest.score[wanted - 1];
        largest.reset(int(wanted));
    }
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        if (largest.held == wanted) bar = std::max(bar, largest.score[wanted - 1]);
        for (uint32_t bits = compare<AT_LEAST>(load(value + i), spread(bar)); bits; bits &= bits - 1)
            largest.offer(value[i + __builtin_ctz(bits)], 0);
    }
    for (; i < count; i++) largest.offer(value[i], 0);
    return largest.held < wanted ? NEVER : largest.score[wanted - 1];
}

// Peaks of a row's scores: the largest of every `vectors` that lie a vector apart. Entry e of the peaks stands for
// columns e / WIDTH·vectors·WIDTH + e % WIDTH + {0, WIDTH, 2·WIDTH …}.
struct Peaks {
    int64_t m, vectors, count;

    Peaks(int64_t m, int64_t vectors)
        : m(m), vectors(vectors), count((m + vectors * WIDTH - 1) / (vectors * WIDTH) * WIDTH) {}

    int64_t columns() const { return count * vectors; }  // with those past m
    int64_t entry(int64_t column) const { return column / (vectors * WIDTH) * WIDTH + column % WIDTH; }
    int64_t first(int64_t entry) const { return entry / WIDTH * vectors * WIDTH + entry % WIDTH; }
};

}  // namespace
