// Products that touch only the active atoms: decode, residual, gradients; and the update of atoms and encoder.
//
// Codes are int32 indices and float32 values, ascending in each row; a place whose value is 0 is empty. They are of
// fixed width, (n, k), or CSR: row i has the places indptr[i] … indptr[i + 1], with indptr int64 (n + 1,).
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "screen.h"

namespace {

// Vectors of the output that are summed in registers at once.
#if defined(__AVX512F__)
constexpr int STRIP = 20;
#else
constexpr int STRIP = 8;
#endif

// V vectors of Σ_i weights[i]·rows[which[i]], added to what `out` holds.
template <int V>
inline void strip(const float *rows, int64_t d, const int32_t *which, const float *weights, int64_t count, float *out) {
    Vector sums[V];
#pragma GCC unroll 20
    for (int v = 0; v < V; ++v) sums[v] = load(out + v * WIDTH);
    for (int64_t i = 0; i < count; ++i) {
        if (weights[i] == 0) continue;
        const Vector weight = spread(weights[i]);
        const float *row = rows + int64_t(which[i]) * d;
        const float *next = rows + int64_t(which[i + 1 < count ? i + 1 : i]) * d;
#pragma GCC unroll 20
        for (int v = 0; v < V; ++v) {
            __builtin_prefetch(next + v * WIDTH);
            sums[v] = fma(weight, load(row + v * WIDTH), sums[v]);
        }
    }
#pragma GCC unroll 20
    for (int v = 0; v < V; ++v) store(out + v * WIDTH, sums[v]);
}

// The places of each row's codes; of fixed width where `indptr` is null.
struct Places {
    const int64_t *indptr;
    int64_t k;

    int64_t start(int64_t row) const { return indptr ? indptr[row] : row * k; }
    int64_t count(int64_t row) const { return indptr ? indptr[row + 1] - indptr[row] : k; }
};

// out += Σ_i weights[i]·rows[which[i]], each element in the order of i.
void gather(const float *rows, int64_t d, const int32_t *which, const float *weights, int64_t count, float *out) {
    int64_t at = 0;
    for (; at + STRIP * WIDTH <= d; at += STRIP * WIDTH) strip<STRIP>(rows + at, d, which, weights, count, out + at);
    for (; at + 4 * WIDTH <= d; at += 4 * WIDTH) strip<4>(rows + at, d, which, weights, count, out + at);
    for (; at + WIDTH <= d; at += WIDTH) strip<1>(rows + at, d, which, weights, count, out + at);
    if (at == d) return;
    for (int64_t i = 0; i < count; ++i)
        if (weights[i] != 0)
            for (int64_t j = at; j < d; ++j) out[j] = fma(weights[i], rows[which[i] * d + j], out[j]);
}

}  // namespace

// out (n, d) = z·D + b.
EXPORT int64_t conceptome_decode(const int32_t *indices, const float *values, int64_t n, int64_t k, const float *atoms,
                                 int64_t d, const float *bias, float *out, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t row = 0; row < n; ++row) {
        std::copy_n(bias, d, out + row * d);
        gather(atoms, d, indices + row * k, values + row * k, k, out + row * d);
    }
    return GOOD;
}

// gradient (k,) = scale · error·D_jᵀ at one row's active places, 0 elsewhere.
static inline void row_gradient(const float *error, float scale, const int32_t *indices, const float *values, int64_t k,
                                const float *atoms, int64_t d, float *gradient) {
    for (int64_t i = 0; i < k; ++i) {
        if (i + 1 < k) {
            const float *next = atoms + int64_t(indices[i + 1]) * d;
            for (int64_t at = 0; at < d; at += 16) __builtin_prefetch(next + at);
        }
        gradient[i] = values[i] == 0 ? 0 : scale * dot(error, atoms + int64_t(indices[i]) * d, d);
    }
}

