// Group normalisation with scale, shift and SiLU over (batch, tokens, channels) images, and its gradient.
//
// What pipeline/models/norm.py writes in torch operations, in passes over an image that stays in the cache: sums for
// the statistics, then y = f(a x + b). Channels are a multiple of WIDTH, since there are 32 groups. Each image is one
// thread's, so that results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace {

constexpr float EPS = 1e-5f;
constexpr long RUN = 128;  // tokens summed in one accumulator, so that rounding does not grow with the image

struct Size {
  long batch, tokens, channels, groups;
};

template <typename T>
inline Floats sigmoid(Floats u) {
  return reciprocal<T>(1.0f + exponential<T>(-u));
}

// Means over the tokens of `first` and `second` (values at token, channel), VECTORS vectors of channels at once.
template <int VECTORS, typename Values>
inline void token_means(long tokens, long c, Values values, float* first, float* second) {
  Floats one[VECTORS] = {}, two[VECTORS] = {};
  for (long begin = 0; begin < tokens; begin += RUN) {
    Floats sum[VECTORS] = {}, sum_two[VECTORS] = {};
    for (long n = begin; n < std::min(begin + RUN, tokens); ++n)
      for (int j = 0; j < VECTORS; ++j) values(n, c + j * WIDTH, sum[j], sum_two[j]);
    for (int j = 0; j < VECTORS; ++j) one[j] += sum[j], two[j] += sum_two[j];
  }
  for (int j = 0; j < VECTORS; ++j) {
    store(first + c + j * WIDTH, one[j] / filled(tokens));
    if (second) store(second + c + j * WIDTH, two[j] / filled(tokens));
  }
}

template <typename Values>
inline void all_token_means(long tokens, long channels, Values values, float* first, float* second) {
  long c = 0;
  for (; c + 4 * WIDTH <= channels; c += 4 * WIDTH) token_means<4>(tokens, c, values, first, second);
  for (; c + 2 * WIDTH <= channels; c += 2 * WIDTH) token_means<2>(tokens, c, values, first, second);
  for (; c < channels; c += WIDTH) token_means<1>(tokens, c, values, first, second);
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

// Of each channel's tokens: the mean of its group, and their mean squared distance from that.
template <typename T>
void channel_moments(const T* x, Size size, float* mean, float* squares) {
  long channels = size.channels;
  if (ROUGH<T>) {  // in one pass, by distances from the first token
    auto values = [&](long n, long c, Floats& sum, Floats& square) {
      Floats distance = load(x + n * channels + c) - load(x + c);
      sum += distance;
      square += distance * distance;
    };
    all_token_means(size.tokens, channels, values, mean, squares);
    for (long c = 0; c < channels; c += WIDTH) {
      Floats shift = load(mean + c);
      Floats square = load(squares + c) - shift * shift;
      store(squares + c, square > 0.0f ? square : Floats{});
      store(mean + c, shift + load(x + c));
    }
    std::vector<float> own(mean, mean + channels);
    group_mean(mean, channels, size.groups);
    for (long c = 0; c < channels; ++c) squares[c] += (own[c] - mean[c]) * (own[c] - mean[c]);
    return;
  }
  auto values = [&](long n, long c, Floats& sum, Floats&) { sum += load(x + n * channels + c); };
  all_token_means(size.tokens, channels, values, mean, nullptr);
  group_mean(mean, channels, size.groups);
  auto distances = [&](long n, long c, Floats& sum, Floats&) {
    Floats distance = load(x + n * channels + c) - load(mean + c);
    sum += distance * distance;
  };
  all_token_means(size.tokens, channels, distances, squares, nullptr);
}

template <typename T>
void forward(const T* x, T* y, Size size, const float* weight, const float* bias, const float* scale,
             const float* shift, bool silu, float* a, float* b, float* mean, float* rstd) {
  long channels = size.channels;
  channel_moments(x, size, mean, rstd);
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
      store(y + n * channels + c, silu ? u * sigmoid<T>(u) : u);
    }
}

// Gradient before f, at u = a x + b.
template <typename T>
inline Floats grad_u(Floats values, Floats grad, Floats a, Floats b, bool silu) {
  if (!silu) return grad;
  Floats u = values * a + b, s = sigmoid<T>(u);
  return grad * s * (1.0f + u * (1.0f - s));
}

template <typename T>
void backward(const T* x, const T* grad, T* grad_x, Size size, const float* a, const float* b, const float* mean,
              const float* rstd, bool silu, float* mean_du, float* mean_du_xhat, float* offset, float* slope) {
  long channels = size.channels;
  auto sums = [&](long n, long c, Floats& sum, Floats& sum_xhat) {
    Floats values = load(x + n * channels + c);
    Floats du = grad_u<T>(values, load(grad + n * channels + c), load(a + c), load(b + c), silu);
    sum += du;
    sum_xhat += du * (values - load(mean + c));
  };
  all_token_means(size.tokens, channels, sums, mean_du, mean_du_xhat);
  for (long c = 0; c < channels; ++c) {
    mean_du_xhat[c] *= rstd[c];
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
      Floats du = grad_u<T>(values, load(grad + n * channels + c), va, load(b + c), silu);
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
