// Attention of new tokens over keys and values in the pages of a KV cache; formula, shapes, limits and segments:
// mod.rs.
//
//   for each segment of 512 keys that the tile sees (with a workspace: only this block's segment)
//     for each block of 64 keys: load K, V; S = Q K^T; mask; online softmax (cuh/online_softmax.cuh); O += P V
//     without a workspace: total = merge(total, segment); with one: store O, maximum, sum
//   without a workspace: o = total.O / total.sum; with one: merge(segments in ascending order), one warp per row:
//     decode in bf16: by the block that stores the last of them; else by the combine stage, a second launch
//
// Files. prefill_mma.cuh: bf16, 64 rows per block of threads. decode_mma.cuh: bf16, if there are at most as many new
// tokens as sequences, and counters; decode_rows.cuh and decode_producer.cuh: decode on sm_90a, with another order of
// sums; decode_work.cuh: the items of work of both decode kernels. prefill_wgmma.cuh: prefill on sm_90a, in the order
// of decode_rows.cuh. forward_fma.cuh: f32. tile.cuh: code that the kernels share.
//
// Rows. The query heads of one key head are packed: row r of a sequence is its new token r / group, head r % group of
// the group. A tile has 64 rows (bf16 prefill; 16 per warp) or 16 rows (f32).
//
// Order. Keys ascend in blocks of 64 counted from the sequence's first key. 8 blocks are a segment with a sum of its
// own; segments are merged in order. A row's bits depend on its query and the keys that it sees, not on the kernel, the
// tile, the split, the pages or the batch: a key that the row does not see has probability 0 or is skipped, which gives
// the same sum.
//
// Numerics. Scores, maxima and sums are in f32. bf16: tensor-core products; probabilities are rounded to bf16 for the
// product with V, while their sum takes the unrounded values. f32: fused multiply-adds. The output is rounded once.
//
// Grid of prefill and f32. x = tile, key head, range of columns (64 columns for head_dim above 128 in bf16), and with a
// workspace also segment. Sequence s has the tiles from floor(cu_seqlens[s] * group / ROWS) + s on, at least as many as
// it needs; a binary search finds the sequence of a tile.
//
// Departures. (1) A row multiplies the keys that only later rows of its tile see by probability 0, so a value there
// that is not finite makes the row NaN; keys beyond the tile's last key are never read. (2) For a head_dim that is
// not a multiple of 8 (bf16) or 4 (f32), keys and values are loaded element by element.
//
// Bound. Decode: memory, K and V are read once. Prefill: matrix products.
#include "paged_attention/decode_mma.cuh"
#if __CUDA_ARCH__ >= 900
#include "paged_attention/decode_rows.cuh"
#endif
#include "paged_attention/forward_fma.cuh"
#include "paged_attention/prefill_mma.cuh"
#if __CUDA_ARCH__ >= 900
#include "paged_attention/prefill_wgmma.cuh"
#endif

// Merges the segments (512 keys each) of a row and writes the row's output, one warp per row.
template <class T>
__device__ __forceinline__ void combine(const Params& p) {
  const u64 row = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
  if (row >= static_cast<u64>(p.tokens) * p.heads) return;
  const int keys = keys_of_token(p, static_cast<int>(row / p.heads)).keys;
  if (keys >= 0) merge_row<T>(p, row, ceil_div(keys, SEGMENT));
}

#define WITH_THREADS(SYMBOL, THREADS, BLOCKS, CALL)                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) SYMBOL(const __grid_constant__ Params p) { \
    CALL(p);                                                                                               \
  }
#define KERNEL(SYMBOL, BLOCKS, CALL) WITH_THREADS(SYMBOL, THREADS, BLOCKS, CALL)
KERNEL(paged_attention_fwd_bf16_64, 2, (prefill_mma<64, 64, 2, false>))
KERNEL(paged_attention_fwd_bf16_80, 2, (prefill_mma<80, 80, 2, false>))
KERNEL(paged_attention_fwd_bf16_128, 2, (prefill_mma<128, 128, 2, false>))
KERNEL(paged_attention_fwd_bf16_256, 2, (prefill_mma<256, 64, 1, false>))
KERNEL(paged_attention_fwd_bf16_64_split, 2, (prefill_mma<64, 64, 2, true>))
KERNEL(paged_attention_fwd_bf16_80_split, 2, (prefill_mma<80, 80, 2, true>))
KERNEL(paged_attention_fwd_bf16_128_split, 2, (prefill_mma<128, 128, 2, true>))
KERNEL(paged_attention_fwd_bf16_256_split, 2, (prefill_mma<256, 64, 1, true>))
KERNEL(paged_attention_fwd_bf16_combine, 2, combine<bf16>)
KERNEL(paged_attention_fwd_bf16_decode_64, 3, decode_mma<64>)
KERNEL(paged_attention_fwd_bf16_decode_80, 2, decode_mma<80>)
KERNEL(paged_attention_fwd_bf16_decode_128, 2, decode_mma<128>)
KERNEL(paged_attention_fwd_bf16_decode_256, 2, decode_mma<256>)
#if __CUDA_ARCH__ >= 900
WITH_THREADS(paged_attention_fwd_bf16_decode_rows_64, DECODE_THREADS, 1, decode_rows<64>)
WITH_THREADS(paged_attention_fwd_bf16_decode_rows_80, DECODE_THREADS, 1, decode_rows<80>)
WITH_THREADS(paged_attention_fwd_bf16_decode_rows_128, DECODE_THREADS, 1, decode_rows<128>)
KERNEL(paged_attention_fwd_bf16_combine_rows, 4, combine_rows)
WITH_THREADS(paged_attention_fwd_bf16_wgmma_64, WGMMA_THREADS<64>, 1, (forward_wgmma<64, PagedSource>))
WITH_THREADS(paged_attention_fwd_bf16_wgmma_80, WGMMA_THREADS<80>, 1, (forward_wgmma<80, PagedSource>))
WITH_THREADS(paged_attention_fwd_bf16_wgmma_128, WGMMA_THREADS<128>, 1, (forward_wgmma<128, PagedSource>))
#endif
KERNEL(paged_attention_fwd_f32_64, 2, (forward_fma<1, false, false>))
KERNEL(paged_attention_fwd_f32_128, 2, (forward_fma<2, false, false>))
KERNEL(paged_attention_fwd_f32_256, 2, (forward_fma<4, true, false>))
KERNEL(paged_attention_fwd_f32_64_split, 2, (forward_fma<1, false, true>))
KERNEL(paged_attention_fwd_f32_128_split, 2, (forward_fma<2, false, true>))
KERNEL(paged_attention_fwd_f32_256_split, 2, (forward_fma<4, true, true>))
KERNEL(paged_attention_fwd_f32_combine, 2, combine<float>)
