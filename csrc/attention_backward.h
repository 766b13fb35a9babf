// The backward of attention: the weights again from the saved log-sum-exp, by query tiles like the forward. The
// gradient to a tile's queries is complete with the tile; those to keys and values grow from tile to tile in `sums`. If
// heads are too few for the threads, the tiles of a head are split among jobs, whose sums are added in order.

namespace emfast {
namespace EMFAST_NAMESPACE {
namespace {

template <typename Engine>
struct BackwardBuffers {
  using element = typename Engine::element;
  typename Engine::Panel key, value;
  element *query, *grad, *query_rows, *grad_rows, *weights, *left, *right;
  float *scores, *slopes, *out, *sums;

  BackwardBuffers(const Attention& a, Arena& arena) : key(a, arena, true, true), value(a, arena, true, false) {
    const int64_t depth = Engine::words(Engine::depth(a.size), tile), width = Engine::words(tile, Engine::width(a));
    query = arena.take<element>(depth), grad = arena.take<element>(depth);
    query_rows = arena.take<element>(width), grad_rows = arena.take<element>(width);
    scores = arena.take<float>(backward_block(a) * tile), slopes = arena.take<float>(backward_block(a) * tile);
    out = arena.take<float>(round_up(a.size, Engine::rows_step) * tile);
    sums = arena.take<float>(a.chunks == 1 ? 2 * half(a) : 0);
    if constexpr (Engine::in_place) {
      weights = scores, left = right = slopes;
    } else {
      weights = arena.take<element>(backward_block(a) * tile);
      left = arena.take<element>(backward_block(a) * tile), right = arena.take<element>(backward_block(a) * tile);
    }
  }

