// The images that Winograd's convolution and its weight gradient read.
#pragma once

#include <cstdint>

namespace emfast {

// channels_last images, up to two of them as if concatenated, cut into tiles of 4 rows and `wide` + 2 columns that
// overlap by two: each gives 2 x `wide` pixels, by as many terms as it has pixels itself. An image that is upsampled by
// two has two equal rows and columns amidst every tile of 4 x 4, so that 7 of 16 terms vanish.
struct WinogradImages {
  const float* inputs[2];
  int64_t channels[2], depth;  // depth: their sum, rounded up to 16
  int64_t height, width;       // of the convolution's result, before pooling
  int64_t wide, columns;       // of a tile's result: 2 or 4; tiles side by side
  int64_t terms, tiles;        // of a tile; of an image
  bool upsample;

  WinogradImages(const float* x, const float* skip, int64_t c, int64_t more, int64_t height, int64_t width,
                 int64_t wide, bool upsample)
      : inputs{x, skip}, channels{c, more}, depth((c + more + 15) / 16 * 16), height(height), width(width),
        wide(wide), columns((width + wide - 1) / wide), terms(4 * (wide + 2)), tiles((height + 1) / 2 * columns),
        upsample(upsample) {}
};

}  // namespace emfast
