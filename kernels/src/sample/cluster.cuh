// Samples the next token of each row by a cluster of blocks (sm_90); steps and their order: mod.rs. The results are
// bit-identical to the kernel in sm80.cu.
//
// Grid: a cluster of 8 blocks of 512 threads per row, at most two blocks on a multiprocessor. Each of the 128 warps of
// a cluster takes one run of the row (row.cuh) and copies its logits to shared memory, so the row is read once. All
// other passes go over shared memory, and a lane reads only the ids that it copied. Marks and changed scores are those
// of sm80.cu, each block with the marks of its own ids. To read next: cluster_row.cuh (what a block holds),
// cluster_select.cuh (top-k and the rounds of a selection), cluster_draw.cuh (top-p and the token), cluster_tops.cuh
// (the most likely tokens).
//
//   start     copy the run, marks
//   1 pass    max score, first id of it, largest logit, any NaN, each by run                       1 cluster barrier
//   top-k     lower bound: the k-th largest of the runs' maxima (k <= 128), else none
//             least = k-th largest score of those above the bound                                  1 each round
//   1, 2      exact sums of e^x and, for T > 0 other than 1, e^(x / T), x = unchanged logit
//   1 pass    w = e^((score - row_max) / T) replaces the logit, 0 below least; total = sum of w    1
//   top-p     w* = weight at which the descending sum reaches p total; weights that cannot be
//             kept are skipped                                                                     1 each round
//   1 pass    by run: sum of the weights above w*, number of those equal to it                     1
//             the run in which the running sum of kept weights exceeds u * (their sum) is searched again
//
// A row of n tokens takes n exponentials for weights, four for each four neighbouring tokens of which top-k keeps one,
// n for log-probabilities, and n more for log-probabilities at a temperature other than 1 or 0.
//
// Before a barrier every warp stores what it found to the shared memory of all blocks, so that after it only local
// memory is read. Histograms and lists are read from the other blocks, but never after the last barrier. So a block may
// end while others still run.
//
// Bound by the instructions of the passes: at a vocabulary of 152 064, a block executes a ninth of those of the kernel
// of one block for a greedy token, an eighteenth with top-k, top-p and log-probabilities.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/dependent.cuh"
#include "cuh/warp.cuh"
#include "sample/cluster_draw.cuh"
#include "sample/cluster_row.cuh"
#include "sample/cluster_select.cuh"
#include "sample/cluster_tops.cuh"
#include "sample/row.cuh"

namespace in_cluster {

// Stores the sum of the exponentials of this warp's run (its range of token ids) in the shared memory of all blocks.
// Computing both sums (at temperature 1 and at the row's) at once would need more registers than a thread has.
__device__ __forceinline__ void give_sum(const Run& run, u32 number, const RowExps& exps,
                                         u64 (&sums)[ExpSum::WORDS][RUNS]) {
  ExpSum sum = exps.none();
  run.each_four([&](int, const float (&logit)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) exps.add(sum, logit[j]);
  });
#pragma unroll
  for (int i = 0; i < ExpSum::WORDS; ++i) give_to_all(sums[i][number], warp_sum(sum.words[i]));
}

}  // namespace in_cluster

extern "C" __global__ void __launch_bounds__(in_cluster::THREADS, 2) sample_cluster(const __grid_constant__ Params p) {
  using namespace in_cluster;
  __shared__ in_cluster::Shared s;
  let_next_launch_start();
  cluster_arrive();
  if (threadIdx.x < in_cluster::BINS) s.bins[0][threadIdx.x] = 0;
  if (threadIdx.x == 0) s.listed[0] = 0;
  wait_for_previous_launch();
  const int r = blockIdx.x / BLOCKS, vocab = p.vocab, per_run = ids_per_run(vocab);
  const u32 rank = cluster_rank(), number = rank * in_cluster::WARPS + warp();
  const bool writer = rank == 0 && threadIdx.x == 0;
  if (threadIdx.x == 0) s.settings = settings_of(p, r);
  const float* logits = global<const float>(p.logits) + static_cast<u64>(r) * vocab;
  u32* changed = p.workspace == 0 ? nullptr : global<u32>(p.workspace) + static_cast<u64>(r) * vocab;
  const int per_block = in_cluster::WARPS * per_run, first_id = rank * per_block;
  auto clamped = [&](int id) { return id < vocab ? id : vocab; };
  Run run;
  run.marks = {ids_of_block, first_id, clamped(first_id + per_block), per_block / 32, changed};
  run.values = reinterpret_cast<float*>(ids_of_block + 2 * run.marks.words);
  run.begin = number * per_run;
  run.end = clamped(run.begin + per_run);

  const bool vector = aligned16(p.logits, static_cast<u64>(vocab) * sizeof(float));
  for (int id = run.begin + lane() * 4; id < run.end; id += TILE) {
    const u32 to = static_cast<u32>(__cvta_generic_to_shared(run.values + (id - first_id)));
    if (vector) {
      cp_async_16(to, logits + id);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (id + j < run.end) {
          cp_async_4(to + 4 * j, logits + id + j);
        } else {
          run.values[id + j - first_id] = minus_infinity();
        }
      }
    }
  }
  cp_async_commit();
  prepare<in_cluster::THREADS>(p, run.marks, logits, changed, s.settings, r);
  cp_async_wait<0>();

  float max_logit = minus_infinity(), max_score = minus_infinity();
  int max_id = -1;
  bool bad = false;
  run.each_four([&](int id, const float (&logit)[4]) {
    float score[4], max = max_or_nan(logit);
    max_logit = max_or_nan(max_logit, max);
    if (run.marks.scores(id, logit, score)) {
      max = max_or_nan(score);
      bad |= max != max;
    }
    if (max > max_score) {
      max_score = max;
      max_id = id + (score[0] == max ? 0 : score[1] == max ? 1 : score[2] == max ? 2 : 3);
    }
  });
  u64 first = warp_max_u64(max_id < 0 ? 0 : score_and_id(max_score, max_id));
  u32 largest_key = __reduce_max_sync(ALL, ordered(max_logit));
  bad = __any_sync(ALL, bad || max_logit != max_logit);
  // redundant: in the simulator all blocks of a cluster start together; on a GPU the others may start later.
  cluster_wait();
  give_to_all(s.first[number], first);
  give_to_all(s.logit[number], static_cast<u64>(largest_key) << 32 | bad);
  cluster_barrier();
  first = 0;
  u64 largest_logit = 0;
  u32 any = 0;
