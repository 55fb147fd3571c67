// Visits: the pairs (query tile, head) whose queries see a tile of keys, in a fixed order.
//
//   for each sequence, ascending, that sees some of the keys (first as part of its prefix, then as its own keys):
//     for each tile of 64 queries, from the last to the first that sees any of the keys:
//       for each query head of the key head's group, ascending: one visit
//
// In this order the thread blocks of all key tiles of a sequence begin with the same queries and visit the next
// queries at about the same time. With causal attention they end at different queries.
#pragma once

#include "attention/sequences.cuh"

// One visit: a tile of queries of one head, and which keys of the key tile they see.
struct Visit {
  u64 row;            // index of the first query's head: token * heads + head
  u32 heads, head_dim;
  int count;          // number of queries; 0 after the last visit
  int begin, end;     // the range of the tile's keys that the queries may see
  int offset;         // queries from r + offset on see key r

  __device__ __forceinline__ PackedRows queries() const {
    return {row * head_dim, static_cast<u64>(heads) * head_dim};
  }
  // Returns the index of the value of query r in an f32 [tokens, heads] array, such as lse.
  __device__ __forceinline__ u64 value(int r) const { return row + static_cast<u64>(r) * heads; }

  // Returns the first query of the visit that sees key r, as a row of the query tile, or 64 if no query sees it.
  __device__ __forceinline__ int seen_from(int r) const { return r < begin || r >= end ? 64 : max(r + offset, 0); }
  // Returns the first query of the visit that sees any of the keys r .. s, as a row of the query tile; 64 if none
  // does.
  __device__ __forceinline__ int seen_from(int r, int s) const {
    return seen_from(max(r, begin)) < 64 && max(r, begin) < s ? seen_from(max(r, begin)) : 64;
  }
  // Tells whether all queries of the visit see all of the keys r .. s.
  __device__ __forceinline__ bool all_see(int r, int s) const { return r >= begin && s <= end && s - 1 + offset <= 0; }
};

// The visits (pairs of a query tile and a head) of a tile of at most 64 keys. They are in shared memory; one thread
// finds each visit while the block processes the visit two before it.
struct Visits {
  Visit slots[4];
  SequenceTile keys;
  // State of the search for the next visit. sequence: number of the sequence; own: 1 if it sees the keys as its own,
  // 0 if as its prefix; tile: first query of the tile; head: head within the group.
  int sequence, own, tile, head;
  int first, length;  // first token and number of tokens of that sequence

  __device__ __forceinline__ const Visit& operator[](int i) const { return slots[i % 4]; }

  // Lets thread 0 find the first two visits (pairs of a query tile and a head). The caller places a barrier after
  // the call. P is BwdParams.
  template <class P>
  __device__ __forceinline__ void start(const P& p, const SequenceTile& range, int kv_head) {
    if (threadIdx.x != 0) return;
    keys = range;
    sequence = p.prefix == 0 ? range.sequence : 0;
    own = p.prefix == 0;
    head = 0;
    enter(p);
    find(p, 0, kv_head);
    find(p, 1, kv_head);
  }
  // Finds visit i + 2 (a pair of a query tile and a head) while other threads read visits i and i + 1. A barrier
  // must follow before a thread reads visit i + 2.
  template <class P>
  __device__ __forceinline__ void look_ahead(const P& p, int i, int kv_head) {
    if (threadIdx.x == 64) find(p, i + 2, kv_head);
  }

 private:
  // Sets first token, length and last query tile for the current sequence; the tile is negative if the sequence is
  // empty.
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
        visit.offset = own && p.causal ? keys.begin - tile : -64;
        if (++head == group) {
          head = 0;
          tile -= 64;
        }
        return;
      }
      // All queries of this sequence have been visited. A sequence is visited first for keys in its prefix, then for
      // its own.
      if (!own && sequence == keys.sequence) {
        own = 1;
      } else {
        own = 0;
        // Without prefixes no other sequence sees the keys.
        sequence = p.prefix == 0 ? static_cast<int>(p.seqs) : sequence + 1;
      }
      enter(p);
    }
  }
};
