// Attention over packed sequences, and its gradient; formula, shapes, limits, order of summation and tolerances:
// mod.rs.
//
//   forward:   for each block of 64 keys (copied while the block before it is computed):
//                s = q k^T; mask; p, max, sum, o = online_softmax(s); o += p v
//                every 8 blocks: total = merge(total, segment)
//              o = total.o / total.sum; lse = ln(total.sum) + total.max
//   backward:  delta = d_o . o
//              a block of threads for each tile of keys, over the query tiles that see the keys ("visits"):
//                s = k q^T; dp = v d_o^T; p = e^(s - lse); ds = p (dp - delta); dv += p d_o; dk += ds q
//              a block of threads for each tile of queries, over the blocks of keys:
//                s = q k^T; dp = d_o v^T; ds = p (dp - delta); dq += ds k
//
// Tiles. A block of threads processes 64 queries of one head, or 64 keys of one key head. bf16 uses m16n8k16 products,
// 16 rows per warp (forward_mma.cuh, backward_keys.cuh): there are kernels for head_dim 64, 72, 80 and 128; other
// head_dims up to 256 are padded with zeros. f32, longer heads and the gradients of other bf16 head_dims use fused
// multiply-adds, 4 x 4 results per thread (*_fma.cuh).
//
// sm_90a has kernels for head_dim 64, 72, 80 and 128 with wgmma and another order of sums (forward_wgmma.cuh,
// backward_wgmma.cuh), and one for windows of at most 64 tokens with head_dim 80 (forward_windows.cuh).
//
// Order of gradients. No sum is formed by atomics: dq sums over keys ascending, 16 at a time; dk and dv sum over
// sequences ascending, query tiles descending, heads of the group ascending (visits.cuh). So no row's bits depend on
// other rows, sequences, heads or the grid.
//
// Numerics. Scores, maxima, sums, outputs and gradients accumulate in f32; 2^x has a relative error of 2^-22. On
// tensor cores factors of products are rounded to bf16: forward p = 2^(s - maximum so far) as a factor of v (the sum
// of p takes the unrounded value); backward p and ds as factors of d_o, q and k. Each output is rounded once.
//
// Grid (x). The number of tiles is an upper bound from the number of tokens, the number of sequences and the longest
// sequence. Blocks beyond the last tile return at once; a binary search finds the sequence of a tile (sequences.cuh).
// Order of query tiles: key heads outermost, then tiles from the last, which has the most keys, to the first, then
// the heads of the group. Order of key tiles: from the first, which has the most queries, to the last, key heads
// innermost.
//
// Departures. (1) Scores and dp are computed twice, 7 products instead of 5: the sums of dq of one query tile would
// have to pass from one key tile to the next, so blocks of threads would wait for each other. (2) In a tile that the
// diagonal crosses, products process 16 keys at a time: a key after a query but before the last of those 16 has p =
// 0, so a value there that is not finite makes the row NaN. Keys after the tile's last key and keys of other
// sequences are not read. The wgmma kernels process 128 keys at a time; scores of keys that the tile's queries do not
// see may be computed, and are masked, but values beyond the end of the sequence are zeros. (3) On CUDA cores whole
// diagonal blocks are computed. (4) Rows that are not a multiple of 16 bytes are read and written element by element.
//
// Bound. Matrix products (bf16), multiply-adds (f32). A warp does 14 operations per byte that it reads from shared
// memory.
#include "attention/backward_fma.cuh"
#include "attention/backward_keys.cuh"
#include "attention/backward_mma.cuh"
#include "attention/backward_parts.cuh"
#include "attention/forward_fma.cuh"
#include "attention/forward_mma.cuh"
#include "attention/sequences.cuh"
#if __CUDA_ARCH__ >= 900
#include "attention/backward_wgmma.cuh"
#include "attention/forward_wgmma.cuh"
#include "attention/forward_windows.cuh"
#include "attention/packed_source.cuh"
#endif

// The query tile and head that a block of threads processes. Kept in shared memory, because registers are scarce
// where it is used last.
struct QueryTile {
  SequenceTile range;
  int head, kv_head;
  int part;  // which range of columns of the output
};

