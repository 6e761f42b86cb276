// Encoders: ReLU(TopK_k(scores)) and all scores above a threshold, without a rows × atoms array.
#include <limits>

#include "screen.h"

namespace {

// Floats as integers of the same order, and back.
int32_t order(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

float at_order(int32_t key) {
    const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

float least(Vector value) {
    float found = value[0];
    for (int j = 1; j < WIDTH; ++j) found = std::min(found, float(value[j]));
    return found;
}

// How many of the values, padded with NaN to whole vectors, compare so with the threshold.
template <Comparison C>
int64_t count_of(const float *values, int64_t count, float threshold) {
    const Vector bar = spread(threshold);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += WIDTH) found += __builtin_popcount(compare<C>(load(values + i), bar));
    return found;
}

// Cut candidates, given in the order of their columns, to the k largest; where more equal the k-th than are wanted, the
// first ones stay. There must be room for WIDTH more. `bar` becomes the k-th largest, if there are k. With `margin`
// everything within it below the k-th largest stays too. Returns how many stay, or −1 when a score is NaN.
int64_t cut(float *values, int32_t *columns, int64_t count, int64_t k, float &bar, float margin = 0) {
    // Up to whole vectors, NaN: it compares with nothing.
    std::fill_n(values + count, WIDTH, std::numeric_limits<float>::quiet_NaN());
    Vector lows = spread(INFINITY), highs = spread(-INFINITY);
    int64_t numbers = 0;
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Vector value = load(values + i);
        numbers += __builtin_popcount(compare<AT_LEAST>(value, value));
        lows = value < lows ? value : lows;
        highs = value > highs ? value : highs;
    }
    if (numbers != count) return -1;
    if (count < k) return count;
    const float low = least(lows), high = -least(-highs);
    if (count == k) {
        bar = low;
        return count;
    }
    // Bisection by the order of floats: at least k scores reach `from`, fewer reach `to`. It ends early when a value
    // parts exactly k from the rest.
    int64_t from = order(low), to = int64_t(order(high)) + 1;
    bool exact = false;
    while (to - from > 1 && !exact) {
        const int64_t middle = from + (to - from) / 2;
        const int64_t reach = count_of<AT_LEAST>(values, count, at_order(int32_t(middle)));
        if (reach >= k) from = middle;
        else to = middle;
        exact = reach == k;
    }
    bar = at_order(int32_t(from));
    if (exact) {
        // The parting value may lie below the k-th score itself.
        const Vector parting = spread(bar);
        Vector smallest = spread(INFINITY);
        for (int64_t i = 0; i < count; i += WIDTH) {
            const Vector value = load(values + i);
            smallest = value >= parting && value < smallest ? value : smallest;
        }
        bar = least(smallest);
    }
    // Of the scores that equal the bar there may be more than are wanted.
    int64_t equal = margin > 0 ? count : k - count_of<ABOVE>(values, count, bar);
    const Vector bars = spread(bar - margin);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Vector value = load(values + i);
        const Integers column = load(columns + i);
        const uint32_t above = compare<ABOVE>(value, bars);
        uint32_t level = compare<AT_LEAST>(value, bars) & ~above;
        for (; __builtin_popcount(level) > equal; level &= ~(uint32_t(1) << (31 - __builtin_clz(level)))) {}
        equal -= __builtin_popcount(level);
        kept += keep(above | level, value, column, values + kept, columns + kept);
    }
    return kept;
}

// Write a row's k chosen scores, those below zero as zero.
void write(const float *values, const int32_t *columns, int64_t k, int32_t *to_indices, float *to_values) {
    std::copy_n(columns, k, to_indices);
    for (int64_t i = 0; i < k; ++i) to_values[i] = values[i] > 0 ? values[i] : 0;
}

// The candidates of every row of a block: columns and scores, in the order of columns.
class Candidates {
  public:
    Candidates(int64_t rows, int64_t k, int64_t m)
        : room_(std::min(std::max<int64_t>(4 * k, 96), m)), stride_(room_ + 2 * WIDTH), counts_(rows), bars_(rows),
          values_(rows * stride_), columns_(rows * stride_) {}

    void start(int64_t rows) {
        std::fill_n(counts_.begin(), rows, 0);
        // Nothing is "at most NaN": the first k scores of a row are all candidates.
        std::fill_n(bars_.begin(), rows, std::numeric_limits<float>::quiet_NaN());
    }

    void add(int64_t row, uint32_t bits, Vector scores, Integers columns) {
        const int64_t at = row * stride_ + counts_[row];
        counts_[row] += keep(bits, scores, columns, &values_[at], &columns_[at]);
    }

