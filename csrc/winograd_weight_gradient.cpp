// The weight gradient of a 3 x 3 convolution with a border of one zero, in float32, by Winograd's F(3 x 3, 2 x 2). With
// the transformed tiles of the input and of the gradient, the transformed weight's gradient is 16 matrix products that
// sum over tiles. All tiles of a chunk are transformed before any product, so that no transform is done twice.

#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "module.h"
#include "winograd_images.h"

namespace emfast {

struct WinogradGradient : WinogradImages {
  const float* grad;
  int64_t outputs, panels;
  int64_t all_tiles, length;  // of the batch; of a chunk, a multiple of 16
  float *left, *right;        // transformed tiles: (16, depth / 16, length, 16) and (16, panel, length, 32)
  int64_t left_plane, right_plane;  // of the 16 terms: not a multiple of a page, which would meet in the cache
  float* sums;                // (panel, 16, depth, 32)
  float* out;                 // (outputs, inputs, 3, 3)
};

}  // namespace emfast

#define EMFAST_KERNELS "winograd_weight_gradient.h"
#include "every_isa.h"

namespace emfast {
namespace {

constexpr int64_t cache = 1 << 19;  // floats of transformed tiles that a chunk holds

// addresses of grad, x, skip or 0 and the result; channels of grad, x and skip; batch, height and width of grad
void winograd_weight_gradient(const std::array<int64_t, 4>& p, const std::array<int64_t, 3>& channels,
                              const std::array<int64_t, 3>& size, bool upsample) {
  const auto at = [&](int i) { return reinterpret_cast<const float*>(p[i]); };
  const WinogradImages images(at(1), at(2), channels[1], channels[2], size[1], size[2], upsample);
  const int64_t panels = (channels[0] + 31) / 32, width = images.depth + 32 * panels, tiles = size[0] * images.tiles;
  const int64_t most = std::max<int64_t>(128, cache / (16 * width)), chunks = (tiles + most - 1) / most;
  const int64_t length = ((tiles + chunks - 1) / chunks + 15) / 16 * 16;
  WinogradGradient a{images, at(0), channels[0], panels, tiles, length, nullptr, nullptr, 0, 0, nullptr, nullptr};
  a.left_plane = length * a.depth + 16, a.right_plane = length * 32 * panels + 16;
  const int64_t planes = 16 * (a.left_plane + a.right_plane);
  a.left = reinterpret_cast<float*>(thread_memory(4 * (planes + 16 * 32 * panels * a.depth)));
  a.right = a.left + 16 * a.left_plane, a.sums = a.left + planes;
  a.out = reinterpret_cast<float*>(p[3]);
  const std::vector<float> zeros(a.depth);
  const auto transform = EMFAST_DISPATCH(winograd_transform_job);
  const auto multiply = EMFAST_DISPATCH(winograd_product_job);
  const auto finish = EMFAST_DISPATCH(winograd_weight_job);
#pragma omp parallel if (tiles * a.depth * panels > 4096)
  {
    for (int64_t first = 0; first < tiles; first += length) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < length; t += 16) transform(a, first, t, t + 16, zeros.data());
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < 16 * panels; ++i) multiply(a, i / panels, i % panels, first > 0);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels * (a.depth / 16); ++i)
      finish(a, i % panels, i / panels * 16, i / panels * 16 + 16);
  }
}

}  // namespace

void define_winograd_weight_gradient(py::module_& module) {
  module.def("winograd_weight_gradient", &winograd_weight_gradient, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
