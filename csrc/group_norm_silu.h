// The kernels of group_norm_silu, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
// The forward writes y, mean and 1 / std. The backward needs per channel the sums of dz and dz n, where n is the
// normalised x and z = n w + b: they are the gradients of b and w, and give the gradient of x in a second pass.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

EMFAST_INLINE float value_at(const float* p, int64_t offset, float otherwise) { return p ? p[offset] : otherwise; }

// What is written from or to a run of channels that lies in one tensor: x, or skip behind it.
template <typename T>
struct Run {
  const T *x, *added;
  T* dx;
  int64_t begin, end, channels;  // of the concatenation; of the tensor
};

// The part of a job in x (index 0) or skip (index 1); it may be empty.
template <typename T>
EMFAST_INLINE Run<T> run_of(const GroupNorm& a, const Job& job, int index) {
  const int64_t first = index ? a.channels_x : 0, channels = index ? a.channels_skip : a.channels_x;
  const int64_t begin = job.begin > first ? job.begin : first;
  const int64_t end = job.end < first + channels ? job.end : first + channels;
  const int64_t offset = job.image * channels * a.pixels + (begin - first) * (a.channels_last ? 1 : a.pixels);
  const T* x = static_cast<const T*>(index ? a.skip : a.x);
  const T* added = static_cast<const T*>(index ? a.added_skip : a.added);
  T* dx = static_cast<T*>(index ? a.dskip : a.dx);
  if (begin >= end) return {nullptr, nullptr, nullptr, begin, begin, channels};
  return {x + offset, added ? added + offset : nullptr, dx ? dx + offset : nullptr, begin, end, channels};
}

template <typename T>
EMFAST_INLINE vec silu_gradient(T type, vec z, vec dy) {
  const vec s = sigmoid_for(type, z);
  return dy * s * (1.0f + z * (1.0f - s));
}

// What one channel needs: n = (x - centre) rstd, z = n weight + bias.
struct Channel {
  float centre, rstd, weight, bias;
};

EMFAST_INLINE float shift_of(const GroupNorm& a, int64_t b, int64_t c) {
  return value_at(a.channel_bias, b * a.channels() + c, 0.0f);
}

EMFAST_INLINE Channel channel_of(const GroupNorm& a, int64_t b, int64_t c, double mean, float rstd) {
  return {static_cast<float>(mean - shift_of(a, b, c)), rstd, value_at(a.weight, b * a.weight_stride + c, 1.0f),
          value_at(a.bias, b * a.bias_stride + c, 0.0f)};
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#include "group_norm_silu_channels_last.h"
#include "group_norm_silu_contiguous.h"

namespace emfast {
namespace EMFAST_NAMESPACE {

void group_norm_silu(const GroupNorm& a, const Job& job, float* scratch, float*) {
  with_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    a.channels_last ? forward_slab<T>(a, job, scratch) : forward_group<T>(a, job);
  });
}

void group_norm_silu_backward(const GroupNorm& a, const Job& job, float* scratch, float* stash) {
  with_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    a.channels_last ? backward_slab<T>(a, job, scratch, stash) : backward_group<T>(a, job, stash);
  });
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
