// Patch embedding from frames of levels, and the gradient of its weight.
//
//   pixel[n, k] = T((f32(level * rescale) - mean[c]) / std[c]),  k = ((c * temporal + f) * patch + y) * patch + x
//   fwd: y[n, e] = T(sum over k of pixel[n, k] * weight[e, k] (+ bias[e]))
//   dw:  dw[e, k] += sum over n of dy[n, e] * pixel[n, k]
//
// Shapes and limits: mod.rs. Numerics. level * rescale is the exact product with the upper 16 bits of rescale plus that with
// its next 24, rounded once; difference rounded to f32; quotient from the reciprocal, corrected by its remainder; bf16: the
// pixel rounded once more. bf16: products of the tensor core; f32: fused multiply-adds; sums in f32; y rounds once.
// Order. fwd: k ascends. dw: n ascends, one sum, then what dw held. Neither depends on the tile.
//
// Grid. x = a tile of 64 patches (dw: 64 elements k) by COLUMNS embedding columns, columns fastest: blocks that run together
// share pixels. A block walks all slices of 32 of what is summed; 3 stages of both operands in shared memory.
//
//   for each slice:
//     wait for its weights (dy); barrier
//     begin to copy the weights (dy) two slices ahead; turn the levels two slices ahead, which are in registers, into pixels
//     and store them; ask for the levels three slices ahead
//     sums += pixels weights^T   (dw: dy^T pixels)
//   store
//
// Departures. (1) Bytes are read one by one: the channels of a pixel belong to different k; the L1 cache has the other two.
// (2) Places beyond the patches or beyond k are not masked: they read some pixel that exists, and meet a weight (dy) of 0 or a
// result that is not stored. (3) k (dw: embed) off a multiple of 16 bytes: weights (dy) go element by element.
// Bound. Matrix products.
#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"

constexpr int THREADS = 256;
constexpr int SLICE = 32;
constexpr int STAGES = 3;
// Pixels that a thread makes in a slice.
constexpr int RUN = 8;

extern __shared__ __align__(128) unsigned char shared[];

// ---- levels to pixels ----

__device__ __forceinline__ u32 elements(const Pixels& p) { return 3 * p.temporal * p.patch * p.patch; }
__device__ __forceinline__ u32 patches(const Pixels& p) {
  return ceil_div(p.count, p.temporal) * (p.height / p.patch) * (p.width / p.patch);
}

// A patch's first pixel in its first frame, as a byte's place, and how many frames exist after that.
struct Patch {
  u32 first, frames_after;
};
// Patch n, or the last one.
__device__ __forceinline__ Patch find_patch(const Pixels& p, u32 count, u32 n) {
  n = min(n, count - 1);
  const u32 across = p.width / (p.patch * p.merge), down = p.height / (p.patch * p.merge), group = p.merge * p.merge;
  const u32 block = n / group, within = n % group, time = block / across / down;
  const u32 y = (block / across % down * p.merge + within / p.merge) * p.patch;
  const u32 x = (block % across * p.merge + within % p.merge) * p.patch;
  return {3 * ((time * p.temporal * p.height + y) * p.width + x), p.count - 1 - time * p.temporal};
}

// An element of a patch: c is the slowest, x the fastest.
struct Place {
  u32 x, y, f, c;

  __device__ __forceinline__ Place(const Pixels& p, u32 k) {
    const u32 area = p.patch * p.patch;
    x = k % p.patch;
    y = k % area / p.patch;
    f = k / area % p.temporal;
    c = k / area / p.temporal;
  }
  // The next element.
  __device__ __forceinline__ void advance(const Pixels& p) {
    const bool line = ++x == p.patch;
    y += line;
    const bool frame = y == p.patch;
    f += frame;
    const bool channel = f == p.temporal;
    c += channel;
    x = line ? 0 : x;
    y = frame ? 0 : y;
    f = channel ? 0 : f;
  }
  // The element `step` further on.
  __device__ __forceinline__ void advance(const Pixels& p, u32 step) {
    x += step;
    while (x >= p.patch) {
      x -= p.patch;
      if (++y < p.patch) continue;
      y = 0;
      if (++f < p.temporal) continue;
      f = 0;
      ++c;
    }
  }
};

