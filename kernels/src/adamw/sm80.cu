// AdamW on f32 weights or on a split f32 master copy; a kernel that makes a split master copy.
//
//   g' = g * factor;  m = m + rest1 (g' - m);  v = beta2 v + rest2 (g' g')
//   w = w * decay - step_size * (m / (sqrt(v) / root_bias2 + eps))
//   decay = f32(1 - lr wd), step_size = f32(lr / bias1), root_bias2 = f32(sqrt(bias2)), each computed in f64
//   bf16 moments: bits = (bits + 16 random bits) >> 16
//   8-bit moments: codes and scales of mod.rs, rounded by 16 random bits
//   split: hi = (bits + 0x8000) >> 16, low = bits & 0xffff;  join: bits = (hi << 16) + (signed) low
//
// Shapes and limits: mod.rs. Numerics: every operation above rounds to f32 once, none is fused, so the bits equal the
// CPU's. Grid of a step: a block of threads per chunk of CHUNK weights, 2048 of them at a time (map.cuh). Its first
// thread reads the tables: chunk -> addresses, length, scalars. An access has 16 bytes of m, v, g or f32 weights, or 8
// bytes of a half of split weights. 8-bit moments: a warp owns a block of 256 weights and a lane eight of them, so that
// one Philox call serves one lane. Bound: memory.

#include "cuh/map.cuh"
#include "cuh/math.cuh"
#include "cuh/philox.cuh"
#include "cuh/warp.cuh"

// A multiplication with one rounding: the intrinsic keeps the compiler from fusing it with an addition.
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// Loads the high or the low halves of V split weights, one half per 32-bit word.
template <int V>
__device__ __forceinline__ void load_halves(const u16* p, u32 (&half)[V]) {
  if constexpr (V == 1) {
    half[0] = *p;
  } else {
    const Words<2 * V> words = *reinterpret_cast<const Words<2 * V>*>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) half[j] = words.word[j / 2] >> (j % 2 * 16) & 0xffff;
  }
}

template <int V>
__device__ __forceinline__ void store_halves(u16* p, const u32 (&half)[V]) {
  if constexpr (V == 1) {
    *p = static_cast<u16>(half[0]);
  } else {
    Words<2 * V> words;
#pragma unroll
    for (int j = 0; j < V / 2; ++j) words.word[j] = half[2 * j] | half[2 * j + 1] << 16;
    *reinterpret_cast<Words<2 * V>*>(p) = words;
  }
}

__device__ __forceinline__ float join(u32 hi, u32 low) {
  return __uint_as_float((hi << 16) + static_cast<u32>(static_cast<int>(low << 16) >> 16));
}

__device__ __forceinline__ void split(float x, u32& hi, u32& low) {
  const u32 bits = __float_as_uint(x);
  const bool nan = x != x;
  hi = nan ? 0x7fc0 : bits + 0x8000 >> 16;
  low = nan ? 0 : bits & 0xffff;
}

// Loads and stores f32 weights; `SplitWeights` does the same for split weights.
struct PlainWeights {
  float* w;

  template <int V>
  __device__ __forceinline__ void load(u64 at, float (&x)[V]) const {
    load_vector(w + at, x);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const float (&x)[V]) const {
    store_vector(w + at, x);
  }
};

struct SplitWeights {
  u16 *hi, *low;

  template <int V>
  __device__ __forceinline__ void load(u64 at, float (&x)[V]) const {
    u32 h[V], l[V];
    load_halves(hi + at, h);
    load_halves(low + at, l);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = join(h[j], l[j]);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const float (&x)[V]) const {
    u32 h[V], l[V];
#pragma unroll
    for (int j = 0; j < V; ++j) split(x[j], h[j], l[j]);
    store_halves(hi + at, h);
    store_halves(low + at, l);
  }
};

// Number of weights of a chunk; equals WEIGHTS_PER_CHUNK of mod.rs.
constexpr u64 CHUNK = 16 * 1024;

// The scalars of a step, which are the same for all weights of a parameter.
struct Rule {
  float factor, decay, step_size, root_bias2, rest1, beta2, rest2, eps;

  __device__ __forceinline__ void set(const Params& p, const StepNumbers& s) {
    factor = p.clip == 0 ? 1.0f : global<const float>(p.clip)[1];
    decay = static_cast<float>(__dsub_rn(1.0, __dmul_rn(s.lr, s.weight_decay)));
    step_size = static_cast<float>(static_cast<double>(s.lr) / s.bias1);
    root_bias2 = static_cast<float>(sqrt(static_cast<double>(s.bias2)));
    rest1 = s.rest1;
    beta2 = s.beta2;
    rest2 = s.rest2;
    eps = s.eps;
  }

