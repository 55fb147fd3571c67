// Attention pooling, one learned query over the tokens of each image, and its gradient; formula, shapes and limits:
// mod.rs.
//
// Numerics. f32 between load and store, 2^x by ex2.approx; o, dk, dv and dq are rounded once.
//
// Order. A key's product with the query: each of four lanes sums every fourth 16-byte unit, then the lanes are added
// in pairs. fwd: keys come in blocks of 64, whose weights a warp sums; a thread adds the values of every GROUPS-th
// key of a block (GROUPS depends on head_dim); the threads' sums are added in order at the end. bwd: a lane sums dq
// over every 32nd key; then lanes are added in pairs, then warps, then images in order.
//
// Grid. fwd, bwd: a block of 128 threads for each image and head. dq: a thread for each element.
//
//   fwd: for each block of 64 keys:
//          four lanes per key: score = q k, to shared memory; barrier
//          every warp computes the same: raise the maximum, sum the weights        (cuh/online_softmax.cuh)
//          a thread reads 16 bytes of every GROUPS-th value: o += weight v
//        o = sum of the threads' o / sum of weights
//   bwd: delta = d_o o
//        for each 32 keys, four lanes per key: load k, v; p, ds; store dv = p d_o, dk = ds q; dq += ds k
//
// Departures. Keys and values go from global memory straight to registers, because each is used once.
//
// Bound. Memory.
#include "cuh/base.cuh"
#include "cuh/online_softmax.cuh"
#include "cuh/warp.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
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

  template <class P>
  __device__ __forceinline__ explicit Head(const P& p) {
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
  if (p.lse != 0 && c == 0) global<float>(p.lse)[blockIdx.x] = log_sum(row);
}

template <class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  constexpr int V = VECTOR<T>;
  __shared__ alignas(16) float q[COLUMNS], d_o[COLUMNS];
  __shared__ float scratch[WARPS];
  __shared__ alignas(16) float parts[WARPS][COLUMNS];
  const Head head(p);
  const u32 d = p.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool vector = d % V == 0 && aligned16(p.k, p.v, p.dk, p.dv);
  const float factor = p.scale * LOG2_E;
  load_columns(global<const T>(p.q) + head.column, d, q);
  load_columns(global<const T>(p.d_o) + head.pooled(), d, d_o);
  const float o = threadIdx.x < d ? to_f32(global<const T>(p.o)[head.pooled() + threadIdx.x]) : 0.0f;
  // The barrier in block_sum also makes the columns of q and d_o visible to all threads.
  const float delta = block_sum<THREADS>(d_o[threadIdx.x] * o, scratch);
  const float lse = global<const float>(p.lse)[blockIdx.x] * LOG2_E;

  float dq[UNITS<T>][V];
#pragma unroll
  for (int i = 0; i < UNITS<T>; ++i) {
#pragma unroll
    for (int j = 0; j < V; ++j) dq[i][j] = 0.0f;
  }
  for (u32 start = 0; start < head.tokens; start += THREADS / LANES) {
    const u32 key = start + threadIdx.x / LANES;
    const bool exists = key < head.tokens;
    const u64 at = head.at(exists ? key : 0);
    const u32 columns = exists ? d : 0;
    Part<T> k, v;
    k.load(global<const T>(p.k) + at, columns, vector);
    v.load(global<const T>(p.v) + at, columns, vector);
    const float score = k.dot(q), d_weight = v.dot(d_o);  // all lanes of the warp must take part
    const float weight = exp2_approx(__fmaf_rn(score, factor, -lse));
    const float ds = exists ? p.scale * weight * (d_weight - delta) : 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS<T>; ++i) {
      const u32 c = column_of<T>(i);
      float x[V];
      load_vector(d_o + c, x);
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] *= weight;
      store_elements(global<T>(p.dv) + at, c, columns, vector, x);
      load_vector(q + c, x);
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] *= ds;
      store_elements(global<T>(p.dk) + at, c, columns, vector, x);
      unpack<T>(k.unit[i], x);
#pragma unroll
      for (int j = 0; j < V; ++j) dq[i][j] = __fmaf_rn(ds, x[j], dq[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < UNITS<T>; ++i) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
#pragma unroll
      for (int mask = LANES; mask < 32; mask *= 2) dq[i][j] = __fadd_rn(dq[i][j], shuffle_xor(dq[i][j], mask));
    }
    if (lane < LANES) store_vector(parts[warp] + column_of<T>(i), dq[i]);
  }
  __syncthreads();
  if (threadIdx.x >= d) return;
  float sum = parts[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < WARPS; ++w) sum = __fadd_rn(sum, parts[w][threadIdx.x]);
  global<float>(p.partial)[head.pooled() + threadIdx.x] = sum;
}

template <class T>
__device__ __forceinline__ void sum_images(const BwdParams& p) {
  const u32 row = p.heads * p.head_dim, c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= row) return;
  float sum = 0.0f;
#pragma unroll 4
  for (u32 image = 0; image < p.images; ++image) {
    sum = __fadd_rn(sum, global<const float>(p.partial)[static_cast<u64>(image) * row + c]);
  }
  global<T>(p.dq)[c] = from_f32<T>(sum);
}

#define KERNEL(NAME, PARAMS, BLOCKS, CALL) \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ PARAMS p) { CALL(p); }
#define KERNELS(T, FWD, BWD, BWD_BLOCKS, BWD_DQ)  \
  KERNEL(FWD, FwdParams, 4, forward<T>)           \
  KERNEL(BWD, BwdParams, BWD_BLOCKS, backward<T>) \
  KERNEL(BWD_DQ, BwdParams, 4, sum_images<T>)
KERNELS(float, pool_attention_fwd_f32, pool_attention_bwd_f32, 2, pool_attention_bwd_f32_dq)
KERNELS(bf16, pool_attention_fwd_bf16, pool_attention_bwd_bf16, 3, pool_attention_bwd_bf16_dq)