// RUN elements of a patch, with GAP others between the two halves: their levels, and their channels in two bits each.
struct Levels {
  u32 level[RUN];
  u32 channels;

  // From `place` on, which ends behind the last.
  template <int GAP>
  __device__ __forceinline__ void load(const Pixels& p, u64 frames, const Patch& patch, Place& place) {
    const u32 plane = 3 * p.height * p.width;
    channels = 0;
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
      const u32 c = min(place.c, 2u);
      const u32 frame = patch.first + min(place.f, patch.frames_after) * plane;
      level[j] = global<const u8>(frames)[frame + 3 * (place.y * p.width + place.x) + c];
      channels |= c << 2 * j;
      place.advance(p);
      if (GAP > 0 && j == RUN / 2 - 1) place.advance(p, GAP);
    }
  }
};

// What turns the levels of a channel into pixels: in shared memory, for registers are scarce. rescale = high + low; high has 16
// bits, so that its product with a level is exact.
struct alignas(16) Channel {
  float mean, std, inverse, high, low;
};
__shared__ Channel channels[3];

// To be followed by a barrier.
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
  // As the last bits of 2^23's mantissa a level is a number.
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

// Copies a tile of ROWS x COLUMNS elements to shared memory, at place(row, first of the column's 16 bytes); `from` is a matrix of
// `cols` columns, of which elements beyond `rows` or `cols` become 0.
template <int ROWS, int COLUMNS, class T, class Place>
__device__ __forceinline__ void load_tile(const T* from, u32 row, u32 rows, u32 column, u32 cols, bool vector, Place place) {
  constexpr int UNIT = VECTOR<T>, UNITS = COLUMNS / UNIT;
  static_assert(ROWS * UNITS % THREADS == 0, "");
#pragma unroll
  for (int i = 0; i < ROWS * UNITS / THREADS; ++i) {
    const u32 at = threadIdx.x + i * THREADS, r = at / UNITS, c = at % UNITS * UNIT;
    const bool exists = row + r < rows;
    const T* source = from + static_cast<u64>(row + r) * cols;
    if (vector) {
      const bool valid = exists && column + c < cols;
      cp_async_16(shared_address(place(r, c)), valid ? source + column + c : from, valid ? 16 : 0);
    } else {
      T* to = reinterpret_cast<T*>(place(r, c));
#pragma unroll 1
      for (u32 j = 0; j < UNIT; ++j) to[j] = exists && column + c + j < cols ? source[column + c + j] : from_f32<T>(0.0f);
    }
  }
}

// ---- bf16: 8 warps of 32 x 64 (dw: 64 x 32) ----

struct Bf16Fwd {
  using T = bf16;
  static constexpr int ROWS = 64, COLUMNS = 256, SIDE = 2;  // SIDE: neighbouring sums of a thread
  static constexpr int PIXELS = ROWS * SLICE * 2, STAGE = PIXELS + COLUMNS * SLICE * 2;  // bytes

  float sums[2][8][4];

  // Where a row's 16 bytes lie: eight neighbouring rows' chunks in eight different places.
  __device__ static __forceinline__ u32 offset(u32 row, u32 chunk) { return row * 64 + (chunk ^ (row / 2 & 3)) * 16; }

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    *reinterpret_cast<Words<16>*>(stage + offset(threadIdx.x / 4, threadIdx.x % 4)) = pack<bf16>(x);
  }
  __device__ static __forceinline__ void load_weights(unsigned char* stage, const T* w, u32 row, u32 rows, u32 k, u32 cols,
                                                      bool vector) {
    load_tile<COLUMNS, SLICE>(w, row, rows, k, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + offset(r, c / 8); });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // A row's place repeats every 16 rows, and the second step's chunk differs in one bit: one address each does.
    const u32 a_first = shared_address(stage) + offset(warp % 2 * 32 + lane % 16, lane / 16);
    const u32 b_first = shared_address(stage) + PIXELS + offset(warp / 2 * 64 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < SLICE / 16; ++step) {
      u32 a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], (a_first ^ step * 32) + m * 16 * 64);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        u32 b[4];
        ldmatrix_x4(b, (b_first ^ step * 32) + n * 16 * 64);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(sums[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  // f(row, column, sums of this column and the next) for each pair of this thread.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float pair[2] = {sums[m][n][2 * h], sums[m][n][2 * h + 1]};
          f(warp % 2 * 32 + m * 16 + h * 8 + lane / 4, warp / 2 * 64 + n * 8 + lane % 4 * 2, pair);
        }
      }
    }
  }
};

