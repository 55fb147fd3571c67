// Skinny GEMM: a few rows of x times every row of a weight; formula and shapes: mod.rs.
//
// A block of threads multiplies up to 64 rows of x by the weight rows of UNITS units (products.cuh), each a group of
// eight columns of y, or of eight pairs of columns of a head. Its 8 warps divide the sums over k among themselves, and
// their partial sums are added in the order of the warps.
//
// Four lanes load a row of the weight, 16 bytes each, to the registers that mma.sync reads. A lane's registers then
// hold consecutive k, where the instruction expects other k. This changes no sum, because x has the same permutation.
//
// Each lane copies what it multiplies to its own part of shared memory, ahead of time (cp.async). So the loop over k
// needs no barrier: a lane waits for its own copies only. A slot of this ring holds, for one group of k, TILES units of
// weight and those of x for each 8 rows; a stage has `unroll` slots, and STAGES - 1 stages are in flight. On sm_90,
// other kernels compute the products of aligned bf16 rows (sm90.cuh, sm90a.cuh).
//
//   start the copies of the first stages' weights; wait for the previous launch; start those of x
//   with a norm: squares of the rows of x -> shared; barrier; rstd
//   for each stage of this warp: wait; start the copies of a later stage; norm; sums += x w^T
//   shared[warp] = sums; barrier; y = epilogue(sum over warps)
//
// Order. A row of the weight has k / 8 (int8: k / 16) units of 16 bytes. Four units, one per lane, are a group; group
// i belongs to warp i / 4 % 8. So the order of a sum depends on k alone: not on m, n, the row's index, the columns of a
// block or the size of the ring.
//
// Numerics. bf16 x: exact products, f32 sums. f32 x is the sum of three bf16 (exact unless the smallest part
// underflows). Tensor cores truncate f32 sums instead of rounding them (measured on an H200: sums of 1024 terms were
// off by 4e-6). For f32 y they therefore add up only 32 products of one part at a time, starting at 0, and the results
// are added with rounding. int8 weights are converted to bf16 exactly; their scale is applied to the finished sum. Then
// bias, then residual (or silu and the second product), all in f32, and one rounding. Qkv to q and k are rotated after
// that, in f32, and rounded again, so that their bits are those of the projection and of rope_kv_write.
//
// Norm. Each block computes the scales of its rows while the first weights arrive, and each warp normalises the
// elements that it multiplies. So x is read twice and the weight of the norm once; the rows have the bits of rms_norm
// (rstd.cuh).
//
// Hopper. The kernels are programmatic dependent launches: the weights of the first three stages are requested before
// the wait for the previous launch (48 KiB a block, 24 KiB with many rows, so 6 to 12 MiB on 132 multiprocessors), and
// the next launch may start as soon as all blocks of this launch have started. Nothing else is read before the wait.
//
// Departures. (1) If k is not a multiple of a unit, or an address is not 16-byte aligned, elements are loaded one by
// one; the order of summation is the same. (2) An infinite f32 x gives NaN.
//
// Bound. Memory: the weight is read once; x is read again by each block, from L1 or L2. With two tiles and two slots a
// stage, or four tiles and one slot, a block has 48 KiB of weights in flight (three stages of 8 warps of 4 units of 512
// bytes): 4.3 TB/s times a latency of 700 ns on 132 multiprocessors are 23 KiB. With many rows, whose ring leaves room
// for one slot a stage, it is 24 KiB.
#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/dependent.cuh"
#include "cuh/mma.cuh"
#include "rms_norm/rstd.cuh"
#include "skinny/products.cuh"
#include "skinny/sm90.cuh"
#if __CUDA_ARCH__ >= 900
#include "skinny/sm90a.cuh"
#endif
#include "skinny/weights.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int RUN = 4;  // number of consecutive groups of a warp

extern __shared__ Words<16> ring[];

// Loads 16 bytes of elements, from index `at` on, of the row of k elements at p. Elements beyond the end of the row
// are 0. `vector` promises that the row allows 16-byte loads.
template <class T>
__device__ __forceinline__ Words<16> load_unit(const T* p, int at, int k, bool vector) {
  constexpr int N = 16 / sizeof(T), PER_WORD = 4 / sizeof(T);
  Words<16> x = {};
  if (vector) {
    if (at < k) x = *reinterpret_cast<const Words<16>*>(p + at);
    return x;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    u32 bits = 0;
    if (at + i < k) {
      if constexpr (sizeof(T) == 1) bits = reinterpret_cast<const u8*>(p)[at + i];
      if constexpr (sizeof(T) == 2) bits = reinterpret_cast<const u16*>(p)[at + i];
      if constexpr (sizeof(T) == 4) bits = reinterpret_cast<const u32*>(p)[at + i];
    }
    x.word[i / PER_WORD] |= bits << i % PER_WORD * (8 * sizeof(T) % 32);
  }
  return x;
}

