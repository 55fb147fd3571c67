// Writes keys and values of new tokens to their slots of the paged KV cache: cache[slots[t]] = row of token t.
//
// Shapes and limits: mod.rs; a row has kv_heads * head_dim < 2^31 elements. Numerics: exact. Grid: rows.cuh over 2 *
// tokens rows, the keys first. Memory-bound.

#include "cuh/rows.cuh"

template <class T>
__device__ __forceinline__ void write(const Params& p) {
  const u64 i = row_of_thread();
  if (i >= 2ull * p.tokens) return;
  const bool values = i >= p.tokens;
  const u64 token = values ? i - p.tokens : i;
  const u32 cols = p.kv_heads * p.head_dim;
  const u64 from = values ? p.v : p.k, to = values ? p.v_cache : p.k_cache;
  const int place = global<const int>(p.slots)[token];
  if (place < 0) return;  // a row of padding
  const u64 slot = static_cast<u32>(place);
  const bool vector = cols % VECTOR<T> == 0 && aligned16(from, to);
  move_row(global<const T>(from) + token * cols, global<T>(to) + slot * cols, cols, vector);
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Params p)

KERNEL(kv_write_f32) { write<u32>(p); }
KERNEL(kv_write_bf16) { write<u16>(p); }
