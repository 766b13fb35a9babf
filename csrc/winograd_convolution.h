// The kernels of winograd_convolution; no include guards, nothing of std.
#ifdef EMFAST_LANES

#include "winograd.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// The sums of so many tiles and two vectors of outputs fill the registers: a vector of 16 floats has 32 of them.
constexpr int most_rows = EMFAST_LANES == 16 ? 14 : 6;

EMFAST_INLINE int64_t blocks_of(int64_t tiles) { return (tiles + most_rows - 1) / most_rows; }

template <int Rows>
EMFAST_INLINE void multiply(int64_t rows, const float* v, const float* u, int64_t depth, bool add, float* out,
                            const float* next, int64_t lines) {
  if (rows == Rows) return multiply_rows<Rows, 16, 1, 16 * Rows>(v, u, depth, add, out, next, lines);
  if constexpr (Rows > 1) multiply<Rows - 1>(rows, v, u, depth, add, out, next, lines);
}

// A^T m A of one tile and up to 32 outputs, plus bias and residual; with a.pool, the sum of its four pixels.
template <int Wide>
EMFAST_INLINE void write_tile(const Winograd& a, const Tile& tile, int64_t place, int64_t plane, const float* sums) {
  constexpr int side = Wide + 2;
  for (int64_t c = 0; c < least(32, a.outputs - place); c += lanes) {
    const int64_t d = place + c, n = a.outputs - d;
    const vec bias = a.bias ? load(a.bias + d, n) : vec{};
    vec columns[Wide][4], y[2][Wide];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      vec m[side], s[Wide];
#pragma GCC unroll 6
      for (int j = 0; j < side; ++j)
        m[j] = Wide == 2 && a.nine && drops(4 * i + j) ? vec{} : load(sums + (side * i + j) * plane + c);
      Points<Wide>::result(m, s);
#pragma GCC unroll 4
      for (int j = 0; j < Wide; ++j) columns[j][i] = s[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < Wide; ++j) {
      vec pair[2];
      Points<2>::result(columns[j], pair);
      y[0][j] = pair[0] + bias, y[1][j] = pair[1] + bias;
    }
    if (Wide == 2 && a.pool) {
      const vec pooled = y[0][0] + y[0][1] + y[1][0] + y[1][1];
      const int64_t pixel = tile.image * a.tiles + tile.row * a.columns + tile.column;
      store(a.out + pixel * a.outputs + d, pooled, n);
      continue;
    }
    for (int64_t i = 0; i < 2 * Wide; ++i) {
      const int64_t v = 2 * tile.row + i / Wide, h = Wide * tile.column + i % Wide;
      if (v >= a.height || h >= a.width) continue;
      const int64_t pixel = (tile.image * a.height + v) * a.width + h;
      const vec r = a.residual ? load(a.residual + pixel * a.outputs + d, n) : vec{};
      store(a.out + pixel * a.outputs + d, y[i / Wide][i % Wide] + r, n);
    }
  }
}

// The weights of up to `lanes` outputs from `first` on, and of 16 inputs: (input, place), the outputs side by side.
EMFAST_INLINE void load_weights(const WinogradKernel& a, int64_t first, int64_t begin, vec* out) {
  const float* from = a.weight + first * a.output_step + begin * a.input_step;
  const int64_t outputs = a.outputs - first, inputs = least(16, a.inner - begin);
  if (a.input_step == 9)
    for (int64_t e = 0; e < 16 * 9; e += lanes) {
      for (int64_t i = 0; i < lanes; ++i)
        out[e + i] = i < outputs && e < 9 * inputs ? load(from + i * a.output_step + e, 9 * inputs - e) : vec{};
      transpose(out + e);
    }
  else
    for (int64_t k = 0; k < 16; ++k)
      for (int64_t e = 0; e < 9; e += lanes) {
        vec rows[EMFAST_LANES];
        for (int64_t i = 0; i < lanes; ++i)
          rows[i] = i < outputs && k < inputs ? load(from + k * a.input_step + 9 * i + e, 9 - e) : vec{};
        transpose(rows);
        for (int64_t i = 0; i < least(9 - e, lanes); ++i) out[9 * k + e + i] = rows[i];
      }
}

