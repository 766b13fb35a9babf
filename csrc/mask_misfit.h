// The kernel of mask_misfit, compiled once per instruction set by every_isa.h; no include guards, nothing of std.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t run = 2048;  // pixels whose squares are summed in float before going to a double

template <typename T, typename M>
double misfit(const MaskMisfit& a, int64_t plane, int64_t begin, int64_t end) {
  const int64_t first = plane * a.pixels;
  const T *x = static_cast<const T*>(a.x) + first, *y = static_cast<const T*>(a.y) + first;
  const M* mask = static_cast<const M*>(a.mask) + plane / a.channels * a.mask_stride;
  T *residual = static_cast<T*>(a.residual) + first, *adjoint = static_cast<T*>(a.adjoint) + first;
  double total = 0;
  for (int64_t p = begin; p < end;) {
    const int64_t last = p + run < end ? p + run : end;
    vec squares[2] = {};
    for (int turn = 0; p < last; p += lanes, turn ^= 1) {
      const int64_t left = last - p;
      const vec m = load(mask + p, left), r = load(y + p, left) - m * load(x + p, left);
      store(residual + p, r, left);
      store(adjoint + p, m * r, left);
      squares[turn] += r * r;  // what is loaded behind the end is zero
    }
    p = last;
    total += sum(squares[0] + squares[1]);
  }
  return total;
}

}  // namespace

// Works on pixels [begin, end) of one channel of one image, and returns the sum of the squared residual over them.
double mask_misfit(const MaskMisfit& a, int64_t plane, int64_t begin, int64_t end) {
  double total = 0;
  with_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    total = a.wide_mask ? misfit<T, float>(a, plane, begin, end) : misfit<T, T>(a, plane, begin, end);
  });
  return total;
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
