// Pursuits: sparse codes of rows over unit atoms, chosen greedily by correlation with what is left of the row.
//
// What a pursuit takes is decided by one number: the float32 product of an atom with the row's float32 residual. It is
// computed for few atoms only: those whose screened correlation (correlations.h) lies within its error bound of the
// largest. Hence the codes are those of a search through all exact products, the same bytes whatever the screen.
//
// With the Gram matrix a row's screened correlations stay in L2 from start to end, and each atom taken costs one pass
// over a row of the matrix (Rubinstein, Zibulevsky and Elad 2008, "Efficient implementation of the K-SVD algorithm
// using Batch-OMP"). Without it residuals of a block of rows are multiplied with the atoms in each round, and only
// peaks of the products are kept. The specification is conceptome_kernels/reference.py.

#include <omp.h>

#include <new>
#include <numeric>

#include "correlations.h"

namespace {

constexpr double DONE = 1e-5;   // a row is done once no chosen |correlation| exceeds this share of its length
constexpr double PIVOT = 1e-4;  // atoms are dependent when a Cholesky pivot of their Gram matrix is below this
constexpr double RIDGE = 1e-5;  // added to the diagonal of dependent systems, and only of those

// Changes that orthogonal matching pursuit may put off, as a share of the largest correlation.
constexpr double PENDING = 0.05;

// Rows that a thread moves on in turn, so that what one needs from memory comes while the others compute.
constexpr int64_t TOGETHER = 4;
constexpr int64_t HEAD = 512;            // bytes of a row of the Gram matrix that are asked for as soon as it is known
constexpr int64_t STATES = 64ll << 20;  // bytes that the states of a block of rows may take

double exact_dot(const float *a, const float *b, int64_t d) {
    // Eight partial sums, so that the chain of additions does not set the pace.
    double part[8] = {};
    int64_t k = 0;
    for (; k + 8 <= d; k += 8)
        for (int i = 0; i < 8; i++) part[i] += double(a[k + i]) * double(b[k + i]);
    for (; k < d; k++) part[k % 8] += double(a[k]) * double(b[k]);
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Lower Cholesky factor of the system (size, size) in place; the smallest pivot, or −1 where it breaks down.
double factorise(double *system, int size) {
    double smallest = std::numeric_limits<double>::infinity();
    for (int i = 0; i < size; i++) {
        double *row = system + i * size;
        for (int j = 0; j < i; j++) {
            double sum = row[j];
            for (int k = 0; k < j; k++) sum -= row[k] * system[j * size + k];
            row[j] = sum / system[j * size + j];
        }
        double pivot = row[i];
        for (int k = 0; k < i; k++) pivot -= row[k] * row[k];
        if (!(pivot > 0)) return -1;
        smallest = std::min(smallest, pivot);
        row[i] = std::sqrt(pivot);
    }
    return smallest;
}

void solve_lower(const double *factor, int stride, int size, double *x) {
    for (int i = 0; i < size; i++) {
        for (int k = 0; k < i; k++) x[i] -= factor[i * stride + k] * x[k];
        x[i] /= factor[i * stride + i];
    }
}

void solve_upper(const double *factor, int stride, int size, double *x) {
    for (int i = size; i-- > 0;) {
        x[i] /= factor[i * stride + i];
        for (int k = 0; k < i; k++) x[k] -= factor[i * stride + k] * x[i];
    }
}

// The codes that one row collects, and their output: columns ascending and unique, unused places filled up with zeros.
struct Collected {
    std::vector<int32_t> column;
    std::vector<float> value;
    std::vector<int32_t> order;

    explicit Collected(int64_t most) {
        column.reserve(most), value.reserve(most), order.reserve(most);
    }

    void write(int64_t width, int32_t *indices, float *values) {
        const int count = int(column.size());
        order.resize(count);
        std::iota(order.begin(), order.end(), 0);
        // By column, and by round among equal columns, so that sums have one order.
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return column[a] != column[b] ? column[a] < column[b] : a < b;
        });
        int64_t used = 0;
        for (int i = 0; i < count; i++) {
            const int32_t at = order[i];
            if (used && indices[used - 1] == column[at]) {
                values[used - 1] += value[at];
            } else {
                indices[used] = column[at];
                values[used++] = value[at];
            }
        }
        if (used == width) return;
        // Merge in the lowest columns that are not taken: from the back, so that nothing is overwritten unread.
        int64_t spare = width - used, taken = 0;
        int32_t fill = -1;
        for (int64_t left = spare; left > 0;) {
            fill++;
            if (taken < used && indices[taken] == fill)
                taken++;
            else
                left--;
        }
        int64_t from = used - 1;
        for (int64_t to = width - 1; to >= 0; to--) {
            if (from >= 0 && (fill < 0 || indices[from] > fill)) {
                indices[to] = indices[from];
                values[to] = values[from--];
            } else {
                indices[to] = fill;
                values[to] = 0;
                // The next lower column that is not taken.
                int64_t check = from;
                for (fill--; check >= 0 && indices[check] == fill; check--) fill--;
            }
        }
    }

