// Who sees a tile of keys: the query tiles of its own sequence and of those that have it in their prefix, one head of the
// group after the other, in a fixed order: sequences ascending, heads ascending, tiles ascending.
#pragma once

#include "attention/sequences.cuh"

// A tile of queries of one head that sees keys of the tile.
struct Visit {
  u64 row;            // the first query's head, counted in heads: token * heads + head
  u32 heads, head_dim;
  int count;          // queries; 0 after the last visit
  int begin, end;     // keys of the tile that may be seen
  int offset;         // key r is seen by queries from r + offset on

  __device__ __forceinline__ PackedRows queries() const {
    return {row * head_dim, static_cast<u64>(heads) * head_dim};
  }
  // Where query r's values of f32 [tokens, heads] lie.
  __device__ __forceinline__ u64 value(int r) const { return row + static_cast<u64>(r) * heads; }

  // The first query of the tile that sees key r; 64 if none does.
  __device__ __forceinline__ int seen_from(int r) const { return r < begin || r >= end ? 64 : max(r + offset, 0); }
  // The first query of the tile that sees any of keys r .. s.
  __device__ __forceinline__ int seen_from(int r, int s) const {
    return seen_from(max(r, begin)) < 64 && max(r, begin) < s ? seen_from(max(r, begin)) : 64;
  }
  // Whether all queries see all of keys r .. s.
  __device__ __forceinline__ bool all_see(int r, int s) const { return r >= begin && s <= end && s - 1 + offset <= 0; }
};

// The visits to a tile of keys, in shared memory: thread 0 looks two ahead.
struct Visits {
  Visit slots[4];
  int sequence, first_key;  // of the keys: their sequence, and the first one's place in it
  int head, tile;           // of the visit that is found next: within the group, first query within its sequence

  __device__ __forceinline__ const Visit& operator[](int i) const { return slots[i % 4]; }

  // Finds visits 0 and 1. A barrier must follow. P has cu_seqlens, heads, kv_heads, head_dim and causal.
  template <class P>
  __device__ __forceinline__ void start(const P& p, int sequence_, int first_key_, int kv_head) {
    if (threadIdx.x != 0) return;
    sequence = sequence_;
    first_key = first_key_;
    head = 0;
    tile = p.causal ? first_key : 0;
    find(p, 0, kv_head);
    find(p, 1, kv_head);
  }
  // Finds visit i + 2, while others read visits i and i + 1. A barrier must follow before it is read.
  template <class P>
  __device__ __forceinline__ void look_ahead(const P& p, int i, int kv_head) {
    if (threadIdx.x == 0) find(p, i + 2, kv_head);
  }

 private:
  template <class P>
  __device__ __forceinline__ void find(const P& p, int i, int kv_head) {
    Visit& visit = slots[i % 4];
    const int* const cu_seqlens = global<const int>(p.cu_seqlens);
    const int group = static_cast<int>(p.heads / p.kv_heads);
    const int first = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - first;
    if (tile >= length) {
      tile = p.causal ? first_key : 0;
      ++head;
    }
    visit.count = head < group ? min(64, length - tile) : 0;
    visit.row = (static_cast<u64>(first) + tile) * p.heads + kv_head * group + head;
    visit.heads = p.heads;
    visit.head_dim = p.head_dim;
    visit.begin = 0;
    visit.end = 64;
    visit.offset = p.causal ? first_key - tile : -64;
    tile += 64;
  }
};
