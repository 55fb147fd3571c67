// Matrix products with mma.sync, for GPUs without wgmma, and a simple version of sm90a.cuh to compare with. A block
// computes 64 x 64 elements of C, each warp 16 rows of them. The block copies 64 k of A and B to shared memory, element
// by element, and multiplies them. Each element has one accumulator, and k ascends in steps of 16, so the results have
// the bits of sm90a.cuh.
#pragma once

#include "cuh/base.cuh"
#include "cuh/mma.cuh"
#include "cuh/wgmma.cuh"
#include "matmul/epilogue.cuh"

namespace gemm {

constexpr int PLAIN_SIDE = 64;
// Distance between rows in shared memory, in elements: 144 bytes, with which ldmatrix has no bank conflicts.
constexpr int PLAIN_PITCH = PLAIN_SIDE + 8;

// Copies ROWS rows of an operand with `rows` rows, from row `first` on, and their elements k .. k + 64 to shared memory,
// with 0 for elements beyond its ends.
template <int MAJOR, int ROWS = PLAIN_SIDE>
__device__ __forceinline__ void copy_plainly(const bf16* from, u32 rows, u32 length, u32 first, u32 k, bf16* to) {
  for (int i = threadIdx.x; i < ROWS * PLAIN_SIDE; i += 128) {
    const u32 row = MAJOR == K_MAJOR ? i / PLAIN_SIDE : i % ROWS;
    const u32 column = MAJOR == K_MAJOR ? i % PLAIN_SIDE : i / ROWS;
    const u64 r = first + row, l = k + column;
    bf16 x{0};
    if (r < rows && l < length) x = from[MAJOR == K_MAJOR ? r * length + l : l * rows + r];
    to[row * PLAIN_PITCH + column] = x;
  }
}

// GATED: the first half of a block's columns is that of gate, the other half that of up (tile.cuh).
template <class C, int A_MAJOR, int B_MAJOR, bool GATED = false>
__device__ __forceinline__ void multiply_plainly(const Params& p) {
  __shared__ __align__(16) bf16 a[PLAIN_SIDE * PLAIN_PITCH], b[PLAIN_SIDE * PLAIN_PITCH];
  const u32 columns = ceil_div<u32>(p.n, PLAIN_SIDE);
  const u32 row = blockIdx.x / columns * PLAIN_SIDE, column = blockIdx.x % columns * PLAIN_SIDE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sums[PLAIN_SIDE / 8][4] = {};
  for (u32 k = 0; k < p.k; k += PLAIN_SIDE) {
    copy_plainly<A_MAJOR>(global<bf16>(p.a), p.m, p.k, row, k, a);
    if constexpr (GATED) {
      copy_plainly<B_MAJOR, PLAIN_SIDE / 2>(global<bf16>(p.b), p.n / 2, p.k, column / 2, k, b);
      copy_plainly<B_MAJOR, PLAIN_SIDE / 2>(global<bf16>(p.b2), p.n / 2, p.k, column / 2, k,
                                            b + PLAIN_SIDE / 2 * PLAIN_PITCH);
    } else {
      copy_plainly<B_MAJOR>(global<bf16>(p.b), p.n, p.k, column, k, b);
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < PLAIN_SIDE; step += 16) {
      u32 x[4];
      ldmatrix_x4(x, shared_address(&a[(warp * 16 + lane % 16) * PLAIN_PITCH + step + lane / 16 * 8]));
#pragma unroll
      for (int j = 0; j < PLAIN_SIDE / 8; j += 2) {
        u32 y[4];
        ldmatrix_x4(y, shared_address(&b[(j * 8 + lane / 16 * 8 + lane % 8) * PLAIN_PITCH + step + lane / 8 % 2 * 8]));
        mma_bf16(sums[j], x, y[0], y[1]);
        mma_bf16(sums[j + 1], x, y[2], y[3]);
      }
    }
    __syncthreads();
  }
  float flat[PLAIN_SIDE / 2];
#pragma unroll
  for (int i = 0; i < PLAIN_SIDE / 2; ++i) flat[i] = sums[i / 4][i % 4];
  if constexpr (GATED) {
    store_directly<PLAIN_SIDE / 2, C>(Gated{}, p, flat, warp, lane, row, column / 2, p.n / 2);
  } else {
    store_directly<PLAIN_SIDE, C>(Output<C>(p), p, flat, warp, lane, row, column, p.n);
  }
}

}  // namespace gemm

#define PLAIN_GEMM(symbol, ...)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128) symbol(const __grid_constant__ Params p) {                        \
    gemm::multiply_plainly<__VA_ARGS__>(p);                                                                           \
  }
