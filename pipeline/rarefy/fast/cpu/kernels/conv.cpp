// 3x3 convolutions (conv.h), plain and of normalised images (norm.h).
#include "norm.h"
#include "taps.h"

namespace {

constexpr long KEPT = 320 << 10;  // bytes of a group's images: what a core's cache holds

template <typename F, typename T>
long scratch_floats(Size size, int threads) {
  if (Taps<F, T>::take(size)) return Taps<F, T>::floats(size, threads);
  return size.tiles() <= Few<F>::MOST ? Few<F>::floats(size, threads) : Many<F>::floats(size, threads);
}

template <typename F, typename T>
void convolve(Images<T> images, float* scratch, int threads) {
  if (Taps<F, T>::take(images.size)) {
    auto work = [&](long begin, long count, float*, auto convolve) { convolve(images.some(begin, count)); };
    in_groups<Taps<F, T>>(images, 1, 0, scratch, threads, work);
  } else if (images.size.tiles() <= Few<F>::MOST) {
    Few<F>::convolve(images, scratch, threads);
  } else {
    Many<F>::convolve(images, scratch, threads);
  }
}

// Images that are normalised, convolved and left before the next: enough that their tiles fill blocks, in a number
// that leaves few blocks with tiles of several kinds. 0: all of them, step by step.
template <typename F, typename T>
long group_of(Size size, long image_bytes, int threads) {
  if (Taps<F, T>::take(size)) return 1;
  if (size.tiles() <= Few<F>::MOST || !Many<F>::in_one_part(size)) return 0;
  long tiles = size.tiles() / size.batch, group = std::max(KEPT / image_bytes, (ROWS + tiles - 1) / tiles);
  for (long multiple : {ROWS, 4L})
    if (group >= multiple) {
      group = group / multiple * multiple;
      break;
    }
  return threads > 1 && size.batch < threads * group ? 0 : group;
}

// With ROWS pixels more, which may be read.
template <typename T>
long kept_floats(long images, long image_bytes, long channels) {
  return (images * image_bytes + ROWS * channels * sizeof(T)) / 4;
}

// before(begin, count, kept, threads): the images to convolve, which read `kept` or are left there; after: the rest.
template <typename F, typename T, typename Before, typename After>
void convolve_around(Images<T> images, long kept_channels, float* scratch, int threads, Before before, After after) {
  Size size = images.size;
  long image = size.height * size.width * kept_channels * sizeof(T), group = group_of<F, T>(size, image, threads);
  if (!group) {
    float* kept = scratch + scratch_floats<F, T>(size, threads);
    convolve<F>(before(0, size.batch, (T*)kept, threads), scratch, threads);
    after(0, size.batch, (T*)kept, threads);
    return;
  }
  auto work = [&](long begin, long count, float* kept, auto convolve) {
    convolve(before(begin, count, (T*)kept, 1));
    after(begin, count, (T*)kept, 1);
  };
  long keep = kept_floats<T>(group, image, kept_channels);
  if (Taps<F, T>::take(size))
    in_groups<Taps<F, T>>(images, group, keep, scratch, threads, work);
  else
    in_groups<Many<F>>(images, group, keep, scratch, threads, work);
}

template <typename F, typename T>
long scratch_around(Size size, long kept_channels, int threads) {
  long image = size.height * size.width * kept_channels * sizeof(T), group = group_of<F, T>(size, image, threads);
  long kept = kept_floats<T>(group ? group : size.batch, image, kept_channels);
  return scratch_floats<F, T>(size, threads) + (group ? threads : 1) * kept;
}

// A 1x1 convolution of the same images, into y. weight: (out, channels); u: it as panels, `floats` of them.
template <typename F, typename T>
struct Skip {
  const T* weight;
  const float* bias;
  T* y;
  long channels, out;
  F* u;
  static long floats(long channels, long out) { return channels * out / DEPTH<F>; }