    void clear() { column.clear(), value.clear(); }
};

// One row on its way, scaled by a power of two so that its length lies between 1 and 2.
struct Row {
    float *residual = nullptr;  // (d)
    float *c = nullptr;         // screened correlations; with a Gram matrix only
    double floor = 0;           // correlations up to here count as none
    double norm = 0;            // length of the residual, at least
    double error = 0;           // of the screened correlations, at most
    std::vector<float> peaks;
    std::vector<int32_t> candidates;
    std::vector<float> seen;
    // What was taken last and has not been subtracted from c yet.
    std::vector<int32_t> column;
    std::vector<float> change;
    double coherence = 0;  // of the last of these atoms with any other, at most
    // What was taken but waits to be subtracted, and how far it can move a correlation.
    std::vector<int32_t> waiting;
    std::vector<float> owed;
    double owing = 0;
};

// The atoms chosen in a round, ascending, and their exact correlations.
struct Chosen {
    std::vector<int32_t> column;
    std::vector<float> score;
};

// Finds the atoms of largest exact correlation with a row's residual; one for each thread.
class Search {
  public:
    Search(const Atoms &atoms, const Gram &gram, const Peaks &peaks, bool magnitude, int64_t most)
        : atoms_(atoms), gram_(gram), peaks_(peaks), magnitude_(magnitude), largest_(most) {}

    // Subtracts what was taken last from the row's screened correlations, and finds their peaks; with `coherence` also
    // that of the last atom.
    void move(Row &row, bool coherence) {
        if (gram_.integers) move(row, gram_.integers, -1 / gram_.scale, coherence);
        else move(row, gram_.floats, -1, coherence);
        row.column.clear();
        row.change.clear();
    }

    // Lists the atoms that may be among the `wanted` largest.
    void find(Row &row, int64_t wanted, const std::vector<int32_t> &barred) {
        row.candidates.clear();
        row.seen.clear();
        const double margin = 2.0001 * (row.error + share(atoms_.d) * atoms_.longest * row.norm);
        if (!(atoms_.possible && margin < 1e30)) {
            for (int64_t j = 0; j < atoms_.m; ++j)
                if (!contains(barred, j)) row.candidates.push_back(int32_t(j));
            return;
        }
        // A peak that may be a barred atom's says nothing of the others; backwards, since two may share one.
        float *peaks = row.peaks.data();
        hidden_.clear();
        for (int32_t j : barred) {
            hidden_.push_back(peaks[peaks_.entry(j)]);
            peaks[peaks_.entry(j)] = NEVER;
        }
        const float bar = rank(peaks, peaks_.count, wanted, largest_, scratch_);
        for (size_t i = barred.size(); i-- > 0;) peaks[peaks_.entry(barred[i])] = hidden_[i];
        const float limit = below(bar, margin + 2 * row.owing);
        for (int64_t from = 0; from < peaks_.count; from += WIDTH)
            for (uint32_t bits = compare<AT_LEAST>(load(peaks + from), spread(limit)); bits; bits &= bits - 1) {
                int64_t j = peaks_.first(from + __builtin_ctz(bits));
                for (int64_t v = 0; v < peaks_.vectors && j < atoms_.m; ++v, j += WIDTH) {
                    const float score = row.c ? score_of(row.c[j]) : 0;
                    if ((row.c && !(score >= limit)) || contains(barred, j)) continue;
                    row.candidates.push_back(int32_t(j));
                    if (row.c) row.seen.push_back(score);
                }
            }
        if (row.c && int64_t(row.seen.size()) > wanted) {
            if (!row.waiting.empty()) settle(row);
            const float closer = below(rank(row.seen.data(), row.seen.size(), wanted, largest_, scratch_), margin);
            size_t kept = 0;
            for (size_t i = 0; i < row.seen.size(); ++i)
                if (row.seen[i] >= closer) row.candidates[kept++] = row.candidates[i];
            row.candidates.resize(kept);
        }
        std::sort(row.candidates.begin(), row.candidates.end());
        for (size_t i = 0; i < std::min<size_t>(row.candidates.size(), 8); ++i) atoms_.fetch(row.candidates[i]);
    }

