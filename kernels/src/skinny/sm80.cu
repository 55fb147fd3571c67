// Skinny GEMM: a few rows of x times every row of a weight; formula and shapes: mod.rs.
//
// A block of threads multiplies up to 64 rows of x by COLUMNS rows of the weight, which gives COLUMNS columns of y.
// Its 8 warps divide the sums over k among themselves, and their partial sums are added in the order of the warps.
//
// Grid: (blocks of rows of x, blocks of columns of y). A symbol has two kinds of blocks.
// - One tile: a block has one tile of COLUMNS columns, and its ring (below) brings the elements of x with those of the
//   weight, for each tile again.
// - Several tiles (_tiles; up to 8 rows of x that fit into shared memory, and more tiles than blocks): the blocks
//   divide the columns evenly, to one column, and each computes its columns tile by tile; the last tile has the rest,
//   whose missing rows of the weight are not read. A block reads x once and keeps it in shared memory, normalised if
//   there is a norm. The copies of a tile start while the tile before is computed.
//
// Four lanes have a row of the weight, 16 bytes each, in the registers that mma.sync reads. A lane's registers then
// hold consecutive k, where the instruction expects others. This changes no sum, because x has the same permutation.
//
// Each lane copies what it multiplies to its own part of shared memory, ahead of time (cp.async). So the loop over k
// needs no barrier: a lane waits for its own copies only. A slot of this ring holds, for one group of k, TILES units of
// weight and those of x for each 8 rows; a stage has `unroll` slots, and STAGES - 1 stages are in flight.
//
//   start the copies of the first stages' weights; wait for the previous launch; start those of x
//   with a norm: squares of the rows of x -> shared; barrier; rstd; several tiles: normalise x
//   for each tile:
//     for each stage of this warp: wait; start the copies of a later stage; one tile: norm; sums += x w^T
//     shared[warp] = sums; barrier; y = epilogue(sum over warps)
//
// Order. A row of the weight has k / 8 (int8: k / 16) units of 16 bytes. Four units, one per lane, are a group; group
// i belongs to warp i / 4 % 8. So the order of a sum depends on k alone: not on m, n, the row's index, the columns of a
// block or the size of the ring.
//
// Numerics. bf16 x: exact products, f32 sums. f32 x is the sum of three bf16 (exact unless the smallest part
// underflows). Tensor cores truncate f32 sums instead of rounding them (measured on an H200: sums of 1024 terms were
// off by 4e-6). For f32 y they therefore add up only 32 products of one part at a time, starting at 0, and the
// results are added with rounding; logits of bf16 x have the bits of the same x in f32. int8 weights become bf16
// exactly; their scale is applied to the finished sum. Then bias, then residual (or silu and the second product), all
// in f32, and one rounding.
//
// Norm. Each block computes the scales of its rows while the first weights arrive, and each warp normalises the
// elements that it multiplies. With one tile x is read twice for it; the rows have the bits of rms_norm (rstd.cuh).
//
// Hopper. The kernels are programmatic dependent launches: the weights of the first three stages are requested before
// the wait for the previous launch (48 KiB a block, 24 KiB with many rows, so 6 to 12 MiB on 132 multiprocessors), and
// the next launch may start as soon as all blocks of this one have. Nothing else is read before the wait.
//
// Departures. (1) If k is not a multiple of a unit, or an address is not 16-byte aligned, elements are loaded one by
// one; the order of summation is the same. (2) An infinite f32 x gives NaN.
//
// Bound. Memory: the weight is read once. x is read again by each block, from L1 or L2: with several tiles and one
// block per multiprocessor that adds 131 / n of the bytes of a bf16 weight for one row, 3.7 % for n = 3584, and twice
// that of an int8 weight. With two tiles and two slots a stage, or four tiles and one slot, a block has 48 KiB of
// weights in flight (three stages of 8 warps of 4 units of 512 bytes): 4.3 TB/s times a latency of 700 ns on 132
// multiprocessors are 23 KiB. With many rows, whose ring leaves room for one slot a stage, it is 24 KiB.
#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/dependent.cuh"
#include "cuh/mma.cuh"
#include "rms_norm/rstd.cuh"
#include "skinny/units.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int RUN = 4;  // number of consecutive groups of a warp

