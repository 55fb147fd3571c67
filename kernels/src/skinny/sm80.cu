// Skinny GEMM: a few rows of x times every row of a weight; formula and shapes: mod.rs.
//
// A block of threads multiplies 16 rows of x by COLUMNS rows of the weight, which gives COLUMNS columns of y. Its 8
// warps divide the sums over k among themselves, and their partial sums are added in the order of the warps. Four
// lanes load a row of the weight, 16 bytes each, directly into the registers that mma.sync reads. A lane's registers
// then hold consecutive k, where the instruction expects others. This changes no sum, because x is loaded in the same
// permutation.
//
// The blocks of joined products come one product after the other.
//
//   with a norm: squares of the rows of x -> shared; barrier; rstd
//   for each group of k of this warp: load w (UNROLL * TILES times 16 bytes per lane), x; norm; sums += x w^T
//   shared[warp] = sums; barrier; y = epilogue(sum over warps)
//
// Order. A row of the weight has k / 8 (int8: k / 16) units of 16 bytes. Four units, one per lane, are a group; group
// i belongs to warp i / 4 % 8. So the order of a sum depends on k alone: not on m, n, the row's index or the columns
// of a block.
//
// Numerics. bf16 x: exact products, f32 sums. f32 x is the sum of three bf16 (exact unless the smallest part
// underflows). Tensor cores truncate f32 sums instead of rounding them (measured on an H200: sums of 1024 terms were
// off by 4e-6). For f32 y they therefore add up only 32 products of one part at a time, starting at 0, and the
// results are added with rounding; logits of bf16 x have the bits of the same x in f32. int8 weights become bf16 exactly; their scale is applied to the finished sum. Then
// bias, then residual (or silu and the second product), all in f32, and one rounding.
//
// Norm. Each block computes the scales of its rows, and each warp normalises the elements that it multiplies. So x is
// read twice and the weight of the norm once, which mostly hits L1; the rows have the bits of rms_norm (rstd.cuh).
//
// Departures. (1) If k is not a multiple of a unit, or an address is not 16-byte aligned, elements are loaded one by
// one; the order of summation is the same. (2) An infinite f32 x gives NaN.
//
// Bound. Memory: the weight is read once; x is read again by each block, from L2.
#include "cuh/base.cuh"
#include "cuh/mma.cuh"
#include "rms_norm/rstd.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int ROWS = 16;
constexpr int RUN = 4;  // number of consecutive groups of a warp

extern __shared__ __align__(16) float partial[];

struct i8 {
  signed char value;
};

// Loads 16 bytes without caching them in L1: they are read once and should not evict x. PTX ISA 9.0, chapter 9.7.9.9.
__device__ __forceinline__ Words<16> load_once(const void* p) {
  Words<16> x;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
      : "l"(p));
  return x;
}

// Loads 16 bytes of elements, from index `at` on, of the row of k elements at p. Elements beyond the end of the row
// are 0. `vector` promises that the row allows 16-byte loads.
template <class T, class Load>
__device__ __forceinline__ Words<16> load_unit(const T* p, int at, int k, bool vector, Load load) {
  constexpr int N = 16 / sizeof(T), PER_WORD = 4 / sizeof(T);
  Words<16> x = {};
  if (vector) {
    if (at < k) x = load(p + at);
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

// Converts eight elements of a 16-byte unit of the weight to four pairs of bf16. `half` says which eight of the 16
// elements of an int8 unit.
__device__ __forceinline__ void weights_of(const Words<16>& unit, int, u32 (&w)[4], bf16) {
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = unit.word[i];
}
__device__ __forceinline__ void weights_of(const Words<16>& unit, int half, u32 (&w)[4], i8) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // XOR with 128 adds 128 to each signed byte. Put into the low mantissa bits of 2^23, the result gives the f32
    // number 2^23 + 128 + byte.
    const u32 bytes = unit.word[2 * half + i / 2] ^ 0x80808080u;
    const float low = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7540 + i % 2 * 2)) - 8388736.0f;
    const float high = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7541 + i % 2 * 2)) - 8388736.0f;
    w[i] = pack_bf16(low, high);
  }
}

