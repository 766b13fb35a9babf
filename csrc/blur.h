// The kernel of blur, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
// Every row of the image is padded once; a row of the result is a sum over taps of shifted rows. Taps that are zero,
// most of a camera's path, are not read.
#include "padded_row.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Writes columns [j, count) of row i to out, N vectors at a time; returns where it stopped.
template <int N>
EMFAST_INLINE int64_t sum_taps(const BlurPass& a, const float* lines, const int64_t* tap_start, int64_t i, int64_t j,
                               int64_t count, float* out) {
  for (; j + (N - 1) * lanes < count; j += N * lanes) {
    vec even[N] = {}, odd[N] = {};
    for (int64_t s = a.start[i]; s < a.start[i + 1]; ++s) {
      const float* line = lines + a.sources[s].row * a.line() + j;
      const Tap *tap = a.tap_list + tap_start[a.sources[s].tap], *end = a.tap_list + tap_start[a.sources[s].tap + 1];
      for (; tap + 1 < end; tap += 2)
        for (int n = 0; n < N; ++n) {
          even[n] += load(line + tap[0].shift + n * lanes) * tap[0].weight;
          odd[n] += load(line + tap[1].shift + n * lanes) * tap[1].weight;
        }
      if (tap < end)
        for (int n = 0; n < N; ++n) even[n] += load(line + tap->shift + n * lanes) * tap->weight;
    }
    for (int n = 0; n < N; ++n) store(out + j + n * lanes, even[n] + odd[n]);
  }
  return j;
}

template <typename T>
double blur_rows(const BlurPass& a, int64_t plane, int64_t begin, int64_t end, float* scratch) {
  const T* x = static_cast<const T*>(a.x) + plane * a.height * a.width;
  const int64_t border = a.adjoint ? a.half : 0, count = a.width + 2 * border;
  const int64_t* tap_start = a.tap_start + plane / a.channels * a.tap_stride;
  float *lines = scratch, *out = lines + a.height * a.line(), *ready = out + a.line() + a.taps + slack;
  for (int64_t i = 0; i < a.height; ++i) ready[i] = 0;
  double squares = 0;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t s = a.start[i]; s < a.start[i + 1]; ++s) {
      const int64_t row = a.sources[s].row;
      if (ready[row] != 0) continue;
      float* v = lines + row * a.line() + a.margin();
      for (int64_t j = 0; j < a.width; j += lanes) store(v + j, load(x + row * a.width + j, a.width - j), a.width - j);
      pad(a, v);
      ready[row] = 1;
    }
    const int64_t j = sum_taps<4>(a, lines, tap_start, i, 0, count, out);
    sum_taps<1>(a, lines, tap_start, i, sum_taps<2>(a, lines, tap_start, i, j, count, out), count, out);
    fold(a, out + border);
    squares += finish<T>(a, out + border, plane, i);
  }
  return squares;
}

}  // namespace

// Makes rows [begin, end) of a plane. Returns the sum of the squares of the results.
double blur(const BlurPass& a, int64_t plane, int64_t begin, int64_t end, float* scratch) {
  double squares = 0;
  with_dtype(a.dtype, [&](auto zero) { squares = blur_rows<decltype(zero)>(a, plane, begin, end, scratch); });
  return squares;
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
