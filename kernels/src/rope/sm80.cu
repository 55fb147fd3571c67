// Rotary position embedding: the table of cosines and sines, and the rotation.
//
//   table: a = f32(positions[axis[f], t] * inv_freq[f]);  cos[t, f] = cos(a), sin[t, f] = sin(a)
//   apply: y[i] = x[i] cos[i] - x[i + h] sin[i],  y[i + h] = x[i + h] cos[i] + x[i] sin[i];  the inverse uses -sin
//
// Shapes and limits: mod.rs. Numerics of the table: a - n pi/2 by two fused multiply-adds in f64, the first of them
// exact, with pi/2 in two parts of 53 bits; Taylor series up to pi/4 in f64; one rounding to f32; |a| < 2^51.
// Numerics of the rotation: f32, one rounding to T.
//
// Grid of the table: a thread computes one frequency of TOKENS tokens; neighbouring threads have neighbouring
// frequencies. Grid of the rotation: a thread rotates a 16-byte vector of one half of a head and its partner in the
// other half, for up to HEADS heads of one part of a token, so that it reads cosine and sine once. It reads both
// vectors before it writes them, because y may be x. Parts that are not rotated are copied. Memory-bound; the table is
// bound by arithmetic on GPUs with few f64 units.

#include "cuh/rotary.cuh"

constexpr int THREADS = 256;
constexpr int TOKENS = 8;
constexpr int HEADS = 10;

// Returns the cosine and the sine of a.
__device__ __forceinline__ void cos_sin(double a, float& cosine, float& sine) {
  // Adding and subtracting 1.5 * 2^52 rounds to the nearest integer; the low bits of the sum hold that integer.
  const double shifted = fma(a, 0.63661977236758138, 6755399441055744.0);
  const long long quadrant = __double_as_longlong(shifted);
  const double n = shifted - 6755399441055744.0;
  const double r = fma(-n, 6.123233995736766e-17, fma(-n, 1.5707963267948966, a)), z = r * r;
  double s = -1.0 / 1307674368000.0;  // 15!
  s = fma(s, z, 1.0 / 6227020800.0);
  s = fma(s, z, -1.0 / 39916800.0);
  s = fma(s, z, 1.0 / 362880.0);
  s = fma(s, z, -1.0 / 5040.0);
  s = fma(s, z, 1.0 / 120.0);
  s = fma(s, z, -1.0 / 6.0);
  s = fma(s * z, r, r);
  double c = -1.0 / 87178291200.0;  // 14!
  c = fma(c, z, 1.0 / 479001600.0);
  c = fma(c, z, -1.0 / 3628800.0);
  c = fma(c, z, 1.0 / 40320.0);
  c = fma(c, z, -1.0 / 720.0);
  c = fma(c, z, 1.0 / 24.0);
  c = fma(c, z, -0.5);
  c = fma(c, z, 1.0);
  const bool odd = quadrant & 1;
  const float x = static_cast<float>(odd ? s : c), y = static_cast<float>(odd ? c : s);
  cosine = (quadrant + 1) & 2 ? -x : x;
  sine = quadrant & 2 ? -y : y;
}

extern "C" __global__ void __launch_bounds__(THREADS) rope_table_f32(const __grid_constant__ TableParams p) {
  const u64 thread = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
  const u64 first = thread / p.half * TOKENS, f = thread % p.half;
  if (first >= p.tokens) return;
  const float frequency = global<const float>(p.inv_freq)[f];
  const int* positions = global<const int>(p.positions) + static_cast<u64>(global<const int>(p.axis)[f]) * p.tokens;
  const u64 end = min(first + TOKENS, static_cast<u64>(p.tokens));
  for (u64 t = first; t < end; ++t) {
    const float angle = __fmul_rn(static_cast<float>(positions[t]), frequency);
    float cosine, sine;
    cos_sin(angle, cosine, sine);
    global<float>(p.cos)[t * p.half + f] = cosine;
    global<float>(p.sin)[t * p.half + f] = sine;
  }
}

// One input tensor (part) of the launch: where its x and y begin, and the number of elements from one token to the
// next.
struct Part {
  u64 x, y;
  u32 x_stride, y_stride, heads;
  bool rotates;
};

__device__ __forceinline__ u32 groups_of(u32 heads) { return ceil_div(heads, static_cast<u32>(HEADS)); }

// Returns the input tensor (part) that contains head group number `group` of the launch. Replaces `group` by the
// group's number within that tensor.
__device__ __forceinline__ Part part_of(const ApplyParams& p, u32& group) {
  Part part{p.x0, p.y0, p.x_stride0, p.y_stride0, p.heads0, p.rotated > 0};
  if (group < groups_of(p.heads0)) return part;
  group -= groups_of(p.heads0);
  part = {p.x1, p.y1, p.x_stride1, p.y_stride1, p.heads1, p.rotated > 1};
  if (group < groups_of(p.heads1)) return part;
  group -= groups_of(p.heads1);
  return {p.x2, p.y2, p.x_stride2, p.y_stride2, p.heads2, p.rotated > 2};
}

template <int V, class T>
__device__ __forceinline__ void rotate(const ApplyParams& p, u32 groups, u64 thread) {
  const u32 half = p.head_dim / 2, chunks = half / V;
  const u32 i = static_cast<u32>(thread % chunks) * V;
  const u64 rest = thread / chunks, token = rest / groups;
  if (token >= p.tokens) return;
  u32 group = static_cast<u32>(rest % groups);
  const Part part = part_of(p, group);
  const u32 head = group * HEADS, end = min(head + HEADS, part.heads);
  float cosine[V] = {}, sine[V] = {};
  if (part.rotates) {
    load_vector(global<const float>(p.cos) + token * half + i, cosine);
    load_vector(global<const float>(p.sin) + token * half + i, sine);
    if (p.inverse != 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) sine[j] = -sine[j];
    }
  }
  const T* x = global<const T>(part.x) + token * part.x_stride + head * p.head_dim + i;
  T* y = global<T>(part.y) + token * part.y_stride + head * p.head_dim + i;
  for (u32 h = head; h < end; ++h, x += p.head_dim, y += p.head_dim) {
    if (part.rotates) {
      rotate_pair<V>(x, y, half, cosine, sine);
    } else {
      float a[V], b[V];
      load_vector(x, a);
      load_vector(x + half, b);
      store_vector(y, a);
      store_vector(y + half, b);
    }
  }
}

template <class T>
__device__ __forceinline__ void apply(const ApplyParams& p) {
  const u64 thread = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
  constexpr int V = VECTOR<T>;
  const u32 groups = groups_of(p.heads0) + groups_of(p.heads1) + groups_of(p.heads2);
  const u32 strides = p.x_stride0 | p.x_stride1 | p.x_stride2 | p.y_stride0 | p.y_stride1 | p.y_stride2;
  const bool vector = aligned16(p.x0, p.x1, p.x2, p.y0, p.y1, p.y2, p.cos, p.sin) && strides % V == 0;
  if (p.head_dim / 2 % V == 0 && vector) {
    rotate<V, T>(p, groups, thread);
  } else {
    // Unaligned addresses need a thread for each element. The launch plan does not know the addresses and has fewer
    // threads, so each thread computes several elements in a loop.
    const u64 step = static_cast<u64>(gridDim.x) * THREADS;
    const u64 all = static_cast<u64>(p.tokens) * groups * (p.head_dim / 2);
    for (u64 i = thread; i < all; i += step) rotate<1, T>(p, groups, i);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ ApplyParams p)

KERNEL(rope_apply_f32) { apply<float>(p); }
KERNEL(rope_apply_bf16) { apply<bf16>(p); }
