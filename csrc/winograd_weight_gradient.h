// The kernels of winograd_weight_gradient; no include guards, nothing of std.
#ifdef EMFAST_LANES

#include "winograd.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Rows of which the sums and two vectors of outputs fit in the registers, and that divide 16.
constexpr int rows_at_once = EMFAST_LANES == 16 ? 8 : 4;

// Row `row` of B^T d B of one tile. Its groups of 16 channels lie `step` floats apart, its 4 terms `plane` floats.
EMFAST_INLINE void transform_tile_row(const WinogradGradient& a, const Tile& tile, int64_t row, int64_t step,
                                      int64_t plane, float* out) {
  constexpr int64_t upper[] = {0, 1, 2, 1}, lower[] = {2, 2, 1, 3};
  const float sign = row == 1 ? 1.0f : -1.0f;
  const float *x[8], *skip[8] = {};
  locate_row(a, tile, 0, upper[row], a.zeros, x), locate_row(a, tile, 0, lower[row], a.zeros, x + 4);
  if (a.inputs[1])
    locate_row(a, tile, 1, upper[row], a.zeros, skip), locate_row(a, tile, 1, lower[row], a.zeros, skip + 4);
  for (int64_t c = 0; c < a.depth; c += lanes) {
    vec d[8], t[4];
    if (c + lanes <= a.channels[0])
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) d[i] = load(x[i] + c);
    else
      for (int i = 0; i < 8; ++i) d[i] = load_channels(a, x[i], skip[i], c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) t[i] = d[i] + sign * d[4 + i];
    float* to = out + c / 16 * step + c % 16;
    store(to, t[0] - t[2]), store(to + plane, t[1] + t[2]);
    store(to + 2 * plane, t[2] - t[1]), store(to + 3 * plane, t[1] - t[3]);
  }
}

// Row `row` of A y A^T of the 2 x 2 pixels of one tile and some panels of 32 outputs, which lie `step` floats apart.
EMFAST_INLINE void transform_pixels_row(const WinogradGradient& a, const Tile& tile, int64_t row, int64_t first,
                                        int64_t last, int64_t step, int64_t plane, float* out) {
  const float sign = row == 1 ? 1.0f : -1.0f;
  const float* y[4];
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t v = 2 * tile.row + i / 2, h = 2 * tile.column + i % 2;
    const bool read = v < a.height && h < a.width && row != (i < 2 ? 3 : 0);
    y[i] = read ? a.grad + ((tile.image * a.height + v) * a.width + h) * a.outputs : a.zeros;
  }
  for (int64_t d = 32 * first; d < 32 * last; d += lanes, out += d % 32 ? lanes : step - 32 + lanes) {
    const int64_t n = a.outputs - d;
    const vec l = n > 0 ? load(y[0] + d, n) + sign * load(y[2] + d, n) : vec{};
    const vec r = n > 0 ? load(y[1] + d, n) + sign * load(y[3] + d, n) : vec{};
    store(out, l), store(out + plane, l + r), store(out + 2 * plane, l - r), store(out + 3 * plane, -r);
  }
}

}  // namespace

// The sums over all tiles of one of four rows of terms: of all inputs, and the outputs of panels [first, last).
void winograd_sum_job(const WinogradGradient& a, int64_t row, int64_t first, int64_t last, float* memory) {
  const int64_t left_plane = a.length * a.depth + 16, right_step = 32 * a.length;  // + 16: see WinogradGradient
  const int64_t right_plane = (last - first) * right_step + 16;
  float *left = memory, *right = left + 4 * left_plane;
  Tile tile(a, 0);
  for (int64_t begin = 0; begin < a.all_tiles; begin += a.length) {
    const int64_t n = least(a.length, a.all_tiles - begin), padded = round_up(n, 16);
    for (int64_t t = 0; t < n; ++t, tile.advance(a)) {
      transform_tile_row(a, tile, row, 16 * a.length, left_plane, left + 16 * t);
      transform_pixels_row(a, tile, row, first, last, right_step, right_plane, right + 32 * t);
    }
    for (int64_t i = 0; i < 4 && n < padded; ++i) {
      for (int64_t c = 0; c < a.depth; c += 16)
        std::memset(left + i * left_plane + c * a.length + 16 * n, 0, 64 * (padded - n));
      for (int64_t p = 0; p < last - first; ++p)
        std::memset(right + i * right_plane + p * right_step + 32 * n, 0, 128 * (padded - n));
    }
    for (int64_t i = 0; i < 4; ++i) {
      if (a.upsample && drops(4 * row + i)) continue;
      for (int64_t p = first; p < last; ++p) {
        const float* panel = right + i * right_plane + (p - first) * right_step;
        float* out = a.sums + (p * 16 + 4 * row + i) * a.depth * 32;
        for (int64_t k = 0; k < padded; k += piece)
          for (int64_t c = 0; c < a.depth; c += rows_at_once) {
            const float* rows = left + i * left_plane + c / 16 * 16 * a.length + 16 * k + c % 16;
            const int64_t depth = least(piece, padded - k);
            multiply_rows<rows_at_once, 1, 16, 256>(rows, panel + 32 * k, depth, begin + k > 0, out + 32 * c);
          }
      }
    }
  }
}

// G^T u G of the inputs [begin, end) and a panel of outputs, in the order of the weight.
void winograd_weight_job(const WinogradGradient& a, int64_t panel, int64_t begin, int64_t end) {
  const int64_t inputs = a.channels[0] + a.channels[1], plane = a.depth * 32;
  for (int64_t d = 32 * panel; d < least(32 * panel + 32, a.outputs); d += lanes)
    for (int64_t c = begin; c < least(end, inputs); ++c) {
      const float* from = a.sums + (panel * 16 * a.depth + c) * 32 + d % 32;
      vec u[16], t[12], g[9];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) u[i] = a.upsample && drops(i) ? vec{} : load(from + i * plane);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const vec sum = 0.5f * (u[4 + i] + u[8 + i]);
        t[i] = u[i] + sum, t[4 + i] = 0.5f * (u[4 + i] - u[8 + i]), t[8 + i] = sum + u[12 + i];
      }
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const vec sum = 0.5f * (t[4 * i + 1] + t[4 * i + 2]);
        g[3 * i] = t[4 * i] + sum, g[3 * i + 2] = sum + t[4 * i + 3];
        g[3 * i + 1] = 0.5f * (t[4 * i + 1] - t[4 * i + 2]);
      }
      float buffer[9 * EMFAST_LANES];
#pragma GCC unroll 9
      for (int i = 0; i < 9; ++i) store(buffer + i * lanes, g[i]);
      for (int64_t i = 0; i < least(lanes, a.outputs - d); ++i)
        for (int64_t k = 0; k < 9; ++k) a.out[((d + i) * inputs + c) * 9 + k] = buffer[k * lanes + i];
    }
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
