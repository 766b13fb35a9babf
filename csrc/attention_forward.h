// The forward of attention, by query tiles: per block of keys the scores, their running maximum m and sum l, and the
// weighted sum of the values, rescaled whenever the maximum grows.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

template <typename Engine>
struct ForwardBuffers {
  using element = typename Engine::element;
  typename Engine::Panel key, value;
  element *query, *weights;
  float *scores, *out;

  ForwardBuffers(const Attention& a, Arena& arena) : key(a, arena, true, false), value(a, arena, false, true) {
    query = arena.take<element>(Engine::words(Engine::depth(a.size), tile));
    scores = arena.take<float>(forward_block(a) * tile);
    if constexpr (Engine::in_place)
      weights = scores;
    else
      weights = arena.take<element>(forward_block(a) * tile);
    out = arena.take<float>(round_up(a.size, Engine::rows_step) * tile);
  }
};

// Per query: the maximum of the scaled scores, in units of ln 2 and rounded, and the sum of the weights.
struct Running {
  vec offset, sum;
};

// Turns a column of scores into weights; returns by what earlier results shrink.
template <typename Engine>
vec soften(const float* scores, typename Engine::element* weights, int64_t c, int64_t keys, float scale, Running& run) {
  using Exponential = typename Engine::Exponential;
  vec tops[4];  // so many comparisons are under way at once
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) tops[i] = load(scores + c);
  int64_t j = 0;
  for (; j + 3 < keys; j += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) tops[i] = maximum(load(scores + (j + i) * tile + c), tops[i]);
  for (; j < keys; ++j) tops[0] = maximum(load(scores + j * tile + c), tops[0]);
  const vec top = maximum(maximum(tops[0], tops[1]), maximum(tops[2], tops[3]));
  const vec now = maximum(whole(top * scale), run.offset);
  const vec shrink = Exponential(1.0f, now).of(run.offset);
  const Exponential powers(scale, now);
  vec sum = {}, odd_sum = {};
  for (j = 0; j + 1 < keys; j += 2) {
    const vec even = powers.of(load(scores + j * tile + c));
    const vec odd = powers.of(load(scores + (j + 1) * tile + c));
    sum += even, odd_sum += odd;
    Engine::put_right(weights, j, c, even, odd);
  }
  if (j < keys) {
    const vec even = powers.of(load(scores + j * tile + c));
    sum += even;
    Engine::put_right(weights, j, c, even, vec{});
    j += 2;
  }
  for (; j < round_up(keys, Engine::padding); j += 2) Engine::put_right(weights, j, c, vec{}, vec{});
  run = {now, run.sum * shrink + (sum + odd_sum)};
  return shrink;
}

// One tile: `count` queries from `first`.
template <typename Engine, typename T>
void forward_tile(const Attention& a, const ForwardBuffers<Engine>& s, int64_t head, int64_t first, int64_t count) {
  const float scale = a.scale * 1.44269504f;
  const int64_t size = round_up(a.size, Engine::rows_step), columns = count <= lanes ? lanes : tile;
  Engine::pack_columns(a, Matrix<const T>(a.query, a, head), first, count, s.query);
  Running run[2] = {{-broadcast(__builtin_inff()), {}}, {-broadcast(__builtin_inff()), {}}};
  for (int64_t j = 0, step = forward_block(a); j < a.keys; j += step) {
    const int64_t keys = least(step, a.keys - j), padded = round_up(keys, Engine::padding);
    Engine::multiply(s.scores, tile, s.key.rows(j), s.query, padded, columns, Engine::depth(a.size), false);
    for (int64_t c = 0; c < columns; c += lanes) {
      const vec shrink = soften<Engine>(s.scores, s.weights, c, keys, scale, run[c / lanes]);
      for (int64_t d = 0; j > 0 && d < size; ++d) store(s.out + d * tile + c, load(s.out + d * tile + c) * shrink);
    }
    Engine::multiply(s.out, tile, s.value.columns(j), s.weights, size, columns, padded, j > 0);
  }
  const vec factors[2] = {1.0f / run[0].sum, 1.0f / run[1].sum};
  write_transposed(Matrix<T>(a.out, a, head), first, count, a.size, s.out, factors);
  float top[2 * EMFAST_LANES], sum[2 * EMFAST_LANES];
  for (int i = 0; i < 2; ++i) store(top + i * lanes, run[i].offset), store(sum + i * lanes, run[i].sum);
  for (int64_t i = 0; i < count; ++i)
    a.lse[head * a.queries + first + i] = static_cast<float>(0.69314718056 * top[i] + __builtin_logf(sum[i]));
}

// The tiles [begin, end) of all heads.
template <typename Engine, typename T>
void forward(const Attention& a, int64_t begin, int64_t end) {
  Arena count{nullptr};
  ForwardBuffers<Engine>(a, count);
  Arena arena{thread_memory(count.used)};
  const ForwardBuffers<Engine> s(a, arena);
  const int64_t tiles = (a.queries + tile - 1) / tile;
  Engine::begin();
  for (int64_t i = begin, packed = -1; i < end; ++i) {
    const int64_t head = i / tiles, first = i % tiles * tile;
    if (head != packed) {
      s.key.pack(a, Matrix<const T>(a.key, a, head));
      s.value.pack(a, Matrix<const T>(a.value, a, head));
      packed = head;
    }
    forward_tile<Engine, T>(a, s, head, first, least(tile, a.queries - first));
  }
  Engine::end();
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
