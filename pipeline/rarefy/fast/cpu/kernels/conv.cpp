// 3x3 convolutions (conv.h), plain and of normalised images (norm.h).
#include "norm.h"
#include "taps.h"

namespace {

constexpr long KEPT = 320 << 10;  // bytes of a group's images that fit a core's cache

long scratch_floats(Size size, int threads) {
  if (Taps::supports(size)) return Taps::floats(size, threads);
  return size.tiles() <= Few::MOST ? Few::floats(size, threads) : Many::floats(size, threads);
}

void convolve(Images images, float* scratch, int threads) {
  if (Taps::supports(images.size)) {
    auto work = [&](long begin, long count, float*, auto convolve) { convolve(images.some(begin, count)); };
    in_groups<Taps>(images, 1, 0, scratch, threads, work);
  } else if (images.size.tiles() <= Few::MOST) {
    Few::convolve(images, scratch, threads);
  } else {
    Many::convolve(images, scratch, threads);
  }
}

// How many images are normalised and convolved before the next group: enough that their tiles fill blocks, and a number
// for which few blocks mix tiles of several kinds. 0 means all images at once, one step after the other.
long group_of(Size size, long image_bytes, int threads) {
  if (Taps::supports(size)) return 1;
  if (size.tiles() <= Few::MOST || !Many::in_one_part(size)) return 0;
  long tiles = size.tiles() / size.batch, group = std::max(KEPT / image_bytes, (ROWS + tiles - 1) / tiles);
  for (long multiple : {ROWS, 4L})
    if (group >= multiple) {
      group = group / multiple * multiple;
      break;
    }
  return threads > 1 && size.batch < threads * group ? 0 : group;
}

// ROWS more pixels may be read.
long kept_floats(long images, Size size, long channels) {
  return (images * size.height * size.width + ROWS) * channels;
}

long group_around(Size size, long kept_channels, int threads) {
  return group_of(size, size.height * size.width * kept_channels * sizeof(float), threads);
}

// Convolve, in groups if these fit the cache. before(begin, count, kept, threads) returns the images to convolve, which
// are read from `kept` or written there; after(...) does what follows.
template <typename Before, typename After>
void convolve_around(Images images, long kept_channels, float* scratch, int threads, Before before, After after) {
  Size size = images.size;
  long group = group_around(size, kept_channels, threads);
  if (!group) {
    float* kept = scratch + scratch_floats(size, threads);
    convolve(before(0, size.batch, kept, threads), scratch, threads);
    after(0, size.batch, kept, threads);
    return;
  }
  auto work = [&](long begin, long count, float* kept, auto convolve) {
    convolve(before(begin, count, kept, 1));
    after(begin, count, kept, 1);
  };
  long keep = kept_floats(group, size, kept_channels);
  if (Taps::supports(size))
    in_groups<Taps>(images, group, keep, scratch, threads, work);
  else
    in_groups<Many>(images, group, keep, scratch, threads, work);
}

long scratch_around(Size size, long kept_channels, int threads) {
  long group = group_around(size, kept_channels, threads);
  long kept = kept_floats(group ? group : size.batch, size, kept_channels);
  return scratch_floats(size, threads) + (group ? threads : 1) * kept;
}

// A 1x1 convolution of the same images, into y. weight: (out, channels); u: the same in panels, channels * out floats.
struct Skip {
  const float *weight, *bias;
  float* y;
  long channels, out;
  float* u;

  void pack() const {
    for (long k = 0; k < out; ++k)
      for (long c = 0; c < channels; ++c)
        u[k / PANEL * PANEL * channels + c * PANEL + k % PANEL] = weight[k * channels + c];
  }

  // x: `tokens` pixels, after which ROWS more may be read; first: the number of the first pixel.
  void run(const float* x, long first, long tokens) const {
    float m[ROWS * PANEL];
    for (long k = 0; k < out; k += PANEL)
      for (long n = 0; n < tokens; n += ROWS) {
        long count = std::min(ROWS, tokens - n);
        multiply<2>(x + n * channels, channels, u + k * channels, channels, m, PANEL, count);
        for (long r = 0; r < count; ++r)
          for (long c = 0; c < PANEL; c += WIDTH)
            store(y + (first + n + r) * out + k + c, load(m + r * PANEL + c) + load(bias + k + c));
      }
  }
};

// Images to normalise: one array, or two whose channels are concatenated; the first may have half the height and width
// and is then upsampled.
struct Normalised {
  const float *first, *second;  // (batch, tokens, first_channels) and the remaining channels, or null
  long batch, height, width, first_channels;
  bool half;
  Layer layer;
  const float *weight, *bias, *scale, *shift;
  float* statistics;
  const Skip* skip;  // or null

