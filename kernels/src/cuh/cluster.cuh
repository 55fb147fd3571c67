// Clusters: blocks that run at the same time and access each other's shared memory (sm_90; Stage::cluster). Source: PTX
// ISA 9.0, chapters 5.1.7 and 9.7.13.4.
//
// A block may access the shared memory of another block only after a cluster barrier that both have reached. A block
// must not end before other blocks' last access to its shared memory.
#pragma once

#include "cuh/base.cuh"

// Arrives at the barrier of the cluster and waits for it; all threads of all blocks call it. Writes of a thread to
// shared memory of any block of the cluster before the barrier are visible to all threads after it. The barrier also
// orders the threads of one block.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Returns the number of this block in its cluster.
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Returns the address of this block's shared variable in block `rank` of the cluster.
__device__ __forceinline__ u32 shared_of_block(const void* variable, u32 rank) {
  const u32 own = static_cast<u32>(__cvta_generic_to_shared(variable));
  u32 other;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
  return other;
}

// Stores to an address that shared_of_block returned.
__device__ __forceinline__ void store_of_block(u32 address, u32 x) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ void store_of_block(u32 address, u64 x) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address), "l"(x) : "memory");
}
__device__ __forceinline__ void store_of_block(u32 address, int x) { store_of_block(address, static_cast<u32>(x)); }
__device__ __forceinline__ void store_of_block(u32 address, float x) { store_of_block(address, __float_as_uint(x)); }
__device__ __forceinline__ void store_of_block(u32 address, double x) {
  store_of_block(address, static_cast<u64>(__double_as_longlong(x)));
}

// Loads from an address that shared_of_block returned.
__device__ __forceinline__ u32 load_u32_of_block(u32 address) {
  u32 x;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ u64 load_u64_of_block(u32 address) {
  u64 x;
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(x) : "r"(address) : "memory");
  return x;
}

// Starts the copy of `bytes` bytes of this block's shared memory to the same address of block `rank` of the cluster.
// The mbarrier at the address `barrier` of that block counts them. Addresses and bytes are multiples of 16. Source: PTX
// ISA 9.0, chapter 9.7.9.25.5 (cp.async.bulk).
__device__ __forceinline__ void copy_to_block(u32 shared, u32 bytes, u32 barrier, u32 rank) {
  asm volatile(
      "{\n\t.reg .b32 to, counter;\n\tmapa.shared::cluster.u32 to, %0, %3;\n\t"
      "mapa.shared::cluster.u32 counter, %2, %3;\n\t"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%0], %1, [counter];\n\t}" ::"r"(
          shared),
      "r"(bytes), "r"(barrier), "r"(rank)
      : "memory");
}