  void pack() const {
    for (long k = 0; k < out; k += WIDTH)
      for (long c = 0; c < channels; c += DEPTH<F>) {
        Floats weights[DEPTH<F>];
        for (long d = 0; d < DEPTH<F>; ++d)
          for (long l = 0; l < WIDTH; ++l) weights[d][l] = value(weight[(k + l) * channels + c + d]);
        store_weights(u + k / PANEL * PANEL * channels + (c * PANEL + k % PANEL * DEPTH<F>), weights);
      }
  }

  // x: `tokens` pixels, with ROWS that may be read behind them; first: the number of the first.
  void run(const T* x, long first, long tokens) const {
    std::vector<F> converted(sizeof(T) == sizeof(F) ? 0 : (tokens + ROWS) * channels);
    const F* rows = converted.data();
    if constexpr (sizeof(T) == sizeof(F))
      rows = (const F*)x;
    else
      for (long i = 0; i < tokens * channels; ++i) converted[i] = value(x[i]);
    float m[ROWS * PANEL];
    for (long k = 0; k < out; k += PANEL)
      for (long n = 0; n < tokens; n += ROWS) {
        long count = std::min(ROWS, tokens - n);
        multiply<2>(rows + n * channels, channels, u + k * channels, channels, m, PANEL, count);
        for (long r = 0; r < count; ++r)
          for (long c = 0; c < PANEL; c += WIDTH)
            store(y + (first + n + r) * out + k + c, load(m + r * PANEL + c) + load(bias + k + c));
      }
  }
};

// A normalised image: of one array's channels, or of two arrays' side by side, the first perhaps of half the height
// and width, its pixels twice as high and wide.
template <typename F, typename T>
struct Normalised {
  const T *first, *second;  // (batch, its tokens, first_channels) and the channels behind them, or none
  long batch, height, width, first_channels;
  bool half;
  Layer layer;
  const float *weight, *bias, *scale, *shift;
  float* statistics;
  const Skip<F, T>* skip;  // or none

  void write(long begin, long count, T* y, int threads) const {
    long channels = layer.channels, image = layer.tokens * channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = begin; i < begin + count; ++i) {
      T* to = y + (i - begin) * image;
      const T* from = to;
      if (second || skip)
        copy(i, to);
      else
        from = first + i * image;
      if (skip) skip->run(to, i * layer.tokens, layer.tokens);
      long row = i * channels;
      normalise(from, to, layer, weight, bias, scale ? scale + row : nullptr, shift ? shift + row : nullptr,
                statistics_of(statistics, i, batch, channels));
    }
  }

  void copy(long i, T* to) const {
    long shrink = half ? 2 : 1, rest = layer.channels - first_channels;
    const T* from = first + i * layer.tokens / (shrink * shrink) * first_channels;
    const T* other = second ? second + i * layer.tokens * rest : first;
    for (long row = 0; row < height; ++row)
      for (long column = 0; column < width; ++column, to += layer.channels, other += rest) {
        long place = row / shrink * (width / shrink) + column / shrink;
        std::memcpy(to, from + place * first_channels, first_channels * sizeof(T));
        std::memcpy(to + first_channels, other, rest * sizeof(T));
      }
  }
};

// between: where the normalised images are left, or none.
template <typename F, typename T>
void norm_conv(Normalised<F, T> normalised, Images<T> images, T* between, float* scratch, int threads) {
  auto before = [&](long begin, long count, T* kept, int threads) {
    T* to = between ? between + begin * normalised.layer.tokens * normalised.layer.channels : kept;
    normalised.write(begin, count, to, threads);
    Images<T> some = images.some(begin, count);
    some.x = to;
    return some;
  };
  convolve_around<F>(images, images.size.in, scratch, threads, before, [](long, long, T*, int) {});
}

