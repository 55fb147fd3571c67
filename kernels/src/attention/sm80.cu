// Attention over packed sequences, and its gradient; formula, shapes and parameters: mod.rs.
//
// Tiles. A block does 64 queries of one head, or 64 keys of one key head; 128 in the backward pass on tensor cores, where
// that still makes enough blocks (plan.rs). bf16: a warp a 16 rows, m16n8k16 products (forward_mma.cuh, backward_keys.cuh), for
// heads of 64, 72, 80 and 128 compiled to size, others of up to 256 padded with zeros. f32, longer heads, and the gradient of
// the other bf16 heads: 4 x 4 results a thread with fused multiply-adds (…_fma.cuh).
// Order. Keys ascend from the sequence's (or its prefix's) first key in blocks of 64; 8 blocks are a segment that starts from
// nothing, segments are merged in order (cuh/online_softmax.cuh, which the paged kernel has in common). Nothing is added by
// atomics: a query's gradient sums over keys ascending, 16 at a time; a key's over sequences ascending, query tiles
// descending, heads of the group ascending (visits.cuh). So no row's bits depend on other rows, sequences, heads or the grid.
// Numerics. Scores, maxima, sums, outputs and gradients accumulate in f32; 2^x has a relative error of 2^-22.
//   Rounded to bf16, in bf16 on tensor cores: forward p = 2^(s - largest so far) where it multiplies v (its sum takes the
//   unrounded one); backward p and ds = p (dp - delta) where they multiply d_o, q and k. Then one rounding of each output.
//   scale is positive.
//
// Grid (x). Tiles: an upper bound from tokens, sequences and the longest sequence; blocks beyond end at once, and a
// sequence's tiles are found by binary search (sequences.cuh). Queries: key heads outermost, then tiles from the last, which
// has the most keys, on, then the heads of the group. Keys: tiles from the first on, which has the most queries, key heads
// innermost.
//
//   forward:   for each block of keys (copied while the one before is worked on):
//                s = q k^T; mask; p, top, sum, o = take(s); o += p v; every 8 blocks: total = merge(total, segment)
//              o = total / sum; lse = ln(sum) + top
//   backward:  delta = d_o . o; turn[..] = 0
//              keys:    for each visit: s = k q^T, dp = v d_o^T; p = e^(s - lse), ds = p (dp - delta); dv += p d_o;
//                         wait until turn[queries] is this tile's number; dk += ds q; dq = sums[queries] + ds^T k;
//                         sums[queries] = dq, turn[queries] += 1; or, where no later tile of keys is seen, dq is written
//              With a prefix, without a workspace, or on CUDA cores, dq is left out of it, and there are also
//              queries: for each block of keys: s = q k^T, dp = d_o v^T; dq += ds k
//
// Turns. A block waits for the tile of keys before its own, of the same key head and sequence: a block with a smaller number,
// which a GPU starts earlier. So of the blocks at work that with the smallest number waits for none, and all come to an end.
// It waits at the first visit, hardly later: all tiles visit queries from the last on, every head of a tile before the next,
// so that those of a sequence keep in step, each a visit and a hand-over (stores, release, acquire) behind the one before; when
// causal, later tiles have fewer visits and drop out at the end, where nobody waits for them. The longest chain is the visits of
// a first tile: for 8192 tokens and 7 heads a key head 896 of 128 keys and 64 queries, where with 4 key heads each of 132
// multiprocessors has 882 to do.
//
// Departures. (1) With a prefix scores and dp are computed twice, 7 products for 5: a prefix may lie anywhere, also behind
// the tokens that have it, and then tiles would wait for blocks that come later. (2) In a tile that the diagonal crosses,
// products go over 16 keys at a time, those that 16 rows see: a key after a query but before the last of the 16 has p = 0, so
// a value there that is not finite makes the row NaN. Keys after the tile's last are not read, nor those of other sequences.
// (3) CUDA cores take whole diagonal blocks. (4) Rows that are no multiple of 16 bytes are read and written element by element.
// Bound. Matrix products (bf16), multiply-adds (f32). A warp does 14 operations for a byte that it reads of shared memory; a
// visit of 128 keys does 106 for a byte of queries and their sums that it moves to and from L2, one of 64 keys 53.
#include "attention/backward_fma.cuh"
#include "attention/backward_keys.cuh"
#include "attention/backward_mma.cuh"
#include "attention/forward_fma.cuh"
#include "attention/forward_mma.cuh"
#include "attention/sequences.cuh"