// Finds the block's query tile; returns false if the block has no tile. Block indices count, from the slowest index to
// the fastest: key heads (so that blocks that run together read the keys of few heads); tiles, from the last one, which
// has the most keys if causal, to the first; query heads of the group; ranges of output columns. Only thread 0
// searches.
template <int ROWS, class P>
__device__ __forceinline__ bool query_tile(const P& p, u32 parts, QueryTile& tile) {
  if (threadIdx.x == 0) {
    const u64 slots = tile_slots<ROWS>(p.tokens, p.seqs, p.max_seqlen);
    const u32 group = p.heads / p.kv_heads;
    const u64 block = blockIdx.x / parts, in_group = block % (slots * group);
    tile.part = static_cast<int>(blockIdx.x % parts);
    tile.kv_head = static_cast<int>(block / (slots * group));
    tile.head = tile.kv_head * group + static_cast<int>(in_group % group);
    find_tile<ROWS>(global<const int>(p.cu_seqlens), p.tokens, p.seqs, p.max_seqlen, slots - 1 - in_group / group,
                    tile.range);
  }
  __syncthreads();
  return tile.range.count > 0;
}

// The keys that the queries of a tile see.
struct KeyRange {
  PackedKeys keys;
  CausalLimit limit;
  int end;  // number of keys that the tile's last query sees

  template <class P>
  __device__ __forceinline__ KeyRange(const P& p, const SequenceTile& range, int kv_head) {
    const u64 row = static_cast<u64>(p.kv_heads) * p.head_dim, head = kv_head * p.head_dim;
    const TokenRange prefix = prefix_of(p, range.sequence);
    keys = {prefix.first * row + head, range.first * row + head - prefix.count * row, row, prefix.count};
    limit = {prefix.count + (p.causal ? range.begin + 1 : range.length), p.causal ? 1 : 0};
    end = limit(range.count - 1);
  }
};

// Returns the rows of a query tile in q, o and their gradients.
template <class P>
__device__ __forceinline__ PackedRows query_rows(const P& p, const QueryTile& tile) {
  const u64 row = static_cast<u64>(p.heads) * p.head_dim;
  return {(static_cast<u64>(tile.range.first) + tile.range.begin) * row + tile.head * p.head_dim, row};
}

// Returns the index of a query tile's first value in an f32 [tokens, heads] array.
template <class P>
__device__ __forceinline__ u64 row_values(const P& p, const QueryTile& tile) {
  return (static_cast<u64>(tile.range.first) + tile.range.begin) * p.heads + tile.head;
}

template <int HEAD_DIM, int COLUMNS, bool PADDED>
__device__ __forceinline__ void forward_mma(FwdParams p) {
  extern __shared__ __align__(512) char shared[];
  __shared__ QueryTile tile;
  if (!PADDED) p.head_dim = HEAD_DIM;
  const int head_dim = static_cast<int>(p.head_dim);
  if (!query_tile<TILE_ROWS>(p, PADDED ? ceil_div(head_dim, COLUMNS) : 1, tile)) return;
  const int column = PADDED ? tile.part * COLUMNS : 0;
  Attended<COLUMNS> out;
  {
    const KeyRange range(p, tile.range, tile.kv_head);
    attend<HEAD_DIM, COLUMNS, PADDED>(out, shared, global<const bf16>(p.q), query_rows(p, tile), tile.range.count,
                                      global<const bf16>(p.k), global<const bf16>(p.v), range.keys, range.end,
                                      range.limit, 0, ceil_div(range.end, BLOCK_KEYS), p.scale * LOG2_E, head_dim, column);
  }
  const int row = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4, count = tile.range.count;
  __syncwarp();
  store_rows<HEAD_DIM, COLUMNS, PADDED>(global<bf16>(p.o), query_rows(p, tile), count, shared, row, out.o,
                                        inverse_sum(out.row[0]), inverse_sum(out.row[1]), head_dim, column);
  if (p.lse != 0 && column == 0 && threadIdx.x % 4 == 0) {
    float* lse = global<float>(p.lse) + row_values(p, tile);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row + g + 8 * h;
      if (r < count) lse[static_cast<u64>(r) * p.heads] = log_sum(out.row[h]);
    }
  }
}

