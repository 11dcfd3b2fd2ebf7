// 3x3 convolutions of stride 1 and padding 1 over channels-last images, by Winograd's algorithm (winograd.h).
//
// A tile's result depends on nothing but its input, so it is the same in any batch and with any number of threads.
#include "winograd.h"

namespace {

// A^T m and G g of the paper, for one column.
inline void output_column(const Floats m[SIDE], Floats y[TILE]) {
  Floats even = m[1] + m[2], odd = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
  y[0] = m[0] + even + even2;
  y[1] = NEAR * odd + FAR * odd2;
  y[2] = NEAR2 * even + FAR2 * even2;
  y[3] = NEAR2 * NEAR * odd + FAR2 * FAR * odd2 + m[5];
}

inline void weight_column(const Floats g[3], Floats u[SIDE]) {
  constexpr float near = 1 / (2 * NEAR2 * (NEAR2 - FAR2)), far = 1 / (2 * FAR2 * (FAR2 - NEAR2));
  Floats even = near * g[0] + near * NEAR2 * g[2], even2 = far * g[0] + far * FAR2 * g[2];
  u[0] = 1 / (NEAR2 * FAR2) * g[0];
  u[1] = even + near * NEAR * g[1];
  u[2] = even - near * NEAR * g[1];
  u[3] = even2 + far * FAR * g[1];
  u[4] = even2 - far * FAR * g[1];
  u[5] = g[2];
}

// Elements from one place's matrix to the next: a cache line more than it has, since with strides of many lines the
// writes to all places at once would meet in a few of the cache's sets.
template <typename F>
constexpr long stride_of(long elements) {
  return elements + WIDTH * DEPTH<F>;
}

// Transformed weights of a part: panels of PANEL output channels, the last one perhaps of WIDTH, each (PLACES,
// in / DEPTH, its channels, DEPTH).
template <typename F>
struct Weighting {
  F* u;
  long in, count;
  static long elements(long in, long count) {
    return (count + PANEL - 1) / PANEL * PLACES * stride_of<F>(in * PANEL);
  }
  long channels(long panel) const { return std::min(PANEL, count - panel); }
  long stride(long panel) const { return stride_of<F>(in * channels(panel)); }
  F* panel(long first) const { return u + first / PANEL * PLACES * stride_of<F>(in * PANEL); }
};

// g: (3, 3, WIDTH input channels from c on) of WIDTH output channels from k on. weight: (out, 3, 3, in); turned, for the
// gradient, it is (in, 3, 3, out) with rows and columns backwards.
template <typename T>
void gather(const T* weight, long c, long k, Size size, bool turned, Floats g[3][3][WIDTH]) {
  long count = std::min(WIDTH, size.out - k);
  for (long i = 0; i < 3; ++i)
    for (long j = 0; j < 3; ++j) {
      Floats* rows = g[i][j];
      for (long l = 0; l < WIDTH; ++l)
        if (turned)
          rows[l] = load_some(weight + (((c + l) * 3 + 2 - i) * 3 + 2 - j) * size.out + k, count);
        else
          rows[l] = l < count ? load(weight + (((k + l) * 3 + i) * 3 + j) * size.in + c) : Floats{};
      if (!turned) transpose(rows);
    }
}

// WIDTH of the part's output channels, from k on.
template <typename T, typename F>
void transform_weights(const T* weight, Size size, Part part, bool turned, long k, Weighting<F> weighting) {
  Floats g[3][3][WIDTH];
  long panel = k / PANEL * PANEL, channels = weighting.channels(panel), stride = weighting.stride(panel);
  F* u = weighting.panel(panel) + (k - panel) * DEPTH<F>;
  for (long c = 0; c < size.in; c += DEPTH<F>) {
    if (c % WIDTH == 0) gather(weight, c, part.begin + k, size, turned, g);
    Floats column[SIDE], all[PLACES][DEPTH<F>];
    for (long d = 0; d < DEPTH<F>; ++d) {
      Floats h[3][SIDE];
      for (long i = 0; i < 3; ++i) {
        Floats row[3] = {g[i][0][(c + d) % WIDTH], g[i][1][(c + d) % WIDTH], g[i][2][(c + d) % WIDTH]};
        weight_column(row, h[i]);
      }
      for (long j = 0; j < SIDE; ++j) {
        Floats rows[3] = {h[0][j], h[1][j], h[2][j]};
        weight_column(rows, column);
        for (long i = 0; i < SIDE; ++i) all[i * SIDE + j][d] = column[i];
      }
    }
    for (long p = 0; p < PLACES; ++p) store_weights(u + p * stride + c * channels, all[p]);
  }
}

// m: (PLACES, ROWS, PANEL), of which this tile is one row, for the `count` output channels from `channel` on. WHOLE: all
// of it is in the image, and its channels fill vectors.
template <bool WHOLE, typename T>
void transform_output(const float* m, Size size, long channel, long count, const float* bias, long top, long left,
                      const T* residual, T* y) {
  for (long k = 0; k < count; k += WIDTH) {
    long some = WHOLE ? WIDTH : std::min(WIDTH, size.out - channel - k);
    Floats h[TILE][SIDE], start = bias ? load_some(bias + channel + k, some) : Floats{};
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[TILE];
      for (long i = 0; i < SIDE; ++i) d[i] = load(m + (i * SIDE + j) * ROWS * PANEL + k);
      output_column(d, column);
      for (long i = 0; i < TILE; ++i) h[i][j] = column[i];
    }
    for (long i = 0; i < TILE; ++i) {
      if (!WHOLE && top + i >= size.height) break;
      Floats row[TILE];
      output_column(h[i], row);
      for (long j = 0; j < TILE; ++j) {
        if (!WHOLE && left + j >= size.width) break;
        long place = ((top + i) * size.width + left + j) * size.out + channel + k;
        Floats value = row[j] + start;
        store_some(y + place, residual ? value + load_some(residual + place, some) : value, some);
      }
    }
  }
}

