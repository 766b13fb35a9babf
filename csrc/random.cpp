// Standard normal noise: splits the images into jobs. The kernel is in random.h.

#include <omp.h>

#include <algorithm>
#include <array>

#include "module.h"
#include "stream.h"

#define EMFAST_KERNELS "random.h"
#include "every_isa.h"

namespace emfast {
namespace {

// ids (B,), step, out (B, count)
void normal(const std::array<int64_t, 3>& p, int64_t batch, int64_t count, int64_t seed) {
  const auto* ids = reinterpret_cast<const int64_t*>(p[0]);
  const Stream stream{static_cast<uint64_t>(seed), static_cast<uint32_t>(*reinterpret_cast<const int64_t*>(p[1]))};
  auto* out = reinterpret_cast<float*>(p[2]);
  const auto kernel = EMFAST_DISPATCH(normal);
  const int64_t chunks = (count + chunk - 1) / chunk;
  const int threads = batch * count < 8192 ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < batch * chunks; ++i) {
    const int64_t image = i / chunks, begin = i % chunks * chunk;
    kernel(stream, out + image * count, ids[image], begin, std::min(begin + chunk, count));
  }
}

}  // namespace

void define_random(py::module_& module) { module.def("normal", &normal, py::call_guard<py::gil_scoped_release>()); }

}  // namespace emfast