  // The floats of the sums to keys, before those to values.
  static int64_t half(const Attention& a) { return round_up(a.keys, Engine::padding) * Engine::width(a); }
};

// What the queries of a tile know: the log-sum-exp in units of ln 2, if not rough whole and the factor for the rest, and
// the mean slope.
struct Rows {
  float offset[2 * EMFAST_LANES], factor[2 * EMFAST_LANES], delta[2 * EMFAST_LANES];
};

template <typename Engine, typename T>
Rows rows_of(const Attention& a, int64_t head, int64_t first, int64_t count) {
  const Matrix<const T> out(a.out, a, head), grad(a.grad, a, head);
  Rows rows;
  for (int64_t i = 0; i < tile; ++i) {
    const int64_t q = first + least(i, count - 1);
    vec sum = {};
    for (int64_t d = 0; i < count && d < a.size; d += lanes)
      sum += fetch(out.at(q, d), out.column, a.size - d) * fetch(grad.at(q, d), grad.column, a.size - d);
    const double lse = a.lse[head * a.queries + q] * 1.44269504089;
    rows.offset[i] = static_cast<float>(Engine::rough ? lse : __builtin_rint(lse));
    rows.factor[i] = Engine::rough ? 1.0f : __builtin_exp2f(static_cast<float>(rows.offset[i] - lse));
    rows.delta[i] = i < count ? emfast::EMFAST_NAMESPACE::sum(sum) : rows.delta[i - 1];
  }
  return rows;
}

// Scores and slopes of a block of keys become weights and the gradients of the scores; for a single key 1 and 0.
template <typename Engine>
void differentiate(const Attention& a, const BackwardBuffers<Engine>& s, const Rows& rows, int64_t keys,
                   int64_t columns) {
  const int64_t padded = round_up(keys, Engine::padding);
  const float scale = a.scale * 1.44269504f;
  const bool single = a.keys == 1;
  const vec factors[2] = {load(rows.factor), load(rows.factor + lanes)};
  const vec deltas[2] = {load(rows.delta), load(rows.delta + lanes)};
  const typename Engine::Exponential powers[2] = {{scale, load(rows.offset)}, {scale, load(rows.offset + lanes)}};
  for (int64_t j = 0; j < padded; j += 2) {
    vec weights[2][2] = {}, slopes[2][2] = {};
#pragma GCC unroll 2
    for (int64_t c = 0; c < 2; ++c)
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; ++i) {
        if (j + i >= keys || c * lanes >= columns) continue;
        const int64_t at = (j + i) * tile + c * lanes;
        vec p = powers[c].of(load(s.scores + at));
        if (!Engine::rough) p *= factors[c];
        weights[i][c] = p, slopes[i][c] = p * (load(s.slopes + at) - deltas[c]);
        if (single) weights[i][c] = load(s.scores + at) * 0.0f + 1.0f, slopes[i][c] = vec{};
      }
#pragma GCC unroll 2
    for (int64_t i = 0; i < 2; ++i) {
      Engine::put_left(s.weights, j + i, weights[i][0], weights[i][1]);
      Engine::put_left(s.left, j + i, slopes[i][0], slopes[i][1]);
      if (!Engine::in_place) Engine::put_right(s.right, j, i * lanes, slopes[0][i], slopes[1][i]);
    }
  }
}

// One tile: `count` queries from `first`. The sums to keys come first, those to values behind.
template <typename Engine, typename T>
void backward_tile(const Attention& a, const BackwardBuffers<Engine>& s, float* sums, int64_t head, int64_t first,
                   int64_t count) {
  const int64_t size = round_up(a.size, Engine::rows_step), depth = Engine::depth(a.size);
  const int64_t columns = Engine::in_place && count <= lanes ? lanes : tile, width = Engine::width(a);
  const Matrix<const T> query(a.query, a, head), grad(a.grad, a, head);
  const Rows rows = rows_of<Engine, T>(a, head, first, count);
  Engine::pack_columns(a, query, first, count, s.query);
  Engine::pack_columns(a, grad, first, count, s.grad);
  Engine::pack_rows(a, query, first, count, s.query_rows);
  Engine::pack_rows(a, grad, first, count, s.grad_rows);
  for (int64_t j = 0, step = backward_block(a); j < a.keys; j += step) {
    const int64_t keys = least(step, a.keys - j), padded = round_up(keys, Engine::padding);
    Engine::multiply(s.scores, tile, s.key.rows(j), s.query, padded, columns, depth, false);
    Engine::multiply(s.slopes, tile, s.value.rows(j), s.grad, padded, columns, depth, false);
    differentiate(a, s, rows, keys, columns);
    Engine::multiply(s.out, tile, s.key.columns(j), s.right, size, columns, padded, j > 0);
    Engine::multiply_queries(a, sums + j * width, Engine::left_of(s.left), s.query_rows, padded, count);
    float* values = sums + BackwardBuffers<Engine>::half(a) + j * width;
    Engine::multiply_queries(a, values, Engine::left_of(s.weights), s.grad_rows, padded, count);
  }
  const vec factors[2] = {broadcast(a.scale), broadcast(a.scale)};
  write_transposed(Matrix<T>(a.dquery, a, head), first, count, a.size, s.out, factors);
}

// Adds up the sums of all chunks of a head, and writes the gradients to keys (index 0) and values.
template <typename Engine, typename T>
void finish(const Attention& a, int64_t head, const float* sums) {
  const int64_t half = BackwardBuffers<Engine>::half(a), width = Engine::width(a);
  for (int index = 0; index < 2; ++index) {
    const Matrix<T> out(index ? a.dvalue : a.dkey, a, head);
    for (int64_t j = 0; j < a.keys; ++j)
      for (int64_t d = 0; d < a.size; d += lanes) {
        vec total = {};
        for (int64_t i = 0; i < a.chunks; ++i)
          total += Engine::row_of(a, sums + (2 * i + index) * half + j * width, d);
        put(out.at(j, d), index ? total : total * a.scale, a.size - d);
      }
  }
}

// The jobs [begin, end): chunk by chunk of one head after the other.
template <typename Engine, typename T>
void backward(const Attention& a, int64_t begin, int64_t end) {
  Arena count{nullptr};
  BackwardBuffers<Engine>(a, count);
  Arena arena{thread_memory(count.used)};
  const BackwardBuffers<Engine> s(a, arena);
  const int64_t tiles = (a.queries + tile - 1) / tile, step = (tiles + a.chunks - 1) / a.chunks;
  const int64_t size = 2 * BackwardBuffers<Engine>::half(a);
  Engine::begin();
  for (int64_t i = begin, packed = -1; i < end; ++i) {
    const int64_t head = i / a.chunks, first = i % a.chunks * step;
    float* sums = a.chunks == 1 ? s.sums : a.partial + i * size;
    std::memset(sums, 0, size * sizeof(float));
    if (head != packed) {
      s.key.pack(a, Matrix<const T>(a.key, a, head));
      s.value.pack(a, Matrix<const T>(a.value, a, head));
      packed = head;
    }
    for (int64_t t = first; t < least(first + step, tiles); ++t)
      backward_tile<Engine, T>(a, s, sums, head, t * tile, least(tile, a.queries - t * tile));
    if (a.chunks == 1) finish<Engine, T>(a, head, sums);
  }
  Engine::end();
}

// The heads [begin, end), from what all their chunks left.
template <typename Engine, typename T>
void gather(const Attention& a, int64_t begin, int64_t end) {
  const int64_t size = 2 * BackwardBuffers<Engine>::half(a) * a.chunks;
  for (int64_t head = begin; head < end; ++head) finish<Engine, T>(a, head, a.partial + head * size);
}

}  // namespace
}  // namespace EMFAST_NAMESPACE
}  // namespace emfast
