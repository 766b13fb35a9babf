// Rows of floats between margins, which the blurs read: filled, folded back, and stored as a result. Included once per
// instruction set; no include guard.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// Fills the margins of a row that starts at v: what the padding says there is, or zeros for an adjoint.
EMFAST_INLINE void pad(const BlurPass& a, float* v) {
  const int64_t width = a.width, margin = a.margin();
  float* end = v + width;
  if (a.adjoint)
    for (int64_t q = 0; q < margin; ++q) v[q - margin] = end[q] = 0.0f;
  else if (a.circular)
    for (int64_t q = 0; q < margin; ++q) v[q - margin] = end[q - margin], end[q] = v[q];
  else
    for (int64_t q = 1; q <= margin; ++q) v[-q] = v[q], end[q - 1] = end[-1 - q];
}

// Adds what an adjoint gave to the margins of a row to the pixels that they mirror.
EMFAST_INLINE void fold(const BlurPass& a, float* g) {
  if (!a.adjoint) return;
  for (int64_t q = 1; q <= a.half; ++q) g[q] += g[-q];
  for (int64_t q = 1; q <= a.half; ++q) g[a.width - 1 - q] += g[a.width - 1 + q];
}

// Stores row i of a plane, or y minus it; returns the sum of its squares if that is wanted.
template <typename T>
EMFAST_INLINE double finish(const BlurPass& a, const float* row, int64_t plane, int64_t i) {
  const int64_t first = (plane * a.height + i) * a.width;
  T* out = static_cast<T*>(a.out) + first;
  const T* y = a.y ? static_cast<const T*>(a.y) + first : nullptr;
  vec squares = {};
  for (int64_t j = 0; j < a.width; j += lanes) {
    const int64_t left = a.width - j;  // what lies behind is zero, and adds nothing
    vec r = load(row + j, left);
    if (y) r = load(y + j, left) - r;
    store(out + j, r, left);
    squares += r * r;
  }
  return a.squares ? sum(squares) : 0.0;
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