// The query tile and head of a block. It lies in shared memory, for registers are short where it is needed again.
struct QueryTile {
  Place place;
  int head, kv_head;
  int part;  // which columns of the output
};

// Whether the block has something to do. Key heads outermost, so that the blocks at work share few keys; then the last tiles,
// which are the longest when causal, first; the parts of a row innermost. Only thread 0 looks.
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
                    tile.place);
  }
  __syncthreads();
  return tile.place.count > 0;
}

// What the forward pass of a tile reads, besides its queries.
struct KeyRange {
  PackedKeys keys;
  CausalLimit limit;
  int end;  // keys that the tile's last query sees

  template <class P>
  __device__ __forceinline__ KeyRange(const P& p, const Place& place, int kv_head) {
    const u64 row = static_cast<u64>(p.kv_heads) * p.head_dim, head = kv_head * p.head_dim;
    const TokenRange prefix = prefix_of(p, place.sequence);
    keys = {prefix.first * row + head, place.first * row + head - prefix.count * row, row, prefix.count};
    limit = {prefix.count + (p.causal ? place.begin + 1 : place.length), p.causal ? 1 : 0};
    end = limit(place.count - 1);
  }
};

// The rows of a tile's head in q, o and their gradients.
template <class P>
__device__ __forceinline__ PackedRows query_rows(const P& p, const QueryTile& tile) {
  const u64 row = static_cast<u64>(p.heads) * p.head_dim;
  return {(static_cast<u64>(tile.place.first) + tile.place.begin) * row + tile.head * p.head_dim, row};
}

// Where a tile's values of f32 [tokens, heads] begin.
template <class P>
__device__ __forceinline__ u64 row_values(const P& p, const QueryTile& tile) {
  return (static_cast<u64>(tile.place.first) + tile.place.begin) * p.heads + tile.head;
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
    const KeyRange range(p, tile.place, tile.kv_head);
    attend<HEAD_DIM, COLUMNS, PADDED>(out, shared, global<const bf16>(p.q), query_rows(p, tile), tile.place.count,
                                      global<const bf16>(p.k), global<const bf16>(p.v), range.keys, range.end,
                                      range.limit, 0, ceil_div(range.end, BLOCK_KEYS), p.scale * LOG2_E, head_dim, column);
  }
  const int row = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4, count = tile.place.count;
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
    const KeyRange range(p, tile.place, tile.kv_head);
    attend_fma(out, tiles, global<const T>(p.q), query_rows(p, tile), tile.place.count, global<const T>(p.k),
               global<const T>(p.v), range.keys, range.end, range.limit, 0, ceil_div(range.end, BLOCK_KEYS),
               p.scale * LOG2_E, head_dim, column);
  }
  const int row = threadIdx.x / 16 * 4, count = tile.place.count;
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
    const KeyRange range(p, tile.place, tile.kv_head);
    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u64 at = row_values(p, tile) + static_cast<u64>(min(row + g + 8 * h, tile.place.count - 1)) * p.heads;
      lse[h] = global<const float>(p.lse)[at] * LOG2_E;
      delta[h] = global<const float>(p.delta)[at];
    }
    query_gradients<HEAD_DIM>(dq, shared, global<const bf16>(p.q), global<const bf16>(p.d_o), query_rows(p, tile),
                              tile.place.count, global<const bf16>(p.k), global<const bf16>(p.v), range.keys, range.end,
                              range.limit, p.scale * LOG2_E, lse, delta);
  }
  __syncwarp();
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dq), query_rows(p, tile), tile.place.count, shared, row, dq, p.scale,
                                        p.scale, HEAD_DIM, 0);
}

// The key tile and head of a block.
struct KeyTile {
  Place place;
  int kv_head, part;
};

