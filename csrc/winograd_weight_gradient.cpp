// The weight gradient of a 3 x 3 convolution with a border of one zero, in float32, by Winograd's F(3 x 3, 2 x 2) or
// F(3 x 3, 2 x 4). With the transformed tiles of the input and of the gradient, the transformed weight's gradient is one
// matrix product per term, which sums over tiles. A job computes a quarter of them, one row of terms, for all tiles: it
// transforms that row of some tiles, as many as stay in its core's cache, and adds their products.

#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "module.h"
#include "winograd_images.h"

namespace emfast {

// A job's transformed tiles: a plane (depth / 16, length, 16) and one (panel, length, 32) per term. Planes are not a
// multiple of a page, which would meet in the cache.
struct WinogradGradient : WinogradImages {
  const float *grad, *zeros;
  int64_t outputs, panels;
  int64_t all_tiles, length;  // of the batch; those that a job holds, a multiple of 16
  int64_t plane;              // of the sums of a panel and a term: depth * 32 floats, and some
  float* sums;                // (panel, terms, plane)
  float* out;                 // (outputs, inputs, 3, 3)
};

}  // namespace emfast

#define EMFAST_KERNELS "winograd_weight_gradient.h"
#include "every_isa.h"

namespace emfast {
namespace {

constexpr int64_t cache = 1 << 17;  // floats of transformed tiles that a job holds

// addresses of grad, x, skip or 0 and the result; channels of grad, x and skip; batch, height and width of grad,
// and the width of a tile
void winograd_weight_gradient(const std::array<int64_t, 4>& p, const std::array<int64_t, 3>& channels,
                              const std::array<int64_t, 4>& size, bool upsample) {
  const auto at = [&](int i) { return reinterpret_cast<float*>(p[i]); };
  const WinogradImages images(at(1), at(2), channels[1], channels[2], size[1], size[2], size[3], upsample);
  const int64_t panels = (channels[0] + 31) / 32, width = images.depth + 32 * panels, tiles = size[0] * images.tiles;
  const int64_t side = images.wide + 2;
  const int64_t threads = tiles * images.depth * panels > 4096 ? omp_get_max_threads() : 1;
  // Of an upsampled image a row of terms vanishes. Panels are shared out where rows are too few, or shared unequally,
  // and where sums are larger than transformed tiles, so that the core that wrote them finds them in its own cache.
  const int64_t rows = upsample ? 3 : 4;
  int64_t shares = tiles < channels[0] ? std::min(panels, threads) : 1;
  while (shares < panels && rows * shares % threads && rows * shares < 4 * threads) ++shares;
  const int64_t most = std::clamp<int64_t>(cache / (side * width) / 16 * 16, 16, (tiles + 15) / 16 * 16);
  const int64_t memory = side * (most * width + 32), plane = images.depth * 32 + 32;
  const int64_t sums = images.terms * panels * plane;
  const std::vector<float> zeros(width);
  float* start = reinterpret_cast<float*>(thread_memory(4 * (threads * memory + sums)));
  const WinogradGradient a{images, at(0), zeros.data(), channels[0], panels, tiles, most, plane, start, at(3)};
  const int64_t groups = a.depth / 16;
  const auto sum = EMFAST_DISPATCH(winograd_sum_job);
  const auto finish = EMFAST_DISPATCH(winograd_weight_job);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* own = start + sums + omp_get_thread_num() * memory;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * shares; ++i) {
      const int64_t share = i / rows, row = i % rows;
      sum(a, upsample && row == 2 ? 3 : row, panels * share / shares, panels * (share + 1) / shares, own);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels * groups; ++i) finish(a, i / groups, i % groups * 16);
  }
}

}  // namespace

void define_winograd_weight_gradient(py::module_& module) {
  module.def("winograd_weight_gradient", &winograd_weight_gradient, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
