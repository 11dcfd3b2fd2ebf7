// Matrix products: blocks of ROWS x PANEL that stay in registers, of float32 numbers or of pairs of bfloat16 ones.
#pragma once
#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

#ifdef __AVX512F__
constexpr long ROWS = 12;  // of a block: two vectors each fill the 32 registers
#else
constexpr long ROWS = 6;
#endif
constexpr long PANEL = 2 * WIDTH;

// What products of bfloat16 images take: pairs of such numbers, where the processor multiplies them; else float32.
#ifdef __AVX512BF16__
typedef bfloat16 Factor;
#else
typedef float Factor;
#endif

template <typename F>
constexpr long DEPTH = 4 / sizeof(F);  // numbers that one product takes

typedef Floats Weights;  // the bits of a vector of weights, floats or pairs

inline Weights load_weights(const float* p) { return load(p); }
inline void add_product(Floats& sum, const float* value, Weights weights) { sum += *value * weights; }
inline void store_weights(float* p, const Floats weights[1]) { store(p, weights[0]); }

#ifdef __AVX512BF16__
inline Weights load_weights(const bfloat16* p) {
  Weights pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return pairs;
}

inline void add_product(Floats& sum, const bfloat16* value, Weights weights) {
  int32_t pair;
  std::memcpy(&pair, value, sizeof pair);
  sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
}

// Two vectors as pairs, the first's numbers in the lower halves.
inline void store_weights(bfloat16* p, const Floats weights[2]) {
  typedef int16_t Places __attribute__((vector_size(4 * WIDTH)));
  Places pairs{};
  for (short l = 0; l < 2 * WIDTH; ++l) pairs[l] = l / 2 + l % 2 * WIDTH;
  __m512bh one_after_other = _mm512_cvtne2ps_pbh((__m512)weights[1], (__m512)weights[0]);
  __m512i values = _mm512_permutexvar_epi16((__m512i)pairs, (__m512i)one_after_other);
  std::memcpy(p, &values, sizeof values);
}
#endif

// m, `count` rows `m_stride` apart = v, rows `stride` apart, times VECTORS vectors of columns: u, (depth / DEPTH,
// columns, DEPTH). count: at most R; up to a multiple of four, rows behind are worked out too. more: it is added to m.
template <int VECTORS, long R = ROWS, typename F>
inline void multiply(const F* v, long stride, const F* u, long depth, float* m, long m_stride, long count,
                     bool more = false) {
  if constexpr (R > 4) {
    if (count <= R - 4) return multiply<VECTORS, R - 4>(v, stride, u, depth, m, m_stride, count, more);
  }
  Floats sums[R][VECTORS] = {};
  if (more)
#pragma GCC unroll 12
    for (long r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] = load(m + r * m_stride + j * WIDTH);
  for (long c = 0; c < depth; c += DEPTH<F>) {
    Weights weights[VECTORS];
    for (int j = 0; j < VECTORS; ++j) weights[j] = load_weights(u + (c * VECTORS + j * DEPTH<F>) * WIDTH);
#pragma GCC unroll 12
    for (long r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) add_product(sums[r][j], v + r * stride + c, weights[j]);
  }
#pragma GCC unroll 12
  for (long r = 0; r < R; ++r)
    for (int j = 0; j < VECTORS; ++j) store(m + r * m_stride + j * WIDTH, sums[r][j]);
}

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
