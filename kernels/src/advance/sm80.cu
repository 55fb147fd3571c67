// The end of a decode step: each row takes its sampled token. Formula and shapes: mod.rs.
//
// Grid: one thread per row.
//
//   if kv_lens[r] > 0: append to the history; end the row, or update id, position, counter, length and cache slot
//
// Exact integers. Bound: latency of one dependent load (the block table's element).
#include "cuh/base.cuh"
#include "cuh/dependent.cuh"

extern "C" __global__ void __launch_bounds__(128) advance(const __grid_constant__ Params p) {
  wait_for_previous_launch();
  const u32 r = blockIdx.x * 128 + threadIdx.x;
  if (r >= p.rows) return;
  int* kv_lens = global<int>(p.kv_lens);
  int* slots = global<int>(p.slots);
  const int keys = kv_lens[r];
  if (keys <= 0) return;
  const int id = global<const int>(p.chosen)[r];
  if (p.history_cols != 0) {
    int* lens = global<int>(p.history_lens);
    const int len = lens[r];
    if (len >= 0 && static_cast<u32>(len) < p.history_cols) {
      global<int>(p.history)[static_cast<u64>(r) * p.history_cols + len] = id;
      lens[r] = len + 1;
    }
  }
  if (id < 0 || keys >= global<const int>(p.kv_limits)[r]) {
    kv_lens[r] = 0;
    slots[r] = -1;
    return;
  }
  const u32 key = keys;
  const int block = global<const int>(p.block_tables)[static_cast<u64>(r) * p.max_blocks + key / p.page_tokens];
  global<int>(p.ids)[r] = id;
  global<int>(p.positions)[r] += 1;
  global<int>(p.draws)[r] += 1;
  kv_lens[r] = keys + 1;
  slots[r] = block * static_cast<int>(p.page_tokens) + static_cast<int>(key % p.page_tokens);
}
