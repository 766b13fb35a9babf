// The weight gradient of a convolution, dw[d, c, tap] = sum over positions p of grad[d, p] x[c, p + shift(tap)], on the
// grid of convolution_grid.h. The left operand, grad, is packed as (channel, position); the right one, x, as pairs of
// positions, and once more with pairs that begin at odd positions. A job multiplies 32 x 32 channels at all taps;
// positions are split too where channels are few. A large batch is cut into pieces of some images: every thread packs
// and multiplies pieces of its own, and their sums are added in order.

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
  int64_t place;    // of its first channel in the result
  uint32_t pixels;  // those from this one on are zero
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
constexpr int64_t piece = 1 << 20;      // bytes of a thread's packed images, and of its sums: they stay in the cache

void append_blocks(std::vector<ChannelBlock>& blocks, const bf16* data, int64_t channels, int64_t place, int64_t pixels) {
  for (int64_t c = 0; c < channels; c += 32)
    blocks.push_back(
        {data + c, channels, std::min<int64_t>(32, channels - c), place + c, static_cast<uint32_t>(pixels)});
}

// The images from one on: `pixels` of them are left.
ChannelBlock later(ChannelBlock b, int64_t first, int64_t pixels) {
  b.data += first * b.channels, b.pixels = static_cast<uint32_t>(pixels);
  return b;
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

// Everything about one call, or about a piece of its batch. Packed panels lie block by block, phase by phase.
struct Plan {
  Grid grid;
  int64_t outputs, channels, taps, front, length, right_length, panels;
  std::vector<ChannelBlock> left, right;
  std::vector<int32_t> left_pixels, right_pixels, order;
  std::vector<Product> list;
  Products products;
  bf16 *left_packed = nullptr, *right_packed = nullptr;
  float *dweight, *dbias;

  // addresses of grad, x, skip or 0, and the results; channels of grad, x and skip
  Plan(const std::array<int64_t, 5>& p, const std::array<int64_t, 3>& sizes, const Grid& grid)
      : grid(grid), outputs(sizes[0]), channels(sizes[1] + sizes[2]), taps(grid.taps()), panels(taps > 1 ? 2 : 1) {
    const Axis &y = grid.rows, &x = grid.columns;
    front = round_up_to(-y.first * x.period - x.first, 2);
    length = round_up_to(grid.positions(), 32);
    right_length = round_up_to(front + length + y.last * x.period + x.last, 2);
    append_blocks(left, reinterpret_cast<bf16*>(p[0]), sizes[0], 0, pixels(true));
    append_blocks(right, reinterpret_cast<bf16*>(p[1]), sizes[1], 0, pixels(false));
    append_blocks(right, reinterpret_cast<bf16*>(p[2]), sizes[2], sizes[1], pixels(false));
    dweight = reinterpret_cast<float*>(p[3]), dbias = reinterpret_cast<float*>(p[4]);
    left_pixels = grid.pixels(true, 0, length);
    right_pixels = grid.pixels(false, front, right_length + 2);
    list = products_of(grid, front, panels);
    const int64_t row = length / 32 % 2 ? length : length + 32;  // so that rows lie in different sets of the cache
    products = {list.data(), static_cast<int64_t>(list.size()), row, 32 * row, 32 * right_length};
    for (int64_t e = 0; e < round_up_to(32 * taps, 16); ++e)
      order.push_back(static_cast<int32_t>(e % taps * 1024 + e / taps));
  }

  void pack_to(bf16* memory) { left_packed = memory, right_packed = memory + left_size() * count(left); }

  static int64_t count(const std::vector<ChannelBlock>& blocks) { return static_cast<int64_t>(blocks.size()); }
  int64_t pixels(bool y) const {
    const Axis &v = grid.rows, &h = grid.columns;
    return grid.batch * (y ? v.y_pixels * h.y_pixels : v.x_pixels * h.x_pixels);
  }
  int64_t packed() const { return left_size() * count(left) + right_size() * count(right); }     // elements
  int64_t sums() const { return count(left) * count(right) * products.count * 1024; }            // of all jobs
  int64_t size() const { return outputs * channels * taps; }                                     // of the result
  int64_t left_size() const { return grid.phases(true) * products.left_size; }              // of a block
  int64_t right_size() const { return grid.phases(false) * panels * products.right_size; }  // of a block
};

void pack_left(const Plan& a, int64_t job) {
  const int64_t phase = job % a.grid.phases(true), block = job / a.grid.phases(true);
  bf16* out = a.left_packed + block * a.left_size() + phase * a.products.left_size;
  const int32_t* pixels = a.left_pixels.data() + phase * a.length;
  kernels::pack_left(a.left[block], pixels, a.length, a.products.left_row, out);
  if (phase == 0 && a.dbias) {
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

// Adds the products of one left and one right block over a part of the positions to sums.
void multiply(const Plan& a, int64_t i, int64_t j, int64_t part, int64_t parts, float* sums) {
  const int64_t steps = a.length / 32, begin = steps * part / parts * 32, end = steps * (part + 1) / parts * 32;
  const bf16 *left = a.left_packed + i * a.left_size(), *right = a.right_packed + j * a.right_size();
  kernels::multiply_blocks(a.products, left, right, begin, end, sums);
}

// Writes the sums of one left and one right block to where they belong in a result.
void write(const Plan& a, int64_t i, int64_t j, const float* sums, float* out) {
  alignas(64) float taps[9 * 1024];
  if (a.grid.upsample) kernels::fold_products(sums, taps);
  const ChannelBlock &l = a.left[i], &r = a.right[j];
  const int64_t stride = a.channels * a.taps;
  float* target = out + l.place * stride + r.place * a.taps;
  kernels::write_rows(a.grid.upsample ? taps : sums, a.order.data(), l.count, r.count * a.taps, target, stride);
}

// All threads together on the whole batch.
void run(Plan& a, int64_t threads) {
  const int64_t left = a.count(a.left), right = a.count(a.right), jobs = left * right, size = a.size();
  a.pack_to(reinterpret_cast<bf16*>(thread_memory(2 * a.packed())));
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
      alignas(64) float sums[largest];
      std::fill(sums, sums + a.products.count * 1024, 0.0f);
      multiply(a, block / right, block % right, part, parts, sums);
      write(a, block / right, block % right, sums, parts > 1 ? partial.data() + part * size : a.dweight);
    }
    if (parts > 1) {
      const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      kernels::add_parts(partial.data(), parts, size, size * i / n, size * (i + 1) / n, a.dweight);
    }
  }
}

// Adds some images, which `whole` has too, to a thread's sums.
void add_piece(const Plan& whole, Plan& a, int64_t first, int64_t images, float* sums, float* bias) {
  const Axis &y = a.grid.rows, &x = a.grid.columns;
  const int64_t outer = y.y_pixels * x.y_pixels, inner = y.x_pixels * x.x_pixels;
  for (size_t i = 0; i < a.left.size(); ++i) a.left[i] = later(whole.left[i], first * outer, images * outer);
  for (size_t i = 0; i < a.right.size(); ++i) a.right[i] = later(whole.right[i], first * inner, images * inner);
  float some[32];
  for (int64_t job = 0; job < a.count(a.left) * a.grid.phases(true); ++job) pack_left(a, job);
  for (int64_t job = 0; job < a.count(a.right) * a.grid.phases(false) * a.panels; ++job) pack_right(a, job);
  for (const ChannelBlock& b : a.left) {
    kernels::sum_pixels(b, images, outer, some);
    for (int64_t c = 0; c < b.count; ++c) bias[b.place + c] += some[c];
  }
  for (int64_t i = 0; i < a.count(a.left); ++i)
    for (int64_t j = 0; j < a.count(a.right); ++j, sums += a.products.count * 1024) multiply(a, i, j, 0, 1, sums);
}

// Every thread on pieces of its own.
void run_pieces(const Plan& a, int64_t batch, int64_t pieces, int64_t threads) {
  const int64_t size = a.size(), result = size + a.outputs, packed = round_up_to(a.packed(), 32), step = a.grid.batch;
  std::vector<float> partial(threads * result);
  char* memory = thread_memory(threads * (2 * packed + 4 * a.sums()));
#pragma omp parallel num_threads(threads)
  {
    const int64_t n = omp_get_num_threads(), t = omp_get_thread_num();
    float* sums = reinterpret_cast<float*>(memory) + t * a.sums();
    float* out = partial.data() + t * result;
    Plan some = a;
    some.pack_to(reinterpret_cast<bf16*>(memory + 4 * n * a.sums()) + t * packed);
    some.dbias = nullptr;
    std::fill(sums, sums + a.sums(), 0.0f);
    for (int64_t i = t; i < pieces; i += n)
      if (i * step < batch) add_piece(a, some, i * step, std::min(step, batch - i * step), sums, out + size);
    for (int64_t i = 0; i < a.count(a.left); ++i)
      for (int64_t j = 0; j < a.count(a.right); ++j, sums += a.products.count * 1024) write(a, i, j, sums, out);
#pragma omp barrier
    kernels::add_parts(partial.data(), n, result, size * t / n, size * (t + 1) / n, a.dweight);
    if (t == 0) kernels::add_parts(partial.data() + size, n, result, 0, a.outputs, a.dbias);
  }
}

void convolution_weight_gradient(const std::array<int64_t, 5>& addresses, const std::array<int64_t, 3>& channels,
                                 std::array<int64_t, 9> sizes) {
  const int64_t batch = sizes[0];
  sizes[0] = 1;
  const Plan image(addresses, channels, Grid(sizes));
  const int64_t work = batch * image.sums() / 1024 * image.length;
  const int64_t threads = work < 4096 ? 1 : omp_get_max_threads();
  int64_t pieces = (batch - 1) / std::max<int64_t>(1, piece / (2 * image.packed())) + 1;
  if (pieces >= 2 * threads && 4 * image.sums() <= piece) {
    pieces = std::min(batch, round_up_to(pieces, threads));
    sizes[0] = (batch - 1) / pieces + 1;
    return run_pieces(Plan(addresses, channels, Grid(sizes)), batch, pieces, threads);
  }
  sizes[0] = batch;
  Plan whole(addresses, channels, Grid(sizes));
  run(whole, threads);
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