    bool full(int64_t row) const { return counts_[row] > room_; }
    float *values(int64_t row) { return &values_[row * stride_]; }
    int32_t *columns(int64_t row) { return &columns_[row * stride_]; }
    int64_t &count(int64_t row) { return counts_[row]; }
    float &bar(int64_t row) { return bars_[row]; }

  private:
    int64_t room_, stride_;
    std::vector<int64_t> counts_;
    std::vector<float> bars_, values_;
    std::vector<int32_t> columns_;
};

// The k largest scores of every row of a block. When a row's place is full, its candidates are cut to the k best, and
// the k-th of those is the bar for what comes after. What equals the bar comes too late: the lower column wins.
class Largest {
  public:
    Largest(int64_t rows, int64_t k, int64_t m, int32_t *indices, float *values)
        : k_(k), found_(rows, k, m), to_indices_(indices), to_values_(values) {}

    void start(int64_t first, int64_t rows) {
        good_ = true;
        first_ = first;
        rows_ = rows;
        found_.start(rows);
    }

    void take(int64_t row, int64_t column, uint32_t valid, Vector scores) {
        const uint32_t bits = compare<NOT_AT_MOST>(scores, spread(found_.bar(row))) & valid;
        if (__builtin_expect(!bits, 1)) return;
        if (found_.full(row)) shorten(row);
        found_.add(row, bits, scores, lanes_ + int32_t(column));
    }

    bool finish() {
        for (int64_t row = 0; row < rows_; ++row) {
            shorten(row);
            const int64_t at = (first_ + row) * k_;
            if (good_) write(found_.values(row), found_.columns(row), k_, to_indices_ + at, to_values_ + at);
        }
        return good_;
    }

  private:
    void shorten(int64_t row) {
        int64_t &count = found_.count(row);
        count = cut(found_.values(row), found_.columns(row), count, k_, found_.bar(row));
        if (count >= 0) return;
        good_ = false;
        count = 0;
    }

    const Integers lanes_ = lane_numbers();
    int64_t k_, first_ = 0, rows_ = 0;
    Candidates found_;
    int32_t *to_indices_;
    float *to_values_;
    bool good_ = true;
};

#if defined(SCREEN)
// The same through the screen in integers: see screen.h.
int64_t screened_topk(const float *X, int64_t n, int64_t d, const Screened &packed, const float *encoder,
                      const float *encoder_bias, const float *bias, int64_t m, int64_t k, int32_t *indices,
                      float *values, int threads) {
    const int64_t P = packed.P, pairs = packed.pairs;
    const int64_t groups = (n + ROWS - 1) / ROWS;
    const int64_t most = std::max<int64_t>(1, std::min(MOST_GROUPS, BLOCK_BYTES / (4 * ROWS * pairs)));
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, groups)));
    const int64_t blocks = threads * ((groups + threads * most - 1) / (threads * most));
    std::vector<float> starts(P * PANEL, 0.0f);
    std::copy(encoder_bias, encoder_bias + m, starts.begin());
    float rounding = 0, longest = 0, largest_bias = 0;
    bool possible = true;
    for (int64_t p = 0; p < P; ++p) {
        rounding = std::max(rounding, packed.facts[p * FACTS]);
        longest = std::max(longest, packed.facts[p * FACTS + 1]);
        possible &= packed.facts[p * FACTS + 2] == 1;
    }
    for (int64_t j = 0; j < m; ++j) largest_bias = std::max(largest_bias, std::fabs(encoder_bias[j]));
    possible &= largest_bias <= HUGE_BIAS;
    std::atomic<int64_t> status{GOOD};