namespace {

// residual (n, d) = X − b − z·D, and the sum of squares of each of its rows, float64 (n,). Where `gradient` (as the
// values) is not null, also what conceptome_code_gradient gives for it, while a row's atoms are still in the cache; where
// `inputs` (n, d) is not null, also X − b.
int64_t decode_residual(const float *X, const int32_t *indices, const float *values, int64_t n, Places places,
                        const float *atoms, int64_t d, const float *bias, float *residual, double *squares, float scale,
                        float *gradient, float *inputs, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> negated;
#pragma omp for schedule(dynamic, 16)
        for (int64_t row = 0; row < n; ++row) {
            const int64_t start = places.start(row), count = places.count(row);
            float *to = residual + row * d;
            for (int64_t i = 0; i < d; ++i) to[i] = X[row * d + i] - bias[i];
            if (inputs) std::copy_n(to, d, inputs + row * d);
            negated.resize(count);
            for (int64_t i = 0; i < count; ++i) negated[i] = -values[start + i];
            gather(atoms, d, indices + start, negated.data(), count, to);
            double total = 0;
            // Products of short runs are exact enough in float32; their sums are not, over many dimensions.
            for (int64_t i = 0; i < d; i += 256) total += dot(to + i, to + i, std::min<int64_t>(256, d - i));
            squares[row] = total;
            if (gradient) row_gradient(to, scale, indices + start, values + start, count, atoms, d, gradient + start);
        }
    }
    return GOOD;
}

// Active codes sorted by atom, rows ascending (a counting sort): atom j's are places offsets[j] … offsets[j + 1] of
// `rows`, `by_atom` (their values) and `gradient_by_atom`. Returns how many there are.
int64_t sort(const int32_t *indices, const float *values, const float *gradient, int64_t n, Places places, int64_t m,
             int64_t *offsets, int32_t *rows, float *by_atom, float *gradient_by_atom, int threads) {
    std::fill_n(offsets, m + 1, 0);
    // Each thread passes over all codes, for its own atoms.
#pragma omp parallel num_threads(threads)
    {
        const int64_t low = m * omp_get_thread_num() / omp_get_num_threads();
        const int64_t high = m * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const auto own = [&](int64_t i) { return indices[i] >= low && indices[i] < high && values[i] != 0; };
        for (int64_t i = 0; i < places.start(n); ++i)
            if (own(i)) ++offsets[indices[i] + 1];
#pragma omp barrier
#pragma omp single
        for (int64_t j = 0; j < m; ++j) offsets[j + 1] += offsets[j];
        std::vector<int64_t> next(offsets + low, offsets + high);
        for (int64_t row = 0; row < n; ++row)
            for (int64_t i = places.start(row); i < places.start(row + 1); ++i) {
                if (!own(i)) continue;
                const int64_t to = next[indices[i] - low]++;
                rows[to] = int32_t(row);
                by_atom[to] = values[i];
                gradient_by_atom[to] = gradient[i];
            }
    }
    return offsets[m];
}

}  // namespace

// Residual, squares and gradient (see above) of codes of fixed width k …
EXPORT int64_t conceptome_decode_residual(const float *X, const int32_t *indices, const float *values, int64_t n,
                                          int64_t k, const float *atoms, int64_t d, const float *bias, float *residual,
                                          double *squares, double scale, float *gradient, float *inputs,
                                          int64_t threads) {
    return decode_residual(X, indices, values, n, {nullptr, k}, atoms, d, bias, residual, squares, float(scale),
                           gradient, inputs, int(threads));
}

// … and of CSR codes.
EXPORT int64_t conceptome_decode_residual_csr(const float *X, const int64_t *indptr, const int32_t *indices,
                                              const float *values, int64_t n, const float *atoms, int64_t d,
                                              const float *bias, float *residual, double *squares, double scale,
                                              float *gradient, float *inputs, int64_t threads) {
    return decode_residual(X, indices, values, n, {indptr, 0}, atoms, d, bias, residual, squares, float(scale),
                           gradient, inputs, int(threads));
}

// Codes by atom (see above), of fixed width k …
EXPORT int64_t conceptome_sort(const int32_t *indices, const float *values, const float *gradient, int64_t n, int64_t k,
                               int64_t m, int64_t *offsets, int32_t *rows, float *by_atom, float *gradient_by_atom,
                               int64_t threads) {
    return sort(indices, values, gradient, n, {nullptr, k}, m, offsets, rows, by_atom, gradient_by_atom, int(threads));
}

// … and CSR.
EXPORT int64_t conceptome_sort_csr(const int64_t *indptr, const int32_t *indices, const float *values,
                                   const float *gradient, int64_t n, int64_t m, int64_t *offsets, int32_t *rows,
                                   float *by_atom, float *gradient_by_atom, int64_t threads) {
    return sort(indices, values, gradient, n, {indptr, 0}, m, offsets, rows, by_atom, gradient_by_atom, int(threads));
}

