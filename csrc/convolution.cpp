// A convolution of bfloat16 images with float32 weights that are packed as they are used: in training they are new at
// every step. The gradient to its input is the same with rows and columns exchanged, and shifts turned round.
//
// A result is computed phase by phase on the grid of convolution_grid.h; what falls on the border is not written. A
// panel is the weights of 32 outputs of a phase. A large batch is cut into pieces of some images, and every thread works
// on pieces of its own; of a small one, all threads on the same piece, each at some panels and positions.

#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "convolution_grid.h"
#include "module.h"

#if defined(__x86_64__)

namespace emfast {

// Up to 32 channels of a channels_last result.
struct OutputBlock {
  bf16* out;             // its first channel, at the first pixel
  const bf16* residual;  // what is added, in the same layout, or null
  int64_t channels;      // of the tensor
  int64_t count;
  int64_t place;  // of its first channel among all outputs
};

// The kernel's places of which a tap is the sum.
struct Places {
  int64_t rows[2], columns[2];
};

struct Convolution {
  bool to_input;              // whether sums run over the weight's rows
  int64_t inner, depth;       // channels to sum over, and rounded up to whole tiles
  int64_t size, front;        // of the kernel; positions before the grid
  const float* const* rows;   // of the weight, (channel, size, size) each
  const float* bias;          // per output, or null
  const bf16* inputs[2];
  int64_t channels[2];
  const int32_t* pixels;  // of the input, at each position; -1 where there is none
  const bf16* grid;       // the input on the grid: (position, depth)
  uint32_t input_pixels, output_pixels;  // of the images in work, which may be fewer than the grid has
  int64_t first;                         // of these pixels among those of all images
};

}  // namespace emfast

#define EMFAST_KERNELS "convolution.h"
#include "every_isa.h"

namespace emfast {
namespace {

namespace kernels = avx512_bf16;

using Triple = std::array<int64_t, 3>;

constexpr int64_t piece = 1 << 19;  // bytes of images that are read and written together: they stay in the cache

std::vector<OutputBlock> blocks_of(const std::vector<Triple>& outputs) {
  std::vector<OutputBlock> blocks;
  int64_t place = 0;
  for (const auto& [address, channels, other] : outputs) {
    bf16* out = reinterpret_cast<bf16*>(address);
    const bf16* residual = reinterpret_cast<const bf16*>(other);
    for (int64_t c = 0; c < channels; c += 32) {
      const int64_t count = std::min<int64_t>(32, channels - c);
      blocks.push_back({out + c, residual ? residual + c : nullptr, channels, count, place + c});
    }
    place += channels;
  }
  return blocks;
}

// The taps of one phase of the result, and how many elements away from a position they read.
struct Phase {
  std::vector<Places> taps;
  std::vector<int64_t> offsets;
};

std::vector<Phase> phases_of(const Grid& grid, bool to_input, int64_t count, int64_t depth) {
  std::vector<Phase> phases(grid.phases(!to_input));
  for (const Step& v : grid.rows.steps)
    for (const Step& h : grid.columns.steps) {
      const int64_t shift = to_input ? -grid.shift(v, h) : grid.shift(v, h);
      Phase& phase = phases[grid.phase(v, h, !to_input)];
      phase.taps.push_back({{v.begin, v.end}, {h.begin, h.end}});
      phase.offsets.push_back((grid.phase(v, h, to_input) * count + shift) * depth);
    }
  return phases;
}

// What the pieces of a batch share: the grid of so many images, and the packed weights.
struct Work {
  Convolution a;
  int64_t images, count, length;  // of a piece; positions per phase of the input and of the result
  std::vector<int32_t> pixels, targets;
  std::vector<Phase> phases;
  std::vector<OutputBlock> blocks;
  bool direct;        // whether the input is a grid of whole tiles itself
  int64_t panel = 0;  // elements
  bf16* panels;       // (phase, block)

  Work(const Convolution& convolution, const Grid& grid, std::vector<OutputBlock> outputs)
      : a(convolution), images(grid.batch), blocks(std::move(outputs)) {
    const Axis &y = grid.rows, &x = grid.columns;
    const int64_t before = -y.first * x.period - x.first, after = y.last * x.period + x.last;
    length = round_up_to(grid.positions(), 32), count = before + length + after;
    a.front = a.to_input ? after : before, a.size = grid.size;
    direct = grid.points() && a.depth == a.channels[0] && grid.rows.period * grid.columns.period % 32 == 0;
    if (!direct) pixels = grid.pixels(a.to_input, a.front, count);
    targets = grid.pixels(!a.to_input, 0, length);
    phases = phases_of(grid, a.to_input, count, a.depth);
    a.pixels = pixels.data();
    for (const Phase& phase : phases) panel = std::max(panel, static_cast<int64_t>(phase.taps.size()) * a.depth * 32);
  }

  int64_t runs() const { return static_cast<int64_t>(blocks.size() * phases.size()); }
  int64_t padded() const { return static_cast<int64_t>(pixels.size()) * a.depth; }  // elements

