// Tensor copies between global and shared memory (TMA, sm_90), and what a producer warp and its consumers need beside
// the mbarriers of bulk_copy.cuh. Source: PTX ISA 9.0, chapters 9.7.9.27 (cp.async.bulk.tensor), 9.7.13.15 (mbarrier)
// and 9.7.13.14 (elect.sync).
//
// A tensor map describes an array in global memory, the box that one copy moves, and how the box lies in shared memory.
// It is a parameter of the kernel (Stage::tensor_maps). Coordinates are elements, innermost dimension first; elements
// outside of the array are loaded as 0 and are not stored. A box in shared memory is aligned to 128 bytes, with a
// swizzle of 128 bytes to 1024.
//
//   load:  the mbarrier counts the bytes of the whole box, also those outside of the array
//   store: threads write shared memory; each: fence_async_proxy(); barrier of the threads;
//          one thread: tensor_store(...); tensor_store_commit(); tensor_store_wait_read<0>() before the next write
#pragma once

#include "cuh/base.cuh"
#include "cuh/bulk_copy.cuh"

// Initialises an mbarrier whose phases end after `arrivals` arrivals.
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Arrives at the current phase of an mbarrier of this block.
__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the current phase of the mbarrier at the same offset in block `rank` of the cluster. The instruction
// leaves out its qualifiers, so the default .release.cluster applies: if .release.cluster is written out, ptxas adds a
// fence of all memory (MEMBAR.ALL.GPU).
__device__ __forceinline__ void mbarrier_arrive_of_block(u32 barrier, u32 rank) {
  asm volatile(
      "{\n\t.reg .b32 other;\n\tmapa.shared::cluster.u32 other, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [other];\n\t}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Returns true in one thread of the warp, always the same one. All threads of the warp call it.
__device__ __forceinline__ bool elect_one() {
  u32 elected;
  asm volatile("{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\tselp.u32 %0, 1, 0, p;\n\t}" : "=r"(elected));
  return elected != 0;
}

// A position in a ring buffer of SLOTS slots.
template <int SLOTS>
struct RingPosition {
  int slot = 0;
  u32 parity = 0;

  template <int N>
  __device__ __forceinline__ void advance() {
    slot += N;
    if (slot >= SLOTS) {
      slot -= SLOTS;
      parity ^= 1;
    }
  }
};

// Cache hints for a copy's lines in L2: the bits that `createpolicy.fractional` returns for a fraction of 1.
struct CachePolicy {
  u64 bits;
};
constexpr CachePolicy EVICT_NORMAL{0x1000000000000000ull};
constexpr CachePolicy EVICT_FIRST{0x12F0000000000000ull};
constexpr CachePolicy EVICT_LAST{0x14F0000000000000ull};

// Prefetches a tensor map, a parameter of the kernel, into the descriptor cache.
__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// tensor_copy: starts the copy of the box at these coordinates to shared memory; the mbarrier counts its bytes.
// tensor_copy_multicast: the same, to this shared address of each block of the cluster whose bit is set in `blocks`.
// In each of these blocks, the mbarrier at the same shared address counts the bytes. tensor_store: starts the copy of
// a box of shared memory to these coordinates. tensor_add: starts the addition of a box of shared memory to the
// array; f32 sums are rounded to nearest.
#define TENSOR_COPIES(RANK, COORDINATES, LOADED, STORED, OPERANDS)                                                    \
  __device__ __forceinline__ void tensor_copy(u32 shared, const void* map, u32 barrier, COORDINATES) {                \
    asm volatile("cp.async.bulk.tensor." RANK                                                                         \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" LOADED "}], [%2];" ::       \
                     "r"(shared), "l"(map), "r"(barrier), "l"(u64{0}), "h"(u16{0}), OPERANDS                          \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  __device__ __forceinline__ void tensor_copy(u32 shared, const void* map, u32 barrier, COORDINATES,                  \
                                              CachePolicy policy) {                                                   \
    asm volatile("cp.async.bulk.tensor." RANK                                                                         \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {" LOADED       \
                 "}], [%2], %3;" ::"r"(shared), "l"(map), "r"(barrier), "l"(policy.bits), "h"(u16{0}), OPERANDS       \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  __device__ __forceinline__ void tensor_copy_multicast(u32 shared, const void* map, u32 barrier, COORDINATES,        \
                                                        u32 blocks, CachePolicy policy) {                             \
    asm volatile("cp.async.bulk.tensor." RANK                                                                         \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "       \
                 "[%0], [%1, {" LOADED "}], [%2], %4, %3;" ::"r"(shared), "l"(map), "r"(barrier),                     \
                 "l"(policy.bits), "h"(static_cast<u16>(blocks)), OPERANDS                                            \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  __device__ __forceinline__ void tensor_store(const void* map, u32 shared, COORDINATES) {                            \
    asm volatile("cp.async.bulk.tensor." RANK ".global.shared::cta.tile.bulk_group [%0, {" STORED "}], [%1];" ::      \
                     "l"(map), "r"(shared), "l"(u64{0}), OPERANDS                                                     \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  __device__ __forceinline__ void tensor_store(const void* map, u32 shared, COORDINATES, CachePolicy policy) {        \
    asm volatile("cp.async.bulk.tensor." RANK                                                                         \
                 ".global.shared::cta.tile.bulk_group.L2::cache_hint [%0, {" STORED "}], [%1], %2;" ::"l"(map),       \
                 "r"(shared), "l"(policy.bits), OPERANDS                                                              \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  __device__ __forceinline__ void tensor_add(const void* map, u32 shared, COORDINATES) {                              \
    asm volatile("cp.reduce.async.bulk.tensor." RANK ".global.shared::cta.add.tile.bulk_group [%0, {" STORED          \
                 "}], [%1];" ::"l"(map), "r"(shared), "l"(u64{0}), OPERANDS                                           \
                 : "memory");                                                                                         \
  }
#define TWO_COORDINATES int c0, int c1
#define THREE_COORDINATES TWO_COORDINATES, int c2
#define FOUR_COORDINATES THREE_COORDINATES, int c3
#define TWO_OPERANDS "r"(c0), "r"(c1)
#define THREE_OPERANDS TWO_OPERANDS, "r"(c2)
#define FOUR_OPERANDS THREE_OPERANDS, "r"(c3)
TENSOR_COPIES("2d", TWO_COORDINATES, "%5, %6", "%3, %4", TWO_OPERANDS)
TENSOR_COPIES("3d", THREE_COORDINATES, "%5, %6, %7", "%3, %4, %5", THREE_OPERANDS)
TENSOR_COPIES("4d", FOUR_COORDINATES, "%5, %6, %7, %8", "%3, %4, %5, %6", FOUR_OPERANDS)
#undef TWO_COORDINATES
#undef THREE_COORDINATES
#undef FOUR_COORDINATES
#undef TWO_OPERANDS
#undef THREE_OPERANDS
#undef FOUR_OPERANDS
#undef TENSOR_COPIES

// Makes one group of all stores and additions that this thread started since its previous group.
__device__ __forceinline__ void tensor_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all groups of this thread except the newest N have read their shared memory.
template <int N>
__device__ __forceinline__ void tensor_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// Waits until all groups of this thread except the newest N are complete.
template <int N>
__device__ __forceinline__ void tensor_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
