// AVX-512 with bfloat16 products for processors that have neither: what the kernels ask of it, written out in C++.
//
// Included before the kernels (g++ -include), so that their widest form is tested on any machine, if slowly.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#undef __AVX512F__
#undef __AVX512BF16__
#define __AVX512F__ 1
#define __AVX512BF16__ 1

namespace emulated {

typedef float Floats __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));
typedef uint16_t HalfHalves __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(64)));

// To nearest, ties to even; denormal numbers to zero, as the processor has it.
inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return bits >> 16 | 0x40;
  if ((bits & 0x7f800000) == 0) return bits >> 16 & 0x8000;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename Function>
inline __m512 each(__m512 x, Function function) {
  Floats from = (Floats)x, to;
  for (int l = 0; l < 16; ++l) to[l] = function(from[l]);
  return (__m512)to;
}

inline __m512i cvtepu16_epi32(__m256i halves) { return (__m512i)__builtin_convertvector((HalfHalves)halves, Bits); }

inline __m512i set1_epi32(int32_t value) { return (__m512i)(Bits{} + (uint32_t)value); }

inline __m256bh cvtneps_pbh(__m512 x) {
  HalfHalves halves;
  for (int l = 0; l < 16; ++l) halves[l] = rounded(((Floats)x)[l]);
  return (__m256bh)halves;
}

inline __m512bh cvtne2ps_pbh(__m512 upper, __m512 lower) {
  Halves halves;
  for (int l = 0; l < 32; ++l) halves[l] = rounded(((Floats)(l < 16 ? lower : upper))[l % 16]);
  return (__m512bh)halves;
}

inline __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  Bits x = (Bits)a, y = (Bits)b;
  Floats upper = (Floats)(x & 0xffff0000) * (Floats)(y & 0xffff0000);
  return (__m512)((Floats)sum + upper + (Floats)(x << 16) * (Floats)(y << 16));
}

inline __m512i permutexvar_epi16(__m512i places, __m512i values) {
  Halves from = (Halves)values, at = (Halves)places, to;
  for (int l = 0; l < 32; ++l) to[l] = from[at[l] % 32];
  return (__m512i)to;
}

inline __m512 permutex2var_ps(__m512 a, __m512i places, __m512 b) {
  Floats to;
  for (int l = 0; l < 16; ++l) {
    uint32_t place = ((Bits)places)[l] % 32;
    to[l] = place < 16 ? ((Floats)a)[place] : ((Floats)b)[place - 16];
  }
  return (__m512)to;
}

// x 2^power; an infinite power gives 0 or infinity whatever x is, even no number.
inline __m512 scalef_ps(__m512 x, __m512 powers) {
  Floats to;
  for (int l = 0; l < 16; ++l) {
    float power = std::exp2(std::floor(((Floats)powers)[l]));
    to[l] = std::isinf(((Floats)powers)[l]) ? power : ((Floats)x)[l] * power;
  }
  return (__m512)to;
}

inline float reduce_add_ps(__m512 x) {
  float sum = 0;
  for (int l = 0; l < 16; ++l) sum += ((Floats)x)[l];
  return sum;
}

inline float reduce_max_ps(__m512 x) {
  float largest = ((Floats)x)[0];
  for (int l = 1; l < 16; ++l) largest = std::fmax(largest, ((Floats)x)[l]);
  return largest;
}

}  // namespace emulated

#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#define _mm512_scalef_ps emulated::scalef_ps
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_roundscale_ps(x, how) emulated::each(x, [](float value) { return std::nearbyint(value); })
#define _mm512_rcp14_ps(x) emulated::each(x, [](float value) { return 1 / value; })
