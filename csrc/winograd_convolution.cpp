// The convolution with a 3 x 3 kernel and a border of one zero, in float32, by Winograd's F(2 x 2, 3 x 3), with 16
// multiplications instead of 36 for four pixels, or F(2 x 4, 3 x 3), with 24 instead of 72 for eight. A job transforms
// some tiles, as many as stay in the cache, multiplies them by the transformed kernels of its panels of 32 outputs, and
// transforms the sums back. Weights that are new at every call are transformed into memory that is used again.
//
// Of an image that is first upsampled by two, or of which the sums of 2 x 2 pixels are wanted, 7 of 16 terms vanish.

#include <omp.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "module.h"
#include "winograd_images.h"

namespace emfast {

// Some inputs and outputs of a weight.
struct WinogradKernel {
  const float* weight;
  int64_t input_step, output_step, inner, depth, outputs;
  bool flip;
  int64_t wide;
  float* out;  // (panel, terms, depth, 32)
};

struct Winograd : WinogradImages {
  bool pool, nine;      // nine: only nine terms of 16 do not vanish
  const float* kernel;  // (panel, terms, depth, 32)
  const float *bias, *residual;
  float* out;
  int64_t outputs;
  const WinogradKernel* weights;  // what a job transforms itself, panel by panel, or null
};

}  // namespace emfast

#define EMFAST_KERNELS "winograd_convolution.h"
#include "every_isa.h"

namespace emfast {
namespace {

constexpr int64_t cache = 3 << 17;  // floats of transformed tiles that a job holds

using Weights = std::vector<int64_t>;  // D and C of a weight, channels [begin, end), adjoint, width of a tile's result

WinogradKernel kernel_of(const float* weight, const Weights& sizes) {
  const int64_t channels = sizes[1], begin = sizes[2], inputs = sizes[3] - begin;
  const bool adjoint = sizes[4] != 0;
  WinogradKernel a{weight + 9 * begin, 9, 9 * channels, inputs, 0, sizes[0], adjoint, sizes[5], nullptr};
  if (adjoint) std::swap(a.input_step, a.output_step), std::swap(a.inner, a.outputs);
  a.depth = (a.inner + 15) / 16 * 16;
  return a;
}

int64_t panels_of(int64_t outputs) { return (outputs + 31) / 32; }
int64_t floats_of(const WinogradKernel& a) { return panels_of(a.outputs) * 4 * (a.wide + 2) * a.depth * 32; }

// To be called by all threads of a parallel region, or by one alone.
void transform(const WinogradKernel& a) {
  const int64_t panels = panels_of(a.outputs), groups = a.depth / 16;
  const auto job = EMFAST_DISPATCH(winograd_kernel_job);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < panels * groups; ++i) job(a, i / groups, i % groups * 16);
}

// How the work is shared out: some tiles and some panels per job.
struct Split {
  int64_t threads, blocks, groups;  // blocks of tiles, groups of panels
  bool whole;                       // whether a job holds all tiles
  int64_t memory;                   // of a job: floats

  Split(const Winograd& a, int64_t tiles, bool is_new) {
    const int64_t panels = panels_of(a.outputs), per_tile = a.terms * a.depth;
    threads = tiles * a.depth * panels < 4096 ? 1 : omp_get_max_threads();
    // A job reads the kernels of all its panels: where tiles are few, each thread has panels of its own, and if all
    // tiles fit in its cache it transforms new weights just before it needs them.
    whole = is_new && panels >= threads && tiles * per_tile <= cache;
    groups = whole ? threads : tiles > 112 ? 1 : std::clamp<int64_t>(panels / 2, 1, threads);
    const int64_t most = std::clamp<int64_t>(cache / per_tile / 14 * 14, 14, 112);
    const int64_t least = whole ? 1 : (tiles + most - 1) / most;
    blocks = groups > 1 ? least : (least + threads - 1) / threads * threads;
    const int64_t count = (tiles + blocks - 1) / blocks;  // see convolve_tiles: 16 more per 6 tiles or fewer
    memory = a.depth + a.terms * (count * (a.depth + 32 + 3) + 64) + (whole ? 32 * per_tile : 0);
    memory = (memory + 15) / 16 * 16;
  }
};

// addresses of x, skip or 0, the kernel or the weight, bias or 0, residual or 0 and the result; channels of x, skip and
// the result; batch, height and width of the result before pooling, width of a tile's result; none for a kernel
void winograd_convolution(const std::array<int64_t, 6>& p, const std::array<int64_t, 3>& channels,
                          const std::array<int64_t, 4>& size, bool upsample, bool pool, const Weights& weights) {
  const auto at = [&](int i) { return reinterpret_cast<const float*>(p[i]); };
  const WinogradImages images(at(0), at(1), channels[0], channels[1], size[1], size[2], size[3], upsample);
  Winograd a{images, pool, upsample || pool, at(2), at(3), at(4), reinterpret_cast<float*>(p[5]), channels[2], nullptr};
  const int64_t tiles = size[0] * a.tiles, panels = panels_of(a.outputs);
  const bool is_new = !weights.empty();
  const Split split(a, tiles, is_new);
  WinogradKernel kernel = is_new ? kernel_of(a.kernel, weights) : WinogradKernel{};
  const int64_t shared = is_new && !split.whole ? floats_of(kernel) : 0;
  float* start = reinterpret_cast<float*>(thread_memory(4 * (shared + split.threads * split.memory)));
  if (shared) a.kernel = kernel.out = start;
  if (split.whole) a.weights = &kernel;
  const auto job = EMFAST_DISPATCH(winograd_job);
#pragma omp parallel num_threads(split.threads) if (split.threads > 1)
  {
    if (shared) transform(kernel);
    float* own = start + shared + omp_get_thread_num() * split.memory;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < split.blocks * split.groups; ++i) {
      const int64_t b = i % split.blocks, g = i / split.blocks;
      job(a, tiles * b / split.blocks, tiles * (b + 1) / split.blocks, panels * g / split.groups,
          panels * (g + 1) / split.groups, own);
    }
  }
}

// addresses of the weight and the result
void winograd_kernel(const std::array<int64_t, 2>& p, const Weights& weights) {
  WinogradKernel a = kernel_of(reinterpret_cast<float*>(p[0]), weights);
  a.out = reinterpret_cast<float*>(p[1]);
#pragma omp parallel if (floats_of(a) > 1 << 16)
  transform(a);
}

}  // namespace

void define_winograd_convolution(py::module_& module) {
  module.def("winograd_convolution", &winograd_convolution, py::call_guard<py::gil_scoped_release>());
  module.def("winograd_kernel", &winograd_kernel, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