  void pack(int64_t run) const {
    const Phase& phase = phases[run / blocks.size()];
    const auto taps = static_cast<int64_t>(phase.taps.size());
    kernels::pack_weights(a, blocks[run % blocks.size()], phase.taps.data(), taps, panels + run * panel);
  }

  // The share of thread t of n that work on the images [first, last) together.
  void convolve(int64_t first, int64_t last, int64_t input, int64_t output, bf16* padded, int64_t t, int64_t n) const {
    Convolution some = a;
    some.first = first * output;
    some.input_pixels = static_cast<uint32_t>((last - first) * input);
    some.output_pixels = static_cast<uint32_t>((last - first) * output);
    for (int i = 0; i < 2; ++i) some.inputs[i] += first * input * some.channels[i];
    some.grid = direct ? some.inputs[0] : padded;
    if (!direct) {
      const auto all = static_cast<int64_t>(pixels.size());
      kernels::pad_positions(some, all * t / n, all * (t + 1) / n, padded);
      if (n > 1) {
#pragma omp barrier
      }
    }
    const int64_t tiles = direct ? some.input_pixels / 32 : length / 32, jobs = tiles * runs();
    for (int64_t job = jobs * t / n, end = jobs * (t + 1) / n; job < end;) {
      const int64_t run = job / tiles, begin = job - run * tiles, stop = std::min(tiles, end - run * tiles);
      const int64_t i = run / static_cast<int64_t>(blocks.size());
      kernels::convolve(some, blocks[run % blocks.size()], phases[i].offsets.data(),
                        static_cast<int64_t>(phases[i].taps.size()), panels + run * panel, targets.data() + i * length,
                        begin * 32, stop * 32);
      job = run * tiles + stop;
    }
    if (n > 1) {
#pragma omp barrier
    }
  }
};

// How many images are worked on together.
int64_t images_of(const Grid& grid, int64_t channels) {
  const int64_t image = grid.rows.period * grid.columns.period * grid.phases(true) * grid.phases(false) * channels;
  return std::max<int64_t>(1, piece / (static_cast<int64_t>(sizeof(bf16)) * image));
}

// inputs: address and channels; outputs: that and the residual's address or 0; weights: address, rows, the bias's or 0
void convolution(const std::vector<Triple>& inputs, const std::vector<Triple>& weights,
                 const std::vector<Triple>& outputs, std::array<int64_t, 9> sizes, bool to_input) {
  const Grid whole(sizes);
  Convolution a{};
  a.to_input = to_input;
  int64_t outer = 0;
  for (size_t i = 0; i < inputs.size(); ++i)
    a.inputs[i] = reinterpret_cast<const bf16*>(inputs[i][0]), a.channels[i] = inputs[i][1], a.inner += inputs[i][1];
  for (const Triple& part : outputs) outer += part[1];
  a.depth = round_up_to(a.inner, 32);
  std::vector<const float*> rows;
  std::vector<float> bias;
  const int64_t row = (to_input ? outer : a.inner) * whole.taps();
  for (const auto& [weight, count, shift] : weights) {
    for (int64_t d = 0; d < count; ++d) rows.push_back(reinterpret_cast<const float*>(weight) + d * row);
    if (shift) bias.insert(bias.end(), reinterpret_cast<float*>(shift), reinterpret_cast<float*>(shift) + count);
  }
  a.rows = rows.data();
  a.bias = bias.empty() ? nullptr : bias.data();
  int64_t input = sizes[3] * sizes[4], output = sizes[1] * sizes[2];  // pixels of an image
  if (to_input) std::swap(input, output);

  const int64_t operations = whole.batch * output * a.depth * outer * whole.taps();
  const int64_t threads = operations < 1000000 ? 1 : omp_get_max_threads(), batch = whole.batch;
  int64_t pieces = (batch - 1) / images_of(whole, a.depth + outer) + 1;
  const bool together = pieces < 2 * threads;
  if (!together) pieces = std::min(batch, round_up_to(pieces, threads));
  sizes[0] = (batch - 1) / pieces + 1;
  Work work(a, Grid(sizes), blocks_of(outputs));
  const int64_t padded = together ? 1 : threads;
  work.panels = reinterpret_cast<bf16*>(thread_memory(2 * (work.runs() * work.panel + padded * work.padded())));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t n = omp_get_num_threads(), t = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t run = 0; run < work.runs(); ++run) work.pack(run);
    bf16* memory = work.panels + work.runs() * work.panel + (together ? 0 : t * work.padded());
    for (int64_t i = together ? 0 : t; i < pieces; i += together ? 1 : n) {
      const int64_t first = i * work.images, last = std::min(batch, first + work.images);
      if (first < last) work.convolve(first, last, input, output, memory, together ? t : 0, together ? n : 1);
    }
  }
}

}  // namespace

void define_convolution(py::module_& module) {
  module.def("convolution", &convolution, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast

#else

namespace emfast {
void define_convolution(py::module_&) {}
}  // namespace emfast

#endif
