// Self-attention over (batch, tokens, 3 channels) of queries, keys and values, and its gradient.
//
// softmax(q k^T / sqrt(width)) v a head, ROWS queries at a time against all keys: their weights stay in the cache, so
// the softmax is the plain one, and of all weights nothing is kept but each query's logarithm of the sum. The gradient
// makes them anew, ROWS keys at a time against all queries. Each head of each image is one thread's.
#include <cmath>
#include <limits>

#include "product.h"

namespace {

struct Size {
  long batch, tokens, heads, width;
  bool new_order;  // all queries, all keys, all values; else a head's three after each other
  long row() const { return 3 * heads * width; }
  long begin(long head, long part) const {
    return new_order ? (part * heads + head) * width : (3 * head + part) * width;
  }
  long across() const { return (tokens + PANEL - 1) / PANEL * PANEL; }
  long down() const { return (tokens + ROWS - 1) / ROWS * ROWS; }
  long wide() const { return (width + ROWS - 1) / ROWS * ROWS; }
  float scale() const { return 1 / std::sqrt((float)width); }
};

// `count` numbers, as they are or as float32.
template <typename T>
inline void copy(const T* from, T* to, long count) {
  std::memcpy(to, from, count * sizeof(T));
}

inline void copy(const bfloat16* from, float* to, long count) {
  for (long i = 0; i < count; ++i) {
    uint32_t bits = (uint32_t)from[i].bits << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

template <typename T>
struct Matrix {  // rows `stride` apart
  T* p;
  long stride;
  T* row(long i) const { return p + i * stride; }
};

// u of `multiply` for the product with x^T, (width, across): its columns are x's rows, zeros behind them.
template <typename T, typename F>
void pack_columns(Matrix<const T> x, Size size, F* u) {
  std::fill_n(u, size.across() * size.width, F{});
  for (long n = 0; n < size.tokens; ++n) {
    F* column = u + n / PANEL * PANEL * size.width + n % PANEL * DEPTH<F>;
    for (long c = 0; c < size.width; c += DEPTH<F>) copy(x.row(n) + c, column + c * PANEL, DEPTH<F>);
  }
}

// u of `multiply` for the product with x, (across, width).
template <typename T, typename F>
void pack_rows(Matrix<const T> x, Size size, F* u) {
  for (long begin = 0; begin < size.width; begin += PANEL)
    for (long n = 0; n < size.across(); n += DEPTH<F>)
      for (long k = begin; k < std::min(begin + PANEL, size.width); k += WIDTH, u += WIDTH * DEPTH<F>) {
        Floats rows[DEPTH<F>] = {};
        for (long d = 0; d < DEPTH<F>; ++d)
          if (n + d < size.tokens) rows[d] = load(x.row(n + d) + k);
        store_weights(u, rows);
      }
}

// ROWS rows of x from `first` on, (ROWS, width), zeros where there are fewer.
template <typename T, typename F>
void copy_rows(Matrix<const T> x, Size size, long first, F* v) {
  std::fill_n(v, ROWS * size.width, F{});
  for (long r = 0; r < std::min(ROWS, size.tokens - first); ++r)
    copy(x.row(first + r), v + r * size.width, size.width);
}

// m, (ROWS, columns) = v, `count` rows `stride` apart, times u of as many columns.
template <typename F>
void multiply_all(const F* v, long stride, const F* u, long depth, long columns, float* m, long count) {
  long k = 0;
  for (; k + PANEL <= columns; k += PANEL) multiply<2>(v, stride, u + k * depth, depth, m + k, columns, count);
  if (k < columns) multiply<1>(v, stride, u + k * depth, depth, m + k, columns, count);
}

// Rows of m, (ROWS, width), times `factors` into x from row `first` on, as many as are there.
template <typename T>
void write_rows(const float* m, const float* factors, Size size, long first, Matrix<T> x) {
  for (long r = 0; r < std::min(ROWS, size.tokens - first); ++r)
    for (long c = 0; c < size.width; c += WIDTH)
      store(x.row(first + r) + c, load(m + r * size.width + c) * factors[r]);
}

// Hands out scratch, one piece behind the other.
struct Pieces {
  float* next;
  template <typename F>
  F* take(long count) {
    F* piece = (F*)next;
    next += count / DEPTH<F>;
    return piece;
  }
};

// Floats of a thread's scratch, Forward or Backward.
template <typename Own>
long floats(Size size) {
  float begin;
  Pieces pieces{&begin};
  Own(pieces, size);
  return pieces.next - &begin;
}

template <typename F>
struct Forward {
  F *keys, *values, *queries, *weights;
  float *m, *results;
  Forward(Pieces& pieces, Size size) {
    long across = size.across(), width = size.width;
    keys = pieces.take<F>(across * width);
    values = pieces.take<F>(across * width);
    queries = pieces.take<F>(ROWS * width);
    weights = pieces.take<F>(ROWS * across);
    m = pieces.take<float>(ROWS * across);
    results = pieces.take<float>(ROWS * width);
  }
};

// Exponentials of a row of `across` scores, into `weights`; returns 1 / their sum, and of that the logarithm in `lse`.
template <typename T, typename F>
float exponentials(float* scores, Size size, F* weights, float* lse) {
  float scale = size.scale(), largest = -std::numeric_limits<float>::infinity();
  std::fill(scores + size.tokens, scores + size.across(), largest);
  Floats most = filled(largest), sum{};
  for (long j = 0; j < size.across(); j += WIDTH) most = load(scores + j) > most ? load(scores + j) : most;
  largest = largest_of(most);
  for (long j = 0; j < size.across(); j += WIDTH) {
    Floats weight = exponential<T>((load(scores + j) - largest) * scale);
    sum += weight;
    store(weights + j, weight);
  }
  *lse = largest * scale + std::log(sum_of(sum));
  return 1 / sum_of(sum);
}

template <typename T, typename F>
void attend(const T* qkv, T* out, float* lse, Size size, long head, Forward<F> own) {
  Matrix<const T> q{qkv + size.begin(head, 0), size.row()}, k{qkv + size.begin(head, 1), size.row()};
  Matrix<const T> v{qkv + size.begin(head, 2), size.row()};
  Matrix<T> y{out + head * size.width, size.heads * size.width};
  long across = size.across();
  pack_columns(k, size, own.keys);
  pack_rows(v, size, own.values);
  for (long first = 0; first < size.tokens; first += ROWS) {
    long count = std::min(ROWS, size.tokens - first);
    copy_rows(q, size, first, own.queries);
    multiply_all(own.queries, size.width, own.keys, size.width, across, own.m, count);
    float factors[ROWS];
    for (long r = 0; r < count; ++r)
      factors[r] = exponentials<T>(own.m + r * across, size, own.weights + r * across, lse + first + r);
    multiply_all(own.weights, across, own.values, across, size.width, own.results, count);
    write_rows(own.results, factors, size, first, y);
  }
}

template <typename F>
struct Backward {
  F *queries, *grads, *query_rows, *grad_rows, *keys_across, *keys, *values, *weights, *slopes, *all_slopes;
  float *scores, *grad_weights, *results, *lse, *shares;
  Backward(Pieces& pieces, Size size) {
    long across = size.across(), down = size.down(), width = size.width;
    for (F** piece : {&queries, &grads, &query_rows, &grad_rows}) *piece = pieces.take<F>(across * width);
    keys_across = pieces.take<F>(size.wide() * down);
    for (F** piece : {&keys, &values}) *piece = pieces.take<F>(ROWS * width);
    for (F** piece : {&weights, &slopes}) *piece = pieces.take<F>(ROWS * across);
    all_slopes = pieces.take<F>(across * down);
    for (float** piece : {&scores, &grad_weights}) *piece = pieces.take<float>(ROWS * across);
    results = pieces.take<float>(ROWS * std::max(width, across));
    for (float** piece : {&lse, &shares}) *piece = pieces.take<float>(across);
  }
};

// Each query's sum of out * grad, the softmax's share of the gradient, and its lse; zeros behind them.
template <typename T>
void query_sums(Matrix<const T> out, Matrix<const T> grad, const float* lse, Size size, float* shares, float* kept) {
  std::fill_n(shares, size.across(), 0.0f);
  std::fill_n(kept, size.across(), 0.0f);
  std::copy_n(lse, size.tokens, kept);
  for (long i = 0; i < size.tokens; ++i) {
    Floats sum{};
    for (long c = 0; c < size.width; c += WIDTH) sum += load(out.row(i) + c) * load(grad.row(i) + c);
    shares[i] = sum_of(sum);
  }
}

// The gradient with respect to the queries: all_slopes, pairs of keys of (across, down), times the keys.
template <typename T, typename F>
void grad_queries(Matrix<T> grad_q, Size size, Backward<F> own) {
  long across = size.across(), down = size.down();
  for (long first = 0; first < size.width; first += ROWS) {
    multiply_all(own.keys_across + first * down, down, own.all_slopes, down, across, own.results, ROWS);
    for (long c = first; c < std::min(first + ROWS, size.width); ++c)
      for (long i = 0; i < size.tokens; i += WIDTH) {
        T values[WIDTH];
        store(values, load(own.results + (c - first) * across + i));
        for (long l = 0; l < std::min(WIDTH, size.tokens - i); ++l) grad_q.row(i + l)[c] = values[l];
      }
  }
}

template <typename T, typename F>
void attend_back(const T* qkv, const T* out, const float* lse, const T* grad, T* grad_qkv, Size size, long head,
                 Backward<F> own) {
  long across = size.across(), down = size.down(), outer = size.heads * size.width;
  Matrix<const T> q{qkv + size.begin(head, 0), size.row()}, k{qkv + size.begin(head, 1), size.row()};
  Matrix<const T> v{qkv + size.begin(head, 2), size.row()}, g{grad + head * size.width, outer};
  Matrix<T> grad_k{grad_qkv + size.begin(head, 1), size.row()}, grad_v{grad_qkv + size.begin(head, 2), size.row()};
  query_sums(Matrix<const T>{out + head * size.width, outer}, g, lse, size, own.shares, own.lse);
  pack_columns(q, size, own.queries);
  pack_columns(g, size, own.grads);
  pack_rows(q, size, own.query_rows);
  pack_rows(g, size, own.grad_rows);
  std::fill_n(own.keys_across, size.wide() * down, F{});
  for (long j = 0; j < size.tokens; ++j)
    for (long c = 0; c < size.width; ++c) copy(k.row(j) + c, own.keys_across + c * down + j, 1);
  float ones[ROWS], scale = size.scale();
  std::fill_n(ones, ROWS, 1.0f);
  for (long first = 0; first < size.tokens; first += ROWS) {
    long count = std::min(ROWS, size.tokens - first);
    copy_rows(k, size, first, own.keys);
    copy_rows(v, size, first, own.values);
    multiply_all(own.keys, size.width, own.queries, size.width, across, own.scores, ROWS);
    multiply_all(own.values, size.width, own.grads, size.width, across, own.grad_weights, ROWS);
    for (long r = 0; r < ROWS; r += DEPTH<F>)
      for (long i = 0; i < across; i += WIDTH) {
        Floats slopes[DEPTH<F>];
        for (long d = 0; d < DEPTH<F>; ++d) {
          long place = (r + d) * across + i;
          Floats weight = exponential<T>(load(own.scores + place) * scale - load(own.lse + i));
          slopes[d] = weight * (load(own.grad_weights + place) - load(own.shares + i)) * scale;
          store(own.weights + place, weight);
          store(own.slopes + place, slopes[d]);
        }
        long panel = i / PANEL * PANEL;
        store_weights(own.all_slopes + panel * down + (first + r) * PANEL + (i - panel) * DEPTH<F>, slopes);
      }
    multiply_all(own.weights, across, own.grad_rows, across, size.width, own.results, count);
    write_rows(own.results, ones, size, first, grad_v);
    multiply_all(own.slopes, across, own.query_rows, across, size.width, own.results, count);
    write_rows(own.results, ones, size, first, grad_k);
  }
  grad_queries(Matrix<T>{grad_qkv + size.begin(head, 0), size.row()}, size, own);
}

template <typename F, typename T>
void all_forward(const T* qkv, T* out, float* lse, Size size, float* scratch, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size.batch * size.heads; ++i) {
    long image = i / size.heads * size.tokens;
    Pieces pieces{scratch + thread_number() * floats<Forward<F>>(size)};
    attend(qkv + image * size.row(), out + image * size.heads * size.width, lse + i * size.tokens, size,
           i % size.heads, Forward<F>(pieces, size));
  }
}

template <typename F, typename T>
void all_backward(const T* qkv, const T* out, const float* lse, const T* grad, T* grad_qkv, Size size, float* scratch,
                  int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size.batch * size.heads; ++i) {
    long image = i / size.heads * size.tokens, outer = size.heads * size.width;
    Pieces pieces{scratch + thread_number() * floats<Backward<F>>(size)};
    attend_back(qkv + image * size.row(), out + image * outer, lse + i * size.tokens, grad + image * outer,
                grad_qkv + image * size.row(), size, i % size.heads, Backward<F>(pieces, size));
  }
}

}  // namespace

