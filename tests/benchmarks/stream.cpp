// Memory bandwidth as STREAM measures it (McCalpin 1995, https://www.cs.virginia.edu/stream/): copy,
// scale, add, triad over three arrays of doubles, with ordinary and with non-temporal stores.
// Compiled at run time with -march=native; only this file of the repository may be.

#include <omp.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

#if defined(__AVX__)
constexpr std::size_t kWidth = 4;
#else
constexpr std::size_t kWidth = 2;
#endif
typedef double Vector __attribute__((vector_size(kWidth * sizeof(double))));

std::size_t count = 0;
int team = 1;
double* a = nullptr;
double* b = nullptr;
double* c = nullptr;

struct Ordinary {
  static void store(double* target, Vector value) { *reinterpret_cast<Vector*>(target) = value; }
};

struct NonTemporal {
  static void store(double* target, Vector value) {
#if defined(__AVX__)
    _mm256_stream_pd(target, value);
#elif defined(__SSE2__)
    _mm_stream_pd(target, value);
#else
    *reinterpret_cast<Vector*>(target) = value;
#endif
  }
};

Vector load(const double* source) {
  return *reinterpret_cast<const Vector*>(source);
}

// One whole pass: the same static split of the arrays at every pass, so each thread keeps its pages.
template <class Store, class Kernel>
double seconds_of(double* target, const Kernel& kernel) {
  const double began = omp_get_wtime();
#pragma omp parallel num_threads(team)
  {
#pragma omp for schedule(static)
    for (std::size_t x = 0; x < count; x += kWidth) {
      Store::store(target + x, kernel(x));
    }
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }
  return omp_get_wtime() - began;
}

template <class Store>
double pass(int kernel) {
  const Vector factor = Vector{} + 3.0;
  switch (kernel) {
    case 0:
      return seconds_of<Store>(c, [](std::size_t x) { return load(a + x); });
    case 1:
      return seconds_of<Store>(b, [=](std::size_t x) { return factor * load(c + x); });
    case 2:
      return seconds_of<Store>(c, [](std::size_t x) { return load(a + x) + load(b + x); });
    default:
      return seconds_of<Store>(a, [=](std::size_t x) { return load(b + x) + factor * load(c + x); });
  }
}

// `apart` bytes into its mapping, so that no two arrays fall into the same sets of the caches.
double* array_of(std::size_t bytes, std::size_t apart) {
  void* found = mmap(nullptr, bytes + apart, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) {
    return nullptr;
  }
  madvise(found, bytes + apart, MADV_HUGEPAGE);  // NumPy asks for huge pages too
  return reinterpret_cast<double*>(static_cast<char*>(found) + apart);
}

}  // namespace

// Three arrays of n doubles (n a multiple of 4), touched first by the threads that will use them.
extern "C" int stream_make(std::size_t n, int threads) {
  count = n;
  team = threads;
  a = array_of(n * sizeof(double), 0);
  b = array_of(n * sizeof(double), 66304);
  c = array_of(n * sizeof(double), 2 * 66304);
  if (a == nullptr || b == nullptr || c == nullptr) {
    return 1;
  }
#pragma omp parallel for schedule(static) num_threads(team)
  for (std::size_t x = 0; x < n; ++x) {
    a[x] = 1.0;
    b[x] = 2.0;
    c[x] = 0.0;
  }
  return 0;
}

// Lowers best[kernel] (ordinary stores) and best[4 + kernel] (non-temporal) by `repeats` passes each.
extern "C" void stream_run(int repeats, double* best) {
  for (int k = 0; k < repeats; ++k) {
    for (int kernel = 0; kernel < 4; ++kernel) {
      const double ordinary = pass<Ordinary>(kernel);
      best[kernel] = ordinary < best[kernel] ? ordinary : best[kernel];
    }
    for (int kernel = 0; kernel < 4; ++kernel) {
      const double direct = pass<NonTemporal>(kernel);
      best[4 + kernel] = direct < best[4 + kernel] ? direct : best[4 + kernel];
    }
  }
}
