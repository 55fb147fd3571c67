// A consumer warpgroup multiplies the operands in the ring's stages (64 k each), and finishes and stores the tiles of
// C.
#pragma once

#include "cuh/base.cuh"
#include "cuh/mma.cuh"
#include "cuh/tma.cuh"
#include "cuh/wgmma.cuh"
#include "matmul/epilogue.cuh"
#include "matmul/producer.cuh"
#include "matmul/tile.cuh"

namespace gemm {

template <Epilogue E>
struct ElementOf {
  using Type = bf16;
};
template <>
struct ElementOf<F32> {
  using Type = float;
};

template <class T>
struct Consumer {
  using Sums = float[T::COLUMNS / 2];
  using Multiply = Wgmma<T::COLUMNS>;
  static constexpr u64 A_LAYOUT = operand_layout<128>(T::A_MAJOR == K_MAJOR ? 16 : T::BLOCK);
  static constexpr u64 B_LAYOUT = operand_layout<128>(T::B_MAJOR == K_MAJOR ? 16 : T::BLOCK);
  // A_STEP and B_STEP are added to the descriptors of A and B to advance by 16 along k: by 32 bytes of a row, or by 16
  // rows of 128 bytes. ROWS_64 is added to advance by 64 rows of A, one block.
  static constexpr u32 A_STEP = (T::A_MAJOR == K_MAJOR ? 32 : 2048) >> 4;
  static constexpr u32 B_STEP = (T::B_MAJOR == K_MAJOR ? 32 : 2048) >> 4;
  static constexpr u32 ROWS_64 = T::BLOCK >> 4;

  const Params& p;
  const Work<T>& work;
  Ring<T> ring;
  const Output<typename ElementOf<T::EPILOGUE>::Type> out;
  const int warpgroup, warp, lane;
  // The thread of the warpgroup that issues the stores of C and waits for them.
  const bool leader;
  const u32 first_a, first_b, chunks;
  const CachePolicy policy_c;
  Sums sums[T::PRODUCTS];

  __device__ __forceinline__ Consumer(const Params& p, const Work<T>& work, u32 base, int warpgroup, int warp, int lane)
      : p(p),
        work(work),
        ring(base, 0),
        out(p),
        warpgroup(warpgroup),
        warp(warp),
        lane(lane),
        leader(warp == 0 && elect_one()),
        first_a(operand_address(base) + warpgroup * (T::PRODUCTS * ROWS_64)),
        first_b(operand_address(base + T::A_BYTES)),
        chunks(ring.chunks() + warpgroup * (T::BUFFERS * T::CHUNK)),
        // C of more than 32 Mi elements is stored with evict-first, because it would displace operands from L2.
        policy_c(static_cast<u64>(p.m) * p.n > 32 << 20 ? EVICT_FIRST : EVICT_NORMAL) {}

  // Computes the first row and column of this warpgroup in tile t.
  __device__ __forceinline__ void place(int t, int& row, int& column) const {
    work.place(t, row, column);
    row += warpgroup * (T::PRODUCTS * 64);
  }

  __device__ __forceinline__ void barrier() const { named_barrier_sync(1 + warpgroup, 128); }

  __device__ __forceinline__ void wait_until_full() const { mbarrier_wait(ring.full + 8 * ring.stage, ring.phase); }

  // Tells all blocks whose tensor copies write to this block's ring that this warp no longer needs a stage.
  __device__ __forceinline__ void release(int stage) const {
    if constexpr (T::CLUSTER == 1) {
      if (lane == 0) mbarrier_arrive(ring.empty + 8 * stage);
    } else {
      if (lane < T::CLUSTER) mbarrier_arrive_of_block(ring.empty + 8 * stage, lane);
    }
  }

  // Issues the products with the ring's current stage for the groups FIRST .. LAST of 64 rows. `old` is 0 for the first
  // stage of a tile, whose products replace the sums.
  template <int FIRST, int LAST>
  __device__ __forceinline__ void issue_products(int old) {
    const u64 a = A_LAYOUT | (first_a + ring.stage * (T::STAGE >> 4));
    const u64 b = B_LAYOUT | (first_b + ring.stage * (T::STAGE >> 4));
    // redundant: needed by the first products of a tile only; those that follow add to the same sums.
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < T::K / 16; ++step) {
#pragma unroll
      for (int i = FIRST; i < LAST; ++i) {
        Multiply::template ss<0, T::A_MAJOR, T::B_MAJOR>(sums[i], a + i * ROWS_64 + step * A_STEP, b + step * B_STEP,
                                                         old | step);
      }
    }
    wgmma_commit();
  }

