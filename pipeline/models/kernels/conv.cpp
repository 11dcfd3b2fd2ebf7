// 3x3 convolutions of stride 1 and padding 1 over channels-last images, by Winograd's algorithm (winograd.h).
//
// A tile's result depends on nothing but its input, so it is the same in any batch and with any number of threads.
#include "winograd.h"

namespace {

// A^T m and G g of the paper, for one column.
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

// u: (PLACES, panels of weight_offset), for WIDTH of the part's output channels from k on.
template <typename T>
void transform_weights(const T* weight, Size size, Part part, bool turned, long k, float* u) {
  for (long c = 0; c < size.in; ++c) {
    Floats g[3][3], h[3][SIDE], column[SIDE];
    gather(weight, c, part.begin + k, size, turned, g);
    for (long i = 0; i < 3; ++i) weight_column(g[i], h[i]);
    for (long j = 0; j < SIDE; ++j) {
      Floats rows[3] = {h[0][j], h[1][j], h[2][j]};
      weight_column(rows, column);
      for (long i = 0; i < SIDE; ++i)
        store(u + (i * SIDE + j) * size.in * part.count + weight_offset(c, k, size.in, part.count), column[i]);
    }
  }
}

// m: (PLACES, ROWS, part), of which this tile is one row. WHOLE: all of it is in the image, and its channels fill
// vectors.
template <bool WHOLE, typename T>
void transform_output(const float* m, Size size, Part part, const float* bias, long top, long left, T* y) {
  for (long k = 0; k < part.count; k += WIDTH) {
    long channel = part.begin + k, count = WHOLE ? WIDTH : std::min(WIDTH, size.out - channel);
    Floats h[TILE][SIDE], start = bias ? load_some(bias + channel, count) : Floats{};
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[TILE];
      for (long i = 0; i < SIDE; ++i) d[i] = load(m + (i * SIDE + j) * ROWS * part.count + k);
      output_column(d, column);
      for (long i = 0; i < TILE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < TILE; ++i) {
      if (!WHOLE && top + i >= size.height) break;
      Floats row[TILE];
      output_column(h[i], row);
      for (long j = 0; j < TILE; ++j)
        if (WHOLE || left + j < size.width)
          store_some(y + ((top + i) * size.width + left + j) * size.out + channel, row[j] + start, count);
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

// ROWS tiles from `first` on. v: scratch of PLACES * ROWS * (in + part).
template <typename T>
void convolve_tiles(const T* x, const float* u, const float* bias, T* y, Size size, Part part, long first, float* v) {
  long pixels = size.height * size.width;
  long count = std::min(ROWS, size.tiles() - first);
  float* m = v + PLACES * ROWS * size.in;
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    (place.inside ? transform_input<true, T> : transform_input<false, T>)(
        x + place.image * pixels * size.in, size, place.top - 1, place.left - 1, v + r * size.in, ROWS * size.in);
  }
  for (long p = 0; p < PLACES; ++p)
    multiply(v + p * ROWS * size.in, u + p * size.in * part.count, m + p * ROWS * part.count, size.in, part.count);
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    bool whole = place.top + TILE <= size.height && place.left + TILE <= size.width;
    whole = whole && part.begin + part.count <= size.out;
    (whole ? transform_output<true, T> : transform_output<false, T>)(
        m + r * part.count, size, part, bias, place.top, place.left, y + place.image * pixels * size.out);
  }
}

template <typename T>
void convolve(const T* x, const T* weight, const float* bias, T* y, Size size, bool turned, float* scratch,
              int threads) {
  each_part(size, [&](Part part) {
    long own = PLACES * ROWS * (size.in + part.count);
    float* u = scratch + threads * own;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long k = 0; k < part.count; k += WIDTH) transform_weights(weight, size, part, turned, k, u);
      float* v = scratch + thread_number() * own;
      std::fill(v, v + PLACES * ROWS * size.in, 0.0f);  // the last tiles may be fewer than ROWS
#pragma omp for
      for (long first = 0; first < size.tiles(); first += ROWS) convolve_tiles(x, u, bias, y, size, part, first, v);
    }
  });
}

}  // namespace

// Floats that conv3x3 needs for itself.
extern "C" long conv3x3_scratch(long in, long out, int threads) {
  long part = part_count(in, out);
  return PLACES * (in * part + threads * ROWS * (in + part));
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
