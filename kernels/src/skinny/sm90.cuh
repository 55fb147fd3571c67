// Products of a few bf16 rows by tensor copies (sm_90): a warp copies tiles of the weights and of x to a ring in shared
// memory (TMA), and other warps multiply them, with the weight as the operand of 16 rows of mma.sync. sm90a.cuh has the
// products of more than 16 rows with a bf16 weight.
//
//   grid: blocks of 8 NX rows of x, x blocks of R columns, or of R pairs of columns; R is a multiple of 4
//   a stage has BOXES boxes of 128 bytes of k: of R rows of each of SETS weights, and of 8 NX rows of x
//
//   one thread: init mbarriers; block barrier
//   producer: start the weights of the first stages
//   all: wait for the previous launch
//   producer: start x of the first stages
//   with a norm, all: squares of the rows of x -> shared; block barrier
//   producer, for each further stage: wait until it is free; start weights and x
//   with a norm, normalising warps, for each stage: wait until it is full; normalise x in place; it is ready
//   multiplying warps, for each stage: wait until it is full (ready); sums += w x^T; it is free
//   multiplying warps: y = epilogue(sums)
//
// Order. A sum has one accumulator, to which the products of 16 consecutive k are added in ascending order, from 0 on,
// by one instruction each. It depends on k alone: not on the rows, the columns or the shape of a tile. wgmma with k
// ascending was measured to have the same bits (H200: 0 of 303104 elements differed).
//
// int8. A lane's word of ldmatrix has four consecutive k of a row, where the instruction expects two consecutive k and
// two more, 8 further on. x is loaded in the same order: 8 bytes for the two registers of a lane. So each instruction
// multiplies the right pairs of elements. Eight lanes load even rows of x first, which avoids bank conflicts.
//
// Norm. All warps compute the scales of the rows while the first weights arrive. Then the rows of each stage are
// normalised in place, bit-identical to rms_norm (rstd.cuh). Each block reads its rows of x twice, and a warp
// executes about 60 instructions for each 256 elements of x.
//
// Banks. Rows of a box have 128 bytes, whose 16-byte units the copy exchanges: unit u of row r is at u ^ (r % 8). The
// eight rows of an 8x8 matrix then cover all banks.
//
// Ends. Elements beyond the rows and beyond k are zeros (TMA). Rows of a tile of 16 that belong to no box are cleared
// once.
//
// Departures. Addresses and the bytes of rows are multiples of 16; the plan (mod.rs) has other kernels for others.
//
// Bound. Memory. The shapes, ring and order of copies are those of prototypes that read the weight on an H200 with 4.0
// to 4.16 TB/s with up to 16 rows, as dependent launches, where a copy reaches 4.13 (tools/benches/results/h200).
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/bulk_copy.cuh"
#include "cuh/dependent.cuh"
#include "cuh/mma.cuh"
#include "cuh/tma.cuh"
#include "rms_norm/rstd.cuh"
#include "skinny/products.cuh"
#include "skinny/weights.cuh"

