// The stream of noise that a step of a sampler reads; the numbers are made in philox.h.
#pragma once

#include <cstdint>

namespace emfast {

struct Stream {
  uint64_t key;
  uint32_t step;
};

constexpr int64_t chunk = 4096;  // elements of one image per job: a multiple of what any instruction set draws at once

}  // namespace emfast
