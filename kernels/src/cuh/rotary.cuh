// The rotation of rotary position embeddings.
#pragma once

#include "cuh/base.cuh"

// Rotates the pair (a, b) by the angle of cosine and sine, in f32: low = a cos - b sin, high = b cos + a sin. In
// every kernel the second product is rounded and the first product is fused with the addition.
__device__ __forceinline__ void rotate(float a, float b, float cosine, float sine, float& low, float& high) {
  low = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
  high = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
}

// Rotates V pairs (x[i], x[half + i]) by the angles of cosine and sine. Reads all pairs before it writes to y, so y
// may be x. Computes in f32 and rounds each result once to T.
template <int V, class T>
__device__ __forceinline__ void rotate_pair(const T* x, T* y, u32 half, const float (&cosine)[V], const float (&sine)[V]) {
  float a[V], b[V], low[V], high[V];
  load_vector(x, a);
  load_vector(x + half, b);
#pragma unroll
  for (int j = 0; j < V; ++j) rotate(a[j], b[j], cosine[j], sine[j], low[j], high[j]);
  store_vector(y, low);
  store_vector(y + half, high);
}
