// The images that Winograd's convolution and its weight gradient read.
#pragma once

#include <cstdint>

namespace emfast {

// channels_last images, up to two of them as if concatenated, cut into tiles of 4 x 4 pixels that overlap by two. An
// image that is upsampled by two has two equal rows and columns amidst every tile, so that 7 of 16 terms vanish.
struct WinogradImages {
  const float* inputs[2];
  int64_t channels[2], depth;  // depth: their sum, rounded up to 16
  int64_t height, width;       // of the convolution's result, before pooling
  int64_t columns, tiles;      // of an image
  bool upsample;

  WinogradImages(const float* x, const float* skip, int64_t c, int64_t more, int64_t height, int64_t width,
                 bool upsample)
      : inputs{x, skip}, channels{c, more}, depth((c + more + 15) / 16 * 16), height(height), width(width),
        columns((width + 1) / 2), tiles((height + 1) / 2 * columns), upsample(upsample) {}
};

}  // namespace emfast
