// Group normalisation with scale, shift and SiLU of one (tokens, channels) image, and its gradient.
//
// Passes over an image that stays in the cache: sums for the statistics, then y = f(a x + b). The number of channels is
// a multiple of WIDTH, since there are 32 groups.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

constexpr float EPS = 1e-5f;
constexpr long RUN = 128;  // tokens summed in one accumulator, so that rounding does not grow with the image

struct Layer {
  long tokens, channels, groups;
  bool silu;
};

// Per channel of one image: a and b of y = f(a x + b), and its group's mean and 1 / deviation.
struct Statistics {
  float *a, *b, *mean, *rstd;
};

// The statistics of one image in (4, batch, channels).
inline Statistics statistics_of(float* all, long image, long batch, long channels) {
  float* first = all + image * channels;
  long part = batch * channels;
  return {first, first + part, first + 2 * part, first + 3 * part};
}

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

// Replace each channel's value by the mean over its group.
inline void group_mean(float* values, long channels, long groups) {
  long size = channels / groups;
  for (long begin = 0; begin < channels; begin += size) {
    float sum = 0;
    for (long c = begin; c < begin + size; ++c) sum += values[c];
    for (long c = begin; c < begin + size; ++c) values[c] = sum / size;
  }
}

// Per channel: the mean of its group, and the mean squared distance of its tokens from that.
template <typename T>
void channel_moments(const T* x, Layer layer, float* mean, float* squares) {
  long channels = layer.channels;
  if (ROUGH<T>) {  // in one pass, from distances to the first token
    auto values = [&](long n, long c, Floats& sum, Floats& square) {
      Floats distance = load(x + n * channels + c) - load(x + c);
      sum += distance;
      square += distance * distance;
    };
    all_token_means(layer.tokens, channels, values, mean, squares);
    for (long c = 0; c < channels; c += WIDTH) {
      Floats shift = load(mean + c);
      Floats square = load(squares + c) - shift * shift;
      store(squares + c, square > 0.0f ? square : Floats{});
      store(mean + c, shift + load(x + c));
    }
    std::vector<float> own(mean, mean + channels);
    group_mean(mean, channels, layer.groups);
    for (long c = 0; c < channels; ++c) squares[c] += (own[c] - mean[c]) * (own[c] - mean[c]);
    return;
  }
  auto values = [&](long n, long c, Floats& sum, Floats&) { sum += load(x + n * channels + c); };
  all_token_means(layer.tokens, channels, values, mean, nullptr);
  group_mean(mean, channels, layer.groups);
  auto distances = [&](long n, long c, Floats& sum, Floats&) {
    Floats distance = load(x + n * channels + c) - load(mean + c);
    sum += distance * distance;
  };
  all_token_means(layer.tokens, channels, distances, squares, nullptr);
}

// y may be x.
template <typename T>
void normalise(const T* x, T* y, Layer layer, const float* weight, const float* bias, const float* scale,
               const float* shift, Statistics to) {
  long channels = layer.channels;
  channel_moments(x, layer, to.mean, to.rstd);
  group_mean(to.rstd, channels, layer.groups);
  for (long c = 0; c < channels; ++c) {
    float factor = scale ? 1 + scale[c] : 1;
    to.rstd[c] = 1 / std::sqrt(to.rstd[c] + EPS);
    to.a[c] = to.rstd[c] * weight[c] * factor;
    to.b[c] = bias[c] * factor - to.mean[c] * to.a[c] + (shift ? shift[c] : 0);
  }
  for (long n = 0; n < layer.tokens; ++n)
    for (long c = 0; c < channels; c += WIDTH) {
      Floats u = load(x + n * channels + c) * load(to.a + c) + load(to.b + c);
      store(y + n * channels + c, layer.silu ? u * sigmoid<T>(u) : u);
    }
}

// Gradient before f, at u = a x + b.
template <typename T>
inline Floats grad_u(Floats values, Floats grad, Floats a, Floats b, bool silu) {
  if (!silu) return grad;
  Floats u = values * a + b, s = sigmoid<T>(u);
  return grad * s * (1.0f + u * (1.0f - s));
}

// means: (channels,) each, written: means over the tokens of du and du * x_hat, and two intermediate results.
template <typename T>
void normalise_back(const T* x, const T* grad, T* grad_x, Layer layer, const float* a, const float* b,
                    const float* mean, const float* rstd, Statistics means) {
  long channels = layer.channels;
  auto [mean_du, mean_du_xhat, offset, slope] = means;
  auto sums = [&](long n, long c, Floats& sum, Floats& sum_xhat) {
    Floats values = load(x + n * channels + c);
    Floats du = grad_u<T>(values, load(grad + n * channels + c), load(a + c), load(b + c), layer.silu);
    store(grad_x + n * channels + c, du);  // so that the last pass needs no exponential
    sum += du;
    sum_xhat += du * (values - load(mean + c));
  };
  all_token_means(layer.tokens, channels, sums, mean_du, mean_du_xhat);
  for (long c = 0; c < channels; ++c) {
    mean_du_xhat[c] *= rstd[c];
    float gain = a[c] / rstd[c];
    offset[c] = mean_du[c] * gain;
    slope[c] = mean_du_xhat[c] * gain;
  }
  group_mean(offset, channels, layer.groups);
  group_mean(slope, channels, layer.groups);
  for (long c = 0; c < channels; ++c) {
    slope[c] *= -rstd[c] * rstd[c];
    offset[c] = -rstd[c] * offset[c] - slope[c] * mean[c];
  }
  for (long n = 0; n < layer.tokens; ++n)
    for (long c = 0; c < channels; c += WIDTH) {
      Floats values = load(x + n * channels + c), du = load(grad_x + n * channels + c);
      store(grad_x + n * channels + c, du * load(a + c) + load(offset + c) + load(slope + c) * values);
    }
}