    // The `wanted` candidates of largest exact correlation, the lower column where equal; false where there are fewer.
    bool choose(const Row &row, int64_t wanted, Chosen &chosen) {
        const int64_t count = row.candidates.size();
        exact_.resize(count);
        for (int64_t i = 0; i < count; ++i) exact_[i] = dot(atoms_[row.candidates[i]], row.residual, atoms_.d);
        chosen.column.clear();
        chosen.score.clear();
        if (wanted <= MANY) {
            largest_.reset(int(wanted));
            for (int64_t i = 0; i < count; ++i) largest_.offer(score_of(exact_[i]), int32_t(i));
            if (largest_.held < wanted) return false;
            order_.assign(largest_.column.begin(), largest_.column.begin() + wanted);
        } else {
            for (float score : exact_)
                if (score != score) return false;
            if (count < wanted) return false;
            order_.resize(count);
            std::iota(order_.begin(), order_.end(), 0);
            std::nth_element(order_.begin(), order_.begin() + (wanted - 1), order_.end(), [&](int32_t a, int32_t b) {
                const float first = score_of(exact_[a]), second = score_of(exact_[b]);
                return first != second ? first > second : a < b;
            });
            order_.resize(wanted);
        }
        std::sort(order_.begin(), order_.end());
        for (int32_t i : order_) {
            chosen.column.push_back(row.candidates[i]);
            chosen.score.push_back(exact_[i]);
        }
        return true;
    }

    // Asks for the heads of the rows of the Gram matrix that `move` will read.
    void fetch(const Row &row) const {
        const int64_t size = gram_.integers ? 2 : 4;
        const char *from = gram_.integers ? reinterpret_cast<const char *>(gram_.integers)
                                          : reinterpret_cast<const char *>(gram_.floats);
        for (int32_t j : row.column)
            for (int64_t at = 0; at < std::min(HEAD, size * atoms_.m); at += 64)
                __builtin_prefetch(from + int64_t(j) * atoms_.m * size + at);
    }

  private:
    // Scores of the candidates as they are without the changes that wait.
    void settle(Row &row) {
        if (gram_.integers) settle(row, gram_.integers, 1 / gram_.scale);
        else settle(row, gram_.floats, 1);
    }

    template <class Entry>
    void settle(Row &row, const Entry *gram, double scale) {
        const size_t count = row.candidates.size();
        for (size_t i = 0; i < count; ++i) row.seen[i] = row.c[row.candidates[i]];
        for (size_t at = 0; at < row.waiting.size(); ++at) {
            const Entry *entry = gram + row.waiting[at] * atoms_.m;
            const float factor = float(-row.owed[at] * scale);
            for (size_t i = 0; i < count; ++i) row.seen[i] = fma(factor, float(entry[row.candidates[i]]), row.seen[i]);
        }
        for (float &score : row.seen) score = score_of(score);
    }

    float score_of(float correlation) const { return magnitude_ ? std::fabs(correlation) : correlation; }

    static float below(float bar, double margin) {
        return bar == NEVER ? NEVER : float(double(bar) - margin - 4 * UNIT * std::fabs(double(bar)) - 1e-37);
    }

    static bool contains(const std::vector<int32_t> &list, int64_t j) {
        return std::find(list.begin(), list.end(), int32_t(j)) != list.end();
    }

    template <class Entry>
    static double largest_magnitude(const Entry *entry, int64_t count) {
        Entry low = 0, high = 0;
        for (int64_t i = 0; i < count; ++i) low = std::min(low, entry[i]), high = std::max(high, entry[i]);
        return std::max(-double(low), double(high));
    }

