// A convolution of bfloat16 images with float32 weights that are packed as they are used: in training they are new at
// every step. The gradient to its input is the same with rows and columns exchanged, and shifts turned round.
//
// A result is computed phase by phase on the grid of convolution_grid.h; what falls on the border is not written. A job
// is 32 outputs of a phase at a run of positions.

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
struct KernelPart {
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
  bf16* padded;           // the input on the grid: (position, depth)
};

}  // namespace emfast

#define EMFAST_KERNELS "convolution.h"
#include "every_isa.h"

namespace emfast {
namespace {

namespace kernels = avx512_bf16;

using Triple = std::array<int64_t, 3>;

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
  std::vector<KernelPart> taps;
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

void run(Convolution& a, const Grid& grid, const std::vector<OutputBlock>& blocks) {
  const Axis &y = grid.rows, &x = grid.columns;
  const int64_t before = -y.first * x.period - x.first, after = y.last * x.period + x.last;
  const int64_t length = round_up_to(grid.positions(), 32), count = before + length + after;
  a.front = a.to_input ? after : before, a.size = grid.size;
  const std::vector<int32_t> pixels = grid.pixels(a.to_input, a.front, count);
  const std::vector<int32_t> targets = grid.pixels(!a.to_input, 0, length);
  const std::vector<Phase> phases = phases_of(grid, a.to_input, count, a.depth);
  a.pixels = pixels.data();
  size_t most = 0;
  for (const Phase& phase : phases) most = std::max(most, phase.taps.size());
  const int64_t panel = static_cast<int64_t>(most) * a.depth * 32, tiles = length / 32;
  const int64_t all = static_cast<int64_t>(pixels.size());
  const int64_t jobs = tiles * static_cast<int64_t>(blocks.size() * phases.size());
  const int64_t threads = jobs * panel < 100000 ? 1 : omp_get_max_threads();
  bf16* memory = reinterpret_cast<bf16*>(thread_memory(2 * (threads * panel + all * a.depth)));
  a.padded = memory + threads * panel;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t n = omp_get_num_threads(), t = omp_get_thread_num();
    kernels::pad_positions(a, all * t / n, all * (t + 1) / n);
#pragma omp barrier
    bf16* weights = memory + t * panel;
    for (int64_t job = jobs * t / n, end = jobs * (t + 1) / n; job < end;) {
      const int64_t run = job / tiles, begin = job - run * tiles, last = std::min(tiles, end - run * tiles);
      const OutputBlock& block = blocks[run % blocks.size()];
      const size_t i = run / blocks.size();
      const auto taps = static_cast<int64_t>(phases[i].taps.size());
      kernels::pack_weights(a, block, phases[i].taps.data(), taps, weights);
      kernels::convolve(a, block, phases[i].offsets.data(), taps, weights, targets.data() + i * length, begin * 32,
                        last * 32);
      job = run * tiles + last;
    }
  }
}

// inputs: address and channels; outputs: that and the residual's address or 0; weights: address, rows, the bias's or 0
void convolution(const std::vector<Triple>& inputs, const std::vector<Triple>& weights,
                 const std::vector<Triple>& outputs, const std::array<int64_t, 9>& sizes, bool to_input) {
  const Grid grid(sizes);
  Convolution a{};
  a.to_input = to_input;
  int64_t outer = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    a.inputs[i] = reinterpret_cast<const bf16*>(inputs[i][0]), a.channels[i] = inputs[i][1];
    a.inner += a.channels[i];
  }
  for (const Triple& part : outputs) outer += part[1];
  a.depth = round_up_to(a.inner, 32);
  std::vector<const float*> rows;
  std::vector<float> bias;
  const int64_t row = (to_input ? outer : a.inner) * grid.taps();
  for (const auto& [weight, count, shift] : weights) {
    for (int64_t d = 0; d < count; ++d) rows.push_back(reinterpret_cast<const float*>(weight) + d * row);
    if (shift) bias.insert(bias.end(), reinterpret_cast<float*>(shift), reinterpret_cast<float*>(shift) + count);
  }
  a.rows = rows.data();
  a.bias = bias.empty() ? nullptr : bias.data();
  run(a, grid, blocks_of(outputs));
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
