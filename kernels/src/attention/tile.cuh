// 64 rows (of keys in the backward pass also 128) of HEAD_DIM bf16 in shared memory, so that ldmatrix has no bank conflict.
// Units are chunks of 16 bytes.
//
// PADDED: a tile holds columns `column` .. `column` + HEAD_DIM of heads of `head_dim`, any number, and zeros beyond; else
// those are HEAD_DIM and 0.
#pragma once

#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"

constexpr int TILE_ROWS = 64;
constexpr int MMA_THREADS = 128;

// Eight rows' chunks of one column must lie in eight different places modulo 8: where a row is 8 or 16 chunks long, the
// chunk's number is XORed with the row's; else rows are an odd number of chunks apart. Shared memory begins at a multiple of
// 512, a longest row.
template <int HEAD_DIM>
struct Tile {
  static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 256, "a tile's head");
  static constexpr int CHUNKS = HEAD_DIM / 8;
  static constexpr int STEPS = (HEAD_DIM + 15) / 16;  // of a product over the head
  static constexpr bool XOR = HEAD_DIM % 64 == 0;
  static constexpr int PITCH = XOR ? CHUNKS : 2 * STEPS + 1;
  static constexpr int BYTES = TILE_ROWS * PITCH * 16;

  // The row and chunk that item `at` of ROWS rows' chunks is, so that eight neighbouring items lie in eight different places:
  // first eight chunks of every row, then what rows have beyond those, one of eight neighbouring rows, or two of every
  // other one of eight.
  template <int ROWS>
  __device__ static __forceinline__ void item(int at, int& row, int& chunk) {
    constexpr int WHOLE = CHUNKS / 8 * 8, EXTRA = CHUNKS % 8;
    static_assert(EXTRA <= 2, "columns of a tile");
    const int beyond = at - ROWS * WHOLE;
    if (EXTRA == 0 || beyond < 0) {
      row = at / WHOLE;
      chunk = at % WHOLE;
    } else if (EXTRA == 1) {
      row = beyond;
      chunk = WHOLE;
    } else {
      row = beyond / 16 * 8 + beyond % 8 / 2 * 2 + beyond / 8 % 2;
      chunk = WHOLE + beyond % 2;
    }
  }

  // Offset in bytes of a chunk.
  __device__ static __forceinline__ u32 offset(int row, int chunk) {
    return static_cast<u32>(row * PITCH + (XOR ? chunk ^ (row & 7) : chunk)) * 16;
  }
};

// threadIdx.x, read anew: what follows from it is not kept in registers from one copy to the next.
__device__ __forceinline__ int thread_again() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// Zeros in the columns that a product over the head takes beyond HEAD_DIM (8 of them, or none); copies leave them alone.
template <int HEAD_DIM, int ROWS = TILE_ROWS, int THREADS = MMA_THREADS>
__device__ __forceinline__ void clear_padding(char* tile) {
  if constexpr (HEAD_DIM % 16 != 0) {
    for (int row = threadIdx.x; row < ROWS; row += THREADS) {
      *reinterpret_cast<Words<16>*>(tile + Tile<HEAD_DIM>::offset(row, Tile<HEAD_DIM>::CHUNKS)) = {};
    }
  }
}

// Starts copying rows first .. first + ROWS of a tensor; those from `end` on become zeros and are not read. `rows.head(r)`:
// where row r's head begins, in elements.
template <int HEAD_DIM, bool PADDED, int ROWS = TILE_ROWS, int THREADS = MMA_THREADS, class Rows>
__device__ __forceinline__ void copy_rows(u32 tile, char* memory, const bf16* tensor, const Rows& rows, int first, int end,
                                          int head_dim, int column) {
  using T = Tile<HEAD_DIM>;
  constexpr int ALL = ROWS * T::CHUNKS;
  const int thread = thread_again();
  const bool vector = !PADDED || head_dim % 8 == 0;
#pragma unroll
  for (int i = 0; i < (ALL + THREADS - 1) / THREADS; ++i) {
    const int at = i * THREADS + thread;
    if (ALL % THREADS != 0 && at >= ALL) break;
    int row, chunk;
    T::template item<ROWS>(at, row, chunk);
    const int c = PADDED ? column + chunk * 8 : chunk * 8;
    const bool valid = first + row < end && (!PADDED || c < head_dim);
    const bf16* source = tensor + (valid ? rows.head(first + row) + c : 0);
    if (vector) {
      cp_async_16(tile + T::offset(row, chunk), source, valid ? 16 : 0);
    } else {
      float x[8];
      load_elements<8>(source - (valid ? c : 0), c, valid ? head_dim : 0, false, x);
      store_vector(reinterpret_cast<bf16*>(memory + T::offset(row, chunk)), x);
    }
  }
}

template <int HEAD_DIM, int ROWS = TILE_ROWS, int THREADS = MMA_THREADS, class Rows>
__device__ __forceinline__ void copy_rows(u32 tile, const bf16* tensor, const Rows& rows, int first, int end) {
  copy_rows<HEAD_DIM, false, ROWS, THREADS>(tile, nullptr, tensor, rows, first, end, HEAD_DIM, 0);
}

