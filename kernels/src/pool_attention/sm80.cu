// Attention pooling, one learned query over the tokens of each image; formula, shapes and limits: mod.rs.
//
// Numerics. f32 between load and store, 2^x by ex2.approx; o is rounded once.
//
// Order. A key's product with the query: each of four lanes sums every fourth 16-byte unit, then the lanes are added
// in pairs. Keys come in blocks of 64, whose weights a warp sums; a thread adds the values of every GROUPS-th key of a
// block (GROUPS depends on head_dim); the threads' sums are added in order at the end.
//
// Grid. A block of 128 threads for each image and head.
//
//   for each block of 64 keys:
//     four lanes per key: score = q k, to shared memory; barrier
//     every warp computes the same: raise the maximum, sum the weights        (cuh/online_softmax.cuh)
//     a thread reads 16 bytes of every GROUPS-th value: o += weight v
//   o = sum of the threads' o / sum of weights
//
// Departures. Keys and values go from global memory straight to registers, because each is used once.
//
// Bound. Memory.
#include "cuh/base.cuh"
#include "cuh/online_softmax.cuh"
#include "cuh/warp.cuh"

constexpr int THREADS = 128;
constexpr int KEYS = BLOCK_KEYS;
// LANES lanes of a warp share a key. COLUMNS is the largest head_dim.
constexpr int LANES = 4;
constexpr int COLUMNS = 128;
// Number of 16-byte units of a key that a lane loads.
template <class T>
constexpr int UNITS = COLUMNS / (LANES * VECTOR<T>);

// What this block computes: one head of one image. `column` is the head's first column in a token's row of `row`
// elements.
struct Head {
  u32 image, first_token, tokens, column, row;

  __device__ __forceinline__ explicit Head(const FwdParams& p) {
    image = blockIdx.x / p.heads;
    const int* cu = global<const int>(p.cu_seqlens) + image;
    first_token = cu[0];
    tokens = cu[1] - cu[0];
    column = blockIdx.x % p.heads * p.head_dim;
    row = p.heads * p.head_dim;
  }
  __device__ __forceinline__ u64 at(u32 token) const { return static_cast<u64>(first_token + token) * row + column; }
  __device__ __forceinline__ u64 pooled() const { return static_cast<u64>(image) * row + column; }
};

// Loads the columns of a head as f32, with zeros from head_dim on; a barrier must follow.
template <class T>
__device__ __forceinline__ void load_columns(const T* from, u32 d, float (&to)[COLUMNS]) {
  static_assert(THREADS == COLUMNS, "one thread per column");
  to[threadIdx.x] = threadIdx.x < d ? to_f32(from[threadIdx.x]) : 0.0f;
}

// Returns the index of the first column in unit i of this lane (units are 16 bytes).
template <class T>
__device__ __forceinline__ u32 column_of(int i) {
  return (threadIdx.x % LANES + i * LANES) * VECTOR<T>;
}

// The columns of a key or value that one lane holds, with zeros from head_dim on.
template <class T>
struct Part {
  Words<16> unit[UNITS<T>];

  __device__ __forceinline__ void load(const T* from, u32 d, bool vector) {
#pragma unroll
    for (int i = 0; i < UNITS<T>; ++i) unit[i] = load_words(from, column_of<T>(i), d, vector);
  }
  // Returns the dot product of this key or value with `x`. Each lane multiplies the columns that it holds, and the
  // sums of the lanes are added.
  __device__ __forceinline__ float dot(const float (&x)[COLUMNS]) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS<T>; ++i) {
      float a[VECTOR<T>], b[VECTOR<T>];
      unpack<T>(unit[i], a);
      load_vector(x + column_of<T>(i), b);
#pragma unroll
      for (int j = 0; j < VECTOR<T>; ++j) sum = __fmaf_rn(a[j], b[j], sum);
    }
    return row_sum<LANES>(sum);
  }
};

template <class T>
__device__ __forceinline__ void forward(const FwdParams& p) {
  constexpr int V = VECTOR<T>;
  __shared__ alignas(16) float q[COLUMNS];
  __shared__ float scores[2][KEYS];
  __shared__ alignas(16) float parts[V / 4][THREADS + 4][4];  // the two halves are 16 banks apart
  const Head head(p);
  const u32 d = p.head_dim, lane = threadIdx.x % 32;
  const bool vector = d % V == 0 && aligned16(p.k, p.v);
  const float factor = p.scale * LOG2_E;
  const T *k = global<const T>(p.k), *v = global<const T>(p.v);
  load_columns(global<const T>(p.q) + head.column, d, q);
  __syncthreads();

  const u32 units = ceil_div<u32>(d, V), groups = min(THREADS / units, static_cast<u32>(KEYS));
  const u32 unit = threadIdx.x % units, group = threadIdx.x / units;
  SoftmaxRow row = empty_row();
  float o[V];
#pragma unroll
  for (int j = 0; j < V; ++j) o[j] = 0.0f;
  // There are two buffers of scores, so that one barrier per block of keys is enough: a warp that is one block ahead
  // writes to the other buffer.
  for (u32 start = 0, parity = 0; start < head.tokens; start += KEYS, parity ^= 1) {
#pragma unroll
    for (int round = 0; round < KEYS / (THREADS / LANES); ++round) {
      const u32 key = round * (THREADS / LANES) + threadIdx.x / LANES;
      const bool exists = start + key < head.tokens;
      Part<T> part;
      part.load(k + head.at(exists ? start + key : 0), exists ? d : 0, vector);
      const float score = part.dot(q);
      if (lane % LANES == 0) scores[parity][key] = exists ? score : minus_infinity();
    }
    __syncthreads();
    const float a = scores[parity][lane], b = scores[parity][lane + 32];
    const float rescale = raise_max(row, warp_max(fmaxf(a, b)), factor);
    const float max = reference(row.max);
    row.sum = __fadd_rn(row.sum, warp_sum(__fadd_rn(weight(a, factor, max), weight(b, factor, max))));
    if (group >= groups) continue;
#pragma unroll
    for (int j = 0; j < V; ++j) o[j] *= rescale;
    const u32 end = min(static_cast<u32>(KEYS), head.tokens - start);
#pragma unroll 4
    for (u32 key = group; key < end; key += groups) {
      const float w = weight(scores[parity][key], factor, max);
      float x[V];
      unpack<T>(load_words(v + head.at(start + key), unit * V, d, vector), x);
#pragma unroll
      for (int j = 0; j < V; ++j) o[j] = __fmaf_rn(w, x[j], o[j]);
    }
  }
#pragma unroll
  for (int h = 0; h < V / 4; ++h) {
    const float quarter[4] = {o[4 * h], o[4 * h + 1], o[4 * h + 2], o[4 * h + 3]};
    store_vector(parts[h][threadIdx.x], quarter);
  }
  __syncthreads();
  const u32 c = threadIdx.x;
  if (c < d) {
    const u32 first = c / V, h = c % V / 4, j = c % 4;
    float sum = parts[h][first][j];
    for (u32 g = 1; g < groups; ++g) sum = __fadd_rn(sum, parts[h][g * units + first][j]);
    const float inverse = head.tokens == 0 ? 0.0f : inverse_sum(row);
    global<T>(p.o)[head.pooled() + c] = from_f32<T>(sum * inverse);
  }
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) NAME(const __grid_constant__ FwdParams p) { forward<T>(p); }
KERNEL(pool_attention_fwd_f32, float)
KERNEL(pool_attention_fwd_bf16, bf16)
