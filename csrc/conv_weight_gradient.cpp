// The weight gradient of a convolution: dw[d, c, tap] = sum over positions p of grad[d, p] x[c, p + offset(tap)].
//
// Positions run over a grid with a border of zeros, shared by neighbouring rows and images, so that a tap is an offset
// into it. Strided and upsampled images are split into phases, every second pixel of every second row, of which a tap
// reads one. The left operand, grad, is packed as (channel, position); the right one, x, as pairs of positions, and
// once more with pairs that begin at odd positions. A job multiplies 32 x 32 channels at all taps; positions are split
// too where channels are few. An infinity at an image's border meets a zero, and gives a NaN at every tap.

#include <omp.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>
#include <vector>

#include "module.h"

#if defined(__x86_64__)

namespace emfast {

// Up to 32 channels of a channels_last tensor.
struct ChannelBlock {
  const bf16* data;  // of its first channel, at the first pixel
  int64_t channels;  // of the tensor
  int64_t count;
  int64_t place;  // of its first channel in the result
};

struct Product {
  int64_t left_phase, right_phase, offset;
  int64_t right_panel;  // of the phase, and of pairs that begin at odd positions or not
  int64_t place;        // among the sums
};

struct Products {
  const Product* list;
  int64_t count, left_row, left_size, right_size;  // elements per row of positions, and per packed phase and panel
};

}  // namespace emfast

#define EMFAST_KERNELS "conv_weight_gradient.h"
#include "every_isa.h"

namespace emfast {
namespace {

namespace kernels = avx512_bf16;

constexpr int64_t largest = 16 * 1024;  // sums of a job

int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// What one axis adds to a product: a tap, or for an upsampled input one of the four sums that its three taps are of.
struct Step {
  int64_t left_phase, right_phase, shift;
};

// One axis of the grid.
struct Axis {
  int64_t pixels, right_pixels;  // of grad and x
  int64_t left_stride, right_stride;
  std::vector<Step> steps;
  int64_t first = 0, last = 0;  // shifts
  int64_t used, period;         // places of a row that are read, and with the border

  Axis(int64_t pixels, int64_t right_pixels, int64_t size, int64_t stride, int64_t padding, bool upsample)
      : pixels(pixels), right_pixels(right_pixels), left_stride(upsample ? 2 : 1), right_stride(stride) {
    for (int64_t i = 0; i < (upsample ? 4 : size); ++i) {
      const int64_t j = i - padding + size * stride, phase = upsample ? i / 2 : 0;
      steps.push_back(upsample ? Step{phase, 0, phase - 1 + i % 2} : Step{0, j % stride, j / stride - size});
      first = std::min(first, steps.back().shift), last = std::max(last, steps.back().shift);
    }
    used = pixels / left_stride + last;
    period = std::max(std::min((right_pixels + stride - 1) / stride, used) - first, used);
  }
};

// The pixel at every position of the grid, -1 where there is none; phases of `size` positions, `front` before the grid.
std::vector<int32_t> positions(const Axis& y, const Axis& x, int64_t batch, bool left, int64_t front, int64_t size) {
  const int64_t sy = left ? y.left_stride : y.right_stride, sx = left ? x.left_stride : x.right_stride;
  const int64_t height = left ? y.pixels : y.right_pixels, width = left ? x.pixels : x.right_pixels;
  std::vector<int32_t> table(sy * sx * size, -1);
  for (int64_t phase = 0; phase < sy * sx; ++phase)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < y.used && i * sy + phase / sx < height; ++i) {
        int32_t* row = table.data() + phase * size + front + (b * y.period + i) * x.period;
        const int64_t begin = (b * height + i * sy + phase / sx) * width;
        for (int64_t j = 0; j < x.used && j * sx + phase % sx < width; ++j)
          row[j] = static_cast<int32_t>(begin + j * sx + phase % sx);
      }
  return table;
}

void append_blocks(std::vector<ChannelBlock>& blocks, const bf16* data, int64_t channels, int64_t place) {
  for (int64_t c = 0; c < channels; c += 32)
    blocks.push_back({data + c, channels, std::min<int64_t>(32, channels - c), place + c});
}

std::vector<Product> products_of(const Axis& y, const Axis& x, int64_t front, int64_t panels) {
  std::vector<Product> list;
  for (const Step& v : y.steps)
    for (const Step& h : x.steps) {
      Product p{v.left_phase * x.left_stride + h.left_phase, v.right_phase * x.right_stride + h.right_phase};
      const int64_t offset = front + v.shift * x.period + h.shift;
      p.offset = offset - offset % 2, p.right_panel = p.right_phase * panels + offset % 2;
      p.place = static_cast<int64_t>(list.size());
      list.push_back(p);
    }
  std::stable_sort(list.begin(), list.end(), [](const Product& a, const Product& b) {
    return std::tie(a.left_phase, a.right_panel) < std::tie(b.left_phase, b.right_panel);
  });
  return list;
}

// Everything about one call. Packed panels lie block by block, phase by phase.
struct Plan {
  Axis y, x;
  int64_t batch, channels, taps, front, length, right_length, panels;
  bool upsample;
  std::vector<ChannelBlock> left, right;
  std::vector<int32_t> left_pixels, right_pixels, order;
  std::vector<Product> list;
  Products products;
  bf16 *left_packed, *right_packed;
  float *dweight, *dbias;

