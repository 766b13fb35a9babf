// The kernels of winograd_convolution; no include guards, nothing of std.
#ifdef EMFAST_LANES

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Sums of `most_rows` tiles and two vectors of outputs fill the registers; a vector of 16 leaves 32 of them.
constexpr int64_t piece = 128;  // of the sums over channels: its part of the kernels stays in the first cache
constexpr int most_rows = EMFAST_LANES == 16 ? 14 : 6;

EMFAST_INLINE bool drops(int64_t i) { return i / 4 == 2 || i % 4 == 2; }
EMFAST_INLINE int64_t blocks_of(int64_t tiles) { return (tiles + most_rows - 1) / most_rows; }

EMFAST_INLINE vec load_channels(const Winograd& a, const float* x, const float* skip, int64_t c) {
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

  Tile(const Winograd& a, int64_t i) : image(i / a.tiles), row(i % a.tiles / a.columns), column(i % a.columns) {}
  EMFAST_INLINE void advance(const Winograd& a, Tile& t) {
    if (++t.column < a.columns) return;
    t.column = 0;
    if (++t.row < a.tiles / a.columns) return;
    t.row = 0, ++t.image;
  }
};

// Where the 4 x 4 pixels of a tile are in an input; what is outside is a pixel of zeros.
EMFAST_INLINE void locate(const Winograd& a, const Tile& tile, int input, const float* zeros, const float* pixels[16]) {
  const int64_t shift = a.upsample, channels = a.channels[input];
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t y = 2 * tile.row - 1 + i, line = tile.image * (a.height >> shift) + (y >> shift);
    const float* row = a.inputs[input] + line * (a.width >> shift) * channels;
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t x = 2 * tile.column - 1 + j;
      const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
      pixels[4 * i + j] = inside ? row + (x >> shift) * channels : zeros;
    }
  }
}

// B^T d B of one tile. Its groups of 16 channels lie `step` floats apart, its 16 terms `plane` floats.
EMFAST_INLINE void transform_tile(const Winograd& a, const Tile& tile, const float* zeros, int64_t step, int64_t plane,
                                  float* out) {
  const float *x[16], *skip[16] = {};
  locate(a, tile, 0, zeros, x);
  if (a.inputs[1]) locate(a, tile, 1, zeros, skip);
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

// out (Rows, 32) = v (Rows, depth) u (depth, 32), added to out or not; v lies in groups of 16: (depth / 16, Rows, 16).
template <int Rows>
void multiply_rows(const float* v, const float* u, int64_t depth, bool add, float* out) {
  for (int64_t column = 0; column < 32; column += 2 * lanes) {
    vec sums[Rows][2] = {};
    const float *left = v, *right = u + column;
    for (int64_t k = 0; k < depth; k += 16, left += 256 * Rows - 16) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < 16; ++i, ++left, right += 32) {
        __builtin_prefetch(right + 32 * piece, 0, 2), __builtin_prefetch(right + 32 * piece + 16, 0, 2);
        const vec low = load(right), high = load(right + lanes);
#pragma GCC unroll 14
        for (int r = 0; r < Rows; ++r) {
          const vec l = left[16 * r] - vec{};
          sums[r][0] += l * low, sums[r][1] += l * high;
        }
      }
    }
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
      float* to = out + 32 * r + column;
      store(to, add ? load(to) + sums[r][0] : sums[r][0]);
      store(to + lanes, add ? load(to + lanes) + sums[r][1] : sums[r][1]);
    }
  }
}

template <int Rows>
EMFAST_INLINE void multiply(int64_t rows, const float* v, const float* u, int64_t depth, bool add, float* out) {
  if (rows == Rows) return multiply_rows<Rows>(v, u, depth, add, out);
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

EMFAST_INLINE vec gather(const float* p, int64_t step, int64_t n) {
  float buffer[EMFAST_LANES] = {};
  for (int64_t i = 0; i < least(n, lanes); ++i) buffer[i] = p[i * step];
  return load(buffer);
}

}  // namespace

// Computes the outputs of panels [first, last) at tiles [begin, end). Memory: transformed tiles, then sums.
void winograd_job(const Winograd& a, const int64_t begin, int64_t end, int64_t first, int64_t last, float* memory) {
  const int64_t tiles = end - begin, blocks = blocks_of(tiles);
  const int64_t plane = tiles * a.depth + 16, sums_plane = tiles * 32 + 16;  // 16: not a multiple of a page
  float *zeros = memory, *v = zeros + a.depth, *sums = v + 16 * plane;
  std::memset(zeros, 0, a.depth * sizeof(float));
  Tile tile(a, begin);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = tiles * b / blocks, rows = tiles * (b + 1) / blocks - from;
    for (int64_t t = 0; t < rows; ++t, Tile::advance(a, tile))
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
          multiply<most_rows>(rows, left, u + 32 * k, least(piece, a.depth - k), k > 0, sums + i * sums_plane + from * 32);
        }
    }
    Tile tile(a, begin);
    for (int64_t t = 0; t < tiles; ++t, Tile::advance(a, tile)) write_tile(a, tile, 32 * p, sums_plane, sums + 32 * t);
  }
}

// G g G^T of the inputs [begin, end), 32 outputs each: (16, depth, 32).
void winograd_kernel_job(const WinogradKernel& a, int64_t panel, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k)
    for (int64_t c = 0; c < 32; c += lanes) {
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