// Whether the block has something to do; if so its visits are started. Tiles in order: when causal, the first are seen by
// the most queries. Key heads innermost, so that the longest tiles of all heads begin together.
template <int ROWS>
__device__ __forceinline__ bool key_tile(const BwdParams& p, u32 parts, KeyTile& tile, Visits<ROWS>& visits) {
  if (threadIdx.x == 0) {
    const u32 block = blockIdx.x / parts;
    tile.part = static_cast<int>(blockIdx.x % parts);
    tile.kv_head = static_cast<int>(block % p.kv_heads);
    find_tile<ROWS>(global<const int>(p.cu_seqlens), p.tokens, p.seqs, p.max_seqlen, block / p.kv_heads, tile.place);
    if (tile.place.count > 0) visits.start(p, tile.place, tile.kv_head);
  }
  __syncthreads();
  return tile.place.count > 0;
}

// The rows of a tile's head in k, v and their gradients.
__device__ __forceinline__ PackedRows key_rows(const BwdParams& p, const KeyTile& tile) {
  const u64 row = static_cast<u64>(p.kv_heads) * p.head_dim;
  return {(static_cast<u64>(tile.place.first) + tile.place.begin) * row + tile.kv_head * p.head_dim, row};
}

// Gradients of KEYS keys; RELAY: and of queries, which then have no prefix.
template <int HEAD_DIM, int KEYS, bool RELAY>
__device__ __forceinline__ void key_gradients_mma(BwdParams p) {
  extern __shared__ __align__(512) char shared[];
  __shared__ KeyTile tile;
  __shared__ Visits<KEYS> visits;
  p.head_dim = HEAD_DIM;
  if (!key_tile<KEYS>(p, 1, tile, visits)) return;
  float dk[HEAD_DIM / 8][4], dv[HEAD_DIM / 8][4];
  key_gradients<HEAD_DIM, KEYS, RELAY>(dk, dv, shared, p, key_rows(p, tile), tile.kv_head, visits);
  const int row = threadIdx.x / 32 * 16, count = tile.place.count;
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dk), key_rows(p, tile), count, shared, row, dk, p.scale, p.scale,
                                        HEAD_DIM, 0);
  store_rows<HEAD_DIM, HEAD_DIM, false>(global<bf16>(p.dv), key_rows(p, tile), count, shared + KeyTiles<HEAD_DIM, KEYS>::V,
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
    const KeyRange range(p, tile.place, tile.kv_head);
    float lse[4], delta[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u64 at = row_values(p, tile) + static_cast<u64>(min(row + i, tile.place.count - 1)) * p.heads;
      lse[i] = global<const float>(p.lse)[at] * LOG2_E;
      delta[i] = global<const float>(p.delta)[at];
    }
    query_gradients_fma(dq, tiles, global<const T>(p.q), global<const T>(p.d_o), query_rows(p, tile), tile.place.count,
                        global<const T>(p.k), global<const T>(p.v), range.keys, range.end, range.limit, p.scale * LOG2_E,
                        lse, delta, head_dim, column);
  }
  const float factor[4] = {p.scale, p.scale, p.scale, p.scale};
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
    write_tile(global<T>(p.dq), query_rows(p, tile), tile.place.count, column + n * FMA_COLUMNS, head_dim, dq[n], factor);
  }
}

template <class T>
__device__ __forceinline__ void key_gradients_fma(const BwdParams& p) {
  extern __shared__ __align__(512) float tiles[];
  __shared__ KeyTile tile;
  __shared__ Visits<FMA_ROWS> visits;
  const int head_dim = static_cast<int>(p.head_dim);
  if (!key_tile<FMA_ROWS>(p, ceil_div(head_dim, FMA_PART_COLUMNS), tile, visits)) return;
  const int column = tile.part * FMA_PART_COLUMNS;
  FmaTiles dk, dv;
  key_gradients_fma<T>(dk, dv, tiles, p, key_rows(p, tile), tile.place.count, tile.kv_head, visits, column);
  const float factor[4] = {p.scale, p.scale, p.scale, p.scale}, one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
    const int at = column + n * FMA_COLUMNS;
    write_tile(global<T>(p.dk), key_rows(p, tile), tile.place.count, at, head_dim, dk[n], factor);
    write_tile(global<T>(p.dv), key_rows(p, tile), tile.place.count, at, head_dim, dv[n], one);
  }
}

