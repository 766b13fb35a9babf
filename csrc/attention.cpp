// Attention: splits the work into jobs. The kernels are in attention.h.

#include <omp.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <vector>

#include "module.h"

namespace emfast {

// A tensor (B, H, N, D) and its strides in elements.
struct View {
  void* data;
  std::array<int64_t, 4> strides;
};

struct Attention {
  Dtype dtype;
  bool amx;
  int64_t batch, heads, queries, keys, size;
  float scale;
  int64_t chunks;  // jobs per head, in the backward
  View query, key, value, out, grad, dquery, dkey, dvalue;
  float* lse;      // (B, H, N)
  float* partial;  // sums to keys and values, per job; null if there is one job per head
};

}  // namespace emfast

#define EMFAST_KERNELS "attention.h"
#include "every_isa.h"

namespace emfast {
namespace {

using Sizes = std::array<int64_t, 6>;
using Strides = std::vector<std::array<int64_t, 4>>;
using Kernel = void (*)(const Attention& a, int64_t begin, int64_t end);

Attention geometry(const Sizes& s, double scale) {
  Attention a{};
  a.dtype = static_cast<Dtype>(s[0]);
  a.amx = has_amx() && a.dtype == Dtype::bfloat16;
  a.batch = s[1], a.heads = s[2], a.queries = s[3], a.keys = s[4], a.size = s[5];
  a.scale = static_cast<float>(scale);
  a.chunks = 1;
  return a;
}

int threads_for(const Attention& a) {
  return a.batch * a.heads * a.queries * a.keys * (a.size + 16) < 500000 ? 1 : omp_get_max_threads();
}

// Gives every thread a run of consecutive jobs, so that it packs a head once.
void run_jobs(const Attention& a, Kernel kernel, int64_t jobs, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
    const int64_t begin = jobs * i / n, end = jobs * (i + 1) / n;
    if (begin < end) kernel(a, begin, end);
  }
}

View view(int64_t address, const std::array<int64_t, 4>& strides) {
  return {reinterpret_cast<void*>(address), strides};
}

// query, key, value, out, lse
void forward(const std::array<int64_t, 5>& p, const Strides& strides, const Sizes& sizes, double scale) {
  Attention a = geometry(sizes, scale);
  View* const views[] = {&a.query, &a.key, &a.value, &a.out};
  for (int i = 0; i < 4; ++i) *views[i] = view(p[i], strides[i]);
  a.lse = reinterpret_cast<float*>(p[4]);
  const int64_t tile = EMFAST_DISPATCH(attention_tile)();
  run_jobs(a, EMFAST_DISPATCH(attention), a.batch * a.heads * ((a.queries + tile - 1) / tile), threads_for(a));
}

// grad, query, key, value, out, dquery, dkey, dvalue, lse
void backward(const std::array<int64_t, 9>& p, const Strides& strides, const Sizes& sizes, double scale) {
  Attention a = geometry(sizes, scale);
  View* const views[] = {&a.grad, &a.query, &a.key, &a.value, &a.out, &a.dquery, &a.dkey, &a.dvalue};
  for (int i = 0; i < 8; ++i) *views[i] = view(p[i], strides[i]);
  a.lse = reinterpret_cast<float*>(p[8]);
  const int threads = threads_for(a);
  const int64_t heads = a.batch * a.heads, tile = EMFAST_DISPATCH(attention_tile)();
  const int64_t tiles = (a.queries + tile - 1) / tile;
  if (heads < 4 * threads) a.chunks = std::min(threads / std::gcd(heads, int64_t{threads}), tiles);
  std::unique_ptr<char[]> memory;
  if (a.chunks > 1) {
    const int64_t floats = heads * a.chunks * 2 * ((a.keys + 31) / 32 * 32) * ((a.size + 15) / 16 * 16);
    memory.reset(new char[floats * sizeof(float) + 64]);
    a.partial = reinterpret_cast<float*>(memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64);
  }
  run_jobs(a, EMFAST_DISPATCH(attention_backward), heads * a.chunks, threads);
  if (a.chunks > 1) run_jobs(a, EMFAST_DISPATCH(attention_gather), heads, threads);
}

}  // namespace

void define_attention(py::module_& module) {
  module.def("attention", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("attention_backward", &backward, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
