// What the machine can do at most: fused multiply-adds on registers, and a stream of a[i] = s * b[i] + a[i].
#include <cstdint>
#include <chrono>
#include <omp.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH)));

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Floating point operations per second of all threads together, for about `seconds`.
extern "C" double roof_multiply_add(double seconds, int64_t threads, float *sink) {
    double total = 0.0;
#pragma omp parallel num_threads((int)threads) reduction(+ : total)
    {
        // 16 chains hide the latency of 4 cycles of two units with room to spare, and fit the registers.
        const int chains = WIDTH == 16 ? 16 : 12;
        Vector sum[16] = {};
        Vector x = Vector{} + 1.0f, y = Vector{} + 1e-9f;
        double start = now(), elapsed = 0.0, done = 0.0;
        while (elapsed < seconds) {
            for (int repeat = 0; repeat < 20000; ++repeat) {
#pragma GCC unroll 16
                for (int each = 0; each < chains; ++each) sum[each] = sum[each] * x + y;
                __asm__ volatile("" : "+x"(x), "+x"(y));
            }
            done += 20000.0 * chains * WIDTH * 2;
            elapsed = now() - start;
        }
        Vector all = {};
        for (int each = 0; each < chains; ++each) all += sum[each];
        sink[omp_get_thread_num()] = all[0];
        total += done / elapsed;
    }
    return total;
}

// Bytes per second read and written over n floats of a and b, the best of `repeats`.
extern "C" double roof_stream(float *a, const float *b, int64_t n, int64_t repeats, int64_t threads) {
    double best = 0.0;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        double start = now();
#pragma omp parallel for simd num_threads((int)threads) schedule(static)
        for (int64_t i = 0; i < n; ++i) a[i] = 0.5f * b[i] + a[i];
        double rate = 12.0 * (double)n / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}
