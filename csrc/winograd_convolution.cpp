// The convolution with a 3 x 3 kernel and a border of one zero, in float32, by Winograd's F(2 x 2, 3 x 3): 16
// multiplications instead of 36 for the four pixels of a tile. A job transforms some tiles, as many as stay in the
// cache, multiplies them by the transformed kernels of its panels of 32 outputs, and transforms the sums back.
//
// Of an image that is first upsampled by two, or of which the sums of 2 x 2 pixels are wanted, 7 of 16 terms vanish.

#include <omp.h>

#include <algorithm>
#include <array>

#include "module.h"
#include "winograd_images.h"

namespace emfast {

struct Winograd : WinogradImages {
  bool pool, nine;      // nine: only nine terms of 16 do not vanish
  const float* kernel;  // (panel, 16, depth, 32)
  const float *bias, *residual;
  float* out;
  int64_t outputs;
};

// Some inputs and outputs of a weight.
struct WinogradKernel {
  const float* weight;
  int64_t input_step, output_step, inner, depth, outputs;
  bool flip;
  float* out;  // (panel, 16, depth, 32)
};

}  // namespace emfast

#define EMFAST_KERNELS "winograd_convolution.h"
#include "every_isa.h"

namespace emfast {
namespace {

constexpr int64_t cache = 1 << 17;  // floats of transformed tiles that a job holds

// addresses of x, skip or 0, kernel, bias or 0, residual or 0 and the result; channels of x, skip and the result;
// batch, height and width of the result before pooling
void winograd_convolution(const std::array<int64_t, 6>& p, const std::array<int64_t, 3>& channels,
                          const std::array<int64_t, 3>& size, bool upsample, bool pool) {
  const auto at = [&](int i) { return reinterpret_cast<const float*>(p[i]); };
  const WinogradImages images(at(0), at(1), channels[0], channels[1], size[1], size[2], upsample);
  const Winograd a{images, pool, upsample || pool, at(2), at(3), at(4), reinterpret_cast<float*>(p[5]), channels[2]};
  const int64_t tiles = size[0] * a.tiles, panels = (a.outputs + 31) / 32;
  const int64_t threads = tiles * a.depth * panels < 4096 ? 1 : omp_get_max_threads();
  const int64_t most = std::clamp<int64_t>(cache / (16 * a.depth) / 14 * 14, 14, 112);
  // Every job reads the kernels of all its panels: where tiles are few, each thread has panels of its own.
  const int64_t groups = tiles > 112 ? 1 : std::clamp<int64_t>(panels / 2, 1, threads);
  const int64_t least = (tiles + most - 1) / most;
  const int64_t blocks = groups > 1 ? least : (least + threads - 1) / threads * threads;
  const auto job = EMFAST_DISPATCH(winograd_job);
  const int64_t memory = a.depth + 16 * (((tiles + blocks - 1) / blocks) * (a.depth + 32) + 32);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < blocks * groups; ++i) {
    const int64_t b = i % blocks, g = i / blocks;
    job(a, tiles * b / blocks, tiles * (b + 1) / blocks, panels * g / groups, panels * (g + 1) / groups,
        reinterpret_cast<float*>(thread_memory(4 * memory)));
  }
}

// addresses of the weight, (D, C, 3, 3), and the result; D; C; the channels [begin, end) that are used
void winograd_kernel(const std::array<int64_t, 2>& p, const std::array<int64_t, 4>& sizes, bool adjoint) {
  WinogradKernel a{};
  const int64_t inputs = sizes[3] - sizes[2];
  a.weight = reinterpret_cast<const float*>(p[0]) + 9 * sizes[2], a.out = reinterpret_cast<float*>(p[1]);
  a.input_step = adjoint ? 9 * sizes[1] : 9, a.output_step = adjoint ? 9 : 9 * sizes[1], a.flip = adjoint;
  a.inner = adjoint ? sizes[0] : inputs, a.outputs = adjoint ? inputs : sizes[0];
  a.depth = (a.inner + 15) / 16 * 16;
  const int64_t panels = (a.outputs + 31) / 32, groups = a.depth / 16;
  const auto job = EMFAST_DISPATCH(winograd_kernel_job);
#pragma omp parallel for schedule(static) if (panels * groups > 4)
  for (int64_t i = 0; i < panels * groups; ++i) job(a, i / groups, i % groups * 16, i % groups * 16 + 16);
}

}  // namespace

void define_winograd_convolution(py::module_& module) {
  module.def("winograd_convolution", &winograd_convolution, py::call_guard<py::gil_scoped_release>());
  module.def("winograd_kernel", &winograd_kernel, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
