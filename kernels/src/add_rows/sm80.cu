// Adds rows at an index: y[index[i]] += x[i].
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32, one rounding to T at the store. An index outside 0 .. n adds
// nothing. Grid: rows.cuh; up to 256 threads per row, 16 bytes per access if rows are a multiple of 16 bytes.
// Memory-bound.

#include "cuh/rows.cuh"

template <class T>
__device__ __forceinline__ void add_rows(const Params& p) {
  constexpr int V = VECTOR<T>;
  const u64 i = row_of_thread();
  if (i >= p.m) return;
  const int row = global<const int>(p.index)[i];
  if (row < 0 || static_cast<u32>(row) >= p.n) return;
  const bool vector = p.cols % V == 0 && aligned16(p.x, p.y);
  const T* x = global<const T>(p.x) + i * p.cols;
  T* y = global<T>(p.y) + static_cast<u64>(row) * p.cols;
#pragma unroll 4
  for (u32 at = threadIdx.x * V; at < p.cols; at += blockDim.x * V) {
    float a[V], b[V];
    load_elements(x, at, p.cols, vector, a);
    load_elements(y, at, p.cols, vector, b);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] += b[j];
    store_elements(y, at, p.cols, vector, a);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Params p)

KERNEL(add_rows_f32) { add_rows<float>(p); }
KERNEL(add_rows_bf16) { add_rows<bf16>(p); }
