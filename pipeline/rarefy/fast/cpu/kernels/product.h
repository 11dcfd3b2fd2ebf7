// Matrix products in blocks of ROWS x PANEL that stay in registers.
#pragma once
#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

#ifdef __AVX512F__
constexpr long ROWS = 12;  // of a block; with two vectors each they fill the 32 registers
#else
constexpr long ROWS = 6;
#endif
constexpr long PANEL = 2 * WIDTH;

// m = v u, or m += v u if `more`. v: `count` rows, `stride` apart; u: (depth, VECTORS * WIDTH); m: rows `m_stride`
// apart. count is at most R; rows up to the next multiple of four are computed too.
template <int VECTORS, long R = ROWS>
inline void multiply(const float* v, long stride, const float* u, long depth, float* m, long m_stride, long count,
                     bool more = false) {
  if constexpr (R > 4) {
    if (count <= R - 4) return multiply<VECTORS, R - 4>(v, stride, u, depth, m, m_stride, count, more);
  }
  Floats sums[R][VECTORS] = {};
  if (more)
#pragma GCC unroll 12
    for (long r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] = load(m + r * m_stride + j * WIDTH);
  for (long c = 0; c < depth; ++c) {
    Floats weights[VECTORS];
    for (int j = 0; j < VECTORS; ++j) weights[j] = load(u + (c * VECTORS + j) * WIDTH);
#pragma GCC unroll 12
    for (long r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] += v[r * stride + c] * weights[j];
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
