// x Wᵀ for rows x [M, D] and weights W that lie in panels [P, D, PANEL], several of them at once. Rows that are not
// wanted cost nothing.
//
// Each entry is one chain of multiply-adds over D, in order: its bits depend on neither M, nor the row, nor the
// other weights. Weights are float32, or whole numbers in eight bits with a scale for each output.
#include "kernel.h"

enum {
  VECTORS = REGISTERS == 32 && WIDTH == 4 ? 4 : 2,
  PANEL = WIDTH * VECTORS,
  ROWS = (REGISTERS - 4) / VECTORS < 14 ? (REGISTERS - 4) / VECTORS : 14,  // with their sums in registers
  DEEP = 1024,           // of D, at a time: what a panel has there stays in the second cache
  SEVERAL = 4,           // panels that a single row meets together
  TASK = 1 << 20,        // multiplications that are worth another thread,
  TASK_BYTES = 1 << 17,  // and bytes
};

typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

typedef struct {
  const char *weights;
  const float *scale;  // of each output; none for float32
  float *y;
  int64_t columns, start, panels;  // start: of its panels among those of all products
} Product;

enum { PRODUCTS = 8 };

typedef struct {
  const float *x;     // the rows that are wanted, one after the other
  const int32_t *at;  // where each of them stands in y
  int64_t rows, depth, count;
  Product products[PRODUCTS];
} Products;

typedef struct {
  int64_t depth, x_step, w_step, y_step, pace;
  const float *x, *scale;
  const int32_t *at;  // the place of each row in y
  const char *w, *ahead;
  float *y;
  int first, last;
} Tile;

INLINE vec weights_at(const int eight, const char *w, int64_t at) {
  if (eight) return __builtin_convertvector(*(const bytes *)(w + at), vec);
  return *(const vec *)(w + 4 * at);
}

// What `rows` of x get from `panels` panels over some of D, added to what they have unless it is the first part.
// What lies `ahead` is fetched meanwhile, `pace` bytes for each of D.
INLINE void tile(const int eight, const int rows, const int panels, const Tile *t) {
  vec sum[SEVERAL][ROWS][VECTORS];
  UNROLL for (int p = 0; p < panels; p++)
  UNROLL for (int r = 0; r < rows; r++)
  UNROLL for (int v = 0; v < VECTORS; v++)
    sum[p][r][v] = t->first ? (vec){0} : *(const vec *)(t->y + t->at[r] * t->y_step + p * PANEL + v * WIDTH);
  const float *x = t->x;
  const char *w = t->w, *ahead = t->ahead;
  const int64_t depth = t->depth, x_step = t->x_step, w_step = t->w_step, pace = t->pace;
  for (int64_t d = 0; d < depth; d++) {
    __builtin_prefetch(ahead + d * pace, 0, 2);
    if (PANEL > 16 && !eight) __builtin_prefetch(ahead + d * pace + pace / 2, 0, 2);
    vec b[SEVERAL][VECTORS];
    UNROLL for (int p = 0; p < panels; p++)
    UNROLL for (int v = 0; v < VECTORS; v++) b[p][v] = weights_at(eight, w, p * w_step + d * PANEL + v * WIDTH);
    UNROLL for (int r = 0; r < rows; r++) {
      const float a = x[r * x_step + d];
      UNROLL for (int p = 0; p < panels; p++)
      UNROLL for (int v = 0; v < VECTORS; v++) sum[p][r][v] += a * b[p][v];
    }
  }
  UNROLL for (int p = 0; p < panels; p++)
  UNROLL for (int r = 0; r < rows; r++)
  UNROLL for (int v = 0; v < VECTORS; v++) {
    vec whole = sum[p][r][v];
    if (eight && t->last) whole *= *(const vec *)(t->scale + p * PANEL + v * WIDTH);
    *(vec *)(t->y + t->at[r] * t->y_step + p * PANEL + v * WIDTH) = whole;
  }
}

#define ROWS_OF(R) \
  case R: if (t->scale) tile(1, R, 1, t); else tile(0, R, 1, t); break;

static void some_rows(int64_t rows, const Tile *t) {
  switch (rows) {
    ROWS_OF(1) ROWS_OF(2) ROWS_OF(3) ROWS_OF(4) ROWS_OF(5) ROWS_OF(6)
#if defined(__AVX512F__) || defined(__ARM_NEON)
    ROWS_OF(7)
#endif
#if defined(__AVX512F__)
    ROWS_OF(8) ROWS_OF(9) ROWS_OF(10) ROWS_OF(11) ROWS_OF(12) ROWS_OF(13) ROWS_OF(14)
#endif
  }
}