struct Bf16Dw {
  using T = bf16;
  static constexpr int ROWS = 64, COLUMNS = 256, GAP = 0;
  static constexpr int P_PITCH = ROWS + 8, D_PITCH = COLUMNS + 8;  // an odd number of 16-byte units
  static constexpr int PIXELS = SLICE * P_PITCH * 2, STAGE = PIXELS + SLICE * D_PITCH * 2;

  float sums[4][4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    bf16* to = reinterpret_cast<bf16*>(stage) + threadIdx.x / 8 * P_PITCH + threadIdx.x % 8 * RUN;
    *reinterpret_cast<Words<16>*>(to) = pack<bf16>(x);
  }
  __device__ static __forceinline__ void load_dy(unsigned char* stage, const T* dy, u32 row, u32 rows, u32 column, u32 cols,
                                                 bool vector) {
    load_tile<SLICE, COLUMNS>(dy, row, rows, column, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * D_PITCH + c) * 2; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 p_base = shared_address(stage) + (lane % 16 * P_PITCH + warp % 2 * 32 + lane / 16 * 8) * 2;
    const u32 d_base = shared_address(stage) + PIXELS +
                       ((lane % 8 + lane / 16 * 8) * D_PITCH + warp / 2 * 64 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int step = 0; step < SLICE / 16; ++step) {
      u32 b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) ldmatrix_x4_trans(b[n], p_base + (step * 16 * P_PITCH + n * 16) * 2);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        u32 a[4];
        ldmatrix_x4_trans(a, d_base + (step * 16 * D_PITCH + m * 16) * 2);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          mma_bf16(sums[m][2 * n], a, b[n][0], b[n][1]);
          mma_bf16(sums[m][2 * n + 1], a, b[n][2], b[n][3]);
        }
      }
    }
  }
  // f(embedding column, k, sums of this k and the next).
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float pair[2] = {sums[m][n][2 * h], sums[m][n][2 * h + 1]};
          f(warp / 2 * 64 + m * 16 + h * 8 + lane / 4, warp % 2 * 32 + n * 8 + lane % 4 * 2, pair);
        }
      }
    }
  }
};

// ---- f32: a thread takes 4 rows and 4 columns ----

struct F32Fwd {
  using T = float;
  static constexpr int ROWS = 64, COLUMNS = 64, SIDE = 1;
  static constexpr int PITCH = SLICE + 4;  // an odd number of 16-byte units
  static constexpr int PIXELS = ROWS * PITCH * 4, STAGE = PIXELS + COLUMNS * PITCH * 4;

  float sums[4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    store_vector(reinterpret_cast<float*>(stage) + threadIdx.x / 4 * PITCH + threadIdx.x % 4 * RUN, x);
  }
  __device__ static __forceinline__ void load_weights(unsigned char* stage, const T* w, u32 row, u32 rows, u32 k, u32 cols,
                                                      bool vector) {
    load_tile<COLUMNS, SLICE>(w, row, rows, k, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * PITCH + c) * 4; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const float* a_tile = reinterpret_cast<const float*>(stage) + threadIdx.x / 16 * 4 * PITCH;
    const float* b_tile = reinterpret_cast<const float*>(stage + PIXELS) + threadIdx.x % 16 * PITCH;
#pragma unroll
    for (int k = 0; k < SLICE; k += 4) {
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_vector(a_tile + i * PITCH + k, a[i]);
        load_vector(b_tile + i * 16 * PITCH + k, b[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[i][j] = __fmaf_rn(a[i][l], b[j][l], sums[i][j]);
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float one[1] = {sums[i][j]};
        f(threadIdx.x / 16 * 4 + i, threadIdx.x % 16 + j * 16, one);
      }
    }
  }
};

struct F32Dw {
  using T = float;
  static constexpr int ROWS = 64, COLUMNS = 64, PITCH = 64, GAP = 28;
  static constexpr int PIXELS = SLICE * PITCH * 4, STAGE = 2 * PIXELS;

