// The kernels of convolution, for machines that multiply bfloat16 tiles; no include guards, nothing of std.
#ifdef EMFAST_BF16

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

EMFAST_INLINE __mmask32 first_of(int64_t n) { return static_cast<__mmask32>(n < 32 ? (1u << n) - 1 : ~0u); }

EMFAST_INLINE vec load_first(const float* p, int64_t n) {
  const auto mask = static_cast<__mmask16>(n < 16 ? (1u << (n > 0 ? n : 0)) - 1 : 0xffff);
  return bits<vec>(_mm512_maskz_loadu_ps(mask, p));
}

// The words (low, high), rounded.
EMFAST_INLINE vec pairs_of(vec low, vec high) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh halves = _mm512_cvtne2ps_pbh(bits<__m512>(high), bits<__m512>(low));
  return bits<vec>(_mm512_permutexvar_epi16(order, bits<__m512i>(halves)));
}

// A tap's weights among those of all the kernel's places.
EMFAST_INLINE vec sum_places(const Places& tap, int64_t size, const vec* places) {
  vec s = places[tap.rows[0] * size + tap.columns[0]];
  for (int64_t i = tap.rows[0]; i < tap.rows[1]; ++i)
    for (int64_t j = tap.columns[0]; j < tap.columns[1]; ++j)
      if (i != tap.rows[0] || j != tap.columns[0]) s += places[i * size + j];
  return s;
}

// Sums over input channels: the words are pairs of columns of a row, and the rows are the outputs.
void pack_rows(const Convolution& a, const OutputBlock& b, const Places* taps, int64_t count, bf16* out) {
  const int64_t places = a.size * a.size, last = a.inner * places;
  vec columns[32 * 9];  // (channel, place) of 16 rows
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t k = 0; k < a.depth; k += 32) {
      for (int64_t e = 0; e < 32 * places; e += 16) {
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t d = least(16 * half + i, b.count - 1);  // what is behind the last output is not written
          columns[e + i] = load_first(a.rows[b.place + d] + k * places + e, last - k * places - e);
        }
        transpose(columns + e);
      }
      for (int64_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < 32; c += 2) {
          const vec low = sum_places(taps[t], a.size, columns + c * places);
          const vec words = pairs_of(low, sum_places(taps[t], a.size, columns + (c + 1) * places));
          std::memcpy(out + (t * a.depth + k + c) * 32 + 32 * half, &words, sizeof words);
        }
    }
}

// Loads the places of 16 channels of a row, zero behind the first n: (place, channel).
EMFAST_INLINE void load_places(const float* p, int64_t places, int64_t n, vec* out) {
  if (places == 1) return void(out[0] = load_first(p, n));
  for (int64_t i = 0; i < 16; ++i) out[i] = load_first(p + i * places, i < n ? places : 0);
  transpose(out);
}

// Sums over output channels, for the gradient to the input: the words are pairs of rows, the columns the outputs.
void pack_columns(const Convolution& a, const OutputBlock& b, const Places* taps, int64_t count, bf16* out) {
  const int64_t places = a.size * a.size;
  vec low[16], high[16];
  for (int64_t d = 0; d < a.depth; d += 2) {
    for (int64_t i = 16; i < 18; ++i)  // rows are pages apart, too far for the processor to foresee
      for (int64_t e = 0; e < 32 * places && d + i < a.inner; e += 16)
        _mm_prefetch(reinterpret_cast<const char*>(a.rows[d + i] + b.place * places + e), _MM_HINT_T0);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t first = (b.place + 16 * half) * places, n = b.count - 16 * half;
      load_places(a.rows[least(d, a.inner - 1)] + first, places, d < a.inner ? n : 0, low);
      load_places(a.rows[least(d + 1, a.inner - 1)] + first, places, d + 1 < a.inner ? n : 0, high);
      for (int64_t t = 0; t < count; ++t) {
        const vec words = pairs_of(sum_places(taps[t], a.size, low), sum_places(taps[t], a.size, high));
        std::memcpy(out + (t * a.depth + d) * 32 + 32 * half, &words, sizeof words);
      }
    }
  }
}

}  // namespace

// Copies positions [begin, end) of the grid with a border of zeros: (position, depth).
void pad_positions(const Convolution& a, int64_t begin, int64_t end, bf16* padded) {
  for (int64_t p = begin; p < end; ++p) {
    const int32_t pixel = static_cast<uint32_t>(a.pixels[p]) < a.input_pixels ? a.pixels[p] : -1;
    bf16* out = padded + p * a.depth;
    int64_t done = 0;
    for (int64_t i = 0; i < 2 && pixel >= 0; ++i) {
      const bf16* x = a.inputs[i] + pixel * a.channels[i];
      for (int64_t c = 0; c < a.channels[i]; c += 32) {
        const __mmask32 mask = first_of(a.channels[i] - c);
        _mm512_mask_storeu_epi16(out + done + c, mask, _mm512_maskz_loadu_epi16(mask, x + c));
      }
      done += a.channels[i];
    }
    for (; done < a.depth; done += 32)
      _mm512_mask_storeu_epi16(out + done, first_of(a.depth - done), _mm512_setzero_si512());
  }
}

// Packs the weights of 32 outputs for some taps: (tap, pair of depth, 32, 2).
void pack_weights(const Convolution& a, const OutputBlock& b, const Places* taps, int64_t count, bf16* out) {
  a.to_input ? pack_columns(a, b, taps, count, out) : pack_rows(a, b, taps, count, out);
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
    tile_convolution(sums, a.grid + (a.front + p) * a.depth, a.depth, offsets, taps, weights, a.depth);
    for (int64_t i = 0; i < 32; ++i) {
      if (static_cast<uint32_t>(pixels[p + i]) >= a.output_pixels) continue;
      const int64_t place = (a.first + pixels[p + i]) * b.channels;
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
