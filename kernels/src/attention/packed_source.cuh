// Packed tensors as the source of the keys of the forward pass on sm_90a.
#pragma once

#include "attention/forward_producer.cuh"
#include "attention/packed_tiles.cuh"

// A Source (see forward_producer.cuh) whose keys are the keys of the shared prefix, then the sequence's own. The warp
// itself copies blocks in which the prefix ends, and blocks of values in which the sequence ends; tensor copies load
// the other blocks. POLICY: cache hint of their lines in L2 (CachePolicy).
template <u64 POLICY = EVICT_LAST.bits>
struct PackedSource {
  using Params = FwdParams;
  static constexpr bool ALWAYS_CAUSAL = false;
  TokenRange prefix = {0, 0};  // of the sequence that was found last

  __device__ static __forceinline__ bool is_causal(const FwdParams& p) { return p.causal != 0; }
  template <int POSITIONS>
  __device__ static __forceinline__ PositionTiles<POSITIONS> tiles(const FwdParams& p) {
    return packed_tiles<POSITIONS>(p);
  }

  template <int POSITIONS>
  __device__ __forceinline__ bool find(const FwdParams& p, u32 number, PositionTile& tile) {
    return find_packed<POSITIONS>(p, number, tile, prefix);
  }

  template <int HEAD_DIM>
  __device__ __forceinline__ void copy(const FwdParams& p, const PositionTile& tile, int kv_head, int first, bool values,
                                       const KeySlot& slot) const {
    const int beyond = first + ROW_BLOCK_KEYS;
    if ((first < prefix.count && beyond > prefix.count) || (values && beyond > tile.end)) {
      const u64 stride = static_cast<u64>(p.kv_heads) * HEAD_DIM, head = static_cast<u64>(kv_head) * HEAD_DIM;
      const u64 own = static_cast<u64>(static_cast<long long>(tile.shift)) * stride + head;
      const PackedKeys rows = {prefix.first * stride + head, own, stride, prefix.count};
      copy_block_by_warp<HEAD_DIM>(slot.address, global<const bf16>(values ? p.v : p.k), rows, first, tile.end);
      if (slot.leads) mbarrier_arrive(slot.full);
    } else if (slot.leads) {
      mbarrier_arrive_expecting(slot.full, ForwardShared<HEAD_DIM>::SLOT);
      const int token = first + (first < prefix.count ? prefix.first : tile.shift);
      copy_head<HEAD_DIM, ROW_BLOCK_KEYS>(slot.address, values ? &p.v_map : &p.k_map, slot.full, token, kv_head,
                                          CachePolicy{POLICY});
    }
  }

  __device__ static __forceinline__ void write_padding(const FwdParams&) {}
};
