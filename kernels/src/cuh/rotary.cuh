// The rotation of rotary position embeddings.
#pragma once

#include "cuh/base.cuh"

// Rotates V pairs (x[i], x[half + i]) by the angles of cosine and sine. Reads all pairs before it writes to y, which may be
// x. In f32, rounded once to T.
template <int V, class T>
__device__ __forceinline__ void rotate_pair(const T* x, T* y, u32 half, const float (&cosine)[V], const float (&sine)[V]) {
  float a[V], b[V], low[V], high[V];
  load_vector(x, a);
  load_vector(x + half, b);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    low[j] = a[j] * cosine[j] - b[j] * sine[j];
    high[j] = b[j] * cosine[j] + a[j] * sine[j];
  }
  store_vector(y, low);
  store_vector(y + half, high);
}