namespace by_tiles {

extern __shared__ __align__(1024) char memory[];

// The shape of a block's tiles. mod.rs and tiles.rs have the same numbers. W: type of the weights. SETS: sets of weight
// rows (products.cuh). TILES: number of tiles (16 rows of each weight) per warp. NX: number of tiles of 8 rows of x.
// BOXES: maximum number of boxes of the weight in a stage. MAX_WIDTH: maximum number of rows in a box.
template <class W_, int SETS_, int TILES_, int NX_, int BOXES_, int MAX_WIDTH_, bool NORM_>
struct Shape {
  using W = W_;
  static constexpr int SETS = SETS_, TILES = TILES_, NX = NX_;
  static constexpr bool NORM = NORM_;
  // COLUMNS is the number of elements along k in a box of the weight. X_OF_BOX is the number of boxes of x (64 elements
  // along k each) that belong to such a box.
  static constexpr int COLUMNS = 128 / sizeof(W), X_OF_BOX = COLUMNS / 64, X_BYTES = NX * 1024;
  // BOXES is limited so that a stage has at most 32 KiB of x.
  static constexpr int BOXES = BOXES_ * X_OF_BOX * NX > 32 ? 32 / (X_OF_BOX * NX) : BOXES_, X_BOXES = BOXES * X_OF_BOX;
  // SHARES is the number of warps that multiply the same rows of the weight. Each of them multiplies these rows by XT
  // tiles of x.
  static constexpr int SHARES = NX > 4 ? NX / 4 : 1, XT = NX / SHARES;
  static constexpr int NORMALISERS = NORM ? (BOXES > 1 ? 2 : 1) * (NX > 2 ? NX / 2 : 1) : 0;
  static constexpr int THREADS = 32 * (MAX_WIDTH_ / (16 * TILES) * SHARES + NORMALISERS + 1);
  static_assert(MAX_WIDTH_ % (16 * TILES) == 0 && BOXES > 0, "tiles");
};

// The ring of a block in shared memory: `stages` stages, each with its boxes of weights, in the order of boxes and then
// sets, and its boxes of x. Behind the ring are three mbarriers for each stage: full, ready, free.
template <class S>
struct Ring {
  u32 base, stages, set_bytes, stage_bytes;

  __device__ __forceinline__ u32 weights(u32 stage) const { return base + stage * stage_bytes; }
  __device__ __forceinline__ u32 x(u32 stage) const { return weights(stage) + S::BOXES * S::SETS * set_bytes; }
  __device__ __forceinline__ u32 full(u32 stage) const { return weights(stages) + 8 * stage; }
  __device__ __forceinline__ u32 ready(u32 stage) const { return full(stages + stage); }
  __device__ __forceinline__ u32 free(u32 stage) const { return full(2 * stages + stage); }
  __device__ __forceinline__ u32 end() const { return full(3 * stages); }
};

// A position in the ring: the stage, and the parity of its phase.
struct Position {
  u32 stage, parity;
  __device__ __forceinline__ void advance(u32 stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ Words<16> load_shared_16(u32 address) {
  Words<16> x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void store_shared_16(u32 address, const Words<16>& x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.word[0]), "r"(x.word[1]),
               "r"(x.word[2]), "r"(x.word[3])
               : "memory");
}

// Returns which of eight rows of x is column `column` of a product. For an int8 weight, the lanes that load at the same
// time have either even or odd rows.
template <class W>
__device__ __forceinline__ int row_of_column(int column) {
  return sizeof(W) == 2 ? column : column % 4 * 2 + column / 4;
}

// Loads operand B, XT tiles of x, for one mma of 16 values of k. These values begin with the 16-byte unit `unit` of a
// box that a bulk tensor copy has loaded. `x` is the address of the lane's row in the first tile.
template <class W, int XT>
__device__ __forceinline__ void load_x(u32 x, int unit, u32 (&b)[XT][2]) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(W) == 1) {
    const u32 own = ((unit + lane % 4 / 2) ^ row_of_column<W>(lane / 4)) << 4 | lane % 2 << 3;
#pragma unroll
    for (int i = 0; i < XT; ++i) {
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=r"(b[i][0]), "=r"(b[i][1])
                   : "r"(x + i * 1024 + own)
                   : "memory");
    }
  } else {
    const u32 own = ((unit + lane / 8 % 2) ^ lane % 8) << 4;
    if constexpr (XT == 1) {
      ldmatrix_x2(b[0], x + own);
    } else {
#pragma unroll
      for (int i = 0; i < XT; i += 2) {
        u32 two[4];
        ldmatrix_x4(two, x + i * 1024 + own);
        b[i][0] = two[0], b[i][1] = two[1], b[i + 1][0] = two[2], b[i + 1][1] = two[3];
      }
    }
  }
}

