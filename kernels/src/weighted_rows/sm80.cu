// Weighted sums of rows, by lists: y[i] = sum over entries e of list i of weight[e] * x[index[e]], plus add[i].
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32, one fused multiply-add for each entry, in the order of the
// list; the sum rounds to T once, and T(sum) + add once more.
//
// Grid: blockDim.x threads compute a row of y and a block blockDim.y rows (plan_rows in mod.rs). A thread has 16 bytes
// of y at a time and adds up the entries of the list in registers. Memory-bound.

#include "cuh/rows.cuh"

template <int V, class X, class T>
__device__ __forceinline__ void sum_list(const Params& p, u64 row) {
  const int *offsets = global<const int>(p.offsets), *index = global<const int>(p.index);
  const float* weight = global<const float>(p.weight);
  const int begin = offsets[row], end = offsets[row + 1];
  for (u32 c = threadIdx.x * V; c < p.cols; c += blockDim.x * V) {
    const X* x = global<const X>(p.x) + c;
    float sum[V] = {}, e[V];
#pragma unroll 4
    for (int entry = begin; entry < end; ++entry) {
      load_vector(x + static_cast<u64>(index[entry]) * p.cols, e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] = fmaf(weight[entry], e[j], sum[j]);
    }
    const u64 at = row * p.cols + c;
    if (p.add != 0) {
      load_vector(global<const T>(p.add) + at, e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] = rounded<T>(sum[j]) + e[j];
    }
    store_vector(global<T>(p.y) + at, sum);
  }
}

template <class X, class T>
__device__ __forceinline__ void weighted_rows(const Params& p) {
  const u64 row = row_of_thread();
  if (row >= p.rows) return;
  if (p.cols % VECTOR<T> == 0 && aligned16(p.x, p.add, p.y)) {
    sum_list<VECTOR<T>, X, T>(p, row);
  } else {
    sum_list<1, X, T>(p, row);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Params p)

KERNEL(weighted_rows_f32) { weighted_rows<float, float>(p); }
KERNEL(weighted_rows_bf16) { weighted_rows<bf16, bf16>(p); }
KERNEL(weighted_rows_bf16_f32) { weighted_rows<bf16, float>(p); }