// Starts the copy of the 16-byte unit from index `at` on of a row to shared memory. Elements beyond the end of the row,
// and all elements if the row does not exist, are 0. If 16-byte loads are not possible (`vector` is false), the unit is
// copied synchronously. CACHED: L1 keeps the unit for other blocks.
template <bool CACHED, class T>
__device__ __forceinline__ void start_copy(Words<16>* to, const T* row, bool exists, int at, int k, bool vector) {
  const bool reads = exists && at < k;
  if (!vector) {
    *to = reads ? load_unit(row, at, k, false) : Words<16>{};
  } else if constexpr (CACHED) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(row + (reads ? at : 0)),
                 "r"(reads ? 16 : 0)
                 : "memory");
  } else {
    cp_async_16(shared_address(to), row + (reads ? at : 0), reads ? 16 : 0);
  }
}

// Eight elements of a row of x as COUNT sets of four bf16 pairs. bf16 needs one set. An f32 is split into the sum of
// three bf16 numbers, one per set; the smallest comes first. `add` writes the pairs of the 16-byte unit `j` of the
// eight elements.
template <class T>
struct Parts;
template <>
struct Parts<bf16> {
  static constexpr int COUNT = 1;
  __device__ static __forceinline__ void add(const Words<16>& unit, int, u32 (&x)[1][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[0][i] = unit.word[i];
  }
};
template <>
struct Parts<float> {
  static constexpr int COUNT = 3;
  __device__ static __forceinline__ void add(const Words<16>& unit, int j, u32 (&x)[3][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float low = __uint_as_float(unit.word[2 * i]), high = __uint_as_float(unit.word[2 * i + 1]);
#pragma unroll
      for (int part = 2; part >= 0; --part) {
        const u32 pair = pack_bf16(low, high);
        x[part][2 * j + i] = pair;
        low = __fsub_rn(low, low_bf16(pair));
        high = __fsub_rn(high, high_bf16(pair));
      }
    }
  }
};

// Computes the products `op` for block blockIdx.y of columns (UNITS units) and block blockIdx.x of rows of x. T: type
// of x. Y: type of y. W: type of the weight. P: the parameters, of which x, norm, m, k and eps are read here. A block
// has one tile of 8 weight rows for the first set of each unit, then one for each second set. NORM: x is normalised if
// p.norm is not null.
template <class T, class W, class Y, int UNITS, bool NORM, class P, class Op>
__device__ __forceinline__ void skinny(const P& p, const Op& op) {
  constexpr int UNIT = 16 / sizeof(W), GROUP = 4 * UNIT;
  constexpr int WEIGHTS = Op::WEIGHTS, TILES = UNITS * WEIGHTS, PITCH = 8 * TILES + 8;
  // X_UNITS is the number of 16-byte units of x that a lane multiplies with one unit of the weight. X_EIGHT is the
  // number of units of x that hold eight elements.
  constexpr int X_UNITS = UNIT / VECTOR<T>, X_EIGHT = 8 / VECTOR<T>;
  constexpr int STAGES = X_UNITS > 2 ? 2 : 4;
  // A block has at most 64 rows of x, fewer in variants that need more registers or shared memory for a row; mod.rs has
  // the same numbers (max_rows). A half is 8 rows, half of the 16 rows of a matrix instruction; a lane has one row of
  // each half.
  constexpr int HALVES = sizeof(T) == 4 ? 2 : sizeof(W) == 1 || sizeof(Y) == 4 ? 4 : 8;
  using X = Parts<T>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int k = p.k;
  const u32 rows_per_block = ceil_div<u32>(ceil_div<u32>(p.m, gridDim.x), 8) * 8;
  const u32 first_unit = blockIdx.y * UNITS, first_row = blockIdx.x * rows_per_block;
  const int rows = min(p.m - first_row, rows_per_block), halves = ceil_div(rows, 8);
  const bool w_vector = op.has_aligned_weights(), x_vector = aligned16(p.x, static_cast<u64>(k) * sizeof(T));
  const bool norm_vector = x_vector && aligned16(p.norm);

  // Each stage of the ring has `unroll` slots. The launch plan chooses this number by the size of shared memory.
  const int slot = (TILES + halves * X_UNITS) * 32, most = ceil_div<u32>(rows_per_block, 8) * X_UNITS + TILES;
  const int unroll = dynamic_shared_bytes() / (STAGES * WARPS * 512 * most), warp_units = STAGES * unroll * most * 32;
  Words<16>* mine = ring + warp * warp_units;
  const auto start_of = [&](int group) { return ((group / RUN * WARPS + warp) * RUN + group % RUN) * GROUP; };

  const auto rows_of = [&](int tile) { return op.rows_of(op.place_of(first_unit + tile % UNITS, 8), tile >= UNITS); };
  const T* x = global<const T>(p.x) + static_cast<u64>(first_row) * k;
  const W* weight_row[TILES];  // this lane's row of each tile
  bool exists[TILES];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    const WeightRows<W> tile = rows_of(n);
    exists[n] = tile.first + g < tile.end;
    weight_row[n] = tile.weight + (exists[n] ? static_cast<u64>(tile.first + g) * k : 0);
  }
  const auto start_weights = [&](int stage) {
    const int start = start_of(stage * unroll);
    if (start >= k) return;
    Words<16>* to = mine + stage % STAGES * unroll * slot + lane;
#pragma unroll 1
    for (int i = 0; i < unroll; ++i, to += slot) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        start_copy<false>(to + n * 32, weight_row[n], exists[n], start + i * GROUP + t * UNIT, k, w_vector);
      }
    }
  };
  const auto start_rows = [&](int stage) {
    const int start = start_of(stage * unroll);
    Words<16>* to = mine + stage % STAGES * unroll * slot + TILES * 32 + lane;
    if (start < k) {
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
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) start_weights(stage);
  let_next_launch_start();
  wait_for_previous_launch();
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) start_rows(stage);

  // The sums of squares and the scales of the rows lie behind the ring in shared memory.
  RowSquares* squares = reinterpret_cast<RowSquares*>(ring + WARPS * warp_units);
  float* rstd = reinterpret_cast<float*>(squares + rows_per_block);
  if constexpr (NORM) {
    if (p.norm != 0) {
      add_squares<T, THREADS>(x, rows, k, x_vector, squares);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < rows) rstd[threadIdx.x] = rstd_of_row(squares[threadIdx.x], k, p.eps);
      __syncthreads();
    }
  }
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
    cp_async_wait<STAGES - 2>();
    start_weights(stage + STAGES - 1);
    start_rows(stage + STAGES - 1);
    const Words<16>* from = mine + stage % STAGES * unroll * slot + lane;