#pragma omp parallel num_threads(threads)
    {
        const Integers lanes = lane_numbers();
        Candidates found(most * ROWS, k, m);
        std::vector<float> centred(most * ROWS * d), scales(most * ROWS), margins(most * ROWS), every;
        std::vector<int32_t> integers(most * ROWS * pairs), columns;
        std::vector<char> screened(most * ROWS);
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < blocks; ++block) {
            if (status.load(std::memory_order_relaxed) != GOOD) continue;
            const int64_t first = groups * block / blocks * ROWS;
            const int64_t rows = std::min(n, groups * (block + 1) / blocks * ROWS) - first;
            bool finite = true;
            for (int64_t row = 0; row < rows; ++row) {
                const float *x = X + (first + row) * d;
                float *y = &centred[row * d];
                for (int64_t i = 0; i < d; i += 16) {
                    const __mmask16 lanes_used = within(i, d);
                    const __m512 value = _mm512_maskz_loadu_ps(lanes_used, x + i);
                    // Of finite numbers and no others, the difference with themselves is 0.
                    finite &= compare<AT_LEAST>((Vector)value - (Vector)value, Vector{}) == ALL;
                    _mm512_mask_storeu_ps(y + i, lanes_used,
                                          _mm512_sub_ps(value, _mm512_maskz_loadu_ps(lanes_used, bias + i)));
                }
                float norm = 0, scale = 0;
                screened[row] = possible && scale_of(y, d, norm, scale);
                if (!screened[row]) scale = norm = 0;
                const int64_t group = row / ROWS * ROWS;
                const int width = group_width(std::min<int64_t>(ROWS, rows - group));
                for (int64_t i = 0; i < pairs; i += 8) {
                    int32_t couples[8] = {};
                    if (scale > 0)
                        _mm256_storeu_si256(reinterpret_cast<__m256i *>(couples), rounded(y, 2 * i, d, scale));
                    for (int64_t at = i; at < std::min(i + 8, pairs); ++at)
                        integers[group * pairs + at * width + row - group] = couples[at - i];
                }
                scales[row] = scale > 0 ? 1 / scale : 0;
                // Of the integers; of the float32 score (at most d + 2 roundings); of the screened score itself.
                const float product = norm * longest;
                const float error = norm * rounding + ROUNDING * std::sqrt(float(d)) * scales[row] * longest +
                                    float(d + 32) * 6e-8f * (product + largest_bias) + 1e-37f;
                margins[row] = 2.02f * error;
            }
            if (!finite) {
                status = ROWS_NOT_FINITE;
                continue;
            }
            found.start(rows);
            for (int64_t row = 0; row < rows; ++row)
                if (!screened[row]) found.bar(row) = INFINITY;
            for (int64_t p = 0; p < P; ++p) {
                const int64_t column = p * PANEL;
                const uint64_t valid = (uint64_t(1) << std::min<int64_t>(PANEL, m - column)) - 1;
                const Vector by[2] = {load(packed.scales + column), load(packed.scales + column + WIDTH)};
                const Vector from[2] = {load(&starts[column]), load(&starts[column + WIDTH])};
                for (int64_t group = 0; group < rows; group += ROWS) {
                    const int64_t count = std::min<int64_t>(ROWS, rows - group);
                    __m512i sums[ROWS][2];
                    integer_tile_of(group_width(count), &integers[group * pairs], packed.panel(p), pairs, sums);
                    for (int64_t row = group; row < group + count; ++row)
                        for (int half = 0; half < 2; ++half) {
                            const Vector sum = (Vector)_mm512_cvtepi32_ps(sums[row - group][half]);
                            const Vector scores = fma(sum * spread(scales[row]), by[half], from[half]);
                            const uint32_t bits = compare<NOT_AT_MOST>(scores, spread(found.bar(row))) &
                                                  uint32_t(valid >> (half * WIDTH)) & ALL;
                            if (__builtin_expect(!bits, 1)) continue;
                            if (found.full(row)) {
                                float bar = 0;
                                found.count(row) = cut(found.values(row), found.columns(row), found.count(row), k, bar,
                                                       margins[row]);
                                found.bar(row) = bar - margins[row];
                                if (found.full(row)) {
                                    // Too many scores are as good as equal: all atoms are scored in float32.
                                    screened[row] = false;
                                    found.bar(row) = INFINITY;
                                    continue;
                                }
                            }
                            found.add(row, bits, scores, lanes + int32_t(column + half * WIDTH));
                        }
                }
            }
            for (int64_t row = 0; row < rows; ++row) {
                const float *y = &centred[row * d];
                float *candidates = found.values(row);
                int32_t *where = found.columns(row);
                int64_t count = found.count(row);
                float bar = 0;
                if (screened[row]) {
                    count = cut(candidates, where, count, k, bar, margins[row]);
                } else {
                    every.resize(m + WIDTH);
                    columns.resize(m + WIDTH);
                    for (int64_t j = 0; j < m; ++j) columns[j] = int32_t(j);
                    candidates = every.data();
                    where = columns.data();
                    count = m;
                }
                for (int64_t i = 0; i < count; ++i) {
                    const float *next = encoder + int64_t(where[std::min(i + 1, count - 1)]) * d;
                    for (int64_t at = 0; at < d; at += 16) __builtin_prefetch(next + at);
                    candidates[i] = dot(y, encoder + int64_t(where[i]) * d, d) + encoder_bias[where[i]];
                }
                count = cut(candidates, where, count, k, bar);
                if (count != k) {
                    int64_t good = GOOD;
                    status.compare_exchange_strong(good, SCORES_NAN);
                    break;
                }
                write(candidates, where, k, indices + (first + row) * k, values + (first + row) * k);
            }
        }
    }
    return status;
}
#endif

}  // namespace

