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