  void write(long begin, long count, float* y, int threads) const {
    long channels = layer.channels, image = layer.tokens * channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = begin; i < begin + count; ++i) {
      float* to = y + (i - begin) * image;
      const float* from = to;
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

  void copy(long i, float* to) const {
    long shrink = half ? 2 : 1, rest = layer.channels - first_channels;
    const float* from = first + i * layer.tokens / (shrink * shrink) * first_channels;
    const float* other = second ? second + i * layer.tokens * rest : first;
    for (long row = 0; row < height; ++row)
      for (long column = 0; column < width; ++column, to += layer.channels, other += rest) {
        long place = row / shrink * (width / shrink) + column / shrink;
        std::memcpy(to, from + place * first_channels, first_channels * sizeof(float));
        std::memcpy(to + first_channels, other, rest * sizeof(float));
      }
  }
};

}  // namespace

// Floats of scratch memory for conv3x3.
extern "C" long conv3x3_scratch(long batch, long height, long width, long in, long out, int threads) {
  return scratch_floats({batch, height, width, in, out}, threads);
}

// x: (batch, height, width, in), with `in` a multiple of the vector's width; y: (..., out); weight: (out, 3, 3, in), or
// (in, 3, 3, out) if turned, for the gradient with respect to the image; bias: (out,) or null; residual: added, like y,
// or null.
extern "C" void conv3x3(const float* x, const float* weight, const float* bias, const float* residual, float* y,
                        long batch, long height, long width, long in, long out, bool turned, float* scratch,
                        int threads) {
  convolve({x, weight, bias, residual, y, {batch, height, width, in, out}, turned}, scratch, threads);
}

// Floats of scratch memory for the two functions below. kept_channels: channels of the normalised image, `in` or `out`;
// skip: channels of the 1x1 convolution's result, or 0.
extern "C" long norm_conv3x3_scratch(long batch, long height, long width, long in, long out, long kept_channels,
                                     long skip, int threads) {
  return scratch_around({batch, height, width, in, out}, kept_channels, threads) + in * skip;
}

// conv3x3 of SiLU(normalised). first: (batch, height, width, first_channels), or of half the height and width; second:
// the remaining channels, or null; statistics: (4, batch, in), written: a, b, mean, 1 / deviation. skip_y: (..., out),
// written: a 1x1 convolution of the image before normalisation, by skip_weight, (out, in), and skip_bias; or null.
// between: (..., in), written: the normalised image; or null, as always with a 1x1 convolution.
extern "C" void norm_conv3x3(const float* first, const float* second, long first_channels, bool half, long groups,
                             const float* norm_weight, const float* norm_bias, const float* scale, const float* shift,
                             float* statistics, const float* skip_weight, const float* skip_bias, float* skip_y,
                             float* between, const float* weight, const float* bias, const float* residual, float* y,
                             long batch, long height, long width, long in, long out, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  Skip skip{skip_weight, skip_bias, skip_y, in, out, scratch + scratch_around(size, in, threads)};
  if (skip_y) skip.pack();
  Normalised normalised{first, second, batch, height, width, first_channels, half, {height * width, in, groups, true},
                        norm_weight, norm_bias, scale, shift, statistics, skip_y ? &skip : nullptr};
  Images images{first, weight, bias, residual, y, size, false};
  auto before = [&](long begin, long count, float* kept, int threads) {
    float* to = between ? between + begin * height * width * in : kept;
    normalised.write(begin, count, to, threads);
    Images some = images.some(begin, count);
    some.x = to;
    return some;
  };
  convolve_around(images, in, scratch, threads, before, [](long, long, float*, int) {});
}

// The gradient with respect to x, (batch, height, width, out), a single array. grad: (..., in). means: as for
// norm_backward.
extern "C" void norm_conv3x3_backward(const float* x, float* statistics, long groups, const float* weight,
                                      const float* grad, float* grad_x, float* means, long batch, long height,
                                      long width, long in, long out, float* scratch, int threads) {
  Layer layer{height * width, out, groups, true};
  Images images{grad, weight, nullptr, nullptr, grad_x, {batch, height, width, in, out}, true};
  long image = layer.tokens * layer.channels;
  auto before = [&](long begin, long count, float* kept, int) {
    Images some = images.some(begin, count);
    some.y = kept;
    return some;
  };
  auto after = [&](long begin, long count, float* kept, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = begin; i < begin + count; ++i) {
      Statistics s = statistics_of(statistics, i, batch, out);
      normalise_back(x + i * image, kept + (i - begin) * image, grad_x + i * image, layer, s.a, s.b, s.mean, s.rstd,
                     statistics_of(means, i, batch, out));
    }
  };
  convolve_around(images, out, scratch, threads, before, after);
}
