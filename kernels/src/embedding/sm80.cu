// Embedding: y[t] = T(table[ids[t]]), and its gradient dw[ids[t]] += dy[t], adding tokens in order.
//
// A token with a vision row r = vision_index[t] >= 0: y[t] = vision[r]; no gradient for dw; d_vision[r] = dy[t].
//
// Shapes and limits: mod.rs; hidden < 2^31. Numerics: fwd rounds f32 to bf16 once, otherwise copies bits; bwd adds in
// f32, the tokens with one id in order and then their sum to the old value of dw. An id outside the vocabulary gives
// zeros and no gradient.
//
// fwd, grid of rows.cuh: up to 256 threads per row. bwd, one block per OWN tokens and strip of STRIP columns:
//   copy dy of the block's tokens that have a vision row to d_vision; such a token has no id below
//   compare all tokens' ids with the block's: which occur among earlier tokens, which among later ones
//   for each of the block's tokens whose id does not occur earlier (else the earlier token's block adds it):
//     id does not occur later: dw += dy
//     else for each tile of 256 tokens from this token on:
//       list the tokens with this id in order; add their dy to the strip's registers
//     dw += the registers
//
// bwd needs no workspace for a sorted list of ids; instead its blocks read all ids, 4 * tokens / OWN bytes per token
// and strip. Memory-bound.

#include "cuh/rows.cuh"
#include "cuh/warp.cuh"

// Copies `cols` elements and converts them to another type, V elements per access.
template <int V, class W, class T>
__device__ __forceinline__ void convert_row(const W* src, T* dst, u32 cols) {
  constexpr int STEPS = 4;
  const u32 step = blockDim.x * V;
  for (u32 at = threadIdx.x * V; at < cols; at += STEPS * step) {
    float x[STEPS][V];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      if (at + k * step < cols) load_vector(src + at + k * step, x[k]);
    }
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      if (at + k * step < cols) store_vector(dst + at + k * step, x[k]);
    }
  }
}

template <class W, class T>
struct Convert {
  static __device__ __forceinline__ void row(const W* src, T* dst, u32 cols, bool vector) {
    if (vector) {
      convert_row<4>(src, dst, cols);
    } else {
      convert_row<1>(src, dst, cols);
    }
  }
};
template <class T>
struct Convert<T, T> {
  static __device__ __forceinline__ void row(const T* src, T* dst, u32 cols, bool vector) { move_row(src, dst, cols, vector); }
};

template <class W, class T>
__device__ __forceinline__ void forward(const FwdParams& p) {
  const u64 t = row_of_thread();
  if (t >= p.tokens) return;
  const bool vector = p.hidden % 8 == 0 && aligned16(p.table, p.y);
  T* y = global<T>(p.y) + t * p.hidden;
  const int vision_row = p.vision_index == 0 ? -1 : global<const int>(p.vision_index)[t];
  if (vision_row >= 0) {
    if (static_cast<u32>(vision_row) < p.placed) {
      const bool vector = p.hidden % VECTOR<T> == 0 && aligned16(p.vision, p.y);
      move_row(global<const T>(p.vision) + static_cast<u64>(vision_row) * p.hidden, y, p.hidden, vector);
    } else {
      clear_row(y, p.hidden, vector);
    }
    return;
  }
  const int id = global<const int>(p.ids)[t];
  if (id >= 0 && static_cast<u32>(id) < p.vocab) {
    Convert<W, T>::row(global<const W>(p.table) + static_cast<u64>(id) * p.hidden, y, p.hidden, vector);
  } else {
    clear_row(y, p.hidden, vector);
  }
}

constexpr int TILE = 256;
// Tokens of a backward block.
constexpr u32 OWN = 32;
// V is the number of columns of dw that one thread adds up, STRIP the number that one thread block adds up.
constexpr int V = 8;
constexpr u32 STRIP = TILE * V;

// Shared memory of a backward block.
struct Shared {
  int id[OWN], vision_row[OWN];
  // There is one word per warp. Bit k tells that the id of the block's token k also occurs among the earlier (or
  // later) tokens with which the warp compared it.
  u32 earlier[TILE / 32], later[TILE / 32];
  u32 masks[2][TILE / 32];
  u32 list[TILE];
};

__device__ __forceinline__ int vision_row_of(const BwdParams& p, u32 t) {
  return p.vision_index == 0 ? -1 : global<const int>(p.vision_index)[t];
}
// Returns the row of dw that token t is added to, or -1 if it adds nothing.
__device__ __forceinline__ int id_of(const BwdParams& p, u32 t) {
  const int id = global<const int>(p.ids)[t];
  return vision_row_of(p, t) >= 0 ? -1 : id;
}

// Sets `id` and `vision_row` of the block's tokens; tokens past the last one get -1.
__device__ __forceinline__ void find_tokens(const BwdParams& p, u32 first, Shared& shared) {
  if (threadIdx.x < OWN) {
    const u32 t = first + threadIdx.x;
    shared.id[threadIdx.x] = t < p.tokens ? id_of(p, t) : -1;
    shared.vision_row[threadIdx.x] = t < p.tokens ? vision_row_of(p, t) : -1;
  }
  __syncthreads();
}