    template <class Entry>
    void move(Row &row, const Entry *gram, double scale, bool coherence) {
        const int64_t count = row.column.size(), m = atoms_.m, span = peaks_.vectors * WIDTH;
        std::vector<const Entry *> rows(count);
        factor_.resize(count);
        for (int64_t i = 0; i < count; ++i) {
            rows[i] = gram + int64_t(row.column[i]) * m;
            factor_[i] = float(row.change[i] * scale);
        }
        for (int64_t from = 0; from < peaks_.columns(); from += span) {
            add_rows(row.c, rows.data(), factor_.data(), count, from, std::min(from + span, m));
            Vector peak = spread(NEVER);
            for (int64_t j = from; j < from + span; j += WIDTH)
                peak = larger(peak, magnitude_ ? magnitude_of(load(row.c + j)) : load(row.c + j));
            store(&row.peaks[from / peaks_.vectors], peak);
        }
        if (!coherence || !count) return;
        const int64_t last = row.column.back();
        const double most = std::max(largest_magnitude(rows.back(), last),
                                     largest_magnitude(rows.back() + last + 1, m - last - 1));
        row.coherence = most * -scale + gram_.error;
    }

    const Atoms &atoms_;
    const Gram &gram_;
    const Peaks peaks_;
    const bool magnitude_;
    Largest largest_;
    std::vector<float> exact_, factor_, hidden_, scratch_;
    std::vector<int32_t> order_;
};

// Length of a residual, at least.
double length(const float *x, int64_t d) { return std::sqrt(double(dot(x, x, d))) * (1 + share(d)); }

// What ICFL and matching pursuit keep of a row: rounds of several atoms each.
class Rounds {
  public:
    static constexpr bool PUTS_OFF = false;
    enum Rule : int64_t { ICFL = 0, MATCHING = 1, MATCHING_NONNEGATIVE = 2 };

    struct Plan {
        const int32_t *columns;
        int64_t rounds;
        Rule rule;
        bool magnitude() const { return rule == MATCHING; }
        int64_t most() const { return *std::max_element(columns, columns + rounds); }
        int64_t total() const { return std::accumulate(columns, columns + rounds, int64_t(0)); }
        int64_t bytes() const { return 8 * most() * most() * 2 + 8 * total(); }
    };

    Rounds(const Atoms &atoms, const Gram &gram, const Plan &plan)
        : atoms_(atoms), gram_(gram), plan_(plan), codes_(plan.total()) {
        const int64_t most = plan.most();
        if (plan.rule == ICFL) system_.resize(most * most), copy_.resize(most * most);
        right_.resize(most), factor_.resize(most), atom_.resize(most);
    }

    void start(const Row &) { codes_.clear(), round_ = 0; }
    int64_t wanted() const { return plan_.columns[round_]; }
    const std::vector<int32_t> &barred() const { return none_; }

    // Takes the chosen atoms; false when the row is done.
    bool take(Row &row, const Chosen &chosen) {
        const int count = int(chosen.column.size());
        double most = 0;
        for (int i = 0; i < count; i++) {
            right_[i] = chosen.score[i];
            most = std::max(most, plan_.rule == MATCHING_NONNEGATIVE ? right_[i] : std::fabs(right_[i]));
        }
        if (!(most > row.floor)) return false;
        if (plan_.rule == ICFL) solve(chosen.column, count);
        double moved = 0;
        row.column = chosen.column;
        row.change.resize(count);
        for (int i = 0; i < count; i++) {
            row.change[i] = float(right_[i]);
            factor_[i] = -row.change[i];
            atom_[i] = atoms_[chosen.column[i]];
            moved += std::fabs(right_[i]);
            codes_.column.push_back(chosen.column[i]);
            codes_.value.push_back(row.change[i]);
        }
        add_rows(row.residual, atom_.data(), factor_.data(), count, 0, atoms_.d);
        // Roundings of the residual and of the screened correlations, one for each atom.
        const double before = row.norm;
        row.norm = length(row.residual, atoms_.d);
        row.error += moved * gram_.error +
                     2 * UNIT * (count + 1) * atoms_.longest * (before + 2 * moved * atoms_.longest);
        return ++round_ < plan_.rounds && row.norm * atoms_.longest > row.floor;
    }

    Collected &codes() { return codes_; }

  private:
    // Least squares on the chosen atoms, in place.
    void solve(const std::vector<int32_t> &column, int count) {
        for (int i = 0; i < count; i++)
            for (int j = 0; j <= i; j++) system_[i * count + j] = dot(atoms_[column[i]], atoms_[column[j]], atoms_.d);
        std::copy_n(system_.begin(), count * count, copy_.begin());
        if (!(factorise(system_.data(), count) >= PIVOT)) {
            for (int i = 0; i < count; i++) copy_[i * count + i] += RIDGE;
            system_.swap(copy_);
            factorise(system_.data(), count);
        }
        solve_lower(system_.data(), count, count, right_.data());
        solve_upper(system_.data(), count, count, right_.data());
    }

