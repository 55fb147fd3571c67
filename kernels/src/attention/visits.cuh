// Who sees a tile of keys: the query tiles of its own sequence and of those that have some of it in their prefix, in a fixed
// order: sequences ascending (a sequence's prefix before its own keys), tiles descending, heads of the group ascending. So all
// tiles of keys of a sequence begin with the same queries and keep in step, also when causal, where they end with others.
#pragma once

#include "attention/sequences.cuh"

// A tile of queries of one head that sees keys of the tile.
struct Visit {
  u64 row;            // the first query's head, counted in heads: token * heads + head
  u32 heads, head_dim;
  int count;          // queries; 0 after the last visit
  int begin, end;     // keys of the tile that may be seen
  int offset;         // key r is seen by queries from r + offset on
  int last;           // number of the last tile of their own keys that the queries see

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

// The visits to a tile of KEYS keys (at most), in shared memory: one thread looks two ahead.
template <int KEYS>
struct Visits {
  Visit slots[4];
  Place keys;
  // What is found next: which sequence's queries, whether they see the keys as their own or in their prefix, first query of the
  // tile, head within the group.
  int sequence, own, tile, head;
  int first, length;  // that sequence's

  __device__ __forceinline__ const Visit& operator[](int i) const { return slots[i % 4]; }

  // Finds visits 0 and 1, in thread 0. A barrier must follow. P has cu_seqlens, seqs, prefix, heads, kv_heads, head_dim and
  // causal.
  template <class P>
  __device__ __forceinline__ void start(const P& p, const Place& place, int kv_head) {
    if (threadIdx.x != 0) return;
    keys = place;
    sequence = p.prefix == 0 ? place.sequence : 0;
    own = p.prefix == 0;
    head = 0;
    enter(p);
    find(p, 0, kv_head);
    find(p, 1, kv_head);
  }
  // Finds visit i + 2, while others read visits i and i + 1. A barrier must follow before it is read.
  template <class P>
  __device__ __forceinline__ void look_ahead(const P& p, int i, int kv_head) {
    if (threadIdx.x == 64) find(p, i + 2, kv_head);
  }

 private:
  // The sequence's first token, length and last tile of queries, which is below 0 where it has none.
  template <class P>
  __device__ __forceinline__ void enter(const P& p) {
    if (sequence >= static_cast<int>(p.seqs)) return;
    first = global<const int>(p.cu_seqlens)[sequence];
    length = global<const int>(p.cu_seqlens)[sequence + 1] - first;
    tile = (length + 63) / 64 * 64 - 64;
  }
  template <class P>
  __device__ __forceinline__ void find(const P& p, int i, int kv_head) {
    Visit& visit = slots[i % 4];
    const int group = static_cast<int>(p.heads / p.kv_heads), token = keys.first + keys.begin;
    visit.count = 0;
    while (sequence < static_cast<int>(p.seqs)) {
      const int from = own && p.causal ? keys.begin : 0;  // the first query that sees any of the keys
      int begin = 0, end = keys.count;
      if (!own) {
        const TokenRange prefix = prefix_of(p, sequence);
        begin = max(prefix.first - token, 0);
        end = min(prefix.first + prefix.count - token, keys.count);
      }
      if (begin < end && tile >= from) {
        visit.count = min(64, length - tile);
        visit.row = (static_cast<u64>(first) + tile) * p.heads + kv_head * group + head;
        visit.heads = p.heads;
        visit.head_dim = p.head_dim;
        visit.begin = begin;
        visit.end = end;
        visit.offset = own && p.causal ? keys.begin - tile : -KEYS;
        visit.last = ((p.causal ? tile + visit.count : length) - 1) / KEYS;
        if (++head == group) {
          head = 0;
          tile -= 64;
        }
        return;
      }
      // Done with this sequence's queries; its own keys come after those in its prefix.
      if (!own && sequence == keys.sequence) {
        own = 1;
      } else {
        own = 0;
        // Without prefixes nobody else sees the keys.
        sequence = p.prefix == 0 ? static_cast<int>(p.seqs) : sequence + 1;
      }
      enter(p);
    }
  }
};
