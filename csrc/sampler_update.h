// The kernel of sampler_update, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
#include "philox.h"

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

template <typename T>
void update(const Update& a, int64_t image, int64_t begin, int64_t end) {
  const int64_t first = image * a.count;
  const T *x_t = static_cast<const T*>(a.x_t) + first, *x_0 = static_cast<const T*>(a.x_0) + first;
  const T* guidance = a.guidance ? static_cast<const T*>(a.guidance) + first : nullptr;
  T* out = static_cast<T*>(a.out) + first;
  for (int64_t e = begin; e < end; e += 4 * lanes) {
    vec z[4] = {};
    if (a.std != 0) normals(a.stream, a.ids[image], e / 4, z);
    for (int i = 0; i < 4; ++i) {
      const int64_t p = e + i * lanes, left = end - p;
      if (left <= 0) break;
      vec x = load(x_t + p, left) * a.c_x + load(x_0 + p, left) * a.c_0 + z[i] * a.std;
      if (guidance) x += load(guidance + p, left);
      store(out + p, x, left);
    }
  }
}

}  // namespace

// Writes elements [begin, end) of one image; begin is a multiple of 4 lanes.
void sampler_update(const Update& a, int64_t image, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&](auto zero) { update<decltype(zero)>(a, image, begin, end); });
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
