// Pursuits: sparse codes of rows over unit atoms, chosen greedily by correlation with what is left of the row.
//
// With the Gram matrix G = D·Dᵀ a row's correlations c = D·r (m floats) stay in L1/L2 from start to end: taking atoms j
// with values a moves them by c −= Σ a·G[j], and the same pass finds the next largest (Rubinstein, Zibulevsky and Elad
// 2008, "Efficient implementation of the K-SVD algorithm using Batch-OMP"). Without it the residuals of a block of rows
// are multiplied with the atoms anew in each round. The specification is conceptome_kernels/reference.py.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <numeric>
#include <vector>

#include "panels.h"

namespace {

constexpr double DONE = 1e-5;   // a row is done once no chosen |correlation| exceeds this share of its length
constexpr double PIVOT = 1e-4;  // atoms are dependent when a Cholesky pivot of their Gram matrix is below this
constexpr double RIDGE = 1e-5;  // added to the diagonal of dependent systems, and only of those

constexpr int64_t BLOCK = 8 * TALL;  // rows whose products with the atoms are taken together
constexpr int64_t SPAN = 1024;       // correlations updated, then searched, at a time: 4 KiB
constexpr int64_t AHEAD = 256;       // rows of the Gram matrix come from memory: ask for them this much earlier
constexpr int MANY = 128;            // from here on a heap is slower than a partial sort

int team(int64_t threads) { return threads > 0 ? int(threads) : omp_get_max_threads(); }

Vector magnitude_of(Vector value) { return (Vector)((Integers)value & (Integers{} + 0x7fffffff)); }

// The count largest of the scores that pass by in ascending order of column; of equal scores the first stays.
struct Largest {
    std::vector<float> score;
    std::vector<int32_t> column;
    int count = 0, held = 0;

    explicit Largest(int most) : score(most), column(most) {}

    void reset(int wanted) { count = wanted, held = 0; }

    void insert(float value, int32_t at) {
        int place = held < count ? held++ : count - 1;
        while (place > 0 && value > score[place - 1]) {
            score[place] = score[place - 1];
            column[place] = column[place - 1];
            place--;
        }
        score[place] = value;
        column[place] = at;
    }

    template <bool MAGNITUDE>
    void search(const float* c, int64_t from, int64_t to) {
        int64_t j = from;
        for (; j < to && held < count; j++) insert(MAGNITUDE ? std::fabs(c[j]) : c[j], int32_t(j));
        Vector limit = spread(held ? score[count - 1] : 0);
        for (; j + WIDTH <= to; j += WIDTH) {
            Vector value = load(c + j);
            if (MAGNITUDE) value = magnitude_of(value);
            uint32_t bits = compare<ABOVE>(value, limit);
            if (__builtin_expect(bits == 0, 1)) continue;
            for (; bits; bits &= bits - 1) {
                const int64_t at = j + __builtin_ctz(bits);
                const float found = MAGNITUDE ? std::fabs(c[at]) : c[at];
                if (found > score[count - 1]) insert(found, int32_t(at));
            }
            limit = spread(score[count - 1]);
        }
        for (; j < to; j++) {
            const float found = MAGNITUDE ? std::fabs(c[j]) : c[j];
            if (found > score[count - 1]) insert(found, int32_t(j));
        }
    }

    void search(const float* c, int64_t from, int64_t to, bool magnitude) {
        magnitude ? search<true>(c, from, to) : search<false>(c, from, to);
    }
};

// c −= Σ_i value[i]·row[i] over columns [from, to), COUNT rows at a time.
template <int COUNT>
void subtract(float* to_c, const float* from_c, const float* const* row, const float* value, int64_t from, int64_t to) {
    Vector factor[COUNT];
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) factor[i] = spread(-value[i]);
    int64_t j = from;
    for (; j + WIDTH <= to; j += WIDTH) {
        Vector c = load(from_c + j);
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; i++) {
            __builtin_prefetch(row[i] + j + AHEAD);
            c = fma(factor[i], load(row[i] + j), c);
        }
        store(to_c + j, c);
    }
    for (; j < to; j++) {
        float c = from_c[j];
        for (int i = 0; i < COUNT; i++) c = fma(-value[i], row[i][j], c);
        to_c[j] = c;
    }
}

