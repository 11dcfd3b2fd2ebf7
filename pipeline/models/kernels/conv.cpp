// 3x3 convolutions of stride 1 and padding 1 over channels-last images, by Winograd's algorithm F(4x4, 3x3).
//
// Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): each 4x4 tile of the output costs 36 products
// a pair of channels instead of 144. Tiles of input and weights are transformed, multiplied as 36 matrices, and
// transformed back, in float32 whatever the images are. A tile's result depends on nothing but its input, so it is the
// same in any batch and with any number of threads.
#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

namespace {

constexpr long TILE = 4, SIDE = 6, PLACES = SIDE * SIDE, PANEL = 2 * WIDTH;
constexpr long TILES = 24;               // at once, for the weights' gradient
constexpr long CHANNELS = ROWS * 2 / 3;  // of a block of it: a divisor of 16

long padded(long channels) { return (channels + WIDTH - 1) / WIDTH * WIDTH; }

struct Size {
  long batch, height, width, in, out;
  long across() const { return (width + TILE - 1) / TILE; }
  long down() const { return (height + TILE - 1) / TILE; }
  long tiles() const { return batch * across() * down(); }
};

// B^T d, A^T m, A y, G^T u and G g of the paper, for one column.
inline void input_column(const Floats d[SIDE], Floats v[SIDE]) {
  Floats p = d[4] - 4.0f * d[2], q = d[3] - 4.0f * d[1], r = d[4] - d[2], s = 2.0f * (d[3] - d[1]);
  v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  v[1] = p + q;
  v[2] = p - q;
  v[3] = r + s;
  v[4] = r - s;
  v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

inline void output_column(const Floats m[SIDE], Floats y[TILE]) {
  Floats even = m[1] + m[2], odd = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
  y[0] = m[0] + even + even2;
  y[1] = odd + 2.0f * odd2;
  y[2] = even + 4.0f * even2;
  y[3] = odd + 8.0f * odd2 + m[5];
}

inline void gradient_column(const Floats y[TILE], Floats z[SIDE]) {
  Floats even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4.0f * y[2], odd2 = 2.0f * y[1] + 8.0f * y[3];
  z[0] = y[0];
  z[1] = even + odd;
  z[2] = even - odd;
  z[3] = even2 + odd2;
  z[4] = even2 - odd2;
  z[5] = y[3];
}

inline void weight_back(const Floats u[SIDE], Floats g[3]) {
  Floats near = (-1 / 6.0f) * (u[1] + u[2]), far = u[3] + u[4];
  g[0] = 0.25f * u[0] + near + (1 / 24.0f) * far;
  g[1] = (1 / 6.0f) * (u[2] - u[1]) + (1 / 12.0f) * (u[3] - u[4]);
  g[2] = near + (1 / 6.0f) * far + u[5];
}

inline void weight_column(const Floats g[3], Floats u[SIDE]) {
  Floats outer = (-1 / 6.0f) * (g[0] + g[2]), far = (1 / 24.0f) * g[0] + (1 / 6.0f) * g[2];
  u[0] = 0.25f * g[0];
  u[1] = outer - (1 / 6.0f) * g[1];
  u[2] = outer + (1 / 6.0f) * g[1];
  u[3] = far + (1 / 12.0f) * g[1];
  u[4] = far - (1 / 12.0f) * g[1];
  u[5] = g[2];
}

// Where one of all the tiles lies: its image and first pixel, and whether every pixel that it reads is in the image.
struct Place {
  long image, top, left;
  bool inside;
  Place(Size size, long tile) {
    long across = size.across(), tiles = across * size.down();
    image = tile / tiles;
    top = tile % tiles / across * TILE;
    left = tile % across * TILE;
    inside = top > 0 && left > 0 && top + SIDE - 1 <= size.height && left + SIDE - 1 <= size.width;
  }
};

// Where channel k of row c lies in one place's weights: panels of PANEL output channels, each (in, PANEL), the last
// one perhaps of WIDTH.
inline long weight_offset(long c, long k, long in, long out) {
  long panel = k / PANEL * PANEL;
  return panel * in + c * std::min(PANEL, out - panel) + k - panel;
}

// Weights of WIDTH output channels from k on, at one input channel. weight: (out, 3, 3, in); turned, for the gradient,
// it is (in, 3, 3, out) with rows and columns backwards.
template <typename T>
inline void gather(const T* weight, long c, long k, Size size, bool turned, Floats g[3][3]) {
  long count = std::min(WIDTH, size.out - k);
  for (long i = 0; i < 3; ++i)
    for (long j = 0; j < 3; ++j) {
      if (turned) {
        g[i][j] = load_some(weight + ((c * 3 + 2 - i) * 3 + 2 - j) * size.out + k, count);
        continue;
      }
      T values[WIDTH] = {};
      for (long l = 0; l < count; ++l) values[l] = weight[(((k + l) * 3 + i) * 3 + j) * size.in + c];
      g[i][j] = load(values);
    }
}

// u: (PLACES, panels of weight_offset), for the output channels from k on.
template <typename T>
void transform_weights(const T* weight, Size size, bool turned, long k, float* u) {
  long out = padded(size.out);
  for (long c = 0; c < size.in; ++c) {
    Floats g[3][3], h[3][SIDE], column[SIDE];
    gather(weight, c, k, size, turned, g);
    for (long i = 0; i < 3; ++i) weight_column(g[i], h[i]);
    for (long j = 0; j < SIDE; ++j) {
      Floats rows[3] = {h[0][j], h[1][j], h[2][j]};
      weight_column(rows, column);
      for (long i = 0; i < SIDE; ++i)
        store(u + (i * SIDE + j) * size.in * out + weight_offset(c, k, size.in, out), column[i]);
    }
  }
}

// v: PLACES matrices, `stride` apart, of which this tile is one row. INSIDE: no pixel of the tile is beyond the image's
// edge; a template, so that the compiler unrolls every loop and holds the tile in registers.
template <bool INSIDE, typename T>
void transform_input(const T* x, Size size, long top, long left, float* v, long stride) {
  for (long c = 0; c < size.in; c += WIDTH) {
    Floats h[SIDE][SIDE];
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[SIDE];
      for (long i = 0; i < SIDE; ++i) {
        long row = top + i, place = left + j;
        bool there = INSIDE || (row >= 0 && row < size.height && place >= 0 && place < size.width);
        d[i] = there ? load(x + (row * size.width + place) * size.in + c) : Floats{};
      }
      input_column(d, column);
      for (long i = 0; i < SIDE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < SIDE; ++i) {
      Floats row[SIDE];
      input_column(h[i], row);
      for (long j = 0; j < SIDE; ++j) store(v + (i * SIDE + j) * stride + c, row[j]);
    }
  }
}

// m: (PLACES, ROWS, padded out), of which this tile is one row. WHOLE: all of it is in the image, and its channels fill
// vectors.
template <bool WHOLE, typename T>
void transform_output(const float* m, Size size, const float* bias, long top, long left, T* y) {
  long out = padded(size.out);
  for (long k = 0; k < size.out; k += WIDTH) {
    long count = WHOLE ? WIDTH : std::min(WIDTH, size.out - k);
    Floats h[TILE][SIDE], start = bias ? load_some(bias + k, count) : Floats{};
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[TILE];
      for (long i = 0; i < SIDE; ++i) d[i] = load(m + (i * SIDE + j) * ROWS * out + k);
      output_column(d, column);
      for (long i = 0; i < TILE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < TILE; ++i) {
      if (!WHOLE && top + i >= size.height) break;
      Floats row[TILE];
      output_column(h[i], row);
      for (long j = 0; j < TILE; ++j)
        if (WHOLE || left + j < size.width)
          store_some(y + ((top + i) * size.width + left + j) * size.out + k, row[j] + start, count);
    }
  }
}

// ROWS tiles times VECTORS vectors of output channels, all held in registers.
template <int VECTORS>
inline void multiply_panel(const float* v, const float* u, long in, float* m, long out) {
  Floats sums[ROWS][VECTORS] = {};
  for (long c = 0; c < in; ++c) {
    Floats weights[VECTORS];
    for (int j = 0; j < VECTORS; ++j) weights[j] = load(u + (c * VECTORS + j) * WIDTH);
#pragma GCC unroll 12
    for (long r = 0; r < ROWS; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] += v[r * in + c] * weights[j];
  }
#pragma GCC unroll 12
  for (long r = 0; r < ROWS; ++r)
    for (int j = 0; j < VECTORS; ++j) store(m + r * out + j * WIDTH, sums[r][j]);
}

void multiply(const float* v, const float* u, float* m, long in, long out) {
  long k = 0;
  for (; k + PANEL <= out; k += PANEL) multiply_panel<2>(v, u + k * in, in, m + k, out);
  if (k < out) multiply_panel<1>(v, u + k * in, in, m + k, out);
}

// ROWS tiles from `first` on. v: scratch of PLACES * ROWS * (in + padded out).
template <typename T>
void convolve_tiles(const T* x, const float* u, const float* bias, T* y, Size size, long first, float* v) {
  long out = padded(size.out), pixels = size.height * size.width;
  long count = std::min(ROWS, size.tiles() - first);
  float* m = v + PLACES * ROWS * size.in;
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    (place.inside ? transform_input<true, T> : transform_input<false, T>)(
        x + place.image * pixels * size.in, size, place.top - 1, place.left - 1, v + r * size.in, ROWS * size.in);
  }
  for (long p = 0; p < PLACES; ++p)
    multiply(v + p * ROWS * size.in, u + p * size.in * out, m + p * ROWS * out, size.in, out);
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    bool whole = out == size.out && place.top + TILE <= size.height && place.left + TILE <= size.width;
    (whole ? transform_output<true, T> : transform_output<false, T>)(m + r * out, size, bias, place.top, place.left,
                                                                     y + place.image * pixels * size.out);
  }
}