// Rows of tokens in no sequence have no output. RELAY: nobody has had a turn yet.
template <class T, bool RELAY>
__device__ __forceinline__ void row_products(const BwdParams& p) {
  const u64 rows = static_cast<u64>(global<const int>(p.cu_seqlens)[p.seqs]) * p.heads;
  row_products(global<float>(p.delta), global<const T>(p.d_o), global<const T>(p.o), rows, static_cast<int>(p.head_dim));
  const u64 row = blockIdx.x * static_cast<u64>(FMA_THREADS / 16) + threadIdx.x;
  if (RELAY && threadIdx.x < FMA_THREADS / 16 && row < rows) relay(p).turns[row] = 0;
}

#define KERNEL(NAME, PARAMS, THREADS, BLOCKS, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_##NAME(const __grid_constant__ PARAMS p) { \
    __VA_ARGS__(p);                                                                                                         \
  }
KERNEL(fwd_bf16, FwdParams, FMA_THREADS, 1, forward_fma<bf16>)
KERNEL(fwd_bf16_64, FwdParams, MMA_THREADS, 3, forward_mma<64, 64, false>)
KERNEL(fwd_bf16_72, FwdParams, MMA_THREADS, 2, forward_mma<72, 72, false>)
KERNEL(fwd_bf16_80, FwdParams, MMA_THREADS, 2, forward_mma<80, 80, false>)
KERNEL(fwd_bf16_128, FwdParams, MMA_THREADS, 2, forward_mma<128, 128, false>)
KERNEL(fwd_bf16_up_to_64, FwdParams, MMA_THREADS, 2, forward_mma<64, 64, true>)
KERNEL(fwd_bf16_up_to_128, FwdParams, MMA_THREADS, 1, forward_mma<128, 128, true>)
KERNEL(fwd_bf16_up_to_256, FwdParams, MMA_THREADS, 2, forward_mma<256, 64, true>)
KERNEL(fwd_f32, FwdParams, FMA_THREADS, 1, forward_fma<float>)
KERNEL(bwd_bf16, BwdParams, FMA_THREADS, 4, row_products<bf16, false>)
KERNEL(bwd_bf16_relay, BwdParams, FMA_THREADS, 4, row_products<bf16, true>)
KERNEL(bwd_bf16_dq, BwdParams, FMA_THREADS, 1, query_gradients_fma<bf16>)
KERNEL(bwd_bf16_dkv, BwdParams, FMA_THREADS, 1, key_gradients_fma<bf16>)
#define GRADIENTS(HEAD_DIM, BLOCKS)                                                                  \
  KERNEL(bwd_bf16_all_##HEAD_DIM, BwdParams, 256, BLOCKS, key_gradients_mma<HEAD_DIM, 128, true>)    \
  KERNEL(bwd_bf16_all_##HEAD_DIM##_by_64, BwdParams, 128, 2, key_gradients_mma<HEAD_DIM, 64, true>)  \
  KERNEL(bwd_bf16_dkv_##HEAD_DIM, BwdParams, MMA_THREADS, 2, key_gradients_mma<HEAD_DIM, 64, false>) \
  KERNEL(bwd_bf16_dq_##HEAD_DIM, BwdParams, MMA_THREADS, 2, query_gradients_mma<HEAD_DIM>)
GRADIENTS(64, 1)
GRADIENTS(72, 1)
GRADIENTS(80, 1)
GRADIENTS(128, 1)
KERNEL(bwd_f32, BwdParams, FMA_THREADS, 4, row_products<float, false>)
KERNEL(bwd_f32_dq, BwdParams, FMA_THREADS, 1, query_gradients_fma<float>)
KERNEL(bwd_f32_dkv, BwdParams, FMA_THREADS, 1, key_gradients_fma<float>)