// Adds the products of one stage to the sums of a warp. `w` and `x` are the addresses of the lane's rows in the first
// boxes.
template <class S>
__device__ __forceinline__ void multiply(u32 w, u32 set_bytes, u32 x, float (&sums)[S::SETS][S::TILES][S::XT][4]) {
  // The number of steps (16 k each) whose weight elements one ldmatrix loads: the elements in 32 bytes of a row.
  constexpr int STEPS = 2 / sizeof(typename S::W);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4 * S::BOXES; ++i) {
    const int box = i / 4;
    u32 b[STEPS][S::XT][2];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int unit = (i * STEPS + step) * 2;
      load_x<typename S::W>(x + unit / 8 * S::X_BYTES, unit % 8, b[step]);
    }
#pragma unroll
    for (int set = 0; set < S::SETS; ++set) {
#pragma unroll
      for (int tile = 0; tile < S::TILES; ++tile) {
        u32 rows[4];
        ldmatrix_x4(rows, w + (box * S::SETS + set) * set_bytes + tile * 2048 +
                              ((i % 4 * 2 + lane / 16) ^ lane % 8) * 16);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
          u32 a[4];
          if constexpr (STEPS == 1) {
#pragma unroll
            for (int j = 0; j < 4; ++j) a[j] = rows[j];
          } else {
            pairs_of_bytes(rows[2 * step], a[0], a[2]);
            pairs_of_bytes(rows[2 * step + 1], a[1], a[3]);
          }
#pragma unroll
          for (int j = 0; j < S::XT; ++j) mma_bf16(sums[set][tile][j], a, b[step][j][0], b[step][j][1]);
        }
      }
    }
  }
}

// Writes the sums of the squares of rows 0 .. rows of x to `squares`, like add_squares (rstd.cuh), but with the loads
// of four rows in flight. All threads of the block call it.
__device__ __forceinline__ void add_squares_of_four(const bf16* x, int rows, u32 k, RowSquares* squares) {
  const u32 lane = threadIdx.x % 32, warps = warps_of_row(k);
#pragma unroll 1
  for (u32 i = threadIdx.x / 32; i < ceil_div(rows, 4) * warps; i += blockDim.x / 32) {
    const int row = i / warps * 4;
    const u32 of = i % warps;
    float square[4] = {};
#pragma unroll 2
    for (u32 at = (of * 32 + lane) * 8; at < k; at += warps * 256) {
      Words<16> unit[4] = {};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (row + r < rows) unit[r] = *reinterpret_cast<const Words<16>*>(x + static_cast<u64>(row + r) * k + at);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float e[8];
        unpack<bf16>(unit[r], e);
#pragma unroll
        for (int j = 0; j < 8; ++j) square[r] = fmaf(e[j], e[j], square[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float sum = warp_sum(square[r]);
      if (lane == 0 && row + r < rows) squares[row + r][of] = sum;
    }
  }
}

// Normalises the rows of x in all stages. Warp `warp` of the normalising warps processes four of every 4 NORMALISERS
// rows; a lane has a 16-byte unit of one of these four rows.
template <class S, class P>
__device__ __forceinline__ void normalise_stages(const P& p, const Ring<S>& ring, int warp, int rows, u32 stages,
                                                 const RowSquares* squares) {
  constexpr int EACH = ceil_div(2 * S::NX, S::NORMALISERS);
  const int lane = threadIdx.x % 32, unit = lane % 8;
  float rstd[EACH] = {};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int row = (i * S::NORMALISERS + warp) * 4 + lane / 8;
    if (row < rows) rstd[i] = rstd_of_row(squares[row], p.k, p.eps);
  }
  Position at = {};
#pragma unroll 1
  for (u32 stage = 0; stage < stages; ++stage, at.advance(ring.stages)) {
    Words<16> scale[S::X_BOXES] = {};
#pragma unroll
    for (int box = 0; box < S::X_BOXES; ++box) {
      const u32 column = (stage * S::X_BOXES + box) * 64 + unit * 8;
      if (column < p.k) scale[box] = *reinterpret_cast<const Words<16>*>(global<const bf16>(p.norm) + column);
    }
    mbarrier_wait(ring.full(at.stage), at.parity);
#pragma unroll
    for (int box = 0; box < S::X_BOXES; ++box) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int row = (i * S::NORMALISERS + warp) * 4 + lane / 8;
        const u32 own = ring.x(at.stage) + box * S::X_BYTES + row * 128 + (unit ^ row % 8) * 16;
        if (row < rows) store_shared_16(own, normalise<bf16>(load_shared_16(own), scale[box], rstd[i]));
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.ready(at.stage));
  }
}

