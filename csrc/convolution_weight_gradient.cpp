// The weight gradient of a convolution, dw[d, c, tap] = sum over positions p of grad[d, p] x[c, p + shift(tap)], on the
// grid of convolution_grid.h. The left operand, grad, is packed as (channel, position); the right one, x, as pairs of
// positions, and once more with pairs that begin at odd positions. A job multiplies 32 x 32 channels at all taps;
// positions are split too where channels are few.

#include <omp.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>
#include <vector>

#include "convolution_grid.h"
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
  int64_t left_phase, offset;
  int64_t right_panel;  // of the phase, and of pairs that begin at odd positions or not
  int64_t place;        // among the sums
};

struct Products {
  const Product* list;
  int64_t count, left_row, left_size, right_size;  // elements per row of positions, and per packed phase and panel
};

}  // namespace emfast

#define EMFAST_KERNELS "convolution_weight_gradient.h"
#include "every_isa.h"

namespace emfast {
namespace {

namespace kernels = avx512_bf16;

constexpr int64_t largest = 16 * 1024;  // sums of a job

void append_blocks(std::vector<ChannelBlock>& blocks, const bf16* data, int64_t channels, int64_t place) {
  for (int64_t c = 0; c < channels; c += 32)
    blocks.push_back({data + c, channels, std::min<int64_t>(32, channels - c), place + c});
}

std::vector<Product> products_of(const Grid& grid, int64_t front, int64_t panels) {
  std::vector<Product> list;
  for (const Step& v : grid.rows.steps)
    for (const Step& h : grid.columns.steps) {
      const int64_t position = front + grid.shift(v, h);
      Product p{};
      p.left_phase = grid.phase(v, h, true), p.right_panel = grid.phase(v, h, false) * panels + position % 2;
      p.offset = position - position % 2, p.place = static_cast<int64_t>(list.size());
      list.push_back(p);
    }
  std::stable_sort(list.begin(), list.end(), [](const Product& a, const Product& b) {
    return std::tie(a.left_phase, a.right_panel) < std::tie(b.left_phase, b.right_panel);
  });
  return list;
}

// Everything about one call. Packed panels lie block by block, phase by phase.
struct Plan {
  Grid grid;
  int64_t channels, taps, front, length, right_length, panels;
  std::vector<ChannelBlock> left, right;
  std::vector<int32_t> left_pixels, right_pixels, order;
  std::vector<Product> list;
  Products products;
  bf16 *left_packed, *right_packed;
  float *dweight, *dbias;

  // addresses of grad, x, skip or 0, and the results; channels of grad, x and skip
  Plan(const std::array<int64_t, 5>& p, const std::array<int64_t, 3>& sizes, const Grid& grid)
      : grid(grid), channels(sizes[1] + sizes[2]), taps(grid.taps()), panels(taps > 1 ? 2 : 1) {
    const Axis &y = grid.rows, &x = grid.columns;
    front = round_up_to(-y.first * x.period - x.first, 2);
    length = round_up_to(grid.positions(), 32);
    right_length = round_up_to(front + length + y.last * x.period + x.last, 2);
    append_blocks(left, reinterpret_cast<bf16*>(p[0]), sizes[0], 0);
    append_blocks(right, reinterpret_cast<bf16*>(p[1]), sizes[1], 0);
    append_blocks(right, reinterpret_cast<bf16*>(p[2]), sizes[2], sizes[1]);
    dweight = reinterpret_cast<float*>(p[3]), dbias = reinterpret_cast<float*>(p[4]);
    left_pixels = grid.pixels(true, 0, length);
    right_pixels = grid.pixels(false, front, right_length + 2);
    list = products_of(grid, front, panels);
    const int64_t row = length / 32 % 2 ? length : length + 32;  // so that rows lie in different sets of the cache
    products = {list.data(), static_cast<int64_t>(list.size()), row, 32 * row, 32 * right_length};
    for (int64_t e = 0; e < round_up_to(32 * taps, 16); ++e)
      order.push_back(static_cast<int32_t>(e % taps * 1024 + e / taps));
    const int64_t size = left_size() * static_cast<int64_t>(left.size());
    left_packed = reinterpret_cast<bf16*>(thread_memory(2 * (size + right_size() * static_cast<int64_t>(right.size()))));
    right_packed = left_packed + size;
  }

  int64_t left_size() const { return grid.phases(true) * products.left_size; }              // of a block
  int64_t right_size() const { return grid.phases(false) * panels * products.right_size; }  // of a block
};

void pack_left(const Plan& a, int64_t job) {
  const int64_t phase = job % a.grid.phases(true), block = job / a.grid.phases(true);
  bf16* out = a.left_packed + block * a.left_size() + phase * a.products.left_size;
  const int32_t* pixels = a.left_pixels.data() + phase * a.length;
  kernels::pack_left(a.left[block], pixels, a.length, a.products.left_row, out);
  if (phase == 0) {
    const ChannelBlock& b = a.left[block];
    kernels::sum_pixels(b, a.grid.batch, a.grid.rows.y_pixels * a.grid.columns.y_pixels, a.dbias + b.place);
  }
}

void pack_right(const Plan& a, int64_t job) {
  const int64_t panels = a.grid.phases(false) * a.panels, panel = job % panels, block = job / panels;
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
  if (a.grid.upsample) kernels::fold_products(sums, taps);
  const ChannelBlock &l = a.left[i], &r = a.right[j];
  const int64_t stride = a.channels * a.taps;
  float* target = out + l.place * stride + r.place * a.taps;
  kernels::write_rows(a.grid.upsample ? taps : sums, a.order.data(), l.count, r.count * a.taps, target, stride);
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
    for (int64_t job = 0; job < left * a.grid.phases(true); ++job) pack_left(a, job);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < right * a.grid.phases(false) * a.panels; ++job) pack_right(a, job);
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

void convolution_weight_gradient(const std::array<int64_t, 5>& addresses, const std::array<int64_t, 3>& channels,
                                 const std::array<int64_t, 9>& grid) {
  run(Plan(addresses, channels, Grid(grid)));
}

}  // namespace

void define_convolution_weight_gradient(py::module_& module) {
  module.def("convolution_weight_gradient", &convolution_weight_gradient, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast

#else

namespace emfast {
void define_convolution_weight_gradient(py::module_&) {}
}  // namespace emfast

#endif