#pragma unroll 1
    for (int i = 0; i < unroll; ++i, from += slot) {
#pragma unroll
      for (int half = 0; half < UNIT / 8; ++half) {
        u32 b[TILES][4];
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
          // Copying the unit to a variable makes the compiler use one 16-byte load.
          const Words<16> unit = from[n * 32];
          weights_of(unit, half, b[n], W());
        }
        Words<16> scale[X_EIGHT] = {};
        if constexpr (NORM) {
          if (p.norm != 0) {
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
            float row_scale = 0.0f;
            if constexpr (NORM) {
              if (p.norm != 0 && g + 8 * (2 * r + h) < rows) row_scale = rstd[g + 8 * (2 * r + h)];
            }
#pragma unroll
            for (int j = 0; j < X_EIGHT; ++j) {
              Words<16> unit = from[(TILES + (2 * r + h) * X_UNITS + half * X_EIGHT + j) * 32];
              if constexpr (NORM) {
                if (p.norm != 0) unit = normalise<T>(unit, scale[j], row_scale);
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
  // The partial sums of a warp overwrite its part of the ring, which all lanes of the warp have read.
  const int stride = warp_units * 4;
  float* partial = reinterpret_cast<float*>(ring);
  __syncwarp();
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    if (h >= halves) break;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      *reinterpret_cast<float2*>(partial + warp * stride + (g + 8 * h) * PITCH + n * 8 + t * 2) =
          make_float2(sums[h / 2][n][h % 2 * 2], sums[h / 2][n][h % 2 * 2 + 1]);
    }
  }
  __syncthreads();
  // Number of pairs of columns of a row: four for each unit.
  constexpr int PAIRS = 4 * UNITS;
  for (int i = threadIdx.x; i < rows * PAIRS; i += THREADS) {
    const int r = i / PAIRS, c = i % PAIRS;
    float sum[WEIGHTS][2];
#pragma unroll
    for (int which = 0; which < WEIGHTS; ++which) {
#pragma unroll
      for (int other = 0; other < WARPS; ++other) {
        const float2 one = *reinterpret_cast<const float2*>(
            partial + other * stride + r * PITCH + (which * PAIRS + c) * 2);
        sum[which][0] = other == 0 ? one.x : __fadd_rn(sum[which][0], one.x);
        sum[which][1] = other == 0 ? one.y : __fadd_rn(sum[which][1], one.y);
      }
    }
    op.write(op.place_of(first_unit + c / 4, 8), first_row + r, c % 4 * 2, sum);
  }
}

// Defines the kernels of products without a norm, and of the two products of swiglu. TILES: number of tiles of 8
// weight rows per block.
#define KERNEL(SYMBOL, T, W, Y, TILES, PAIR)                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ Params p) {  \
    skinny<T, W, Y, (PAIR) ? (TILES) / 2 : (TILES), PAIR>(p, Single<T, W, Y, PAIR>{p});                \
  }
#define QKV(SYMBOL, T, W)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ QkvParams p) { \
    skinny<T, W, T, 1, true>(p, Qkv<T, W>{p});                                                           \
  }