// Loads 16 bytes of a row of x, or of the weight of its norm, and caches them in L1.
template <class T>
__device__ __forceinline__ Words<16> load_cached(const T* p, int at, int k, bool vector) {
  return load_unit(p, at, k, vector, [](const T* from) { return *reinterpret_cast<const Words<16>*>(from); });
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

// Returns the address of a row of the weight. A `row` that does not exist gives row 0; its products are not stored.
template <class W>
__device__ __forceinline__ const W* weight_row(u64 weight, u32 row, u32 rows, u32 k) {
  return global<const W>(weight) + static_cast<u64>(row < rows ? row : 0) * k;
}

// The product of block `block` of the grid. T: type of x. Y: type of y. W: type of the weight. TILES: number of tiles of 8
// weight rows per block. PAIR: the first half of the tiles belongs to the first weight, the other half to the second
// weight (swiglu). NORM: x is normalised if p.norm is not null.
template <class T, class W, int TILES, bool PAIR, bool NORM, class Y = T>
__device__ __forceinline__ void skinny(const Params& p, u32 block) {
  constexpr int UNIT = 16 / sizeof(W), GROUP = 4 * UNIT;
  constexpr int WEIGHTS = PAIR ? 2 : 1, COLUMNS = 8 * TILES / WEIGHTS, PITCH = 8 * TILES + 8;
  using X = Parts<T>;
  // A lane has UNROLL * TILES loads of weights in flight. That is 8, but 4 in a block of 4 tiles with f32 x, because the
  // three bf16 parts of x need many registers.
  constexpr int UNROLL = (X::COUNT > 1 && TILES == 4 ? 4 : 8) / TILES;
  const u32 column_blocks = ceil_div<u32>(p.n, COLUMNS);
  const u32 first_column = block % column_blocks * COLUMNS, first_row = block / column_blocks * ROWS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int k = p.k;
  const u64 row_bytes = static_cast<u64>(k) * sizeof(W);
  const bool w_vector = aligned16(p.w, p.w2, row_bytes), x_vector = aligned16(p.x, static_cast<u64>(k) * sizeof(T));
  const bool norm_vector = x_vector && aligned16(p.norm);

  const W* w[TILES];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    const int tile = n % (TILES / WEIGHTS);
    w[n] = weight_row<W>(n < TILES / WEIGHTS ? p.w : p.w2, first_column + tile * 8 + g, p.n, k);
  }
  const bool has_row[2] = {first_row + g < p.m, first_row + g + 8 < p.m};
  const T* x[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    x[h] = global<const T>(p.x) + static_cast<u64>(has_row[h] ? first_row + g + 8 * h : 0) * k;
  }
  float rstd[2] = {};
  if constexpr (NORM) {
    if (p.norm != 0) {
      __shared__ RowSquares squares[ROWS];
      const T* rows = global<const T>(p.x) + static_cast<u64>(first_row) * k;
      add_squares<T, THREADS>(rows, min(p.m - first_row, static_cast<u32>(ROWS)), k, x_vector, squares);
      __syncthreads();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (has_row[h]) rstd[h] = rstd_of_row(squares[g + 8 * h], k, p.eps);
      }
    }
  }
  float sums[TILES][4];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
  }
  for (int step = 0, start = warp * RUN * GROUP; start < k;) {
    Words<16> units[UNROLL][TILES];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        units[i][n] =
            load_unit(w[n], start + i * GROUP + t * UNIT, k, w_vector, [](const W* from) { return load_once(from); });
      }
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
#pragma unroll
      for (int half = 0; half < UNIT / 8; ++half) {
        const int at = start + i * GROUP + t * UNIT + half * 8;
        u32 a[2][X::COUNT][4] = {};
#pragma unroll
        for (int j = 0; j < 8 / VECTOR<T>; ++j) {
          Words<16> scale = {};
          if constexpr (NORM) {
            if (p.norm != 0) scale = load_cached(global<const T>(p.norm), at + j * VECTOR<T>, k, norm_vector);
          }
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            if (!has_row[h]) continue;
            Words<16> unit = load_cached(x[h], at + j * VECTOR<T>, k, x_vector);
            if constexpr (NORM) {
              if (p.norm != 0) unit = normalise<T>(unit, scale, rstd[h]);
            }
            X::add(unit, j, a[h]);
          }
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
          u32 b[4];
          weights_of(units[i][n], half, b, W());
#pragma unroll
          for (int part = 0; part < X::COUNT; ++part) {
            const u32 low[4] = {a[0][part][0], a[1][part][0], a[0][part][1], a[1][part][1]};
            const u32 high[4] = {a[0][part][2], a[1][part][2], a[0][part][3], a[1][part][3]};
            if constexpr (sizeof(Y) == 2) {
              mma_bf16(sums[n], low, b[0], b[1]);
              mma_bf16(sums[n], high, b[2], b[3]);
            } else {
              float few[4] = {};
              mma_bf16(few, low, b[0], b[1]);
              mma_bf16(few, high, b[2], b[3]);
#pragma unroll
              for (int j = 0; j < 4; ++j) sums[n][j] = __fadd_rn(sums[n][j], few[j]);
            }
          }
        }
      }
    }
    step += UNROLL;
    start += UNROLL * GROUP;
    if (step % RUN == 0) start += (WARPS - 1) * RUN * GROUP;
  }
  float* mine = partial + warp * ROWS * PITCH;
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<float2*>(mine + (g + 8 * h) * PITCH + n * 8 + t * 2) =
          make_float2(sums[n][2 * h], sums[n][2 * h + 1]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
    const int r = i / COLUMNS, c = i % COLUMNS;
    const u32 row = first_row + r, column = first_column + c;
    if (row >= p.m || column >= p.n) continue;
    float sum[WEIGHTS];
#pragma unroll
    for (int which = 0; which < WEIGHTS; ++which) {
      const float* from = partial + r * PITCH + which * COLUMNS + c;
      sum[which] = from[0];
#pragma unroll
      for (int other = 1; other < WARPS; ++other) sum[which] = __fadd_rn(sum[which], from[other * ROWS * PITCH]);
      const u64 scale = which == 0 ? p.scale : p.scale2;
      if (scale != 0) sum[which] = __fmul_rn(sum[which], global<const float>(scale)[column]);
    }
    const u64 at = static_cast<u64>(row) * p.n + column;
    float y = sum[0];
    if constexpr (PAIR) {
      y = __fmul_rn(__fdiv_rn(y, 1.0f + expf(-y)), sum[WEIGHTS - 1]);
    } else {
      if (p.bias != 0) y = __fadd_rn(y, to_f32(global<const T>(p.bias)[column]));
      if (p.residual != 0) y = __fadd_rn(y, to_f32(global<const T>(p.residual)[at]));
    }
    global<Y>(p.y)[at] = from_f32<Y>(y);
  }
}

