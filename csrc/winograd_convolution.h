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
EMFAST_INLINE void multiply(int64_t rows, const float* v, const float* u, int64_t depth, bool add, float* out) {
  if (rows == Rows) return multiply_rows<Rows, 16, 1, 256 * Rows>(v, u, depth, add, out);
  if constexpr (Rows > 1) multiply<Rows - 1>(rows, v, u, depth, add, out);
}

// A^T m A of one tile and up to 32 outputs, plus bias and residual; with a.pool, the sum of its four pixels.
EMFAST_INLINE void write_tile(const Winograd& a, const Tile& tile, int64_t place, int64_t plane, const float* sums) {
  for (int64_t c = 0; c < least(32, a.outputs - place); c += lanes) {
    const int64_t d = place + c, n = a.outputs - d;
    const vec bias = a.bias ? load(a.bias + d, n) : vec{};
    vec m[16], s[8];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) m[i] = a.nine && drops(i) ? vec{} : load(sums + i * plane + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      s[i] = m[i] + m[4 + i] + m[8 + i], s[4 + i] = m[4 + i] - m[8 + i] - m[12 + i];
    vec y[4];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      y[2 * i] = s[4 * i] + s[4 * i + 1] + s[4 * i + 2] + bias;
      y[2 * i + 1] = s[4 * i + 1] - s[4 * i + 2] - s[4 * i + 3] + bias;
    }
    if (a.pool) {
      const vec pooled = y[0] + y[1] + y[2] + y[3];
      const int64_t pixel = tile.image * a.tiles + tile.row * a.columns + tile.column;
      store(a.out + pixel * a.outputs + d, pooled, n);
      continue;
    }
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t v = 2 * tile.row + i / 2, h = 2 * tile.column + i % 2;
      if (v >= a.height || h >= a.width) continue;
      const int64_t pixel = (tile.image * a.height + v) * a.width + h;
      const vec r = a.residual ? load(a.residual + pixel * a.outputs + d, n) : vec{};
      store(a.out + pixel * a.outputs + d, y[i] + r, n);
    }
  }
}

// The first n of a vector of floats that lie `step` apart, the rest zero.
EMFAST_INLINE vec gather(const float* p, int64_t step, int64_t n) {
#if EMFAST_LANES == 16
  ivec index;
  for (int i = 0; i < 16; ++i) index[i] = static_cast<int32_t>(i * step);
  if (n >= 16) return bits<vec>(_mm512_i32gather_ps(bits<__m512i>(index), p, 4));
#endif
  float buffer[EMFAST_LANES] = {};
  for (int64_t i = 0; i < least(n, lanes); ++i) buffer[i] = p[i * step];
  return load(buffer);
}

}  // namespace

// Computes the outputs of panels [first, last) at tiles [begin, end). Memory: transformed tiles, then sums.
void winograd_job(const Winograd& a, int64_t begin, int64_t end, int64_t first, int64_t last, float* memory) {
  const int64_t tiles = end - begin, blocks = blocks_of(tiles);
  const int64_t sums_plane = tiles * 32 + 16;  // not a multiple of a page, which would meet in the cache
  float *zeros = memory, *v = zeros + a.depth, *sums = v + 16 * tiles * a.depth;
  std::memset(zeros, 0, a.depth * sizeof(float));
  Tile tile(a, begin);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = tiles * b / blocks, rows = tiles * (b + 1) / blocks - from;
    for (int64_t t = 0; t < rows; ++t, tile.advance(a))
      transform_tile(a, tile, zeros, 256 * rows, 16 * rows, v + 16 * (from * a.depth + t));
  }
  for (int64_t p = first; p < last; ++p) {
    for (int64_t i = 0; i < 16; ++i) {
      if (a.nine && drops(i)) continue;
      const float* u = a.kernel + (p * 16 + i) * a.depth * 32;
      for (int64_t k = 0; k < a.depth; k += piece)
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t from = tiles * b / blocks, rows = tiles * (b + 1) / blocks - from;
          const float* left = v + 16 * (from * a.depth + rows * (i + k));
          float* out = sums + i * sums_plane + from * 32;
          multiply<most_rows>(rows, left, u + 32 * k, least(piece, a.depth - k), k > 0, out);
        }
    }
    Tile tile(a, begin);
    for (int64_t t = 0; t < tiles; ++t, tile.advance(a)) write_tile(a, tile, 32 * p, sums_plane, sums + 32 * t);
  }
}

// G g G^T of the inputs [begin, end), 32 outputs each: (16, depth, 32).
void winograd_kernel_job(const WinogradKernel& a, int64_t panel, int64_t begin, int64_t end) {
  for (int64_t c = 0; c < 32; c += lanes)  // vectors of one row each: so few rows stay in the first cache
    for (int64_t k = begin; k < end; ++k) {
      const int64_t d = 32 * panel + c, n = k < a.inner ? least(a.outputs - d, lanes) : 0;
      const float* from = n > 0 ? a.weight + d * a.output_step + k * a.input_step : a.weight;
      vec g[9], t[12];
#pragma GCC unroll 9
      for (int i = 0; i < 9; ++i) g[i] = gather(from + (a.flip ? 8 - i : i), a.output_step, n);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const vec outer = 0.5f * (g[i] + g[6 + i]), middle = 0.5f * g[3 + i];
        t[i] = g[i], t[3 + i] = outer + middle, t[6 + i] = outer - middle, t[9 + i] = g[6 + i];
      }
      float* out = a.out + (panel * 16 * a.depth + k) * 32 + c;
      const int64_t plane = a.depth * 32;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const vec outer = 0.5f * (t[3 * i] + t[3 * i + 2]), middle = 0.5f * t[3 * i + 1];
        store(out + 4 * i * plane, t[3 * i]), store(out + (4 * i + 1) * plane, outer + middle);
        store(out + (4 * i + 2) * plane, outer - middle), store(out + (4 * i + 3) * plane, t[3 * i + 2]);
      }
    }
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
