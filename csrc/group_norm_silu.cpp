// Group normalisation, SiLU and their gradients: splits the work into jobs. The kernels are in group_norm_silu.h.

#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "module.h"

namespace emfast {

struct GroupNorm {
  Dtype dtype;
  bool channels_last;
  int64_t batch, channels_x, channels_skip, pixels, weight_stride, bias_stride, groups, group_size;
  float eps;
  bool silu;
  const void *x, *skip, *grad, *added, *added_skip;  // added: to dx and dskip, or null
  const float *channel_bias, *weight, *bias;
  void *y, *dx, *dskip;
  float *mean, *rstd, *dchannel_bias, *dweight, *dbias;

  int64_t channels() const { return channels_x + channels_skip; }
};

constexpr int64_t scratch_per_channel = 14;  // floats, for a channels_last job

constexpr int64_t stash_limit = 1 << 16;     // floats of dz that stay in the second-level cache between passes

// One image's channels [begin, end), which are whole groups.
struct Job {
  int64_t image, begin, end;
};

}  // namespace emfast

#define EMFAST_KERNELS "group_norm_silu.h"
#include "every_isa.h"

namespace emfast {
namespace {

// A contiguous image is normalised group by group; a channels_last one in slabs of at least a cache line or two, made
// of whole vectors if possible, and narrower if threads would otherwise idle.
int64_t groups_per_job(const GroupNorm& a, int threads) {
  if (!a.channels_last) return 1;
  const int64_t size = a.group_size;
  int64_t groups = (64 + size - 1) / size;
  while (groups < a.groups && groups * size % 16 != 0 && groups * size < 256) ++groups;
  while (groups > 1 && a.batch * ((a.groups + groups - 1) / groups) < threads) groups = (groups + 1) / 2;
  return std::min(groups, a.groups);
}

void run_jobs(const GroupNorm& a, void (*kernel)(const GroupNorm&, const Job&, float* columns, float* stash)) {
  const int threads = a.batch * a.channels() * a.pixels < 16384 ? 1 : omp_get_max_threads();
  const int64_t step = groups_per_job(a, threads), slabs = (a.groups + step - 1) / step, size = a.group_size;
  const int64_t columns = a.channels_last ? scratch_per_channel * (step * size + 16) : 0;
  const int64_t stash = a.grad && a.silu && step * size * a.pixels <= stash_limit ? step * size * a.pixels : 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < columns + stash) scratch.resize(columns + stash);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.batch * slabs; ++i) {
      const int64_t first = i % slabs * step, last = std::min(first + step, a.groups);
      kernel(a, Job{i / slabs, first * size, last * size}, scratch.data(), stash ? scratch.data() + columns : nullptr);
    }
  }
}

using Sizes = std::array<int64_t, 8>;

GroupNorm geometry(const Sizes& s, int64_t groups, bool silu) {
  GroupNorm a{};
  a.dtype = static_cast<Dtype>(s[0]);
  a.channels_last = s[1] != 0;
  a.batch = s[2], a.channels_x = s[3], a.channels_skip = s[4], a.pixels = s[5];
  a.weight_stride = s[6], a.bias_stride = s[7];
  a.groups = groups, a.group_size = a.channels() / groups, a.silu = silu;
  return a;
}

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// x, skip, channel_bias, weight, bias, y, statistics
void forward(const std::array<int64_t, 7>& p, const Sizes& sizes, int64_t groups, double eps, bool silu) {
  GroupNorm a = geometry(sizes, groups, silu);
  a.eps = static_cast<float>(eps);
  a.x = at<void>(p[0]), a.skip = at<void>(p[1]);
  a.channel_bias = at<float>(p[2]), a.weight = at<float>(p[3]), a.bias = at<float>(p[4]);
  a.y = at<void>(p[5]), a.mean = at<float>(p[6]), a.rstd = a.mean + a.batch * groups;
  run_jobs(a, EMFAST_DISPATCH(group_norm_silu));
}

// x, skip, grad, added to dx and dskip, channel_bias, weight, bias, statistics, dx, dskip, and the gradients of the
// parameters or 0
void backward(const std::array<int64_t, 12>& p, const Sizes& sizes, int64_t groups, bool silu) {
  GroupNorm a = geometry(sizes, groups, silu);
  a.x = at<void>(p[0]), a.skip = at<void>(p[1]), a.grad = at<void>(p[2]);
  a.added = at<void>(p[3]), a.added_skip = at<void>(p[4]);
  a.channel_bias = at<float>(p[5]), a.weight = at<float>(p[6]), a.bias = at<float>(p[7]);
  a.mean = at<float>(p[8]), a.rstd = a.mean + a.batch * groups, a.dx = at<void>(p[9]), a.dskip = at<void>(p[10]);
  if (p[11]) {
    a.dchannel_bias = at<float>(p[11]), a.dweight = a.dchannel_bias + a.batch * a.channels();
    a.dbias = a.dweight + a.batch * a.channels();
  }
  run_jobs(a, EMFAST_DISPATCH(group_norm_silu_backward));
}

}  // namespace

void define_group_norm_silu(py::module_& module) {
  module.def("group_norm_silu", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("group_norm_silu_backward", &backward, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