// Whether bfloat16 numbers are multiplied as they are, and not as float32 ones.
extern "C" bool multiplies_pairs() { return DEPTH<Factor> == 2; }

// Floats that the two below need for themselves.
extern "C" long attention_scratch(bool reduced, long tokens, long width, bool backward, int threads) {
  Size size{1, tokens, 1, width, false};
  long forward = reduced ? floats<Forward<Factor>>(size) : floats<Forward<float>>(size);
  long back = reduced ? floats<Backward<Factor>>(size) : floats<Backward<float>>(size);
  return threads * (backward ? back : forward);
}

// qkv: (batch, tokens, 3 heads width), width a multiple of the vector's; written are out, (batch, tokens, heads width),
// and lse, (batch, heads, tokens): the logarithm of each query's sum of exponentials. reduced: qkv, out are bfloat16.
extern "C" void attention_forward(bool reduced, const void* qkv, void* out, float* lse, long batch, long tokens,
                                  long heads, long width, bool new_order, float* scratch, int threads) {
  Size size{batch, tokens, heads, width, new_order};
  if (reduced)
    all_forward<Factor>((const bfloat16*)qkv, (bfloat16*)out, lse, size, scratch, threads);
  else
    all_forward<float>((const float*)qkv, (float*)out, lse, size, scratch, threads);
}

// grad: like out; written is grad_qkv, like qkv.
extern "C" void attention_backward(bool reduced, const void* qkv, const void* out, const float* lse, const void* grad,
                                   void* grad_qkv, long batch, long tokens, long heads, long width, bool new_order,
                                   float* scratch, int threads) {
  Size size{batch, tokens, heads, width, new_order};
  if (reduced)
    all_backward<Factor>((const bfloat16*)qkv, (const bfloat16*)out, lse, (const bfloat16*)grad, (bfloat16*)grad_qkv,
                         size, scratch, threads);
  else
    all_backward<float>((const float*)qkv, (const float*)out, lse, (const float*)grad, (float*)grad_qkv, size, scratch,
                        threads);
}
