// 3x3 convolutions (conv.h), plain and of normalised images (norm.h).
#include "conv.h"
#include "norm.h"

namespace {

constexpr long KEPT = 320 << 10;  // bytes of a group's images: what a core's cache holds

// Images that are normalised, convolved and left before the next: enough that their tiles fill blocks, in a number
// that leaves few blocks with tiles of several kinds. 0: all of them, step by step.
template <typename F>
long group_of(Size size, long image_bytes, int threads) {
  if (size.tiles() <= Few<F>::MOST || !Many<F>::in_one_part(size)) return 0;
  long tiles = size.tiles() / size.batch, group = std::max(KEPT / image_bytes, (ROWS + tiles - 1) / tiles);
  for (long multiple : {ROWS, 4L})
    if (group >= multiple) {
      group = group / multiple * multiple;
      break;
    }
  return threads > 1 && size.batch < threads * group ? 0 : group;
}

// before(begin, count, kept, threads): the images to convolve, which read `kept` or are left there; after: what follows.
template <typename F, typename T, typename Before, typename After>
void convolve_around(Images<T> images, long kept_channels, float* scratch, int threads, Before before, After after) {
  Size size = images.size;
  long image = size.height * size.width * kept_channels * sizeof(T), group = group_of<F>(size, image, threads);
  if (!group) {
    float* kept = scratch + scratch_floats<F>(size, threads);
    convolve<F>(before(0, size.batch, (T*)kept, threads), scratch, threads);
    after(0, size.batch, (T*)kept, threads);
    return;
  }
  Many<F>::in_groups(images, group, group * image / 4, scratch, threads,
                     [&](long begin, long count, float* kept, auto convolve) {
                       convolve(before(begin, count, (T*)kept, 1));
                       after(begin, count, (T*)kept, 1);
                     });
}

template <typename F, typename T>
long scratch_around(Size size, long kept_channels, int threads) {
  long image = size.height * size.width * kept_channels * sizeof(T), group = group_of<F>(size, image, threads);
  return scratch_floats<F>(size, threads) + (group ? threads * group : size.batch) * image / 4;
}

// A normalised image: of one array's channels, or of two arrays' side by side.
template <typename T>
struct Normalised {
  const T *first, *second;  // (batch, tokens, first_channels) and the channels behind them, or none
  long batch, first_channels;
  Layer layer;
  const float *weight, *bias, *scale, *shift;
  float* statistics;

  void write(long begin, long count, T* y, int threads) const {
    long channels = layer.channels, rest = channels - first_channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = begin; i < begin + count; ++i) {
      long row = i * channels;
      T* to = y + (i - begin) * layer.tokens * channels;
      const T* from = first + i * layer.tokens * first_channels;
      if (second) {
        const T* other = second + i * layer.tokens * rest;
        for (long n = 0; n < layer.tokens; ++n) {
          std::memcpy(to + n * channels, from + n * first_channels, first_channels * sizeof(T));
          std::memcpy(to + n * channels + first_channels, other + n * rest, rest * sizeof(T));
        }
        from = to;
      }
      normalise(from, to, layer, weight, bias, scale ? scale + row : nullptr, shift ? shift + row : nullptr,
                statistics_of(statistics, i, batch, channels));
    }
  }
};

template <typename F, typename T>
void norm_conv(Normalised<T> normalised, Images<T> images, float* scratch, int threads) {
  auto before = [&](long begin, long count, T* kept, int threads) {
    normalised.write(begin, count, kept, threads);
    Images<T> some = images.some(begin, count);
    some.x = kept;
    return some;
  };
  convolve_around<F>(images, images.size.in, scratch, threads, before, [](long, long, T*, int) {});
}

