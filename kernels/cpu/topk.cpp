// Encoders: ReLU(TopK_k(scores)), all scores above a threshold, and the largest of a whole batch, without a rows × atoms
// array.
#include <functional>
#include <limits>
#include <mutex>

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
// The same through the screen: candidates are all that may be among the k largest; see screen.h.
class ScreenedLargest {
  public:
    ScreenedLargest(int64_t rows, int64_t k, const Encoder &encoder, int32_t *indices, float *values)
        : k_(k), encoder_(encoder), found_(rows, k, encoder.m), to_indices_(indices), to_values_(values) {}

    void start(const Block &block) {
        block_ = &block;
        found_.start(block.rows);
        errors_ = block.errors;
        // Rows that cannot be screened keep no candidates: all their atoms are scored in float32.
        for (int64_t row = 0; row < block.rows; ++row)
            if (errors_[row] == INFINITY) found_.bar(row) = INFINITY;
    }

    bool wants_screen() const { return true; }

    void take(int64_t first, int64_t rows, int64_t column, uint32_t valid, const Vector (*scores)[2]) {
        for (int64_t row = first; row < first + rows; ++row)
            for (int half = 0; half < 2; ++half) {
                const Vector score = scores[row - first][half];
                const uint32_t bits =
                    compare<NOT_AT_MOST>(score, spread(found_.bar(row))) & (valid >> (half * WIDTH)) & ALL;
                if (__builtin_expect(!bits, 1)) continue;
                if (found_.full(row) && !shorten(row)) continue;
                found_.add(row, bits, score, lanes_ + int32_t(column + half * WIDTH));
            }
    }

    bool finish() {
        for (int64_t row = 0; row < block_->rows; ++row) {
            float *candidates = found_.values(row);
            int32_t *where = found_.columns(row);
            int64_t count = found_.count(row);
            float bar = 0;
            if (errors_[row] < INFINITY) {
                count = cut(candidates, where, count, k_, bar, 2 * errors_[row]);
            } else {
                every_.resize(encoder_.m + WIDTH);
                columns_.resize(encoder_.m + WIDTH);
                for (int64_t j = 0; j < encoder_.m; ++j) columns_[j] = int32_t(j);
                candidates = every_.data();
                where = columns_.data();
                count = encoder_.m;
            }
            encoder_.score(&block_->centred[row * encoder_.d], where, count, candidates);
            if (cut(candidates, where, count, k_, bar) != k_) return false;
            const int64_t at = (block_->first + row) * k_;
            write(candidates, where, k_, to_indices_ + at, to_values_ + at);
        }
        return true;
    }

  private:
    // Make room among a row's candidates; false when too many scores are as good as equal: all are scored in float32.
    bool shorten(int64_t row) {
        const float margin = 2 * errors_[row];
        float bar = 0;
        found_.count(row) = cut(found_.values(row), found_.columns(row), found_.count(row), k_, bar, margin);
        found_.bar(row) = bar - margin;
        if (!found_.full(row)) return true;
        errors_[row] = found_.bar(row) = INFINITY;
        return false;
    }

    const Integers lanes_ = lane_numbers();
    int64_t k_;
    const Encoder &encoder_;
    const Block *block_ = nullptr;
    Candidates found_;
    std::vector<float> errors_, every_;
    std::vector<int32_t> columns_;
    int32_t *to_indices_;
    float *to_values_;
};
#endif

}  // namespace

// Length of the encoder (m, d) packed in float32 panels, and as the encoders read it where there is a screen.
EXPORT int64_t conceptome_panels_size(int64_t m, int64_t d) { return panels(m) * PANEL * d; }
#if defined(SCREEN)
EXPORT int64_t conceptome_packed_size(int64_t m, int64_t d) { return Screened::size(m, d); }
#else
EXPORT int64_t conceptome_packed_size(int64_t m, int64_t d) { return conceptome_panels_size(m, d); }
#endif

// Number of panels of m atoms.
EXPORT int64_t conceptome_panels(int64_t m) { return panels(m); }

// Pack the encoder (m, d) in float32 panels.
EXPORT int64_t conceptome_pack_panels(const float *encoder, int64_t m, int64_t d, float *packed, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t p = 0; p < panels(m); ++p) pack_panel(encoder, m, d, p, packed);
    return GOOD;
}

// Pack it as the encoders read it.
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
    const Encoder given{encoder, encoder_bias, m, d};
    return screened_harvest(X, n, Screened(packed, m, d), given, bias, int(threads),
                            [&](int64_t rows) { return ScreenedLargest(rows, k, given, indices, values); });
#else
    (void)encoder;
    return harvest(X, n, d, packed, encoder_bias, bias, m, int(threads),
                   [&](int64_t rows) { return Largest(rows, k, m, indices, values); });
#endif
}