QKV(skinny_qkv_bf16, bf16, bf16)
QKV(skinny_qkv_f32, float, bf16)
QKV(skinny_qkv_int8_bf16, bf16, i8)
QKV(skinny_qkv_int8_f32, float, i8)
KERNEL(skinny_linear_bf16, bf16, bf16, bf16, 2, false)
KERNEL(skinny_linear_bf16_wide, bf16, bf16, bf16, 4, false)
KERNEL(skinny_linear_f32, float, bf16, float, 2, false)
KERNEL(skinny_linear_f32_wide, float, bf16, float, 4, false)
KERNEL(skinny_linear_int8_bf16, bf16, i8, bf16, 2, false)
KERNEL(skinny_linear_int8_bf16_wide, bf16, i8, bf16, 4, false)
KERNEL(skinny_linear_int8_f32, float, i8, float, 2, false)
KERNEL(skinny_linear_int8_f32_wide, float, i8, float, 4, false)
KERNEL(skinny_swiglu_bf16, bf16, bf16, bf16, 4, true)
KERNEL(skinny_swiglu_f32, float, bf16, float, 4, true)
KERNEL(skinny_swiglu_int8_bf16, bf16, i8, bf16, 4, true)
KERNEL(skinny_swiglu_int8_f32, float, i8, float, 4, true)
KERNEL(skinny_logits_bf16, bf16, bf16, float, 2, false)
KERNEL(skinny_logits_bf16_wide, bf16, bf16, float, 4, false)
KERNEL(skinny_logits_int8_bf16, bf16, i8, float, 2, false)
KERNEL(skinny_logits_int8_bf16_wide, bf16, i8, float, 4, false)

#if __CUDA_ARCH__ >= 900
// Defines a kernel of the scheme Tiles for 8 NX rows of x and at most MAX_WIDTH rows of each weight. TILES: number of
// tiles that a warp computes with many rows of x.
#define BY_TILES(SYMBOL, TILES, NX, SETS, BOXES, MAX_WIDTH, NORM, W, PARAMS, ...)                                 \
  extern "C" __global__ void __launch_bounds__(                                                                   \
      by_tiles::Shape<W, SETS, TILES, NX, BOXES, MAX_WIDTH, NORM>::THREADS, 1) SYMBOL(const __grid_constant__ PARAMS p) { \
    by_tiles::product<by_tiles::Shape<W, SETS, TILES, NX, BOXES, MAX_WIDTH, NORM>>(p, __VA_ARGS__{p});            \
  }
#define FEW_ROWS(X1, X2, ...)     \
  BY_TILES(X1, 1, 1, __VA_ARGS__) \
  BY_TILES(X2, 1, 2, __VA_ARGS__)
#define MANY_ROWS(X4, X8, TILES, ...) \
  BY_TILES(X4, TILES, 4, __VA_ARGS__) \
  BY_TILES(X8, TILES, 8, __VA_ARGS__)
