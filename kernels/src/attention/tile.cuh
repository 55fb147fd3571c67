// Tiles of bf16 in shared memory, their copies from global memory and their matrix products. A tile has 64 rows (in
// the backward pass a tile of keys may have 128) and HEAD_DIM columns. Its layout, in chunks of 16 bytes, lets
// ldmatrix read without bank conflicts.
//
// PADDED: the tile holds the columns `column` .. `column` + HEAD_DIM of heads of any `head_dim`, and zeros beyond
// head_dim. Without PADDED, head_dim is HEAD_DIM and `column` is 0.
#pragma once

#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"

constexpr int TILE_ROWS = 64;
constexpr int MMA_THREADS = 128;

// The layout of a tile. For ldmatrix without bank conflicts, the chunks of eight neighbouring rows in one column must
// have different numbers modulo 8. If a row has 8, 16 or 32 chunks, the chunk number is XORed with the row number;
// otherwise rows are an odd number of chunks apart. Shared memory begins at a multiple of 512 bytes, the size of the
// longest row.
template <int HEAD_DIM>
struct Tile {
  static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 256, "HEAD_DIM of a tile must be a multiple of 8 and at most 256");
  static constexpr int CHUNKS = HEAD_DIM / 8;
  static constexpr int STEPS = (HEAD_DIM + 15) / 16;  // 16-column steps of a product over the head
  static constexpr bool XOR = HEAD_DIM % 64 == 0;
  static constexpr int PITCH = XOR ? CHUNKS : 2 * STEPS + 1;
  static constexpr int BYTES = TILE_ROWS * PITCH * 16;

  // When threads copy all 16-byte chunks of ROWS rows, returns the row and chunk of copy number `at`. The order gives
  // eight consecutive copies no bank conflict: first the groups of eight chunks of every row, then the one or two
  // chunks per row that are left.
  template <int ROWS>
  __device__ static __forceinline__ void item(int at, int& row, int& chunk) {
    constexpr int WHOLE = CHUNKS / 8 * 8, EXTRA = CHUNKS % 8;
    static_assert(EXTRA <= 2, "a row of a tile may have at most two chunks more than a multiple of eight chunks");
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

  // Returns the offset of a 16-byte chunk from the start of the tile, in bytes.
  __device__ static __forceinline__ u32 offset(int row, int chunk) {
    return static_cast<u32>(row * PITCH + (XOR ? chunk ^ (row & 7) : chunk)) * 16;
  }
};

// Writes zeros to the columns from HEAD_DIM up to the next multiple of 16 (8 columns or none). Matrix products over
// head_dim read these columns, but copies do not write them.
template <int HEAD_DIM>
__device__ __forceinline__ void clear_padding(char* tile) {
  if constexpr (HEAD_DIM % 16 != 0) {
    for (int row = threadIdx.x; row < TILE_ROWS; row += MMA_THREADS) {
      *reinterpret_cast<Words<16>*>(tile + Tile<HEAD_DIM>::offset(row, Tile<HEAD_DIM>::CHUNKS)) = {};
    }
  }
}

// Starts asynchronous copies of rows first .. first + 64 of a tensor to the tile at shared-memory address `tile`
// (pointer `memory`). Rows from `end` on are not read; the tile has zeros there. `rows.head(r)` is the index of the
// first element of row r's head.
template <int HEAD_DIM, bool PADDED, class Rows>
__device__ __forceinline__ void copy_rows(u32 tile, char* memory, const bf16* tensor, const Rows& rows, int first, int end,
                                          int head_dim, int column) {
  using T = Tile<HEAD_DIM>;
  constexpr int ALL = TILE_ROWS * T::CHUNKS;
  const int thread = thread_again();
  const bool vector = !PADDED || head_dim % 8 == 0;
#pragma unroll
  for (int i = 0; i < (ALL + MMA_THREADS - 1) / MMA_THREADS; ++i) {
    const int at = i * MMA_THREADS + thread;
    if (ALL % MMA_THREADS != 0 && at >= ALL) break;
    int row, chunk;
    T::template item<TILE_ROWS>(at, row, chunk);
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

template <int HEAD_DIM, class Rows>
__device__ __forceinline__ void copy_rows(u32 tile, const bf16* tensor, const Rows& rows, int first, int end) {
  copy_rows<HEAD_DIM, false>(tile, nullptr, tensor, rows, first, end, HEAD_DIM, 0);
}

// left_lane and right_lane return the shared-memory address from which a lane reads its part of a product's left or
// right operand at row 0 and column 0 of a tile. `fragment` computes the address for other rows and columns.
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

// Returns the address that lies `row` rows and `chunk` chunks after the address `lane`. `row` is a multiple of 8. In
// layouts with XORed chunk numbers, `chunk` must be an even number.
template <int HEAD_DIM>
__device__ __forceinline__ u32 fragment(u32 lane, int row, int chunk) {
  using T = Tile<HEAD_DIM>;
  return (T::XOR ? lane ^ static_cast<u32>(chunk * 16) : lane + chunk * 16) + row * (T::PITCH * 16);
}

// Loads the rows row .. row + 16 and the 16 columns of step `step` as the left operand. `lane` comes from left_lane.
template <int HEAD_DIM>
__device__ __forceinline__ void left_fragment(u32 (&a)[4], u32 lane, int row, int step) {
  ldmatrix_x4(a, fragment<HEAD_DIM>(lane, row, 2 * step));
}

// Loads 16 rows and the 16 columns of step `step`, transposed, as the right operand: each row becomes a column of it.
// b[0] and b[1] hold rows 0-7, b[2] and b[3] rows 8-15. `lane` comes from right_lane.
template <int HEAD_DIM>
__device__ __forceinline__ void right_fragment(u32 (&b)[4], u32 lane, int row, int step) {
  ldmatrix_x4(b, fragment<HEAD_DIM>(lane, row, 2 * step));
}

// Computes c += a times the rows row .. row + 16 of a tile, for its first TILES * 8 columns. `lane` comes from
// left_lane.
template <int HEAD_DIM, int TILES>
__device__ __forceinline__ void multiply_rows(float (&c)[TILES][4], const u32 (&a)[4], u32 lane, int row) {
#pragma unroll
  for (int pair = 0; pair < TILES / 2; ++pair) {
    u32 b[4];
    ldmatrix_x4_trans(b, fragment<HEAD_DIM>(lane, row, 2 * pair));
    mma_bf16(c[2 * pair], a, b[0], b[1]);
    mma_bf16(c[2 * pair + 1], a, b[2], b[3]);
  }
  if constexpr (TILES % 2 != 0) {
    u32 b[2];
    ldmatrix_x2_trans(b, fragment<HEAD_DIM>(lane, row, TILES - 1));
    mma_bf16(c[TILES - 1], a, b[0], b[1]);
  }
}

// Rounds two neighbouring 16 x 8 results of a product to bf16 and packs them as the left operand of a product over
// their 16 columns.
__device__ __forceinline__ void as_left(u32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack_bf16(low[0], low[1]);
  a[1] = pack_bf16(low[2], low[3]);
  a[2] = pack_bf16(high[0], high[1]);
  a[3] = pack_bf16(high[2], high[3]);
}

// Multiplies COLUMNS columns of a warp's 16 rows by a factor (`low` for row g, `high` for row g + 8), rounds them to
// bf16 and writes them to the tensor. The results are first stored in the warp's own 16 rows of `tile`; no other warp
// may still use these rows, and the warp must have passed a barrier. Rows from `end` on are not written.
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