// All rows times panel `q`. The rows are blocks of nearly the same size; over all of them the next panel is fetched.
static void times_panel(const Products *all, const Product *one, int64_t q) {
  int64_t size = one->scale ? 1 : 4, blocks = (all->rows + ROWS - 1) / ROWS, pace = size * PANEL / blocks;
  int64_t width = least(PANEL, one->columns - q * PANEL);
  float edge[ROWS * PANEL];
  for (int64_t deep = 0; deep < all->depth; deep += DEEP) {
    int64_t depth = least(DEEP, all->depth - deep);
    const char *w = one->weights + size * (q * all->depth + deep) * PANEL;
    for (int64_t b = 0, r = 0, next; b < blocks; b++, r = next) {
      next = all->rows * (b + 1) / blocks;
      float *y = one->y + q * PANEL;
      Tile t = {.depth = depth, .x_step = all->depth, .y_step = one->columns, .pace = pace,
                .x = all->x + r * all->depth + deep, .scale = one->scale ? one->scale + q * PANEL : NULL, .w = w,
                .at = all->at + r,
                .ahead = w + size * depth * PANEL + depth * b * pace, .y = y,
                .first = deep == 0, .last = deep + depth == all->depth};
      if (width == PANEL) {
        some_rows(next - r, &t);
        continue;
      }
      static const int32_t in_order[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
      t.y = edge, t.y_step = PANEL, t.at = in_order;
      const int32_t *at = all->at + r;
      for (int64_t i = 0; i < next - r; i++) memcpy(edge + i * PANEL, y + at[i] * one->columns, 4 * width);
      some_rows(next - r, &t);
      for (int64_t i = 0; i < next - r; i++) memcpy(y + at[i] * one->columns, edge + i * PANEL, 4 * width);
    }
  }
}

// Panels `start` to `stop`, counted over all products.
static void some_panels(const void *shared, int64_t start, int64_t stop) {
  const Products *all = shared;
  for (const Product *one = all->products; one < all->products + all->count; one++) {
    int64_t q = most(start - one->start, 0), end = least(stop - one->start, one->panels);
    int64_t whole = least(end, one->columns / PANEL), step = all->depth * PANEL;
    for (; all->rows == 1 && q + SEVERAL <= whole; q += SEVERAL) {
      const char *w = one->weights + (one->scale ? 1 : 4) * q * step;
      Tile t = {.depth = all->depth, .w_step = step, .y_step = one->columns, .x = all->x, .at = all->at, .w = w,
                .ahead = w, .y = one->y + q * PANEL, .first = 1, .last = 1};
      if (one->scale) t.scale = one->scale + q * PANEL, tile(1, 1, SEVERAL, &t);
      else tile(0, 1, SEVERAL, &t);
    }
    for (; q < end; q++) times_panel(all, one, q);
  }
}

// Puts the rows that are wanted (no list: all) one after the other, in memory of their own if others are between; these
// get zeros in every y. Gives that memory, NULL where there is none.
static void *gathered(Products *all, int64_t rows, const uint8_t *wanted) {
  int64_t few = 0, width = 4 * all->depth;
  for (int64_t r = 0; wanted && r < rows; r++) few += wanted[r] != 0;
  all->rows = wanted ? few : rows;
  char *memory = malloc(all->rows * (4 + (all->rows < rows ? width : 0)) + 1), *packed = memory;
  if (!memory) return NULL;
  int32_t *at = (int32_t *)(memory + (all->rows < rows ? all->rows * width : 0));
  all->at = at;
  for (int64_t r = 0; r < rows; r++) {
    if (wanted && !wanted[r]) {
      for (const Product *one = all->products; one < all->products + all->count; one++)
        memset(one->y + r * one->columns, 0, 4 * one->columns);
      continue;
    }
    *at++ = r;
    if (all->rows < rows) memcpy(packed, all->x + r * all->depth, width), packed += width;
  }
  if (all->rows < rows) all->x = (const float *)memory;
  return memory;
}

// x [..., D], wanted [...] if not all rows are, then each product's panels [P, D, PANEL] and, in eight bits, scale.
XLA_FFI_Error *distill_products(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  const XLA_FFI_Buffer *x = argument(frame, 0), *wanted = argument(frame, 1);
  if (wanted->dtype != XLA_FFI_DataType_PRED) wanted = NULL;
  Products all = {.x = x->data, .depth = x->dims[x->rank - 1], .count = frame->rets.size};
  int64_t rows = 1, asked = 1;
  for (int64_t i = 0; i < x->rank - 1; i++) rows *= x->dims[i];
  for (int64_t i = 0; wanted && i < wanted->rank; i++) asked *= wanted->dims[i];
  if (wanted && asked != rows) return refused(frame, "products.c is told of each row whether it is wanted");
  if (all.count > PRODUCTS) return refused(frame, "more products at once than products.c takes");
  int64_t panels = 0;
  for (int64_t i = 0, given = wanted ? 2 : 1; i < all.count; i++) {
    const XLA_FFI_Buffer *w = argument(frame, given++), *y = result(frame, i);
    const float *scale = w->dtype == XLA_FFI_DataType_S8 ? argument(frame, given++)->data : NULL;
    if (w->dims[1] != all.depth || w->dims[2] != PANEL || x->dtype != XLA_FFI_DataType_F32)
      return refused(frame, "products.c takes float32, and panels of its own width");
    all.products[i] = (Product){w->data, scale, y->data, y->dims[y->rank - 1], panels, w->dims[0]};
    panels += w->dims[0];
  }
  void *memory = gathered(&all, rows, wanted ? wanted->data : NULL);
  if (!memory) return refused(frame, "no memory is left for the rows of a product");
  if (all.rows > 0) {
    int64_t threads = threads_of(frame), size = PANEL * all.depth;
    int64_t each = most(TASK / (size * all.rows), 1);
    each = least(each, most(TASK_BYTES / (4 * size), 1));
    each = most(each, panels / (8 * threads));
    if (all.rows == 1) each = (each + SEVERAL - 1) / SEVERAL * SEVERAL;
    in_parallel(frame, panels, each, some_panels, &all);
  }
  free(memory);
  return NULL;
}

int distill_panel(void) { return PANEL; }