    const Atoms &atoms_;
    const Gram &gram_;
    const Plan &plan_;
    int64_t round_ = 0;
    Collected codes_;
    std::vector<int32_t> none_;
    std::vector<double> system_, copy_, right_;
    std::vector<float> factor_;
    std::vector<const float *> atom_;
};

// What orthogonal matching pursuit keeps of a row: the inverse of the Cholesky factor L of the Gram matrix of the atoms
// taken. It grows by a line with each atom; that line, times the new atom's share, is what the values of all move by.
class Orthogonal {
  public:
    static constexpr bool PUTS_OFF = true;  // changes of what was taken earlier
    struct Plan {
        int64_t k;
        bool magnitude() const { return true; }
        int64_t most() const { return 1; }
        int64_t bytes() const { return 8 * k * k; }
    };

    Orthogonal(const Atoms &atoms, const Gram &gram, const Plan &plan)
        : atoms_(atoms), gram_(gram), k_(int(plan.k)), x_(atoms.d), coherence_(plan.k), waits_(plan.k), inverse_(plan.k * plan.k), product_(plan.k),
          exact_(plan.k), moved_(plan.k), value_(plan.k), negative_(plan.k), atom_(plan.k),
          codes_(plan.k) {}

    void start(const Row &row) {
        size_ = 0;
        taken_.clear(), barred_.clear(), initial_.clear();
        std::copy_n(row.residual, atoms_.d, x_.begin());
        norm_ = row.norm, error_ = row.error;
    }

    int64_t wanted() const { return 1; }
    const std::vector<int32_t> &barred() const { return barred_; }

    bool take(Row &row, const Chosen &chosen) {
        if (!(std::fabs(chosen.score[0]) > row.floor)) return false;
        // Where the atom depends on those taken, the next one is looked for.
        if (!add(chosen.column[0])) return true;
        std::copy_n(x_.begin(), atoms_.d, row.residual);
        double reach = 0;
        for (int i = 0; i < size_; i++) {
            value_[i] = float(exact_[i]);
            negative_[i] = -value_[i];
            reach += std::fabs(value_[i]);
        }
        if (gram_) move(row, PENDING * std::fabs(chosen.score[0]));
        add_rows(row.residual, atom_.data(), negative_.data(), size_, 0, atoms_.d);
        row.norm = length(row.residual, atoms_.d);
        // Roundings of the screened correlations add up, those of the Gram matrix's entries do not.
        error_ += 4 * UNIT * (size_ + 1) * atoms_.longest * (norm_ + 2 * reach * atoms_.longest);
        row.error = error_ + reach * gram_.error;
        return size_ < k_ && row.norm * atoms_.longest > row.floor;
    }

    Collected &codes() {
        codes_.clear();
        for (int i = 0; i < size_; i++) {
            codes_.column.push_back(taken_[i]);
            codes_.value.push_back(value_[i]);
        }
        return codes_;
    }

  private:
    // False where atom j depends on those taken; it is barred then, as it is when taken.
    bool add(int32_t j) {
        barred_.push_back(j);
        const float *atom = atoms_[j];
        for (int i = 0; i < size_; i++) product_[i] = dot(atom, atom_[i], atoms_.d);
        // The new line of L is L⁻¹ times these; that of L⁻¹ follows from it.
        double *fresh = inverse_.data() + size_t(size_) * k_;
        std::fill_n(fresh, size_, 0.0);
        double pivot = dot(atom, atom, atoms_.d);
        for (int i = 0; i < size_; i++) {
            const double *line = inverse_.data() + size_t(i) * k_;
            const double entry = plain_dot(line, product_.data(), i + 1);
            pivot -= entry * entry;
            for (int j = 0; j <= i; j++) fresh[j] -= entry * line[j];
        }
        if (!(pivot >= PIVOT)) return false;
        const double root = std::sqrt(pivot);
        for (int i = 0; i < size_; i++) fresh[i] /= root;
        fresh[size_] = 1 / root;
        taken_.push_back(j);
        moved_[size_] = exact_[size_] = 0;
        atom_[size_++] = atom;
        // Its share is L⁻¹ times the correlations of the row itself.
        double share = 0;
        initial_.push_back(dot(atom, x_.data(), atoms_.d));
        for (int i = 0; i < size_; i++) share += fresh[i] * initial_[i];
        for (int i = 0; i < size_; i++) exact_[i] += share * fresh[i];
        return true;
    }

