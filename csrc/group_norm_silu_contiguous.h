// One group of one image, whose channels are planes of consecutive pixels. The variance is two-pass.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t chunk = 4096;  // pixels that are summed in float before going to a double

// The sum of (x - centre)^Power over a plane.
template <int Power, typename T>
double moment(const T* x, int64_t pixels, float centre) {
  double total = 0;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t last = first + chunk < pixels ? first + chunk : pixels;
    vec sums[4] = {};
    int64_t p = first;
    for (; p + 4 * lanes <= last; p += 4 * lanes)
      for (int k = 0; k < 4; ++k) {
        const vec d = load(x + p + k * lanes) - centre;
        sums[k] += Power == 2 ? d * d : d;
      }
    for (; p < last; p += lanes) {
      const vec d = keep(load(x + p, last - p) - centre, last - p);
      sums[0] += Power == 2 ? d * d : d;
    }
    total += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

template <typename T>
void normalise_plane(const T* x, T* y, int64_t pixels, Channel k, bool silu) {
  const float scale = k.rstd * k.weight;
  for (int64_t p = 0; p < pixels; p += lanes) {
    vec z = (load(x + p, pixels - p) - k.centre) * scale + k.bias;
    if (silu) z *= sigmoid_for(T(), z);
    store(y + p, z, pixels - p);
  }
}

template <typename T>
void forward_group(const GroupNorm& a, const Job& job) {
  const int64_t b = job.image, channels = a.channels(), g = b * a.groups + job.begin / a.group_size;
  const double count = static_cast<double>(a.group_size) * a.pixels;
  double mean = 0, square = 0;
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  for (const Run<T>& run : runs)
    for (int64_t c = run.begin, planes; c < run.end; c += planes) {
      planes = a.channel_bias ? 1 : run.end - run.begin;  // without a bias per channel, planes are one long plane
      const T* x = run.x + (c - run.begin) * a.pixels;
      mean += (moment<1>(x, planes * a.pixels, 0.0f) + a.pixels * shift_of(a, b, c)) / count;
    }
  for (const Run<T>& run : runs)
    for (int64_t c = run.begin, planes; c < run.end; c += planes) {
      planes = a.channel_bias ? 1 : run.end - run.begin;
      const T* x = run.x + (c - run.begin) * a.pixels;
      square += moment<2>(x, planes * a.pixels, static_cast<float>(mean - shift_of(a, b, c))) / count;
    }
  a.mean[g] = static_cast<float>(mean);
  a.rstd[g] = static_cast<float>(1.0 / __builtin_sqrt(square + a.eps));
  T* y = static_cast<T*>(a.y) + b * channels * a.pixels;
  for (const Run<T>& run : runs)
    for (int64_t c = run.begin; c < run.end; ++c)
      normalise_plane(run.x + (c - run.begin) * a.pixels, y + c * a.pixels, a.pixels,
                      channel_of(a, b, c, mean, a.rstd[g]), a.silu);
}

// Adds up dz and dz n over a plane; keeps dz in the stash if there is one.
template <typename T>
void plane_sums(const T* x, const T* grad, float* stash, int64_t pixels, Channel k, bool silu, double* sums) {
  sums[0] = sums[1] = 0;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t last = first + chunk < pixels ? first + chunk : pixels;
    vec s0 = {}, s1 = {};
    for (int64_t p = first; p < last; p += lanes) {
      const vec n = (load(x + p, last - p) - k.centre) * k.rstd;
      vec dz = load(grad + p, last - p);  // zero behind the end, and so is all that follows from it
      if (silu) dz = silu_gradient(T(), n * k.weight + k.bias, dz);
      if (stash) store(stash + p, dz, last - p);
      s0 += dz;
      s1 += dz * n;
    }
    sums[0] += sum(s0);
    sums[1] += sum(s1);
  }
}

// Writes dx = rstd (w dz - c0 - n c1) over a plane, plus what is added, and returns its sum without that.
template <typename T>
double plane_gradient(const T* x, const T* grad, const float* stash, const T* added, T* dx, int64_t pixels, Channel k,
                      float c0, float c1, bool silu) {
  double total = 0;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t last = first + chunk < pixels ? first + chunk : pixels;
    vec s = {};
    for (int64_t p = first; p < last; p += lanes) {
      const vec n = (load(x + p, last - p) - k.centre) * k.rstd;
      vec dz = stash ? load(stash + p, last - p) : load(grad + p, last - p);
      if (silu && !stash) dz = silu_gradient(T(), n * k.weight + k.bias, dz);
      const vec d = (dz * k.weight - c0 - n * c1) * k.rstd;
      store(dx + p, added ? d + load(added + p, last - p) : d, last - p);
      s += keep(d, last - p);
    }
    total += sum(s);
  }
  return total;
}

template <typename T>
void backward_group(const GroupNorm& a, const Job& job, float* stash) {
  const int64_t b = job.image, channels = a.channels(), g = b * a.groups + job.begin / a.group_size;
  const double count = static_cast<double>(a.group_size) * a.pixels;
  const T* grad = static_cast<const T*>(a.grad) + b * channels * a.pixels;
  double c0 = 0, c1 = 0, sums[2];
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  for (const Run<T>& run : runs)
    for (int64_t c = run.begin; c < run.end; ++c) {
      const Channel k = channel_of(a, b, c, a.mean[g], a.rstd[g]);
      float* kept = stash ? stash + (c - job.begin) * a.pixels : nullptr;
      plane_sums(run.x + (c - run.begin) * a.pixels, grad + c * a.pixels, kept, a.pixels, k, a.silu, sums);
      c0 += k.weight * sums[0] / count;
      c1 += k.weight * sums[1] / count;
      if (a.dweight) a.dweight[b * channels + c] = static_cast<float>(sums[1]);
      if (a.dbias) a.dbias[b * channels + c] = static_cast<float>(sums[0]);
    }
  for (const Run<T>& run : runs)
    for (int64_t c = run.begin; c < run.end; ++c) {
      const int64_t plane = (c - run.begin) * a.pixels;
      const float* kept = stash ? stash + (c - job.begin) * a.pixels : nullptr;
      const Channel k = channel_of(a, b, c, a.mean[g], a.rstd[g]);
      const T* added = run.added ? run.added + plane : nullptr;
      const double total = plane_gradient(run.x + plane, grad + c * a.pixels, kept, added, run.dx + plane, a.pixels, k,
                                          static_cast<float>(c0), static_cast<float>(c1), a.silu);
      if (a.dchannel_bias) a.dchannel_bias[b * channels + c] = static_cast<float>(total);
    }
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