  __device__ __forceinline__ void apply(float& w, float& m, float& v, float gradient) const {
    const float g = mul(gradient, factor);
    m = add(m, mul(rest1, add(g, -m)));
    v = add(mul(beta2, v), mul(rest2, mul(g, g)));
    const float root = add(__fdiv_rn(__fsqrt_rn(v), root_bias2), eps);
    w = add(mul(w, decay), -mul(step_size, __fdiv_rn(m, root)));
  }
};

// The work of a block of threads: the weights first .. end of a parameter.
struct Task {
  ParameterEntry parameter;
  u64 gradient, seed, stream, first, end;
  Rule rule;
};

// Reads the task of this block. The task is empty if the parameter has no gradient, or if its weights are stored in
// another way (f32 or split) than SPLIT says.
template <bool SPLIT>
__device__ __forceinline__ void begin(const Params& p, Task& task) {
  if (threadIdx.x == 0) {
    const Chunk chunk = global<const Chunk>(p.chunks)[blockIdx.x];
    const ParameterEntry parameter = global<const ParameterEntry>(p.parameters)[chunk.array];
    const StepEntry step = global<const StepEntry>(p.steps)[chunk.array];
    task.parameter = parameter;
    task.gradient = global<const ArrayEntry>(p.gradients)[chunk.array].x;
    task.seed = p.seed;
    task.stream = step.stream;
    task.rule.set(p, step.numbers);
    task.first = chunk.index * CHUNK;
    const bool updates = task.gradient != 0 && (parameter.low != 0) == SPLIT;
    task.end = updates ? min(task.first + CHUNK, parameter.n) : task.first;
  }
  __syncthreads();
}

template <class Weights>
struct Step {
  static constexpr int V = 4;
  Weights weights;
  float *m, *v;
  const float* g;
  Rule rule;

  template <int V>
  struct Values {
    float w[V], m[V], v[V], g[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& x) const {
    weights.load(at, x.w);
    load_vector(m + at, x.m);
    load_vector(v + at, x.v);
    load_vector(g + at, x.g);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, Values<V>& x) const {
#pragma unroll
    for (int j = 0; j < V; ++j) rule.apply(x.w[j], x.m[j], x.v[j], x.g[j]);
    weights.store(at, x.w);
    store_vector(m + at, x.m);
    store_vector(v + at, x.v);
  }
};

// The random bits for the weights 8 * group .. 8 * group + 8 of the part of a parameter that this task updates. Element
// j has 32 bits for weight 8 * group + j: the lower half for m, the upper half for v.
struct Draws {
  PhiloxWords words;

  __device__ __forceinline__ Draws(const Task& task, u64 group)
      : words(philox(task.seed, task.stream, task.parameter.first / 8 + group)) {}

  __device__ __forceinline__ u32 operator[](u32 j) const {
    // Selects the word with conditional expressions. An index that is not a compile-time constant would put the array
    // into local memory.
    const u32 even = j & 2 ? words.word[2] : words.word[0], odd = j & 2 ? words.word[3] : words.word[1];
    const u32 word = j & 1 ? odd : even;
    u32 z = (word ^ word >> 16) * 0x7feb352du;
    z ^= z >> 15;
    return j & 4 ? z : word;
  }
};

// Loads and stores bf16 moments, with stochastic rounding.
template <class Weights>
struct StepBf16 {
  static constexpr int V = 8;
  Weights weights;
  bf16 *m, *v;
  const float* g;
  Rule rule;
  const Task& task;

  template <int V>
  struct Values {
    float w[V], m[V], v[V], g[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& x) const {
    weights.load(at, x.w);
    load_vector(m + at, x.m);
    load_vector(v + at, x.v);
    load_vector(g + at, x.g);
  }

