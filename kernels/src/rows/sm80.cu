// Moves rows by an index: gather y[i] = x[index[i]], scatter dst[index[i]] = src[i].
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: bits are copied. An index outside 0 .. n gathers zeros and
// scatters nothing. Grid: rows.cuh; up to 256 threads per row, 16 bytes per access if rows are a multiple of 16
// bytes. Memory-bound.

#include "cuh/rows.cuh"

template <class E>
__device__ __forceinline__ void gather(const GatherParams& p) {
  const u64 i = row_of_thread();
  if (i >= p.m) return;
  const bool vector = p.cols % VECTOR<E> == 0 && aligned16(p.x, p.y);
  const int row = global<const int>(p.index)[i];
  E* y = global<E>(p.y) + i * p.cols;
  if (row >= 0 && static_cast<u32>(row) < p.n) {
    move_row(global<const E>(p.x) + static_cast<u64>(row) * p.cols, y, p.cols, vector);
  } else {
    clear_row(y, p.cols, vector);
  }
}

template <class E>
__device__ __forceinline__ void scatter(const ScatterParams& p) {
  const u64 i = row_of_thread();
  if (i >= p.m) return;
  const int row = global<const int>(p.index)[i];
  if (row < 0 || static_cast<u32>(row) >= p.n) return;
  const bool vector = p.cols % VECTOR<E> == 0 && aligned16(p.src, p.dst);
  move_row(global<const E>(p.src) + i * p.cols, global<E>(p.dst) + static_cast<u64>(row) * p.cols, p.cols, vector);
}

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ PARAMS p)

KERNEL(rows_gather_16bit, GatherParams) { gather<u16>(p); }
KERNEL(rows_gather_32bit, GatherParams) { gather<u32>(p); }
KERNEL(rows_scatter_16bit, ScatterParams) { scatter<u16>(p); }
KERNEL(rows_scatter_32bit, ScatterParams) { scatter<u32>(p); }
