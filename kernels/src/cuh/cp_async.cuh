// Asynchronous copies from global to shared memory (sm_80). PTX ISA 9.0, chapter 9.7.9.25.3.
//
// A thread sees its own copies after cp_async_wait; other threads see them after a barrier that follows it. Of
// `bytes` bytes, `valid` are copied and the rest is written as zeros; with `valid` = 0 the source is not read but
// must be a valid address.
#pragma once

#include "cuh/base.cuh"

// Copies 16 bytes through L2 only. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global, u32 valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// 8 bytes.
__device__ __forceinline__ void cp_async_8(u32 shared, const void* global, u32 valid = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// 4 bytes.
__device__ __forceinline__ void cp_async_4(u32 shared, const void* global, u32 valid = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the newest `N` groups of this thread are complete.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
