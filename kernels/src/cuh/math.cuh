// f32 constants and fast arithmetic: division, square root, sigmoid, SwiGLU.
#pragma once

#include "cuh/base.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000); }
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000); }

// Returns the larger of two numbers, NaN if one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float max;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(a), "f"(b));
  return max;
}

// Returns a / b with an error of at most 2 ulp for all inputs.
__device__ __forceinline__ float divide(float a, float b) {
  float quotient;
  asm("div.full.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
  return quotient;
}

// Returns the square root with an error of at most 1 ulp.
__device__ __forceinline__ float sqrt_approx(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return divide(1.0f, 1.0f + expf(-x)); }

// Returns gate / (1 + e^-gate) * up. Decode steps and training both call this function, so their results have the same
// bits.
__device__ __forceinline__ float gated(float gate, float up) {
  return __fmul_rn(divide(gate, __fadd_rn(1.0f, expf(-gate))), up);
}