// to_c = from_c − Σ_i value[i]·row[i] over columns [from, to); the rows in order.
void subtract_rows(float* to_c, const float* from_c, const float* const* row, const float* value, int count,
                   int64_t from, int64_t to) {
    if (count == 0 && to_c != from_c) std::copy(from_c + from, from_c + to, to_c + from);
    for (int i = 0; i < count; from_c = to_c) {
        switch (std::min(count - i, 8)) {
            case 1: subtract<1>(to_c, from_c, row + i, value + i, from, to), i += 1; break;
            case 2: subtract<2>(to_c, from_c, row + i, value + i, from, to), i += 2; break;
            case 3: subtract<3>(to_c, from_c, row + i, value + i, from, to), i += 3; break;
            case 4: subtract<4>(to_c, from_c, row + i, value + i, from, to), i += 4; break;
            case 5: subtract<5>(to_c, from_c, row + i, value + i, from, to), i += 5; break;
            case 6: subtract<6>(to_c, from_c, row + i, value + i, from, to), i += 6; break;
            case 7: subtract<7>(to_c, from_c, row + i, value + i, from, to), i += 7; break;
            default: subtract<8>(to_c, from_c, row + i, value + i, from, to), i += 8; break;
        }
    }
}

double exact_dot(const float* a, const float* b, int64_t d) {
    // Eight partial sums, so that the chain of additions does not set the pace.
    double part[8] = {};
    int64_t k = 0;
    for (; k + 8 <= d; k += 8)
        for (int i = 0; i < 8; i++) part[i] += double(a[k + i]) * double(b[k + i]);
    for (; k < d; k++) part[k % 8] += double(a[k]) * double(b[k]);
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Lower Cholesky factor of the system (size, size) in place; the smallest pivot, or −1 where it breaks down.
double factorise(double* system, int size) {
    double smallest = std::numeric_limits<double>::infinity();
    for (int i = 0; i < size; i++) {
        double* row = system + i * size;
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

void solve_lower(const double* factor, int stride, int size, double* x) {
    for (int i = 0; i < size; i++) {
        for (int k = 0; k < i; k++) x[i] -= factor[i * stride + k] * x[k];
        x[i] /= factor[i * stride + i];
    }
}

void solve_upper(const double* factor, int stride, int size, double* x) {
    for (int i = size; i-- > 0;) {
        x[i] /= factor[i * stride + i];
        for (int k = 0; k < i; k++) x[k] -= factor[i * stride + k] * x[i];
    }
}

struct Dictionary {
    const float* atoms;
    const float* gram;
    int64_t m, d;

    double product(int32_t i, int32_t j) const {
        return gram ? double(gram[int64_t(i) * m + j]) : exact_dot(atoms + i * d, atoms + j * d, d);
    }
};

// The codes that one row collects, and their output: columns ascending and unique, unused places filled up with zeros.
struct Collected {
    std::vector<int32_t> column;
    std::vector<float> value;
    std::vector<int32_t> order;

    explicit Collected(int64_t most) {
        column.reserve(most), value.reserve(most), order.reserve(most);
    }

    void write(int64_t width, int32_t* indices, float* values) {
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

// What one thread needs for rounds of several atoms each.
struct Rounds {
    const Dictionary& dictionary;
    const int32_t* columns;
    int64_t rounds;
    bool magnitude, nonnegative, project;
    Largest largest;
    std::vector<double> system, copy, right;
    std::vector<float> value;
    std::vector<const float*> row;
    std::vector<int32_t> order;

    Rounds(const Dictionary& dictionary, const int32_t* columns, int64_t rounds, int most, int rule)
        : dictionary(dictionary), columns(columns), rounds(rounds), magnitude(rule == 1), nonnegative(rule == 2),
          project(rule == 0), largest(most), system(size_t(most) * most), copy(size_t(most) * most), right(most),
          value(most), row(most), order(most > MANY ? dictionary.m : 0) {}

    void choose(const float* c, int count) {
        if (count <= MANY) {
            largest.reset(count);
            largest.search(c, 0, dictionary.m, magnitude);
            return;
        }
        partial(c, count);
    }

    void partial(const float* c, int count) {
        std::iota(order.begin(), order.end(), 0);
        std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), [&](int32_t a, int32_t b) {
            const float first = magnitude ? std::fabs(c[a]) : c[a], second = magnitude ? std::fabs(c[b]) : c[b];
            return first != second ? first > second : a < b;
        });
        largest.count = largest.held = count;
        std::copy(order.begin(), order.begin() + count, largest.column.begin());
    }

    // Values of the chosen atoms given their correlations; false when the row is done.
    template <class Correlation>
    bool solve(Correlation correlation, int count, double floor) {
        int32_t* chosen = largest.column.data();
        std::sort(chosen, chosen + count);
        double most = 0;
        for (int i = 0; i < count; i++) {
            right[i] = correlation(chosen[i]);
            most = std::max(most, nonnegative ? right[i] : std::fabs(right[i]));
        }
        if (!(most > floor)) return false;
        if (project) {
            for (int i = 0; i < count; i++)
                for (int j = 0; j <= i; j++) system[i * count + j] = dictionary.product(chosen[i], chosen[j]);
            copy = system;
            if (!(factorise(system.data(), count) >= PIVOT)) {
                for (int i = 0; i < count; i++) copy[i * count + i] += RIDGE;
                system.swap(copy);
                factorise(system.data(), count);
            }
            solve_lower(system.data(), count, count, right.data());
            solve_upper(system.data(), count, count, right.data());
        }
        for (int i = 0; i < count; i++) value[i] = float(right[i]);
        return true;
    }

    void keep(Collected& codes, int count) {
        for (int i = 0; i < count; i++) {
            codes.column.push_back(largest.column[i]);
            codes.value.push_back(value[i]);
        }
    }

    // One row from its correlations c, which are used up.
    void with_gram(float* c, double floor, Collected& codes) {
        const int64_t m = dictionary.m;
        choose(c, columns[0]);
        for (int64_t round = 0; round < rounds; round++) {
            const int count = columns[round];
            if (!solve([&](int32_t j) { return double(c[j]); }, count, floor)) return;
            keep(codes, count);
            if (round + 1 == rounds) return;
            for (int i = 0; i < count; i++) row[i] = dictionary.gram + largest.column[i] * m;
            const int next = columns[round + 1];
            largest.reset(next);
            for (int64_t from = 0; from < m; from += SPAN) {
                const int64_t to = std::min(from + SPAN, m);
                subtract_rows(c, c, row.data(), value.data(), count, from, to);
                if (next <= MANY) largest.search(c, from, to, magnitude);
            }
            if (next > MANY) partial(c, next);
        }
    }

    // r −= Σ value·atom for the atoms just taken.
    void reduce(float* residual, int count) {
        for (int i = 0; i < count; i++) row[i] = dictionary.atoms + largest.column[i] * dictionary.d;
        subtract_rows(residual, residual, row.data(), value.data(), count, 0, dictionary.d);
    }
};

// Distance of rows of correlations: an odd number of cache lines, since powers of two compete for the same places.
int64_t spacing(int64_t m) { return (panels(m) * WIDE / 32 * 2 + 3) * 16; }

// Correlations of a block of rows with the atoms from `begin` on (which begins a panel), to c (n, stride); `packed` is
// scratch for grouped(n)·d floats.
void correlate(const float* const* rows, int64_t n, const float* panel, int64_t m, int64_t d, float* packed, float* c,
               int64_t stride, int64_t begin = 0) {
    alignas(64) float part[BLOCK * WIDE];
    pack_rows(rows, n, d, packed);
    for (int64_t first = begin; first < m; first += WIDE) {
        multiply_panel(packed, n, d, panel + first * d, part);
        const int64_t count = std::min<int64_t>(WIDE, m - first);
        if (count == WIDE)
            for (int64_t i = 0; i < n; i++) {
                store(c + i * stride + first, load(part + i * WIDE));
                store(c + i * stride + first + WIDTH, load(part + i * WIDE + WIDTH));
            }
        else
            for (int64_t i = 0; i < n; i++) std::copy_n(part + i * WIDE, count, c + i * stride + first);
    }
}

double length(const float* x, int64_t d) { return std::sqrt(exact_dot(x, x, d)); }

// Orthogonal matching pursuit of one row: all values are solved anew after each atom.
struct Orthogonal {
    const Dictionary& dictionary;
    int most, size = 0;
    Largest largest;
    std::vector<double> factor, partial, solution;
    std::vector<int32_t> taken, barred;
    std::vector<float> value;
    std::vector<const float*> row;

    Orthogonal(const Dictionary& dictionary, int most)
        : dictionary(dictionary), most(most), largest(1), factor(size_t(most) * most), partial(most), solution(most),
          value(most), row(most) {
        taken.reserve(most);
    }

    void start() {
        size = 0;
        taken.clear(), barred.clear();
    }

    // Adds an atom with initial correlation alpha; false where it depends on those taken, and is then barred.
    bool add(int32_t j, double alpha) {
        barred.push_back(j);
        double* last = factor.data() + size_t(size) * most;
        for (int i = 0; i < size; i++) last[i] = dictionary.product(j, taken[i]);
        solve_lower(factor.data(), most, size, last);
        double pivot = dictionary.product(j, j);
        for (int i = 0; i < size; i++) pivot -= last[i] * last[i];
        if (!(pivot >= PIVOT)) return false;
        last[size] = std::sqrt(pivot);
        for (int i = 0; i < size; i++) alpha -= last[i] * partial[i];
        partial[size] = alpha / last[size];
        taken.push_back(j);
        size++;
        std::copy(partial.begin(), partial.begin() + size, solution.begin());
        solve_upper(factor.data(), most, size, solution.data());
        for (int i = 0; i < size; i++) value[i] = float(solution[i]);
        return true;
    }

    // Looks through correlations [from, to); those of atoms that may not be taken are set to zero first.
    void search(float* c, int64_t from, int64_t to) {
        for (int32_t j : barred)
            if (j >= from && j < to) c[j] = 0;
        largest.search<true>(c, from, to);
    }

    void write(Collected& codes) {
        for (int i = 0; i < size; i++) {
            codes.column.push_back(taken[i]);
            codes.value.push_back(value[i]);
        }
    }

    // alpha: the row's correlations with all atoms; c: scratch of the same length.
    void with_gram(const float* alpha, float* c, double floor) {
        const int64_t m = dictionary.m;
        start();
        while (size < most) {
            largest.reset(1);
            for (int64_t from = 0; from < m; from += SPAN) {
                const int64_t to = std::min(from + SPAN, m);
                subtract_rows(c, alpha, row.data(), value.data(), size, from, to);
                search(c, from, to);
            }
            if (!(largest.score[0] > floor)) return;
            const int32_t j = largest.column[0];
            if (add(j, alpha[j])) row[size - 1] = dictionary.gram + j * m;
        }
    }
};

void* aligned(std::vector<float>& buffer) {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t(63));
}

}  // namespace

// Packs the rows of b (m, d) into panels; `packed` holds pursuit_packed_size(m, d) floats.
EXPORT int64_t pursuit_packed_size(int64_t m, int64_t d) { return panels(m) * WIDE * d; }

EXPORT int64_t pursuit_pack(const float* b, int64_t m, int64_t d, float* packed, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads))
    for (int64_t panel = 0; panel < panels(m); panel++) pack_panel(b, m, d, panel, packed + panel * WIDE * d);
    return 0;
}

