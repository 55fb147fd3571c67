// Copies a range of columns between two matrices: dst[r, dst_start + c] = src[r, src_start + c].
//
// Shapes and limits: mod.rs; width < 2^31. Numerics: bits are copied. Grid: rows.cuh. An access has 16 bytes if the
// row lengths, the first columns, the copied width and the addresses are multiples of 16 bytes. Bound: memory.

#include "cuh/rows.cuh"

template <class E>
__device__ __forceinline__ void copy(const CopyParams& p) {
  const u64 row = row_of_thread();
  if (row >= p.rows) return;
  const u32 any = p.width | p.src_cols | p.src_start | p.dst_cols | p.dst_start;
  const bool vector = any % VECTOR<E> == 0 && aligned16(p.src, p.dst);
  const E* src = global<const E>(p.src) + row * p.src_cols + p.src_start;
  E* dst = global<E>(p.dst) + row * p.dst_cols + p.dst_start;
  move_row(src, dst, p.width, vector);
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ CopyParams p)

KERNEL(columns_copy_16bit) { copy<u16>(p); }
KERNEL(columns_copy_32bit) { copy<u32>(p); }
