// The kernels of convolution, for machines that multiply bfloat16 tiles; no include guards, nothing of std.
#ifdef EMFAST_BF16

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

EMFAST_INLINE __mmask32 first_of(int64_t n) { return static_cast<__mmask32>(n < 32 ? (1u << n) - 1 : ~0u); }

// 16 weights of a row, each the sum of a tap's places; zero behind the first n.
EMFAST_INLINE __m512 weights_at(const Convolution& a, const Tap& tap, const float* p, __m512i places, int64_t n) {
  const auto mask = static_cast<__mmask16>(n < 16 ? (1u << (n > 0 ? n : 0)) - 1 : 0xffff);
  const __m512 zero = _mm512_setzero_ps();
  __m512 s = zero;
  for (int64_t i = tap.rows[0]; i < tap.rows[1]; ++i)
    for (int64_t j = tap.columns[0]; j < tap.columns[1]; ++j)
      s = _mm512_add_ps(s, _mm512_mask_i32gather_ps(zero, mask, places, p + i * a.size + j, 4));
  return s;
}

// Sums over input channels: the words are pairs of columns of a row, and the rows are the outputs.
void pack_rows(const Convolution& a, const OutputBlock& b, __m512i places, const Tap& tap, bf16* out) {
  const int64_t taps = a.size * a.size;
  vec words[16];
  for (int64_t k = 0; k < a.depth; k += 32)
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t d = least(16 * half + i, b.count - 1);  // what is behind the last output is not written
        const float* row = a.rows[b.place + d] + k * taps;
        const __m512 low = weights_at(a, tap, row, places, a.inner - k);
        const __m512 high = weights_at(a, tap, row + 16 * taps, places, a.inner - k - 16);
        words[i] = bits<vec>(_mm512_cvtne2ps_pbh(high, low));
      }
      transpose(words);
      for (int64_t i = 0; i < 16; ++i) std::memcpy(out + (k / 2 + i) * 64 + 32 * half, &words[i], sizeof(vec));
    }
}

// Sums over output channels, for the gradient to the input: the words are pairs of rows, the columns the outputs.
void pack_columns(const Convolution& a, const OutputBlock& b, __m512i places, const Tap& tap, bf16* out) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t d = 0; d < a.depth; d += 2)
    for (int64_t half = 0; half < 2; ++half) {
      __m512 row[2];
      for (int64_t i = 0; i < 2; ++i) {
        const float* p = a.rows[least(d + i, a.inner - 1)] + (b.place + 16 * half) * a.size * a.size;
        row[i] = weights_at(a, tap, p, places, d + i < a.inner ? b.count - 16 * half : 0);
      }
      const __m512i words = _mm512_permutexvar_epi16(pairs, bits<__m512i>(_mm512_cvtne2ps_pbh(row[1], row[0])));
      _mm512_storeu_si512(out + d * 32 + 32 * half, words);
    }
}

}  // namespace

// Copies positions [begin, end) of the grid with a border of zeros: (position, depth).
void pad_positions(const Convolution& a, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const int32_t pixel = a.pixels[p];
    bf16* out = a.padded + p * a.depth;
    int64_t done = 0;
    for (int64_t i = 0; i < 2 && pixel >= 0; ++i) {
      const bf16* x = a.inputs[i] + pixel * a.channels[i];
      for (int64_t c = 0; c < a.channels[i]; c += 32) {
        const __mmask32 mask = first_of(a.channels[i] - c);
        _mm512_mask_storeu_epi16(out + done + c, mask, _mm512_maskz_loadu_epi16(mask, x + c));
      }
      done += a.channels[i];
    }
    std::memset(out + done, 0, (a.depth - done) * sizeof(bf16));
  }
}

// Packs the weights of 32 outputs for some taps: (tap, pair of depth, 32, 2).
void pack_weights(const Convolution& a, const OutputBlock& b, const Tap* taps, int64_t count, bf16* out) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(a.size * a.size)));
  for (int64_t i = 0; i < count; ++i, out += a.depth * 32)
    a.to_input ? pack_columns(a, b, places, taps[i], out) : pack_rows(a, b, places, taps[i], out);
}

// Computes 32 outputs at the positions [begin, end), which are whole tiles of 32.
void convolve(const Convolution& a, const OutputBlock& b, const int64_t* offsets, int64_t taps, const bf16* weights,
              const int32_t* pixels, int64_t begin, int64_t end) {
  alignas(64) float sums[1024], bias[32] = {};
  for (int64_t i = 0; a.bias && i < b.count; ++i) bias[i] = a.bias[b.place + i];
  const vec low = load(bias), high = load(bias + 16);
  const __mmask32 mask = first_of(b.count);
  begin_tiles();
  for (int64_t p = begin; p < end; p += 32) {
    tile_convolution(sums, a.padded + (a.front + p) * a.depth, a.depth, offsets, taps, weights, a.depth);
    for (int64_t i = 0; i < 32; ++i) {
      if (pixels[p + i] < 0) continue;
      const int64_t place = pixels[p + i] * b.channels;
      vec s = load(sums + 32 * i) + low, t = load(sums + 32 * i + 16) + high;
      if (b.residual) {
        const __m512i r = _mm512_maskz_loadu_epi16(mask, b.residual + place);
        s += bits<vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(r)), 16));
        t += bits<vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(r, 1)), 16));
      }
      const __m512bh y = _mm512_cvtne2ps_pbh(bits<__m512>(t), bits<__m512>(s));
      _mm512_mask_storeu_epi16(b.out + place, mask, bits<__m512i>(y));
    }
  }
  end_tiles();
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
