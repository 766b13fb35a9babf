// The engine of attention that multiplies bfloat16 on AMX tiles: 16 rows of 32 left elements by 16 rows of 16 pairs.
// A right operand's row holds two rows interleaved, so that a word is a pair of the sum.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// 2^(score scale - offset) to 2^-13, which bfloat16 weights do not show, for any offsets.
struct RoughPowers {
  vec scale, offset;

  EMFAST_METHOD RoughPowers(float factor, vec offset) : scale(broadcast(factor)), offset(offset) {}
  EMFAST_METHOD vec of(vec score) const { return exp2_roughly(score * scale - offset); }
};

struct Amx {
  using element = bf16;
  using Exponential = RoughPowers;
  static constexpr bool rough = true, in_place = false;
  static constexpr int64_t rows_step = 16, padding = 32;

  struct Left {
    const bf16* data;
    int64_t row;
  };

  // The 32 elements from p, of which only the first n are there.
  EMFAST_INLINE vec pairs(const bf16* p, int64_t stride, int64_t n) {
    if (stride == 1) {
      const uint64_t mask = n >= 32 ? ~uint64_t{0} : (uint64_t{1} << (n > 0 ? n : 0)) - 1;
      return bits<vec>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), p));
    }
    bf16 buffer[32] = {};
    for (int64_t i = 0; i < least(n, 32); ++i) buffer[i] = p[i * stride];
    vec v;
    std::memcpy(&v, buffer, sizeof v);
    return v;
  }

  // The words (x[i][d + lane], x[i + 1][d + lane]), zero from row n on.
  EMFAST_INLINE vec interleaved(const Attention& a, const Matrix<const bf16>& x, int64_t i, int64_t n, int64_t d) {
    const auto row = [&](int64_t r) { return r < n ? bits<uvec>(fetch(x.at(r, d), x.column, a.size - d)) : uvec{}; };
    return bits<vec>((row(i) >> 16) | row(i + 1));
  }

  struct Panel {
    bf16 *by_key, *by_column;
    int64_t depth, keys;

    Panel(const Attention& a, Arena& arena, bool rows, bool columns)
        : depth(Amx::depth(a.size)), keys(round_up(a.keys, padding)) {
      by_key = rows ? arena.take<bf16>(keys * depth) : nullptr;
      by_column = columns ? arena.take<bf16>(round_up(a.size, rows_step) * keys) : nullptr;
    }
    Left rows(int64_t key) const { return {by_key + key * depth, depth}; }
    Left columns(int64_t key) const { return {by_column + key, keys}; }

    void pack(const Attention& a, const Matrix<const bf16>& x) const {
      for (int64_t j = 0; by_key && j < keys; ++j)
        for (int64_t d = 0; d < depth; d += 32) {
          const vec v = pairs(x.at(least(j, a.keys - 1), d), x.column, j < a.keys ? a.size - d : 0);
          std::memcpy(by_key + j * depth + d, &v, sizeof v);
        }
      vec words[16];
      for (int64_t j = 0; by_column && j < keys; j += 32)
        for (int64_t d = 0; d < a.size; d += 16) {
          for (int64_t i = 0; i < 16; ++i) words[i] = interleaved(a, x, j + 2 * i, a.keys, d);
          transpose(words);
          for (int64_t i = 0; i < 16; ++i) std::memcpy(by_column + (d + i) * keys + j, &words[i], sizeof(vec));
        }
    }
  };

  static int64_t depth(int64_t size) { return round_up(size, 32); }
  static int64_t width(const Attention& a) { return round_up(a.size, 16); }
  static int64_t words(int64_t depth, int64_t columns) { return depth * columns; }

  static void pack_columns(const Attention& a, const Matrix<const bf16>& x, int64_t first, int64_t count, bf16* out) {
    vec words[16];
    for (int64_t c = 0; c < tile; c += 16)
      for (int64_t d = 0; d < depth(a.size); d += 32) {
        for (int64_t i = 0; i < 16; ++i)
          words[i] = pairs(x.at(first + least(c + i, count - 1), d), x.column, a.size - d);
        transpose(words);
        for (int64_t i = 0; i < 16; ++i) std::memcpy(out + (d / 2 + i) * 2 * tile + 2 * c, &words[i], sizeof(vec));
      }
  }

  static void pack_rows(const Attention& a, const Matrix<const bf16>& x, int64_t first, int64_t count, bf16* out) {
    const int64_t n = width(a);
    for (int64_t i = 0; i < tile; i += 2)
      for (int64_t d = 0; d < n; d += 16) {
        const vec v = interleaved(a, x, first + i, first + count, d);
        std::memcpy(out + i * n + 2 * d, &v, sizeof v);
      }
  }

  // Rounds by adding half a unit to the bits: two instructions less than the conversions, and as good but for ties.
  EMFAST_INLINE void put_right(bf16* out, int64_t key, int64_t c, vec even, vec odd) {
    const uvec low = (bits<uvec>(even) + 0x8000) >> 16, high = bits<uvec>(odd) + 0x8000;
    const __m512i words = _mm512_mask_blend_epi16(0xaaaaaaaa, bits<__m512i>(low), bits<__m512i>(high));
    _mm512_storeu_si512(out + key * tile + 2 * c, words);
  }
  EMFAST_INLINE void put_left(bf16* out, int64_t key, vec first, vec second) {
    const __m512bh row = _mm512_cvtne2ps_pbh(bits<__m512>(second), bits<__m512>(first));
    std::memcpy(out + key * tile, &row, sizeof row);
  }

  static void multiply(float* out, int64_t stride, Left left, const bf16* right, int64_t rows, int64_t columns,
                       int64_t depth, bool add) {
    if (depth == 32 && columns == 32 && stride == 32 && rows % 32 == 0 && !add)
      return tile_rows(out, left.data, left.row, right, rows);
    for (int64_t r = 0; r < rows; r += 32)
      for (int64_t c = 0; c < columns; c += 32) {
        const Left l{left.data + r * left.row, left.row};
        const bool two_rows = rows - r > 16, two_columns = columns - c > 16;
        const auto block = two_rows ? two_columns ? &tile_product<2, 2> : &tile_product<2, 1>
                                    : two_columns ? &tile_product<1, 2> : &tile_product<1, 1>;
        block(out + r * stride + c, stride, l.data, l.row, right + 2 * c, depth, add);
      }
  }

  static void multiply_queries(const Attention& a, float* out, Left left, const bf16* right, int64_t rows, int64_t) {
    multiply(out, width(a), left, right, rows, width(a), tile, true);
  }
  static Left left_of(const bf16* buffer) { return {buffer, tile}; }
  static vec row_of(const Attention&, const float* row, int64_t d) { return load(row + d); }

  static void begin() { begin_tiles(); }
  static void end() { end_tiles(); }
};

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