// Where a lane's rows of a tile's fragments begin, in shared memory. Rows and steps are added to it by `fragment`.
template <int HEAD_DIM>
__device__ __forceinline__ u32 left_lane(u32 tile) {
  const int lane = thread_again() % 32;
  return tile + Tile<HEAD_DIM>::offset(lane % 16, lane / 16);
}
template <int HEAD_DIM>
__device__ __forceinline__ u32 right_lane(u32 tile) {
  const int lane = thread_again() % 32;
  return tile + Tile<HEAD_DIM>::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// `row` rows (a multiple of 8) and `chunk` chunks (even, where the tile is XORed) further on.
template <int HEAD_DIM>
__device__ __forceinline__ u32 fragment(u32 lane, int row, int chunk) {
  using T = Tile<HEAD_DIM>;
  return (T::XOR ? lane ^ static_cast<u32>(chunk * 16) : lane + chunk * 16) + row * (T::PITCH * 16);
}

// Rows row .. row + 16, columns of step `step` over the head, as the left operand. `lane`: left_lane.
template <int HEAD_DIM>
__device__ __forceinline__ void left_fragment(u32 (&a)[4], u32 lane, int row, int step) {
  ldmatrix_x4(a, fragment<HEAD_DIM>(lane, row, 2 * step));
}

// 16 rows as the right operand's columns, 16 columns as what is summed over: for rows 0-7 b[0], b[1], for 8-15 b[2], b[3].
// `lane`: right_lane.
template <int HEAD_DIM>
__device__ __forceinline__ void right_fragment(u32 (&b)[4], u32 lane, int row, int step) {
  ldmatrix_x4(b, fragment<HEAD_DIM>(lane, row, 2 * step));
}

// c += a times rows row .. row + 16 of a tile, over TILES * 8 of the head's columns, those from chunk `chunk` on (even, where
// the tile is XORed). `lane`: left_lane.
template <int HEAD_DIM, int TILES>
__device__ __forceinline__ void multiply_rows(float (&c)[TILES][4], const u32 (&a)[4], u32 lane, int row, int chunk = 0) {
#pragma unroll
  for (int pair = 0; pair < TILES / 2; ++pair) {
    u32 b[4];
    ldmatrix_x4_trans(b, fragment<HEAD_DIM>(lane, row, chunk + 2 * pair));
    mma_bf16(c[2 * pair], a, b[0], b[1]);
    mma_bf16(c[2 * pair + 1], a, b[2], b[3]);
  }
  if constexpr (TILES % 2 != 0) {
    u32 b[2];
    ldmatrix_x2_trans(b, fragment<HEAD_DIM>(lane, row, chunk + TILES - 1));
    mma_bf16(c[TILES - 1], a, b[0], b[1]);
  }
}

// Two neighbouring 16 x 8 fragments of f32 as the left operand of a product over their 16 columns, rounded to bf16.
__device__ __forceinline__ void as_left(u32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack_bf16(low[0], low[1]);
  a[1] = pack_bf16(low[2], low[3]);
  a[2] = pack_bf16(high[0], high[1]);
  a[3] = pack_bf16(high[2], high[3]);
}

// Writes COLUMNS columns of a warp's 16 rows, times two factors (rows g and g + 8), rounded to bf16: through its own 16
// rows of a tile that no other warp uses any more, nor another lane: a barrier of the warp must have come. Rows from `end` on
// are not written.
template <int HEAD_DIM, int COLUMNS, bool PADDED, class Rows>
__device__ __forceinline__ void store_rows(bf16* tensor, const Rows& rows, int end, char* tile, int row,
                                           const float (&c)[COLUMNS / 8][4], float low, float high, int head_dim,
                                           int column) {
  using T = Tile<HEAD_DIM>;
  constexpr int CHUNKS = COLUMNS / 8;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < CHUNKS; ++n) {
    *reinterpret_cast<u32*>(tile + T::offset(row + g, n) + 4 * t) = pack_bf16(c[n][0] * low, c[n][1] * low);
    *reinterpret_cast<u32*>(tile + T::offset(row + g + 8, n) + 4 * t) = pack_bf16(c[n][2] * high, c[n][3] * high);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < (16 * CHUNKS + 31) / 32; ++i) {
    const int at = i * 32 + lane;
    int r, chunk;
    Tile<COLUMNS>::template item<16>(at, r, chunk);
    r += row;
    const int first = column + chunk * 8;
    if (at >= 16 * CHUNKS || r >= end) continue;
    const char* const from = tile + T::offset(r, chunk);
    bf16* const to = tensor + rows.head(r) + first;
    if (!PADDED || (head_dim % 8 == 0 && first < head_dim)) {
      *reinterpret_cast<Words<16>*>(to) = *reinterpret_cast<const Words<16>*>(from);
    } else {
      for (int e = 0; e < 8 && first + e < head_dim; ++e) to[e] = reinterpret_cast<const bf16*>(from)[e];
    }
  }
}
