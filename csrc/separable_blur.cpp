// The separable blur, its adjoint and its misfit: sets up the passes. The kernel is in separable_blur.h.

#include <array>
#include <vector>

#include "blur_jobs.h"
#include "module.h"

#define EMFAST_KERNELS "separable_blur.h"
#include "every_isa.h"

namespace emfast {
namespace {

using Sizes = std::array<int64_t, 7>;  // dtype, batch, channels, height, width, taps of rows and of columns

// One pass with the memory that it points into.
struct SeparablePass {
  std::vector<float> rows, columns;
  Sources sources;
  BlurPass blur{};

  SeparablePass(const Sizes& s, const float* row_taps, const float* column_taps, bool circular, bool adjoint)
      : rows(row_taps, row_taps + s[5]),
        columns(column_taps, column_taps + s[6]),
        sources(sources_of(s[3], s[5], circular, adjoint && !circular)) {
    if (adjoint && circular) std::reverse(rows.begin(), rows.end());
    if (adjoint) std::reverse(columns.begin(), columns.end());
    blur.dtype = static_cast<Dtype>(s[0]), blur.circular = circular, blur.adjoint = adjoint && !circular;
    blur.planes = s[1] * s[2], blur.height = s[3], blur.width = s[4], blur.taps = s[6], blur.half = s[6] / 2;
    blur.start = sources.start.data(), blur.sources = sources.list.data();
    blur.rows = rows.data(), blur.columns = columns.data();
  }
};

int64_t scratch(const BlurPass& a) { return 2 * (group * a.line() + a.taps + slack); }

// x, rows, columns, result
void separable_blur(const std::array<int64_t, 4>& p, const Sizes& sizes, bool circular, bool adjoint) {
  SeparablePass pass(sizes, at<float>(p[1]), at<float>(p[2]), circular, adjoint);
  pass.blur.x = at<void>(p[0]), pass.blur.out = at<void>(p[3]);
  run_passes({pass.blur}, EMFAST_DISPATCH(separable_blur), scratch(pass.blur));
}

// x, y, rows, columns, residual, norm, adjoint
void separable_blur_misfit(const std::array<int64_t, 7>& p, const Sizes& sizes, bool circular) {
  SeparablePass pass(sizes, at<float>(p[2]), at<float>(p[3]), circular, false);
  SeparablePass back(sizes, at<float>(p[2]), at<float>(p[3]), circular, true);
  std::vector<double> squares(pass.blur.planes * pass.blur.bands());
  pass.blur.x = at<void>(p[0]), pass.blur.y = at<void>(p[1]), pass.blur.out = at<void>(p[4]);
  pass.blur.squares = squares.data();
  back.blur.x = at<void>(p[4]), back.blur.out = at<void>(p[6]);
  run_passes({pass.blur, back.blur}, EMFAST_DISPATCH(separable_blur), scratch(back.blur));
  sum_bands(squares, sizes[1], at<float>(p[5]));
}

}  // namespace

void define_separable_blur(py::module_& module) {
  module.def("separable_blur", &separable_blur, py::call_guard<py::gil_scoped_release>());
  module.def("separable_blur_misfit", &separable_blur_misfit, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