  // Writes the sums of a chunk of columns of row group i (64 rows) to shared memory.
  template <class Out>
  __device__ __forceinline__ void write_chunk(const Out& finisher, int i, int chunk, u32 to, int column) const {
    const int c = column + chunk * T::CHUNK_COLUMNS + 2 * (lane % 4);
    if constexpr (T::EPILOGUE == F32) {
      write_f32_chunk(finisher, sums[i], chunk * 16, to, warp, lane, c);
    } else {
      write_bf16_chunk<T::CHUNK_COLUMNS>(finisher, sums[i], chunk * (T::CHUNK_COLUMNS / 2), to, warp, lane, c);
    }
  }
  __device__ __forceinline__ void write_chunk(int i, int chunk, u32 to, int column) const {
    if constexpr (T::GATED) {
      write_chunk(Gated{}, i, chunk, to, column);
    } else if (out.unchanged) {
      write_chunk(Unchanged{}, i, chunk, to, column);
    } else {
      write_chunk(out, i, chunk, to, column);
    }
  }

  // Called by the leader: copies a chunk of row group i from shared memory to C.
  __device__ __forceinline__ void store_chunk(int i, int chunk, u32 from, int row, int column) const {
    const int c = column + chunk * T::CHUNK_COLUMNS, r = row + i * 64;
    if constexpr (T::EPILOGUE == F32) {
      if (p.accumulate != 0) {
        tensor_add(&p.map_c, from, c, r);
        return;
      }
    }
    tensor_store(&p.map_c, from, c, r, policy_c);
  }

  // Computes one step of the main loop of a tile. When it returns, the products of stage kb of k are still running, and
  // `previous` is the ring slot from which these products read.
  __device__ __forceinline__ void stage_step(int kb, int& previous) {
    wait_until_full();
    issue_products<0, T::PRODUCTS>(kb);
    finish_stage(kb, previous);
  }

  __device__ __forceinline__ void finish_stage(int kb, int& previous) {
    wgmma_wait<1>();
    if (kb > 0) release(previous);
    previous = ring.stage;
    ring.advance();
  }

  __device__ __forceinline__ void wait_for_sums(int previous) {
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int i = 0; i < T::PRODUCTS; ++i) keep_registers(sums[i]);
  }
};

// Epilogues STORE, F32 and DIRECT: C of a tile is stored after the tile's last products.
template <class T>
__device__ __forceinline__ void consume_and_store(Consumer<T>& c) {
#pragma unroll 1
  for (int t = c.work.cluster; t < c.work.total; t += c.work.clusters) {
    int previous = 0;
#pragma unroll 1
    for (int kb = 0; kb < c.work.stages; ++kb) c.stage_step(kb, previous);
    c.wait_for_sums(previous);
    int row, column;
    c.place(t, row, column);
    if constexpr (T::EPILOGUE == DIRECT) {
      static_assert(T::PRODUCTS == 1, "threads store the sums of 64 rows");
      if (c.out.unchanged) {
        store_directly<T::COLUMNS, bf16>(Unchanged{}, c.p, c.sums[0], c.warp, c.lane, row, column, c.p.n);
      } else {
        store_directly<T::COLUMNS, bf16>(c.out, c.p, c.sums[0], c.warp, c.lane, row, column, c.p.n);
      }
    } else {
#pragma unroll
      for (int q = 0; q < T::PRODUCTS * T::CHUNKS; ++q) {
        // The last store of this tile from this buffer was BUFFERS stores ago, so at most BUFFERS - 1 stores may still
        // be reading. Stores of the previous tile have read long ago; the first chunk waits for all of them.
        const u32 buffer = c.chunks + q % T::BUFFERS * T::CHUNK;
        if (c.leader && q == 0) tensor_store_wait_read<0>();
        if (c.leader && q >= T::BUFFERS) tensor_store_wait_read<T::BUFFERS - 1>();
        c.barrier();
        c.write_chunk(q / T::CHUNKS, q % T::CHUNKS, buffer, column);
        fence_async_proxy();
        c.barrier();
        if (c.leader) {
          c.store_chunk(q / T::CHUNKS, q % T::CHUNKS, buffer, row, column);
          tensor_store_commit();
        }
      }
    }
  }
}

