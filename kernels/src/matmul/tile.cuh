// The tiles of sm90a.cuh: their sizes, the layout of shared memory, and the order in which clusters compute them.
#pragma once

#include "cuh/base.cuh"
#include "cuh/wgmma.cuh"

namespace gemm {

// What happens to the finished sums of a tile. A chunk is 64 rows of 128 bytes of C: 64 columns of bf16, 32 of f32. In
// a tile whose columns are no multiple of 64, chunks of bf16 have 32 columns and 64 bytes a row.
enum Epilogue {
  // bf16 C: rounded sums go to chunks in shared memory, which tensor copies store.
  STORE,
  // bf16 C: as STORE, but a warpgroup keeps the rounded tile in registers and stores it during the first stages of the
  // next tile.
  HELD,
  // bf16 C: as STORE, for warpgroups of 128 rows. The upper 64 rows are stored while the lower 64 are multiplied; the
  // lower 64 rows are stored while the upper rows of the next tile are multiplied.
  HALVES,
  // bf16 C: each thread stores its sums, and reads the old C if the product is added to it.
  DIRECT,
  // bf16 C: the chunks of the old C are copied to shared memory; sum and old C are added in f32 and rounded once.
  ADDED,
  // f32 C: as STORE; if the product is added to the old C, tensor copies add the chunks.
  F32,
};

// A block computes tiles of ROWS x COLUMNS elements of C. WARPGROUPS consumer warpgroups divide the rows; one more
// warpgroup contains the producer thread. A stage has 64 k of A and of B. A cluster of CLUSTER blocks has
// neighbouring tiles of rows and shares their B by multicast. BUFFERS: chunks of shared memory of a warpgroup. GATED: the
// first half of the columns is multiplied with rows of the gate weights, the second half with the same rows of the up
// weights, so that a thread has both sums of an element of SwiGLU.
template <int ROWS_, int COLUMNS_, int WARPGROUPS_, int STAGES_, int CLUSTER_, int BUFFERS_, int A_MAJOR_, int B_MAJOR_,
          Epilogue EPILOGUE_, bool GATED_ = false>
struct Tile {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, WARPGROUPS = WARPGROUPS_, STAGES = STAGES_;
  static constexpr int CLUSTER = CLUSTER_, BUFFERS = BUFFERS_, A_MAJOR = A_MAJOR_, B_MAJOR = B_MAJOR_;
  static constexpr Epilogue EPILOGUE = EPILOGUE_;
  static constexpr bool GATED = GATED_;
  static constexpr int K = 64, THREADS = 128 * (WARPGROUPS + 1);
  // Number of wgmma products, of 64 rows each, that a warpgroup computes for each step of k.
  static constexpr int PRODUCTS = ROWS / WARPGROUPS / 64;
  // Columns of B in a stage. A B that is MN_MAJOR is copied in blocks of 64 columns; the products do not read those
  // beyond the tile.
  static constexpr int COPIED_COLUMNS = B_MAJOR == MN_MAJOR ? (COLUMNS + 63) / 64 * 64 : COLUMNS;
  // BLOCK: bytes of 64 rows (or columns) by 64 k of bf16. STAGE: bytes of a stage, of which A takes A_BYTES.
  static constexpr int BLOCK = 8192, A_BYTES = ROWS * 128, STAGE = A_BYTES + COPIED_COLUMNS * 128;
  // STORED_COLUMNS: columns of C. CHUNK: bytes of a chunk. CHUNK_BYTES: bytes of the chunks of all warpgroups.
  static constexpr int STORED_COLUMNS = GATED ? COLUMNS / 2 : COLUMNS;
  static constexpr int CHUNK_COLUMNS = EPILOGUE == F32 || STORED_COLUMNS % 64 != 0 ? 32 : 64;
  static constexpr int CHUNKS = STORED_COLUMNS / CHUNK_COLUMNS, CHUNK = 64 * CHUNK_COLUMNS * (EPILOGUE == F32 ? 4 : 2);
  static constexpr int CHUNK_BYTES = EPILOGUE == DIRECT ? 0 : WARPGROUPS * BUFFERS * CHUNK;
  // SHARED: bytes of shared memory. It includes the mbarriers `full` and `empty` of each stage, and one mbarrier of
  // each warpgroup for the old C.
  static constexpr int SHARED = 1024 + STAGES * STAGE + CHUNK_BYTES + 16 * STAGES + 8 * WARPGROUPS;
  // Number of steps in which the epilogues HELD and ADDED process the chunks of a warpgroup's tile, BUFFERS chunks at a
  // time.
  static constexpr int STEPS = PRODUCTS * CHUNKS / BUFFERS;
  // Number of tiles of the same columns that clusters compute one after the other, so that they share B in L2: 2048
  // rows.
  static constexpr int GROUP = 2048 / (ROWS * CLUSTER);

  static_assert(SHARED <= 227 * 1024, "shared memory of a block");
  static_assert(ROWS % (64 * WARPGROUPS) == 0 && STAGE % 1024 == 0, "whole products and aligned stages");
  static_assert(B_MAJOR == MN_MAJOR || COLUMNS % (8 * CLUSTER) == 0, "columns that blocks copy");
  static_assert(EPILOGUE == DIRECT || STORED_COLUMNS % CHUNK_COLUMNS == 0, "whole chunks");
  static_assert(!GATED || (EPILOGUE == HALVES && CLUSTER == 2), "one block copies gate, the other one up");
  static_assert(EPILOGUE == DIRECT || EPILOGUE == STORE || EPILOGUE == F32 ||
                    (COLUMNS % 64 == 0 && PRODUCTS * CHUNKS % BUFFERS == 0),
                "whole steps of chunks with 128 bytes a row");
  static_assert(EPILOGUE != HALVES || (PRODUCTS == 2 && CHUNKS % BUFFERS == 0), "halves");
};

// Returns the row and the column, in units of cluster tiles, of tile number t. Tiles are numbered group of rows by
// group of rows (GROUP tiles); in a group, column by column, and in a column by ascending rows.
template <class T>
__device__ __forceinline__ void place_of_tile(int t, int rows, int columns, int& row, int& column) {
  const int per_group = T::GROUP * columns, group = t / per_group, first = group * T::GROUP;
  const int size = min(T::GROUP, rows - first), rest = t - group * per_group;
  column = rest / size;
  row = first + (rest - column * size);
}

}  // namespace gemm