// z: (PLACES, TILES, padded out), of which this tile of the result's gradient is one row: A y A^T.
template <typename T>
void transform_gradient(const T* grad, Size size, long top, long left, float* z) {
  long out = padded(size.out);
  for (long k = 0; k < out; k += WIDTH) {
    Floats h[SIDE][TILE];
    for (long j = 0; j < TILE; ++j) {
      Floats y[TILE], column[SIDE];
      for (long i = 0; i < TILE; ++i) {
        bool there = top + i < size.height && left + j < size.width;
        const T* pixel = grad + ((top + i) * size.width + left + j) * size.out + k;
        y[i] = there ? load_some(pixel, size.out - k) : Floats{};
      }
      gradient_column(y, column);
      for (long i = 0; i < SIDE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < SIDE; ++i) {
      Floats row[SIDE];
      gradient_column(h[i], row);
      for (long j = 0; j < SIDE; ++j) store(z + (i * SIDE + j) * TILES * out + k, row[j]);
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

// Add what `count` tiles from `first` on give to u, (PLACES, in, padded out), and to the bias's gradient, (padded out,).
template <typename T>
void add_tiles(const T* x, const T* grad, Size size, long first, long count, float* v, float* u, float* bias) {
  long out = padded(size.out), pixels = size.height * size.width;
  float* z = v + PLACES * TILES * size.in;
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    (place.inside ? transform_input<true, T> : transform_input<false, T>)(
        x + place.image * pixels * size.in, size, place.top - 1, place.left - 1, v + r * size.in, TILES * size.in);
    transform_gradient(grad + place.image * pixels * size.out, size, place.top, place.left, z + r * out);
  }
  for (long p = 0; p < PLACES; ++p) {
    const float *vp = v + p * TILES * size.in, *zp = z + p * TILES * out;
    float* up = u + p * size.in * out;
    long k = 0;
    for (; k + PANEL <= out; k += PANEL) add_products<2>(vp, zp + k, count, size.in, out, up + k);
    if (k < out) add_products<1>(vp, zp + k, count, size.in, out, up + k);
  }
  const float* sums = z + (SIDE + 1) * TILES * out;  // row 1 of A is ones: this place holds each tile's sum
  for (long r = 0; r < count; ++r)
    for (long k = 0; k < out; k += WIDTH) store(bias + k, load(bias + k) + load(sums + r * out + k));
}

// u: (PLACES, in, padded out) -> the weights' gradient, (out, 3, 3, in): G^T u G, for one input channel.
void transform_back(const float* u, Size size, long c, float* weight) {
  long out = padded(size.out);
  for (long k = 0; k < size.out; k += WIDTH) {
    Floats h[3][SIDE];
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[3];
      for (long i = 0; i < SIDE; ++i) d[i] = load(u + ((i * SIDE + j) * size.in + c) * out + k);
      weight_back(d, column);
      for (long i = 0; i < 3; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < 3; ++i) {
      Floats row[3];
      weight_back(h[i], row);
      for (long j = 0; j < 3; ++j)
        for (long l = 0; l < std::min(WIDTH, size.out - k); ++l)
          weight[(((k + l) * 3 + i) * 3 + j) * size.in + c] = row[j][l];
    }
  }
}

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <typename T>
void convolve(const T* x, const T* weight, const float* bias, T* y, Size size, bool turned, float* scratch,
              int threads) {
  long out = padded(size.out), own = PLACES * ROWS * (size.in + out);
  float* u = scratch + threads * own;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (long k = 0; k < out; k += WIDTH) transform_weights(weight, size, turned, k, u);
    float* v = scratch + thread_number() * own;
    std::fill(v, v + PLACES * ROWS * size.in, 0.0f);  // the last tiles may be fewer than ROWS
#pragma omp for
    for (long first = 0; first < size.tiles(); first += ROWS) convolve_tiles(x, u, bias, y, size, first, v);
  }
}

template <typename T>
void weight_gradient(const T* x, const T* grad, float* weight, float* bias, Size size, float* scratch, int threads) {
  long out = padded(size.out), sums = PLACES * size.in * out + out, own = sums + PLACES * TILES * (size.in + out);
#pragma omp parallel num_threads(threads)
  {
    float* u = scratch + thread_number() * own;
    std::fill(u, u + sums, 0.0f);
#pragma omp for schedule(static)
    for (long first = 0; first < size.tiles(); first += TILES)
      add_tiles(x, grad, size, first, std::min(TILES, size.tiles() - first), u + sums, u, u + sums - out);
#pragma omp for schedule(static)
    for (long c = 0; c < sums / WIDTH; ++c)
      for (long other = 1; other < threads; ++other)
        store(scratch + c * WIDTH, load(scratch + c * WIDTH) + load(scratch + other * own + c * WIDTH));
#pragma omp for schedule(static)
    for (long c = 0; c < size.in; ++c) transform_back(scratch, size, c, weight);
  }
  std::copy_n(scratch + sums - out, size.out, bias);
}

}  // namespace

// Floats that conv3x3_weights needs for itself.
extern "C" long conv3x3_weights_scratch(long in, long out, int threads) {
  return threads * (PLACES * in * padded(out) + padded(out) + PLACES * TILES * (in + padded(out)));
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

// Floats that conv3x3 needs for itself.
extern "C" long conv3x3_scratch(long in, long out, int threads) {
  return PLACES * (in * padded(out) + threads * ROWS * (in + padded(out)));
}

// x: (batch, height, width, in), in a multiple of the vector's width; y: (..., out); weight: (out, 3, 3, in), or turned
// (in, 3, 3, out) for the gradient with respect to the image; bias: (out,) or none. reduced: whether they are bfloat16,
// but for the bias.
extern "C" void conv3x3(bool reduced, const void* x, const void* weight, const float* bias, void* y, long batch,
                        long height, long width, long in, long out, bool turned, float* scratch, int threads) {
  Size size{batch, height, width, in, out};
  if (reduced)
    convolve((const bfloat16*)x, (const bfloat16*)weight, bias, (bfloat16*)y, size, turned, scratch, threads);
  else
    convolve((const float*)x, (const float*)weight, bias, (float*)y, size, turned, scratch, threads);
}
