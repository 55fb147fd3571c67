// Programmatic dependent launch: a launch whose blocks may start before the previous launch of the stream has ended
// (sm_90; Stage::programmatic). On earlier architectures the functions of this file do nothing, because launches run
// one after the other. Source: PTX ISA 9.0, "griddepcontrol".
//
// Before wait_for_previous_launch(), a kernel writes no global memory and reads only model weights. No launch that
// lets the next one start early writes model weights (kernels/device/src/cuda/gpu.rs). Every thread that accesses other
// global memory calls wait_for_previous_launch() first. Several launches of a stream may have started at the same
// time, but they end in order: a launch ends only after its own wait.
#pragma once

// Lets blocks of the next launch start as soon as all blocks of this launch have called this function or ended. The
// next launch then loads its weights while this launch computes.
__device__ __forceinline__ void let_next_launch_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the previous launch has ended and all that it wrote is visible.
__device__ __forceinline__ void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
