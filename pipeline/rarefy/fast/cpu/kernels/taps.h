// 3x3 convolutions to so few channels that Winograd's algorithm would mostly compute padding. The nine taps of all
// channels are the columns of one matrix, by which each row of pixels is multiplied; a pixel's result is the sum of
// nine numbers of its neighbours' products.
#pragma once
#include "conv.h"

struct Taps {
  static constexpr long MOST = 3, COUNT = 9;  // channels; taps
  static bool supports(Size size) { return size.out <= MOST && size.width >= ROWS; }
  static long columns(Size size) { return padded(COUNT * size.out); }
  static long weights(Size size) { return size.in * columns(size); }
  static long row(Size size) { return (size.width + 2) * columns(size); }  // a pixel of zeros at both ends
  static long own(Size size) { return 3 * row(size) + WIDTH; }
  static long floats(Size size, int threads) { return weights(size) + threads * own(size); }

  // To be called in a parallel region. scratch: panels of PANEL columns (the last may have WIDTH), each (in, columns);
  // the columns are the channels of the first tap, then of the second, and so on.
  static void prepare(Images images, float* scratch) {
    Size size = images.size;
#pragma omp for
    for (long k = 0; k < columns(size); k += WIDTH) {
      long panel = k / PANEL * PANEL, wide = std::min(PANEL, columns(size) - panel);
      for (long c = 0; c < size.in; ++c) {
        Floats weights{};
        for (long l = 0; l < WIDTH && k + l < COUNT * size.out; ++l)
          weights[l] = images.tap(c, (k + l) % size.out, (k + l) / size.out);
        store(scratch + panel * size.in + c * wide + (k - panel), weights);
      }
    }
  }

  static void run(Images images, const float* scratch, float* z) {
    Size size = images.size;
    long pixel = columns(size);
    for (long r = 0; r < 3; ++r) {
      std::fill_n(z + r * row(size), pixel, 0.0f);
      std::fill_n(z + (r + 1) * row(size) - pixel, pixel, 0.0f);
    }
    for (long image = 0; image < size.batch; ++image)
      for (long next = 0; next <= size.height; ++next) {  // z holds the products of three rows
        if (next < size.height)
          multiply_row(images, image * size.height + next, scratch, z + next % 3 * row(size));
        if (next > 0) sum_row(images, image, next - 1, z);
      }
  }

 private:
  // z: (width + 2, columns); everything except the two ends is written.
  static void multiply_row(Images images, long number, const float* u, float* z) {
    Size size = images.size;
    const float* x = images.x + number * size.width * size.in;
    long all = columns(size);
    for (long k = 0; k < all; k += PANEL)
      for (long n = 0; n < size.width; n += ROWS) {
        long from = std::min(n, size.width - ROWS);  // some pixels twice, instead of reading beyond the last
        (all - k >= PANEL ? multiply<2, ROWS> : multiply<1, ROWS>)(
            x + from * size.in, size.in, u + k * size.in, size.in, z + (from + 1) * all + k, all, ROWS, false);
      }
  }

  static void sum_row(Images images, long image, long number, const float* z) {
    Size size = images.size;
    long all = columns(size);
    Floats bias = images.bias ? load_some(images.bias, size.out) : Floats{};
    for (long column = 0; column < size.width; ++column) {
      Floats sum = bias;
      for (long i = std::max(0L, 1 - number); i < std::min(3L, size.height + 1 - number); ++i) {
        const float* left = z + (number + i + 2) % 3 * row(size) + column * all + 3 * i * size.out;
        for (long j = 0; j < 3; ++j) sum += load(left + j * (all + size.out));
      }
      long place = ((image * size.height + number) * size.width + column) * size.out;
      if (images.residual) sum += load_some(images.residual + place, size.out);
      store_some(images.y + place, sum, size.out);
    }
  }
};