// Passes the finished sums of a warp to the epilogue, in pairs of neighbouring columns of a row. To form pairs, lanes
// that hold neighbouring rows of the weight exchange half of their sums. `first_tile` is the first of the warp's tiles
// of 16 rows of the weight.
template <class S, class Op>
__device__ __forceinline__ void write_sums(const Op& op, const typename Op::Place& place, u32 width, u32 first_tile,
                                           u32 first_row, int rows, const float (&sums)[S::SETS][S::TILES][S::XT][4]) {
  const int lane = threadIdx.x % 32, odd = lane / 4 % 2;
  const int own_row = row_of_column<typename S::W>(lane % 4 * 2 + odd);
#pragma unroll
  for (int tile = 0; tile < S::TILES; ++tile) {
#pragma unroll
    for (int i = 0; i < S::XT; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float pair[S::SETS][2];
#pragma unroll
        for (int set = 0; set < S::SETS; ++set) {
          const float even_row = sums[set][tile][i][2 * half], odd_row = sums[set][tile][i][2 * half + 1];
          const float received = __shfl_xor_sync(0xffffffffu, odd ? even_row : odd_row, 4);
          pair[set][0] = odd ? received : even_row;
          pair[set][1] = odd ? odd_row : received;
        }
        const u32 column = (first_tile + tile) * 16 + half * 8 + lane / 8 * 2;
        const int row = i * 8 + own_row;
        if (row < rows && column < width) op.write(place, first_row + row, column, pair);
      }
    }
  }
}

