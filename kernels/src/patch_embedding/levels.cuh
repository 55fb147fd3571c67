// Converts u8 levels of frames to pixels of patches.
#pragma once

#include "cuh/base.cuh"
#include "cuh/warp.cuh"

// Number of pixels that one thread converts for each slice (32 elements of every patch in the tile).
constexpr int RUN = 8;

__device__ __forceinline__ u32 elements(const Pixels& p) { return 3 * p.temporal * p.patch * p.patch; }
__device__ __forceinline__ u32 patches(const Pixels& p) {
  return ceil_div(p.count, p.temporal) * (p.height / p.patch) * (p.width / p.patch);
}

// The position of a patch: the byte offset of its first pixel in its first frame, and the number of frames after that
// frame.
struct alignas(8) Patch {
  u32 first, frames_after;
};
// Returns patch n; for an n beyond the last patch, the last patch.
__device__ __forceinline__ Patch find_patch(const Pixels& p, u32 count, u32 n) {
  n = min(n, count - 1);
  const u32 across = p.width / (p.patch * p.merge), down = p.height / (p.patch * p.merge), group = p.merge * p.merge;
  const u32 block = n / group, within = n % group, time = block / across / down;
  const u32 y = (block / across % down * p.merge + within / p.merge) * p.patch;
  const u32 x = (block % across * p.merge + within % p.merge) * p.patch;
  return {3 * ((time * p.temporal * p.height + y) * p.width + x), p.count - 1 - time * p.temporal};
}

// Descriptions of COUNT neighbouring elements of a patch: the byte offset from the patch's first byte, the frame, and
// the channel (two bits, eight channels per word). An element beyond the end of the patch gets some valid offset.
template <int COUNT>
struct alignas(16) Elements {
  // offset[0] holds the offsets of the first four of every eight elements, offset[1] the offsets of the other four.
  // The two arrays begin in different banks, so that eight threads can each read 16 bytes from either array without
  // bank conflicts.
  u32 offset[2][COUNT / 2 | 16];
  u32 frame[COUNT], channels[COUNT / 8];

  // Stores the description of element k of a patch at index `at`. A whole warp calls this function for neighbouring
  // elements.
  __device__ __forceinline__ void set(const Pixels& p, u32 at, u32 k) {
    const u32 area = p.patch * p.patch, x = k % p.patch, y = k % area / p.patch, f = k / area % p.temporal;
    const u32 c = min(k / area / p.temporal, 2u);
    offset[at / 4 % 2][at / 8 * 4 + at % 4] = f * (3 * p.height * p.width) + 3 * (y * p.width + x) + c;
    frame[at] = f;
    u32 word = c << at % 8 * 2;
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) word |= shuffle_xor(word, mask);
    if (at % 8 == 0) channels[at / 8] = word;
  }
};

// The u8 levels and the channels (two bits each) of RUN elements of a patch, which form two ranges of RUN / 2
// neighbouring elements.
struct Levels {
  u32 level[RUN];
  u32 channels;

  // Loads the levels of a patch. `first` and `second` are the indices in `elements` at which the two ranges of RUN /
  // 2 elements begin.
  template <int COUNT>
  __device__ __forceinline__ void load(const Pixels& p, u64 frames, const Patch& patch, const Elements<COUNT>& elements,
                                       u32 first, u32 second) {
    constexpr int HALF = RUN / 2;
    const u32 starts[2] = {first, second};
    const u8* base = global<const u8>(frames);
    channels = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32* from = &elements.offset[starts[h] / 4 % 2][starts[h] / 8 * 4];
      Words<16> offsets = *reinterpret_cast<const Words<16>*>(from);
      channels |= (elements.channels[starts[h] / 8] >> starts[h] % 8 * 2 & 0xff) << h * 8;
      if (patch.frames_after + 1 < p.temporal) {
        // If the last patch in time has too few frames, its last frame is repeated.
#pragma unroll
        for (int j = 0; j < HALF; ++j) {
          const u32 f = elements.frame[starts[h] + j];
          if (f > patch.frames_after) offsets.word[j] -= (f - patch.frames_after) * (3 * p.height * p.width);
        }
      }
#pragma unroll
      for (int j = 0; j < HALF; ++j) level[h * HALF + j] = base[patch.first + offsets.word[j]];
    }
  }
};

// Constants that turn a channel's u8 levels into pixels. They are in shared memory because registers are scarce.
// rescale = high + low, where high has 16 significant bits, so that its product with a level is exact.
struct alignas(16) Channel {
  float mean, std, inverse, high, low;
};
__shared__ Channel channels[3];

// Sets the constants of all channels; a barrier must follow.
__device__ __forceinline__ void set_channels(const Pixels& p) {
  if (threadIdx.x > 2) return;
  const u32 c = threadIdx.x;
  const double rescale = __longlong_as_double(p.rescale);
  Channel& channel = channels[c];
  channel.mean = c == 0 ? p.mean0 : c == 1 ? p.mean1 : p.mean2;
  channel.std = c == 0 ? p.std0 : c == 1 ? p.std1 : p.std2;
  channel.inverse = __frcp_rn(channel.std);
  channel.high = __uint_as_float(__float_as_uint(static_cast<float>(rescale)) & 0xffffff00u);
  channel.low = static_cast<float>(rescale - static_cast<double>(channel.high));
}
__device__ __forceinline__ float pixel(u32 level, const Channel& c) {
  // The bits of 2^23 with the level in the last bits of the mantissa are the f32 number 2^23 + level.
  const float x = __uint_as_float(0x4b000000u | level) - 8388608.0f;
  const float d = __fsub_rn(__fmaf_rn(x, c.low, __fmul_rn(x, c.high)), c.mean);
  const float quotient = __fmul_rn(d, c.inverse);
  return __fmaf_rn(__fmaf_rn(-quotient, c.std, d), c.inverse, quotient);
}
__device__ __forceinline__ void to_pixels(const Levels& levels, float (&x)[RUN]) {
  const u32 first = levels.channels & 3;
  const Channel channel = channels[first];
#pragma unroll
  for (int j = 0; j < RUN; ++j) x[j] = pixel(levels.level[j], channel);
  if (levels.channels == first * 0x5555u) return;
#pragma unroll 1
  for (u32 c = first + 1; c < 3; ++c) {
    const Channel other = channels[c];
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
      if ((levels.channels >> 2 * j & 3) == c) x[j] = pixel(levels.level[j], other);
    }
  }
}