// Products without a norm, and the pair of products of swiglu.
#define KERNEL(SYMBOL, T, W, TILES, PAIR)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ Params p) { \
    skinny<T, W, TILES, PAIR, PAIR>(p, blockIdx.x);                                                   \
  }
// One of up to three products of x. TILES as in `skinny`.
template <class T, class W, int TILES>
__device__ __forceinline__ void joined(const JoinedParams& p) {
  const u32 row_blocks = ceil_div<u32>(p.m, ROWS);
  const u32 blocks0 = ceil_div<u32>(p.n0, 8 * TILES) * row_blocks;
  const u32 blocks1 = ceil_div<u32>(p.n1, 8 * TILES) * row_blocks;
  Params one = {};
  one.x = p.x;
  one.norm = p.norm;
  one.eps = p.eps;
  one.m = p.m;
  one.k = p.k;
  u32 block = blockIdx.x;
  if (block < blocks0) {
    one.w = p.w0, one.scale = p.scale0, one.bias = p.bias0, one.y = p.y0, one.n = p.n0;
  } else if (block -= blocks0; block < blocks1) {
    one.w = p.w1, one.scale = p.scale1, one.bias = p.bias1, one.y = p.y1, one.n = p.n1;
  } else {
    block -= blocks1;
    one.w = p.w2, one.scale = p.scale2, one.bias = p.bias2, one.y = p.y2, one.n = p.n2;
  }
  skinny<T, W, TILES, false, true>(one, block);
}

#define JOINED(SYMBOL, T, W)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ JoinedParams p) { \
    joined<T, W, 2>(p);                                                                                     \
  }
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

#define LOGITS(SYMBOL, W, TILES)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ Params p) { \
    skinny<bf16, W, TILES, false, false, float>(p, blockIdx.x);                                       \
  }
LOGITS(skinny_logits_bf16, bf16, 2)
LOGITS(skinny_logits_bf16_wide, bf16, 4)
LOGITS(skinny_logits_int8_bf16, i8, 2)
LOGITS(skinny_logits_int8_bf16_wide, i8, 4)
