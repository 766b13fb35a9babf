// The blur with a kernel per image, its adjoint and its misfit: sets up the passes. The kernel is in blur.h.

#include <array>
#include <vector>

#include "blur_jobs.h"
#include "module.h"

#define EMFAST_KERNELS "blur.h"
#include "every_isa.h"

namespace emfast {
namespace {

using Sizes = std::array<int64_t, 7>;  // dtype, batch, channels, height, width, side of the kernels, their number

// One pass with the memory that it points into. Taps that are zero are left out.
struct DensePass {
  std::vector<int64_t> tap_start;
  std::vector<Tap> taps;
  Sources sources;
  BlurPass blur{};

  DensePass(const Sizes& s, const float* kernels, bool circular, bool adjoint)
      : sources(sources_of(s[3], s[5], circular, adjoint && !circular)) {
    const int64_t size = s[5];
    for (int64_t row = 0; row < size * s[6]; ++row) {
      if (row % size == 0 && row > 0) tap_start.push_back(static_cast<int64_t>(taps.size()));
      tap_start.push_back(static_cast<int64_t>(taps.size()));
      const int64_t flipped = row / size * size + size - 1 - row % size;
      const float* weights = kernels + (adjoint && circular ? flipped : row) * size;
      for (int64_t l = 0; l < size; ++l) {
        const float weight = weights[adjoint ? size - 1 - l : l];
        if (weight != 0) taps.push_back({static_cast<int32_t>(l), weight});
      }
    }
    tap_start.push_back(static_cast<int64_t>(taps.size()));
    blur.dtype = static_cast<Dtype>(s[0]), blur.circular = circular, blur.adjoint = adjoint && !circular;
    blur.planes = s[1] * s[2], blur.height = s[3], blur.width = s[4], blur.taps = size, blur.half = size / 2;
    blur.start = sources.start.data(), blur.sources = sources.list.data();
    blur.tap_start = tap_start.data(), blur.tap_list = taps.data();
    blur.tap_stride = s[6] > 1 ? size + 1 : 0, blur.channels = s[2];
  }

  int64_t scratch() const { return (blur.height + 1) * blur.line() + blur.taps + slack + blur.height; }
};

// x, kernels, result
void blur(const std::array<int64_t, 3>& p, const Sizes& sizes, bool circular, bool adjoint) {
  DensePass pass(sizes, at<float>(p[1]), circular, adjoint);
  pass.blur.x = at<void>(p[0]), pass.blur.out = at<void>(p[2]);
  run_passes({pass.blur}, EMFAST_DISPATCH(blur), pass.scratch());
}

// x, y, kernels, residual, norm, adjoint
void blur_misfit(const std::array<int64_t, 6>& p, const Sizes& sizes, bool circular) {
  DensePass pass(sizes, at<float>(p[2]), circular, false), back(sizes, at<float>(p[2]), circular, true);
  std::vector<double> squares(pass.blur.planes * pass.blur.bands());
  pass.blur.x = at<void>(p[0]), pass.blur.y = at<void>(p[1]), pass.blur.out = at<void>(p[3]);
  pass.blur.squares = squares.data();
  back.blur.x = at<void>(p[3]), back.blur.out = at<void>(p[5]);
  run_passes({pass.blur, back.blur}, EMFAST_DISPATCH(blur), back.scratch());
  sum_bands(squares, sizes[1], at<float>(p[4]));
}

}  // namespace

void define_blur(py::module_& module) {
  module.def("blur", &blur, py::call_guard<py::gil_scoped_release>());
  module.def("blur_misfit", &blur_misfit, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
