// Cuts u8 frames into normalised patches.
//
//   patches[n, c, f, y, x] = T((f32(level * rescale) - mean[c]) / std[c])
//
// Shapes and limits: mod.rs. Numerics: the product in f64, rounded to f32; difference and quotient round to f32 once
// each; T at the store: the bits equal the CPU's. Grid: a thread writes 16 bytes of neighbouring elements if a patch
// is a multiple of 16 bytes, else one element; 256 threads per block.
//
//   n -> (time, square, patch within the square) -> first pixel; then from element to element: x, y, frame, channel
//
// Bytes are read one by one: the three channels of a pixel go to three places, and the L1 cache holds the other two.
// Memory-bound.

#include "cuh/base.cuh"

constexpr int THREADS = 256;

template <int V, class T>
__device__ __forceinline__ void cut(const Params& params) {
  const Pixels& p = params.pixels;
  const u32 side = p.patch, area = side * side, row = 3 * p.temporal * area, pieces = row / V;
  const u32 across = p.width / (side * p.merge), down = p.height / (side * p.merge);
  const u64 patches = static_cast<u64>(ceil_div(p.count, p.temporal)) * (p.height / side) * (p.width / side);
  const double rescale = __longlong_as_double(p.rescale);
  const u64 step = static_cast<u64>(gridDim.x) * THREADS;
  for (u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x; i < patches * pieces; i += step) {
    const u64 n = i / pieces, block = n / (p.merge * p.merge);
    const u32 first = static_cast<u32>(i % pieces) * V, within = static_cast<u32>(n % (p.merge * p.merge));
    const u32 column = static_cast<u32>(block % across), line = static_cast<u32>(block / across % down);
    const u32 time = static_cast<u32>(block / across / down);
    const u32 y0 = (line * p.merge + within / p.merge) * side, x0 = (column * p.merge + within % p.merge) * side;
    u32 x = first % side, y = first % area / side, f = first / area % p.temporal, c = first / area / p.temporal;
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const u32 frame = min(time * p.temporal + f, p.count - 1);
      const u64 pixel = (static_cast<u64>(frame) * p.height + y0 + y) * p.width + x0 + x;
      const float level = static_cast<float>(global<const u8>(params.frames)[3 * pixel + c] * rescale);
      const float mean = c == 0 ? p.mean0 : c == 1 ? p.mean1 : p.mean2, std = c == 0 ? p.std0 : c == 1 ? p.std1 : p.std2;
      out[j] = __fdiv_rn(__fsub_rn(level, mean), std);
      if (++x < side) continue;
      x = 0;
      if (++y < side) continue;
      y = 0;
      if (++f < p.temporal) continue;
      f = 0;
      ++c;
    }
    store_vector(global<T>(params.patches) + n * row + first, out);
  }
}

template <class T>
__device__ __forceinline__ void cut_any(const Params& p) {
  if (3 * p.pixels.temporal * p.pixels.patch * p.pixels.patch % VECTOR<T> == 0 && aligned16(p.patches)) {
    cut<VECTOR<T>, T>(p);
  } else {
    cut<1, T>(p);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p)

KERNEL(patches_f32) { cut_any<float>(p); }
KERNEL(patches_bf16) { cut_any<bf16>(p); }
