// Group normalisation with scale, shift and SiLU over (batch, tokens, channels) images, and its gradient (norm.h).
//
// Each image is computed by one thread, so that results do not depend on the number of threads.
#include "norm.h"

namespace {

template <typename T>
void all_forward(const T* x, T* y, long batch, Layer layer, const float* weight, const float* bias, const float* scale,
                 const float* shift, float* statistics, int threads) {
  long image = layer.tokens * layer.channels;
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < batch; ++i) {
    long row = i * layer.channels;
    normalise(x + i * image, y + i * image, layer, weight, bias, scale ? scale + row : nullptr,
              shift ? shift + row : nullptr, statistics_of(statistics, i, batch, layer.channels));
  }
}

template <typename T>
void all_backward(const T* x, const T* grad, T* grad_x, long batch, Layer layer, const float* a, const float* b,
                  const float* mean, const float* rstd, float* means, int threads) {
  long image = layer.tokens * layer.channels;
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < batch; ++i) {
    long row = i * layer.channels;
    normalise_back(x + i * image, grad + i * image, grad_x + i * image, layer, a + row, b + row, mean + row, rstd + row,
                   statistics_of(means, i, batch, layer.channels));
  }
}

}  // namespace

// statistics: (4, batch, channels), written: a, b, mean, 1 / deviation. reduced: whether x and y are bfloat16.
extern "C" void norm_forward(bool reduced, const void* x, void* y, long batch, long tokens, long channels, long groups,
                             const float* weight, const float* bias, const float* scale, const float* shift, bool silu,
                             float* statistics, int threads) {
  Layer layer{tokens, channels, groups, silu};
  if (reduced)
    all_forward((const bfloat16*)x, (bfloat16*)y, batch, layer, weight, bias, scale, shift, statistics, threads);
  else
    all_forward((const float*)x, (float*)y, batch, layer, weight, bias, scale, shift, statistics, threads);
}

// means: (4, batch, channels), written: means over the tokens of du and du * x_hat, and two intermediate results.
extern "C" void norm_backward(bool reduced, const void* x, const void* grad, void* grad_x, long batch, long tokens,
                              long channels, long groups, const float* a, const float* b, const float* mean,
                              const float* rstd, bool silu, float* means, int threads) {
  Layer layer{tokens, channels, groups, silu};
  if (reduced)
    all_backward((const bfloat16*)x, (const bfloat16*)grad, (bfloat16*)grad_x, batch, layer, a, b, mean, rstd,
                 means, threads);
  else
    all_backward((const float*)x, (const float*)grad, (float*)grad_x, batch, layer, a, b, mean, rstd, means, threads);
}
