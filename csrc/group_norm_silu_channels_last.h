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

  // The same from channel i on.
  Columns from(int64_t i) const {
    Columns s = *this;
    s.total0 += i, s.total1 += i, s.centre += i, s.rstd += i, s.weight += i, s.bias += i;
    s.c0 += i, s.c1 += i, s.sum0 += i, s.sum1 += i;
    return s;
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
void normalise_block(const GroupNorm& a, const Run<T>& run, const Columns& s, int64_t column, int64_t first, T* y,
                     int64_t rows) {
  const int64_t n = run.end - run.begin - column, i = run.begin + column;
  const vec centre = load(s.centre), scale = load(s.rstd) * load(s.weight), bias = load(s.bias);
  const T* x = run.x + first * run.channels + column;
  for (int64_t p = 0; p < rows; ++p) {
    vec z = (load(x + p * run.channels, n) - centre) * scale + bias;
    if (a.silu) z *= sigmoid_for(T(), z);
    store(y + (first + p) * a.channels() + i, z, n);
  }
}

template <typename T>
void forward_slab(const GroupNorm& a, const Job& job, float* scratch) {
  const Columns s(scratch, job.end - job.begin + lanes);
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  for (int64_t i = 0; i < job.end - job.begin; ++i) s.sum0[i] = s.sum1[i] = 0;
  for (const Run<T>& run : runs)
    for (int64_t p = 0, i = run.begin - job.begin; p < a.pixels; p += block) {
      const int64_t rows = least(block, a.pixels - p);
      merge_block(run, run.x + p * run.channels, p, rows, s.sum0 + i, s.sum1 + i);
    }
  merge_channels(a, job, s);
  T* y = static_cast<T*>(a.y) + job.image * a.pixels * a.channels();
  for (const Run<T>& run : runs)
    for (int64_t p = 0; p < a.pixels; p += block)
      for (int64_t c = 0; c < run.end - run.begin; c += lanes)
        normalise_block(a, run, s.from(run.begin - job.begin + c), c, p, y, least(block, a.pixels - p));
}

// A block of pixels, from the first on, of a vector of channels in the backward.
template <typename T>
struct Block {
  const T *x, *grad, *added;
  T* dx;
  float* stash;
  int64_t x_row, grad_row, stash_row, rows, n;

  Block(const GroupNorm& a, const Job& job, const Run<T>& run, float* kept, int64_t first, int64_t c)
      : x_row(run.channels), grad_row(a.channels()), stash_row(job.end - job.begin), rows(least(block, a.pixels - first)),
        n(run.end - run.begin - c) {
    const int64_t at = first * x_row + c;
    x = run.x + at, added = run.added ? run.added + at : nullptr, dx = run.dx + at;
    grad = static_cast<const T*>(a.grad) + (job.image * a.pixels + first) * grad_row + run.begin + c;
    stash = kept ? kept + first * stash_row + run.begin - job.begin + c : nullptr;
  }
};

// Adds up dz and dz n; keeps dz in the stash if there is one.
template <typename T>
void add_block(const Block<T>& b, const Columns& s, bool silu) {
  const vec centre = load(s.centre), rstd = load(s.rstd), scale = rstd * load(s.weight), bias = load(s.bias);
  vec sum0 = {}, sum1 = {};
  for (int64_t p = 0; p < b.rows; ++p) {
    const vec d = load(b.x + p * b.x_row, b.n) - centre;
    vec dz = load(b.grad + p * b.grad_row, b.n);
    if (silu) dz = silu_gradient(T(), d * scale + bias, dz);
    if (b.stash) store(b.stash + p * b.stash_row, dz, b.n);
    sum0 += dz, sum1 += dz * d;
  }
  sum1 *= rstd;
  for (int64_t i = 0; i < least(lanes, b.n); ++i) s.total0[i] += sum0[i], s.total1[i] += sum1[i];
}

// Writes dx = rstd (w dz - c0 - n c1), plus what is added, and sums it up without that.
template <typename T>
void differentiate_block(const Block<T>& b, const Columns& s, bool silu) {
  const vec centre = load(s.centre), rstd = load(s.rstd), scale = rstd * load(s.weight), bias = load(s.bias);
  const vec c0 = load(s.c0) * rstd, c1 = load(s.c1) * rstd * rstd;
  vec sum0 = {};
  for (int64_t p = 0; p < b.rows; ++p) {
    const vec d = load(b.x + p * b.x_row, b.n) - centre;
    vec dz = b.stash ? load(b.stash + p * b.stash_row, b.n) : load(b.grad + p * b.grad_row, b.n);
    if (silu && !b.stash) dz = silu_gradient(T(), d * scale + bias, dz);
    const vec dx = dz * scale - (d * c1 + c0);
    store(b.dx + p * b.x_row, b.added ? dx + load(b.added + p * b.x_row, b.n) : dx, b.n);
    sum0 += dx;
  }
  for (int64_t i = 0; i < least(lanes, b.n); ++i) s.total0[i] += sum0[i];
}

template <typename T>
void backward_slab(const GroupNorm& a, const Job& job, float* scratch, float* stash) {
  const int64_t width = job.end - job.begin, size = a.group_size, row = job.image * a.channels() + job.begin;
  const double count = static_cast<double>(size) * a.pixels;
  const Columns s(scratch, width + lanes);
  for (int64_t first = 0, g = job.image * a.groups + job.begin / size; first < width; first += size, ++g)
    fill_group(a, job, s, job.begin + first, a.mean[g], a.rstd[g]);
  for (int64_t i = 0; i < width; ++i) s.total0[i] = s.total1[i] = 0;
  const Run<T> runs[2] = {run_of<T>(a, job, 0), run_of<T>(a, job, 1)};
  const auto each = [&](void (*function)(const Block<T>&, const Columns&, bool)) {
    for (const Run<T>& run : runs)
      for (int64_t p = 0; p < a.pixels; p += block)
        for (int64_t c = 0; c < run.end - run.begin; c += lanes)
          function(Block<T>(a, job, run, stash, p, c), s.from(run.begin - job.begin + c), a.silu);
  };
  each(&add_block<T>);
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
  each(&differentiate_block<T>);
  for (int64_t i = 0; a.dchannel_bias && i < width; ++i) a.dchannel_bias[row + i] = static_cast<float>(s.total0[i]);
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
