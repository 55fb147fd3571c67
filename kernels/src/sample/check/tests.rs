use super::*;
use crate::sample::cpu::kept_weights;

/// Returns two numbers: χ² of the counts of the sampled `ids` against `expected` (id, probability), and its degrees
/// of freedom.
fn chi_square(ids: &[i32], expected: &[(usize, f64)]) -> (f64, f64) {
    let n = ids.len() as f64;
    let count = |id: usize| ids.iter().filter(|&&x| x == id as i32).count() as f64;
    assert!(ids.iter().all(|&id| expected.iter().any(|e| e.0 as i32 == id)), "a token of probability 0 was drawn");
    let sum = expected.iter().map(|&(id, p)| (count(id) - n * p).powi(2) / (n * p)).sum();
    (sum, expected.len() as f64 - 1.0)
}

#[test]
fn keeps_what_the_formula_keeps() {
    let mut picks = RandomChoices::new(2);
    for i in 0..300 {
        let (logits, s) = any_case(&mut picks);
        let ranked = formula::ranked_tokens(&wide(&logits), &s);
        if ranked.is_empty() {
            continue;
        }
        // The kernel may keep or drop a token whose weight is within a rounding error of the min-p limit, min-p times
        // the largest weight.
        let shares = [s.min_p - 1e-6, s.min_p + 1e-6].map(|share| share.min(1.0) * ranked[0].probability);
        let weights = kept_weights(&logits, &s);
        let mut in_top_k = vec![false; logits.len()];
        for (rank, token) in ranked.iter().enumerate() {
            let (id, p, before) = (token.id, token.probability, token.probability_before);
            in_top_k[id] = true;
            // A weight that is too small for f32 counts as 0, so such tokens are not checked.
            if rank == 0 || (before < s.top_p - 1e-6 && p > 1e-30 && p > shares[1]) {
                assert!(
                    weights[id] > 0.0,
                    "case {i}, {s:?}: token {id} (probability {p}, tokens before it {before}) was dropped"
                );
            } else if p < shares[0] || (before > s.top_p + 1e-6 && s.top_p < 1.0) {
                assert!(
                    weights[id] == 0.0,
                    "case {i}, {s:?}: token {id} (probability {p}, tokens before it {before}) was kept"
                );
            }
        }
        for id in 0..logits.len() {
            assert!(
                in_top_k[id] || weights[id] == 0.0,
                "case {i}, {s:?}: token {id} was kept but is not among the k most likely"
            );
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    // Drops the first 20 numbers, because the outlier at index 13 would make all other tokens improbable.
    let (rows, row) = (20_000, normal_numbers(60, 5, 1.0).split_off(20));
    for (seed, top_p, top_k, temperature) in [(1, 1.0, 0, 1.0), (2, 0.8, 0, 1.0), (3, 1.0, 7, 0.7), (4, 0.9, 20, 1.5)] {
        let s = SamplingSettings { temperature, top_p, top_k, ..settings() };
        let batch =
            Batch { logits: row.repeat(rows), settings: s.clone(), seed, positions: (0..rows as i32).collect() };
        let ids = batch.run(2).ids;
        let mut kept: Vec<_> = formula::ranked_tokens(&wide(&row), &s);
        kept.retain(|t| t.probability_before < top_p);
        let all: f64 = kept.iter().map(|t| t.probability).sum();
        let (chi, freedom) = chi_square(&ids, &kept.iter().map(|t| (t.id, t.probability / all)).collect::<Vec<_>>());
        // χ² has mean `freedom` and variance `2 freedom`; five standard deviations either way are allowed. The seeds
        // are fixed.
        assert!((chi - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "seed {seed}: chi² {chi} of {freedom}");
    }
}

#[test]
fn ties_at_the_borders() {
    let row = [1.0, 2.0, 2.0, 2.0, 1.0, -3.0];
    let kept = |s: SamplingSettings| -> Vec<usize> {
        kept_weights(&row, &s).iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(i, _)| i).collect()
    };
    assert_eq!(
        kept(SamplingSettings { top_k: 1, ..settings() }),
        [1, 2, 3],
        "scores equal to the k-th largest are kept"
    );
    assert_eq!(kept(SamplingSettings { top_k: 4, ..settings() }), [0, 1, 2, 3, 4]);
    assert_eq!(
        kept(SamplingSettings { top_p: 0.0, ..settings() }),
        [1],
        "at least one token is kept, and of equal scores the one with the lowest id"
    );
    assert_eq!(
        kept(SamplingSettings { top_k: 1, top_p: 0.5, ..settings() }),
        [1, 2],
        "top-p applies to the tokens that top-k keeps"
    );
    assert_eq!(one_row(&row, SamplingSettings { temperature: 0.0, ..settings() }).0, 1);
}

#[test]
fn a_whole_vocabulary() {
    let vocab = 152_064;
    // Flat distributions, in which almost every token must be sorted, and peaked ones, in which almost none must be.
    for (scale, top_p) in [(0.0, 0.95), (0.3, 0.95), (3.0, 0.95), (3.0, 0.001)] {
        let row = normal_numbers(vocab, 3, scale);
        let s = SamplingSettings { top_p, ..settings() };
        let weights = kept_weights(&row, &s);
        let kept = weights.iter().filter(|w| **w > 0.0).count() as i64;
        let want =
            formula::ranked_tokens(&wide(&row), &s).iter().filter(|t| t.probability_before < top_p).count() as i64;
        assert!((kept - want).abs() <= 1 + want / 10_000, "scale {scale}, p {top_p}: {kept} kept, want {want}");
        let k = 50;
        // With this temperature no weight is too small or too large for f32.
        let weights = kept_weights(&row, &SamplingSettings { top_k: k, temperature: 5.0, ..settings() });
        let kept = weights.iter().filter(|w| **w > 0.0).count();
        assert!(if scale == 0.0 { kept == vocab } else { kept == k }, "scale {scale}: {kept} of {k}");
    }
}

/// Counts how often the kernel reads a row of logits (from L2 after the first time): once for the greedy token, once
/// more for log-probabilities, and for a sampled token as often as sm80.cu documents.
#[test]
fn a_row_is_read_as_often_as_it_must() {
    crate::checks::run_test_on_sim(|| {
        let vocab = 152_064;
        let logits = normal_numbers(vocab, 3, 2.0);
        let (mut ids, mut log_prob) = ([0i32; 1], [0f32; 1]);
        let (zero, one, half) = ([0f32], [1f32], [0.5f32]);
        let (no, fifty, seed) = ([0i32], [50i32], [7u64]);
        let greedy = Params {
            logits: addr(&logits),
            temperature: addr(&zero),
            top_p: addr(&one),
            top_k: addr(&no),
            penalty: addr(&one),
            seed: addr(&seed),
            position: addr(&no),
            ids: addr_mut(&mut ids),
            rows: 1,
            vocab: vocab as u32,
            ..Params::default()
        };
        let log_probs = Params { log_prob: addr_mut(&mut log_prob), ..greedy };
        let plain = Params { temperature: addr(&one), ..log_probs };
        let top_p = Params { top_p: addr(&half), ..plain };
        let top_k = Params { top_k: addr(&fifty), ..top_p };
        for (params, times) in [(greedy, 1.0), (log_probs, 2.0), (plain, 3.1), (top_p, 8.2), (top_k, 11.2)] {
            let launch = sample(&params);
            let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
            let bytes = (count.global_read + count.global_written) as f64;
            println!("{} of {times}, {:?}", bytes / cost.bytes, count);
            assert!(
                bytes <= 1.02 * times * cost.bytes,
                "the kernel moves {bytes} bytes, expected at most {times} times {}",
                cost.bytes
            );
        }
    });
}

/// Counts how often a row with a penalty reads its history: three times. The logit and the workspace of each different token are read, too. A row without penalties does not read its history.
#[test]
fn a_penalised_row_reads_its_history_three_times() {
    crate::checks::run_test_on_sim(|| {
        let (vocab, tokens) = (152_064, 4096);
        let logits = normal_numbers(vocab, 3, 2.0);
        let history: Vec<i32> = (0..tokens).map(|i| i * 37).collect();
        let (mut ids, mut changed) = ([0i32; 1], vec![0u32; vocab]);
        let (zero, one, penalty, no, seed, len) = ([0f32], [1f32], [1.5f32], [0i32], [7u64], [tokens]);
        let with = |penalty| Params {
            logits: addr(&logits),
            temperature: addr(&zero),
            top_p: addr(&one),
            top_k: addr(&no),
            penalty,
            seed: addr(&seed),
            position: addr(&no),
            history: addr(&history),
            history_len: addr(&len),
            history_cols: tokens as u32,
            rows: 1,
            vocab: vocab as u32,
            ..Params::default()
        };
        let written = Params { ids: addr_mut(&mut ids), workspace: addr_mut(&mut changed), ..with(addr(&penalty)) };
        let without = Params { penalty: addr(&one), ..written };
        let (of_logits, of_history) = (4.0 * vocab as f64, 4.0 * f64::from(tokens));
        // Accesses to the workspace: set to 0, increment, read and write; then another read, with the logit, for a
        // changed score.
        for (params, history, workspace) in [(without, 0.0, 0.0), (written, 3.0, 7.0)] {
            let launch = sample(&params);
            assert_eq!(launch.cost().bytes, of_logits + of_history);
            let count = crate::checks::simulated_counts(&launch);
            let bytes = (count.global_read + count.global_written) as f64;
            let most = of_logits + (history + workspace) * of_history;
            assert!(
                bytes >= of_logits + history * of_history,
                "the kernel moves {bytes} bytes, fewer than the logits and the history have"
            );
            assert!(bytes <= 1.01 * most, "{bytes} bytes, more than {most}");
        }
    });
}
