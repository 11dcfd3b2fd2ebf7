// The gradient of a 3x3 convolution with respect to its weights and bias, by Winograd's algorithm (winograd.h).
//
// The transformed input times the transformed gradient, summed over all tiles as 36 matrices, is the gradient of the
// transformed weights.
#include "winograd.h"

namespace {

constexpr long AT_ONCE = 24;  // transformed tiles

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

// A y A^T of the result's gradient, of a vector of channels from `channel` on: put(place, values). Returns its sum.
template <typename Put>
inline Floats transform_gradient(const float* grad, const Size& size, long top, long left, long channel, Put put) {
  Floats h[SIDE][TILE], sum{};
  for (long j = 0; j < TILE; ++j) {
    Floats y[TILE], column[SIDE];
    for (long i = 0; i < TILE; ++i) {
      bool there = top + i < size.height && left + j < size.width;
      const float* pixel = grad + ((top + i) * size.width + left + j) * size.out + channel;
      y[i] = there ? load_some(pixel, size.out - channel) : Floats{};
      sum += y[i];
    }
    gradient_column(y, column);
    for (long i = 0; i < SIDE; ++i) h[i][j] = column[i];
  }
  for (long i = 0; i < SIDE; ++i) {
    Floats row[SIDE];
    gradient_column(h[i], row);
    for (long j = 0; j < SIDE; ++j) put(i * SIDE + j, row[j]);
  }
  return sum;
}

// u += v^T z over `rows` rows, for R channels of v (or `count`, an even number, if that is smaller) and VECTORS vectors
// of z's channels. u: (in, out).
template <int VECTORS, long R = ROWS>
inline void add_block(const float* v, const float* z, long rows, long in, long out, long count, float* u) {
  if constexpr (R > 2) {
    if (count < R) return add_block<VECTORS, R - 2>(v, z, rows, in, out, count, u);
  }
  Floats sums[R][VECTORS] = {};
  for (long t = 0; t < rows; ++t) {
    Floats row[VECTORS];
    for (int j = 0; j < VECTORS; ++j) row[j] = load(z + t * out + j * WIDTH);
#pragma GCC unroll 12
    for (long r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) sums[r][j] += v[t * in + r] * row[j];
  }
#pragma GCC unroll 12
  for (long r = 0; r < R; ++r)
    for (int j = 0; j < VECTORS; ++j) {
      float* to = u + r * out + j * WIDTH;
      store(to, load(to) + sums[r][j]);
    }
}

template <int VECTORS>
void add_products(const float* v, const float* z, long rows, long in, long out, float* u) {
  for (long c = 0; c < in; c += ROWS)
    add_block<VECTORS>(v + c, z, rows, in, out, std::min(ROWS, in - c), u + c * out);
}

// Add what AT_ONCE tiles from `first` on contribute to u, (PLACES, in, part), and to the bias's gradient, (part,),
// which follows it. v: scratch of PLACES * AT_ONCE * (in + part).
inline void add_tiles(const float* x, const float* grad, Size size, Part part, long first, float* u, float* v) {
  long pixels = size.height * size.width, count = std::min(AT_ONCE, size.tiles() - first);
  long v_place = AT_ONCE * size.in, z_place = AT_ONCE * part.count;
  float* z = v + PLACES * v_place;
  float* bias = u + PLACES * size.in * part.count;
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    const float *image = x + place.image * pixels * size.in, *result = grad + place.image * pixels * size.out;
    (place.inside ? transform_input<true> : transform_input<false>)(image, size, place.top - 1, place.left - 1,
                                                                    v + r * size.in, v_place);
    for (long c = 0; c < part.count; c += WIDTH) {
      auto put = [&](long p, Floats values) { store(z + p * z_place + r * part.count + c, values); };
      Floats sum = transform_gradient(result, size, place.top, place.left, part.begin + c, put);
      store(bias + c, load(bias + c) + sum);
    }
  }
  Needs needs(size, first, count);
  for (long p = 0; p < PLACES; ++p) {
    if (!needs(p)) continue;  // the gradient's part is zero
    const float *vp = v + p * v_place, *zp = z + p * z_place;
    float* up = u + p * size.in * part.count;
    long k = 0;
    for (; k + PANEL <= part.count; k += PANEL) add_products<2>(vp, zp + k, count, size.in, part.count, up + k);
    if (k < part.count) add_products<1>(vp, zp + k, count, size.in, part.count, up + k);
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

void weight_gradient(const float* x, const float* grad, float* weight, float* bias, Size size, float* scratch,
                     int threads) {
  each_part(size, [&](Part part) {
    long sums = (PLACES * size.in + 1) * part.count, own = sums + PLACES * AT_ONCE * (size.in + part.count);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long thread = 0; thread < threads; ++thread)  // all: there may be fewer threads than requested
        std::fill_n(scratch + thread * own, sums, 0.0f);
      float* u = scratch + thread_number() * own;
#pragma omp for schedule(static)
      for (long first = 0; first < size.tiles(); first += AT_ONCE)
        add_tiles(x, grad, size, part, first, u, u + sums);
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

// Floats of scratch memory for conv3x3_weights.
extern "C" long conv3x3_weights_scratch(long in, long out, int threads) {
  long part = part_count(in, out);
  return threads * ((PLACES * in + 1) * part + PLACES * AT_ONCE * (in + part));
}

// The gradient with respect to weight, (out, 3, 3, in) float32, and bias. x and grad as x and y of conv3x3.
extern "C" void conv3x3_weights(const float* x, const float* grad, float* weight, float* bias, long batch, long height,
                                long width, long in, long out, float* scratch, int threads) {
  weight_gradient(x, grad, weight, bias, {batch, height, width, in, out}, scratch, threads);
}
