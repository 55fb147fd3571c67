// The base-2 exponential that softmax kernels use. Source: PTX ISA 9.0, chapter 9.7.3.21.
#pragma once

// Returns 2^x with a relative error of about 2^-22. Subnormal results become 0; 2^-inf is 0 and 2^0 is exactly 1.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
