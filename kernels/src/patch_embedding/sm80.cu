// Patch embedding from u8 frames, and the gradient of its weight.
//
//   pixel[n, k] = T((f32(level * rescale) - mean[c]) / std[c]),  k = ((c * temporal + f) * patch + y) * patch + x
//   fwd: y[n, e] = T(sum over k of pixel[n, k] * weight[e, k] (+ bias[e]))
//   dw:  dw[e, k] (+)= sum over n of dy[n, e] * pixel[n, k]
//
// Shapes and limits: mod.rs. Numerics: level * rescale is the exact product with the upper 16 bits of rescale plus
// the product with its next 24 bits, rounded once; the difference rounds to f32; the quotient is computed from the
// reciprocal and corrected by its remainder; in bf16 the pixel rounds once more. bf16: tensor cores; f32: fused
// multiply-adds; sums in f32; y rounds once. Order of sums: in fwd k ascends; in dw n ascends in one sum, which is
// added to the old dw. Neither depends on the tile.
//
// Grid: x = a tile of 64 patches (dw: 64 elements k) by COLUMNS embedding columns, columns fastest, so that
// concurrent blocks share pixels. A block loops over all slices of 32 of the summed dimension; 3 stages of both
// operands are in shared memory.
//
//   for each slice:
//     wait for its weights (dy); barrier
//     start copying the weights (dy) two slices ahead
//     convert the levels two slices ahead, which are in registers, to pixels and store them
//     load the levels three slices ahead; one warp in turn computes the addresses four slices ahead
//     sums += pixels weights^T   (dw: dy^T pixels)
//   store
//
// Bytes are read one by one, since the channels of a pixel belong to different k; the L1 cache holds the other two.
// Indices beyond the patches or beyond k are not masked: they read some existing pixel, which is multiplied by a
// weight (dy) of 0 or gives a result that is not stored. If k (dw: embed) is not a multiple of 16 bytes, weights (dy)
// are copied element by element. Bound by matrix products.
#include "patch_embedding/tiles.cuh"

constexpr int STAGES = 3;
// Number of slices for which shared memory holds the descriptions of their patch elements (in dw: of their patches).
constexpr int PREPARED = STAGES + 1;

extern __shared__ __align__(128) unsigned char shared[];

// Multiplies slice by slice. While it multiplies a slice, two later slices are in shared memory, and the levels of a
// third are in registers.
//   prepare(slice): one warp computes in shared memory what fetch needs;  fetch(slice): loads levels to registers
//   put(stage): stores these levels as pixels;  load(slice, stage): copies the slice of the other operand
template <class P, class Prepare, class Fetch, class Put, class Load>
__device__ __forceinline__ void walk(P& product, u32 slices, Prepare prepare, Fetch fetch, Put put, Load load) {
  const auto prepare_in_turn = [&](u32 slice) {
    if (threadIdx.x / 32 == slice % (THREADS / 32)) prepare(slice);
  };
#pragma unroll 1
  for (u32 slice = 0; slice < PREPARED; ++slice) prepare_in_turn(slice);
  __syncthreads();
  fetch(0);
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < slices) load(stage, shared + stage * P::STAGE);
    cp_async_commit();
    put(shared + stage * P::STAGE);
    fetch(stage + 1);
  }
  int stage = 0;
  for (u32 slice = 0; slice < slices; ++slice) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this slice is there for all, and all are done with the one before
    unsigned char* ahead = shared + (stage == 0 ? STAGES - 1 : stage - 1) * P::STAGE;
    if (slice + STAGES - 1 < slices) load(slice + STAGES - 1, ahead);
    cp_async_commit();
    put(ahead);
    fetch(slice + STAGES);
    prepare_in_turn(slice + PREPARED);
    product.multiply(shared + stage * P::STAGE);
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
}

