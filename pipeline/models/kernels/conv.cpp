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

long padded(long channels) { return (channels + WIDTH - 1) / WIDTH * WIDTH; }

struct Size {
  long batch, height, width, in, out;
  long across() const { return (width + TILE - 1) / TILE; }
  long down() const { return (height + TILE - 1) / TILE; }
  long tiles() const { return batch * across() * down(); }
};

// B^T d, A^T m and G g of the paper, for one column.
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

inline void weight_column(const Floats g[3], Floats u[SIDE]) {
  Floats outer = (-1 / 6.0f) * (g[0] + g[2]), far = (1 / 24.0f) * g[0] + (1 / 6.0f) * g[2];
  u[0] = 0.25f * g[0];
  u[1] = outer - (1 / 6.0f) * g[1];
  u[2] = outer + (1 / 6.0f) * g[1];
  u[3] = far + (1 / 12.0f) * g[1];
  u[4] = far - (1 / 12.0f) * g[1];
  u[5] = g[2];
}

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

// v: (PLACES, ROWS, in), of which this tile is one row. INSIDE: no pixel of the tile is beyond the image's edge; a
// template, so that the compiler unrolls every loop and holds the tile in registers.
template <bool INSIDE, typename T>
void transform_input(const T* x, Size size, long top, long left, float* v) {
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
      for (long j = 0; j < SIDE; ++j) store(v + (i * SIDE + j) * ROWS * size.in + c, row[j]);
    }
  }
}

// m: (PLACES, ROWS, padded out), of which this tile is one row. INSIDE: as above, and channels fill whole vectors.
template <bool INSIDE, typename T>
void transform_output(const float* m, Size size, const float* bias, long top, long left, T* y) {
  long out = padded(size.out);
  for (long k = 0; k < size.out; k += WIDTH) {
    long count = INSIDE ? WIDTH : std::min(WIDTH, size.out - k);
    Floats h[TILE][SIDE], start = bias ? load_some(bias + k, count) : Floats{};
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[TILE];
      for (long i = 0; i < SIDE; ++i) d[i] = load(m + (i * SIDE + j) * ROWS * out + k);
      output_column(d, column);
      for (long i = 0; i < TILE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < TILE; ++i) {
      if (!INSIDE && top + i >= size.height) break;
      Floats row[TILE];
      output_column(h[i], row);
      for (long j = 0; j < TILE; ++j)
        if (INSIDE || left + j < size.width)
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
  long out = padded(size.out), across = size.across(), tiles = across * size.down(), pixels = size.height * size.width;
  long count = std::min(ROWS, size.tiles() - first);
  float* m = v + PLACES * ROWS * size.in;
  for (long r = 0; r < count; ++r) {
    long image = (first + r) / tiles, place = (first + r) % tiles;
    long top = place / across * TILE - 1, left = place % across * TILE - 1;
    bool inside = top >= 0 && left >= 0 && top + SIDE <= size.height && left + SIDE <= size.width;
    (inside ? transform_input<true, T> : transform_input<false, T>)(x + image * pixels * size.in, size, top, left,
                                                                    v + r * size.in);
  }
  for (long p = 0; p < PLACES; ++p)
    multiply(v + p * ROWS * size.in, u + p * size.in * out, m + p * ROWS * out, size.in, out);
  for (long r = 0; r < count; ++r) {
    long image = (first + r) / tiles, place = (first + r) % tiles;
    long top = place / across * TILE, left = place % across * TILE;
    bool inside = out == size.out && top + TILE <= size.height && left + TILE <= size.width;
    (inside ? transform_output<true, T> : transform_output<false, T>)(m + r * out, size, bias, top, left,
                                                                      y + image * pixels * size.out);
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

}  // namespace

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