extern __shared__ Words<16> ring[];

// One of the products of a launch. Columns of all products are numbered one product after the other.
struct Product {
  u64 w, w2, scale, scale2, bias, residual, y;
  u32 n, first;  // number of columns, number of the first one
};

__device__ __forceinline__ u32 column_count(const Params& p) { return p.n; }
__device__ __forceinline__ Product product_of(const Params& p, u32) {
  return {p.w, p.w2, p.scale, p.scale2, p.bias, p.residual, p.y, p.n, 0};
}
__device__ __forceinline__ u32 column_count(const JoinedParams& p) { return p.n0 + p.n1 + p.n2; }
__device__ __forceinline__ Product product_of(const JoinedParams& p, u32 column) {
  if (column < p.n0) return {p.w0, 0, p.scale0, 0, p.bias0, 0, p.y0, p.n0, 0};
  if (column < p.n0 + p.n1) return {p.w1, 0, p.scale1, 0, p.bias1, 0, p.y1, p.n1, p.n0};
  return {p.w2, 0, p.scale2, 0, p.bias2, 0, p.y2, p.n2, p.n0 + p.n1};
}

// The columns of a block with several tiles: all columns are divided evenly.
struct Columns {
  u32 begin, end;
};
__device__ __forceinline__ Columns even_part(u64 columns) {
  return {static_cast<u32>(blockIdx.y * columns / gridDim.y), static_cast<u32>((blockIdx.y + 1) * columns / gridDim.y)};
}

// The first column of a block with one tile of SIZE columns. A tile does not cross the end of a product.
template <u32 SIZE>
__device__ __forceinline__ u32 first_of_tile(const Params&) {
  return blockIdx.y * SIZE;
}
template <u32 SIZE>
__device__ __forceinline__ u32 first_of_tile(const JoinedParams& p) {
  const u32 blocks0 = ceil_div(p.n0, SIZE), blocks1 = ceil_div(p.n1, SIZE);
  u32 block = blockIdx.y;
  if (block < blocks0) return block * SIZE;
  block -= blocks0;
  if (block < blocks1) return p.n0 + block * SIZE;
  return p.n0 + p.n1 + (block - blocks1) * SIZE;
}

