// Group normalisation with scale, shift and SiLU over (batch, tokens, channels) images, and its gradient.
//
// What pipeline/models/norm.py writes in torch operations, in passes over an image that stays in the cache: sums for the
// statistics, then y = f(a x + b). Channels are a multiple of WIDTH, since there are 32 groups. Each image is one
// thread's, so that results do not depend on the number of threads.
#include <algorithm>
#include <cmath>

#include "vector.h"

namespace {

constexpr float EPS = 1e-5f;
constexpr long RUN = 128;  // tokens summed in one accumulator, so that rounding does not grow with the image

struct Size {
  long batch, tokens, channels, groups;
};

// 1 + exp(-u), by exp(x) = 2^n exp(r) and a polynomial of degree six for r in [-ln 2 / 2, ln 2 / 2].
inline Floats one_plus_exp(Floats u) {
  Floats x = -u;
  x = x < -87.0f ? filled(-87.0f) : x;
  x = x > 88.0f ? filled(88.0f) : x;
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction, and n in the lowest bits
  Floats shifted = x * 1.44269504f + ROUND, n = shifted - ROUND;
  Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;  // ln 2 in two parts
  Floats series = filled(1 / 720.0f);
  for (float coefficient : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) series = series * r + coefficient;
  Ints power = ((Ints)shifted << 23) + (127 << 23);
  return 1.0f + series * (Floats)power;
}

// Means over the tokens of `first` and `second` (value at token) for each vector of channels.
template <typename Values>
inline void token_means(long tokens, Values values, Floats& first, Floats& second) {
  first = second = Floats{};
  for (long begin = 0; begin < tokens; begin += RUN) {
    Floats one{}, two{};
    for (long n = begin; n < std::min(begin + RUN, tokens); ++n) values(n, one, two);
    first += one;
    second += two;
  }
  first /= filled(tokens);
  second /= filled(tokens);
}

// Each channel gets the mean over its group.
void group_mean(float* values, long channels, long groups) {
  long size = channels / groups;
  for (long begin = 0; begin < channels; begin += size) {
    float sum = 0;
    for (long c = begin; c < begin + size; ++c) sum += values[c];
    for (long c = begin; c < begin + size; ++c) values[c] = sum / size;
  }
}

template <typename T>
void forward(const T* x, T* y, Size size, const float* weight, const float* bias, const float* scale,
             const float* shift, bool silu, float* a, float* b, float* mean, float* rstd) {
  long channels = size.channels;
  Floats found, unused;
  for (long c = 0; c < channels; c += WIDTH) {
    token_means(size.tokens, [&](long n, Floats& sum, Floats&) { sum += load(x + n * channels + c); }, found, unused);
    store(mean + c, found);
  }
  group_mean(mean, channels, size.groups);
  for (long c = 0; c < channels; c += WIDTH) {
    Floats centre = load(mean + c);
    auto squares = [&](long n, Floats& sum, Floats&) {
      Floats distance = load(x + n * channels + c) - centre;
      sum += distance * distance;
    };
    token_means(size.tokens, squares, found, unused);
    store(rstd + c, found);
  }
  group_mean(rstd, channels, size.groups);
  for (long c = 0; c < channels; ++c) {
    float factor = scale ? 1 + scale[c] : 1;
    rstd[c] = 1 / std::sqrt(rstd[c] + EPS);
    a[c] = rstd[c] * weight[c] * factor;
    b[c] = bias[c] * factor - mean[c] * a[c] + (shift ? shift[c] : 0);
  }
  for (long n = 0; n < size.tokens; ++n)
    for (long c = 0; c < channels; c += WIDTH) {
      Floats u = load(x + n * channels + c) * load(a + c) + load(b + c);
      store(y + n * channels + c, silu ? u / one_plus_exp(u) : u);
    }
}

// Gradient before f, at u = a x + b.
inline Floats grad_u(Floats values, Floats grad, Floats a, Floats b, bool silu) {
  if (!silu) return grad;
  Floats u = values * a + b, s = 1.0f / one_plus_exp(u);
  return grad * s * (1.0f + u * (1.0f - s));
}

template <typename T>
void backward(const T* x, const T* grad, T* grad_x, Size size, const float* a, const float* b, const float* mean,
              const float* rstd, bool silu, float* mean_du, float* mean_du_xhat, float* offset, float* slope) {
  long channels = size.channels;
  for (long c = 0; c < channels; c += WIDTH) {
    Floats va = load(a + c), vb = load(b + c), centre = load(mean + c), du_mean, xhat_mean;
    auto sums = [&](long n, Floats& sum, Floats& sum_xhat) {
      Floats values = load(x + n * channels + c);
      Floats du = grad_u(values, load(grad + n * channels + c), va, vb, silu);
      sum += du;
      sum_xhat += du * (values - centre);
    };
    token_means(size.tokens, sums, du_mean, xhat_mean);
    store(mean_du + c, du_mean);
    store(mean_du_xhat + c, xhat_mean * load(rstd + c));
  }
  for (long c = 0; c < channels; ++c) {
    float gain = a[c] / rstd[c];
    offset[c] = mean_du[c] * gain;
    slope[c] = mean_du_xhat[c] * gain;
  }
  group_mean(offset, channels, size.groups);
  group_mean(slope, channels, size.groups);
  for (long c = 0; c < channels; ++c) {
    slope[c] *= -rstd[c] * rstd[c];
    offset[c] = -rstd[c] * offset[c] - slope[c] * mean[c];
  }
  for (long n = 0; n < size.tokens; ++n)
    for (long c = 0; c < channels; c += WIDTH) {
      Floats values = load(x + n * channels + c), va = load(a + c);
      Floats du = grad_u(values, load(grad + n * channels + c), va, load(b + c), silu);
      store(grad_x + n * channels + c, du * va + load(offset + c) + load(slope + c) * values);
    }
}

template <typename T>
void all_forward(const T* x, T* y, Size size, const float* weight, const float* bias, const float* scale,
                 const float* shift, bool silu, float* statistics, int threads) {
  long image = size.tokens * size.channels, part = size.batch * size.channels;
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size.batch; ++i) {
    long row = i * size.channels;
    float* s = statistics + row;
    forward(x + i * image, y + i * image, size, weight, bias, scale ? scale + row : nullptr,
            shift ? shift + row : nullptr, silu, s, s + part, s + 2 * part, s + 3 * part);
  }
}

