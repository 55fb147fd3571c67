// Tiles of the patch embedding's products: a stage's operands in shared memory, and the sums in the threads'
// registers.
#pragma once

#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"
#include "patch_embedding/levels.cuh"

constexpr int THREADS = 256;
// Number of elements along the summed dimension in one pipeline stage.
constexpr int SLICE = 32;

// Copies ROWS x COLUMNS elements, from (row, column) on, to shared memory, 16 bytes at a time to place(row in the
// tile, first column in the tile). `from` is a matrix of `cols` columns; elements beyond `rows` or `cols` become 0.
template <int ROWS, int COLUMNS, class T, class Place>
__device__ __forceinline__ void load_tile(const T* from, u32 row, u32 rows, u32 column, u32 cols, bool vector, Place place) {
  constexpr int UNIT = VECTOR<T>, UNITS = COLUMNS / UNIT;
  static_assert(ROWS * UNITS % THREADS == 0, "");
#pragma unroll
  for (int i = 0; i < ROWS * UNITS / THREADS; ++i) {
    const u32 at = threadIdx.x + i * THREADS, r = at / UNITS, c = at % UNITS * UNIT;
    const bool exists = row + r < rows;
    const T* source = from + static_cast<u64>(row + r) * cols;
    if (vector) {
      const bool valid = exists && column + c < cols;
      cp_async_16(shared_address(place(r, c)), valid ? source + column + c : from, valid ? 16 : 0);
    } else {
      T* to = reinterpret_cast<T*>(place(r, c));
#pragma unroll 1
      for (u32 j = 0; j < UNIT; ++j) to[j] = exists && column + c + j < cols ? source[column + c + j] : from_f32<T>(0.0f);
    }
  }
}

// ---- bf16 product: 8 warps, each computes 32 x 64 sums (dw: 64 x 32) ----

struct Bf16Fwd {
  using T = bf16;
  static constexpr int ROWS = 64, COLUMNS = 256, SIDE = 2;  // SIDE: neighbouring sums of a thread
  static constexpr int PIXELS = ROWS * SLICE * 2, STAGE = PIXELS + COLUMNS * SLICE * 2;  // bytes

  float sums[2][8][4];

  // Offset of a row's 16-byte chunk, swizzled so that eight neighbouring rows use eight different bank groups.
  __device__ static __forceinline__ u32 offset(u32 row, u32 chunk) { return row * 64 + (chunk ^ (row / 2 & 3)) * 16; }

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    *reinterpret_cast<Words<16>*>(stage + offset(threadIdx.x / 4, threadIdx.x % 4)) = pack<bf16>(x);
  }
  __device__ static __forceinline__ void load_weights(unsigned char* stage, const T* w, u32 row, u32 rows, u32 k, u32 cols,
                                                      bool vector) {
    load_tile<COLUMNS, SLICE>(w, row, rows, k, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + offset(r, c / 8); });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // One address register per operand is enough. The swizzle repeats every 16 rows, and the two steps of 16 elements
    // of a slice differ in only one bit of the chunk number.
    const u32 a_first = shared_address(stage) + offset(warp % 2 * 32 + lane % 16, lane / 16);
    const u32 b_first = shared_address(stage) + PIXELS + offset(warp / 2 * 64 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < SLICE / 16; ++step) {
      u32 a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], (a_first ^ step * 32) + m * 16 * 64);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        u32 b[4];
        ldmatrix_x4(b, (b_first ^ step * 32) + n * 16 * 64);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(sums[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  // Calls f(row, column, sums of this column and the next) for each pair of sums that this thread holds.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float pair[2] = {sums[m][n][2 * h], sums[m][n][2 * h + 1]};
          f(warp % 2 * 32 + m * 16 + h * 8 + lane / 4, warp / 2 * 64 + n * 8 + lane % 4 * 2, pair);
        }
      }
    }
  }
};

struct Bf16Dw {
  using T = bf16;
  static constexpr int ROWS = 64, COLUMNS = 256, APART = RUN / 2;  // APART: between the halves of a thread's elements
  static constexpr int P_PITCH = ROWS + 8, D_PITCH = COLUMNS + 8;  // an odd number of 16-byte units
  static constexpr int PIXELS = SLICE * P_PITCH * 2, STAGE = PIXELS + SLICE * D_PITCH * 2;