  template <int V>
  __device__ __forceinline__ void store_moment(bf16* to, u64 at, const float (&x)[V], const u32 (&draw)[V]) const {
    u32 half[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const u32 rounded = __float_as_uint(x[j]) + draw[j] >> 16;
      half[j] = x[j] != x[j] ? 0x7fc0 : rounded;
    }
    store_halves(reinterpret_cast<u16*>(to) + at, half);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, Values<V>& x) const {
#pragma unroll
    for (int j = 0; j < V; ++j) rule.apply(x.w[j], x.m[j], x.v[j], x.g[j]);
    weights.store(at, x.w);
    const Draws draws(task, at / 8);
    u32 low[V], high[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const u32 draw = draws[static_cast<u32>(at) % 8 + j];
      low[j] = draw & 0xffff;
      high[j] = draw >> 16;
    }
    store_moment(m, at, x.m, low);
    store_moment(v, at, x.v, high);
  }
};

// Returns x / d, correctly rounded. `inverse` is the correctly rounded 1 / d (Markstein 1990). Not valid near the
// ends of f32's range.
__device__ __forceinline__ float quotient(float x, float d, float inverse) {
  const float q = mul(x, inverse);
  return fmaf(fmaf(-q, d, x), inverse, q);
}

// The 8-bit codes of the first moment: `value` decodes a code at scale 1, and `root` returns the real number that is
// rounded to a code. `Second` does the same for the second moment.
struct First {
  static constexpr int LAST = 127;
  static __device__ __forceinline__ float value(int c) {
    const float q = quotient(static_cast<float>(c), 127.0f, 1.0f / 127.0f);
    return mul(q, fabsf(q));
  }
  static __device__ __forceinline__ float root(float x) { return mul(127.0f, sqrt_approx(x)); }
};

struct Second {
  static constexpr int LAST = 255;
  static __device__ __forceinline__ float value(int c) {
    const float q = quotient(static_cast<float>(c), 255.0f, 1.0f / 255.0f), square = mul(q, q);
    return mul(square, square);
  }
  static __device__ __forceinline__ float root(float x) { return mul(255.0f, sqrt_approx(sqrt_approx(x))); }
};

// The scale of a block of 8-bit moments: the largest magnitude in the block.
struct Scale {
  float largest, inverse;
  bool ordinary;

  __device__ __forceinline__ explicit Scale(float x) : largest(x), inverse(__frcp_rn(x)), ordinary(x > 1e-25f && x < 1e25f) {}

  // Returns x divided by the scale, or NaN if the scale is 0 or NaN.
  __device__ __forceinline__ float share(float x) const {
    return ordinary ? quotient(x, largest, inverse) : __fdiv_rn(x, largest);
  }
};

// Rounds a magnitude to one of its two neighbouring codes; the random bits choose which. Returns 0 if the scale is 0
// or NaN.
template <class Book>
__device__ __forceinline__ int code(float magnitude, const Scale& scale, u32 draw) {
  const float x = scale.share(magnitude);
  const int below = x == x ? min(max(static_cast<int>(Book::root(x)), 0), Book::LAST - 1) : 0;
  const float low = Book::value(below), high = Book::value(below + 1);
  return below + (mul(static_cast<float>(draw), add(high, -low)) < mul(65536.0f, add(x, -low)));
}

// Returns the larger of two numbers, or NaN if one of them is NaN.
__device__ __forceinline__ float max_nan(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

__device__ __forceinline__ float warp_max_nan(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x = max_nan(x, shuffle_xor(x, mask));
  return x;
}

// Loads the first `count` of eight bytes. The remaining elements of `byte` are 0.
__device__ __forceinline__ void load_bytes(const u8* p, u32 count, bool vector, u32 (&byte)[8]) {
  if (vector && count == 8) {
    const Words<8> words = *reinterpret_cast<const Words<8>*>(p);
#pragma unroll
    for (int j = 0; j < 8; ++j) byte[j] = words.word[j / 4] >> (j % 4 * 8) & 0xff;
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) byte[j] = j < count ? p[j] : 0;
}

__device__ __forceinline__ void store_bytes(u8* p, u32 count, bool vector, const u32 (&byte)[8]) {
  if (vector && count == 8) {
    Words<8> words{};
#pragma unroll
    for (int j = 0; j < 8; ++j) words.word[j / 4] |= byte[j] << (j % 4 * 8);
    *reinterpret_cast<Words<8>*>(p) = words;
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j < count) p[j] = static_cast<u8>(byte[j]);
  }
}

// Loads and stores a block of 256 8-bit moments with one warp; each lane has eight neighbouring moments. `block` is the
// block's number in the parameter.
template <class Weights>
__device__ __forceinline__ void step_8bit(const Task& task, u64 block, const Weights& weights, bool vector) {
  constexpr int V = 8;
  const u64 at = block * 256 + threadIdx.x % 32 * V;
  const u32 count = at < task.end ? static_cast<u32>(min(task.end - at, static_cast<u64>(V))) : 0;
  u8 *ms = global<u8>(task.parameter.m) + at, *vs = global<u8>(task.parameter.v) + at;
  const float* gs = global<const float>(task.gradient) + at;
  float* scales = global<float>(task.parameter.scales) + 2 * block;
  const Rule& rule = task.rule;

  u32 m_code[V], v_code[V];
  float w[V], g[V], m[V], v[V];
  load_bytes(ms, count, vector, m_code);
  load_bytes(vs, count, vector, v_code);
  if (vector && count == V) {
    weights.load(at, w);
    load_vector(gs, g);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      float one[1] = {0.0f};
      if (j < count) weights.load(at + j, one);
      w[j] = one[0];
      g[j] = j < count ? gs[j] : 0.0f;
    }
  }
  float m_scale = load_for_warp(scales), v_scale = load_for_warp(scales + 1);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    m[j] = mul(m_scale, First::value(static_cast<signed char>(m_code[j])));
    v[j] = mul(v_scale, Second::value(static_cast<int>(v_code[j])));
    rule.apply(w[j], m[j], v[j], g[j]);
  }
  if (vector && count == V) {
    weights.store(at, w);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float one[1] = {w[j]};
      if (j < count) weights.store(at + j, one);
    }
  }

  m_scale = v_scale = 0.0f;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j < count) {
      m_scale = max_nan(m_scale, fabsf(m[j]));
      v_scale = max_nan(v_scale, v[j]);
    }
  }
  m_scale = warp_max_nan(m_scale);
  v_scale = warp_max_nan(v_scale);
  // Lane 0 is the only lane that has read the old scales, so it may overwrite them without a barrier.
  if (threadIdx.x % 32 == 0) {
    scales[0] = m_scale;
    scales[1] = v_scale;
  }
  const Draws draws(task, at / 8);
  const Scale of_m(m_scale), of_v(v_scale);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int c = code<First>(fabsf(m[j]), of_m, draws[j] & 0xffff);
    m_code[j] = static_cast<u32>(m[j] < 0.0f ? -c : c) & 0xff;
    v_code[j] = static_cast<u32>(code<Second>(v[j], of_v, draws[j] >> 16));
  }
  store_bytes(ms, count, vector, m_code);
  store_bytes(vs, count, vector, v_code);
}

