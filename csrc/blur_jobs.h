// Splits blurs into jobs, for the separable and the dense one.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "padding.h"

namespace emfast {

using BlurKernel = double (*)(const BlurPass&, int64_t plane, int64_t begin, int64_t end, float* scratch);

inline void run_band(const BlurPass& a, BlurKernel kernel, int64_t job, float* scratch) {
  const int64_t begin = job % a.bands() * band;
  const double squares = kernel(a, job / a.bands(), begin, std::min(begin + band, a.height), scratch);
  if (a.squares) a.squares[job] = squares;
}

// Runs passes one after the other; plane by plane if there are enough planes for all threads, so that what one pass
// writes is in the cache when the next one reads it.
inline void run_passes(const std::vector<BlurPass>& passes, BlurKernel kernel, int64_t scratch_floats) {
  const BlurPass& a = passes.front();
  const int64_t bands = a.bands(), jobs = a.planes * bands;
  const int threads = jobs * a.height * a.width / bands < 8192 ? 1 : omp_get_max_threads();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < scratch_floats) scratch.resize(scratch_floats);
    float* memory = scratch.data();
    if (a.planes >= threads) {
#pragma omp for schedule(static)
      for (int64_t plane = 0; plane < a.planes; ++plane)
        for (const BlurPass& pass : passes)
          for (int64_t job = plane * bands; job < (plane + 1) * bands; ++job) run_band(pass, kernel, job, memory);
    } else {
      for (const BlurPass& pass : passes) {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; ++job) run_band(pass, kernel, job, memory);
      }
    }
  }
}

// Adds up the squares of the bands of every image.
inline void sum_bands(const std::vector<double>& squares, int64_t batch, float* norm) {
  const int64_t count = static_cast<int64_t>(squares.size()) / std::max<int64_t>(batch, 1);
  for (int64_t b = 0; b < batch; ++b) {
    double total = 0;
    for (int64_t i = b * count; i < (b + 1) * count; ++i) total += squares[i];
    norm[b] = static_cast<float>(total);
  }
}

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace emfast