template <class T>
__device__ __forceinline__ void forward_fma(const FwdParams& p) {
  extern __shared__ __align__(512) float tiles[];
  __shared__ QueryTile tile;
  const int head_dim = static_cast<int>(p.head_dim);
  if (!query_tile<FMA_ROWS>(p, ceil_div(head_dim, FMA_PART_COLUMNS), tile)) return;
  const int column = tile.part * FMA_PART_COLUMNS;
  AttendedFma out;
  {
    const KeyRange range(p, tile.range, tile.kv_head);
    attend_fma(out, tiles, global<const T>(p.q), query_rows(p, tile), tile.range.count, global<const T>(p.k),
               global<const T>(p.v), range.keys, range.end, range.limit, 0, ceil_div(range.end, BLOCK_KEYS),
               p.scale * LOG2_E, head_dim, column);
  }
  const int row = threadIdx.x / 16 * 4, count = tile.range.count;
  float factor[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) factor[i] = inverse_sum(out.row[i]);
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
    write_tile(global<T>(p.o), query_rows(p, tile), count, column + n * FMA_COLUMNS, head_dim, out.o[n], factor);
  }
  if (p.lse != 0 && column == 0 && threadIdx.x % 16 == 0) {
    float* lse = global<float>(p.lse) + row_values(p, tile);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i < count) lse[static_cast<u64>(row + i) * p.heads] = log_sum(out.row[i]);
    }
  }
}

template <int HEAD_DIM>
__device__ __forceinline__ void query_gradients_mma(BwdParams p) {
  extern __shared__ __align__(512) char shared[];
  __shared__ QueryTile tile;
  p.head_dim = HEAD_DIM;
  if (!query_tile<TILE_ROWS>(p, 1, tile)) return;
  const int row = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4;
  float dq[HEAD_DIM / 8][4];
  {
    const KeyRange range(p, tile.range, tile.kv_head);
    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u64 at = row_values(p, tile) + static_cast<u64>(min(row + g + 8 * h, tile.range.count - 1)) * p.heads;
      lse[h] = global<const float>(p.lse)[at] * LOG2_E;
      delta[h] = global<const float>(p.delta)[at];
    }
    query_gradients<HEAD_DIM>(dq, shared, global<const bf16>(p.q), global<const bf16>(p.d_o), query_rows(p, tile),
                              tile.range.count, global<const bf16>(p.k), global<const bf16>(p.v), range.keys, range.end,
                              range.limit, p.scale * LOG2_E, lse, delta);
  }
  __syncwarp();
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dq), query_rows(p, tile), tile.range.count, shared, row, dq, p.scale,
                                        p.scale, HEAD_DIM, 0);
}

// The key tile and key head that a block of threads processes.
struct KeyTile {
  SequenceTile range;
  int kv_head, part;
};

// Finds the block's key tile and its first two visits; returns false if there is no tile. Tiles are in ascending
// order: if causal, the first is seen by the most queries. Key heads are innermost, so that the longest tiles of all
// heads start together.
__device__ __forceinline__ bool key_tile(const BwdParams& p, u32 parts, KeyTile& tile, Visits& visits) {
  if (threadIdx.x == 0) {
    const u32 block = blockIdx.x / parts;
    tile.part = static_cast<int>(blockIdx.x % parts);
    tile.kv_head = static_cast<int>(block % p.kv_heads);
    find_tile<TILE_ROWS>(global<const int>(p.cu_seqlens), p.tokens, p.seqs, p.max_seqlen, block / p.kv_heads, tile.range);
    if (tile.range.count > 0) visits.start(p, tile.range, tile.kv_head);
  }
  __syncthreads();
  return tile.range.count > 0;
}

// Returns the rows of a key tile in k, v and their gradients.
__device__ __forceinline__ PackedRows key_rows(const BwdParams& p, const KeyTile& tile) {
  const u64 row = static_cast<u64>(p.kv_heads) * p.head_dim;
  return {(static_cast<u64>(tile.range.first) + tile.range.begin) * row + tile.kv_head * p.head_dim, row};
}

// Computes dk and dv of 64 keys.
template <int HEAD_DIM>
__device__ __forceinline__ void key_gradients_mma(BwdParams p) {
  extern __shared__ __align__(512) char shared[];
  __shared__ KeyTile tile;
  __shared__ Visits visits;
  p.head_dim = HEAD_DIM;
  if (!key_tile(p, 1, tile, visits)) return;
  float dk[HEAD_DIM / 8][4], dv[HEAD_DIM / 8][4];
  key_gradients<HEAD_DIM>(dk, dv, shared, p, key_rows(p, tile), tile.kv_head, visits);
  const int row = threadIdx.x / 32 * 16, count = tile.range.count;
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dk), key_rows(p, tile), count, shared, row, dk, p.scale, p.scale,
                                        HEAD_DIM, 0);
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dv), key_rows(p, tile), count, shared + KeyTiles<HEAD_DIM>::V,
                                        row, dv, 1.0f, 1.0f, HEAD_DIM, 0);
}

