// The last line of a sampler's step: splits the images into jobs. The kernel is in sampler_update.h.

#include <omp.h>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "module.h"
#include "stream.h"

namespace emfast {

struct Update {
  Dtype dtype;
  int64_t batch, count;
  const void *x_t, *x_0, *guidance;
  void* out;
  const int64_t* ids;
  float c_x, c_0, std;
  Stream stream;
};

}  // namespace emfast

#define EMFAST_KERNELS "sampler_update.h"
#include "every_isa.h"

namespace emfast {
namespace {

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// x_t, x_0, guidance or 0, table, k, ids, out; dtype, batch, elements of an image, rows of the table
void sampler_update(const std::array<int64_t, 7>& p, const std::array<int64_t, 4>& sizes, int64_t seed) {
  const int64_t k = *at<int64_t>(p[4]);
  if (k < 0 || k >= sizes[3]) throw std::out_of_range("sampler_update: expected k to be a row of table.");
  const double* row = at<double>(p[3]) + 9 * k;
  Update a{};
  a.dtype = static_cast<Dtype>(sizes[0]), a.batch = sizes[1], a.count = sizes[2];
  a.x_t = at<void>(p[0]), a.x_0 = at<void>(p[1]), a.guidance = at<void>(p[2]);
  a.ids = at<int64_t>(p[5]), a.out = at<void>(p[6]);
  a.c_x = static_cast<float>(row[3]), a.c_0 = static_cast<float>(row[4]), a.std = static_cast<float>(row[5]);
  a.stream = {static_cast<uint64_t>(seed), static_cast<uint32_t>(k)};
  const auto kernel = EMFAST_DISPATCH(sampler_update);
  const int64_t chunks = (a.count + chunk - 1) / chunk;
  const int threads = a.batch * a.count < 8192 ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < a.batch * chunks; ++i) {
    const int64_t begin = i % chunks * chunk;
    kernel(a, i / chunks, begin, std::min(begin + chunk, a.count));
  }
}

}  // namespace

void define_sampler_update(py::module_& module) {
  module.def("sampler_update", &sampler_update, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