// G g G^T of 16 inputs from `begin` on, and the 32 outputs of a panel. Terms are written a row at a time: all at once
// are more than a set of the first cache has places.
template <int Wide>
void transform_weights(const WinogradKernel& a, int64_t panel, int64_t begin) {
  constexpr int side = Wide + 2, parts = 32 / EMFAST_LANES;
  vec columns[4][16][parts][3];
  for (int64_t part = 0; part < parts; ++part) {
    vec weights[16 * 9];
    load_weights(a, 32 * panel + part * lanes, begin, weights);
    for (int64_t k = 0; k < 16; ++k)
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        vec g[3], t[4];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) g[i] = weights[9 * k + (a.flip ? 8 - 3 * i - j : 3 * i + j)];
        Points<2>::kernel(g, t);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) columns[i][k][part][j] = t[i];
      }
  }
  const int64_t plane = a.depth * 32;
  float* out = a.out + (panel * 4 * side * a.depth + begin) * 32;
  for (int64_t i = 0; i < 4; ++i, out += side * plane)
    for (int64_t k = 0; k < 16; ++k)
      for (int64_t part = 0; part < parts; ++part) {
        vec u[side];
        Points<Wide>::kernel(columns[i][k][part], u);
#pragma GCC unroll 6
        for (int j = 0; j < side; ++j) store(out + j * plane + 32 * k + part * lanes, u[j]);
      }
}

template <int Wide>
void convolve_tiles(const Winograd& a, int64_t begin, int64_t end, int64_t first, int64_t last, float* memory) {
  constexpr int terms = 4 * (Wide + 2);
  const int64_t tiles = end - begin, blocks = blocks_of(tiles), lines = (32 + blocks - 1) / blocks;
  const int64_t sums_plane = tiles * 32 + 16;  // not a multiple of a page, which would meet in the cache
  float *zeros = memory, *v = zeros + a.depth, *sums = v + terms * (tiles * a.depth + 16 * blocks);
  float* own = sums + terms * sums_plane;
  const auto start_of = [&](int64_t from, int64_t b) { return v + terms * (from * a.depth + 16 * b); };
  std::memset(zeros, 0, a.depth * sizeof(float));
  Tile tile(a, begin);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = tiles * b / blocks, rows = tiles * (b + 1) / blocks - from;
    for (int64_t t = 0; t < rows; ++t, tile.advance(a))
      transform_tile<Wide>(a, tile, zeros, 16 * rows, rows * a.depth + 16, start_of(from, b) + 16 * t);
  }
  for (int64_t p = first; p < last; ++p) {
    const float* kernel = a.kernel + p * terms * a.depth * 32;
    if (a.weights) {
      WinogradKernel weights = *a.weights;
      weights.out = own - p * terms * a.depth * 32;
      for (int64_t k = 0; k < a.depth; k += 16) transform_weights<Wide>(weights, p, k);
      kernel = own;
    }
    for (int64_t i = 0; i < terms; ++i) {
      if (Wide == 2 && a.nine && drops(i)) continue;
      const float* u = kernel + i * a.depth * 32;
      for (int64_t k = 0; k < a.depth; k += piece)
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t from = tiles * b / blocks, rows = tiles * (b + 1) / blocks - from;
          const float* left = start_of(from, b) + i * (rows * a.depth + 16) + rows * k;
          float* out = sums + i * sums_plane + from * 32;
          const float* next = u + 32 * (k + piece) + 16 * (piece / 16) * lines * b;
          multiply<most_rows>(rows, left, u + 32 * k, least(piece, a.depth - k), k > 0, out, next, lines);
        }
    }
    Tile tile(a, begin);
    for (int64_t t = 0; t < tiles; ++t, tile.advance(a)) write_tile<Wide>(a, tile, 32 * p, sums_plane, sums + 32 * t);
  }
}

}  // namespace

// Computes the outputs of panels [first, last) at tiles [begin, end). Memory: a pixel of zeros, transformed tiles, block
// by block and term by term, sums, and the transformed weights of a panel.
void winograd_job(const Winograd& a, int64_t begin, int64_t end, int64_t first, int64_t last, float* memory) {
  a.wide == 2 ? convolve_tiles<2>(a, begin, end, first, last, memory)
              : convolve_tiles<4>(a, begin, end, first, last, memory);
}

// Transforms the weights of 16 inputs from `begin` on, and the 32 outputs of a panel.
void winograd_kernel_job(const WinogradKernel& a, int64_t panel, int64_t begin) {
  a.wide == 2 ? transform_weights<2>(a, panel, begin) : transform_weights<4>(a, panel, begin);
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
