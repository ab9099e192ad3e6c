// Attention of one query a row and head over the pieces of a cache.
//
// Slots are met in blocks of BLOCK, in order, with an online softmax (arXiv 1805.02867). A row's bits depend on what it
// sees alone: slots behind the last one that it sees are not met, and those of a block that it does not see add zeros.
// A row that sees nothing gets zeros.
#include <math.h>

#include "kernel.h"

enum {
  BLOCK = 64,
  TOGETHER = 8,    // vectors of a value that are summed together
  PIECES = 64,
  TASK = 1 << 17,  // multiplications that are worth another thread
};

typedef struct {
  const float *q, *k[PIECES], *v[PIECES];
  const uint8_t *seen;
  float *y, scale, cap;
  int64_t heads, kv_heads, depth, slots, pieces, sizes[PIECES];
} Attention;

typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));

#if defined(__clang__)
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (ivec){__VA_ARGS__})
#endif

INLINE float total(vec v) {
#if defined(__AVX512F__)
  v += SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += SHUFFLED(v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  v += SHUFFLED(v, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
#elif defined(__AVX2__)
  v += SHUFFLED(v, 4, 5, 6, 7, 4, 5, 6, 7);
  v += SHUFFLED(v, 2, 3, 2, 3, 2, 3, 2, 3);
#else
  v += SHUFFLED(v, 2, 3, 2, 3);
#endif
  return v[0] + v[1];
}

// exp of x ≤ 0, to 1e-7 of itself; what is below 1e-37 becomes that, NaN stays. It is 2^n · e^r with |r| ≤ ln 2 / 2,
// and e^r a polynomial.
INLINE vec exponential(vec x) {
  const float floor = -85.0f, shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds
  union { vec f; ivec i; } power;
  vec lowest = (vec){0} + floor;
  ivec low = (ivec)(x < lowest);
  x = (vec)(((ivec)lowest & low) | ((ivec)x & ~low));
  vec n = x * 1.44269504f + shift;
  power.f = n;
  n -= shift;
  vec r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  vec y = (vec){0} + 1.9875691e-4f;
  y = y * r + 1.3981999e-3f;
  y = y * r + 8.3334519e-3f;
  y = y * r + 4.1665796e-2f;
  y = y * r + 1.6666665e-1f;
  y = y * r + 5.0000001e-1f;
  y = y * r * r + r + 1.0f;
  power.i = (power.i << 23) + 0x3f800000;
  return y * power.f;
}

// q · k for `count` keys, each `depth` long.
static void scores_of(const float *q, const float *k, int64_t depth, int64_t count, float *scores) {
  int64_t whole = depth / WIDTH * WIDTH, j = 0;
  for (; j + 4 <= count; j += 4) {
    const float *key = k + j * depth;
    vec sum[4] = {0};
    for (int64_t d = 0; d < whole; d += WIDTH)
      UNROLL for (int i = 0; i < 4; i++) sum[i] += *(const vec *)(q + d) * *(const vec *)(key + i * depth + d);
    UNROLL for (int i = 0; i < 4; i++) scores[j + i] = total(sum[i]);
    for (int64_t d = whole; d < depth; d++)
      for (int i = 0; i < 4; i++) scores[j + i] += q[d] * key[i * depth + d];
  }
  for (; j < count; j++) {
    const float *key = k + j * depth;
    vec sum = {0};
    for (int64_t d = 0; d < whole; d += WIDTH) sum += *(const vec *)(q + d) * *(const vec *)(key + d);
    scores[j] = total(sum);
    for (int64_t d = whole; d < depth; d++) scores[j] += q[d] * key[d];
  }
}

// y · keep + the sum of weights times values, for `vectors` vectors of each value.
INLINE void weighted(const int vectors, const float *weights, const float *v, int64_t depth, int64_t count, float keep,
                     float *y) {
  vec sum[TOGETHER];
  UNROLL for (int i = 0; i < vectors; i++) sum[i] = *(vec *)(y + i * WIDTH) * keep;
  for (int64_t j = 0; j < count; j++) {
    const float w = weights[j];
    UNROLL for (int i = 0; i < vectors; i++) sum[i] += w * *(const vec *)(v + j * depth + i * WIDTH);
  }
  UNROLL for (int i = 0; i < vectors; i++) *(vec *)(y + i * WIDTH) = sum[i];
}

static void add_weighted(const float *weights, const float *v, int64_t depth, int64_t count, float keep, float *y) {
  int64_t d = 0;
#define VECTORS_OF(N) \
  for (; d + N * WIDTH <= depth; d += N * WIDTH) weighted(N, weights, v + d, depth, count, keep, y + d);
  VECTORS_OF(8) VECTORS_OF(6) VECTORS_OF(4) VECTORS_OF(2) VECTORS_OF(1)
  for (; d < depth; d++) {
    float sum = y[d] * keep;
    for (int64_t j = 0; j < count; j++) sum += weights[j] * v[j * depth + d];
    y[d] = sum;
  }
}

// One query over the slots that its row sees, up to `end`.
static void one_query(const Attention *all, int64_t row, int64_t head, int64_t end) {
  int64_t depth = all->depth, group = all->heads / all->kv_heads;
  const float *q = all->q + (row * all->heads + head) * depth;
  const uint8_t *seen = all->seen + row * all->slots;
  float *y = all->y + (row * all->heads + head) * depth, peak = -INFINITY, mass = 0;
  memset(y, 0, 4 * depth);
  if (end == 0) return;
  for (int64_t piece = 0, start = 0; piece < all->pieces && start < end; start += all->sizes[piece++]) {
    int64_t size = all->sizes[piece], at = (row * all->kv_heads + head / group) * size * depth;
    for (int64_t j = 0; j < least(size, end - start); j += BLOCK) {
      int64_t count = least(BLOCK, least(size, end - start) - j);
      float weights[BLOCK], here = -INFINITY;
      int any = 0;
      scores_of(q, all->k[piece] + at + j * depth, depth, count, weights);
      for (int64_t i = 0; i < BLOCK; i++) {
        float score = i < count ? weights[i] * all->scale : -INFINITY;
        if (all->cap) score = all->cap * tanhf(score / all->cap);
        weights[i] = i < count && seen[start + j + i] ? score : -INFINITY;
        any |= weights[i] != -INFINITY;
        here = weights[i] > here ? weights[i] : here;
      }
      if (!any) continue;
      float now = peak > here ? peak : here;
      float keep = peak == -INFINITY ? 0 : exponential((vec){0} + (peak - now))[0];
      vec sum = {0};
      for (int64_t i = 0; i < BLOCK; i += WIDTH) {
        vec score = *(vec *)(weights + i), mass_of = exponential(score - now);
        mass_of = (vec)((ivec)mass_of & ~(ivec)(score == (vec){0} - INFINITY));
        *(vec *)(weights + i) = mass_of;
        sum += mass_of;
      }
      mass = mass * keep + total(sum);
      add_weighted(weights, all->v[piece] + at + j * depth, depth, count, keep, y);
      peak = now;
    }
  }
  for (int64_t d = 0; d < depth; d++) y[d] /= mass;
}

static void some_queries(const void *shared, int64_t start, int64_t stop) {
  const Attention *all = shared;
  int64_t group = all->heads / all->kv_heads, end = 0;
  for (int64_t task = start; task < stop; task++) {
    int64_t row = task / all->kv_heads;
    if (task == start || task % all->kv_heads == 0) {
      const uint8_t *seen = all->seen + row * all->slots;
      for (end = all->slots; end > 0 && !seen[end - 1];) end--;
    }
    for (int64_t i = 0; i < group; i++) one_query(all, row, task % all->kv_heads * group + i, end);
  }
}

// q [B, N, H], seen [B, S], then keys and values [B, K, S_p, H], piece by piece.
XLA_FFI_Error *distill_attention(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  const XLA_FFI_Buffer *q = argument(frame, 0), *seen = argument(frame, 1);
  Attention all = {.q = q->data, .seen = seen->data, .y = result(frame, 0)->data, .heads = q->dims[1],
                   .depth = q->dims[2], .slots = seen->dims[1], .pieces = (frame->args.size - 2) / 2};
  if (all.pieces > PIECES) return refused(frame, "more pieces of a cache than attention.c takes");
  if (q->dtype != XLA_FFI_DataType_F32 || argument(frame, 2)->dtype != XLA_FFI_DataType_F32)
    return refused(frame, "attention.c takes float32 alone");
  // XLA has the attributes in the order of their names.
  all.cap = *(float *)((XLA_FFI_Scalar *)frame->attrs.attrs[0])->value;
  all.scale = *(float *)((XLA_FFI_Scalar *)frame->attrs.attrs[1])->value;
  for (int64_t i = 0; i < all.pieces; i++) {
    const XLA_FFI_Buffer *k = argument(frame, 2 + 2 * i), *v = argument(frame, 3 + 2 * i);
    all.k[i] = k->data, all.v[i] = v->data, all.sizes[i] = k->dims[2], all.kv_heads = k->dims[1];
  }
  int64_t tasks = q->dims[0] * all.kv_heads, work = all.slots * all.depth * (all.heads / all.kv_heads);
  int64_t each = most(1, most(tasks / (16 * threads_of(frame)), TASK / most(work, 1)));
  in_parallel(frame, tasks, each, some_queries, &all);
  return NULL;
}