// gradient (n, k) = scale · error·D_jᵀ at the active places, 0 elsewhere.
EXPORT int64_t conceptome_code_gradient(const float *error, double scale, const int32_t *indices, const float *values,
                                        int64_t n, int64_t k, const float *atoms, int64_t d, float *gradient,
                                        int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t row = 0; row < n; ++row)
        row_gradient(error + row * d, float(scale), indices + row * k, values + row * k, k, atoms, d,
                     gradient + row * k);
    return GOOD;
}

// The same of CSR codes: gradient (nnz,).
EXPORT int64_t conceptome_code_gradient_csr(const float *error, double scale, const int64_t *indptr,
                                            const int32_t *indices, const float *values, int64_t n, const float *atoms,
                                            int64_t d, float *gradient, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 16)
    for (int64_t row = 0; row < n; ++row) {
        const int64_t start = indptr[row];
        row_gradient(error + row * d, float(scale), indices + start, values + start, indptr[row + 1] - start, atoms, d,
                     gradient + start);
    }
    return GOOD;
}

// Gradients in atoms (m, d), encoder (m, d) and encoder_bias (m,) from sorted codes; `inputs` (n, d) is x − b.
EXPORT int64_t conceptome_atom_gradients(const float *error, const float *inputs, int64_t d, int64_t m,
                                         const int64_t *offsets, const int32_t *rows, const float *by_atom,
                                         const float *gradient_by_atom, float *in_atoms, float *in_encoder,
                                         float *in_encoder_bias, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 16)
    for (int64_t j = 0; j < m; ++j) {
        const int64_t from = offsets[j], count = offsets[j + 1] - from;
        std::fill_n(in_atoms + j * d, d, 0.0f);
        std::fill_n(in_encoder + j * d, d, 0.0f);
        gather(error, d, rows + from, by_atom + from, count, in_atoms + j * d);
        gather(inputs, d, rows + from, gradient_by_atom + from, count, in_encoder + j * d);
        double total = 0;
        for (int64_t i = from; i < from + count; ++i) total += gradient_by_atom[i];
        in_encoder_bias[j] = float(total);
    }
    return GOOD;
}

// Sums over the rows of a matrix (n, d), float64 (d,): of runs of rows first, whose length depends on n alone.
EXPORT int64_t conceptome_column_sums(const float *X, int64_t n, int64_t d, double *sums, int64_t threads) {
    const int64_t length = std::max<int64_t>(256, (n + 63) / 64), runs = (n + length - 1) / length;
    std::vector<double> partial(runs * d);
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t run = 0; run < runs; ++run) {
        double *to = partial.data() + run * d;
        for (int64_t row = run * length; row < std::min(n, (run + 1) * length); ++row)
            for (int64_t i = 0; i < d; ++i) to[i] += X[row * d + i];
    }
    std::fill_n(sums, d, 0.0);
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t i = 0; i < d; ++i) sums[i] += partial[run * d + i];
    return GOOD;
}

namespace {

inline Vector root(Vector value) {
#if defined(__AVX512F__)
    return (Vector)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
    return (Vector)_mm256_sqrt_ps((__m256)value);
#else
    Vector result;
    for (int j = 0; j < WIDTH; ++j) result[j] = std::sqrt(value[j]);
    return result;
#endif
}

// What one step of Adam shares.
struct Adam {
    float to_first, keep_second, to_second, size, epsilon;

    Adam(double keep_first, double keep_second, double size, double epsilon)
        : to_first(float(1 - keep_first)), keep_second(float(keep_second)), to_second(float(1 - keep_second)),
          size(float(size)), epsilon(float(epsilon)) {}

    // Move `count` parameters by their gradient; those behind them in memory, which are next, are sent for meanwhile.
    void move(float *__restrict value, float *__restrict first, float *__restrict second,
              const float *__restrict gradient, int64_t count) const {
        const Vector to_first_ = spread(to_first), keep_second_ = spread(keep_second), to_second_ = spread(to_second);
        const Vector size_ = spread(size), epsilon_ = spread(epsilon);
        int64_t i = 0;
        for (; i + WIDTH <= count; i += WIDTH) {
            __builtin_prefetch(value + i + count, 1);
            __builtin_prefetch(first + i + count, 1);
            __builtin_prefetch(second + i + count, 1);
            const Vector slope = load(gradient + i);
            const Vector one = fma(to_first_, slope - load(first + i), load(first + i));
            const Vector two = fma(to_second_ * slope, slope, keep_second_ * load(second + i));
            store(first + i, one);
            store(second + i, two);
            store(value + i, load(value + i) - size_ * (one / (root(two) + epsilon_)));
        }
        for (; i < count; ++i) {
            first[i] = fma(to_first, gradient[i] - first[i], first[i]);
            second[i] = fma(to_second * gradient[i], gradient[i], keep_second * second[i]);
            value[i] = value[i] - size * (first[i] / (std::sqrt(second[i]) + epsilon));
        }
    }
};

// Active codes sorted by atom, with the error that they answer for.
struct Codes {
    const float *error;
    float scale;
    const int64_t *offsets;
    const int32_t *rows;
    const float *values, *gradient;