// Rounds the sums of a warpgroup to bf16, in the order of its registers.
template <class T, class Out, int N>
__device__ __forceinline__ void round_sums(const Out& out, const Consumer<T>& c, int column, u32 (&to)[N]) {
#pragma unroll
  for (int i = 0; i < T::PRODUCTS; ++i) {
#pragma unroll
    for (int j = 0; j < T::COLUMNS / 8; ++j) {
      float x[4];
      out.finish(c.sums[i], 4 * j, column + 8 * j + 2 * (c.lane % 4), x);
      const int at = (i * T::COLUMNS / 8 + j) * 2;
      to[at] = pack_bf16(x[0], x[1]), to[at + 1] = pack_bf16(x[2], x[3]);
    }
  }
}

// Epilogue HELD: the rounded tile stays in registers, and its chunks are stored while the products of the next tile
// run.
template <class T>
__device__ __forceinline__ void consume_and_hold(Consumer<T>& c) {
  u32 held[T::PRODUCTS * T::COLUMNS / 4];
  int held_row = 0, held_column = 0;
  bool holds = false;
  const auto store_step = [&](int s) {
    if (c.leader) tensor_store_wait_read<0>();
    c.barrier();
#pragma unroll
    for (int i = 0; i < T::BUFFERS; ++i) {
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        const u32* v = &held[(s * T::BUFFERS + i) * 16 + g * 4];
        stmatrix_x4(matrix_address<128>(c.chunks + i * T::CHUNK, c.warp, c.lane, g), v[0], v[1], v[2], v[3]);
      }
    }
    fence_async_proxy();
    c.barrier();
    if (c.leader) {
#pragma unroll
      for (int i = 0; i < T::BUFFERS; ++i) {
        const int q = s * T::BUFFERS + i;
        c.store_chunk(q / T::CHUNKS, q % T::CHUNKS, c.chunks + i * T::CHUNK, held_row, held_column);
      }
      tensor_store_commit();
    }
  };
#pragma unroll 1
  for (int t = c.work.cluster; t < c.work.total; t += c.work.clusters) {
    int previous = 0;
#pragma unroll
    for (int s = 0; s < T::STEPS; ++s) {
      const bool multiplies = s < c.work.stages;
      if (multiplies) {
        c.wait_until_full();
        c.template issue_products<0, T::PRODUCTS>(s);
      }
      if (holds) store_step(s);
      // redundant: the first stage of a tile has no older products to wait for.
      if (multiplies) c.finish_stage(s, previous);
    }
#pragma unroll 1
    for (int kb = T::STEPS; kb < c.work.stages; ++kb) c.stage_step(kb, previous);
    c.wait_for_sums(previous);
    c.place(t, held_row, held_column);
    holds = true;
    if (c.out.unchanged) {
      round_sums(Unchanged{}, c, held_column, held);
    } else {
      round_sums(c.out, c, held_column, held);
    }
  }
  if (holds) {
#pragma unroll
    for (int s = 0; s < T::STEPS; ++s) store_step(s);
  }
}

// Adds the sums to the old C, in those chunks of C that belong to step s of the epilogue.
template <class T, class Out>
__device__ __forceinline__ void add_to_chunks(const Out& out, const Consumer<T>& c, int s, int column) {
#pragma unroll
  for (int i = 0; i < T::BUFFERS; ++i) {
    const int q = s * T::BUFFERS + i;
    add_to_bf16_chunk(out, c.sums[q / T::CHUNKS], q % T::CHUNKS * 32, c.chunks + i * T::CHUNK, c.warp, c.lane,
                      column + q % T::CHUNKS * 64 + 2 * (c.lane % 4));
  }
}

