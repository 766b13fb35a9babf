// The kernels of attention, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
// Vectors run over queries: a tile of scores is (keys, queries), so that maxima, sums and rescaling are lane by lane,
// and keys and values enter products as broadcast scalars. What multiplies is an engine: Float, or Amx with bfloat16.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t tile = 2 * lanes;  // queries

// Keys at a time: so few that scores stay in the first-level cache, and more where results are long to go over.
EMFAST_INLINE int64_t forward_block(const Attention& a) { return a.amx && a.size <= 32 ? 128 : 256; }
EMFAST_INLINE int64_t backward_block(const Attention& a) { return a.amx && a.size <= 32 ? 32 : 256; }

#define EMFAST_METHOD inline __attribute__((always_inline))

EMFAST_INLINE vec splat(const float* p) { return *p - vec{}; }  // x - 0 is x, so that only the broadcast is left

// The larger one; b if either is NaN.
EMFAST_INLINE vec maximum(vec a, vec b) {
#if EMFAST_LANES == 16
  return bits<vec>(_mm512_max_ps(bits<__m512>(a), bits<__m512>(b)));
#elif EMFAST_LANES == 8
  return bits<vec>(_mm256_max_ps(bits<__m256>(a), bits<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

EMFAST_INLINE vec whole(vec x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23: the nearest integer

// 2^(score scale - offset) to 1 unit in the last place, for offsets that are whole and not far below the largest score
// scale: the integer to take off is then found and taken off by one operation each. 0 from 2^-127 down.
struct Powers {
  vec scale, base, lowest;

  EMFAST_METHOD Powers(float factor, vec offset) : scale(broadcast(factor)), base(12583039.0f - offset) {
    const vec size = maximum(offset, -offset);  // of scores so large that whole numbers are not exact, clamp more
    lowest = (offset - (size < 1048576.0f ? broadcast(127.0f) : broadcast(100.0f))) * (1.0f / factor);
  }

  EMFAST_METHOD vec of(vec score) const {
    score = maximum(lowest, score);
    const vec shifted = score * scale + base, r = score * scale - (shifted - base);
    vec p = r * 1.3276471993e-03f + 9.6755413345e-03f;
    p = p * r + 5.5507132735e-02f;
    p = p * r + 2.4022119724e-01f;
    p = p * r + 6.9314696706e-01f;
    p = p * r + 1.0000000717e+00f;
    return p * bits<vec>(bits<ivec>(shifted) << 23);  // 127 is in base, so that this is 2^n
  }
};

// The first n > 0 elements of a row with any stride, the rest zero; n may be lanes or more.
template <typename T>
EMFAST_INLINE vec fetch(const T* p, int64_t stride, int64_t n) {
  if (stride == 1 && n >= lanes) return load(p);
#if EMFAST_LANES == 16
  if (stride == 1) {
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
    if constexpr (sizeof(T) == 4) return bits<vec>(_mm512_maskz_loadu_ps(mask, p));
    if constexpr (sizeof(T) == 2) return widen(T(), bits<hvec>(_mm256_maskz_loadu_epi16(mask, p)));
  }
#endif
  T buffer[EMFAST_LANES] = {};
  for (int64_t i = 0; i < least(n, lanes); ++i) buffer[i] = p[i * stride];
  return load(buffer);
}

// Writes the first n elements of a row.
template <typename T>
EMFAST_INLINE void put(T* p, vec v, int64_t n) {
#if EMFAST_LANES == 16
  if (n < lanes) {
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, mask, bits<__m512>(v));
    if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, mask, bits<__m256i>(narrow(T(), v)));
    return;
  }
#endif
  store(p, v, n);
}

// The rows of one image and head, converted as they are read.
template <typename T>
struct Matrix {
  T* data;
  int64_t row, column;  // strides

  Matrix(const View& v, const Attention& a, int64_t head)
      : data(static_cast<T*>(v.data) + head / a.heads * v.strides[0] + head % a.heads * v.strides[1]),
        row(v.strides[2]), column(v.strides[3]) {}

  T* at(int64_t i, int64_t d) const { return data + i * row + d * column; }
};

// Hands out memory of a thread; without a base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return p;
  }
};

// Writes the first `count` columns of a (D, tile) buffer, times a factor per column, to the rows of a matrix.
template <typename T>
void write_transposed(const Matrix<T>& out, int64_t first, int64_t count, int64_t size, const float* x,
                      const vec* factor) {
  vec rows[EMFAST_LANES];
  for (int64_t c = 0; c < count; c += lanes)
    for (int64_t d = 0; d < size; d += lanes) {
      for (int64_t i = 0; i < lanes; ++i)
        rows[i] = d + i < size ? load(x + (d + i) * tile + c) * factor[c / lanes] : vec{};
      transpose(rows);
      for (int64_t i = 0; i < least(lanes, count - c); ++i) put(out.at(first + c + i, d), rows[i], size - d);
    }
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#include "attention_float.h"
#ifdef EMFAST_BF16
#include "attention_amx.h"
#endif
#include "attention_backward.h"
#include "attention_forward.h"

namespace emfast {
namespace EMFAST_NAMESPACE {

int64_t attention_tile() { return tile; }

// Runs a template for the engine and the C++ type of the elements.
#ifdef EMFAST_BF16
#define EMFAST_WITH_ENGINE(function)                         \
  if (a.amx) return function<Amx, bf16>(a, begin, end);      \
  with_dtype(a.dtype, [&](auto zero) { function<Float, decltype(zero)>(a, begin, end); })
#else
#define EMFAST_WITH_ENGINE(function) \
  with_dtype(a.dtype, [&](auto zero) { function<Float, decltype(zero)>(a, begin, end); })
#endif

void attention(const Attention& a, int64_t begin, int64_t end) { EMFAST_WITH_ENGINE(forward); }
void attention_backward(const Attention& a, int64_t begin, int64_t end) { EMFAST_WITH_ENGINE(backward); }
void attention_gather(const Attention& a, int64_t begin, int64_t end) { EMFAST_WITH_ENGINE(gather); }

#undef EMFAST_WITH_ENGINE
#undef EMFAST_METHOD

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
