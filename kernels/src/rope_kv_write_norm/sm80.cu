// Normalises and rotates q and k of new tokens, q in place and k into the paged KV cache, and copies v into the cache.
//
//   q[t, h] = rotate(rms_norm(q[t, h], q_norm))
//   k_cache[slots[t]] = rotate(rms_norm(k[t], k_norm));  v_cache[slots[t]] = v[t]
//   rotate(x): y[i] = x[i] cos[i] - x[i + h] sin[i],  y[i + h] = x[i + h] cos[i] + x[i] sin[i]
//
// Shapes and limits: mod.rs. Numerics: rotary.cuh, rms_norm/rstd.cuh; v is copied.
//
// Grid: a thread of the first dimension has a 16-byte vector of one half of a head of one token and its partner in the
// other half; the second dimension divides the heads (of q, then k, then v) among gridDim.y threads, each of which
// takes neighbouring heads. The threads of a head are neighbours in one warp, which add up its squares. If their number
// is no power of two, or addresses are not aligned, a warp has one head and reads it twice. Memory-bound.

#include "cuh/dependent.cuh"
#include "cuh/rotary.cuh"
#include "rms_norm/rstd.cuh"

constexpr int THREADS = 256;

// Copies 16 bytes without a change of bits.
template <class T>
__device__ __forceinline__ void copy_vector(const T* from, T* to) {
  *reinterpret_cast<Words<16>*>(to) = *reinterpret_cast<const Words<16>*>(from);
}

// The head h of q, k and v together: where it is read and written. `to` is null if it is not written.
template <class T>
struct Head {
  const T* from;
  T* to;

  __device__ __forceinline__ Head(const Params& p, u64 token, int place, u32 h) {
    if (h < p.heads) {
      to = global<T>(p.q) + (token * p.heads + h) * p.head_dim;
      from = to;
      return;
    }
    const bool is_value = h >= p.heads + p.kv_heads;
    const u32 head = h - p.heads - (is_value ? p.kv_heads : 0);
    from = global<const T>(is_value ? p.v : p.k) + (token * p.kv_heads + head) * p.head_dim;
    to = global<T>(is_value ? p.v_cache : p.k_cache) +
         (static_cast<u64>(static_cast<u32>(place)) * p.kv_heads + head) * p.head_dim;
    if (place < 0) to = nullptr;  // a row of padding
  }
};

// Normalises pairs of elements with the weights u and w, and rotates them.
template <int V, class T>
__device__ __forceinline__ void normalise_and_rotate(float (&a)[V], float (&b)[V], const float (&u)[V],
                                                     const float (&w)[V], float rstd, const float (&cosine)[V],
                                                     const float (&sine)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float x = rounded<T>(u[j] * rounded<T>(a[j] * rstd)), y = rounded<T>(w[j] * rounded<T>(b[j] * rstd));
    rotate(x, y, cosine[j], sine[j], a[j], b[j]);
  }
}