// Computes columns of y for the rows blockIdx.x of x. T: type of x. Y: type of y. W: type of the weight. TILES:
// number of tiles of 8 weight rows in a tile of columns. PAIR: the first half of the tiles belongs to the first weight,
// the other half to the second weight (swiglu). NORM: x is normalised if p.norm is not null.
// SEVERAL: blocks have several tiles of columns.
template <bool SEVERAL, class T, class W, int TILES, bool PAIR, bool NORM, class Y, class P>
__device__ __forceinline__ void skinny(const P& p) {
  constexpr int UNIT = 16 / sizeof(W), GROUP = 4 * UNIT;
  constexpr int WEIGHTS = PAIR ? 2 : 1, COLUMNS = 8 * TILES / WEIGHTS, PITCH = 8 * TILES + 8;
  // Units of x that a lane multiplies with one unit of the weight, and those among them with eight elements.
  constexpr int X_UNITS = UNIT / VECTOR<T>, X_EIGHT = 8 / VECTOR<T>;
  constexpr int STAGES = X_UNITS > 2 ? 2 : 4;
  // At most 64 rows of x. Variants that need more registers or shared memory for a row have fewer; plan.rs has the
  // same numbers (max_rows). A lane has one row of each 8, half of the 16 rows of a matrix instruction.
  constexpr int HALVES = SEVERAL || sizeof(T) == 4 ? 2 : sizeof(W) == 1 || sizeof(Y) == 4 ? 4 : 8;
  using X = Parts<T>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int k = p.k;
  Columns columns = {};
  if constexpr (SEVERAL) {
    columns = even_part(column_count(p));
  } else {
    columns.begin = first_of_tile<COLUMNS>(p);
  }
  const u32 rows_per_block = ceil_div<u32>(ceil_div<u32>(p.m, gridDim.x), 8) * 8;
  const u32 first_row = blockIdx.x * rows_per_block;
  const int rows = min(p.m - first_row, rows_per_block), halves = ceil_div(rows, 8);
  const bool x_vector = aligned16(p.x, static_cast<u64>(k) * sizeof(T));
  const bool norm_vector = x_vector && aligned16(p.norm);

  // The ring: `unroll` slots a stage, which the launch plan chooses. A slot has the units of the weight, and with one
  // tile those of x.
  const int most = SEVERAL ? TILES : ceil_div<u32>(rows_per_block, 8) * X_UNITS + TILES;
  const int slot = SEVERAL ? TILES * 32 : (TILES + halves * X_UNITS) * 32;
  const int unroll = SEVERAL ? 4 / TILES : dynamic_shared_bytes() / (STAGES * WARPS * 512 * most);
  Words<16>* mine = ring + warp * (STAGES * unroll * most * 32);
  const auto start_of = [&](int group) { return ((group / RUN * WARPS + warp) * RUN + group % RUN) * GROUP; };

  // With several tiles, all of x follows the ring: for each warp its groups of k, for each of them X_UNITS times
  // `pitch` units. Then come two sets of partial sums of all warps, and last the squares and the scales of the rows.
  Words<16>* x_ring_end = ring + WARPS * STAGES * unroll * most * 32;
  const int pitch = SEVERAL ? rows * 4 : 32;
  const int groups = ceil_div(ceil_div(k, GROUP), RUN * WARPS) * RUN;
  const auto kept_unit = [&](int of_warp, int group, int j) {
    return x_ring_end + ((of_warp * groups + group) * X_UNITS + j) * pitch;
  };
  Words<16>* after_x = SEVERAL ? kept_unit(WARPS, 0, 0) : x_ring_end;
  const int stride = SEVERAL ? rows * PITCH : STAGES * unroll * most * 128;  // of the partial sums of a warp, in floats
  float* partials = reinterpret_cast<float*>(SEVERAL ? after_x : ring);
  RowSquares* squares = reinterpret_cast<RowSquares*>(SEVERAL ? partials + 2 * WARPS * stride
                                                              : reinterpret_cast<float*>(after_x));
  float* rstd = reinterpret_cast<float*>(squares + rows_per_block);

  // The end of the columns of a product, as far as this block computes them.
  const auto end_of = [&](const Product& product) {
    return SEVERAL ? min(columns.end, product.first + product.n) : product.first + product.n;
  };
  // Starts the copies of the weights of a stage of the tile that begins at `column`, to place `number` of the ring.
  const auto start_weights = [&](int stage, u32 column, int number) {
    const int start = start_of(stage * unroll);
    if (start >= k) return;
    const Product product = product_of(p, column);
    const u32 end = end_of(product);
    const u64 first_weight_row = static_cast<u64>(column - product.first + g) * k;
    const bool vector = aligned16(product.w, product.w2, static_cast<u64>(k) * sizeof(W));
    Words<16>* to = mine + number % STAGES * unroll * slot + lane;
#pragma unroll 1
    for (int i = 0; i < unroll; ++i, to += slot) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        const int tile = n % (TILES / WEIGHTS);
        const bool exists = column + tile * 8 + g < end;
        const W* weight = global<const W>(n < TILES / WEIGHTS ? product.w : product.w2);
        const W* row = weight + (exists ? first_weight_row + static_cast<u64>(tile * 8) * k : 0);
        start_copy<false>(to + n * 32, row, exists, start + i * GROUP + t * UNIT, k, vector);
      }
    }
  };
  // With several tiles: the tile and the stage whose weights are copied next.
  u32 copy_column = columns.begin;
  int copy_stage = 0;
  const auto start_next_weights = [&](int number) {
    if constexpr (SEVERAL) {
      if (copy_column >= columns.end) return;
      start_weights(copy_stage, copy_column, number);
      if (start_of(++copy_stage * unroll) < k) return;
      copy_stage = 0;
      copy_column = min(copy_column + COLUMNS, end_of(product_of(p, copy_column)));
    } else {
      start_weights(number, columns.begin, number);
    }
  };
  const T* x = global<const T>(p.x) + static_cast<u64>(first_row) * k;
  // With one tile: starts the copies of x for a stage.
  const auto start_rows = [&](int stage) {
    const int start = start_of(stage * unroll);
    Words<16>* to = mine + stage % STAGES * unroll * slot + TILES * 32 + lane;
    if (start >= k) return;
#pragma unroll 1
    for (int i = 0; i < unroll; ++i, to += slot) {
#pragma unroll 1
      for (int h = 0; h < halves; ++h) {
        const bool exists = g + 8 * h < rows;
        const T* row = x + static_cast<u64>(exists ? g + 8 * h : 0) * k;
#pragma unroll
        for (int j = 0; j < X_UNITS; ++j) {
          const int at = start + i * GROUP + t * UNIT + j * VECTOR<T>;
          start_copy<true>(to + (h * X_UNITS + j) * 32, row, exists, at, k, x_vector);
        }
      }
    }
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    start_next_weights(stage);
    if (SEVERAL) cp_async_commit();
  }
  let_next_launch_start();
  wait_for_previous_launch();
  if constexpr (SEVERAL) {
    // Each lane copies what it multiplies.
    if (g < rows) {
#pragma unroll 4
      for (int group = 0; group < groups; ++group) {
#pragma unroll
        for (int j = 0; j < X_UNITS; ++j) {
          const int at = start_of(group) + t * UNIT + j * VECTOR<T>;
          kept_unit(warp, group, j)[lane] = load_unit(x + static_cast<u64>(g) * k, at, k, x_vector);
        }
      }
    }
  } else {
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) {
      start_rows(stage);
      cp_async_commit();
    }
  }
  if constexpr (NORM) {
    if (p.norm != 0) {
      if constexpr (SEVERAL) {
        __syncthreads();
        const auto load = [&](u32 row, u32 at) {
          if (at >= static_cast<u32>(k)) return Words<16>{};
          const int group = at / GROUP, of_warp = group / RUN % WARPS, unit = at % GROUP / VECTOR<T>;
          const Words<16>* from = kept_unit(of_warp, group / (RUN * WARPS) * RUN + group % RUN, unit % X_UNITS);
          return from[row * 4 + unit / X_UNITS];
        };
        add_squares<T, THREADS>(load, rows, k, squares);
      } else {
        const auto load = [&](u32 row, u32 at) {
          return load_words(x + static_cast<u64>(row) * k, at, static_cast<u32>(k), x_vector);
        };
        add_squares<T, THREADS>(load, rows, k, squares);
      }
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < rows) rstd[threadIdx.x] = rstd_of_row(squares[threadIdx.x], k, p.eps);
      __syncthreads();
      if (SEVERAL && g < rows) {
#pragma unroll 2
        for (int group = 0; group < groups; ++group) {
#pragma unroll
          for (int j = 0; j < X_UNITS; ++j) {
            const int at = start_of(group) + t * UNIT + j * VECTOR<T>;
            Words<16>* unit = kept_unit(warp, group, j) + lane;
            *unit = normalise<T>(*unit, load_unit(global<const T>(p.norm), at, k, norm_vector), rstd[g]);
          }
        }
      }
    }
  }
  int computed = 0;  // stages of all tiles
