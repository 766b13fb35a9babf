// The kernels of winograd_weight_gradient; no include guards, nothing of std.
#ifdef EMFAST_LANES

#include "winograd.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Rows of which the sums and two vectors of outputs fit in the registers, and that divide 16.
constexpr int rows_at_once = EMFAST_LANES == 16 ? 8 : 4;

// A y A^T of the 2 x 2 pixels of one tile. Panels of 32 outputs lie `step` floats apart, the 16 terms `plane` floats.
EMFAST_INLINE void transform_pixels(const WinogradGradient& a, const Tile& tile, int64_t step, int64_t plane,
                                    float* out) {
  for (int64_t d = 0; d < 32 * a.panels; d += lanes) {
    vec y[4], t[8];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t v = 2 * tile.row + i / 2, h = 2 * tile.column + i % 2, n = a.outputs - d;
      const float* pixel = a.grad + ((tile.image * a.height + v) * a.width + h) * a.outputs;
      y[i] = v < a.height && h < a.width && n > 0 ? load(pixel + d, n) : vec{};
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      t[i] = y[i], t[2 + i] = y[i] + y[2 + i], t[4 + i] = y[i] - y[2 + i], t[6 + i] = -y[2 + i];
    float* to = out + d / 32 * step + d % 32;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const vec l = t[2 * i], r = t[2 * i + 1];
      store(to + 4 * i * plane, l), store(to + (4 * i + 1) * plane, l + r);
      store(to + (4 * i + 2) * plane, l - r), store(to + (4 * i + 3) * plane, -r);
    }
  }
}

}  // namespace

// Transforms the tiles first + [begin, end) of both images; those behind the last one are zero.
void winograd_transform_job(const WinogradGradient& a, int64_t first, int64_t begin, int64_t end, const float* zeros) {
  const int64_t last = least(end, a.all_tiles - first);
  Tile tile(a, first + begin);
  for (int64_t t = begin; t < last; ++t, tile.advance(a)) {
    transform_tile(a, tile, zeros, 16 * a.length, a.left_plane, a.left + 16 * t);
    transform_pixels(a, tile, 32 * a.length, a.right_plane, a.right + 32 * t);
  }
  for (int64_t i = 0; i < 16 && last < end; ++i) {
    const int64_t from = last > begin ? last : begin;
    for (int64_t c = 0; c < a.depth; c += 16)
      std::memset(a.left + i * a.left_plane + c * a.length + 16 * from, 0, 64 * (end - from));
    for (int64_t p = 0; p < a.panels; ++p)
      std::memset(a.right + i * a.right_plane + (p * a.length + from) * 32, 0, 128 * (end - from));
  }
}

// One of 16 products of all inputs and the outputs of a panel.
void winograd_product_job(const WinogradGradient& a, int64_t term, int64_t panel, bool add) {
  if (a.upsample && drops(term)) return;
  const float* left = a.left + term * a.left_plane;
  const float* right = a.right + term * a.right_plane + panel * a.length * 32;
  float* out = a.sums + (panel * 16 + term) * a.depth * 32;
  for (int64_t k = 0; k < a.length; k += piece)
    for (int64_t c = 0; c < a.depth; c += rows_at_once) {
      const float* rows = left + c / 16 * 16 * a.length + 16 * k + c % 16;
      const int64_t depth = least(piece, a.length - k);
      multiply_rows<rows_at_once, 1, 16, 256>(rows, right + 32 * k, depth, add || k > 0, out + 32 * c);
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
