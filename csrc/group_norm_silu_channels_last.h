// A slab of whole groups of one image, pixel by pixel. Mean and variance are two-pass within blocks of pixels, which are
// merged by Chan's formula.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

constexpr int64_t block = 32;  // pixels; so many rows of a slab stay in the first-level cache

// Per channel of the slab, in the scratch memory.
struct Columns {
  double *total0, *total1;
  float *centre, *rstd, *weight, *bias, *c0, *c1, *sum0, *sum1;

  Columns(float* scratch, int64_t width) {
    total0 = reinterpret_cast<double*>(scratch), total1 = total0 + width;
    centre = scratch + 4 * width, rstd = centre + width, weight = rstd + width, bias = weight + width;
    c0 = bias + width, c1 = c0 + width, sum0 = c1 + width, sum1 = sum0 + width;
  }
};

// Fills in the channels of the group that begins at channel `first`.
void fill_group(const GroupNorm& a, const Job& job, const Columns& s, int64_t first, double mean, float rstd) {
  for (int64_t c = first; c < first + a.group_size; ++c) {
    const int64_t i = c - job.begin;
    const Channel k = channel_of(a, job.image, c, mean, rstd);
    s.centre[i] = k.centre, s.rstd[i] = k.rstd, s.weight[i] = k.weight, s.bias[i] = k.bias;
  }
}

// Merges the means and sums of squares of `rows` pixels into those of the `done` pixels before them.
template <typename T>
void merge_block(const Run<T>& run, const T* x, int64_t done, int64_t rows, float* means, float* squares) {
  const float share = static_cast<float>(rows) / (done + rows);
  for (int64_t c = 0, n = run.end - run.begin; c < n; c += lanes) {
    vec mean = {}, square = {};
    for (int64_t p = 0; p < rows; ++p) mean += load(x + p * run.channels + c, n - c);
    mean /= static_cast<float>(rows);
    for (int64_t p = 0; p < rows; ++p) {
      const vec d = load(x + p * run.channels + c, n - c) - mean;
      square += d * d;
    }
    const vec delta = mean - load(means + c, n - c);
    store(means + c, load(means + c, n - c) + delta * share, n - c);
    store(squares + c, load(squares + c, n - c) + square + delta * delta * (done * share), n - c);
  }
}

// Merges the means (sum0) and sums of squares (sum1) of the channels into mean and rstd of every group.
void merge_channels(const GroupNorm& a, const Job& job, const Columns& s) {
  const int64_t size = a.group_size;
  for (int64_t first = job.begin; first < job.end; first += size) {
    double mean = 0, square = 0;
    for (int64_t c = first; c < first + size; ++c) mean += s.sum0[c - job.begin] + double(shift_of(a, job.image, c));
    mean /= size;
    for (int64_t c = first; c < first + size; ++c) {
      const double d = s.sum0[c - job.begin] + double(shift_of(a, job.image, c)) - mean;
      square += s.sum1[c - job.begin] / double(a.pixels) + d * d;
    }
    const int64_t g = job.image * a.groups + first / size;
    a.mean[g] = static_cast<float>(mean);
    a.rstd[g] = static_cast<float>(1.0 / __builtin_sqrt(square / size + a.eps));
    fill_group(a, job, s, first, mean, a.rstd[g]);
  }
}

template <typename T>
void forward_slab(const GroupNorm& a, const Job& job, float* scratch) {
  const Columns s(scratch, job.end - job.begin + lanes);
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  for (int64_t i = 0; i < job.end - job.begin; ++i) s.sum0[i] = s.sum1[i] = 0;
  for (const Run<T>& run : runs)
    for (int64_t p = 0, i = run.begin - job.begin; p < a.pixels; p += block) {
      const int64_t rows = a.pixels - p < block ? a.pixels - p : block;
      merge_block(run, run.x + p * run.channels, p, rows, s.sum0 + i, s.sum1 + i);
    }
  merge_channels(a, job, s);
  for (const Run<T>& run : runs)
    for (int64_t p = 0; p < a.pixels; ++p) {
      const T* x = run.x + p * run.channels;
      T* y = static_cast<T*>(a.y) + (job.image * a.pixels + p) * a.channels() + run.begin;
      for (int64_t c = 0, i = run.begin - job.begin, n = run.end - run.begin; c < n; c += lanes, i += lanes) {
        vec z = (load(x + c, n - c) - load(s.centre + i)) * load(s.rstd + i) * load(s.weight + i) + load(s.bias + i);
        if (a.silu) z *= sigmoid(z);
        store(y + c, z, n - c);
      }
    }
}

