// Vectors of floats, loaded from and stored to float32 or bfloat16, by the compiler's own vector types.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr long WIDTH = 16;  // floats per vector
#else
constexpr long WIDTH = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
struct bfloat16 {
  uint16_t bits;
};

inline Floats filled(float value) { return Floats{} + value; }

inline Floats load(const float* p) {
  Floats values;
  std::memcpy(&values, p, sizeof values);
  return values;
}

inline Floats load(const bfloat16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
#ifdef __AVX512F__  // one instruction, where g++ would make five
  return (Floats)((Bits)_mm512_cvtepu16_epi32((__m256i)halves) << 16);
#else
  return (Floats)(__builtin_convertvector(halves, Bits) << 16);
#endif
}

inline void store(float* p, Floats values) { std::memcpy(p, &values, sizeof values); }

// Rounds to nearest, ties to even, like torch.
#ifdef __AVX512BF16__
inline void store(bfloat16* p, Floats values) {
  __m256bh halves = _mm512_cvtneps_pbh((__m512)values);
  std::memcpy(p, &halves, sizeof halves);
}
#else
inline void store(bfloat16* p, Floats values) {
  Bits bits = (Bits)values;
  Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = values != values ? Bits{} + 0x7fc0 : rounded;
  Halves halves = __builtin_convertvector(rounded, Halves);
  std::memcpy(p, &halves, sizeof halves);
}
#endif

// Whether T has less precision than float32, so that approximations suffice.
template <typename T>
constexpr bool ROUGH = sizeof(T) == 2;

// exp(x) = 2^n 2^r with r in [-1/2, 1/2], by a polynomial. The relative error is 1e-4 for bfloat16 and 2e-7 for
// float32; for float32, x is clamped to [-87, 88].
template <typename T>
inline Floats exponential(Floats x) {
#ifdef __AVX512F__
  if (ROUGH<T>) {
    Floats whole = x * 1.44269504f, n = (Floats)_mm512_roundscale_ps((__m512)whole, 0), r = whole - n;
    Floats series = ((filled(0.0551711f) * r + 0.2426102f) * r + 0.6932610f) * r + 0.9999281f;
    return (Floats)_mm512_scalef_ps((__m512)series, (__m512)n);
  }
#endif
  x = x < -87.0f ? filled(-87.0f) : x;
  x = x > 88.0f ? filled(88.0f) : x;
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction, and n in the lowest bits
  Floats shifted = x * 1.44269504f + ROUND, n = shifted - ROUND;
  Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;  // ln 2 in two parts
  Floats series = filled(1 / 720.0f);
  for (float coefficient : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) series = series * r + coefficient;
  return series * (Floats)(((Ints)shifted << 23) + (127 << 23));
}

// 1 / x, to T's precision.
template <typename T>
inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
  if (ROUGH<T>) return (Floats)_mm512_rcp14_ps((__m512)x);
#endif
  return 1.0f / x;
}

// The first `count` numbers of a vector, followed by zeros, if fewer than WIDTH exist.
inline Floats load_some(const float* p, long count) {
  if (count >= WIDTH) return load(p);
  float values[WIDTH] = {};
  std::memcpy(values, p, count * sizeof(float));
  return load(values);
}

inline void store_some(float* p, Floats values, long count) {
  if (count >= WIDTH) return store(p, values);
  std::memcpy(p, &values, count * sizeof(float));
}

// Transpose a WIDTH x WIDTH block, by exchanging ever larger parts of row pairs.
inline void transpose(Floats rows[WIDTH]) {
#ifdef __AVX512F__
  for (long block = 1; block < WIDTH; block *= 2) {
    Ints first{}, second{};
    for (long l = 0; l < WIDTH; ++l) {
      first[l] = l & block ? WIDTH + l - block : l;
      second[l] = l & block ? WIDTH + l : l + block;
    }
    for (long i = 0; i < WIDTH; ++i) {
      if (i & block) continue;
      __m512 a = (__m512)rows[i], b = (__m512)rows[i + block];
      rows[i] = (Floats)_mm512_permutex2var_ps(a, (__m512i)first, b);
      rows[i + block] = (Floats)_mm512_permutex2var_ps(a, (__m512i)second, b);
    }
  }
#else
  for (long i = 0; i < WIDTH; ++i)
    for (long j = 0; j < i; ++j) {
      float value = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = value;
    }
#endif
}
