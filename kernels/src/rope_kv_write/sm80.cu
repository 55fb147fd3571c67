// Rotates q and k of new tokens by their angles, q in place and k into the paged KV cache, and copies v into the cache.
//
//   q[t, h] = rotate(q[t, h]);  k_cache[slots[t]] = rotate(k[t]);  v_cache[slots[t]] = v[t]
//   rotate(x): y[i] = x[i] cos[i] - x[i + h] sin[i],  y[i + h] = x[i + h] cos[i] + x[i] sin[i]
//
// Shapes and limits: mod.rs. Numerics: rotary.cuh; v is copied.
//
// Grid: a thread of the first dimension has a 16-byte vector of one half of a head of one token and its partner in the
// other half; the second dimension divides the heads (of q, then k, then v) among gridDim.y threads, each of which
// takes neighbouring heads. A thread reads both vectors before it writes them, because q is rotated in place.
// Memory-bound.

#include "cuh/dependent.cuh"
#include "cuh/rotary.cuh"

constexpr int THREADS = 256;

// Copies V elements without a change of bits.
template <int V, class T>
__device__ __forceinline__ void copy_vector(const T* from, T* to) {
  if constexpr (V == 1) {
    *to = *from;
  } else {
    *reinterpret_cast<Words<V * sizeof(T)>*>(to) = *reinterpret_cast<const Words<V * sizeof(T)>*>(from);
  }
}

template <int V, class T>
__device__ __forceinline__ void write_chunk(const Params& p, u64 thread) {
  const u32 half = p.head_dim / 2, chunks = half / V;
  const u32 i = static_cast<u32>(thread % chunks) * V;
  const u64 token = thread / chunks;
  if (token >= p.tokens) return;
  const u32 heads = p.heads + 2 * p.kv_heads, per_thread = ceil_div(heads, gridDim.y);
  const u32 first = blockIdx.y * per_thread, end = min(first + per_thread, heads);
  const int place = global<const int>(p.slots)[token];
  float cosine[V], sine[V];
  if (first < p.heads + p.kv_heads) {
    load_vector(global<const float>(p.cos) + token * half + i, cosine);
    load_vector(global<const float>(p.sin) + token * half + i, sine);
  }
  for (u32 h = first; h < end; ++h) {
    if (h < p.heads) {
      T* q = global<T>(p.q) + (token * p.heads + h) * p.head_dim + i;
      rotate_pair<V>(q, q, half, cosine, sine);
      continue;
    }
    if (place < 0) return;  // a row of padding
    const bool is_value = h >= p.heads + p.kv_heads;
    const u32 head = h - p.heads - (is_value ? p.kv_heads : 0);
    const u64 from = (token * p.kv_heads + head) * p.head_dim + i;
    const u64 to = (static_cast<u64>(static_cast<u32>(place)) * p.kv_heads + head) * p.head_dim + i;
    if (is_value) {
      const T* v = global<const T>(p.v) + from;
      T* cache = global<T>(p.v_cache) + to;
      copy_vector<V>(v, cache);
      copy_vector<V>(v + half, cache + half);
    } else {
      rotate_pair<V>(global<const T>(p.k) + from, global<T>(p.k_cache) + to, half, cosine, sine);
    }
  }
}

template <class T>
__device__ __forceinline__ void write(const Params& p) {
  let_next_launch_start();
  wait_for_previous_launch();
  const u64 thread = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
  constexpr int V = VECTOR<T>;
  if (p.head_dim / 2 % V == 0 && aligned16(p.q, p.k, p.v, p.cos, p.sin, p.k_cache, p.v_cache)) {
    write_chunk<V, T>(p, thread);
  } else {
    // Unaligned addresses need a thread for each element. The launch plan does not know the addresses and has fewer
    // threads, so each thread takes several elements in a loop.
    const u64 step = static_cast<u64>(gridDim.x) * THREADS, all = static_cast<u64>(p.tokens) * (p.head_dim / 2);
    for (u64 i = thread; i < all; i += step) write_chunk<1, T>(p, i);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p)

KERNEL(rope_kv_write_f32) { write<float>(p); }
KERNEL(rope_kv_write_bf16) { write<bf16>(p); }
