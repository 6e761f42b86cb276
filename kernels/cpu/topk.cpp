// Encoders: ReLU(TopK_k(scores)) and all scores above a threshold, without a rows × atoms array.
#include <limits>

#include "product.h"

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

// How many of the values, padded with NaN to whole vectors, compare so with the threshold.
template <Comparison C>
int64_t count_of(const float *values, int64_t count, float threshold) {
    const Vector bar = spread(threshold);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += WIDTH) found += __builtin_popcount(compare<C>(load(values + i), bar));
    return found;
}

// The k largest scores of every row of a block. A row's candidates stand in the order of their columns; they are cut to
// the k best when their place is full, and the k-th of those is the bar for what comes after. What equals the bar comes
// too late: the lower column wins.
class Largest {
  public:
    Largest(int64_t rows, int64_t k, int64_t m, int32_t *indices, float *values)
        : k_(k), room_(std::min(std::max<int64_t>(4 * k, 96), m)), stride_(room_ + 2 * WIDTH), counts_(rows),
          bars_(rows), values_(rows * stride_), columns_(rows * stride_), to_indices_(indices), to_values_(values) {}

    void start(int64_t first, int64_t rows) {
        good_ = true;
        first_ = first;
        rows_ = rows;
        std::fill_n(counts_.begin(), rows, 0);
        // Nothing is "at most NaN": the first k scores of a row are all candidates.
        std::fill_n(bars_.begin(), rows, std::numeric_limits<float>::quiet_NaN());
    }

    void take(int64_t row, int64_t column, uint32_t valid, Vector scores) {
        const uint32_t bits = compare<NOT_AT_MOST>(scores, spread(bars_[row])) & valid;
        if (__builtin_expect(!bits, 1)) return;
        int64_t &count = counts_[row];
        if (count + WIDTH > stride_ - WIDTH) cut(row);
        const int64_t at = row * stride_ + count;
        count += keep(bits, scores, lanes_ + int32_t(column), &values_[at], &columns_[at]);
    }

    bool finish() {
        for (int64_t row = 0; row < rows_; ++row) {
            cut(row);
            const float *values = &values_[row * stride_];
            std::copy_n(&columns_[row * stride_], k_, to_indices_ + (first_ + row) * k_);
            float *to = to_values_ + (first_ + row) * k_;
            for (int64_t i = 0; i < k_; ++i) to[i] = values[i] > 0 ? values[i] : 0;
        }
        return good_;
    }

  private:
    // Cut a row's candidates to the k best.
    void cut(int64_t row) {
        float *values = &values_[row * stride_];
        int32_t *columns = &columns_[row * stride_];
        const int64_t count = counts_[row];
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
        float low = lows[0], high = highs[0];
        for (int j = 1; j < WIDTH; ++j) {
            low = std::min(low, float(lows[j]));
            high = std::max(high, float(highs[j]));
        }
        if (numbers != count) {
            good_ = false;
            counts_[row] = std::min(count, k_);
            return;
        }
        if (count <= k_) {
            if (count == k_) bars_[row] = low;
            return;
        }
        // Bisection by the order of floats: at least k_ scores reach `low`, fewer reach `high`. It ends early when a
        // value parts exactly k_ from the rest.
        int64_t from = order(low), to = int64_t(order(high)) + 1;
        bool exact = false;
        while (to - from > 1 && !exact) {
            const int64_t middle = from + (to - from) / 2;
            const int64_t reach = count_of<AT_LEAST>(values, count, at_order(int32_t(middle)));
            if (reach >= k_) from = middle;
            else to = middle;
            exact = reach == k_;
        }
        const float bar = at_order(int32_t(from));
        const Vector bars = spread(bar);
        // Of the scores that equal the bar there may be more than are wanted: the first ones stay.
        int64_t equal = exact ? count : k_ - count_of<ABOVE>(values, count, bar);
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
        counts_[row] = kept;
        bars_[row] = bar;
        if (exact) {
            // The parting value may lie below the k-th score itself.
            Vector least = spread(INFINITY);
            std::fill_n(values + kept, WIDTH, INFINITY);
            for (int64_t i = 0; i < kept; i += WIDTH) {
                const Vector value = load(values + i);
                least = value < least ? value : least;
            }
            float smallest = least[0];
            for (int j = 1; j < WIDTH; ++j) smallest = std::min(smallest, float(least[j]));
            bars_[row] = smallest;
        }
    }

    const Integers lanes_ = lane_numbers();
    int64_t k_, room_, stride_, first_ = 0, rows_ = 0;
    std::vector<int64_t> counts_;
    std::vector<float> bars_, values_;
    std::vector<int32_t> columns_;
    int32_t *to_indices_;
    float *to_values_;
    bool good_ = true;
};

}  // namespace

// Length of an array that holds the packed encoder (m, d).
EXPORT int64_t conceptome_packed_size(int64_t m, int64_t d) { return panels(m) * PANEL * d; }

// Number of panels of m atoms.
EXPORT int64_t conceptome_panels(int64_t m) { return panels(m); }

// Pack the encoder (m, d).
EXPORT int64_t conceptome_pack(const float *encoder, int64_t m, int64_t d, float *packed, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t p = 0; p < panels(m); ++p) pack_panel(encoder, m, d, p, packed);
    return GOOD;
}

// Indices int32 (n, k), ascending, and values (n, k) of the k largest scores, those below zero as zero.
EXPORT int64_t conceptome_encode_topk(const float *X, int64_t n, int64_t d, const float *packed,
                                      const float *encoder_bias, const float *bias, int64_t m, int64_t k,
                                      int32_t *indices, float *values, int64_t threads) {
    return harvest(X, n, d, packed, encoder_bias, bias, m, int(threads),
                   [&](int64_t rows) { return Largest(rows, k, m, indices, values); });
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