// Length of the encoder (m, d) packed for encode_threshold, and for encode_topk.
EXPORT int64_t conceptome_panels_size(int64_t m, int64_t d) { return panels(m) * PANEL * d; }
#if defined(SCREEN)
EXPORT int64_t conceptome_packed_size(int64_t m, int64_t d) { return Screened::size(m, d); }
#else
EXPORT int64_t conceptome_packed_size(int64_t m, int64_t d) { return conceptome_panels_size(m, d); }
#endif

// Number of panels of m atoms.
EXPORT int64_t conceptome_panels(int64_t m) { return panels(m); }

// Pack the encoder (m, d) for encode_threshold.
EXPORT int64_t conceptome_pack_panels(const float *encoder, int64_t m, int64_t d, float *packed, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t p = 0; p < panels(m); ++p) pack_panel(encoder, m, d, p, packed);
    return GOOD;
}

// Pack it for encode_topk.
EXPORT int64_t conceptome_pack(const float *encoder, int64_t m, int64_t d, float *packed, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t p = 0; p < panels(m); ++p) pack_for_topk(encoder, m, d, p, packed);
    return GOOD;
}

// Indices int32 (n, k), ascending, and values (n, k) of the k largest scores, those below zero as zero.
EXPORT int64_t conceptome_encode_topk(const float *X, int64_t n, int64_t d, float *packed, const float *encoder,
                                      const float *encoder_bias, const float *bias, int64_t m, int64_t k,
                                      int32_t *indices, float *values, int64_t threads) {
#if defined(SCREEN)
    return screened_topk(X, n, d, Screened(packed, m, d), encoder, encoder_bias, bias, m, k, indices, values,
                         int(threads));
#else
    (void)encoder;
    return harvest(X, n, d, packed, encoder_bias, bias, m, int(threads),
                   [&](int64_t rows) { return Largest(rows, k, m, indices, values); });
#endif
}

namespace {

// What encode_threshold found, until it is fetched.
struct Found {
    std::vector<std::vector<int32_t>> columns;  // per row
    std::vector<std::vector<float>> values;
};

// All scores of every row of a block that lie above their atom's threshold.
class Above {
  public:
    Above(const float *thresholds, Found *found)
        : thresholds_(thresholds), found_(found) {}

    void start(int64_t first, int64_t) {
        first_ = first;
        good_ = true;
    }

    void take(int64_t row, int64_t column, uint32_t valid, Vector scores) {
        const uint32_t bits = compare<NOT_AT_MOST>(scores, load(thresholds_ + column)) & valid;
        if (!bits) return;
        good_ &= !(bits & ~compare<AT_LEAST>(scores, scores));
        std::vector<float> &values = found_->values[first_ + row];
        std::vector<int32_t> &columns = found_->columns[first_ + row];
        float picked[WIDTH];
        int32_t where[WIDTH];
        const int kept = keep(bits, scores, lanes_ + int32_t(column), picked, where);
        values.insert(values.end(), picked, picked + kept);
        columns.insert(columns.end(), where, where + kept);
    }

    bool finish() { return good_; }

  private:
    const Integers lanes_ = lane_numbers();
    const float *thresholds_;
    Found *found_;
    int64_t first_ = 0;
    bool good_ = true;
};

}  // namespace

// Find the scores above their atom's threshold (m,). `handle` becomes the place of what was found, to be fetched once;
// `indptr` int64 (n + 1) is written.
EXPORT int64_t conceptome_encode_threshold(const float *X, int64_t n, int64_t d, const float *packed,
                                           const float *encoder_bias, const float *bias, int64_t m,
                                           const float *thresholds, int64_t *indptr, int64_t *handle, int64_t threads) {
    auto found = std::make_unique<Found>();
    found->columns.resize(n);
    found->values.resize(n);
    std::vector<float> padded(panels(m) * PANEL, 0.0f);
    std::copy(thresholds, thresholds + m, padded.begin());
    const int64_t status = harvest(X, n, d, packed, encoder_bias, bias, m, int(threads),
                                   [&](int64_t) { return Above(padded.data(), found.get()); });
    if (status != GOOD) return status;
    indptr[0] = 0;
    for (int64_t row = 0; row < n; ++row) indptr[row + 1] = indptr[row] + int64_t(found->values[row].size());
    *handle = int64_t(reinterpret_cast<intptr_t>(found.release()));
    return GOOD;
}

// Copy what was found to indices int32 and values, both (indptr[n],), and forget it.
EXPORT int64_t conceptome_fetch(int64_t handle, int32_t *indices, float *values) {
    const std::unique_ptr<Found> found(reinterpret_cast<Found *>(intptr_t(handle)));
    for (size_t row = 0; row < found->values.size(); ++row) {
        values = std::copy(found->values[row].begin(), found->values[row].end(), values);
        indices = std::copy(found->columns[row].begin(), found->columns[row].end(), indices);
    }
    return GOOD;
}
