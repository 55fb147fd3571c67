// Forward pass on sm_90a for sequences of at most 64 tokens, such as the windows of a vision tower with head_dim 80.
// A block of threads, one warpgroup, computes one sequence and head, so a tile has no queries or keys of another
// sequence. Several blocks share a multiprocessor: the copies of one overlap the products of the others.
//
//   copy q and k; copy v                # rows after the end of the sequence are zeros
//   s = q k^T; mask; p = softmax(s)
//   o = p v; store
//
// The sums of a row are those of forward_wgmma.cuh, of which one block of 128 keys is left (row_state.cuh): its last 64
// keys have weight 0. So a sequence has the same bits in a launch with longer sequences, which takes that kernel.
#pragma once

#include "attention/forward_wgmma.cuh"
#include "cuh/cp_async.cuh"

constexpr int WINDOW_KEYS = 64;
constexpr int WINDOW_THREADS = 128;

// Copies `count` rows of a head, `stride` elements apart, to a tile of 64 rows; the other rows become zeros. Two
// threads copy a row; the 16-byte chunks of four rows are contiguous in shared memory, so banks do not conflict.
template <int HEAD_DIM>
__device__ __forceinline__ void copy_window(u32 tile, const bf16* head, u64 stride, int count) {
  using S = ForwardShared<HEAD_DIM>;
  static_assert(S::COLUMNS == 16, "two chunks in a row of a group");
  const int row = threadIdx.x / 2, half = threadIdx.x % 2;
  const bool valid = row < count;
  const bf16* const source = head + (valid ? row * stride : 0) + half * 8;
#pragma unroll
  for (int group = 0; group < HEAD_DIM / 16; ++group) {
    cp_async_16(tile + S::template offset<S::GROUP / 2>(row, 2 * group + half), source + group * 16, valid ? 16 : 0);
  }
}

template <int HEAD_DIM>
__device__ __forceinline__ void forward_windows(const FwdParams& p) {
  using S = ForwardShared<HEAD_DIM>;
  extern __shared__ __align__(1024) char window_memory[];
  const u32 sequence = blockIdx.x / p.heads, head = blockIdx.x % p.heads, kv_head = head / (p.heads / p.kv_heads);
  const int first = global<const int>(p.cu_seqlens)[sequence];
  const int count = global<const int>(p.cu_seqlens)[sequence + 1] - first;
  if (count == 0) return;
  const u64 stride = static_cast<u64>(p.heads) * HEAD_DIM, kv_stride = static_cast<u64>(p.kv_heads) * HEAD_DIM;
  const u64 at = first * stride + head * HEAD_DIM, kv_at = first * kv_stride + kv_head * HEAD_DIM;
  const u32 q = shared_address(window_memory), k = q + S::QUERIES, v = k + S::QUERIES;
  copy_window<HEAD_DIM>(q, global<const bf16>(p.q) + at, stride, count);
  copy_window<HEAD_DIM>(k, global<const bf16>(p.k) + kv_at, kv_stride, count);
  cp_async_commit();
  copy_window<HEAD_DIM>(v, global<const bf16>(p.v) + kv_at, kv_stride, count);
  cp_async_commit();

  float s[WINDOW_KEYS / 2], o[HEAD_DIM / 2];
  cp_async_wait<1>();
  fence_async_proxy();
  __syncthreads();
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 16; ++n) {
    const u64 step = operand_layout<S::SWIZZLE>() + n * (S::GROUP / 2 / 16);
    const u64 of_q = step + operand_address(q), of_k = step + operand_address(k);
    if (n == 0) Wgmma<WINDOW_KEYS>::ss_new<0, K_MAJOR, K_MAJOR>(s, of_q, of_k);
    else Wgmma<WINDOW_KEYS>::ss<0, K_MAJOR, K_MAJOR>(s, of_q, of_k, 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(s);

  const int id = threadIdx.x, row = id / 32 * 16 + id % 32 / 4, quad = id % 4;
#pragma unroll
  for (int i = 0; i < WINDOW_KEYS / 2; ++i) {
    const int key = 8 * (i / 4) + 2 * quad + i % 2, query = row + (i & 2 ? 8 : 0);
    if (key >= (p.causal ? min(count, query + 1) : count)) s[i] = minus_infinity();
  }
  RowPair rows;
  rows.add<WINDOW_KEYS, true>(s, p.score_factor);
  u32 weights[WINDOW_KEYS / 16][4];
#pragma unroll
  for (int i = 0; i < WINDOW_KEYS / 4; ++i) weights[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);

  cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < WINDOW_KEYS / 16; ++n) {
    const u64 step = (operand_layout<S::SWIZZLE>(S::GROUP / 2) | operand_address(v)) + n * S::SWIZZLE;
    if (n == 0) Wgmma<HEAD_DIM>::template rs_new<0, MN_MAJOR>(o, weights[n], step);
    else Wgmma<HEAD_DIM>::template rs<0, MN_MAJOR>(o, weights[n], step, 1);
  }
  wgmma_commit();
  rows.add_lanes();
  wgmma_wait<0>();
  keep_registers(o);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = row + 8 * r;
    const bool valid = query < count;
    if (valid && quad == 0 && p.lse != 0) {
      const u64 value = (static_cast<u64>(first) + query) * p.heads + head;
      global<float>(p.lse)[value] = log_sum(rows.m[r], rows.l[r], p.score_factor);
    }
    store_row<HEAD_DIM>(global<bf16>(p.o) + at + query * stride, o, r, __frcp_rn(rows.l[r]), quad, valid);
  }
}