// Computes the products `op` for block blockIdx.y of columns and block blockIdx.x of rows of x. P: the parameters, of
// which x, x_map, norm, m, k and eps are read here.
template <class S, class P, class Op>
__device__ __forceinline__ void product(const P& p, const Op& op) {
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 width = op.width(gridDim.y), groups = ceil_div<u32>(width, 16 * S::TILES);
  const int multipliers = groups * S::SHARES, producer = multipliers + S::NORMALISERS;
  const typename Op::Place place = op.place_of(blockIdx.y, width);
  const u32 first_row = blockIdx.x * (8 * S::NX), stages = ceil_div<u32>(p.k, S::BOXES * S::COLUMNS);
  const int rows = min(p.m - first_row, 8 * S::NX);

  Ring<S> ring;
  ring.base = (shared_address(memory) + 1023) & ~1023u;
  ring.set_bytes = groups * (S::TILES * 2048);
  ring.stage_bytes = S::BOXES * S::SETS * ring.set_bytes + S::X_BOXES * S::X_BYTES;
  const u32 squares_bytes = S::NORM && p.norm != 0 ? 8 * S::NX * sizeof(RowSquares) : 0;
  ring.stages = (dynamic_shared_bytes() - 1024 - squares_bytes) / (ring.stage_bytes + 24);

  if (threadIdx.x == 0) {
    for (u32 i = 0; i < ring.stages; ++i) {
      mbarrier_init(ring.full(i), 1);
      mbarrier_init(ring.ready(i), S::NORMALISERS > 0 ? S::NORMALISERS : 1);
      mbarrier_init(ring.free(i), multipliers);
    }
    fence_mbarrier_init();
  }
  // Rows that no copy writes.
  const u32 cleared = (ring.set_bytes / 128 - width) * 8;
  for (u32 i = threadIdx.x; i < ring.stages * S::BOXES * S::SETS * cleared; i += blockDim.x) {
    const u32 box = i / cleared, stage = box / (S::BOXES * S::SETS), of_stage = box % (S::BOXES * S::SETS);
    store_shared_16(ring.weights(stage) + of_stage * ring.set_bytes + width * 128 + i % cleared * 16, Words<16>{});
  }
  __syncthreads();
  let_next_launch_start();

  const CachePolicy policy = gridDim.x == 1 ? EVICT_FIRST : EVICT_NORMAL;
  const auto start_weights = [&](u32 stage, u32 to) {
    mbarrier_arrive_expecting(ring.full(to), S::BOXES * S::SETS * width * 128 + S::X_BOXES * S::X_BYTES);
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
#pragma unroll
      for (int set = 0; set < S::SETS; ++set) {
        tensor_copy(ring.weights(to) + (box * S::SETS + set) * ring.set_bytes, op.map_of(place, set), ring.full(to),
                    (stage * S::BOXES + box) * S::COLUMNS, op.rows_of(place, set).first, policy);
      }
    }
  };
  const auto start_x = [&](u32 stage, u32 to) {
#pragma unroll
    for (int box = 0; box < S::X_BOXES; ++box) {
      tensor_copy(ring.x(to) + box * S::X_BYTES, &p.x_map, ring.full(to), (stage * S::X_BOXES + box) * 64, first_row,
                  EVICT_LAST);
    }
  };
  const u32 first = min(ring.stages, stages);
  if (warp == producer && elect_one()) {
    prefetch_tensor_map(op.map_of(place, 0));
    prefetch_tensor_map(&p.x_map);
#pragma unroll 1
    for (u32 i = 0; i < first; ++i) start_weights(i, i);
  }
  wait_for_previous_launch();
  if (warp == producer && elect_one()) {
#pragma unroll 1
    for (u32 i = 0; i < first; ++i) start_x(i, i);
  }
  RowSquares* squares = reinterpret_cast<RowSquares*>(memory + (ring.end() - shared_address(memory)));
  const bool normalised = S::NORM && p.norm != 0;
  if (normalised) {
    add_squares_of_four(global<const bf16>(p.x) + static_cast<u64>(first_row) * p.k, rows, p.k, squares);
    __syncthreads();
  }

  if (warp == producer) {
    if (elect_one()) {
      Position at = {};
#pragma unroll 1
      for (u32 i = first; i < stages; ++i, at.advance(ring.stages)) {
        mbarrier_wait(ring.free(at.stage), at.parity);
        fence_async_proxy();
        start_weights(i, at.stage);
        start_x(i, at.stage);
      }
    }
  } else if (warp >= multipliers) {
    if constexpr (S::NORM) {
      if (normalised) normalise_stages(p, ring, warp - multipliers, rows, stages, squares);
    }
  } else {
    const u32 first_tile = warp % groups * S::TILES, share = warp / groups;
    float sums[S::SETS][S::TILES][S::XT][4];
#pragma unroll
    for (int i = 0; i < S::SETS * S::TILES * S::XT * 4; ++i) {
      sums[i / (S::TILES * S::XT * 4)][i / (S::XT * 4) % S::TILES][i / 4 % S::XT][i % 4] = 0.0f;
    }
    const int x_row = sizeof(typename S::W) == 1 ? row_of_column<typename S::W>(lane / 4) : lane % 8 + lane / 16 * 8;
    const u32 own_w = first_tile * 2048 + lane % 16 * 128, own_x = share * (S::XT * 1024) + x_row * 128;
    Position at = {};
#pragma unroll 1
    for (u32 i = 0; i < stages; ++i, at.advance(ring.stages)) {
      mbarrier_wait(ring.full(at.stage), at.parity);
      if (normalised) mbarrier_wait(ring.ready(at.stage), at.parity);
      multiply<S>(ring.weights(at.stage) + own_w, ring.set_bytes, ring.x(at.stage) + own_x, sums);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(ring.free(at.stage));
    }
    write_sums<S>(op, place, width, first_tile, first_row + share * (8 * S::XT), rows - share * (8 * S::XT), sums);
  }
}

}  // namespace by_tiles

#endif
