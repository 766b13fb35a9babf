// What the separable and the dense blur share: which rows of an image a row of the result is made of.
#pragma once

#include <cstdint>
#include <vector>

#include "emfast.h"

namespace emfast {

// A row that is read, and the tap it is weighted with.
struct Source {
  int32_t row, tap;
};

// The sources of row i are [start[i], start[i + 1]).
struct Sources {
  std::vector<int64_t> start;
  std::vector<Source> list;
};

// What one weight of a kernel multiplies: the pixel `shift` behind the first that it reads in a row with margins.
struct Tap {
  int32_t shift;
  float weight;
};

constexpr int64_t band = 64;  // rows of one image and channel per job
constexpr int64_t group = 8;   // rows that are worked on together
constexpr int64_t slack = 64;  // floats by which vectors overrun a row

// One blur, or its adjoint, of every channel of every image.
struct BlurPass {
  Dtype dtype;
  bool circular, adjoint;  // a circular adjoint is a blur with flipped taps: adjoint is set with reflection only
  int64_t planes, height, width, taps, half;  // taps of a row, and how many of them precede the middle
  const int64_t* start;
  const Source* sources;
  const float *rows, *columns;  // of the separable blur
  const int64_t* tap_start;     // of the dense blur: row k of image b's kernel is [tap_start[b * tap_stride + k], ...)
  const Tap* tap_list;
  int64_t tap_stride, channels;  // taps + 1, or zero for one kernel
  const void *x, *y;  // the result is A x, or y - A x
  void* out;
  double* squares;  // of the results, per band; null if not wanted

  int64_t bands() const { return (height + band - 1) / band; }
  int64_t margin() const { return adjoint ? 2 * half : half; }
  int64_t line() const { return (width + 2 * margin() + 15) / 16 * 16; }  // a row with its margins
};

inline int64_t reflected(int64_t i, int64_t length, bool circular) {
  if (circular) return (i + length) % length;
  return i < 0 ? -i : i >= length ? 2 * (length - 1) - i : i;
}

inline Sources sources_of(int64_t length, int64_t taps, bool circular, bool adjoint) {
  const auto row_of = [&](int64_t i, int64_t k) {  // of the result
    return adjoint ? reflected(i + k - taps / 2, length, circular) : i;
  };
  Sources result{std::vector<int64_t>(length + 1), std::vector<Source>(length * taps)};
  for (int64_t i = 0; i < length; ++i)
    for (int64_t k = 0; k < taps; ++k) ++result.start[row_of(i, k) + 1];
  for (int64_t i = 0; i < length; ++i) result.start[i + 1] += result.start[i];
  std::vector<int64_t> next(result.start);
  for (int64_t i = 0; i < length; ++i)
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t source = adjoint ? i : reflected(i + k - taps / 2, length, circular);
      result.list[next[row_of(i, k)]++] = {static_cast<int32_t>(source), static_cast<int32_t>(k)};
    }
  return result;
}

}  // namespace emfast
