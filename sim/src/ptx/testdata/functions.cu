#include <cstdio>
#include <cassert>
// Compiled by `nvcc -std=c++17 -ptx -arch=sm_80 -lineinfo functions.cu -o functions.ptx`; header paths are shortened.
struct S { int a; const char* name; float* p; double d; };
struct __attribute__((packed)) P { char a; float* p; };
__constant__ float table[4][3] = {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}};
__device__ float data[16] = {1.5f, -2.0f};
__device__ S s = {3, "hello", data + 2, 2.5};
__device__ P packed = {1, data + 3};
extern __shared__ float dyn[];
typedef float (*fn)(float);
__device__ float f1(float x) { return x + 1; }
__device__ float f2(float x) { return x * 2; }
__device__ fn fns[2] = {f1, f2};
__device__ __noinline__ float2 swapped(float2 x, int n) {
  if (n > 3) return make_float2(x.y, x.x);
  return x;
}
__device__ __forceinline__ float inner(float x) { return x * x + data[1]; }
__device__ __forceinline__ float outer(float x) { return inner(x) / 3; }
template <int N> __global__ void __launch_bounds__(256, 2) k(float* out, const int* in, int n, S arg) {
  __shared__ float tile[32][33];
  int i = threadIdx.x;
  float loc[16];
  for (int j = 0; j < 16; j++) loc[j] = in[j * n];
  loc[in[i] & 15] = 4;
  tile[i / 32][i & 31] = loc[in[i + 1] & 15];
  __syncthreads();
  assert(n > 3);
  if (i == 0) printf("hi %d\n", n);
  switch (in[i]) {
    case 0: out[i] = dyn[3]; break;
    case 1: out[i] = table[n][1]; break;
    case 2: __trap();
    case 3: out[i] = fns[n & 1](2.0f) + s.p[0]; return;
    default: out[i] = arg.d + clock64() + swapped(make_float2(1, i), n).x + tile[1][2] + outer(out[i]) + packed.a;
  }
  for (int j = 0; j < 2; j++)
    asm volatile("{ .reg .pred P1; LAB_WAIT: setp.eq.u32 P1, %0, 4; @P1 bra DONE; bra LAB_WAIT; DONE: }" ::"r"(n + N));
}
template __global__ void k<3>(float*, const int*, int, S);
