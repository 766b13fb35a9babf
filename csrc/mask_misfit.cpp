// The misfit of masked images: splits the work into jobs. The kernel is in mask_misfit.h.

#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "module.h"

namespace emfast {

struct MaskMisfit {
  Dtype dtype;
  bool wide_mask;  // float32 beside a narrower dtype
  int64_t batch, channels, pixels, mask_stride;
  const void *x, *y, *mask;
  void *residual, *adjoint;
  float* norm;
};

}  // namespace emfast

#define EMFAST_KERNELS "mask_misfit.h"
#include "every_isa.h"

namespace emfast {
namespace {

constexpr int64_t piece = 16384;  // pixels of one channel per job

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// x, y, mask, residual, norm, adjoint; dtype, whether the mask is float32, batch, channels, pixels, stride of the mask
void mask_misfit(const std::array<int64_t, 6>& p, const std::array<int64_t, 6>& s) {
  MaskMisfit a{};
  a.dtype = static_cast<Dtype>(s[0]), a.wide_mask = s[1] != 0;
  a.batch = s[2], a.channels = s[3], a.pixels = s[4], a.mask_stride = s[5];
  a.x = at<void>(p[0]), a.y = at<void>(p[1]), a.mask = at<void>(p[2]);
  a.residual = at<void>(p[3]), a.norm = at<float>(p[4]), a.adjoint = at<void>(p[5]);
  const auto kernel = EMFAST_DISPATCH(mask_misfit);
  const int64_t pieces = (a.pixels + piece - 1) / piece, jobs = a.channels * pieces;  // per image
  std::vector<double> squares(a.batch * jobs);
  const int threads = a.batch * a.channels * a.pixels < 16384 ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < a.batch * jobs; ++i) {
    const int64_t begin = i % pieces * piece;
    squares[i] = kernel(a, i / pieces, begin, std::min(begin + piece, a.pixels));
  }
  for (int64_t b = 0; b < a.batch; ++b) {
    double total = 0;
    for (int64_t i = b * jobs; i < (b + 1) * jobs; ++i) total += squares[i];
    a.norm[b] = static_cast<float>(total);
  }
}

}  // namespace

void define_mask_misfit(py::module_& module) {
  module.def("mask_misfit", &mask_misfit, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
