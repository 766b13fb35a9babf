// The kernels of winograd_weight_gradient; no include guards, nothing of std.
#ifdef EMFAST_LANES

#include "winograd.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Rows of which the sums and two vectors of outputs fit in the registers, and that divide 16.
constexpr int rows_at_once = EMFAST_LANES == 16 ? 8 : 4;

// Row `row` of B^T d B of one tile. Its groups of 16 channels lie `step` floats apart, its terms `plane` floats.
template <int Wide>
EMFAST_INLINE void transform_tile_row(const WinogradGradient& a, const Tile& tile, int64_t row, int64_t step,
                                      int64_t plane, float* out) {
  constexpr int64_t upper[] = {0, 1, 2, 1}, lower[] = {2, 2, 1, 3};
  const float sign = row == 1 ? 1.0f : -1.0f;
  constexpr int side = Wide + 2;
  const float *x[2 * side], *skip[2 * side] = {};
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t line = i ? lower[row] : upper[row];
    locate_row<Wide>(a, tile, 0, line, a.zeros, x + side * i);
    if (a.inputs[1]) locate_row<Wide>(a, tile, 1, line, a.zeros, skip + side * i);
  }
  for (int64_t c = 0; c < a.depth; c += lanes) {
    vec d[side], v[side];
    const bool whole = c + lanes <= a.channels[0];
#pragma GCC unroll 6
    for (int j = 0; j < side; ++j) {
      const int k = side + j;
      const vec above = whole ? load(x[j] + c) : load_channels(a, x[j], skip[j], c);
      d[j] = above + sign * (whole ? load(x[k] + c) : load_channels(a, x[k], skip[k], c));
    }
    Points<Wide>::image(d, v);
    float* to = out + c / 16 * step + c % 16;
#pragma GCC unroll 6
    for (int j = 0; j < side; ++j) store(to + j * plane, v[j]);
  }
}

// Row `row` of A y A^T of the pixels of one tile and some panels of 32 outputs, which lie `step` floats apart.
template <int Wide>
EMFAST_INLINE void transform_pixels_row(const WinogradGradient& a, const Tile& tile, int64_t row, int64_t first,
                                        int64_t last, int64_t step, int64_t plane, float* out) {
  const float sign = row == 1 ? 1.0f : -1.0f;
  const float* y[2 * Wide];
  for (int64_t i = 0; i < 2 * Wide; ++i) {
    const int64_t v = 2 * tile.row + i / Wide, h = Wide * tile.column + i % Wide;
    const bool read = v < a.height && h < a.width && row != (i < Wide ? 3 : 0);
    y[i] = read ? a.grad + ((tile.image * a.height + v) * a.width + h) * a.outputs : a.zeros;
  }
  for (int64_t d = 32 * first; d < 32 * last; d += lanes, out += d % 32 ? lanes : step - 32 + lanes) {
    const int64_t n = a.outputs - d;
    vec s[Wide], w[Wide + 2];
#pragma GCC unroll 4
    for (int j = 0; j < Wide; ++j) s[j] = n > 0 ? load(y[j] + d, n) + sign * load(y[Wide + j] + d, n) : vec{};
    Points<Wide>::from_result(s, w);
#pragma GCC unroll 6
    for (int j = 0; j < Wide + 2; ++j) store(out + j * plane, w[j]);
  }
}

template <int Wide>
void sum_row(const WinogradGradient& a, int64_t row, int64_t first, int64_t last, float* memory) {
  constexpr int64_t side = Wide + 2;
  const int64_t left_plane = a.length * a.depth + 16, right_step = 32 * a.length;  // + 16: see WinogradGradient
  const int64_t right_plane = (last - first) * right_step + 16;
  float *left = memory, *right = left + side * left_plane;
  Tile tile(a, 0);
  for (int64_t begin = 0; begin < a.all_tiles; begin += a.length) {
    const int64_t n = least(a.length, a.all_tiles - begin), padded = round_up(n, 16);
    for (int64_t t = 0; t < n; ++t, tile.advance(a)) {
      transform_tile_row<Wide>(a, tile, row, 16 * a.length, left_plane, left + 16 * t);
      transform_pixels_row<Wide>(a, tile, row, first, last, right_step, right_plane, right + 32 * t);
    }
    for (int64_t i = 0; i < side && n < padded; ++i) {
      for (int64_t c = 0; c < a.depth; c += 16)
        std::memset(left + i * left_plane + c * a.length + 16 * n, 0, 64 * (padded - n));
      for (int64_t p = 0; p < last - first; ++p)
        std::memset(right + i * right_plane + p * right_step + 32 * n, 0, 128 * (padded - n));
    }
    for (int64_t i = 0; i < side; ++i) {
      if (Wide == 2 && a.upsample && drops(side * row + i)) continue;
      for (int64_t p = first; p < last; ++p) {
        const float* panel = right + i * right_plane + (p - first) * right_step;
        float* out = a.sums + (p * a.terms + side * row + i) * a.plane;
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

// G^T u G of the sums of one input, and as many outputs as a vector has.
template <int Wide>
EMFAST_INLINE void transform_sums(const WinogradGradient& a, const float* sums, vec* out) {
  constexpr int side = Wide + 2;
  vec columns[3][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    vec u[side], g[3];
#pragma GCC unroll 6
    for (int j = 0; j < side; ++j)
      u[j] = Wide == 2 && a.upsample && drops(4 * i + j) ? vec{} : load(sums + (side * i + j) * a.plane);
    Points<Wide>::from_kernel(u, g);
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) columns[j][i] = g[j];
  }
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    vec g[3];
    Points<2>::from_kernel(columns[j], g);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) out[3 * i + j] = g[i];
  }
}

template <int Wide>
void write_weights(const WinogradGradient& a, int64_t panel, int64_t begin) {
  const int64_t inputs = a.channels[0] + a.channels[1], places = 9 * least(16, inputs - begin);
  for (int64_t d = 32 * panel; d < least(32 * panel + 32, a.outputs); d += lanes) {
    const float* sums = a.sums + panel * a.terms * a.plane + begin * 32 + d % 32;
    vec weights[16 * 9];  // (input, place), the outputs side by side
    for (int64_t k = 0; k < 16; ++k) transform_sums<Wide>(a, sums + 32 * k, weights + 9 * k);
    for (int64_t e = 0; e < places; e += lanes) {
      transpose(weights + e);
      for (int64_t i = 0; i < least(lanes, a.outputs - d); ++i)
        store(a.out + ((d + i) * inputs + begin) * 9 + e, weights[e + i], places - e);
    }
  }
}

}  // namespace

// The sums over all tiles of one of four rows of terms: of all inputs, and the outputs of panels [first, last).
void winograd_sum_job(const WinogradGradient& a, int64_t row, int64_t first, int64_t last, float* memory) {
  a.wide == 2 ? sum_row<2>(a, row, first, last, memory) : sum_row<4>(a, row, first, last, memory);
}

// The gradients of the weights of 16 inputs from `begin` on, and the outputs of a panel.
void winograd_weight_job(const WinogradGradient& a, int64_t panel, int64_t begin) {
  a.wide == 2 ? write_weights<2>(a, panel, begin) : write_weights<4>(a, panel, begin);
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