// Writes the vectors of a thread. All threads of a warp call it. chunks = head_dim / 2 / V is a power of two up to 16.
// A warp of the forward kernel of rms_norm has 2 * chunks lanes with V elements each, and adds first the lanes that are
// `chunks` apart, whose elements are here in one thread.
template <class T>
__device__ __forceinline__ void write_chunk(const Params& p, u64 thread) {
  constexpr int V = VECTOR<T>;
  const u32 half = p.head_dim / 2, chunks = half / V, i = static_cast<u32>(thread % chunks) * V;
  const u64 token = thread / chunks;
  const u32 heads = p.heads + 2 * p.kv_heads, per_thread = ceil_div(heads, gridDim.y);
  const u32 first = blockIdx.y * per_thread, end = min(first + per_thread, heads);
  const bool live = token < p.tokens;
  const int place = live ? global<const int>(p.slots)[token] : -1;
  float cosine[V] = {}, sine[V] = {}, u[V], w[V];
  if (live && first < p.heads + p.kv_heads) {
    load_vector(global<const float>(p.cos) + token * half + i, cosine);
    load_vector(global<const float>(p.sin) + token * half + i, sine);
  }
  for (u32 h = first; h < end; ++h) {
    const Head<T> head(p, token, place, h);
    const bool writes = live && head.to != nullptr;
    if (h >= p.heads + p.kv_heads) {
      if (!writes) return;
      copy_vector(head.from + i, head.to + i);
      copy_vector(head.from + half + i, head.to + half + i);
      continue;
    }
    if (h == first || h == p.heads) {
      const T* weights = global<const T>(h < p.heads ? p.q_norm : p.k_norm);
      load_vector(weights + i, u);
      load_vector(weights + half + i, w);
    }
    float a[V] = {}, b[V] = {}, low = 0.0f, high = 0.0f;
    if (writes) {
      load_vector(head.from + i, a);
      load_vector(head.from + half + i, b);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      low = fmaf(a[j], a[j], low);
      high = fmaf(b[j], b[j], high);
    }
    float square = low + high;
    for (u32 mask = chunks / 2; mask > 0; mask /= 2) square += shuffle_xor(square, mask);
    const float rstd = rsqrtf(divide(square, static_cast<float>(p.head_dim)) + p.eps);
    normalise_and_rotate<V, T>(a, b, u, w, rstd, cosine, sine);
    if (writes) {
      store_vector(head.to + i, a);
      store_vector(head.to + half + i, b);
    }
  }
}

// Writes one head, element by element. All threads of a warp call it for the same head.
template <class T>
__device__ __forceinline__ void write_head(const Params& p, u64 token, u32 h) {
  const u32 half = p.head_dim / 2, lane = threadIdx.x % 32;
  const Head<T> head(p, token, global<const int>(p.slots)[token], h);
  if (head.to == nullptr) return;  // for all threads of the warp
  const bool is_value = h >= p.heads + p.kv_heads;
  const T* weights = global<const T>(h < p.heads ? p.q_norm : p.k_norm);
  const float square = squares_of_warp(head.from, p.head_dim, 0, 1, false);
  const float rstd = rsqrtf(divide(square, static_cast<float>(p.head_dim)) + p.eps);
  __syncwarp();  // All lanes have read their squares before q is overwritten.
  for (u32 i = lane; i < half; i += 32) {
    if (is_value) {
      head.to[i] = head.from[i];
      head.to[half + i] = head.from[half + i];
      continue;
    }
    float a[1], b[1], u[1], w[1], cosine[1], sine[1];
    load_vector(head.from + i, a);
    load_vector(head.from + half + i, b);
    load_vector(weights + i, u);
    load_vector(weights + half + i, w);
    load_vector(global<const float>(p.cos) + token * half + i, cosine);
    load_vector(global<const float>(p.sin) + token * half + i, sine);
    normalise_and_rotate<1, T>(a, b, u, w, rstd, cosine, sine);
    store_vector(head.to + i, a);
    store_vector(head.to + half + i, b);
  }
}

template <class T>
__device__ __forceinline__ void write(const Params& p) {
  let_next_launch_start();
  wait_for_previous_launch();
  const u64 thread = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
  const u32 half = p.head_dim / 2, chunks = half / VECTOR<T>;
  const bool aligned = aligned16(p.q, p.k, p.v, p.cos, p.sin, p.k_cache, p.v_cache, p.q_norm, p.k_norm);
  if (half % VECTOR<T> == 0 && chunks <= 16 && (chunks & (chunks - 1)) == 0 && aligned) {
    write_chunk<T>(p, thread);
    return;
  }
  const u32 heads = p.heads + 2 * p.kv_heads;
  const u64 all = static_cast<u64>(p.tokens) * heads, step = static_cast<u64>(gridDim.x) * gridDim.y * (THREADS / 32);
  const u64 block = static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x;
  for (u64 i = block * (THREADS / 32) + threadIdx.x / 32; i < all; i += step) {
    write_head<T>(p, i / heads, static_cast<u32>(i % heads));
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p)

KERNEL(rope_kv_write_norm_f32) { write<float>(p); }
KERNEL(rope_kv_write_norm_bf16) { write<bf16>(p); }