template <class T>
__device__ __forceinline__ void query_gradients_fma(const BwdParams& p) {
  extern __shared__ __align__(512) float tiles[];
  __shared__ QueryTile tile;
  const int head_dim = static_cast<int>(p.head_dim);
  if (!query_tile<FMA_ROWS>(p, ceil_div(head_dim, FMA_PART_COLUMNS), tile)) return;
  const int column = tile.part * FMA_PART_COLUMNS, row = threadIdx.x / 16 * 4;
  FmaTiles dq;
  {
    const KeyRange range(p, tile.range, tile.kv_head);
    float lse[4], delta[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u64 at = row_values(p, tile) + static_cast<u64>(min(row + i, tile.range.count - 1)) * p.heads;
      lse[i] = global<const float>(p.lse)[at] * LOG2_E;
      delta[i] = global<const float>(p.delta)[at];
    }
    query_gradients_fma(dq, tiles, global<const T>(p.q), global<const T>(p.d_o), query_rows(p, tile), tile.range.count,
                        global<const T>(p.k), global<const T>(p.v), range.keys, range.end, range.limit, p.scale * LOG2_E,
                        lse, delta, head_dim, column);
  }
  const float factor[4] = {p.scale, p.scale, p.scale, p.scale};
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
    write_tile(global<T>(p.dq), query_rows(p, tile), tile.range.count, column + n * FMA_COLUMNS, head_dim, dq[n], factor);
  }
}

template <class T>
__device__ __forceinline__ void key_gradients_fma(const BwdParams& p) {
  extern __shared__ __align__(512) float tiles[];
  __shared__ KeyTile tile;
  __shared__ Visits visits;
  const int head_dim = static_cast<int>(p.head_dim);
  if (!key_tile(p, ceil_div(head_dim, FMA_PART_COLUMNS), tile, visits)) return;
  const int column = tile.part * FMA_PART_COLUMNS;
  FmaTiles dk, dv;
  key_gradients_fma<T>(dk, dv, tiles, p, key_rows(p, tile), tile.range.count, tile.kv_head, visits, column);
  const float factor[4] = {p.scale, p.scale, p.scale, p.scale}, one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
    const int at = column + n * FMA_COLUMNS;
    write_tile(global<T>(p.dk), key_rows(p, tile), tile.range.count, at, head_dim, dk[n], factor);
    write_tile(global<T>(p.dv), key_rows(p, tile), tile.range.count, at, head_dim, dv[n], one);
  }
}

// Computes delta = d_o . o for all rows of tokens in sequences.
template <class T>
__device__ __forceinline__ void row_products(const BwdParams& p) {
  const u64 rows = static_cast<u64>(global<const int>(p.cu_seqlens)[p.seqs]) * p.heads;
  row_products(global<float>(p.delta), global<const T>(p.d_o), global<const T>(p.o), rows, static_cast<int>(p.head_dim));
}

// Computes delta as row_products does and sets the counters of the sm_90a kernels in the workspace to 0.
template <class T>
__device__ __forceinline__ void row_products_and_ticket(const BwdParams& p) {
  row_products<T>(p);
  if (p.workspace != 0) clear_counters(p);
}

#define KERNEL(SYMBOL, PARAMS, THREADS, BLOCKS, ...)                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) SYMBOL(const __grid_constant__ PARAMS p) { \
    __VA_ARGS__(p);                                                                                        \
  }
