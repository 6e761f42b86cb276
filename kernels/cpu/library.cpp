// Facts about this build.
#include "common.h"

#include <omp.h>

// Floats per vector register: 16 in the AVX-512 variant, 8 in the AVX2 variant, 4 in the generic one.
EXPORT int64_t conceptome_width() { return WIDTH; }

// The number of threads that OpenMP would use for a parallel region started here.
EXPORT int64_t conceptome_threads() { return omp_get_max_threads(); }