#pragma unroll 1
  for (u32 column = columns.begin, tile_number = 0; !SEVERAL || column < columns.end; ++tile_number) {
    const Product product = product_of(p, column);
    const u32 end = end_of(product);
    float sums[HALVES / 2][TILES][4];
#pragma unroll
    for (int r = 0; r < HALVES / 2; ++r) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[r][n][i] = 0.0f;
      }
    }
#pragma unroll 1
    for (int stage = 0; start_of(stage * unroll) < k; ++stage) {
      const int number = SEVERAL ? computed++ : stage;
      cp_async_wait<STAGES - 2>();
      start_next_weights(number + STAGES - 1);
      if (!SEVERAL) start_rows(stage + STAGES - 1);
      cp_async_commit();
      const Words<16>* from = mine + number % STAGES * unroll * slot + lane;
#pragma unroll 1
      for (int i = 0; i < unroll; ++i, from += slot) {
        const Words<16>* x_units = SEVERAL ? kept_unit(warp, stage * unroll + i, 0) + lane : from + TILES * 32;
#pragma unroll
        for (int half = 0; half < UNIT / 8; ++half) {
          u32 b[TILES][4];
#pragma unroll
          for (int n = 0; n < TILES; ++n) {
            // The copy makes one 16-byte load of the unit.
            const Words<16> unit = from[n * 32];
            weights_of(unit, half, b[n], W());
          }
          Words<16> scale[X_EIGHT] = {};
          if constexpr (NORM) {
            if (!SEVERAL && p.norm != 0) {
              const int at = start_of(stage * unroll + i) + t * UNIT + half * 8;
#pragma unroll
              for (int j = 0; j < X_EIGHT; ++j) {
                scale[j] = load_unit(global<const T>(p.norm), at + j * VECTOR<T>, k, norm_vector);
              }
            }
          }
#pragma unroll
          for (int r = 0; r < HALVES / 2; ++r) {
            if (2 * r >= halves) break;
            u32 a[2][X::COUNT][4] = {};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              if (2 * r + h >= halves) break;
              const bool exists = g + 8 * (2 * r + h) < rows;
              float row_scale = 0.0f;
              if constexpr (NORM) {
                if (!SEVERAL && p.norm != 0 && exists) row_scale = rstd[g + 8 * (2 * r + h)];
              }
#pragma unroll
              for (int j = 0; j < X_EIGHT; ++j) {
                Words<16> unit = {};
                if (!SEVERAL || exists) unit = x_units[((2 * r + h) * X_UNITS + half * X_EIGHT + j) * pitch];
                if constexpr (NORM) {
                  if (!SEVERAL && p.norm != 0) unit = normalise<T>(unit, scale[j], row_scale);
                }
                X::add(unit, j, a[h]);
              }
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
#pragma unroll
              for (int part = 0; part < X::COUNT; ++part) {
                const u32 low[4] = {a[0][part][0], a[1][part][0], a[0][part][1], a[1][part][1]};
                const u32 high[4] = {a[0][part][2], a[1][part][2], a[0][part][3], a[1][part][3]};
                if constexpr (sizeof(Y) == 2) {
                  mma_bf16(sums[r][n], low, b[n][0], b[n][1]);
                  mma_bf16(sums[r][n], high, b[n][2], b[n][3]);
                } else {
                  float few[4] = {};
                  mma_bf16(few, low, b[n][0], b[n][1]);
                  mma_bf16(few, high, b[n][2], b[n][3]);
#pragma unroll
                  for (int j = 0; j < 4; ++j) sums[r][n][j] = __fadd_rn(sums[r][n][j], few[j]);
                }
              }
            }
          }
        }
      }
    }
    // With one tile, the partial sums of a warp take the place of its part of the ring, which all its lanes have read.
    // With several tiles there are two sets of them: a warp that has passed the barrier of a tile may write those of
    // the next tile while other warps read.
    float* partial = partials + (SEVERAL ? tile_number % 2 * WARPS * stride : 0);
    if (!SEVERAL) __syncwarp();
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      if (h >= halves) break;
      if (SEVERAL && g >= rows) continue;
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        *reinterpret_cast<float2*>(partial + warp * stride + (g + 8 * h) * PITCH + n * 8 + t * 2) =
            make_float2(sums[h / 2][n][h % 2 * 2], sums[h / 2][n][h % 2 * 2 + 1]);
      }
    }
    __syncthreads();
    // Another warp begins in each tile, so that no warp is late in all of them.
    for (int i = (threadIdx.x + tile_number * 32) % THREADS; i < rows * COLUMNS; i += THREADS) {
      const int r = i / COLUMNS, c = i % COLUMNS;
      if (column + c >= end) continue;
      const u32 in_product = column - product.first + c;
      float sum[WEIGHTS];
#pragma unroll
      for (int which = 0; which < WEIGHTS; ++which) {
        const float* from = partial + r * PITCH + which * COLUMNS + c;
        sum[which] = from[0];
#pragma unroll
        for (int other = 1; other < WARPS; ++other) sum[which] = __fadd_rn(sum[which], from[other * stride]);
        const u64 scale = which == 0 ? product.scale : product.scale2;
        if (scale != 0) sum[which] = __fmul_rn(sum[which], global<const float>(scale)[in_product]);
      }
      const u64 at = static_cast<u64>(first_row + r) * product.n + in_product;
      float y = sum[0];
      if constexpr (PAIR) {
        y = __fmul_rn(__fdiv_rn(y, 1.0f + expf(-y)), sum[WEIGHTS - 1]);
      } else {
        if (product.bias != 0) y = __fadd_rn(y, to_f32(global<const T>(product.bias)[in_product]));
        if (product.residual != 0) y = __fadd_rn(y, to_f32(global<const T>(product.residual)[at]));
      }
      global<Y>(product.y)[at] = from_f32<Y>(y);
    }
    if (!SEVERAL) break;
    column = min(column + COLUMNS, end);
  }
}

