// Vectors of floats, loaded from and stored to float32 or bfloat16, by the compiler's own vector types.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr long WIDTH = 16;  // floats a vector; 32 registers of that size
constexpr long ROWS = 12;   // of a product's block: two vectors each fill the registers
#else
constexpr long WIDTH = 8;
constexpr long ROWS = 6;
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

// Rounds to nearest, ties to even, as torch does.
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

// What exp leaves of precision: enough for T.
template <typename T>
constexpr bool ROUGH = sizeof(T) == 2;

// exp(x) = 2^n 2^r, r in [-1/2, 1/2], by a polynomial; beyond [-87, 88] its value there. T's precision is enough: a
// relative error of 1e-4 for bfloat16, else of 2e-7.
template <typename T>
inline Floats exponential(Floats x) {
  x = x < -87.0f ? filled(-87.0f) : x;
  x = x > 88.0f ? filled(88.0f) : x;
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction, and n in the lowest bits
  Floats shifted = x * 1.44269504f + ROUND, n = shifted - ROUND, series;
  if (ROUGH<T>) {
    Floats r = x * 1.44269504f - n;
    series = ((filled(0.0551711f) * r + 0.2426102f) * r + 0.6932610f) * r + 0.9999281f;
  } else {
    Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;  // ln 2 in two parts
    series = filled(1 / 720.0f);
    for (float coefficient : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) series = series * r + coefficient;
  }
  return series * (Floats)(((Ints)shifted << 23) + (127 << 23));
}

// 1 / x, T's precision being enough.
template <typename T>
inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
  if (ROUGH<T>) return (Floats)_mm512_rcp14_ps((__m512)x);
#endif
  return 1.0f / x;
}

// The first `count` of a vector, where fewer than WIDTH are there; zeros behind them.
template <typename T>
inline Floats load_some(const T* p, long count) {
  if (count >= WIDTH) return load(p);
  T values[WIDTH] = {};
  std::memcpy(values, p, count * sizeof(T));
  return load(values);
}

template <typename T>
inline void store_some(T* p, Floats values, long count) {
  if (count >= WIDTH) return store(p, values);
  T all[WIDTH];
  store(all, values);
  std::memcpy(p, all, count * sizeof(T));
}

// What a product of bfloat16 images takes: two numbers at once, where the processor multiplies such pairs; else float32.
#ifdef __AVX512BF16__
typedef bfloat16 Factor;
#else
typedef float Factor;
#endif

template <typename F>
constexpr long DEPTH = 4 / sizeof(F);  // numbers that one product takes

typedef Floats Weights;  // as many bits as a vector of floats, whatever they are

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

// Two vectors as pairs: the first's numbers in the lower halves.
inline void store_weights(bfloat16* p, const Floats weights[2]) {
  Bits low = (Bits)weights[0], high = (Bits)weights[1];
  low += 0x7fff + ((low >> 16) & 1);
  high += 0x7fff + ((high >> 16) & 1);
  Bits pairs = (low >> 16) | (high & 0xffff0000);
  std::memcpy(p, &pairs, sizeof pairs);
}
#endif
