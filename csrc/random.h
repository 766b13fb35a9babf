// The kernel of random.normal, compiled once per instruction set by every_isa.h; no include guards, nothing of std.
#include "philox.h"

namespace emfast {
namespace EMFAST_NAMESPACE {

// Fills elements [begin, end) of one image; begin is a multiple of 4 lanes.
void normal(const Stream& stream, float* out, int64_t id, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; e += 4 * lanes) {
    vec z[4];
    normals(stream, id, e / 4, z);
    for (int i = 0; i < 4 && e + i * lanes < end; ++i) store(out + e + i * lanes, z[i], end - e - i * lanes);
  }
}

}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