FEW_ROWS(skinny_linear_bf16_144_x1, skinny_linear_bf16_144_x2, 1, 1, 144, false, bf16, Params, Single<bf16, bf16, bf16, false>)
FEW_ROWS(skinny_linear_bf16_64_x1, skinny_linear_bf16_64_x2, 1, 4, 64, false, bf16, Params, Single<bf16, bf16, bf16, false>)
FEW_ROWS(skinny_logits_bf16_144_x1, skinny_logits_bf16_144_x2, 1, 1, 144, false, bf16, Params, Single<bf16, bf16, float, false>)
FEW_ROWS(skinny_swiglu_bf16_144_x1, skinny_swiglu_bf16_144_x2, 2, 1, 144, true, bf16, Params, Single<bf16, bf16, bf16, true>)
FEW_ROWS(skinny_qkv_bf16_64_x1, skinny_qkv_bf16_64_x2, 2, 4, 64, true, bf16, QkvParams, Qkv<bf16, bf16>)
FEW_ROWS(skinny_linear_int8_bf16_144_x1, skinny_linear_int8_bf16_144_x2, 1, 1, 144, false, i8, Params, Single<bf16, i8, bf16, false>)
FEW_ROWS(skinny_linear_int8_bf16_64_x1, skinny_linear_int8_bf16_64_x2, 1, 4, 64, false, i8, Params, Single<bf16, i8, bf16, false>)
FEW_ROWS(skinny_logits_int8_bf16_144_x1, skinny_logits_int8_bf16_144_x2, 1, 1, 144, false, i8, Params, Single<bf16, i8, float, false>)
FEW_ROWS(skinny_swiglu_int8_bf16_144_x1, skinny_swiglu_int8_bf16_144_x2, 2, 1, 144, true, i8, Params, Single<bf16, i8, bf16, true>)
FEW_ROWS(skinny_qkv_int8_bf16_64_x1, skinny_qkv_int8_bf16_64_x2, 2, 4, 64, true, i8, QkvParams, Qkv<bf16, i8>)
MANY_ROWS(skinny_linear_int8_bf16_144_x4, skinny_linear_int8_bf16_144_x8, 3, 1, 1, 144, false, i8, Params, Single<bf16, i8, bf16, false>)
MANY_ROWS(skinny_linear_int8_bf16_64_x4, skinny_linear_int8_bf16_64_x8, 1, 1, 4, 64, false, i8, Params, Single<bf16, i8, bf16, false>)
MANY_ROWS(skinny_logits_int8_bf16_144_x4, skinny_logits_int8_bf16_144_x8, 3, 1, 1, 144, false, i8, Params, Single<bf16, i8, float, false>)
MANY_ROWS(skinny_swiglu_int8_bf16_144_x4, skinny_swiglu_int8_bf16_144_x8, 3, 2, 1, 144, true, i8, Params, Single<bf16, i8, bf16, true>)
MANY_ROWS(skinny_qkv_int8_bf16_64_x4, skinny_qkv_int8_bf16_64_x8, 1, 2, 4, 64, true, i8, QkvParams, Qkv<bf16, i8>)

// Defines a kernel with clusters of blocks, for up to 64 rows of x and a bf16 weight: SETS sets of weight rows, N
// columns, BOXES boxes of 64 k per stage. NORM: x is normalised first.
#define BY_CLUSTERS(SYMBOL, SETS, N, BOXES, NORM, PARAMS, ...)                                    \
  extern "C" __global__ void __launch_bounds__(by_clusters::Shape<SETS, N, BOXES, NORM>::THREADS, 1) \
      SYMBOL(const __grid_constant__ PARAMS p) {                                                  \
    by_clusters::product<by_clusters::Shape<SETS, N, BOXES, NORM>>(p, __VA_ARGS__{p});            \
  }
BY_CLUSTERS(skinny_linear_bf16_clusters_32, 1, 32, 4, false, Params, Single<bf16, bf16, bf16, false>)
BY_CLUSTERS(skinny_linear_bf16_clusters_160, 1, 160, 1, false, Params, Single<bf16, bf16, bf16, false>)
BY_CLUSTERS(skinny_logits_bf16_clusters_160, 1, 160, 1, false, Params, Single<bf16, bf16, float, false>)
BY_CLUSTERS(skinny_swiglu_bf16_clusters_160, 2, 160, 1, true, Params, Single<bf16, bf16, bf16, true>)
BY_CLUSTERS(skinny_qkv_bf16_clusters_32, 2, 32, 2, true, QkvParams, Qkv<bf16, bf16>)
BY_CLUSTERS(skinny_qkv_bf16_clusters_64, 2, 64, 2, true, QkvParams, Qkv<bf16, bf16>)
#endif