template <typename F, typename T>
void norm_conv_back(const T* x, Layer layer, float* statistics, Images<T> images, float* scratch, int threads) {
  T* grad_x = images.y;
  long image = layer.tokens * layer.channels, batch = images.size.batch;
  auto before = [&](long begin, long count, T* kept, int) {
    Images<T> some = images.some(begin, count);
    some.y = kept;
    return some;
  };
  auto after = [&](long begin, long count, T* kept, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = begin; i < begin + count; ++i) {
      std::vector<float> means(4 * layer.channels);
      Statistics s = statistics_of(statistics, i, batch, layer.channels);
      normalise_back(x + i * image, kept + (i - begin) * image, grad_x + i * image, layer, s.a, s.b, s.mean, s.rstd,
                     statistics_of(means.data(), 0, 1, layer.channels));
    }
  };
  convolve_around<F>(images, images.size.out, scratch, threads, before, after);
}

}  // namespace

// Floats that conv3x3 needs for itself.
extern "C" long conv3x3_scratch(bool reduced, long batch, long height, long width, long in, long out, int threads) {
  Size size{batch, height, width, in, out};
  return reduced ? scratch_floats<Factor>(size, threads) : scratch_floats<float>(size, threads);
}

// x: (batch, height, width, in), in a multiple of the vector's width; y: (..., out); weight: (out, 3, 3, in), or turned
// (in, 3, 3, out) for the gradient with respect to the image; bias: (out,) or none; residual: what is added, like y, or
// none. reduced: whether they are bfloat16, but for the bias.
extern "C" void conv3x3(bool reduced, const void* x, const void* weight, const float* bias, const void* residual,
                        void* y, long batch, long height, long width, long in, long out, bool turned, float* scratch,
                        int threads) {
  Size size{batch, height, width, in, out};
  if (reduced)
    convolve<Factor>(Images<bfloat16>{(const bfloat16*)x, (const bfloat16*)weight, bias, (const bfloat16*)residual,
                                      (bfloat16*)y, size, turned},
                     scratch, threads);
  else
    convolve<float>(Images<float>{(const float*)x, (const float*)weight, bias, (const float*)residual, (float*)y, size,
                                  turned},
                    scratch, threads);
}

// Floats that the two below need for themselves; kept_channels: those of the normalised image, in or out.
extern "C" long norm_conv3x3_scratch(bool reduced, long batch, long height, long width, long in, long out,
                                     long kept_channels, int threads) {
  Size size{batch, height, width, in, out};
  return reduced ? scratch_around<Factor, bfloat16>(size, kept_channels, threads)
                 : scratch_around<float, float>(size, kept_channels, threads);
}

// conv3x3 of SiLU(normalised). first: (batch, height, width, first_channels), second: the channels behind them, or
// none; statistics: (4, batch, in), written: a, b, mean, 1 / deviation.
extern "C" void norm_conv3x3(bool reduced, const void* first, const void* second, long first_channels, long groups,
                             const float* norm_weight, const float* norm_bias, const float* scale, const float* shift,
                             float* statistics, const void* weight, const float* bias, const void* residual, void* y,
                             long batch, long height, long width, long in, long out, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  auto run = [&](auto type, auto factor) {
    typedef decltype(type) T;
    Normalised<T> normalised{(const T*)first, (const T*)second, batch, first_channels,
                             {height * width, in, groups, true}, norm_weight, norm_bias, scale, shift, statistics};
    Images<T> images{(const T*)first, (const T*)weight, bias, (const T*)residual, (T*)y, size, false};
    norm_conv<decltype(factor)>(normalised, images, scratch, threads);
  };
  reduced ? run(bfloat16{}, Factor{}) : run(0.0f, 0.0f);
}

// The gradient with respect to `x`, (batch, height, width, out), which was one array. grad: (..., in).
extern "C" void norm_conv3x3_backward(bool reduced, const void* x, float* statistics, long groups, const void* weight,
                                      const void* grad, void* grad_x, long batch, long height, long width, long in,
                                      long out, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  auto run = [&](auto type, auto factor) {
    typedef decltype(type) T;
    Images<T> images{(const T*)grad, (const T*)weight, nullptr, nullptr, (T*)grad_x, size, true};
    norm_conv_back<decltype(factor)>((const T*)x, {height * width, out, groups, true}, statistics, images, scratch,
                                     threads);
  };
  reduced ? run(bfloat16{}, Factor{}) : run(0.0f, 0.0f);
}
