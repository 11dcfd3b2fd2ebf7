// Winograd's algorithm F(4x4, 3x3): tiles, parts of the channels, and the transform of the input.
//
// Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): each 4x4 tile of the output costs 36
// products per pair of channels instead of 144. Tiles of input and weights are transformed, multiplied as 36 matrices,
// and transformed back.
#pragma once
#include "product.h"

constexpr long TILE = 4, SIDE = 6, PLACES = SIDE * SIDE;
constexpr long LARGEST = 2L << 20;  // transformed weights in use at the same time: what fits a processor's cache

// The points of the algorithm are 0, +-NEAR, +-FAR and infinity. The paper's, 1 and 2, have twice the rounding error.
constexpr float NEAR = 0.75f, FAR = 1.5f, NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;

inline long padded(long channels) { return (channels + WIDTH - 1) / WIDTH * WIDTH; }

struct Size {
  long batch, height, width, in, out;
  long across() const { return (width + TILE - 1) / TILE; }
  long down() const { return (height + TILE - 1) / TILE; }
  long tiles() const { return batch * across() * down(); }
};

// Output channels that are computed together, from `begin` on: all, or as many as LARGEST allows.
struct Part {
  long begin, count;
};

inline long part_count(long in, long out) {
  long fitting = LARGEST / (PLACES * in) / PANEL * PANEL;
  return std::min(padded(out), std::max(PANEL, fitting));
}

template <typename Work>
void each_part(Size size, Work work) {
  long most = part_count(size.in, size.out), all = padded(size.out);
  for (long begin = 0; begin < all; begin += most) work(Part{begin, std::min(most, all - begin)});
}

// Where a tile lies: its image and first pixel. inside: whether every pixel that it reads is in the image; last_row,
// last_column: whether its last row and column are. Tiles are ordered by these two, so that neighbours overhang the
// image in the same way.
struct Place {
  long image, top, left;
  bool inside, last_row, last_column;
  Place(Size size, long tile) {
    long whole_down = size.height / TILE, whole_across = size.width / TILE, rows, columns;
    for (long kind = 0;; ++kind) {
      last_row = kind < 2, last_column = kind % 2 == 0;
      rows = last_row ? whole_down : size.down() - whole_down;
      columns = last_column ? whole_across : size.across() - whole_across;
      if (tile < size.batch * rows * columns) break;
      tile -= size.batch * rows * columns;
    }
    image = tile / (rows * columns);
    top = (tile % (rows * columns) / columns + (last_row ? 0 : whole_down)) * TILE;
    left = (tile % columns + (last_column ? 0 : whole_across)) * TILE;
    inside = top > 0 && left > 0 && top + SIDE - 1 <= size.height && left + SIDE - 1 <= size.width;
  }
};

// The places that some tiles need: those of the point at infinity only contribute to last rows and columns.
struct Needs {
  bool last_row = false, last_column = false;
  Needs(Size size, long first, long count) {
    for (long tile = first; tile < first + count; ++tile) {
      Place place(size, tile);
      last_row |= place.last_row, last_column |= place.last_column;
    }
  }
  bool operator()(long p) const {
    return (last_row || p / SIDE < SIDE - 1) && (last_column || p % SIDE < SIDE - 1);
  }
};

// B^T d of the paper, for one column.
inline void input_column(const Floats d[SIDE], Floats v[SIDE]) {
  Floats p = d[4] - FAR2 * d[2], q = d[3] - FAR2 * d[1], r = d[4] - NEAR2 * d[2], s = d[3] - NEAR2 * d[1];
  v[0] = NEAR2 * FAR2 * d[0] - (NEAR2 + FAR2) * d[2] + d[4];
  v[1] = p + NEAR * q;
  v[2] = p - NEAR * q;
  v[3] = r + FAR * s;
  v[4] = r - FAR * s;
  v[5] = NEAR2 * FAR2 * d[1] - (NEAR2 + FAR2) * d[3] + d[5];
}

// B^T d B of a vector of channels from c on: put(place, values). INSIDE: whether all pixels of the tile are in the
// image; a template parameter, so that the compiler unrolls every loop and keeps the tile in registers.
template <bool INSIDE, typename Put>
__attribute__((always_inline)) inline void transform_channels(const float* x, const Size& size, long top, long left,
                                                              long c, Put put) {
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
    for (long j = 0; j < SIDE; ++j) put(i * SIDE + j, row[j]);
  }
}

// v: PLACES matrices, `stride` apart; this tile is one row of each.
template <bool INSIDE>
void transform_input(const float* x, Size size, long top, long left, float* v, long stride) {
  for (long c = 0; c < size.in; c += WIDTH)
    transform_channels<INSIDE>(x, size, top, left, c, [&](long p, Floats all) { store(v + p * stride + c, all); });
}