// gram (m, m) = D·Dᵀ. Returns 0, or 1 when memory runs out.
EXPORT int64_t pursuit_gram(const float* atoms, const float* packed, int64_t m, int64_t d, float* gram,
                            int64_t threads) {
    bool failed = false;
#pragma omp parallel num_threads(team(threads))
    {
        try {
            std::vector<float> own(BLOCK * d);
#pragma omp for schedule(dynamic) nowait
            for (int64_t start = 0; start < m; start += BLOCK) {
                const int64_t n = std::min(BLOCK, m - start);
                const float* rows[BLOCK];
                for (int64_t i = 0; i < n; i++) rows[i] = atoms + (start + i) * d;
                correlate(rows, n, packed, m, d, own.data(), gram + start * m, m, start / WIDE * WIDE);
            }
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
            failed = true;
        }
    }
    // Below the diagonal the same products stand, summed in the same order: they are copied, a square at a time. Squares
    // are small since rows of a power of two compete for the same lines of the caches.
    constexpr int64_t SQUARE = 16;
#pragma omp parallel for schedule(dynamic) num_threads(team(threads))
    for (int64_t down = 0; down < m; down += SQUARE)
        for (int64_t across = 0; across <= down; across += SQUARE)
            for (int64_t i = down; i < std::min(down + SQUARE, m); i++)
                for (int64_t j = across; j < std::min(across + SQUARE, i); j++) gram[i * m + j] = gram[j * m + i];
    return failed;
}

