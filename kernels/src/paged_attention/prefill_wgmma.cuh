// Prefill and chunked prefill on sm_90a, bf16, for head_dim 64, 80 and 128: the device code of the forward pass for
// training (attention/forward_wgmma.cuh) with keys from the pages of the KV cache. So a row is bit-identical to the
// same row in training, however the prompt is divided into chunks.
//
//   positions of a sequence       0 .. kv_len; its queries, the new tokens, are the last ones
//   a block of 128 keys           rows of one page, or several pages: one box for all columns of 128 rows, or for each
//                                 page one box for each group of columns, of which rows follow each other in shared
//                                 memory across pages
//   a page that is not reached    is not read; its rows in shared memory are zeros
//   values where a sequence ends  rows by cp.async, zeros after the end: slots of the cache may hold anything
//   a sequence without keys       is padding; its output is written as zeros
#pragma once

#include "attention/forward_wgmma.cuh"
#include "cuh/wgmma.cuh"

// The keys of one sequence and key head in the pages of the cache.
struct PagedKeys {
  const int* pages;   // of the sequence
  int shift;          // a page has 1 << shift rows
  u64 stride, first;  // elements of a row, and the first one of the head

  // Returns the row of the cache that has this key.
  __device__ __forceinline__ u32 row(int key) const {
    return (static_cast<u32>(pages[key >> shift]) << shift) + (key & ((1 << shift) - 1));
  }
  __device__ __forceinline__ u64 head(int key) const { return row(key) * stride + first; }
};

// Finds tiles and copies keys and values from the pages of the cache: the Source argument of
// attention/forward_producer.cuh.
struct PagedSource {
  using Params = ::Params;
  static constexpr bool ALWAYS_CAUSAL = true;
  const int* pages = nullptr;  // of the sequence that was found last

  __device__ static __forceinline__ bool is_causal(const Params&) { return true; }
  template <int POSITIONS>
  __device__ static __forceinline__ PositionTiles<POSITIONS> tiles(const Params& p) {
    return {p, min(p.tokens, p.max_kv_len), true};
  }

  template <int POSITIONS>
  __device__ __forceinline__ bool find(const Params& p, u32 number, PositionTile& tile) {
    return tiles<POSITIONS>(p).find(p, number, tile, [&](int sequence, int queries) {
      pages = global<const int>(p.block_tables) + static_cast<u64>(sequence) * p.max_blocks;
      return global<const int>(p.kv_lens)[sequence] - queries;
    });
  }

  template <int HEAD_DIM>
  __device__ __forceinline__ void copy(const Params& p, const PositionTile& tile, int kv_head, int first, bool values,
                                       const KeySlot& slot) const {
    using S = ForwardShared<HEAD_DIM>;
    const int shift = 31 - __clz(p.page_tokens);
    const u64 stride = static_cast<u64>(p.kv_heads) * HEAD_DIM, head = static_cast<u64>(kv_head) * HEAD_DIM;
    const PagedKeys keys = {pages, shift, stride, head};
    if (values && first + ROW_BLOCK_KEYS > tile.end) {
      copy_block_by_warp<HEAD_DIM>(slot.address, global<const bf16>(p.v_cache), keys, first, tile.end);
      if (slot.leads) mbarrier_arrive(slot.full);
      return;
    }
    // Lane i finds the row of the cache where box i begins. Boxes beyond the last key get a negative row, outside of
    // the cache, so that their copies read nothing and write zeros.
    const int rows = min(1 << shift, ROW_BLOCK_KEYS), lane = threadIdx.x % 32, key = first + lane * rows;
    const int row = lane * rows < ROW_BLOCK_KEYS && key < tile.end ? static_cast<int>(keys.row(key)) : -rows;
    const void* const map = values ? &p.v_map : &p.k_map;
    if (slot.leads) mbarrier_arrive_expecting(slot.full, S::SLOT);
#pragma unroll 1
    for (int box = 0; box * rows < ROW_BLOCK_KEYS; ++box) {
      const int at = __shfl_sync(0xffffffffu, row, box);
      if (slot.leads) {
        const u32 to = slot.address + box * rows * S::SWIZZLE;
        const int groups = rows == ROW_BLOCK_KEYS ? 1 : HEAD_DIM / S::COLUMNS;
#pragma unroll 1
        for (int group = 0; group < groups; ++group) {
          tensor_copy(to + group * S::GROUP, map, slot.full, 0, at, group, kv_head, EVICT_LAST);
        }
      }
    }
  }

  __device__ static __forceinline__ void write_padding(const Params& p) {
    const int* const cu_seqlens = global<const int>(p.cu_seqlens);
    const u64 words = static_cast<u64>(p.heads) * p.head_dim / 2;
    for (u32 n = blockIdx.x; n < p.seqs; n += gridDim.x) {
      if (global<const int>(p.kv_lens)[n] != 0) continue;
      const u64 end = cu_seqlens[n + 1] * words;
#pragma unroll 1
      for (u64 i = cu_seqlens[n] * words + threadIdx.x; i < end; i += blockDim.x) global<u32>(p.o)[i] = 0;
    }
  }
};
