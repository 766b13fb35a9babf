// The kernel of separable_blur, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
// A row of the result is the weighted sum of some rows of the image, then a sum over shifts of that.
#include "padded_row.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Writes to v the sum over rows, N vectors at a time, from column j on; returns where it stopped.
template <int N, typename T>
EMFAST_INLINE int64_t sum_rows(const BlurPass& a, const T* x, int64_t i, int64_t j, float* v) {
  for (; j + N * lanes <= a.width; j += N * lanes) {
    vec total[N] = {};
    for (int64_t s = a.start[i]; s < a.start[i + 1]; ++s) {
      const T* row = x + a.sources[s].row * a.width + j;
      const float weight = a.rows[a.sources[s].tap];
      for (int n = 0; n < N; ++n) total[n] += load(row + n * lanes) * weight;
    }
    for (int n = 0; n < N; ++n) store(v + j + n * lanes, total[n]);
  }
  return j;
}

template <typename T>
EMFAST_INLINE void sum_rows(const BlurPass& a, const T* x, int64_t i, float* v) {
  int64_t j = sum_rows<4>(a, x, i, 0, v);
  j = sum_rows<2>(a, x, i, j, v);
  j = sum_rows<1>(a, x, i, j, v);
  if (j < a.width && a.width >= lanes) sum_rows<1>(a, x, i, a.width - lanes, v);  // overlaps
  if (a.width >= lanes) return;
  vec total = {};
  for (int64_t s = a.start[i]; s < a.start[i + 1]; ++s)
    total += load(x + a.sources[s].row * a.width, a.width) * a.rows[a.sources[s].tap];
  store(v, total);
}

// Writes to out the sums of v over shifts, for a group of lines as if it were one.
EMFAST_INLINE void sum_shifts(const BlurPass& a, const float* v, int64_t count, float* out) {
  for (int64_t j = 0; j < count; j += 4 * lanes) {
    vec total[4] = {};
    for (int64_t k = 0; k < a.taps; ++k)
      for (int n = 0; n < 4; ++n) total[n] += load(v + j + k + n * lanes) * a.columns[k];
    for (int n = 0; n < 4; ++n) store(out + j + n * lanes, total[n]);
  }
}

// Rows go in groups: what was just stored cannot be loaded from another offset before it has reached the cache.
template <typename T>
double blur_rows(const BlurPass& a, int64_t plane, int64_t begin, int64_t end, float* scratch) {
  const T* x = static_cast<const T*>(a.x) + plane * a.height * a.width;
  const int64_t border = a.adjoint ? a.half : 0, line = a.line();
  float* out = scratch + group * line + a.taps + slack;
  double squares = 0;
  for (int64_t first = begin; first < end; first += group) {
    const int64_t rows = first + group < end ? group : end - first;
    for (int64_t i = 0; i < rows; ++i) {
      sum_rows(a, x, first + i, scratch + i * line + a.margin());
      pad(a, scratch + i * line + a.margin());
    }
    sum_shifts(a, scratch, rows * line, out);
    for (int64_t i = 0; i < rows; ++i) {
      fold(a, out + i * line + border);
      squares += finish<T>(a, out + i * line + border, plane, first + i);
    }
  }
  return squares;
}

}  // namespace

// Makes rows [begin, end) of a plane; scratch is for two groups of lines with slack. Returns the sum of the squares of the results.
double separable_blur(const BlurPass& a, int64_t plane, int64_t begin, int64_t end, float* scratch) {
  double squares = 0;
  with_dtype(a.dtype, [&](auto zero) { squares = blur_rows<decltype(zero)>(a, plane, begin, end, scratch); });
  return squares;
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