template <class P>
__device__ __forceinline__ void forward(const FwdParams& p) {
  using T = typename P::T;
  const u32 k = elements(p.pixels), count = patches(p.pixels), tiles = ceil_div<u32>(p.embed, P::COLUMNS);
  const u32 first_row = blockIdx.x / tiles * P::ROWS, first_column = blockIdx.x % tiles * P::COLUMNS;
  const bool vector = aligned16(p.weight, static_cast<u64>(k) * sizeof(T));
  set_channels(p.pixels);
  __shared__ Elements<SLICE> elements[PREPARED];
  const Patch patch = find_patch(p.pixels, count, first_row + threadIdx.x / 4);
  Levels levels;
  P product;
  product.clear();
  walk(
      product, ceil_div<u32>(k, SLICE),
      [&](u32 slice) {
        const u32 lane = threadIdx.x % 32;
        elements[slice % PREPARED].set(p.pixels, lane, slice * SLICE + lane);
      },
      [&](u32 slice) {
        const u32 at = threadIdx.x % 4 * RUN;
        levels.load(p.pixels, p.frames, patch, elements[slice % PREPARED], at, at + RUN / 2);
      },
      [&](unsigned char* stage) {
        float x[RUN];
        to_pixels(levels, x);
        P::put_pixels(stage, x);
      },
      [&](u32 slice, unsigned char* stage) {
        P::load_weights(stage, global<const T>(p.weight), first_column, p.embed, slice * SLICE, k, vector);
      });
  const bool pairs = p.embed % 2 == 0;
  product.each([&](u32 row, u32 column, const float(&sums)[P::SIDE]) {
    constexpr int N = P::SIDE;
    row += first_row;
    column += first_column;
    if (row >= count) return;
    float y[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      y[j] = sums[j];
      if (p.bias != 0 && column + j < p.embed) y[j] = __fadd_rn(y[j], to_f32(global<const T>(p.bias)[column + j]));
    }
    store_elements(global<T>(p.y) + static_cast<u64>(row) * p.embed, column, p.embed, pairs, y);
  });
}

template <class P>
__device__ __forceinline__ void weight_gradient(const DwParams& p) {
  using T = typename P::T;
  const u32 k = elements(p.pixels), count = patches(p.pixels), tiles = ceil_div<u32>(p.embed, P::COLUMNS);
  const u32 first_k = blockIdx.x / tiles * P::ROWS, first_column = blockIdx.x % tiles * P::COLUMNS;
  const bool vector = aligned16(p.dy, static_cast<u64>(p.embed) * sizeof(T));
  set_channels(p.pixels);
  __shared__ Elements<P::ROWS> elements;
  __shared__ Patch patches_ahead[PREPARED][SLICE];
  if (threadIdx.x < P::ROWS) elements.set(p.pixels, threadIdx.x, first_k + threadIdx.x);
  Levels levels;
  P product;
  product.clear();
  walk(
      product, ceil_div<u32>(count, SLICE),
      [&](u32 slice) {
        const u32 lane = threadIdx.x % 32;
        patches_ahead[slice % PREPARED][lane] = find_patch(p.pixels, count, slice * SLICE + lane);
      },
      [&](u32 slice) {
        const Patch patch = patches_ahead[slice % PREPARED][threadIdx.x / 8];
        const u32 first = threadIdx.x % 8 * (P::APART == RUN / 2 ? RUN : RUN / 2);
        levels.load(p.pixels, p.frames, patch, elements, first, first + P::APART);
      },
      [&](unsigned char* stage) {
        float x[RUN];
        to_pixels(levels, x);
        P::put_pixels(stage, x);
      },
      [&](u32 slice, unsigned char* stage) {
        P::load_dy(stage, global<const T>(p.dy), slice * SLICE, count, first_column, p.embed, vector);
      });
  const bool pairs = k % 2 == 0;
  product.each([&](u32 column, u32 at, const float(&sums)[2]) {
    column += first_column;
    at += first_k;
    if (column >= p.embed) return;
    float* dw = global<float>(p.dw) + static_cast<u64>(column) * k;
    float before[2];
    if (p.accumulate != 0) load_elements(dw, at, k, pairs, before);
#pragma unroll
    for (int j = 0; j < 2; ++j) before[j] = p.accumulate != 0 ? __fadd_rn(before[j], sums[j]) : sums[j];
    store_elements(dw, at, k, pairs, before);
  });
}

#define KERNEL(SYMBOL, PARAMS, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ PARAMS p) { \
    __VA_ARGS__(p);                                                                                   \
  }
KERNEL(patch_embedding_fwd_f32, FwdParams, forward<F32Fwd>)
KERNEL(patch_embedding_dw_f32, DwParams, weight_gradient<F32Dw>)
KERNEL(patch_embedding_fwd_bf16, FwdParams, forward<Bf16Fwd>)
KERNEL(patch_embedding_dw_bf16, DwParams, weight_gradient<Bf16Dw>)
