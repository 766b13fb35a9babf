// Products of bfloat16 tiles on AMX, for the namespace EMFAST_NAMESPACE with EMFAST_BF16; no include guard.
// A tile is 16 rows of 32 left elements, or 16 rows of 16 pairs: a right operand's row holds two rows interleaved, so
// that a word is a pair of the sum. The caller has asked has_amx().

namespace emfast {
namespace EMFAST_NAMESPACE {

#define EMFAST_AMX static __attribute__((noinline, unused, target("amx-tile,amx-bf16")))

EMFAST_AMX void begin_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}
EMFAST_AMX void end_tiles() { _tile_release(); }

// Sums (16 Rows, 16 Columns) over `depth`; out and right have rows of `stride` words, left of `row` elements.
template <int Rows, int Columns>
EMFAST_AMX void tile_product(float* out, int64_t stride, const bf16* left, int64_t row, const bf16* right,
                             int64_t depth, bool add) {
  const int64_t bytes = 4 * stride;
  asm volatile("" ::: "memory");  // gcc 12 does not know that loading a tile reads memory
  if (add) {
    _tile_loadd(0, out, bytes);
    if (Columns > 1) _tile_loadd(1, out + 16, bytes);
    if (Rows > 1) _tile_loadd(2, out + 16 * stride, bytes);
    if (Rows > 1 && Columns > 1) _tile_loadd(3, out + 16 * stride + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += 32) {
    _tile_loadd(4, left + k, 2 * row);
    _tile_loadd(6, right + k * stride, bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (Columns > 1) _tile_loadd(7, right + k * stride + 32, bytes);
    if (Columns > 1) _tile_dpbf16ps(1, 4, 7);
    if (Rows > 1) _tile_loadd(5, left + 16 * row + k, 2 * row);
    if (Rows > 1) _tile_dpbf16ps(2, 5, 6);
    if (Rows > 1 && Columns > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, bytes);
  if (Columns > 1) _tile_stored(1, out + 16, bytes);
  if (Rows > 1) _tile_stored(2, out + 16 * stride, bytes);
  if (Rows > 1 && Columns > 1) _tile_stored(3, out + 16 * stride + 16, bytes);
}

// Sums (rows, 32) over a depth of 32, for a multiple of 32 rows; the right operand is loaded once.
EMFAST_AMX void tile_rows(float* out, const bf16* left, int64_t row, const bf16* right, int64_t rows) {
  asm volatile("" ::: "memory");
  _tile_loadd(6, right, 128);
  _tile_loadd(7, right + 32, 128);
  for (int64_t r = 0; r < rows; r += 32, left += 32 * row, out += 1024) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, left, 2 * row);
    _tile_loadd(5, left + 16 * row, 2 * row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    _tile_stored(2, out + 512, 128);
    _tile_stored(3, out + 528, 128);
  }
}

// Sums (32, 32) over `depth` of each of some taps: left rows lie `offsets` away, right rows follow tap by tap.
EMFAST_AMX void tile_convolution(float* out, const bf16* left, int64_t row, const int64_t* offsets, int64_t taps,
                                 const bf16* right, int64_t depth) {
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const bf16* l = left + offsets[tap];
    for (int64_t k = 0; k < depth; k += 32, right += 1024) {
      _tile_loadd(4, l + k, 2 * row);
      _tile_loadd(6, right, 128);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, l + 16 * row + k, 2 * row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, 128);
  _tile_stored(1, out + 16, 128);
  _tile_stored(2, out + 512, 128);
  _tile_stored(3, out + 528, 128);
}

#undef EMFAST_AMX

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
