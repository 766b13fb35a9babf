// The engine of attention that multiplies in float32, for every instruction set and dtype.
// A product is out = left right, with left read as broadcast scalars of any strides and right row by row. If a head is
// so small that its row fills only half a vector, right operands over queries hold two rows interleaved: a vector then
// sums even and odd queries in its even and odd lanes, which are added at the very end.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

struct Float {
  using element = float;
  using Exponential = Powers;
  static constexpr bool rough = false, in_place = true;  // left and right operands replace the scores
  static constexpr int64_t rows_step = 8, padding = 8;       // of the rows of a result, and of keys

  struct Left {
    const float* data;
    int64_t row, step;
  };

  // Keys or values of a head: rows are (keys, D), columns (D, keys).
  struct Panel {
    float* data;
    int64_t stride;

    Panel(const Attention& a, Arena& arena, bool, bool) : stride(round_up(a.size, 8)) {
      data = arena.take<float>(round_up(a.keys, padding) * stride);
    }
    Left rows(int64_t key) const { return {data + key * stride, stride, 1}; }
    Left columns(int64_t key) const { return {data + key * stride, 1, stride}; }

    template <typename T>
    void pack(const Attention& a, const Matrix<T>& x) const {
      for (int64_t j = 0; j < round_up(a.keys, padding); ++j)
        for (int64_t d = 0; d < stride; d += lanes) {
          const vec v = j < a.keys && d < a.size ? fetch(x.at(j, d), x.column, a.size - d) : vec{};
          put(data + j * stride + d, v, stride - d);
        }
    }
  };

  static bool paired(const Attention& a) { return 2 * a.size <= lanes; }
  static int64_t depth(int64_t size) { return size; }                       // of a sum over D
  static int64_t width(const Attention& a) { return round_up(a.size, lanes); }  // of a right operand's row over D
  static int64_t words(int64_t depth, int64_t columns) { return depth * columns; }

  // (D, tile) from rows; columns beyond the last row repeat it, so that they bring in no NaN of their own.
  template <typename T>
  static void pack_columns(const Attention& a, const Matrix<T>& x, int64_t first, int64_t count, float* out) {
    vec rows[EMFAST_LANES];
    for (int64_t c = 0; c < tile; c += lanes)
      for (int64_t d = 0; d < a.size; d += lanes) {
        for (int64_t i = 0; i < lanes; ++i)
          rows[i] = fetch(x.at(first + least(c + i, count - 1), d), x.column, a.size - d);
        transpose(rows);
        for (int64_t i = 0; i < least(lanes, a.size - d); ++i) store(out + (d + i) * tile + c, rows[i]);
      }
  }

  // (queries, D), or interleaved pairs of them.
  template <typename T>
  static void pack_rows(const Attention& a, const Matrix<T>& x, int64_t first, int64_t count, float* out) {
    const int64_t n = width(a);
    if (paired(a)) {
      for (int64_t i = 0; i < tile; ++i)
        for (int64_t d = 0; d < lanes / 2; ++d) out[i / 2 * lanes + 2 * d + i % 2] = 0;
      for (int64_t i = 0; i < count; ++i) {
        float row[EMFAST_LANES];
        store(row, fetch(x.at(first + i, 0), x.column, a.size));
        for (int64_t d = 0; d < a.size; ++d) out[i / 2 * lanes + 2 * d + i % 2] = row[d];
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < n; d += lanes) store(out + i * n + d, fetch(x.at(first + i, d), x.column, a.size - d));
  }

  // Two consecutive rows of a (keys, tile) buffer, which serves as left and as right operand.
  EMFAST_INLINE void put_right(float* out, int64_t key, int64_t c, vec even, vec odd) {
    store(out + key * tile + c, even), store(out + (key + 1) * tile + c, odd);
  }
  EMFAST_INLINE void put_left(float* out, int64_t key, vec first, vec second) {
    store(out + key * tile, first), store(out + key * tile + lanes, second);
  }

  template <int Rows, int Columns, bool Paired>
  EMFAST_INLINE void product(float* out, int64_t stride, Left left, const float* right, int64_t depth, bool add) {
    vec sums[Rows][Columns];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) sums[r][c] = vec{};
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; k += Paired ? 2 : 1, right += stride, left.data += Paired ? 2 : left.step) {
      vec b[Columns];
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) b[c] = load(right + c * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const vec l = Paired ? splat_pair(left.data + r * left.row) : splat(left.data + r * left.row);
#pragma GCC unroll 2
        for (int c = 0; c < Columns; ++c) sums[r][c] += l * b[c];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) {
        float* o = out + r * stride + c * lanes;
        store(o, add ? load(o) + sums[r][c] : sums[r][c]);
      }
  }

  EMFAST_INLINE vec splat_pair(const float* p) {
    double pair;
    std::memcpy(&pair, p, sizeof pair);
    typedef double wide __attribute__((vector_size(EMFAST_LANES * 4)));
    return bits<vec>(pair - wide{});
  }

  // out (rows, columns) = left (rows, depth) right (depth, columns), added to out or not. Sums are taken in pieces, so
  // that their rounding errors grow with the length of a piece.
  template <bool Paired>
  static void multiply_as(float* out, int64_t stride, Left left, const float* right, int64_t rows, int64_t columns,
                          int64_t depth, bool add) {
    constexpr int block = EMFAST_LANES == 16 ? 8 : 4;  // as many sums as registers hold
    constexpr int64_t piece = 64;
    for (int64_t k = 0; k < depth; k += piece)
      for (int64_t c = 0; c < columns; c += 2 * lanes)
        for (int64_t r = 0; r < rows; r += block) {
          const Left l{left.data + r * left.row + k * left.step, left.row, left.step};
          const float* b = right + k / (Paired ? 2 : 1) * stride + c;
          float* o = out + r * stride + c;
          if (columns - c >= 2 * lanes)
            product<block, 2, Paired>(o, stride, l, b, least(piece, depth - k), add || k > 0);
          else
            product<block, 1, Paired>(o, stride, l, b, least(piece, depth - k), add || k > 0);
        }
  }

  static void multiply(float* out, int64_t stride, Left left, const float* right, int64_t rows, int64_t columns,
                       int64_t depth, bool add) {
    multiply_as<false>(out, stride, left, right, rows, columns, depth, add);
  }

  // The same for left (keys, tile) and right (queries, D) of a tile with `count` queries.
  static void multiply_queries(const Attention& a, float* out, Left left, const float* right, int64_t rows,
                               int64_t count) {
    const int64_t n = width(a);
    paired(a) ? multiply_as<true>(out, n, left, right, rows, n, count, true)
              : multiply_as<false>(out, n, left, right, rows, n, count, true);
  }
  static Left left_of(const float* buffer) { return {buffer, tile, 1}; }

  // A row over D of multiply_queries' result.
  static vec row_of(const Attention& a, const float* row, int64_t d) {
    if (!paired(a)) return load(row + d);
    float sums[EMFAST_LANES] = {};
    for (int64_t i = 0; i < lanes / 2; ++i) sums[i] = row[2 * i] + row[2 * i + 1];
    return load(sums);
  }

  static void begin() {}
  static void end() {}
};

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