#pragma unroll
  for (int i = lane(); i < RUNS; i += 32) {
    first = s.first[i] > first ? s.first[i] : first;
    largest_logit = s.logit[i] > largest_logit ? s.logit[i] : largest_logit;
    any |= static_cast<u32>(s.logit[i]);
  }
  first = warp_max_u64(first);
  largest_key = __reduce_max_sync(ALL, static_cast<u32>(largest_logit >> 32));
  bad = __any_sync(ALL, any != 0);
  const float top = first == 0 ? minus_infinity() : score_of(first), largest = unordered(largest_key);

  const bool greedy = !(s.settings.temperature > 0.0f);
  const bool sampled = !bad && !greedy && top != minus_infinity();
  int id = !bad && greedy && top != minus_infinity() ? id_of(first) : -1;
  const bool log_probs = p.log_prob != 0 || p.raw_log_prob != 0 || p.tops != 0;
  const int tops = p.tops < p.vocab ? p.tops : p.vocab;
  if (bad || (!sampled && !log_probs)) {
    if (writer) {
      global<int>(p.ids)[r] = id;
      write_log_probs(p, r, id, largest, largest, 1.0f, 0.0, 0.0);
    }
    if (rank == 0) write_tops(p, r, 0, s.top_logit, s.top_id, largest, 0.0);
    return;
  }
  Rounds rounds{0};
  if (tops > 0) collect_tops(run, s, rounds, rank, tops, largest_key);

  const int k = s.settings.top_k;
  float least = minus_infinity();
  if (sampled && k > 0 && k < vocab) {
    const u32 bound = bound_of(s, k, [&](int i) { return static_cast<u32>(s.first[i] >> 32); });
    const bool few = bound != 0;
    least = unordered(in_cluster::select<One>(ScoreKeys{run}, s, rounds, k, bound, ordered(top), few).key);
  }

  const float scale = greedy ? 1.0f : __fdiv_rn(1.0f, s.settings.temperature);
  const float top_p = s.settings.top_p;
  const RowExps plain_exps(1.0f, largest), scaled_exps(scale, largest);
  if (log_probs) give_sum(run, number, plain_exps, s.plain);
  if (log_probs && scale != 1.0f) give_sum(run, number, scaled_exps, s.scaled);
  u64 total = 0;
  run.each_four([&](int id, const float (&logit)[4]) {
    if (!sampled) return;
    float e[4] = {0.0f, 0.0f, 0.0f, 0.0f}, score[4];
    run.marks.scores(id, logit, score);
    if (max_or_nan(score) >= least) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        e[j] = score[j] >= least ? expf(__fmul_rn(__fsub_rn(score[j], top), scale)) : 0.0f;
        if (top_p < 1.0f) total += fixed(e[j]);
      }
    }
    store_vector(run.values + (id - first_id), e);
  });
  if (sampled && top_p < 1.0f) give_to_all(s.total[number], warp_sum(total));
  bool mine = writer;  // whether this thread writes the row's token
  if (!sampled) {
    cluster_barrier();
  } else {
    TopP kept{0, 0};
    bool empty = false;
    if (top_p < 1.0f) {
      cluster_barrier();
      total = sum_of_runs(s.total);
      empty = total == 0;
      if (!empty) kept = top_p_of(run, s, rounds, top_p, total, vocab, k > 0 && k <= LISTED);
    }
    if (!empty) {
      const Drawn drawn = in_cluster::draw(run, s, rank, kept, s.settings.min_p, random_of(s.settings));
      id = drawn.id;
      mine = drawn.empty ? writer : id >= 0;
    }
  }
  if (mine) global<int>(p.ids)[r] = id;
  if (!log_probs) return;
  const bool writes_tops = rank == 0 && tops > 0;
  if (!__any_sync(ALL, mine) && !writes_tops) return;
  const double log_plain = plain_exps.log_above(s.plain);
  const double log_scaled = scale == 1.0f ? log_plain : scaled_exps.log_above(s.scaled);
  if (mine) write_log_probs(p, r, id, id < 0 ? largest : logits[id], largest, scale, log_scaled, log_plain);
  if (writes_tops) write_tops(p, r, tops, s.top_logit, s.top_id, largest, log_plain);
}

#endif
