// One-dimensional transforms of Winograd's algorithm for a kernel of 3; no include guards, nothing of std.
//
// The convolution of an image d and a kernel g is a product of two polynomials: they are evaluated at as many points as
// d has pixels, multiplied there, and interpolated, y = A^T (G g . B^T d). The gradients are the transposes.
// Errors grow with the points: of the sets of 6 that were tried these lose least, a third of a digit more than the 4.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

template <int Wide>  // results
struct Points;

// Points 0, 1, -1 and infinity.
template <>
struct Points<2> {
  EMFAST_INLINE void image(const vec* d, vec* v) {  // B^T d
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
  }
  EMFAST_INLINE void kernel(const vec* g, vec* u) {  // G g
    const vec even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    u[0] = g[0], u[1] = even + odd, u[2] = even - odd, u[3] = g[2];
  }
  EMFAST_INLINE void result(const vec* m, vec* y) {  // A^T m
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
  }
  EMFAST_INLINE void from_result(const vec* y, vec* m) {  // A y
    m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = -y[1];
  }
  EMFAST_INLINE void from_kernel(const vec* u, vec* g) {  // G^T u
    const vec even = 0.5f * (u[1] + u[2]);
    g[0] = u[0] + even, g[1] = 0.5f * (u[1] - u[2]), g[2] = even + u[3];
  }
};

// Points 0, r, -r, 1 / r, -1 / r and infinity, with r = 1 / sqrt(2).
template <>
struct Points<4> {
  static constexpr float r = 0.70710678f, s = 1.41421356f, third = 1.0f / 3, sixth = 1.0f / 6;

  EMFAST_INLINE void image(const vec* d, vec* v) {
    const vec a = 2.0f * d[2] - d[4], b = 2.0f * d[1] - d[3], c = d[4] - 0.5f * d[2], e = d[3] - 0.5f * d[1];
    v[0] = d[0] - 2.5f * d[2] + d[4], v[5] = d[1] - 2.5f * d[3] + d[5];
    v[1] = a + r * b, v[2] = a - r * b, v[3] = c + s * e, v[4] = c - s * e;
  }
  EMFAST_INLINE void kernel(const vec* g, vec* u) {
    const vec a = third * (2.0f * g[0] + g[2]), b = (2.0f * third * r) * g[1];
    const vec c = sixth * (g[0] + 2.0f * g[2]), e = (sixth * s) * g[1];
    u[0] = g[0], u[1] = a + b, u[2] = a - b, u[3] = c + e, u[4] = c - e, u[5] = g[2];
  }
  EMFAST_INLINE void result(const vec* m, vec* y) {
    const vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c, y[1] = r * b + s * e, y[2] = 0.5f * a + 2.0f * c;
    y[3] = (0.5f * r) * b + (2.0f * s) * e + m[5];
  }
  EMFAST_INLINE void from_result(const vec* y, vec* m) {
    const vec a = y[0] + 0.5f * y[2], b = y[1] + 0.5f * y[3], c = y[0] + 2.0f * y[2], e = y[1] + 2.0f * y[3];
    m[0] = y[0], m[1] = a + r * b, m[2] = a - r * b, m[3] = c + s * e, m[4] = c - s * e, m[5] = y[3];
  }
  EMFAST_INLINE void from_kernel(const vec* u, vec* g) {
    const vec a = third * (u[1] + u[2]), c = sixth * (u[3] + u[4]);
    g[0] = u[0] + 2.0f * a + c, g[2] = a + 2.0f * c + u[5];
    g[1] = (2.0f * third * r) * (u[1] - u[2]) + (sixth * s) * (u[3] - u[4]);
  }
};

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