// Epilogue ADDED: the first chunks of the old C are loaded while the tile's products run.
template <class T>
__device__ __forceinline__ void consume_and_add(Consumer<T>& c) {
  const u32 barrier = c.ring.old_c_barrier(c.warpgroup);
  u32 phase = 0;
  const auto load_step = [&](int s, int row, int column) {
    tensor_store_wait_read<0>();
    // redundant: the store before has read what threads wrote, after a fence of theirs.
    fence_async_proxy();
    mbarrier_arrive_expecting(barrier, T::BUFFERS * T::CHUNK);
#pragma unroll
    for (int i = 0; i < T::BUFFERS; ++i) {
      const int q = s * T::BUFFERS + i;
      tensor_copy(c.chunks + i * T::CHUNK, &c.p.map_c, barrier, column + q % T::CHUNKS * 64, row + q / T::CHUNKS * 64,
                  c.policy_c);
    }
  };
#pragma unroll 1
  for (int t = c.work.cluster; t < c.work.total; t += c.work.clusters) {
    int row, column;
    c.place(t, row, column);
    if (c.leader) load_step(0, row, column);
    int previous = 0;
#pragma unroll 1
    for (int kb = 0; kb < c.work.stages; ++kb) c.stage_step(kb, previous);
    c.wait_for_sums(previous);
    c.place(t, row, column);
#pragma unroll
    for (int s = 0; s < T::STEPS; ++s) {
      if (s > 0 && c.leader) load_step(s, row, column);
      mbarrier_wait(barrier, phase);
      phase ^= 1;
      if (c.out.unchanged) {
        add_to_chunks(Unchanged{}, c, s, column);
      } else {
        add_to_chunks(c.out, c, s, column);
      }
      fence_async_proxy();
      c.barrier();
      if (c.leader) {
#pragma unroll
        for (int i = 0; i < T::BUFFERS; ++i) {
          const int q = s * T::BUFFERS + i;
          c.store_chunk(q / T::CHUNKS, q % T::CHUNKS, c.chunks + i * T::CHUNK, row, column);
        }
        tensor_store_commit();
      }
    }
  }
}

// Epilogue HALVES: the upper rows of a tile are stored while the last products of its lower rows run. The lower rows
// are stored while the first products of the next tile's upper rows run. Needs at least two stages of k.
template <class T>
__device__ __forceinline__ void consume_in_halves(Consumer<T>& c) {
  const auto store_half = [&](int i, int row, int column) {
    keep_registers(c.sums[i]);
#pragma unroll
    for (int first = 0; first < T::CHUNKS; first += T::BUFFERS) {
      if (c.leader) tensor_store_wait_read<0>();
      c.barrier();
#pragma unroll
      for (int b = 0; b < T::BUFFERS; ++b) c.write_chunk(i, first + b, c.chunks + b * T::CHUNK, column);
      fence_async_proxy();
      c.barrier();
      if (c.leader) {
#pragma unroll
        for (int b = 0; b < T::BUFFERS; ++b) c.store_chunk(i, first + b, c.chunks + b * T::CHUNK, row, column);
        tensor_store_commit();
      }
    }
  };
  if (c.work.cluster < c.work.total) {
    c.wait_until_full();
    // redundant: these products may be in one group with those that follow.
    c.template issue_products<0, 1>(0);
  }
#pragma unroll 1
  for (int t = c.work.cluster; t < c.work.total; t += c.work.clusters) {
    // The products of the upper rows with the tile's first stage have been issued already.
    c.template issue_products<1, 2>(0);
    int previous = c.ring.stage;
    c.ring.advance();
#pragma unroll 1
    for (int kb = 1; kb < c.work.stages - 1; ++kb) c.stage_step(kb, previous);
    int row, column;
    c.place(t, row, column);
    c.wait_until_full();
    c.template issue_products<0, 1>(1);
    wgmma_wait<1>();
    c.release(previous);
    c.template issue_products<1, 2>(1);
    previous = c.ring.stage;
    c.ring.advance();
    wgmma_wait<1>();
    store_half(0, row, column);
    if (t + c.work.clusters < c.work.total) {
      c.wait_until_full();
      c.template issue_products<0, 1>(0);
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    c.release(previous);
    store_half(1, row, column);
  }
  // redundant: nothing is under way; ptxas would add this wait.
  wgmma_wait<0>();
}

}  // namespace gemm
