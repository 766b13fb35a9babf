// A vector of EMFAST_LANES floats, for the namespace EMFAST_NAMESPACE; included once per instruction set by every_isa.h.
// No include guard. Arithmetic is the compiler's vector extension; only conversions and exp are written out.

namespace emfast {
namespace EMFAST_NAMESPACE {

#define EMFAST_INLINE static inline __attribute__((always_inline))

constexpr int64_t lanes = EMFAST_LANES;
typedef float vec __attribute__((vector_size(EMFAST_LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(EMFAST_LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(EMFAST_LANES * 4)));
typedef uint16_t hvec __attribute__((vector_size(EMFAST_LANES * 2)));

EMFAST_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
EMFAST_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

EMFAST_INLINE vec broadcast(float value) { return vec{} + value; }

template <typename To, typename From>
EMFAST_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

#if EMFAST_LANES == 16
EMFAST_INLINE uvec widen(hvec h) { return bits<uvec>(_mm512_cvtepu16_epi32(bits<__m256i>(h))); }
EMFAST_INLINE hvec narrow(uvec u) { return bits<hvec>(_mm512_cvtepi32_epi16(bits<__m512i>(u))); }
EMFAST_INLINE vec widen(f16, hvec h) { return bits<vec>(_mm512_cvtph_ps(bits<__m256i>(h))); }
EMFAST_INLINE hvec narrow(f16, vec v) { return bits<hvec>(_mm512_cvtps_ph(bits<__m512>(v), 0)); }
#else
EMFAST_INLINE uvec widen(hvec h) { return __builtin_convertvector(h, uvec); }
EMFAST_INLINE hvec narrow(uvec u) { return __builtin_convertvector(u, hvec); }
#if EMFAST_LANES == 8
EMFAST_INLINE vec widen(f16, hvec h) { return bits<vec>(_mm256_cvtph_ps(bits<__m128i>(h))); }
EMFAST_INLINE hvec narrow(f16, vec v) { return bits<hvec>(_mm256_cvtps_ph(bits<__m256>(v), 0)); }
#else
EMFAST_INLINE vec widen(f16, hvec h) {  // the exponent is rebased by a multiplication, exact for subnormals too
  const uvec u = widen(h), special = (u & 0x7c00) == 0x7c00 ? uvec{} + 0x7f800000 : uvec{};  // infinity and NaN
  const vec magnitude = bits<vec>((u & 0x7fff) << 13) * bits<vec>(uvec{} + 0x77800000);      // times 2^112
  return bits<vec>(bits<uvec>(magnitude) | special | ((u & 0x8000) << 16));
}
EMFAST_INLINE hvec narrow(f16, vec v) {
  const uvec u = bits<uvec>(v), magnitude = u & 0x7fffffff;
  const uvec normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uvec tiny = bits<uvec>(bits<vec>(magnitude) + 0.5f) - 0x3f000000;  // the addition rounds to 2^-24
  uvec result = magnitude < 0x38800000 ? tiny : normal;
  result = magnitude >= 0x477ff000 ? uvec{} + 0x7c00 : result;
  result = magnitude > 0x7f800000 ? uvec{} + 0x7e00 : result;
  return narrow(result | ((u >> 16) & 0x8000));
}
#endif
#endif

EMFAST_INLINE vec widen(bf16, hvec h) { return bits<vec>(widen(h) << 16); }
#ifdef EMFAST_BF16
EMFAST_INLINE hvec narrow(bf16, vec v) { return bits<hvec>(_mm512_cvtneps_pbh(bits<__m512>(v))); }
#else
EMFAST_INLINE hvec narrow(bf16, vec v) {  // round to nearest even; a NaN stays one
  const uvec u = bits<uvec>(v), rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return narrow(v != v ? uvec{} + 0x7fc0 : rounded);
}
#endif

EMFAST_INLINE vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
EMFAST_INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

template <typename T>
EMFAST_INLINE vec load(const T* p) {
  hvec h;
  std::memcpy(&h, p, sizeof h);
  return widen(T(), h);
}
template <typename T>
EMFAST_INLINE void store(T* p, vec v) {
  hvec h = narrow(T(), v);
  std::memcpy(p, &h, sizeof h);
}

// The first n elements, the rest zero; n may be lanes or more.
template <typename T>
EMFAST_INLINE vec load(const T* p, int64_t n) {
  if (n >= lanes) return load(p);
#if EMFAST_LANES == 16
  if constexpr (sizeof(T) == 4) return bits<vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#endif
  T buffer[EMFAST_LANES] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <typename T>
EMFAST_INLINE void store(T* p, vec v, int64_t n) {
  if (n >= lanes) return store(p, v);
  T buffer[EMFAST_LANES];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// The first n lanes, the rest zero.
EMFAST_INLINE vec keep(vec v, int64_t n) {
  if (n >= lanes) return v;
  float buffer[EMFAST_LANES];
  store(buffer, v);
  return load(buffer, n);
}

EMFAST_INLINE float sum(vec v) {
#if EMFAST_LANES == 16
  return _mm512_reduce_add_ps(bits<__m512>(v));
#else
  float f[EMFAST_LANES];
  store(f, v);
  for (int n = EMFAST_LANES / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) f[i] += f[i + n];
  return f[0];
#endif
}

// e^x for |x| <= 87, to about 1 unit in the last place; beyond, x is clamped; a NaN gives a NaN.
EMFAST_INLINE vec exp(vec x) {
  x = x > 87.0f ? broadcast(87.0f) : x;
  x = x < -87.0f ? broadcast(-87.0f) : x;
  const vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec shifted = x * 1.44269504f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * bits<vec>((bits<ivec>(shifted) + 127) << 23);  // times 2^n
}

// 1 / x for 1 <= x <= 2^125, to about 1 unit in the last place.
EMFAST_INLINE vec reciprocal(vec x) {
#if EMFAST_LANES == 16
  const vec y = bits<vec>(_mm512_rcp14_ps(bits<__m512>(x)));
  return y * (2.0f - x * y);
#else
  return 1.0f / x;
#endif
}

EMFAST_INLINE vec sigmoid(vec x) { return reciprocal(1.0f + exp(-x)); }

// The same as exact as the element type of the result needs: to 2^-13 for bfloat16, whose unit is 2^-8.
template <typename T>
EMFAST_INLINE vec sigmoid_for(T, vec x) {
  return sigmoid(x);
}
#if EMFAST_LANES == 16
EMFAST_INLINE vec exp2_roughly(vec x) {  // to 2^-13; 0 or infinity where that is the nearest
  const vec r = bits<vec>(_mm512_reduce_ps(bits<__m512>(x), 9));  // x - floor(x)
  const vec p = ((r * 7.8024032e-2f + 2.2606707e-1f) * r + 6.9583399e-1f) * r + 9.9992513e-1f;
  return bits<vec>(_mm512_scalef_ps(bits<__m512>(p), bits<__m512>(x)));  // times 2^floor(x)
}
EMFAST_INLINE vec sigmoid_for(bf16, vec x) {
  return bits<vec>(_mm512_rcp14_ps(bits<__m512>(1.0f + exp2_roughly(x * -1.44269504f))));
}
#endif

EMFAST_INLINE vec shuffle(vec a, vec b, ivec index) {
#if defined(__clang__)
  vec c = {};
  for (int i = 0; i < EMFAST_LANES; ++i) c[i] = index[i] < EMFAST_LANES ? a[index[i]] : b[index[i] - EMFAST_LANES];
  return c;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Transposes lanes rows of lanes words; no arithmetic, so that a word may be anything.
EMFAST_INLINE void transpose(vec* rows) {
  ivec lane;
  for (int i = 0; i < EMFAST_LANES; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (int step = EMFAST_LANES / 2; step > 0; step /= 2) {
    const ivec upper = (lane & step) != 0, other = lane ^ step;
    const ivec first = (upper & (other + EMFAST_LANES)) | (~upper & lane);
    const ivec second = (upper & (lane + EMFAST_LANES)) | (~upper & other);
#pragma GCC unroll 16
    for (int i = 0; i < EMFAST_LANES; ++i) {
      if (i & step) continue;
      const vec a = rows[i], b = rows[i | step];
      rows[i] = shuffle(a, b, first), rows[i | step] = shuffle(a, b, second);
    }
  }
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