// Rounds of the columns[t] atoms of largest score each. rule 0: signed correlations, least squares within a round
// (ICFL); 1: largest magnitude, value = correlation (matching pursuit); 2: the same with positive correlations only.
// indices, values: (n, width), width = min(Σ columns, m). Returns 0, or 1 when memory runs out.
EXPORT int64_t pursuit_rounds(const float* residual, int64_t n, const float* atoms, const float* packed, const float* gram,
                   int64_t m, int64_t d, const int32_t* columns, int64_t rounds, int64_t rule, int64_t width,
                   int32_t* indices, float* values, int64_t threads) {
    const Dictionary dictionary{atoms, gram, m, d};
    const int count = team(threads);
    const int64_t stride = spacing(m);
    int most = 1;
    int64_t total = 0;
    for (int64_t t = 0; t < rounds; t++) most = std::max<int>(most, columns[t]), total += columns[t];
    // Few rows are spread over the threads; without a Gram matrix only some rows' correlations are held at a time.
    const int64_t block = std::max<int64_t>(1, std::min(BLOCK, (n + count - 1) / count));
    const int64_t held = gram ? block : std::min<int64_t>(block, TALL * 4);
    bool failed = false;
#pragma omp parallel num_threads(count)
    {
        try {
            Rounds work(dictionary, columns, rounds, most, int(rule));
            std::vector<float> buffer(held * stride + 16), left(gram ? 0 : held * d), own(grouped(held) * d);
            float* c = static_cast<float*>(aligned(buffer));
            std::vector<Collected> codes(gram ? 1 : held, Collected(total));
            std::vector<const float*> rows(held);
            std::vector<int64_t> active(held);
            std::vector<double> floor(held);
#pragma omp for schedule(dynamic) nowait
            for (int64_t start = 0; start < n; start += held) {
                const int64_t size = std::min(held, n - start);
                for (int64_t i = 0; i < size; i++) {
                    rows[i] = residual + (start + i) * d;
                    floor[i] = DONE * length(rows[i], d);
                }
                if (gram) {
                    correlate(rows.data(), size, packed, m, d, own.data(), c, stride);
                    for (int64_t i = 0; i < size; i++) {
                        codes[0].clear();
                        work.with_gram(c + i * stride, floor[i], codes[0]);
                        codes[0].write(width, indices + (start + i) * width, values + (start + i) * width);
                    }
                    continue;
                }
                std::copy(residual + start * d, residual + (start + size) * d, left.begin());
                std::iota(active.begin(), active.begin() + size, 0);
                int64_t running = size;
                for (int64_t i = 0; i < size; i++) codes[i].clear();
                for (int64_t round = 0; round < rounds && running; round++) {
                    for (int64_t i = 0; i < running; i++) rows[i] = left.data() + active[i] * d;
                    correlate(rows.data(), running, packed, m, d, own.data(), c, stride);
                    int64_t stay = 0;
                    for (int64_t i = 0; i < running; i++) {
                        const int64_t row = active[i];
                        const float* here = c + i * stride;
                        work.choose(here, columns[round]);
                        if (!work.solve([&](int32_t j) { return double(here[j]); }, columns[round], floor[row])) continue;
                        work.keep(codes[row], columns[round]);
                        work.reduce(left.data() + row * d, columns[round]);
                        active[stay++] = row;
                    }
                    running = stay;
                }
                for (int64_t i = 0; i < size; i++)
                    codes[i].write(width, indices + (start + i) * width, values + (start + i) * width);
            }
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
            failed = true;
        }
    }
    return failed;
}

