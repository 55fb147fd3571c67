// Asynchronous copies from global to shared memory (cp.async, sm_80). Source: PTX ISA 9.0, chapter 9.7.9.25.3.
//
// A thread sees the data of its own copies after cp_async_wait; other threads see them after a barrier that follows
// the wait. A copy writes 16, 8 or 4 bytes: `valid` bytes from the source, then zeros. With `valid` = 0 the source is
// not read, but it must be a valid address.
#pragma once

#include "cuh/base.cuh"

// Copies 16 bytes and caches them in L2 but not in L1. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global, u32 valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// Copies 8 bytes. Both addresses are multiples of 8.
__device__ __forceinline__ void cp_async_8(u32 shared, const void* global, u32 valid = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// Copies 4 bytes. Both addresses are multiples of 4.
__device__ __forceinline__ void cp_async_4(u32 shared, const void* global, u32 valid = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// Makes one commit group of all copies that this thread started since its previous group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all commit groups of this thread except the newest N are complete.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
