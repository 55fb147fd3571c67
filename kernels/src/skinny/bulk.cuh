// Copies of the weight to shared memory by bulk copies, for the kernels of sm80.cu on sm_90.
//
// The kernels of sm80.cu request a weight with cp.async: each lane copies the 16 bytes that it will multiply, so that
// a warp executes one instruction and computes one address a lane for 512 bytes. Here one lane a row requests the
// consecutive bytes of a run of k, which the copy unit then moves without the warp: 256 bytes with two tiles of 8
// weight rows, 128 bytes with four.
//
//   groups of k of a warp:   0 1 2 3 | 4 5 6 7 | …          64 bytes of each row a group; | : other warps between
//   stages of two tiles:    (0 1 2 3) (4 5 6 7) …          a copy a row and stage
//   stages of four tiles:   (0 1)(2 3) (4 5)(6 7) …
//
// Each warp has its own ring of `depth` stages of 4 KiB and an mbarrier for each, so that the loop over k has no
// barrier of the block. What a lane multiplies, and in which order, is that of sm80.cu; so are all bits.
//
//   lane 0: init the mbarriers; fence; warp barrier; start stages 0 .. depth - 1
//   for each stage of this warp, before its first group:
//     warp barrier (all lanes have read the stage before); start stage + depth - 1 in its place; wait for the stage
//
// A start announces the bytes of the stage's rows at its mbarrier (lane 0) and copies them (lane r has row r). It comes
// after a proxy fence, because ordinary loads have read the bytes that it overwrites.
//
// Banks. A row has 128 or 256 bytes in a stage, so that without an offset equal units of all rows would be in the same
// banks. Even rows come first, then 64 bytes of padding, then odd rows: the eight lanes that load together have two
// neighbouring rows, 64 bytes of each, which cover all banks.
//
//   byte of unit t of group i of row r:  (r / 2) PITCH + (r % 2) ODD_ROWS + 64 i + 16 t
//
// Ends. Copies cover what exists. Lanes write zeros to their own units of missing rows, once, and to those beyond the
// end of the rows, when the last stage has arrived. No copy overwrites either.
//
// Departures. A weight's address and the bytes of its rows are multiples of 16; the plan (mod.rs) chooses cp.async for
// others. x is copied with cp.async as in sm80.cu, one group a stage.
//
// Bound. Memory, as in sm80.cu. With up to 8 rows two blocks a multiprocessor have three stages each, which are 192 KiB
// of weights in flight. The copy takes its operands from uniform registers, so that ptxas makes a loop over the lanes
// of it: ten instructions a row and stage. Nothing of this has been timed on a GPU.
#pragma once

#include "cuh/bulk_copy.cuh"
#include "skinny/products.cuh"

// The ring of one warp. W: type of the weight. A block has TILES tiles of 8 weight rows.
template <class W, int TILES, int RUN>
class BulkWeights {
 public:
  static constexpr int UNIT = 16 / sizeof(W), GROUP = 4 * UNIT;
  static constexpr int ROWS = 8 * TILES, GROUPS = 8 / TILES;
  static constexpr int PITCH = 64 * GROUPS, ODD_ROWS = ROWS / 2 * PITCH + 64, STAGE = ROWS * PITCH + 64;
  // Bytes of the mbarriers of at most 8 stages.
  static constexpr int MBARRIERS = 64;
  // 16-byte units from one tile of a lane to the next.
  static constexpr int TILE_UNITS = 4 * PITCH / 16;
  static_assert(RUN % GROUPS == 0, "a stage has consecutive elements");

  // Starts the first stages. `at` is the warp's shared memory: the bytes of so many stages, and MBARRIERS bytes.
  // rows_of(n) are the weight rows of tile n, of `length` elements each. start_of(i) is the index of the first element
  // of the warp's group i.
  template <class RowsOf, class StartOf>
  __device__ __forceinline__ void begin(char* at, int stages, int length, RowsOf rows_of, StartOf start_of) {
    depth = stages;
    k = length;
    arrived = shared_address(at) + depth * STAGE;
    const int lane = threadIdx.x % 32, g = lane / 4;
    mine = at + g / 2 * PITCH + g % 2 * ODD_ROWS + lane % 4 * 16;
    copied = shared_address(at) + lane / 2 * PITCH + lane % 2 * ODD_ROWS;
    const WeightRows<W> own = rows_of(lane / 8);
    const bool exists = lane < ROWS && own.first + lane % 8 < own.end;
    rows = __popc(__ballot_sync(0xffffffffu, exists));
    row = exists ? reinterpret_cast<const char*>(own.weight + static_cast<u64>(own.first + lane % 8) * k) : nullptr;
    if (rows < ROWS) {
#pragma unroll 1
      for (int i = 0; i < depth * GROUPS; ++i) {
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
          Words<16>* unit = reinterpret_cast<Words<16>*>(mine + i / GROUPS * STAGE + i % GROUPS * 64) + n * TILE_UNITS;
          const WeightRows<W> tile = rows_of(n);
          if (tile.first + g >= tile.end) *unit = Words<16>{};
        }
      }
    }
    if (lane == 0) {
      for (int i = 0; i < depth; ++i) mbarrier_init(arrived + 8 * i);
      fence_mbarrier_init();
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < depth; ++i) start(start_of(i * GROUPS), i);
  }

  // Waits for the stage that begins with group i, if one does, and starts the stage that takes the place of the one
  // before it. All lanes call it for each group, in order.
  template <class StartOf>
  __device__ __forceinline__ void await(int i, StartOf start_of) {
    if (i % GROUPS != 0) return;
    if (i > 0) {
      __syncwarp();
      fence_async_proxy();
      start(start_of(i + (depth - 1) * GROUPS), slot);
      if (++slot == depth) slot = 0, parity ^= 1;
    }
    mbarrier_wait(arrived + 8 * slot, parity);
    const int tail = k - start_of(i);
    if (tail < GROUPS * GROUP && tail % GROUP != 0) {
      // The last group is not whole.
      if (tail % GROUP <= static_cast<int>(threadIdx.x % 4) * UNIT) {
#pragma unroll
        for (int n = 0; n < TILES; ++n) *(unit_of(i + tail / GROUP) + n * TILE_UNITS) = Words<16>{};
      }
    }
  }

  // Returns the lane's unit of the first tile in group i, which belongs to the stage that was awaited.
  __device__ __forceinline__ Words<16>* unit_of(int i) const {
    return reinterpret_cast<Words<16>*>(mine + slot * STAGE + i % GROUPS * 64);
  }

 private:
  // Starts the copies of the stage from element `at` on.
  __device__ __forceinline__ void start(int at, int to) const {
    if (at >= k) return;
    const u32 bytes = min(k - at, GROUPS * GROUP) * sizeof(W);
    if (threadIdx.x % 32 == 0) mbarrier_arrive_expecting(arrived + 8 * to, rows * bytes);
    if (row != nullptr) bulk_copy(copied + to * STAGE, row + at * sizeof(W), bytes, arrived + 8 * to);
  }

  // The lane's unit of the first tile and group in stage 0.
  char* mine;
  // The row that the lane copies, null if there is none, and the address of its first byte in stage 0.
  const char* row;
  u32 copied;
  // The address of the mbarrier of stage 0.
  u32 arrived;
  int depth, k, rows;
  // The stage that was awaited last, and the parity of its mbarrier's phase.
  int slot = 0;
  u32 parity = 0;
};