// Orthogonal matching pursuit with k atoms; indices, values: (n, k).
EXPORT int64_t pursuit_orthogonal(const float* residual, int64_t n, const float* atoms, const float* packed, const float* gram,
                       int64_t m, int64_t d, int64_t k, int32_t* indices, float* values, int64_t threads) {
    const Dictionary dictionary{atoms, gram, m, d};
    const int count = team(threads);
    const int64_t stride = spacing(m);
    const int64_t block = std::max<int64_t>(1, std::min(BLOCK, (n + count - 1) / count));
    const int64_t held = gram ? block : std::min<int64_t>(block, TALL * 4);
    bool failed = false;
#pragma omp parallel num_threads(count)
    {
        try {
            std::vector<Orthogonal> work(gram ? 1 : held, Orthogonal(dictionary, int(k)));
            std::vector<float> buffer((held + 1) * stride + 16), left(gram ? 0 : held * d), own(grouped(held) * d);
            float* c = static_cast<float*>(aligned(buffer));
            float* scratch = c + held * stride;
            Collected codes(k);
            std::vector<const float*> rows(held);
            std::vector<int64_t> active(held);
            std::vector<double> floor(held);
#pragma omp for schedule(dynamic) nowait
            for (int64_t start = 0; start < n; start += held) {
                const int64_t size = std::min(held, n - start);
                for (int64_t i = 0; i < size; i++) {
                    rows[i] = residual + (start + i) * d;
                    floor[i] = DONE * length(rows[i], d);
                }
                if (gram) correlate(rows.data(), size, packed, m, d, own.data(), c, stride);
                for (int64_t i = 0; gram && i < size; i++) {
                    work[0].with_gram(c + i * stride, scratch, floor[i]);
                    codes.clear();
                    work[0].write(codes);
                    codes.write(k, indices + (start + i) * k, values + (start + i) * k);
                }
                if (gram) continue;
                std::copy(residual + start * d, residual + (start + size) * d, left.begin());
                std::iota(active.begin(), active.begin() + size, 0);
                for (int64_t i = 0; i < size; i++) work[i].start();
                for (int64_t running = size; running;) {
                    for (int64_t i = 0; i < running; i++) rows[i] = left.data() + active[i] * d;
                    correlate(rows.data(), running, packed, m, d, own.data(), c, stride);
                    int64_t stay = 0;
                    for (int64_t i = 0; i < running; i++) {
                        const int64_t row = active[i];
                        Orthogonal& pursuit = work[row];
                        pursuit.largest.reset(1);
                        pursuit.search(c + i * stride, 0, m);
                        if (!(pursuit.largest.score[0] > floor[row])) continue;
                        const int32_t j = pursuit.largest.column[0];
                        const float* x = residual + (start + row) * d;
                        if (pursuit.add(j, exact_dot(atoms + j * d, x, d))) {
                            pursuit.row[pursuit.size - 1] = atoms + j * d;
                            subtract_rows(left.data() + row * d, x, pursuit.row.data(), pursuit.value.data(), pursuit.size, 0, d);
                        }
                        if (pursuit.size < k) active[stay++] = row;
                    }
                    running = stay;
                }
                for (int64_t i = 0; i < size; i++) {
                    codes.clear();
                    work[i].write(codes);
                    codes.write(k, indices + (start + i) * k, values + (start + i) * k);
                }
            }
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
            failed = true;
        }
    }
    return failed;
}