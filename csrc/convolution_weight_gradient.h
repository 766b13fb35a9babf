// The kernels of convolution_weight_gradient, for machines that multiply bfloat16 tiles; no include guards, nothing of std.
#ifdef EMFAST_BF16

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t depth_block = 256;  // positions whose operands stay in the first-level cache for all products

// 32 channels at one position; zero where there is none.
EMFAST_INLINE __m512i channels_at(const ChannelBlock& b, int32_t pixel) {
  if (static_cast<uint32_t>(pixel) >= b.pixels) return _mm512_setzero_si512();
  const auto mask = static_cast<__mmask32>(b.count < 32 ? (1u << b.count) - 1 : ~0u);
  return _mm512_maskz_loadu_epi16(mask, b.data + pixel * b.channels);
}

// The words (x[0][c], x[1][c]) of 32 channels at two positions.
EMFAST_INLINE void interleave(const ChannelBlock& b, const int32_t* pixels, vec* low, vec* high) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i x = channels_at(b, pixels[0]), y = channels_at(b, pixels[1]);
  *low = bits<vec>(_mm512_permutex2var_epi16(x, first, y));
  *high = bits<vec>(_mm512_permutex2var_epi16(x, _mm512_add_epi16(first, _mm512_set1_epi16(16)), y));
}

}  // namespace

// Packs (channel, position): 32 rows of `row` elements.
void pack_left(const ChannelBlock& b, const int32_t* pixels, int64_t positions, int64_t row, bf16* out) {
  vec words[2][16];
  for (int64_t k = 0; k < positions; k += 32) {
    for (int64_t i = 0; i < 16; ++i) interleave(b, pixels + k + 2 * i, &words[0][i], &words[1][i]);
    for (int64_t half = 0; half < 2; ++half) {
      transpose(words[half]);
      for (int64_t i = 0; i < 16; ++i) std::memcpy(out + (16 * half + i) * row + k, &words[half][i], sizeof(vec));
    }
  }
}

// Packs (pair of positions, channel, 2).
void pack_right(const ChannelBlock& b, const int32_t* pixels, int64_t positions, bf16* out) {
  vec words[2];
  for (int64_t k = 0; k < positions; k += 2) {
    interleave(b, pixels + k, &words[0], &words[1]);
    std::memcpy(out + 32 * k, words, sizeof words);
  }
}

// Sums of a block's channels over all pixels, image by image.
void sum_pixels(const ChannelBlock& b, int64_t images, int64_t pixels, float* out) {
  vec total[2] = {};  // of even and odd channels
  for (int64_t i = 0; i < images; ++i) {
    vec part[2] = {};
    for (int64_t p = i * pixels; p < (i + 1) * pixels; ++p) {
      const uvec words = bits<uvec>(channels_at(b, static_cast<int32_t>(p)));
      part[0] += bits<vec>(words << 16), part[1] += bits<vec>(words & 0xffff0000);
    }
    total[0] += part[0], total[1] += part[1];
  }
  for (int64_t c = 0; c < b.count; ++c) out[c] = total[c % 2][c / 2];
}

// Adds every product of a left and a right block over the positions [begin, end) to sums: (product, 32, 32).
void multiply_blocks(const Products& a, const bf16* left, const bf16* right, int64_t begin, int64_t end, float* sums) {
  begin_tiles();
  for (int64_t k = begin; k < end; k += depth_block)
    for (int64_t i = 0; i < a.count; ++i) {
      const Product& p = a.list[i];
      const bf16* l = left + p.left_phase * a.left_size + k;
      const bf16* r = right + p.right_panel * a.right_size + (k + p.offset) * 32;
      tile_product<2, 2>(sums + p.place * 1024, 32, l, a.left_row, r, least(depth_block, end - k), true);
    }
  end_tiles();
}

// Adds the products of an upsampled input, (4, 4, 32, 32), to the 3 x 3 taps of its kernel.
void fold_products(const float* sums, float* taps) {
  const int64_t parts[3][2] = {{0, 2}, {1, 2}, {1, 3}};
  for (int64_t tap = 0; tap < 9; ++tap)
    for (int64_t i = 0; i < 1024; i += lanes) {
      vec s = {};
      for (const int64_t y : parts[tap / 3])
        for (const int64_t x : parts[tap % 3]) s += load(sums + (4 * y + x) * 1024 + i);
      store(taps + tap * 1024 + i, s);
    }
}

// Writes (tap, 32, 32) sums as rows of (channel, tap): `elements` per row, read from the places that `order` gives.
void write_rows(const float* sums, const int32_t* order, int64_t rows, int64_t elements, float* out, int64_t stride) {
  for (int64_t d = 0; d < rows; ++d)
    for (int64_t e = 0; e < elements; e += 16) {
      const __m512i places = _mm512_loadu_si512(order + e);
      const __m512 v = _mm512_i32gather_ps(places, sums + d * 32, 4);
      const auto mask = static_cast<__mmask16>(elements - e < 16 ? (1u << (elements - e)) - 1 : 0xffff);
      _mm512_mask_storeu_ps(out + d * stride + e, mask, v);
    }
}

// Adds `count` parts, each `size` floats after the other, over [begin, end).
void add_parts(const float* parts, int64_t count, int64_t size, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += lanes) {
    vec s = load(parts + i, end - i);
    for (int64_t j = 1; j < count; ++j) s += load(parts + j * size + i, end - i);
    store(out + i, s, end - i);
  }
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast

#endif