  float sums[4][4];

  __device__ static __forceinline__ void put_pixels(unsigned char* stage, const float (&x)[RUN]) {
    // Eight threads' halves lie side by side: else threads four apart would meet in their banks.
    float* to = reinterpret_cast<float*>(stage) + threadIdx.x / 8 * PITCH + threadIdx.x % 8 * 4;
    const float first[4] = {x[0], x[1], x[2], x[3]}, second[4] = {x[4], x[5], x[6], x[7]};
    store_vector(to, first);
    store_vector(to + 32, second);
  }
  __device__ static __forceinline__ void load_dy(unsigned char* stage, const T* dy, u32 row, u32 rows, u32 column, u32 cols,
                                                 bool vector) {
    load_tile<SLICE, COLUMNS>(dy, row, rows, column, cols, vector,
                              [&](u32 r, u32 c) { return stage + PIXELS + (r * PITCH + c) * 4; });
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(const unsigned char* stage) {
    const float* p_tile = reinterpret_cast<const float*>(stage) + threadIdx.x % 16 * 4;
    const float* d_tile = reinterpret_cast<const float*>(stage + PIXELS) + threadIdx.x / 16 * 4;
#pragma unroll 8
    for (int n = 0; n < SLICE; ++n) {
      float a[4], b[4];
      load_vector(d_tile + n * PITCH, a);
      load_vector(p_tile + n * PITCH, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = __fmaf_rn(a[i], b[j], sums[i][j]);
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const float pair[2] = {sums[i][j], sums[i][j + 1]};
        f(threadIdx.x / 16 * 4 + i, threadIdx.x % 16 * 4 + j, pair);
      }
    }
  }
};

// The slices in order, two of them ahead in shared memory and a third one's levels in registers.
//   fetch(slice): levels to registers; put(stage): these as pixels; load(slice, stage): the other operand
template <class P, class Fetch, class Put, class Load>
__device__ __forceinline__ void walk(P& product, u32 slices, Fetch fetch, Put put, Load load) {
  fetch(0);
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
  __syncthreads();
  const Patch patch = find_patch(p.pixels, count, first_row + threadIdx.x / 4);
  Place place(p.pixels, threadIdx.x % 4 * RUN);
  Levels levels;
  P product;
  product.clear();
  walk(
      product, ceil_div<u32>(k, SLICE),
      [&](u32) {
        levels.load<0>(p.pixels, p.frames, patch, place);
        place.advance(p.pixels, SLICE - RUN);
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
  __syncthreads();
  const Place start(p.pixels, first_k + threadIdx.x % 8 * (P::GAP == 0 ? RUN : RUN / 2));
  Levels levels;
  P product;
  product.clear();
  walk(
      product, ceil_div<u32>(count, SLICE),
      [&](u32 slice) {
        Place place = start;
        levels.load<P::GAP>(p.pixels, p.frames, find_patch(p.pixels, count, slice * SLICE + threadIdx.x / 8), place);
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
    load_elements(dw, at, k, pairs, before);
#pragma unroll
    for (int j = 0; j < 2; ++j) before[j] = __fadd_rn(before[j], sums[j]);
    store_elements(dw, at, k, pairs, before);
  });
}

#define KERNELS(NAME, FWD, DW)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                            \
      patch_embedding_fwd_##NAME(const __grid_constant__ FwdParams p) {                               \
    forward<FWD>(p);                                                                                  \
  }                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                            \
      patch_embedding_dw_##NAME(const __grid_constant__ DwParams p) {                                 \
    weight_gradient<DW>(p);                                                                           \
  }
KERNELS(f32, F32Fwd, F32Dw)
KERNELS(bf16, Bf16Fwd, Bf16Dw)