KERNEL(attention_fwd_bf16, FwdParams, FMA_THREADS, 1, forward_fma<bf16>)
KERNEL(attention_fwd_bf16_64, FwdParams, MMA_THREADS, 3, forward_mma<64, 64, false>)
KERNEL(attention_fwd_bf16_72, FwdParams, MMA_THREADS, 2, forward_mma<72, 72, false>)
KERNEL(attention_fwd_bf16_80, FwdParams, MMA_THREADS, 2, forward_mma<80, 80, false>)
KERNEL(attention_fwd_bf16_128, FwdParams, MMA_THREADS, 2, forward_mma<128, 128, false>)
KERNEL(attention_fwd_bf16_up_to_64, FwdParams, MMA_THREADS, 2, forward_mma<64, 64, true>)
KERNEL(attention_fwd_bf16_up_to_128, FwdParams, MMA_THREADS, 1, forward_mma<128, 128, true>)
KERNEL(attention_fwd_bf16_up_to_256, FwdParams, MMA_THREADS, 2, forward_mma<256, 64, true>)
KERNEL(attention_fwd_f32, FwdParams, FMA_THREADS, 1, forward_fma<float>)
#if __CUDA_ARCH__ >= 900
KERNEL(attention_fwd_bf16_wgmma_64, FwdParams, WGMMA_THREADS<64>, 1, (forward_wgmma<64, PackedSource<>>))
KERNEL(attention_fwd_bf16_wgmma_72, FwdParams, WGMMA_THREADS<72>, 1, (forward_wgmma<72, PackedSource<>>))
KERNEL(attention_fwd_bf16_wgmma_80, FwdParams, WGMMA_THREADS<80>, 1, (forward_wgmma<80, PackedSource<>>))
KERNEL(attention_fwd_bf16_wgmma_128, FwdParams, WGMMA_THREADS<128>, 1, (forward_wgmma<128, PackedSource<>>))
KERNEL(attention_fwd_bf16_wgmma_80_evict_normal, FwdParams, WGMMA_THREADS<80>, 1,
       (forward_wgmma<80, PackedSource<EVICT_NORMAL.bits>>))
KERNEL(attention_fwd_bf16_wgmma_128_evict_normal, FwdParams, WGMMA_THREADS<128>, 1,
       (forward_wgmma<128, PackedSource<EVICT_NORMAL.bits>>))
KERNEL(attention_fwd_bf16_windows_80, FwdParams, WINDOW_THREADS, 5, forward_windows<80>)
#endif
KERNEL(attention_bwd_bf16, BwdParams, FMA_THREADS, 4, row_products<bf16>)
KERNEL(attention_bwd_bf16_dq, BwdParams, FMA_THREADS, 1, query_gradients_fma<bf16>)
KERNEL(attention_bwd_bf16_dkv, BwdParams, FMA_THREADS, 1, key_gradients_fma<bf16>)
KERNEL(attention_bwd_bf16_dkv_64, BwdParams, MMA_THREADS, 2, key_gradients_mma<64>)
KERNEL(attention_bwd_bf16_dq_64, BwdParams, MMA_THREADS, 2, query_gradients_mma<64>)
KERNEL(attention_bwd_bf16_dkv_72, BwdParams, MMA_THREADS, 2, key_gradients_mma<72>)
KERNEL(attention_bwd_bf16_dq_72, BwdParams, MMA_THREADS, 2, query_gradients_mma<72>)
KERNEL(attention_bwd_bf16_dkv_80, BwdParams, MMA_THREADS, 2, key_gradients_mma<80>)
KERNEL(attention_bwd_bf16_dq_80, BwdParams, MMA_THREADS, 2, query_gradients_mma<80>)
KERNEL(attention_bwd_bf16_dkv_128, BwdParams, MMA_THREADS, 2, key_gradients_mma<128>)
KERNEL(attention_bwd_bf16_dq_128, BwdParams, MMA_THREADS, 2, query_gradients_mma<128>)
#if __CUDA_ARCH__ >= 900
KERNEL(attention_bwd_bf16_ticket, BwdParams, FMA_THREADS, 4, row_products_and_ticket<bf16>)
KERNEL(attention_bwd_bf16_wgmma_64, BwdParams, BACKWARD_THREADS, 1, backward_wgmma<64>)
KERNEL(attention_bwd_bf16_wgmma_72, BwdParams, BACKWARD_THREADS, 1, backward_wgmma<72>)
KERNEL(attention_bwd_bf16_wgmma_80, BwdParams, BACKWARD_THREADS, 1, backward_wgmma<80>)
KERNEL(attention_bwd_bf16_wgmma_128, BwdParams, BACKWARD_THREADS, 1, backward_wgmma<128>)
KERNEL(attention_bwd_bf16_wgmma_128_early, BwdParams, BACKWARD_THREADS, 1, (backward_wgmma<128, true>))
#endif
KERNEL(attention_bwd_f32, BwdParams, FMA_THREADS, 4, row_products<float>)
KERNEL(attention_bwd_f32_dq, BwdParams, FMA_THREADS, 1, query_gradients_fma<float>)
KERNEL(attention_bwd_f32_dkv, BwdParams, FMA_THREADS, 1, key_gradients_fma<float>)