// Copies dy of the block's tokens that have a vision row to d_vision.
template <class T>
__device__ __forceinline__ void copy_placed(const BwdParams& p, u32 first, u32 column, bool vector, const Shared& shared) {
#pragma unroll 2
  for (u32 k = 0; k < OWN; ++k) {
    const int vision_row = shared.vision_row[k];
    if (vision_row < 0 || static_cast<u32>(vision_row) >= p.placed) continue;
    float x[V];
    load_elements(global<const T>(p.dy) + static_cast<u64>(first + k) * p.hidden, column, p.hidden, vector, x);
    store_elements(global<T>(p.d_vision) + static_cast<u64>(vision_row) * p.hidden, column, p.hidden, vector, x);
  }
}

// Sets `earlier` and `later`: which of the block's tokens have an id that also occurs before (after) them.
__device__ __forceinline__ void find_repeats(const BwdParams& p, u32 first, Shared& shared) {
  u32 earlier = 0, later = 0;
  for (u32 t = threadIdx.x; t < p.tokens; t += TILE) {
    const int id = id_of(p, t);
#pragma unroll 8
    for (u32 k = 0; k < OWN; ++k) {
      const u32 same = (id == shared.id[k]) << k;
      if (t < first + k) earlier |= same;
      if (t > first + k) later |= same;
    }
  }
  earlier = __reduce_or_sync(0xffffffffu, earlier);
  later = __reduce_or_sync(0xffffffffu, later);
  if (threadIdx.x % 32 == 0) {
    shared.earlier[threadIdx.x / 32] = earlier;
    shared.later[threadIdx.x / 32] = later;
  }
  __syncthreads();
}

__device__ __forceinline__ u32 any_warp(const u32 (&mask)[TILE / 32]) {
  u32 any = 0;
#pragma unroll
  for (int w = 0; w < TILE / 32; ++w) any |= mask[w];
  return any;
}

// Adds dy of `token` and of all later tokens with the same id to `sum`, in order. `parity` selects which of the two
// buffers in `masks` is filled next.
template <class T>
__device__ __forceinline__ void add_repeats(const BwdParams& p, u32 token, int id, u32 column, bool vector, u32& parity,
                                            float (&sum)[V], Shared& shared) {
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T* dy = global<const T>(p.dy);
  for (u32 tile = token; tile < p.tokens; tile += TILE, parity ^= 1) {
    const u32 t = tile + threadIdx.x;
    const bool same = t < p.tokens && id_of(p, t) == id;
    const u32 mask = __ballot_sync(0xffffffffu, same);
    if (lane == 0) shared.masks[parity][warp] = mask;
    __syncthreads();
    u32 count = 0, before = __popc(mask & ((1u << lane) - 1));
#pragma unroll
    for (int w = 0; w < TILE / 32; ++w) {
      if (w == warp) before += count;
      count += __popc(shared.masks[parity][w]);
    }
    if (count == 0) continue;
    if (same) shared.list[before] = t;
    __syncthreads();
    for (u32 i = 0; i < count; i += 2) {
      float first[V], second[V];
      const bool pair = i + 1 < count;
      load_elements(dy + static_cast<u64>(shared.list[i]) * p.hidden, column, p.hidden, vector, first);
      if (pair) load_elements(dy + static_cast<u64>(shared.list[i + 1]) * p.hidden, column, p.hidden, vector, second);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        sum[j] += first[j];
        if (pair) sum[j] += second[j];
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  __shared__ Shared shared;
  const u32 strips = ceil_div(p.hidden, STRIP);
  const u32 first = blockIdx.x / strips * OWN, column = blockIdx.x % strips * STRIP + threadIdx.x * V;
  const bool vector = p.hidden % V == 0 && aligned16(p.dy, p.dw, p.d_vision);
  find_tokens(p, first, shared);
  if (p.d_vision != 0 && p.vision_index != 0) copy_placed<T>(p, first, column, vector, shared);
  if (p.dw == 0) return;
  find_repeats(p, first, shared);
  const u32 earlier = any_warp(shared.earlier), later = any_warp(shared.later);
  u32 parity = 0;
  for (u32 k = 0; k < OWN; ++k) {
    const int id = shared.id[k];
    if (id < 0 || static_cast<u32>(id) >= p.vocab || (earlier >> k & 1) != 0) continue;
    float* dw = global<float>(p.dw) + static_cast<u64>(id) * p.hidden;
    float old[V], sum[V];
    load_elements(dw, column, p.hidden, vector, old);
    if ((later >> k & 1) != 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] = 0.0f;
      add_repeats<T>(p, first + k, id, column, vector, parity, sum, shared);
    } else {
      load_elements(global<const T>(p.dy) + static_cast<u64>(first + k) * p.hidden, column, p.hidden, vector, sum);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = old[j] + sum[j];
    store_elements(dw, column, p.hidden, vector, sum);
  }
}

#define FWD(SYMBOL, W, T) \
  extern "C" __global__ void __launch_bounds__(256) SYMBOL(const __grid_constant__ FwdParams p) { forward<W, T>(p); }
#define BWD(SYMBOL, T) \
  extern "C" __global__ void __launch_bounds__(TILE, 4) SYMBOL(const __grid_constant__ BwdParams p) { backward<T>(p); }

FWD(embedding_fwd_f32_f32, float, float)
FWD(embedding_fwd_f32_bf16, float, bf16)
FWD(embedding_fwd_bf16_f32, bf16, float)
FWD(embedding_fwd_bf16_bf16, bf16, bf16)
BWD(embedding_bwd_f32, float)
BWD(embedding_bwd_bf16, bf16)
