// What the kernels of Winograd's convolution and of its weight gradient share; no include guards, nothing of std.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t piece = 128;  // of a sum: the right operand of so many terms stays in the first cache

EMFAST_INLINE bool drops(int64_t i) { return i / 4 == 2 || i % 4 == 2; }

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

// Where the four pixels of a row of a tile are in an input; what is outside is a pixel of zeros.
EMFAST_INLINE void locate_row(const WinogradImages& a, const Tile& tile, int input, int64_t row, const float* zeros,
                              const float* pixels[4]) {
  const int64_t shift = a.upsample, channels = a.channels[input], y = 2 * tile.row - 1 + row;
  const int64_t line = tile.image * (a.height >> shift) + (y >> shift);
  const float* start = a.inputs[input] + line * (a.width >> shift) * channels;
  for (int64_t j = 0; j < 4; ++j) {
    const int64_t x = 2 * tile.column - 1 + j;
    const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
    pixels[j] = inside ? start + (x >> shift) * channels : zeros;
  }
}

// B^T d B of one tile. Its groups of 16 channels lie `step` floats apart, its 16 terms `plane` floats.
EMFAST_INLINE void transform_tile(const WinogradImages& a, const Tile& tile, const float* zeros, int64_t step,
                                  int64_t plane, float* out) {
  const float *x[16], *skip[16] = {};
  for (int64_t i = 0; i < 4; ++i) {
    locate_row(a, tile, 0, i, zeros, x + 4 * i);
    if (a.inputs[1]) locate_row(a, tile, 1, i, zeros, skip + 4 * i);
  }
  for (int64_t c = 0; c < a.depth; c += lanes) {
    vec d[16], t[16];
    if (c + lanes <= a.channels[0])
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) d[i] = load(x[i] + c);
    else
      for (int i = 0; i < 16; ++i) d[i] = load_channels(a, x[i], skip[i], c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = d[i] - d[8 + i], t[4 + i] = d[4 + i] + d[8 + i];
      t[8 + i] = d[8 + i] - d[4 + i], t[12 + i] = d[4 + i] - d[12 + i];
    }
    float* to = out + c / 16 * step + c % 16;
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      store(to + i * plane, t[i] - t[i + 2]), store(to + (i + 1) * plane, t[i + 1] + t[i + 2]);
      store(to + (i + 2) * plane, t[i + 2] - t[i + 1]), store(to + (i + 3) * plane, t[i + 1] - t[i + 3]);
    }
  }
}

// out (Rows, 32) = the sum over `depth` of left and right (depth, 32), added to out or not. Left is read `Row` floats
// from row to row, `Step` from one of 16 terms to the next, and `Group` from 16 terms to the next 16. The next piece of
// the right operand is asked for early: weights come from far away.
template <int Rows, int Row, int Step, int Group>
void multiply_rows(const float* left, const float* right, int64_t depth, bool add, float* out) {
  for (int64_t column = 0; column < 32; column += 2 * lanes) {
    vec sums[Rows][2] = {};
    for (int64_t k = 0; k < depth; k += 16) {
      const float *l = left + k / 16 * Group, *r = right + 32 * k + column;
#pragma GCC unroll 2
      for (int64_t i = 0; i < 16; ++i, l += Step, r += 32) {
        __builtin_prefetch(r + 32 * piece, 0, 2), __builtin_prefetch(r + 32 * piece + 16, 0, 2);
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
