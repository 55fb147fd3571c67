// The shared memory of a block of a cluster: the logits, later the weights, of its runs of the row (ranges of token
// ids), and the values that the warps of all blocks exchange. The kernel is in cluster.cuh.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/warp.cuh"
#include "sample/row.cuh"

namespace in_cluster {

constexpr int BLOCKS = 8;
constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int DIGIT = 8;  // bits
constexpr int BINS = 1 << DIGIT;
constexpr int LISTED = 128;  // keys
static_assert(BLOCKS * WARPS == RUNS, "one warp per run");

// Dynamic shared memory of a block. First come two bits (marks) for each of the block's token ids, then the ids'
// logits, which weights replace later. cluster_shared_bytes in mod.rs computes the size.
extern __shared__ __align__(16) u32 ids_of_block[];

// Arrays of RUNS elements have one element per run (range of token ids) of the row. The warp that processes the run
// writes it.
struct Shared {
  u64 bins[3][BINS];
  u32 list[3][LISTED];        // keys of this block's candidates
  u32 listed[3];              // their number, also of those that the list does not hold
  u64 amounts[LISTED];        // of the candidates of all blocks
  u32 keys[LISTED];
  u64 first[RUNS];            // score_and_id of the largest score; 0 without a score above -inf
  u64 logit[RUNS];            // the largest logit, ordered, in the upper half; whether there is a NaN in the lower half
  u64 top_counts[RUNS];       // tokens above the last of the most likely tokens (upper half) and equal to it
  u64 total[RUNS];
  u64 scaled[ExpSum::WORDS][RUNS], plain[ExpSum::WORDS][RUNS];
  alignas(16) u64 above[RUNS];
  alignas(16) u32 equal[RUNS];
  u64 scratch[BINS / 32];
  u64 sum_above;
  u32 digit, key, bound;
  bool few;
  Settings settings;
  float top_logit[MAX_TOPS];
  int top_id[MAX_TOPS];
};
// The limit equals SHARED_OF_CLUSTER_KERNEL in mod.rs.
static_assert(sizeof(Shared) <= 26 * 1024, "static shared memory");

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

using ::max_or_nan;
__device__ __forceinline__ float max_or_nan(const float (&x)[4]) {
  return max_or_nan(max_or_nan(x[0], x[1]), max_or_nan(x[2], x[3]));
}

// The run of this warp.
struct Run {
  // The logits of this block's token ids, in shared memory; weights replace them later. If the vocabulary is not a
  // multiple of four, logits of -inf follow, which become weights of 0.
  float* values;
  Marks marks;
  int begin, end;

  // Calls f(id, values) for the four neighbouring tokens of this lane in each tile; `id` is the first of the four.
  template <class F>
  __device__ __forceinline__ void each_four(F f) const {
    for (int id = begin + lane() * 4; id < end; id += TILE) {
      float x[4];
      load_vector(values + (id - marks.first), x);
      f(id, x);
    }
  }

  // Calls f(value) for this lane's values, but skips four neighbouring values if all of them are below `floor`.
  template <class F>
  __device__ __forceinline__ void values_from(float floor, F f) const {
    each_four([&](int, const float (&x)[4]) {
      if (max_or_nan(x) >= floor) {
#pragma unroll
        for (int j = 0; j < 4; ++j) f(x[j]);
      }
    });
  }

  // Returns this lane's values in the tile of 128 ids that begins at `tile`, and `outside` for ids beyond the end of
  // the warp's range of ids.
  __device__ __forceinline__ void load_tile(int tile, float outside, float (&x)[4]) const {
    const int id = tile + lane() * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = outside;
    if (id < end) load_vector(values + (id - marks.first), x);
  }
};

// Stores x at the address of `place` in the shared memory of every block of the cluster. All lanes of the warp have the
// same x.
template <class T>
__device__ __forceinline__ void give_to_all(T& place, T x) {
  if (lane() < BLOCKS) store_of_block(shared_of_block(&place, lane()), x);
}

}  // namespace in_cluster

#endif