    // Lists what the screened correlations are to move by. Small changes of atoms taken earlier wait until they have
    // added up, as long as all that wait cannot move a correlation by more than `most`.
    void move(Row &row, double most) {
        const int last = size_ - 1;
        if (last) coherence_[last - 1] = row.coherence;
        order_.resize(last);
        std::iota(order_.begin(), order_.end(), 0);
        for (int i = 0; i < last; i++) waits_[i] = std::fabs(value_[i] - moved_[i]) * coherence_[i] * 1.0001;
        std::sort(order_.begin(), order_.end(),
                  [&](int a, int b) { return waits_[a] != waits_[b] ? waits_[a] < waits_[b] : a < b; });
        row.waiting.clear(), row.owed.clear(), row.column.clear(), row.change.clear();
        row.owing = 0;
        order_.push_back(last);
        for (int i : order_) {
            const float change = float(value_[i] - moved_[i]);
            if (row.column.empty() && i != last && row.owing + waits_[i] <= most) {
                row.owing += waits_[i];
                row.waiting.push_back(taken_[i]);
                row.owed.push_back(change);
            } else {
                row.column.push_back(taken_[i]);
                row.change.push_back(change);
                moved_[i] += change;
            }
        }
    }

    // Four partial sums, so that the chain of additions does not set the pace.
    static double plain_dot(const double *a, const double *b, int count) {
        double part[4] = {};
        int i = 0;
        for (; i + 4 <= count; i += 4)
            for (int j = 0; j < 4; j++) part[j] += a[i + j] * b[i + j];
        for (; i < count; i++) part[i % 4] += a[i] * b[i];
        return (part[0] + part[1]) + (part[2] + part[3]);
    }

    const Atoms &atoms_;
    const Gram &gram_;
    int k_, size_ = 0;
    double norm_ = 0, error_ = 0;
    std::vector<float> x_;
    std::vector<int> order_;
    std::vector<double> coherence_, waits_, inverse_, product_, initial_, exact_, moved_;
    std::vector<float> value_, negative_;
    std::vector<const float *> atom_;
    std::vector<int32_t> taken_, barred_;
    Collected codes_;
};

