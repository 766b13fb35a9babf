// The grid on which convolutions and their gradients run, for the files that drive.
//
// A grid has a border of zeros, shared by neighbouring rows and images, so that a tap is an offset between positions.
// Strided inputs and upsampled results are split into phases, every second pixel of every second row: a tap then pairs
// one phase of x with one of y. An infinity beside the border meets a zero, and gives a NaN.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "emfast.h"

namespace emfast {

inline int64_t round_up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// What one axis adds to a tap: y of a phase at p reads x of a phase at p + shift, with the sum of the kernel's places
// [begin, end). An upsampled input is read at four such steps, two per phase of y, instead of three.
struct Step {
  int64_t y_phase, x_phase, shift, begin, end;
};

struct Axis {
  int64_t y_pixels, x_pixels, y_stride, x_stride;
  std::vector<Step> steps;
  int64_t first = 0, last = 0;  // shifts
  int64_t used, period;         // positions of a row, and with its border

  Axis(int64_t y_pixels, int64_t x_pixels, int64_t size, int64_t stride, int64_t padding, bool upsample)
      : y_pixels(y_pixels), x_pixels(x_pixels), y_stride(upsample ? 2 : 1), x_stride(stride) {
    if (upsample)
      steps = {{0, 0, -1, 0, 1}, {0, 0, 0, 1, 3}, {1, 0, 0, 0, 2}, {1, 0, 1, 2, 3}};
    else
      for (int64_t i = 0; i < size; ++i) {
        const int64_t j = i - padding + size * stride;
        steps.push_back({0, j % stride, j / stride - size, i, i + 1});
      }
    for (const Step& s : steps) first = std::min(first, s.shift), last = std::max(last, s.shift);
    used = y_pixels / y_stride + last;
    period = std::max(std::min((x_pixels + stride - 1) / stride, used) - first, used);
  }
};

// Two axes and a batch.
struct Grid {
  int64_t batch, size;  // of the kernel
  bool upsample;
  Axis rows, columns;

  // sizes: batch, height and width of y and x, kernel, stride, padding, upsample
  explicit Grid(const std::array<int64_t, 9>& s)
      : batch(s[0]),
        size(s[5]),
        upsample(s[8] != 0),
        rows(s[1], s[3], s[5], s[6], s[7], upsample),
        columns(s[2], s[4], s[5], s[6], s[7], upsample) {}

  int64_t taps() const { return size * size; }
  // Whether positions are pixels: a 1 x 1 kernel, and no border.
  bool points() const { return size == 1 && phases(true) * phases(false) == 1 && rows.used == rows.x_pixels; }
  int64_t positions() const { return batch * rows.period * columns.period; }
  int64_t shift(const Step& v, const Step& h) const { return v.shift * columns.period + h.shift; }
  int64_t phases(bool y) const { return y ? rows.y_stride * columns.y_stride : rows.x_stride * columns.x_stride; }
  int64_t phase(const Step& v, const Step& h, bool y) const {
    return y ? v.y_phase * columns.y_stride + h.y_phase : v.x_phase * columns.x_stride + h.x_phase;
  }

  // The pixel of y or x at every position, -1 where there is none: `count` per phase, `front` of them before the grid.
  std::vector<int32_t> pixels(bool y, int64_t front, int64_t count) const {
    const int64_t sy = y ? rows.y_stride : rows.x_stride, sx = y ? columns.y_stride : columns.x_stride;
    const int64_t height = y ? rows.y_pixels : rows.x_pixels, width = y ? columns.y_pixels : columns.x_pixels;
    std::vector<int32_t> table(sy * sx * count, -1);
    for (int64_t phase = 0; phase < sy * sx; ++phase)
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < rows.used && i * sy + phase / sx < height; ++i) {
          int32_t* row = table.data() + phase * count + front + (b * rows.period + i) * columns.period;
          const int64_t begin = (b * height + i * sy + phase / sx) * width + phase % sx;
          for (int64_t j = 0; j < columns.used && j * sx + phase % sx < width; ++j)
            row[j] = static_cast<int32_t>(begin + j * sx);
        }
    return table;
  }
};

}  // namespace emfast