namespace {

// A thread hands on what it found in portions of this many scores.
constexpr int64_t PORTION = 1 << 14;

// Scores found in any order of rows, ascending columns in each row; where only the `most` largest are wanted, scores that
// cannot be among them are dropped from time to time.
class Pool {
  public:
    explicit Pool(int64_t most) : most_(most) {}

    // What does not lie above this is not wanted any more.
    float bar() const { return bar_.load(std::memory_order_relaxed); }

    void add(int64_t count, const float *values, const int32_t *rows, const int32_t *columns) {
        const std::lock_guard<std::mutex> lock(mutex_);
        values_.insert(values_.end(), values, values + count);
        rows_.insert(rows_.end(), rows, rows + count);
        columns_.insert(columns_.end(), columns, columns + count);
        if (most_ >= 0 && size() > 2 * most_ + 4 * PORTION) shorten();
    }

    // Keep the `most` largest; of equal ones those in the lower row, then the lower column.
    void shorten() {
        if (most_ < 0 || size() <= most_) return;
        std::vector<float> sorted(values_);
        std::nth_element(sorted.begin(), sorted.begin() + (most_ - 1), sorted.end(), std::greater<float>());
        const float last = sorted[most_ - 1];
        std::vector<int64_t> equal;
        int64_t wanted = most_;
        for (int64_t i = 0; i < size(); ++i) {
            wanted -= values_[i] > last;
            if (values_[i] == last) equal.push_back(place(i));
        }
        std::nth_element(equal.begin(), equal.begin() + (wanted - 1), equal.end());
        const int64_t furthest = equal[wanted - 1];
        int64_t kept = 0;
        for (int64_t i = 0; i < size(); ++i) {
            if (!(values_[i] > last || (values_[i] == last && place(i) <= furthest))) continue;
            values_[kept] = values_[i];
            rows_[kept] = rows_[i];
            columns_[kept++] = columns_[i];
        }
        values_.resize(kept);
        rows_.resize(kept);
        columns_.resize(kept);
        // What equals the last may still come, from a lower row.
        bar_ = std::nextafter(last, -INFINITY);
    }

    // indptr (n + 1) of the scores by row.
    void count(int64_t n, int64_t *indptr) const {
        std::fill_n(indptr, n + 1, 0);
        for (const int32_t row : rows_) ++indptr[row + 1];
        for (int64_t row = 0; row < n; ++row) indptr[row + 1] += indptr[row];
    }

    // The scores by row; `next` are the places where the rows start, and is used up.
    void write(std::vector<int64_t> next, int32_t *indices, float *values) const {
        for (int64_t i = 0; i < size(); ++i) {
            const int64_t to = next[rows_[i]]++;
            indices[to] = columns_[i];
            values[to] = values_[i];
        }
    }

  private:
    int64_t size() const { return int64_t(values_.size()); }
    int64_t place(int64_t i) const { return (int64_t(rows_[i]) << 32) | columns_[i]; }

    int64_t most_;
    std::atomic<float> bar_{-INFINITY};
    std::mutex mutex_;
    std::vector<float> values_;
    std::vector<int32_t> rows_, columns_;
};

// One thread's scores above their atom's threshold and above the pool's bar, on their way to the pool.
class Above {
  public:
    Above(const float *thresholds, Pool *pool)
        : thresholds_(thresholds), pool_(pool), values_(PORTION + PANEL), rows_(PORTION + PANEL),
          columns_(PORTION + PANEL) {}

    void start(int64_t first, int64_t) {
        first_ = first;
        good_ = true;
    }

    void take(int64_t row, int64_t column, uint32_t valid, Vector scores) {
        const uint32_t bits = compare<NOT_AT_MOST>(scores, limit(column)) & valid;
        if (!bits) return;
        good_ &= !(bits & ~compare<AT_LEAST>(scores, scores));
        const int kept = keep(bits, scores, lanes_ + int32_t(column), &values_[count_], &columns_[count_]);
        std::fill_n(&rows_[count_], kept, int32_t(first_ + row));
        count_ += kept;
        if (count_ > PORTION) hand_on();
    }

    bool finish() {
        hand_on();
        return good_;
    }

  protected:
    // What a score at these columns has to exceed.
    Vector limit(int64_t column) const {
        const Vector threshold = load(thresholds_ + column), bar = spread(pool_->bar());
        return threshold > bar ? threshold : bar;
    }

  private:
    void hand_on() {
        if (good_) pool_->add(count_, values_.data(), rows_.data(), columns_.data());
        count_ = 0;
    }

