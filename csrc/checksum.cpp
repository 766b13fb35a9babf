// A checksum of memory, at the speed of memory: whether weights are still what something was made of.
//
// Every lane of 64 bits is a multiply-with-carry generator that takes a word in at each step: a changed word changes
// everything that follows in its lane. The lanes hide the latency of the multiplication.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "module.h"

namespace emfast {
namespace {

constexpr int lanes = 16;
constexpr int64_t stripe = 8 * lanes, piece = 1 << 18;  // bytes; a piece is what one thread takes at a time
constexpr uint64_t factor = 0xFFFFDA61;                 // of the generator: below 2^32
constexpr uint64_t spread = 0x9E3779B97F4A7C15;         // 2^64 over the golden ratio, odd

uint64_t checksum_of_piece(const unsigned char* bytes, int64_t size, uint64_t seed) {
  uint64_t state[lanes], words[lanes];
  for (int l = 0; l < lanes; ++l) state[l] = spread * (seed + l + 1);
  const auto take = [&] {
    for (int l = 0; l < lanes; ++l) {
      const uint64_t sum = state[l] + words[l];
      state[l] = (sum & 0xFFFFFFFF) * factor + (sum >> 32);
    }
  };
  int64_t at = 0;
  for (; at + stripe <= size; at += stripe) {
    std::memcpy(words, bytes + at, stripe);
    take();
  }
  if (at < size) {
    std::memset(words, 0, stripe);
    std::memcpy(words, bytes + at, size - at);
    take();
  }
  uint64_t sum = size;
  for (int l = 0; l < lanes; ++l) sum = (sum ^ state[l]) * spread;
  return sum;
}

// Depends neither on the number of threads nor on the instruction set.
uint64_t checksum(int64_t address, int64_t size) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(address);
  const int64_t pieces = (size + piece - 1) / piece;
  uint64_t sum = size;
#pragma omp parallel for reduction(+ : sum) if (pieces > 1)
  for (int64_t i = 0; i < pieces; ++i)
    sum += checksum_of_piece(bytes + i * piece, std::min(piece, size - i * piece), i * lanes);
  return sum;
}

}  // namespace

void define_checksum(py::module_& module) {
  module.def("checksum", &checksum, py::call_guard<py::gil_scoped_release>());
}

}  // namespace emfast