// Codes of n rows to indices, values (n, width). Returns 0, or 1 when memory runs out.
template <class Method>
int64_t pursue(const float *residual, int64_t n, const Atoms &atoms, const Gram &gram,
               const typename Method::Plan &plan, int64_t width, int32_t *indices, float *values, int threads) {
    const int64_t m = atoms.m, d = atoms.d;
    const Peaks peaks(m, gram ? GRAM_VECTORS : PRODUCT_VECTORS);
    const int64_t stride = peaks.columns() + 16;  // not a power of two: those compete for the same lines of the caches
    // Rows whose products with the atoms are taken together: they are many, but no more than fit the caches, and few
    // rows are spread over the threads.
    const int64_t deep = 4 * ROWS * (atoms.integers ? (d + 1) / 2 : d);
    int64_t most = std::max<int64_t>(1, std::min(MOST_GROUPS, BLOCK_BYTES / deep)) * ROWS;
    if (!gram) most = std::max<int64_t>(std::min<int64_t>(most, STATES / plan.bytes()), 1);
    const int64_t blocks = std::max((n + most - 1) / most, std::min<int64_t>(threads, n));
    const int64_t held = (n + blocks - 1) / blocks, states = gram ? std::min(TOGETHER, held) : held;
    bool failed = false;
#pragma omp parallel num_threads(threads)
    {
        try {
            Product product(atoms, held);
            Search search(atoms, gram, peaks, plan.magnitude(), plan.most());
            Chosen chosen;
            Collected nothing(0);
            std::vector<float> left(held * d), c(gram ? held * stride : 0);
            std::vector<const float *> sources(held);
            std::vector<double> scale(held), floor(held);
            std::vector<int64_t> alive(held), active(states);
            std::vector<Row> rows(states);
            for (Row &row : rows) row.peaks.resize(peaks.count);
            std::vector<Method> method;
            method.reserve(states);
            for (int64_t i = 0; i < states; ++i) method.emplace_back(atoms, gram, plan);
            const auto write = [&](Collected &codes, int64_t at, double by) {
                codes.write(width, indices + at * width, values + at * width);
                for (int64_t i = at * width; i < (at + 1) * width; ++i) values[i] = float(values[i] * by);
            };
#pragma omp for schedule(dynamic) nowait
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t begin = n * block / blocks, size = n * (block + 1) / blocks - begin;
                int64_t living = 0;
                for (int64_t i = 0; i < size; ++i) {
                    const float *x = residual + (begin + i) * d;
                    const double norm = std::sqrt(exact_dot(x, x, d));
                    if (norm == 0) {
                        write(nothing, begin + i, 1);
                        continue;
                    }
                    const double power = std::ldexp(1.0, std::ilogb(norm));
                    float *to = &left[i * d];
                    for (int64_t k = 0; k < d; ++k) to[k] = float(x[k] / power);
                    scale[i] = power;
                    floor[i] = DONE * (norm / power);
                    sources[living] = to;
                    alive[living++] = i;
                }
                if (gram) {
                    product.run(sources.data(), living, [&](int64_t row, int64_t column, Vector low, Vector high) {
                        store(&c[row * stride + column], low);
                        store(&c[row * stride + column + WIDTH], high);
                    });
                    for (int64_t i = 0; i < living; ++i)
                        std::fill(&c[i * stride + m], &c[i * stride] + peaks.columns(), plan.magnitude() ? 0 : NEVER);
                }
                for (int64_t first = 0; first < living; first += states) {
                    const int64_t count = std::min(states, living - first);
                    for (int64_t i = 0; i < count; ++i) {
                        const int64_t at = alive[first + i];
                        rows[i].residual = &left[at * d];
                        rows[i].c = gram ? &c[(first + i) * stride] : nullptr;
                        rows[i].floor = floor[at];
                        rows[i].norm = length(rows[i].residual, d);
                        rows[i].error = gram ? product.error(first + i) : 0;
                        method[i].start(rows[i]);
                    }
                    std::iota(active.begin(), active.begin() + count, 0);
                    for (int64_t running = count; running;) {
                        if (!gram) {
                            for (int64_t i = 0; i < running; ++i) {
                                sources[i] = rows[active[i]].residual;
                                std::fill(rows[active[i]].peaks.begin(), rows[active[i]].peaks.end(), NEVER);
                            }
                            const auto take = [&](int64_t row, int64_t column, Vector low, Vector high) {
                                if (plan.magnitude()) low = magnitude_of(low), high = magnitude_of(high);
                                for (int64_t past = m; past < column + PANEL; ++past) {
                                    if (past < column + WIDTH) low[past - column] = NEVER;
                                    else high[past - column - WIDTH] = NEVER;
                                }
                                float *peak = &rows[active[row]].peaks[peaks.entry(column)];
                                store(peak, larger(load(peak), larger(low, high)));
                            };
                            product.run(sources.data(), running, take);
                            for (int64_t i = 0; i < running; ++i) rows[active[i]].error = product.error(i);
                        }
                        for (int64_t i = 0; i < running; ++i) {
                            Row &row = rows[active[i]];
                            if (gram) search.move(row, Method::PUTS_OFF);
                            search.find(row, method[active[i]].wanted(), method[active[i]].barred());
                        }
                        int64_t stay = 0;
                        for (int64_t i = 0; i < running; ++i) {
                            Row &row = rows[active[i]];
                            Method &pursuit = method[active[i]];
                            if (!search.choose(row, pursuit.wanted(), chosen) || !pursuit.take(row, chosen)) continue;
                            if (gram) search.fetch(row);
                            active[stay++] = active[i];
                        }
                        running = stay;
                    }
                    for (int64_t i = 0; i < count; ++i) {
                        rows[i].column.clear(), rows[i].change.clear(), rows[i].waiting.clear();
                        rows[i].owing = 0;
                        write(method[i].codes(), begin + alive[first + i], scale[alive[first + i]]);
                    }
                }
            }
        } catch (const std::bad_alloc &) {
#pragma omp atomic write
            failed = true;
        }
    }
    return failed;
}

// Numbers as an entry of a Gram matrix.
void put(float *to, const float *from, int64_t count, double) { std::copy_n(from, count, to); }

void put(int16_t *to, const float *from, int64_t count, double scale) {
    for (int64_t i = 0; i < count; ++i) to[i] = int16_t(std::lrint(from[i] * float(scale)));
}