template <typename T>
void all_backward(const T* x, const T* grad, T* grad_x, Size size, const float* a, const float* b, const float* mean,
                  const float* rstd, bool silu, float* means, int threads) {
  long image = size.tokens * size.channels, part = size.batch * size.channels;
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size.batch; ++i) {
    long row = i * size.channels;
    float* m = means + row;
    backward(x + i * image, grad + i * image, grad_x + i * image, size, a + row, b + row, mean + row, rstd + row, silu,
             m, m + part, m + 2 * part, m + 3 * part);
  }
}

}  // namespace

// statistics: (4, batch, channels), written: a, b, mean, 1 / deviation. reduced: whether x and y are bfloat16.
extern "C" void norm_forward(bool reduced, const void* x, void* y, long batch, long tokens, long channels, long groups,
                             const float* weight, const float* bias, const float* scale, const float* shift, bool silu,
                             float* statistics, int threads) {
  Size size{batch, tokens, channels, groups};
  if (reduced)
    all_forward((const bfloat16*)x, (bfloat16*)y, size, weight, bias, scale, shift, silu, statistics, threads);
  else
    all_forward((const float*)x, (float*)y, size, weight, bias, scale, shift, silu, statistics, threads);
}

// means: (4, batch, channels), written: means over the tokens of du and du * x_hat, and two that grad_x needs.
extern "C" void norm_backward(bool reduced, const void* x, const void* grad, void* grad_x, long batch, long tokens,
                              long channels, long groups, const float* a, const float* b, const float* mean,
                              const float* rstd, bool silu, float* means, int threads) {
  Size size{batch, tokens, channels, groups};
  if (reduced)
    all_backward((const bfloat16*)x, (const bfloat16*)grad, (bfloat16*)grad_x, size, a, b, mean, rstd, silu, means,
                 threads);
  else
    all_backward((const float*)x, (const float*)grad, (float*)grad_x, size, a, b, mean, rstd, silu, means, threads);
}
