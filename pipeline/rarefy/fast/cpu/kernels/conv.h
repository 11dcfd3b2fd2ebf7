// 3x3 convolutions of stride 1 and padding 1 over channels-last images, by Winograd's algorithm (winograd.h).
//
// A tile's result depends only on its input, so it is the same in any batch and with any number of threads.
#pragma once
#include <vector>

#include "winograd.h"

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

// Elements from one place's matrix to the next: a cache line more than its size. Otherwise the simultaneous writes to
// all places would fall into a few sets of the cache.
inline long stride_of(long elements) { return elements + WIDTH; }

// Transformed weights of a part: panels of PANEL output channels (the last may have WIDTH), each
// (PLACES, in, channels).
struct Panels {
  float* u;
  long in, count;
  static long elements(long in, long count) {
    return (count + PANEL - 1) / PANEL * PLACES * stride_of(in * PANEL);
  }
  long channels(long panel) const { return std::min(PANEL, count - panel); }
  long stride(long panel) const { return stride_of(in * channels(panel)); }
  float* panel(long first) const { return u + first / PANEL * PLACES * stride_of(in * PANEL); }
};

// g: (3, 3, WIDTH input channels from c on) of WIDTH output channels from k on. weight: (out, 3, 3, in); turned, for
// the gradient, it is (in, 3, 3, out) with rows and columns reversed.
inline void gather(const float* weight, long c, long k, Size size, bool turned, Floats g[3][3][WIDTH]) {
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

// Transform WIDTH output channels from k on, `depth` input channels from `begin` on. u: their position in a panel of
// `channels`; stride: from one place to the next.
inline void transform_weights(const float* weight, Size size, bool turned, long k, long begin, long depth, float* u,
                              long channels, long stride) {
  Floats g[3][3][WIDTH];
  for (long c = 0; c < depth; ++c) {
    if (c % WIDTH == 0) gather(weight, begin + c, k, size, turned, g);
    Floats column[SIDE], h[3][SIDE];
    for (long i = 0; i < 3; ++i) {
      Floats row[3] = {g[i][0][c % WIDTH], g[i][1][c % WIDTH], g[i][2][c % WIDTH]};
      weight_column(row, h[i]);
    }
    for (long j = 0; j < SIDE; ++j) {
      Floats rows[3] = {h[0][j], h[1][j], h[2][j]};
      weight_column(rows, column);
      for (long i = 0; i < SIDE; ++i) store(u + (i * SIDE + j) * stride + c * channels, column[i]);
    }
  }
}

// m: PLACES matrices, `stride` apart, for the `count` output channels from `channel` on; this tile is one row of each.
// WHOLE: whether the tile lies in the image and its channels fill vectors.
template <bool WHOLE>
void transform_output(const float* m, long stride, Size size, long channel, long count, const float* bias, long top,
                      long left, const float* residual, float* y) {
  for (long k = 0; k < count; k += WIDTH) {
    long some = WHOLE ? WIDTH : std::min(WIDTH, size.out - channel - k);
    Floats h[TILE][SIDE], start = bias ? load_some(bias + channel + k, some) : Floats{};
    for (long j = 0; j < SIDE; ++j) {
      Floats d[SIDE], column[TILE];
      for (long i = 0; i < SIDE; ++i) d[i] = load(m + (i * SIDE + j) * stride + k);
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

// The arguments of a convolution.
struct Images {
  const float *x, *weight, *bias, *residual;
  float* y;
  Size size;
  bool turned;

  // The same for `count` images from `begin` on.
  Images some(long begin, long count) const {
    long first = begin * size.height * size.width;
    Images chosen = *this;
    chosen.x += first * size.in;
    chosen.y += first * size.out;
    if (residual) chosen.residual += first * size.out;
    chosen.size.batch = count;
    return chosen;
  }

  // The weight of one of the nine taps.
  float tap(long c, long k, long number) const {
    return turned ? weight[(c * 9 + 8 - number) * size.out + k] : weight[(k * 9 + number) * size.in + c];
  }

  void tile_in(long tile, float* v, long stride) const {
    Place place(size, tile);
    (place.inside ? transform_input<true> : transform_input<false>)(
        x + place.image * size.height * size.width * size.in, size, place.top - 1, place.left - 1, v, stride);
  }

  void tile_out(const float* m, long stride, long tile, long channel, long count) const {
    Place place(size, tile);
    long image = place.image * size.height * size.width * size.out;
    bool whole = place.top + TILE <= size.height && place.left + TILE <= size.width && channel + count <= size.out;
    (whole ? transform_output<true> : transform_output<false>)(
        m, stride, size, channel, count, bias, place.top, place.left, residual ? residual + image : nullptr, y + image);
  }
};

// For many tiles: the weights of a part are transformed once, then multiplied with ROWS tiles at a time.
struct Many {
  static long weights(Size size) { return Panels::elements(size.in, part_count(size.in, size.out)); }
  static long stride(Size size) { return stride_of(ROWS * size.in); }
  static long tiles(Size size) { return PLACES * stride(size); }
  static long own(Size size) { return tiles(size) + PLACES * ROWS * PANEL; }
  static long floats(Size size, int threads) { return weights(size) + threads * own(size); }

  static void block(Images images, Panels panels, Part part, long first, float* v, float* m) {
    Size size = images.size;
    long count = std::min(ROWS, size.tiles() - first);
    Needs needs(size, first, count);
    for (long r = 0; r < count; ++r) images.tile_in(first + r, v + r * size.in, stride(size));
    for (long k = 0; k < part.count; k += PANEL) {
      long channels = panels.channels(k);
      for (long p = 0; p < PLACES; ++p) {
        if (!needs(p)) continue;
        (channels == PANEL ? multiply<2, ROWS> : multiply<1, ROWS>)(
            v + p * stride(size), size.in, panels.panel(k) + p * panels.stride(k), size.in, m + p * ROWS * PANEL, PANEL,
            count, false);
      }
      for (long r = 0; r < count; ++r)
        images.tile_out(m + r * PANEL, ROWS * PANEL, first + r, part.begin + k, channels);
    }
  }

  // To be called in a parallel region: the threads divide the panels among them.
  static void transform(Images images, Panels panels, Part part) {
#pragma omp for
    for (long k = 0; k < part.count; k += WIDTH) {
      long panel = k / PANEL * PANEL;
      transform_weights(images.weight, images.size, images.turned, part.begin + k, 0, images.size.in,
                        panels.panel(panel) + (k - panel), panels.channels(panel), panels.stride(panel));
    }
  }

  static void convolve(Images images, float* scratch, int threads) {
    Size size = images.size;
    each_part(size, [&](Part part) {
      Panels panels{scratch, size.in, part.count};
#pragma omp parallel num_threads(threads)
      {
        transform(images, panels, part);
        float* mine = scratch + weights(size) + thread_number() * own(size);
#pragma omp for
        for (long first = 0; first < size.tiles(); first += ROWS)
          block(images, panels, part, first, mine, mine + tiles(size));
      }
    });
  }

  static bool in_one_part(Size size) { return part_count(size.in, size.out) == padded(size.out); }

  static void prepare(Images images, float* scratch) {
    Part all{0, padded(images.size.out)};
    transform(images, {scratch, images.size.in, all.count}, all);
  }

  static void run(Images images, float* scratch, float* mine) {
    Size size = images.size;
    Part all{0, padded(size.out)};
    for (long first = 0; first < size.tiles(); first += ROWS)
      block(images, {scratch, size.in, all.count}, all, first, mine, mine + tiles(size));
  }
};

// Convolve groups of images, each in one thread, by Form (for Many, only if its weights are one part).
// work(begin, count, kept, convolve) calls convolve(images of the group); kept: `keep` floats owned by the thread.
template <typename Form, typename Work>
void in_groups(Images images, long group, long keep, float* scratch, int threads, Work work) {
  Size size = images.size;
#pragma omp parallel num_threads(threads)
  {
    Form::prepare(images, scratch);
    float* mine = scratch + Form::weights(size) + thread_number() * (Form::own(size) + keep);
#pragma omp for
    for (long begin = 0; begin < size.batch; begin += group)
      work(begin, std::min(group, size.batch - begin), mine + Form::own(size),
           [&](Images some) { Form::run(some, scratch, mine); });
  }
}

// For few tiles: all tiles are transformed once; the weights, which are larger, in pieces that stay in the cache until
// all tiles are multiplied with them.
struct Few {
  static constexpr long MOST = 96, PIECE = 128;  // tiles; input channels of a piece
  static long rows(Size size) { return (size.tiles() + ROWS - 1) / ROWS * ROWS; }
  static long stride(Size size) { return stride_of(rows(size) * size.in); }
  static long tiles(Size size) { return PLACES * stride(size); }
  static long weights() { return PLACES * stride_of(PIECE * PANEL); }
  static long own(Size size) { return weights() + PLACES * rows(size) * PANEL; }
  static long floats(Size size, int threads) { return tiles(size) + threads * own(size); }

  static void panel(Images images, const std::vector<Needs>& needs, const float* v, long k, float* u, float* m) {
    Size size = images.size;
    long channels = std::min(PANEL, padded(size.out) - k);
    for (long c = 0; c < size.in; c += PIECE) {
      long depth = std::min(PIECE, size.in - c), u_stride = stride_of(depth * channels);
      for (long l = 0; l < channels; l += WIDTH)
        transform_weights(images.weight, size, images.turned, k + l, c, depth, u + l, channels, u_stride);
      for (long p = 0; p < PLACES; ++p)
        for (long first = 0; first < size.tiles(); first += ROWS) {
          if (!needs[first / ROWS](p)) continue;
          (channels == PANEL ? multiply<2, ROWS> : multiply<1, ROWS>)(
              v + p * stride(size) + first * size.in + c, size.in, u + p * u_stride, depth,
              m + (p * rows(size) + first) * PANEL, PANEL, std::min(ROWS, size.tiles() - first), c > 0);
        }
    }
    for (long tile = 0; tile < size.tiles(); ++tile)
      images.tile_out(m + tile * PANEL, rows(size) * PANEL, tile, k, channels);
  }

  static void convolve(Images images, float* scratch, int threads) {
    Size size = images.size;
    float* v = scratch;
    std::vector<Needs> needs;
    for (long first = 0; first < size.tiles(); first += ROWS)
      needs.emplace_back(size, first, std::min(ROWS, size.tiles() - first));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long tile = 0; tile < size.tiles(); ++tile) images.tile_in(tile, v + tile * size.in, stride(size));
      float* mine = scratch + tiles(size) + thread_number() * own(size);
#pragma omp for
      for (long k = 0; k < padded(size.out); k += PANEL) panel(images, needs, v, k, mine, mine + weights());
    }
  }
};