// Each symbol has a variant whose blocks have several tiles (_tiles).
// Products without a norm, and the pair of products of swiglu.
#define VARIANT(SYMBOL, SEVERAL, T, W, TILES, PAIR, NORM, Y, P)                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ P p) { \
    skinny<SEVERAL, T, W, TILES, PAIR, NORM, Y>(p);                                              \
  }
#define BOTH(SYMBOL, T, W, TILES, PAIR, NORM, Y, P)             \
  VARIANT(SYMBOL, false, T, W, TILES, PAIR, NORM, Y, P)         \
  VARIANT(SYMBOL##_tiles, true, T, W, TILES, PAIR, NORM, Y, P)
#define KERNEL(SYMBOL, T, W, TILES, PAIR) BOTH(SYMBOL, T, W, TILES, PAIR, PAIR, T, Params)
// Up to three products of the same x.
#define JOINED(SYMBOL, T, W) BOTH(SYMBOL, T, W, 2, false, true, T, JoinedParams)
JOINED(skinny_joined_bf16, bf16, bf16)
JOINED(skinny_joined_f32, float, bf16)
JOINED(skinny_joined_int8_bf16, bf16, i8)
JOINED(skinny_joined_int8_f32, float, i8)
KERNEL(skinny_linear_bf16, bf16, bf16, 2, false)
KERNEL(skinny_linear_bf16_wide, bf16, bf16, 4, false)
KERNEL(skinny_linear_f32, float, bf16, 2, false)
KERNEL(skinny_linear_f32_wide, float, bf16, 4, false)
KERNEL(skinny_linear_int8_bf16, bf16, i8, 2, false)
KERNEL(skinny_linear_int8_bf16_wide, bf16, i8, 4, false)
KERNEL(skinny_linear_int8_f32, float, i8, 2, false)
KERNEL(skinny_linear_int8_f32_wide, float, i8, 4, false)
KERNEL(skinny_swiglu_bf16, bf16, bf16, 4, true)
KERNEL(skinny_swiglu_f32, float, bf16, 4, true)
KERNEL(skinny_swiglu_int8_bf16, bf16, i8, 4, true)
KERNEL(skinny_swiglu_int8_f32, float, i8, 4, true)

#define LOGITS(SYMBOL, W, TILES) BOTH(SYMBOL, bf16, W, TILES, false, false, float, Params)
LOGITS(skinny_logits_bf16, bf16, 2)
LOGITS(skinny_logits_bf16_wide, bf16, 4)
LOGITS(skinny_logits_int8_bf16, i8, 2)
LOGITS(skinny_logits_int8_bf16_wide, i8, 4)