// Scratch of one thread: the transformed tiles, and behind them the products of one panel.
template <typename F>
struct Scratch {
  F* v;
  float* m;
  long stride;  // from one place's tiles to the next
  static long elements(Size size) { return PLACES * stride_of<F>(ROWS * size.in); }
  static long floats(Size size) { return elements(size) / DEPTH<F> + PLACES * ROWS * PANEL; }
  Scratch(float* own, Size size)
      : v((F*)own), m(own + elements(size) / DEPTH<F>), stride(stride_of<F>(ROWS * size.in)) {}
};

// ROWS tiles from `first` on.
template <typename T, typename F>
void convolve_tiles(const T* x, Weighting<F> weighting, const float* bias, const T* residual, T* y, Size size, Part part,
                    long first, Scratch<F> scratch) {
  long pixels = size.height * size.width;
  long count = std::min(ROWS, size.tiles() - first);
  for (long r = 0; r < count; ++r) {
    Place place(size, first + r);
    (place.inside ? transform_input<true, T, F> : transform_input<false, T, F>)(
        x + place.image * pixels * size.in, size, place.top - 1, place.left - 1, scratch.v + r * size.in,
        scratch.stride);
  }
  for (long k = 0; k < part.count; k += PANEL) {
    long channels = weighting.channels(k);
    for (long p = 0; p < PLACES; ++p)
      (channels == PANEL ? multiply<2, ROWS, F> : multiply<1, ROWS, F>)(
          scratch.v + p * scratch.stride, size.in, weighting.panel(k) + p * weighting.stride(k), size.in,
          scratch.m + p * ROWS * PANEL, PANEL, count);
    for (long r = 0; r < count; ++r) {
      Place place(size, first + r);
      bool whole = place.top + TILE <= size.height && place.left + TILE <= size.width;
      whole = whole && part.begin + k + channels <= size.out;
      (whole ? transform_output<true, T> : transform_output<false, T>)(
          scratch.m + r * PANEL, size, part.begin + k, channels, bias, place.top, place.left,
          residual ? residual + place.image * pixels * size.out : nullptr, y + place.image * pixels * size.out);
    }
  }
}

template <typename F>
long scratch_floats(Size size, int threads) {
  long weights = Weighting<F>::elements(size.in, part_count(size.in, size.out)) / DEPTH<F>;
  return weights + threads * Scratch<F>::floats(size);
}

template <typename F, typename T>
void convolve(const T* x, const T* weight, const float* bias, const T* residual, T* y, Size size, bool turned,
              float* scratch, int threads) {
  each_part(size, [&](Part part) {
    Weighting<F> weighting{(F*)(scratch + threads * Scratch<F>::floats(size)), size.in, part.count};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long k = 0; k < part.count; k += WIDTH) transform_weights(weight, size, part, turned, k, weighting);
      Scratch<F> own(scratch + thread_number() * Scratch<F>::floats(size), size);
      std::fill_n(own.v, Scratch<F>::elements(size), F{});  // the last tiles may be fewer than ROWS
#pragma omp for
      for (long first = 0; first < size.tiles(); first += ROWS)
        convolve_tiles(x, weighting, bias, residual, y, size, part, first, own);
    }
  });
}

}  // namespace

// Floats that conv3x3 needs for itself.
extern "C" long conv3x3_scratch(bool reduced, long in, long out, int threads) {
  Size size{0, 0, 0, in, out};
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
    convolve<Factor>((const bfloat16*)x, (const bfloat16*)weight, bias, (const bfloat16*)residual, (bfloat16*)y, size,
                     turned, scratch, threads);
  else
    convolve<float>((const float*)x, (const float*)weight, bias, (const float*)residual, (float*)y, size, turned, scratch,
                    threads);
}
