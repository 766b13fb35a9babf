// Standard normal noise for `lanes` counters at once: Philox4x32-10 and Box-Muller. Included, once per instruction set,
// by the kernels that draw; no include guard. emfast/random.py is the specification.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

// High and low words of the products with one factor.
EMFAST_INLINE void multiply(uvec a, uint32_t factor, uvec& high, uvec& low) {
  low = a * factor;
#if EMFAST_LANES == 16
  const __m512i v = bits<__m512i>(a), f = _mm512_set1_epi32(static_cast<int>(factor));
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(v, f), 32);
  high = bits<uvec>(_mm512_mask_blend_epi32(0xaaaa, even, _mm512_mul_epu32(_mm512_srli_epi64(v, 32), f)));
#elif EMFAST_LANES == 8
  const __m256i v = bits<__m256i>(a), f = _mm256_set1_epi32(static_cast<int>(factor));
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(v, f), 32);
  high = bits<uvec>(_mm256_blend_epi32(even, _mm256_mul_epu32(_mm256_srli_epi64(v, 32), f), 0xaa));
#else
  for (int i = 0; i < EMFAST_LANES; ++i) high[i] = static_cast<uint32_t>(uint64_t(a[i]) * factor >> 32);
#endif
}

EMFAST_INLINE vec square_root(vec x) {
#if EMFAST_LANES == 16
  return bits<vec>(_mm512_sqrt_ps(bits<__m512>(x)));
#elif EMFAST_LANES == 8
  return bits<vec>(_mm256_sqrt_ps(bits<__m256>(x)));
#else
  for (int i = 0; i < EMFAST_LANES; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// (w + 0.5) / 2^32, rounded as the reference does: once to float, once after the addition.
EMFAST_INLINE vec unit_interval(uvec w) {
  const vec high = __builtin_convertvector(bits<ivec>(w >> 16), vec);
  const vec low = __builtin_convertvector(bits<ivec>(w & 0xffff), vec);
  return ((high * 65536.0f + low) + 0.5f) * 0x1p-32f;
}

// -log(u) for 2^-34 < u <= 1: u = 2^n m with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh((m - 1) / (m + 1)).
EMFAST_INLINE vec minus_log(vec u) {
  const ivec n = (bits<ivec>(u) - 0x3f3504f3) >> 23;
  const vec m = bits<vec>(bits<ivec>(u) - (n << 23)), s = (m - 1.0f) / (m + 1.0f), square = s * s;
  const vec series = 2.0f / 3 + square * (2.0f / 5 + square * (2.0f / 7 + square * (2.0f / 9)));
  const vec exponent = __builtin_convertvector(-n, vec), log_m = 2.0f * s + s * square * series;
  return exponent * 0.693359375f - (exponent * 2.12194440e-4f + log_m);  // log 2 in two parts
}

// cos and sin of 2 pi u: by their series in the nearest quarter turn.
EMFAST_INLINE void cosine_sine(vec u, vec& cosine, vec& sine) {
  const vec shifted = u * 4.0f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const vec a = (u * 4.0f - (shifted - 12582912.0f)) * 1.57079633f, square = a * a;
  const vec s = a + a * square * (-1.0f / 6 + square * (1.0f / 120 + square * (-1.0f / 5040 + square / 362880)));
  const vec c4 = 1.0f / 24 + square * (-1.0f / 720 + square * (1.0f / 40320 - square / 3628800));
  const vec c = 1.0f + square * (square * c4 - 0.5f);
  const uvec quarter = bits<uvec>(shifted);
  const ivec odd = bits<ivec>(-(quarter & 1));
  cosine = bits<vec>(bits<uvec>(odd ? s : c) ^ (((quarter + 1) & 2) << 30));
  sine = bits<vec>(bits<uvec>(odd ? c : s) ^ ((quarter & 2) << 30));
}

// Transposes the 4 x 4 matrices that groups of four lanes hold.
EMFAST_INLINE void transpose(vec v[4]) {
#if EMFAST_LANES == 4
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = kept;
    }
#else
#if EMFAST_LANES == 16
#define EMFAST_MM(name) _mm512_##name
  typedef __m512 pack;
#else
#define EMFAST_MM(name) _mm256_##name
  typedef __m256 pack;
#endif
  const pack a = bits<pack>(v[0]), b = bits<pack>(v[1]), c = bits<pack>(v[2]), d = bits<pack>(v[3]);
  const pack ab = EMFAST_MM(unpacklo_ps)(a, b), cd = EMFAST_MM(unpacklo_ps)(c, d);
  const pack AB = EMFAST_MM(unpackhi_ps)(a, b), CD = EMFAST_MM(unpackhi_ps)(c, d);
  v[0] = bits<vec>(EMFAST_MM(shuffle_ps)(ab, cd, 0x44));
  v[1] = bits<vec>(EMFAST_MM(shuffle_ps)(ab, cd, 0xee));
  v[2] = bits<vec>(EMFAST_MM(shuffle_ps)(AB, CD, 0x44));
  v[3] = bits<vec>(EMFAST_MM(shuffle_ps)(AB, CD, 0xee));
#undef EMFAST_MM
#endif
}

// The normal numbers of elements [4 block, 4 block + 4 lanes) of one image, in order.
EMFAST_INLINE void normals(const Stream& stream, int64_t id, int64_t block, vec z[4]) {
  uvec c0, c1 = uvec{} + stream.step, c2 = uvec{} + static_cast<uint32_t>(id);
  uvec c3 = uvec{} + static_cast<uint32_t>(static_cast<uint64_t>(id) >> 32);
  for (int i = 0; i < EMFAST_LANES; ++i)  // what the transposition brings into order
    c0[i] = static_cast<uint32_t>(block + EMFAST_LANES / 4 * (i % 4) + i / 4);
  uint32_t k0 = static_cast<uint32_t>(stream.key), k1 = static_cast<uint32_t>(stream.key >> 32);
  for (int round = 0; round < 10; ++round) {
    uvec high0, low0, high1, low1;
    multiply(c0, 0xd2511f53u, high0, low0);
    multiply(c2, 0xcd9e8d57u, high1, low1);
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  vec cosine, sine, radius = square_root(2.0f * minus_log(unit_interval(c0)));
  cosine_sine(unit_interval(c1), cosine, sine);
  z[0] = radius * cosine, z[1] = radius * sine;
  radius = square_root(2.0f * minus_log(unit_interval(c2)));
  cosine_sine(unit_interval(c3), cosine, sine);
  z[2] = radius * cosine, z[3] = radius * sine;
  transpose(z);
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