template <class Weights>
__device__ __forceinline__ void step_8bit_blocks(const Task& task, const Weights& weights, bool vector) {
  // Loops over the blocks of 256 weights that begin before the end of the chunk. Each of the eight warps takes every
  // eighth block.
#pragma unroll 1
  for (u64 at = task.first + threadIdx.x / 32 * 256; at < task.end; at += MAP_BLOCK) step_8bit(task, at / 256, weights, vector);
}

// Splits bf16 weights: the high half is the weight itself, the low half is 0.
struct SplitBf16 {
  static constexpr int V = 8;
  const u16* src;
  u16 *hi, *low;

  template <int V>
  struct Values {
    u32 half[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    if (src != hi) load_halves(src + at, v.half);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    const u32 zeros[V] = {};
    if (src != hi) store_halves(hi + at, v.half);
    store_halves(low + at, zeros);
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

// The weights of a task.
__device__ __forceinline__ PlainWeights plain(const ParameterEntry& p) { return {global<float>(p.w)}; }
__device__ __forceinline__ SplitWeights halves(const ParameterEntry& p) { return {global<u16>(p.w), global<u16>(p.low)}; }

template <class Weights>
__device__ __forceinline__ void step(const Task& task, const Weights& weights) {
  const ParameterEntry& p = task.parameter;
  const Step<Weights> op{weights, global<float>(p.m), global<float>(p.v), global<const float>(task.gradient), task.rule};
  map_range(task.first, task.end, aligned16(p.w, p.low, p.m, p.v, task.gradient), op);
}

template <class Weights>
__device__ __forceinline__ void step_bf16_moments(const Task& task, const Weights& weights) {
  const ParameterEntry& p = task.parameter;
  const StepBf16<Weights> op{weights, global<bf16>(p.m), global<bf16>(p.v), global<const float>(task.gradient), task.rule, task};
  map_range(task.first, task.end, aligned16(p.w, p.low, p.m, p.v, task.gradient), op);
}

template <class Weights>
__device__ __forceinline__ void step_8bit(const Task& task, const Weights& weights) {
  const ParameterEntry& p = task.parameter;
  step_8bit_blocks(task, weights, aligned16(p.w, p.low, p.m, p.v, task.gradient));
}

// Defines the kernel of a step for the parameters with f32 weights (`plain`) or with split weights (`halves`).
#define STEP(NAME, STEP_OF, WEIGHTS, SPLIT) \
  KERNEL(NAME, Params) {                    \
    __shared__ Task task;                   \
    begin<SPLIT>(p, task);                  \
    STEP_OF(task, WEIGHTS(task.parameter)); \
  }
STEP(adamw_f32, step, plain, false)
STEP(adamw_bf16, step, halves, true)
STEP(adamw_bf16_moments_f32, step_bf16_moments, plain, false)
STEP(adamw_bf16_moments_bf16, step_bf16_moments, halves, true)
STEP(adamw_8bit_f32, step_8bit, plain, false)
STEP(adamw_8bit_bf16, step_8bit, halves, true)

KERNEL(split_master_bf16, SplitParams) {
  const SplitBf16 op{global<const u16>(p.src), global<u16>(p.w), global<u16>(p.low)};
  map(p.n, aligned16(p.src, p.w, p.low), op);
}
