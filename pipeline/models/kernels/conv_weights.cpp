// The gradient of a 3x3 convolution with respect to its weights and bias, by Winograd's algorithm (winograd.h).
//
// The transformed input times the transformed gradient, summed over all tiles as 36 matrices, is the gradient of the
// transformed weights.
#include "winograd.h"

namespace {

constexpr long TILES = 24;               // at once, for the weights' gradient
constexpr long CHANNELS = ROWS * 2 / 3;  // of a block of it: a divisor of 16

// A y and G^T u of the paper, for one column.
inline void gradient_column(const Floats y[TILE], Floats z[SIDE]) {
  Floats even = y[0] + NEAR2 * y[2], odd = NEAR * y[1] + NEAR2 * NEAR * y[3];
  Floats even2 = y[0] + FAR2 * y[2], odd2 = FAR * y[1] + FAR2 * FAR * y[3];
  z[0] = y[0];
  z[1] = even + odd;
  z[2] = even - odd;
  z[3] = even2 + odd2;
  z[4] = even2 - odd2;
  z[5] = y[3];
}

inline void weight_back(const Floats u[SIDE], Floats g[3]) {
  constexpr float near = 1 / (2 * NEAR2 * (NEAR2 - FAR2)), far = 1 / (2 * FAR2 * (FAR2 - NEAR2));
  Floats even = u[1] + u[2], odd = u[1] - u[2], even2 = u[3] + u[4], odd2 = u[3] - u[4];
  g[0] = 1 / (NEAR2 * FAR2) * u[0] + near * even + far * even2;
  g[1] = near * NEAR * odd + far * FAR * odd2;
  g[2] = near * NEAR2 * even + far * FAR2 * even2 + u[5];
}

// z: (PLACES, TILES, part), of which this tile of the result's gradient is one row: A y A^T. Its sum is added to bias.
template <typename T>
void transform_gradient(const T* grad, Size size, Part part, long top, long left, float* z, float* bias) {
  for (long k = 0; k < part.count; k += WIDTH) {
    long channel = part.begin + k;
    Floats h[SIDE][TILE], sum{};
    for (long j = 0; j < TILE; ++j) {
      Floats y[TILE], column[SIDE];
      for (long i = 0; i < TILE; ++i) {
        bool there = top + i < size.height && left + j < size.width;
        const T* pixel = grad + ((top + i) * size.width + left + j) * size.out + channel;
        y[i] = there ? load_some(pixel, size.out - channel) : Floats{};
        sum += y[i];
      }
      gradient_column(y, column);
      for (long i = 0; i < SIDE; ++i) h[i][j] = column[i];
    }
    store(bias + k, load(bias + k) + sum);
    for (long i = 0; i < SIDE; ++i) {
      Floats row[SIDE];
      gradient_column(h[i], row);
      for (long j = 0; j < SIDE; ++j) store(z + (i * SIDE + j) * TILES * part.count + k, row[j]);
    }
  }
}

// u: (in, out) += v^T z over `tiles` rows, CHANNELS x VECTORS vectors of it at once in registers.
template <int VECTORS>
inline void add_products(const float* v, const float* z, long tiles, long in, long out, float* u) {
  for (long c = 0; c < in; c += CHANNELS) {
    Floats sums[CHANNELS][VECTORS];
#pragma GCC unroll 8
    for (long r = 0; r < CHANNELS; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] = load(u + (c + r) * out + j * WIDTH);
    for (long t = 0; t < tiles; ++t) {
      Floats row[VECTORS];
      for (int j = 0; j < VECTORS; ++j) row[j] = load(z + t * out + j * WIDTH);
#pragma GCC unroll 8
      for (long r = 0; r < CHANNELS; ++r)
        for (int j = 0; j < VECTORS; ++j) sums[r][j] += v[t * in + c + r] * row[j];
    }
#pragma GCC unroll 8
    for (long r = 0; r < CHANNELS; ++r)
      for (int j = 0; j < VECTORS; ++j) store(u + (c + r) * out + j * WIDTH, sums[r][j]);
  }
}

// Add what TILES tiles from `first` on give to u, (PLACES, in, part), and to the bias's gradient, (part,) behind it.
// v: scratch of PLACES * TILES * (in + part).
template <typename T>
void add_tiles(const T* x, const T* grad, Size size, Part part, long first, float* u, float* v) {
  long out = part.count, pixels = size.height * size.width, count = std::min(TILES, size.tiles() - first);
  float* z = v + PLACES * TILES * size.in;
  Needs needs(size, first, count);
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    (place.inside ? transform_input<true, T, float> : transform_input<false, T, float>)(
        x + place.image * pixels * size.in, size, place.top - 1, place.left - 1, v + r * size.in, TILES * size.in);
    transform_gradient(grad + place.image * pixels * size.out, size, part, place.top, place.left, z + r * out,
                       u + PLACES * size.in * out);
  }
  for (long p = 0; p < PLACES; ++p) {
    if (!needs(p)) continue;  // the gradient's part is zero
    const float *vp = v + p * TILES * size.in, *zp = z + p * TILES * out;
    float* up = u + p * size.in * out;
    long k = 0;
    for (; k + PANEL <= out; k += PANEL) add_products<2>(vp, zp + k, count, size.in, out, up + k);
    if (k < out) add_products<1>(vp, zp + k, count, size.in, out, up + k);
  }
}