    // Add their part to atom j's gradients; `weights` is room for its codes.
    void add(int64_t j, const float *inputs, int64_t d, std::vector<float> &weights, float *in_atom, float *in_encoder,
             double &in_encoder_bias) const {
        const int64_t from = offsets[j], count = offsets[j + 1] - from;
        if (!count) return;
        weights.resize(count);
        for (int64_t i = 0; i < count; ++i) {
            weights[i] = scale * values[from + i];
            in_encoder_bias += gradient[from + i];
        }
        gather(error, d, rows + from, weights.data(), count, in_atom);
        gather(inputs, d, rows + from, gradient + from, count, in_encoder);
    }
};

}  // namespace

// One optimiser step on atoms, encoder and encoder_bias, in place, without gradient matrices. For each atom: its
// gradients from one or two sorted sets of codes (the second may be absent: null), less the part along the atom itself;
// Adam; unit norm; the packed encoder. Also in_bias float32 (panels, d): what each panel of atoms adds to the gradient
// in b through the encoder, −Σ_j g_j·W_j with W as it was before.
EXPORT int64_t conceptome_update(int64_t m, int64_t d, const float *inputs,  //
                                 const float *error, double scale, const int64_t *offsets, const int32_t *rows,
                                 const float *values, const float *gradient,  //
                                 const float *aux_error, double aux_scale, const int64_t *aux_offsets,
                                 const int32_t *aux_rows, const float *aux_values, const float *aux_gradient,  //
                                 float *atoms, float *first_atoms, float *second_atoms,  //
                                 float *encoder, float *first_encoder, float *second_encoder,  //
                                 float *encoder_bias, float *first_encoder_bias, float *second_encoder_bias,  //
                                 double keep_first, double keep_second, double size, double epsilon,  //
                                 float *packed, float *in_bias, int64_t threads) {
    const Adam adam(keep_first, keep_second, size, epsilon);
    const Codes main{error, float(scale), offsets, rows, values, gradient};
    const Codes aux{aux_error, float(aux_scale), aux_offsets, aux_rows, aux_values, aux_gradient};
#pragma omp parallel num_threads(int(threads))
    {
        std::vector<float> in_atom(d), in_encoder(d), weights;
#pragma omp for schedule(dynamic, 1)
        for (int64_t p = 0; p < panels(m); ++p) {
            float *through = in_bias + p * d;
            std::fill_n(through, d, 0.0f);
            for (int64_t j = p * PANEL; j < std::min(m, (p + 1) * PANEL); ++j) {
                float *atom = atoms + j * d;
                std::fill(in_atom.begin(), in_atom.end(), 0.0f);
                std::fill(in_encoder.begin(), in_encoder.end(), 0.0f);
                double total = 0;
                main.add(j, inputs, d, weights, in_atom.data(), in_encoder.data(), total);
                if (aux_error) aux.add(j, inputs, d, weights, in_atom.data(), in_encoder.data(), total);
                const float in_encoder_bias = float(total);
                if (in_encoder_bias != 0) add_scaled(through, -in_encoder_bias, encoder + j * d, d);
                add_scaled(in_atom.data(), -dot(in_atom.data(), atom, d), atom, d);
                adam.move(atom, first_atoms + j * d, second_atoms + j * d, in_atom.data(), d);
                const float norm = std::sqrt(dot(atom, atom, d));
                const float shrink = 1 / norm;
                for (int64_t i = 0; i < d; ++i) atom[i] = atom[i] * shrink;
                adam.move(encoder + j * d, first_encoder + j * d, second_encoder + j * d, in_encoder.data(), d);
                adam.move(encoder_bias + j, first_encoder_bias + j, second_encoder_bias + j, &in_encoder_bias, 1);
            }
            pack_for_topk(encoder, m, d, p, packed);
        }
    }
    return GOOD;
}