// One pass of the backward over the pixels of a run: the sums of dz and dz n, or dx and the sum of it.
template <bool Gradient, typename T>
void backward_pass(const GroupNorm& a, const Job& job, const Run<T>& run, const Columns& s, float* stash) {
  const int64_t n = run.end - run.begin, offset = run.begin - job.begin, width = job.end - job.begin;
  for (int64_t p = 0; p < a.pixels; ++p) {
    const T* x = run.x + p * run.channels;
    const T* grad = static_cast<const T*>(a.grad) + (job.image * a.pixels + p) * a.channels() + run.begin;
    for (int64_t c = 0, i = offset; c < n; c += lanes, i += lanes) {
      const vec normal = (load(x + c, n - c) - load(s.centre + i)) * load(s.rstd + i), weight = load(s.weight + i);
      const bool kept = Gradient && stash;
      vec dz = kept ? load(stash + p * width + i, n - c) : load(grad + c, n - c);
      if (a.silu && !kept) dz = silu_gradient(normal * weight + load(s.bias + i), dz);
      if (Gradient) {
        dz = (dz * weight - load(s.c0 + i) - normal * load(s.c1 + i)) * load(s.rstd + i);
        store(run.dx + p * run.channels + c, dz, n - c);
      } else {
        if (stash) store(stash + p * width + i, dz, n - c);
        store(s.sum1 + i, load(s.sum1 + i) + dz * normal, n - c);
      }
      store(s.sum0 + i, load(s.sum0 + i) + dz, n - c);
    }
    if (p % block == block - 1 || p == a.pixels - 1)
      for (int64_t i = offset; i < offset + n; ++i) {
        s.total0[i] += s.sum0[i], s.total1[i] += s.sum1[i];
        s.sum0[i] = s.sum1[i] = 0;
      }
  }
}

template <typename T>
void backward_slab(const GroupNorm& a, const Job& job, float* scratch, float* stash) {
  const int64_t width = job.end - job.begin, size = a.group_size, row = job.image * a.channels() + job.begin;
  const double count = static_cast<double>(size) * a.pixels;
  const Columns s(scratch, width + lanes);
  for (int64_t first = 0, g = job.image * a.groups + job.begin / size; first < width; first += size, ++g)
    fill_group(a, job, s, job.begin + first, a.mean[g], a.rstd[g]);
  for (int64_t i = 0; i < width; ++i) s.total0[i] = s.total1[i] = s.sum0[i] = s.sum1[i] = 0;
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  for (const Run<T>& run : runs) backward_pass<false>(a, job, run, s, stash);
  for (int64_t first = 0; first < width; first += size) {
    double c0 = 0, c1 = 0;
    for (int64_t i = first; i < first + size; ++i) c0 += s.weight[i] * s.total0[i], c1 += s.weight[i] * s.total1[i];
    for (int64_t i = first; i < first + size; ++i) {
      s.c0[i] = static_cast<float>(c0 / count), s.c1[i] = static_cast<float>(c1 / count);
      if (a.dbias) a.dbias[row + i] = static_cast<float>(s.total0[i]);
      if (a.dweight) a.dweight[row + i] = static_cast<float>(s.total1[i]);
      s.total0[i] = 0;
    }
  }
  for (const Run<T>& run : runs) backward_pass<true>(a, job, run, s, stash);
  for (int64_t i = 0; a.dchannel_bias && i < width; ++i) a.dchannel_bias[row + i] = static_cast<float>(s.total0[i]);
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
