// What the kernels of Winograd's convolution and of its weight gradient share; no include guards, nothing of std.

#include "winograd_points.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t piece = 64;  // of a sum: rounding errors of longer ones are larger

EMFAST_INLINE bool drops(int64_t i) { return i / 4 == 2 || i % 4 == 2; }  // of 16 terms, the 7 that vanish

EMFAST_INLINE vec load_channels(const WinogradImages& a, const float* x, const float* skip, int64_t c) {
  const int64_t n = a.channels[0] - c;  // how many of x are left
  if (n >= lanes) return load(x + c);
  if (n <= 0 && a.channels[1] + n >= lanes) return load(skip - n);
  float buffer[EMFAST_LANES] = {};
  for (int64_t i = 0; i < lanes; ++i)
    if (i < n)
      buffer[i] = x[c + i];
    else if (i - n < a.channels[1])
      buffer[i] = skip[i - n];
  return load(buffer);
}

// A tile's image, and its place there. Divisions are slow: the next one follows from the last.
struct Tile {
  int64_t image, row, column;

  Tile(const WinogradImages& a, int64_t i) : image(i / a.tiles), row(i % a.tiles / a.columns), column(i % a.columns) {}
  void advance(const WinogradImages& a) {
    if (++column < a.columns) return;
    column = 0;
    if (++row < a.tiles / a.columns) return;
    row = 0, ++image;
  }
};

// Where the pixels of a row of a tile are in an input; what is outside is a pixel of zeros.
template <int Wide>
EMFAST_INLINE void locate_row(const WinogradImages& a, const Tile& tile, int input, int64_t row, const float* zeros,
                              const float* pixels[Wide + 2]) {
  const int64_t shift = a.upsample, channels = a.channels[input], y = 2 * tile.row - 1 + row;
  const int64_t line = tile.image * (a.height >> shift) + (y >> shift);
  const float* start = a.inputs[input] + line * (a.width >> shift) * channels;
  for (int64_t j = 0; j < Wide + 2; ++j) {
    const int64_t x = Wide * tile.column - 1 + j;
    const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
    pixels[j] = inside ? start + (x >> shift) * channels : zeros;
  }
}

// B^T d B of one tile. Its groups of 16 channels lie `step` floats apart, its terms `plane` floats.
template <int Wide>
EMFAST_INLINE void transform_tile(const WinogradImages& a, const Tile& tile, const float* zeros, int64_t step,
                                  int64_t plane, float* out) {
  constexpr int side = Wide + 2;
  const float *x[4 * side], *skip[4 * side] = {};
  for (int64_t i = 0; i < 4; ++i) {
    locate_row<Wide>(a, tile, 0, i, zeros, x + side * i);
    if (a.inputs[1]) locate_row<Wide>(a, tile, 1, i, zeros, skip + side * i);
  }
  for (int64_t c = 0; c < a.depth; c += lanes) {
    vec rows[4][side];
    const bool whole = c + lanes <= a.channels[0];
#pragma GCC unroll 6
    for (int j = 0; j < side; ++j) {
      vec d[4], t[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int p = side * i + j;
        d[i] = whole ? load(x[p] + c) : load_channels(a, x[p], skip[p], c);
      }
      Points<2>::image(d, t);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) rows[i][j] = t[i];
    }
    float* to = out + c / 16 * step + c % 16;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      vec v[side];
      Points<Wide>::image(rows[i], v);
#pragma GCC unroll 6
      for (int j = 0; j < side; ++j) store(to + (side * i + j) * plane, v[j]);
    }
  }
}

// out (Rows, 32) = the sum over `depth` of left and right (depth, 32), added to out or not. Left is read `Row` floats
// from row to row, `Step` from one of 16 terms to the next, and `Group` from 16 terms to the next 16. Meanwhile some of
// what is read next is asked for, for every 16 terms `lines` of 16 floats: weights come from far away.
template <int Rows, int Row, int Step, int Group>
void multiply_rows(const float* left, const float* right, int64_t depth, bool add, float* out,
                   const float* next = nullptr, int64_t lines = 0) {
  for (int64_t column = 0; column < 32; column += 2 * lanes) {
    vec sums[Rows][2] = {};
    for (int64_t k = 0; k < depth; k += 16) {
      const float *l = left + k / 16 * Group, *r = right + 32 * k + column;
#pragma GCC unroll 2
      for (int64_t i = 0; i < 16; ++i, l += Step, r += 32) {
        for (int64_t j = i; j < lines; j += 16, next += 16) __builtin_prefetch(next, 0, 2);
        const vec low = load(r), high = load(r + lanes);
#pragma GCC unroll 14
        for (int row = 0; row < Rows; ++row) {
          const vec scalar = l[Row * row] - vec{};  // x - 0 is x, so that only the broadcast is left
          sums[row][0] += scalar * low, sums[row][1] += scalar * high;
        }
      }
    }
#pragma GCC unroll 14
    for (int row = 0; row < Rows; ++row) {
      float* to = out + 32 * row + column;
      store(to, add ? load(to) + sums[row][0] : sums[row][0]);
      store(to + lanes, add ? load(to + lanes) + sums[row][1] : sums[row][1]);
    }
  }
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