// gram (m, m) = D·Dᵀ. Returns 0, or 1 when memory runs out.
template <class Entry>
int64_t fill(const Atoms &atoms, Entry *gram, double scale, int threads) {
    const int64_t m = atoms.m, d = atoms.d;
    const int64_t rows = std::max<int64_t>(1, std::min(MOST_GROUPS, BLOCK_BYTES / (4 * ROWS * d))) * ROWS;
    bool failed = false;
#pragma omp parallel num_threads(threads)
    {
        try {
            Product product(atoms, rows);
            std::vector<const float *> sources(rows);
#pragma omp for schedule(dynamic) nowait
            for (int64_t start = 0; start < m; start += rows) {
                const int64_t n = std::min(rows, m - start);
                for (int64_t i = 0; i < n; ++i) sources[i] = atoms[start + i];
                const auto take = [&](int64_t row, int64_t column, Vector low, Vector high) {
                    float products[PANEL];
                    store(products, low);
                    store(products + WIDTH, high);
                    put(gram + (start + row) * m + column, products, std::min<int64_t>(PANEL, m - column), scale);
                };
                product.run(sources.data(), n, take, start / PANEL);
            }
        } catch (const std::bad_alloc &) {
#pragma omp atomic write
            failed = true;
        }
    }
    // Below the diagonal the same products stand, summed in the same order: they are copied, a square at a time. Squares
    // are small since rows of a power of two compete for the same lines of the caches.
    constexpr int64_t SQUARE = 16;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t down = 0; down < m; down += SQUARE)
        for (int64_t across = 0; across <= down; across += SQUARE)
            for (int64_t i = down; i < std::min(down + SQUARE, m); i++)
                for (int64_t j = across; j < std::min(across + SQUARE, i); j++) gram[i * m + j] = gram[j * m + i];
    return failed;
}

}  // namespace

// Packs atoms (m, d) for float32 products (source 0), or, where the variant has them, for integer ones (source 1);
// `packed` holds pursuit_packed_size floats.
EXPORT int64_t pursuit_packed_size(int64_t m, int64_t d, int64_t source) {
    return Atoms::panel_floats(m, d, source) + 16;
}

EXPORT int64_t pursuit_pack(const float *atoms, int64_t m, int64_t d, float *packed, int64_t source, int64_t threads) {
    pack_atoms(atoms, m, d, packed, source, int(threads));
    return 0;
}

// gram (m, m) = D·Dᵀ as float32 (entries 0) or 16-bit integers (entries 1), from atoms packed for float32 products.
// Returns 0, or 1 when memory runs out.
EXPORT int64_t pursuit_gram(const float *atoms, const float *packed, int64_t m, int64_t d, void *gram, int64_t entries,
                            int64_t threads) {
    const Atoms all(atoms, m, d, packed, FLOATS);
    if (entries == INTEGERS) return fill(all, static_cast<int16_t *>(gram), Gram::scale_of(all), int(threads));
    return fill(all, static_cast<float *>(gram), 1, int(threads));
}

// Rounds of the columns[t] atoms of largest score each. rule 0: signed correlations, least squares within a round
// (ICFL); 1: largest magnitude, value = correlation (matching pursuit); 2: the same with positive correlations only.
// gram: null, or as pursuit_gram made it. indices, values: (n, width), width = min(Σ columns, m). Returns 0, or 1 when
// memory runs out.
EXPORT int64_t pursuit_rounds(const float *residual, int64_t n, const float *atoms, const float *packed, int64_t source,
                              const void *gram, int64_t entries, int64_t m, int64_t d, const int32_t *columns,
                              int64_t rounds, int64_t rule, int64_t width, int32_t *indices, float *values,
                              int64_t threads) {
    const Atoms all(atoms, m, d, packed, source);
    const Rounds::Plan plan{columns, rounds, Rounds::Rule(rule)};
    return pursue<Rounds>(residual, n, all, Gram(gram, entries, all), plan, width, indices, values, int(threads));
}

// Orthogonal matching pursuit with k atoms; indices, values: (n, k).
EXPORT int64_t pursuit_orthogonal(const float *residual, int64_t n, const float *atoms, const float *packed,
                                  int64_t source, const void *gram, int64_t entries, int64_t m, int64_t d, int64_t k,
                                  int32_t *indices, float *values, int64_t threads) {
    const Atoms all(atoms, m, d, packed, source);
    return pursue<Orthogonal>(residual, n, all, Gram(gram, entries, all), Orthogonal::Plan{k}, k, indices, values,
                              int(threads));
}