  float sums[4][4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    bf16* to = reinterpret_cast<bf16*>(stage) + threadIdx.x / 8 * P_PITCH + threadIdx.x % 8 * RUN;
    *reinterpret_cast<Words<16>*>(to) = pack<bf16>(x);
  }
  __device__ static __forceinline__ void load_dy(unsigned char* stage, const T* dy, u32 row, u32 rows, u32 column, u32 cols,
                                                 bool vector) {
    load_tile<SLICE, COLUMNS>(dy, row, rows, column, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * D_PITCH + c) * 2; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 p_base = shared_address(stage) + (lane % 16 * P_PITCH + warp % 2 * 32 + lane / 16 * 8) * 2;
    const u32 d_base = shared_address(stage) + PIXELS +
                       ((lane % 8 + lane / 16 * 8) * D_PITCH + warp / 2 * 64 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int step = 0; step < SLICE / 16; ++step) {
      u32 b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) ldmatrix_x4_trans(b[n], p_base + (step * 16 * P_PITCH + n * 16) * 2);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        u32 a[4];
        ldmatrix_x4_trans(a, d_base + (step * 16 * D_PITCH + m * 16) * 2);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          mma_bf16(sums[m][2 * n], a, b[n][0], b[n][1]);
          mma_bf16(sums[m][2 * n + 1], a, b[n][2], b[n][3]);
        }
      }
    }
  }
  // Calls f(embedding column, k, sums of this k and the next) for each pair of sums that this thread holds.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float pair[2] = {sums[m][n][2 * h], sums[m][n][2 * h + 1]};
          f(warp / 2 * 64 + m * 16 + h * 8 + lane / 4, warp % 2 * 32 + n * 8 + lane % 4 * 2, pair);
        }
      }
    }
  }
};

// ---- f32 product: a thread computes 4 rows and 4 columns ----

struct F32Fwd {
  using T = float;
  static constexpr int ROWS = 64, COLUMNS = 64, SIDE = 1;
  static constexpr int PITCH = SLICE + 4;  // an odd number of 16-byte units
  static constexpr int PIXELS = ROWS * PITCH * 4, STAGE = PIXELS + COLUMNS * PITCH * 4;

  float sums[4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    store_vector(reinterpret_cast<float*>(stage) + threadIdx.x / 4 * PITCH + threadIdx.x % 4 * RUN, x);
  }
  __device__ static __forceinline__ void load_weights(unsigned char* stage, const T* w, u32 row, u32 rows, u32 k, u32 cols,
                                                      bool vector) {
    load_tile<COLUMNS, SLICE>(w, row, rows, k, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * PITCH + c) * 4; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const float* a_tile = reinterpret_cast<const float*>(stage) + threadIdx.x / 16 * 4 * PITCH;
    const float* b_tile = reinterpret_cast<const float*>(stage + PIXELS) + threadIdx.x % 16 * PITCH;
#pragma unroll
    for (int k = 0; k < SLICE; k += 4) {
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_vector(a_tile + i * PITCH + k, a[i]);
        load_vector(b_tile + i * 16 * PITCH + k, b[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[i][j] = __fmaf_rn(a[i][l], b[j][l], sums[i][j]);
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float one[1] = {sums[i][j]};
        f(threadIdx.x / 16 * 4 + i, threadIdx.x % 16 + j * 16, one);
      }
    }
  }
};

struct F32Dw {
  using T = float;
  static constexpr int ROWS = 64, COLUMNS = 64, PITCH = 64, APART = 32;
  static constexpr int PIXELS = SLICE * PITCH * 4, STAGE = 2 * PIXELS;

  float sums[4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    // The first four pixels of eight threads are stored side by side, then their second four. With all eight pixels
    // of a thread side by side, threads four apart would use the same banks.
    float* to = reinterpret_cast<float*>(stage) + threadIdx.x / 8 * PITCH + threadIdx.x % 8 * 4;
    const float first[4] = {x[0], x[1], x[2], x[3]}, second[4] = {x[4], x[5], x[6], x[7]};
    store_vector(to, first);
    store_vector(to + 32, second);
  }
  __device__ static __forceinline__ void load_dy(unsigned char* stage, const T* dy, u32 row, u32 rows, u32 column, u32 cols,
                                                 bool vector) {
    load_tile<SLICE, COLUMNS>(dy, row, rows, column, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * PITCH + c) * 4; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const float* p_tile = reinterpret_cast<const float*>(stage) + threadIdx.x % 16 * 4;
    const float* d_tile = reinterpret_cast<const float*>(stage + PIXELS) + threadIdx.x / 16 * 4;
#pragma unroll 8
    for (int n = 0; n < SLICE; ++n) {
      float a[4], b[4];
      load_vector(d_tile + n * PITCH, a);
      load_vector(p_tile + n * PITCH, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = __fmaf_rn(a[i], b[j], sums[i][j]);
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const float pair[2] = {sums[i][j], sums[i][j + 1]};
        f(threadIdx.x / 16 * 4 + i, threadIdx.x % 16 * 4 + j, pair);
      }
    }
  }
};