    const Integers lanes_ = lane_numbers();
    const float *thresholds_;
    Pool *pool_;
    int64_t first_ = 0, count_ = 0;
    std::vector<float> values_;
    std::vector<int32_t> rows_, columns_;
    bool good_ = true;
};

#if defined(SCREEN)
// The same through the screen: what may lie above is scored in float32 at once.
class ScreenedAbove : Above {
  public:
    ScreenedAbove(const float *thresholds, const Encoder &encoder, Pool *pool)
        : Above(thresholds, pool), encoder_(encoder) {}

    void start(const Block &block) {
        Above::start(block.first, block.rows);
        block_ = &block;
    }

    // Where a panel's first rows have many scores above, the rest is scored in float32 without a screen.
    bool wants_screen() const { return !many_; }

    void take(int64_t first, int64_t rows, int64_t column, uint32_t valid, const Vector (*scores)[2]) {
        const float *centred = &block_->centred[first * encoder_.d];
        uint32_t candidates[ROWS], any = 0;
        int64_t total = 0;
        const Vector limits[2] = {limit(column), limit(column + WIDTH)};
        for (int64_t r = 0; scores && r < rows; ++r) {
            // Of a row that cannot be screened, everything may lie above: it exceeds limit − ∞.
            const Vector error = spread(block_->errors[first + r]);
            candidates[r] = (compare<NOT_AT_MOST>(scores[r][0], limits[0] - error) |
                             compare<NOT_AT_MOST>(scores[r][1], limits[1] - error) << WIDTH) &
                            valid;
            total += __builtin_popcount(candidates[r]);
            any |= candidates[r];
        }
        many_ = !scores || total * 4 > rows * PANEL;
        if (many_) {
            float found[ROWS][PANEL];
            encoder_.score_panel(centred, rows, column, found);
            for (int64_t r = 0; r < rows; ++r) pass(first + r, column, valid, found[r]);
            return;
        }
        for (uint32_t bits = any; bits; bits &= bits - 1) encoder_.prefetch(column + __builtin_ctz(bits));
        for (int64_t r = 0; any && r < rows; ++r) {
            if (!candidates[r]) continue;
            int32_t columns[PANEL];
            float some[PANEL], found[PANEL];
            int64_t count = 0;
            for (uint32_t bits = candidates[r]; bits; bits &= bits - 1)
                columns[count++] = int32_t(column) + __builtin_ctz(bits);
            encoder_.score(centred + r * encoder_.d, columns, count, some);
            for (int64_t i = 0; i < count; ++i) found[columns[i] - column] = some[i];
            pass(first + r, column, candidates[r], found);
        }
    }

    using Above::finish;

  private:
    // Take the scores of one row with a panel where a bit is set.
    void pass(int64_t row, int64_t column, uint32_t bits, const float *scores) {
        Above::take(row, column, bits & ALL, load(scores));
        Above::take(row, column + WIDTH, bits >> WIDTH, load(scores + WIDTH));
    }

    const Encoder &encoder_;
    const Block *block_ = nullptr;
    bool many_ = false;
};
#endif

}  // namespace

// Find the scores above their atom's threshold (m,), or of these the `most` largest (−1: all); of equal ones those in the
// lower row, then the lower column. `packed` is the encoder in float32 panels where `encoder` is null. `handle` becomes
// the place of what was found, to be fetched once; `indptr` int64 (n + 1) is written.
EXPORT int64_t conceptome_encode_threshold(const float *X, int64_t n, int64_t d, float *packed, const float *encoder,
                                           const float *encoder_bias, const float *bias, int64_t m,
                                           const float *thresholds, int64_t most, int64_t *indptr, int64_t *handle,
                                           int64_t threads) {
    auto pool = std::make_unique<Pool>(most);
    std::vector<float> padded(panels(m) * PANEL, 0.0f);
    std::copy(thresholds, thresholds + m, padded.begin());
    int64_t status;
#if defined(SCREEN)
    if (encoder) {
        const Encoder given{encoder, encoder_bias, m, d};
        status = screened_harvest(X, n, Screened(packed, m, d), given, bias, int(threads),
                                  [&](int64_t) { return ScreenedAbove(padded.data(), given, pool.get()); });
    } else
#endif
        status = harvest(X, n, d, packed, encoder_bias, bias, m, int(threads),
                         [&](int64_t) { return Above(padded.data(), pool.get()); });
    (void)encoder;
    if (status != GOOD) return status;
    pool->shorten();
    pool->count(n, indptr);
    *handle = int64_t(reinterpret_cast<intptr_t>(pool.release()));
    return GOOD;
}

// Copy what was found to indices int32 and values, both (indptr[n],), and forget it.
EXPORT int64_t conceptome_fetch(int64_t handle, int64_t n, const int64_t *indptr, int32_t *indices, float *values) {
    const std::unique_ptr<Pool> pool(reinterpret_cast<Pool *>(intptr_t(handle)));
    pool->write(std::vector<int64_t>(indptr, indptr + n), indices, values);
    return GOOD;
}