template <typename F, typename T>
void norm_conv_back(const T* x, Layer layer, float* statistics, Images<T> images, float* means, float* scratch,
                    int threads) {
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
      Statistics s = statistics_of(statistics, i, batch, layer.channels);
      normalise_back(x + i * image, kept + (i - begin) * image, grad_x + i * image, layer, s.a, s.b, s.mean, s.rstd,
                     statistics_of(means, i, batch, layer.channels));
    }
  };
  convolve_around<F>(images, images.size.out, scratch, threads, before, after);
}

}  // namespace

// Floats that conv3x3 needs for itself.
extern "C" long conv3x3_scratch(bool reduced, long batch, long height, long width, long in, long out, int threads) {
  Size size{batch, height, width, in, out};
  return reduced ? scratch_floats<Factor, bfloat16>(size, threads) : scratch_floats<float, float>(size, threads);
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

// Floats that the two below need for themselves; kept_channels: those of the normalised image, in or out; skip: those
// of the 1x1 convolution's result, or 0.
extern "C" long norm_conv3x3_scratch(bool reduced, long batch, long height, long width, long in, long out,
                                     long kept_channels, long skip, int threads) {
  Size size{batch, height, width, in, out};
  return reduced ? scratch_around<Factor, bfloat16>(size, kept_channels, threads) +
                       Skip<Factor, bfloat16>::floats(in, skip)
                 : scratch_around<float, float>(size, kept_channels, threads) + Skip<float, float>::floats(in, skip);
}

// conv3x3 of SiLU(normalised). first: (batch, height, width, first_channels), or half as high and wide; second: the
// channels behind them, or none; statistics: (4, batch, in), written: a, b, mean, 1 / deviation. skip_y: (..., out),
// written: a 1x1 convolution of what is normalised, by skip_weight, (out, in), and skip_bias; or none. between:
// (..., in), written: what is convolved; or none, as always with a 1x1 convolution.
extern "C" void norm_conv3x3(bool reduced, const void* first, const void* second, long first_channels, bool half,
                             long groups, const float* norm_weight, const float* norm_bias, const float* scale,
                             const float* shift, float* statistics, const void* skip_weight, const float* skip_bias,
                             void* skip_y, void* between, const void* weight, const float* bias, const void* residual,
                             void* y, long batch, long height, long width, long in, long out, float* scratch,
                             int threads) {
  Size size{batch, height, width, in, out};
  auto run = [&](auto type, auto factor) {
    typedef decltype(type) T;
    typedef decltype(factor) F;
    Skip<F, T> skip{(const T*)skip_weight, skip_bias, (T*)skip_y, in, out,
                    (F*)(scratch + scratch_around<F, T>(size, in, threads))};
    if (skip_y) skip.pack();
    Normalised<F, T> normalised{(const T*)first, (const T*)second, batch, height, width, first_channels, half,
                                {height * width, in, groups, true}, norm_weight, norm_bias, scale, shift, statistics,
                                skip_y ? &skip : nullptr};
    Images<T> images{(const T*)first, (const T*)weight, bias, (const T*)residual, (T*)y, size, false};
    norm_conv<F>(normalised, images, (T*)between, scratch, threads);
  };
  reduced ? run(bfloat16{}, Factor{}) : run(0.0f, 0.0f);
}

// The gradient with respect to `x`, (batch, height, width, out), which was one array. grad: (..., in). means: as those
// of norm_backward.
extern "C" void norm_conv3x3_backward(bool reduced, const void* x, float* statistics, long groups, const void* weight,
                                      const void* grad, void* grad_x, float* means, long batch, long height, long width,
                                      long in, long out, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  auto run = [&](auto type, auto factor) {
    typedef decltype(type) T;
    Images<T> images{(const T*)grad, (const T*)weight, nullptr, nullptr, (T*)grad_x, size, true};
    norm_conv_back<decltype(factor)>((const T*)x, {height * width, out, groups, true}, statistics, images, means,
                                     scratch, threads);
  };
  reduced ? run(bfloat16{}, Factor{}) : run(0.0f, 0.0f);
}
