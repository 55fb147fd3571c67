// Bulk copies from global to shared memory and the mbarriers that count their bytes (sm_90). Source: PTX ISA 9.0,
// chapters 9.7.9.25.5 (cp.async.bulk), 9.7.13.15 (mbarrier) and 9.7.13.4 (fence.proxy.async).
//
// An mbarrier goes through phases. A phase ends when the expected number of arrivals has happened and all bytes that
// they announced have been copied; waiting for it makes the bytes visible to the thread that waits. Phases have the
// parities 0, 1, 0, …
//
//   one thread: init(barrier, 1); fence_mbarrier_init; barrier of the threads that use it
//   per phase:  one thread: arrive_expecting(barrier, bytes); threads: copy(to, from, n, barrier); all: wait(parity)
//
// Functions take the addresses of mbarriers and destinations in shared memory (shared_address).
//
// Copies go through the async proxy. Before a copy overwrites bytes that threads accessed with ordinary loads and
// stores, these threads synchronise with the thread that issues it, which then calls fence_async_proxy.
#pragma once

#include "cuh/base.cuh"
#include "cuh/mma.cuh"

// Initialises an mbarrier, 8 bytes at a multiple of 8, whose phases end after one arrival.
__device__ __forceinline__ void mbarrier_init(u32 barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

// Makes this thread's initialisations of mbarriers visible to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders earlier accesses to shared memory by generic instructions before the copies that this thread issues after
// the fence.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Arrives at the mbarrier's current phase, which then also waits for `bytes` bytes of copies.
__device__ __forceinline__ void mbarrier_arrive_expecting(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase with this parity. No later phase of the same parity may have ended.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// Starts the copy of `bytes` bytes to shared memory, which the mbarrier counts. Addresses and bytes are multiples of
// 16, and bytes is not 0.
__device__ __forceinline__ void bulk_copy(u32 shared, const void* global, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}
