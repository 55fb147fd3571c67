// Arithmetic that C++ has no name for.
#pragma once

#include "cuh/base.cuh"

// a / b to two units in the last place at any magnitude.
__device__ __forceinline__ float divide(float a, float b) {
  float quotient;
  asm("div.full.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
  return quotient;
}

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return divide(1.0f, 1.0f + expf(-x)); }
