// Vectors of floats, loaded from and stored to float32 or bfloat16, by the compiler's own vector types.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
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
  return (Floats)(__builtin_convertvector(halves, Bits) << 16);
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