  // sizes: batch, channels of grad, x and skip, height and width of grad and x, kernel, stride, padding, upsample
  Plan(const std::array<int64_t, 5>& p, const std::array<int64_t, 12>& s)
      : y(s[4], s[6], s[8], s[9], s[10], s[11]), x(s[5], s[7], s[8], s[9], s[10], s[11]) {
    batch = s[0], channels = s[2] + s[3], taps = s[8] * s[8], upsample = s[11];
    front = up_to(-y.first * x.period - x.first, 2);
    length = up_to(batch * y.period * x.period, 32);
    right_length = up_to(front + length + y.last * x.period + x.last, 2);
    panels = taps > 1 ? 2 : 1;
    append_blocks(left, reinterpret_cast<bf16*>(p[0]), s[1], 0);
    append_blocks(right, reinterpret_cast<bf16*>(p[1]), s[2], 0);
    append_blocks(right, reinterpret_cast<bf16*>(p[2]), s[3], s[2]);
    dweight = reinterpret_cast<float*>(p[3]), dbias = reinterpret_cast<float*>(p[4]);
    left_pixels = positions(y, x, batch, true, 0, length);
    right_pixels = positions(y, x, batch, false, front, right_length + 2);
    list = products_of(y, x, front, panels);
    const int64_t row = length / 32 % 2 ? length : length + 32;  // so that rows lie in different sets of the cache
    products = {list.data(), static_cast<int64_t>(list.size()), row, 32 * row, 32 * right_length};
    for (int64_t e = 0; e < up_to(32 * taps, 16); ++e)
      order.push_back(static_cast<int32_t>(e % taps * 1024 + e / taps));
    const int64_t size = left_size() * static_cast<int64_t>(left.size());
    left_packed = reinterpret_cast<bf16*>(thread_memory(2 * (size + right_size() * static_cast<int64_t>(right.size()))));
    right_packed = left_packed + size;
  }

  int64_t left_phases() const { return y.left_stride * x.left_stride; }
  int64_t right_phases() const { return y.right_stride * x.right_stride; }
  int64_t left_size() const { return left_phases() * products.left_size; }              // of a block
  int64_t right_size() const { return right_phases() * panels * products.right_size; }  // of a block
};

void pack_left(const Plan& a, int64_t job) {
  const int64_t phase = job % a.left_phases(), block = job / a.left_phases();
  bf16* out = a.left_packed + block * a.left_size() + phase * a.products.left_size;
  const int32_t* pixels = a.left_pixels.data() + phase * a.length;
  kernels::pack_left(a.left[block], pixels, a.length, a.products.left_row, out);
  if (phase == 0) {
    const ChannelBlock& b = a.left[block];
    kernels::sum_pixels(b, a.batch, a.y.pixels * a.x.pixels, a.dbias + b.place);
  }
}

void pack_right(const Plan& a, int64_t job) {
  const int64_t panels = a.right_phases() * a.panels, panel = job % panels, block = job / panels;
  bf16* out = a.right_packed + block * a.right_size() + panel * a.products.right_size;
  const int32_t* pixels = a.right_pixels.data() + panel / a.panels * (a.right_length + 2) + panel % a.panels;
  kernels::pack_right(a.right[block], pixels, a.right_length, out);
}

// One left and one right block over a part of the positions.
void multiply(const Plan& a, int64_t i, int64_t j, int64_t part, int64_t parts, float* out) {
  alignas(64) float sums[largest], taps[9 * 1024];
  const int64_t steps = a.length / 32, begin = steps * part / parts * 32, end = steps * (part + 1) / parts * 32;
  const bf16 *left = a.left_packed + i * a.left_size(), *right = a.right_packed + j * a.right_size();
  kernels::multiply_blocks(a.products, left, right, begin, end, sums);
  if (a.upsample) kernels::fold_products(sums, taps);
  const ChannelBlock &l = a.left[i], &r = a.right[j];
  const int64_t stride = a.channels * a.taps;
  float* target = out + l.place * stride + r.place * a.taps;
  kernels::write_rows(a.upsample ? taps : sums, a.order.data(), l.count, r.count * a.taps, target, stride);
}

void run(const Plan& a) {
  const auto left = static_cast<int64_t>(a.left.size()), right = static_cast<int64_t>(a.right.size());
  const int64_t jobs = left * right, size = (a.left.back().place + a.left.back().count) * a.channels * a.taps;
  const int64_t work = jobs * a.products.count * a.length;
  const int64_t threads = work < 4096 ? 1 : omp_get_max_threads();
  const int64_t parts = jobs < 4 * threads ? std::min(threads / std::gcd(jobs, threads), a.length / 32) : 1;
  std::vector<float> partial(parts > 1 ? parts * size : 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (int64_t job = 0; job < left * a.left_phases(); ++job) pack_left(a, job);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < right * a.right_phases() * a.panels; ++job) pack_right(a, job);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < jobs * parts; ++job) {
      const int64_t part = job % parts, block = job / parts;
      float* out = parts > 1 ? partial.data() + part * size : a.dweight;
      multiply(a, block / right, block % right, part, parts, out);
    }
    if (parts > 1) {
      const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      kernels::add_parts(partial.data(), parts, size, size * i / n, size * (i + 1) / n, a.dweight);
    }
  }
}

// grad, x, skip or 0, and the gradients of weight and bias
void conv_weight_gradient(const std::array<int64_t, 5>& addresses, const std::array<int64_t, 12>& sizes) {
  run(Plan(addresses, sizes));
}

}  // namespace

void define_conv_weight_gradient(py::module_& module) {
  module.def("conv_weight_gradient", &conv_weight_gradient, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast

#else

namespace emfast {
void define_conv_weight_gradient(py::module_&) {}
}  // namespace emfast

#endif