// u: (PLACES, in, part) -> the weights' gradient, (out, 3, 3, in): G^T u G, for one input channel.
void transform_back(const float* u, Size size, Part part, long c, float* weight) {
  for (long k = 0; k < part.count; k += WIDTH) {
    long channel = part.begin + k;
    Floats h[3][SIDE];
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[3];
      for (long i = 0; i < SIDE; ++i) d[i] = load(u + ((i * SIDE + j) * size.in + c) * part.count + k);
      weight_back(d, column);
      for (long i = 0; i < 3; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < 3; ++i) {
      Floats row[3];
      weight_back(h[i], row);
      for (long j = 0; j < 3; ++j)
        for (long l = 0; l < std::min(WIDTH, size.out - channel); ++l)
          weight[(((channel + l) * 3 + i) * 3 + j) * size.in + c] = row[j][l];
    }
  }
}

template <typename T>
void weight_gradient(const T* x, const T* grad, float* weight, float* bias, Size size, float* scratch, int threads) {
  each_part(size, [&](Part part) {
    long sums = (PLACES * size.in + 1) * part.count, own = sums + PLACES * TILES * (size.in + part.count);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long thread = 0; thread < threads; ++thread)  // all of them: there may be fewer threads than were asked for
        std::fill_n(scratch + thread * own, sums, 0.0f);
      float* u = scratch + thread_number() * own;
#pragma omp for schedule(static)
      for (long first = 0; first < size.tiles(); first += TILES) add_tiles(x, grad, size, part, first, u, u + sums);
#pragma omp for schedule(static)
      for (long place = 0; place < sums; place += WIDTH)
        for (long other = 1; other < threads; ++other)
          store(scratch + place, load(scratch + place) + load(scratch + other * own + place));
#pragma omp for schedule(static)
      for (long c = 0; c < size.in; ++c) transform_back(scratch, size, part, c, weight);
    }
    std::copy_n(scratch + sums - part.count, std::min(part.count, size.out - part.begin), bias + part.begin);
  });
}

}  // namespace

// Floats that conv3x3_weights needs for itself.
extern "C" long conv3x3_weights_scratch(long in, long out, int threads) {
  long part = part_count(in, out);
  return threads * ((PLACES * in + 1) * part + PLACES * TILES * (in + part));
}

// The gradient with respect to weight, (out, 3, 3, in) float32, and bias. x and grad as x and y of conv3x3.
extern "C" void conv3x3_weights(bool reduced, const void* x, const void* grad, float* weight, float* bias, long batch,
                                long height, long width, long in, long out, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  if (reduced)
    weight_gradient((const bfloat16*)x, (const bfloat16*)grad, weight, bias, size, scratch, threads);
  else
    weight_gradient((const float*)x, (const float*)grad, weight, bias, size, scratch, threads);
}
