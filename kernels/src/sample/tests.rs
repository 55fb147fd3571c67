use super::formula::Settings;
use super::{Params, STREAM, formula, sample, workspace};
use crate::Addr;
use crate::philox;
use crate::testing::{Data, Device, addr, addr_mut, device, for_each_device, numbers, run};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

for_each_device!(
    generated_rows_follow_the_formula,
    a_row_does_not_know_its_batch,
    nothing_to_choose_from,
    a_whole_vocabulary_follows_the_formula,
);

/// A batch whose rows share all settings but the position.
#[derive(Clone)]
struct Batch {
    logits: Vec<f32>,
    settings: Settings,
    seed: u64,
    positions: Vec<i32>,
}

/// What the kernel writes.
#[derive(Clone, Debug, PartialEq)]
struct Chosen {
    ids: Vec<i32>,
    log_prob: Vec<f32>,
    raw_log_prob: Vec<f32>,
    top_ids: Vec<i32>,
    top_log_probs: Vec<f32>,
}

/// Likeliest tokens asked for.
const TOPS: usize = 5;

impl Batch {
    fn run(&self, threads: usize) -> Chosen {
        let (rows, s) = (self.positions.len(), &self.settings);
        let cols = s.history.len();
        let history_len = vec![cols as i32; rows];
        let mut out = Chosen {
            ids: vec![-7; rows],
            log_prob: vec![0.5; rows],
            raw_log_prob: vec![0.5; rows],
            top_ids: vec![-7; rows * TOPS],
            top_log_probs: vec![0.5; rows * TOPS],
        };
        let [temperature, top_p, min_p, penalty, frequency, presence] =
            [s.temperature, s.top_p, s.min_p, s.penalty, s.frequency_penalty, s.presence_penalty]
                .map(|x| vec![x as f32; rows]);
        let (top_k, counted_from) = (vec![s.top_k as i32; rows], vec![s.counted_from as i32; rows]);
        let (seed, history) = (vec![self.seed; rows], s.history.repeat(rows));
        let (bias_ids, bias, allowed) = (s.bias_ids.repeat(rows), s.bias.repeat(rows), s.allowed.repeat(rows));
        let mut params = Params {
            logits: addr(&self.logits),
            temperature: addr(&temperature),
            top_p: addr(&top_p),
            top_k: addr(&top_k),
            penalty: addr(&penalty),
            seed: addr(&seed),
            position: addr(&self.positions),
            history: if cols == 0 { Addr::NULL } else { addr(&history) },
            history_len: addr(&history_len),
            suppressed: addr(&s.suppressed),
            frequency_penalty: if s.frequency_penalty == 0.0 { Addr::NULL } else { addr(&frequency) },
            presence_penalty: if s.presence_penalty == 0.0 { Addr::NULL } else { addr(&presence) },
            counted_from: if s.counted_from == 0 { Addr::NULL } else { addr(&counted_from) },
            min_p: if s.min_p == 0.0 { Addr::NULL } else { addr(&min_p) },
            bias_ids: addr(&bias_ids),
            bias: addr(&bias),
            allowed: if s.allowed.is_empty() { Addr::NULL } else { addr(&allowed) },
            workspace: Addr::NULL,
            ids: addr_mut(&mut out.ids),
            log_prob: addr_mut(&mut out.log_prob),
            raw_log_prob: addr_mut(&mut out.raw_log_prob),
            top_ids: addr_mut(&mut out.top_ids),
            top_log_probs: addr_mut(&mut out.top_log_probs),
            rows: rows as u32,
            vocab: (self.logits.len() / rows) as u32,
            history_cols: cols as u32,
            suppressed_count: s.suppressed.len() as u32,
            bias_cols: s.bias_ids.len() as u32,
            tops: TOPS as u32,
        };
        let scratch = Data::output(crate::DType::F32, workspace(&params) / 4);
        params.workspace = scratch.addr();
        run(&sample(&params), threads);
        out
    }
}

fn settings() -> Settings {
    Settings {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        history: vec![],
        counted_from: 0,
        bias_ids: vec![],
        bias: vec![],
        suppressed: vec![],
        allowed: vec![],
    }
}

fn one_row(logits: &[f32], settings: Settings) -> (i32, f32) {
    let out = Batch { logits: logits.to_vec(), settings, seed: 1, positions: vec![0] }.run(1);
    (out.ids[0], out.log_prob[0])
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

/// Logits on a grid, so that two of them are equal or well apart: their order does not hang on a rounding. The penalties
/// below keep that so.
fn logits(vocab: usize) -> impl Strategy<Value = Vec<f32>> {
    (0..7, any::<u64>()).prop_map(move |(bits, seed)| {
        let steps = 1 << bits;
        numbers(vocab, seed, 3.0).iter().map(|x| (x * steps as f32).round() / steps as f32).collect()
    })
}

prop_compose! {
    fn any_settings(vocab: usize)(
        temperature in prop::sample::select(vec![0.1f32, 0.7, 1.0, 1.7]),
        top_p in prop_oneof![Just(1.0f32), Just(0.0), Just(0.001), Just(0.95), 0.0f32..1.0],
        top_k in prop_oneof![Just(0), Just(1), Just(50), 1..vocab + 5],
        min_p in prop_oneof![Just(0.0f32), Just(0.0), 0.0f32..1.0, Just(1.5)],
        penalty in prop::sample::select(vec![1.0f32, 1.25, 0.75]),
        (frequency, presence) in prop::sample::select(vec![(0.0f32, 0.0f32), (0.5, 0.0), (0.0, -0.75), (-0.25, 1.5)]),
        history in prop::collection::vec(-2..vocab as i32 + 2, 0..20),
        counted_from in prop::sample::select(vec![0usize, 0, 3, 30]),
        bias in prop::collection::btree_map(-1..vocab as i32 + 2, prop::sample::select(vec![0.5f32, -2.25, 100.0, -100.0]), 0..5),
        suppressed in prop::collection::vec(0..vocab as i32, 0..vocab.min(9)),
        allowed in prop::option::weighted(0.3, prop::collection::vec(any::<u32>(), vocab.div_ceil(32))),
    ) -> Settings {
        Settings {
            temperature: temperature as f64,
            top_p: top_p as f64,
            top_k,
            min_p: min_p as f64,
            penalty: penalty as f64,
            frequency_penalty: frequency as f64,
            presence_penalty: presence as f64,
            history,
            counted_from,
            bias_ids: bias.keys().copied().collect(),
            bias: bias.values().copied().collect(),
            suppressed,
            allowed: allowed.unwrap_or_default(),
        }
    }
}

fn case() -> impl Strategy<Value = (Vec<f32>, Settings)> {
    (2usize..1500).prop_flat_map(|vocab| (logits(vocab), any_settings(vocab)))
}

proptest! {
    #[test]
    fn keeps_what_the_formula_keeps((logits, s) in case()) {
        let ranked = formula::ranked(&wide(&logits), &s);
        prop_assume!(!ranked.is_empty());
        // A weight of min-p of the largest may fall on either side.
        let shares = [s.min_p - 1e-6, s.min_p + 1e-6].map(|share| share.min(1.0) * ranked[0].1);
        let weights = super::cpu::kept_weights(&logits, &s);
        let mut in_top_k = vec![false; logits.len()];
        for (i, &(id, p, before)) in ranked.iter().enumerate() {
            in_top_k[id] = true;
            // A weight below f32's range counts as none.
            if i == 0 || (before < s.top_p - 1e-6 && p > 1e-30 && p > shares[1]) {
                prop_assert!(weights[id] > 0.0, "token {id}, p {p} after {before}, was dropped");
            } else if p < shares[0] || (before > s.top_p + 1e-6 && s.top_p < 1.0) {
                prop_assert!(weights[id] == 0.0, "token {id}, p {p} after {before}, was kept");
            }
        }
        for id in 0..logits.len() {
            prop_assert!(in_top_k[id] || weights[id] == 0.0, "token {id} is not among the k best");
        }
    }

    #[test]
    fn follows_the_formula((logits, s) in case(), seed: u64, position in 0i32..i32::MAX) {
        check(&logits, &s, seed, position)?;
    }
}

/// The same cases on every device.
fn generated_rows_follow_the_formula() {
    let mut runner = TestRunner::deterministic();
    for i in 0..25 {
        let (logits, s) = case().new_tree(&mut runner).unwrap().current();
        check(&logits, &s, 7 * i, 1000 * i as i32).unwrap_or_else(|e| panic!("case {i}, {s:?}: {e}"));
    }
}

/// All that the kernel writes about a row, drawn and greedy.
fn check(logits: &[f32], s: &Settings, seed: u64, position: i32) -> Result<(), TestCaseError> {
    let wide = wide(logits);
    let near = |got: f32, want: f64| got as f64 == want || (got as f64 - want).abs() <= 1e-6 * (1.0 + want.abs());
    let batch = Batch { logits: logits.to_vec(), settings: s.clone(), seed, positions: vec![position] };
    let out = batch.run(1);
    let ranked = formula::ranked(&wide, s);
    let u = philox::uniform_f64(seed, STREAM, position as u64);
    let around = |x: f64| [x, x - 1e-6, x + 1e-6];
    let choices = around(u).into_iter().flat_map(|u| around(s.top_p).map(|p| (u.clamp(0.0, 1.0), p)));
    let want: Vec<i32> = choices
        .flat_map(|(u, p)| around(s.min_p).map(|m| formula::draw(&ranked, p, m, u).map_or(-1, |i| i as i32)))
        .collect();
    let id = out.ids[0];
    prop_assert!(want.contains(&id), "{id} drawn, want {want:?}");
    if id < 0 {
        prop_assert!(out.log_prob[0].is_nan() && out.raw_log_prob[0].is_nan());
    } else {
        for (got, scale) in [(out.raw_log_prob[0], 1.0), (out.log_prob[0], 1.0 / s.temperature)] {
            let want = crate::log_prob::formula::log_prob(&wide, id, scale);
            prop_assert!(near(got, want), "log-probability {got}, want {want}");
        }
    }
    let likeliest = formula::likeliest(&wide, TOPS);
    for i in 0..TOPS {
        let (id, value) = (out.top_ids[i], out.top_log_probs[i]);
        match likeliest.get(i) {
            None => prop_assert!(id == -1 && value.is_nan()),
            Some(want) => prop_assert!(id == want.0 as i32 && near(value, want.1), "{i}: {id} {value}, want {want:?}"),
        }
    }

    let scores = formula::scores(&wide, s);
    let (id, log_prob) = one_row(logits, Settings { temperature: 0.0, ..s.clone() });
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    if top == f64::NEG_INFINITY {
        prop_assert_eq!(id, -1);
    } else {
        prop_assert_eq!(Some(id as usize), scores.iter().position(|&x| x == top));
        prop_assert!(near(log_prob, crate::log_prob::formula::log_prob(&wide, id, 1.0)));
    }
    Ok(())
}

/// χ² of the counts of `draws` tokens against probabilities, with its degrees of freedom.
fn chi_square(ids: &[i32], expected: &[(usize, f64)]) -> (f64, f64) {
    let n = ids.len() as f64;
    let count = |id: usize| ids.iter().filter(|&&x| x == id as i32).count() as f64;
    assert!(ids.iter().all(|&id| expected.iter().any(|e| e.0 as i32 == id)), "a token of probability 0 was drawn");
    let sum = expected.iter().map(|&(id, p)| (count(id) - n * p).powi(2) / (n * p)).sum();
    (sum, expected.len() as f64 - 1.0)
}

#[test]
fn draws_follow_the_distribution() {
    // Without the outlier at 13, beside which all others are rare.
    let (rows, row) = (20_000, numbers(60, 5, 1.0).split_off(20));
    for (seed, top_p, top_k, temperature) in [(1, 1.0, 0, 1.0), (2, 0.8, 0, 1.0), (3, 1.0, 7, 0.7), (4, 0.9, 20, 1.5)] {
        let s = Settings { temperature, top_p, top_k, ..settings() };
        let batch =
            Batch { logits: row.repeat(rows), settings: s.clone(), seed, positions: (0..rows as i32).collect() };
        let ids = batch.run(2).ids;
        let mut kept: Vec<_> = formula::ranked(&wide(&row), &s);
        kept.retain(|t| t.2 < top_p);
        let all: f64 = kept.iter().map(|t| t.1).sum();
        let (chi, freedom) = chi_square(&ids, &kept.iter().map(|t| (t.0, t.1 / all)).collect::<Vec<_>>());
        // Mean `freedom`, variance `2 freedom`: five standard deviations either way. The seeds are fixed.
        assert!((chi - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "seed {seed}: chi² {chi} of {freedom}");
    }
}

fn a_row_does_not_know_its_batch() {
    let (rows, vocab) = (5, 2003);
    let s = Settings { top_p: 0.95, history: vec![3, 8], penalty: 1.2, ..settings() };
    let batch = Batch { logits: numbers(rows * vocab, 9, 2.0), settings: s, seed: 77, positions: vec![4, 0, 9, 4, 1] };
    let all = batch.run(1);
    assert_eq!(batch.run(4), all);
    for r in 0..rows {
        let logits = batch.logits[r * vocab..][..vocab].to_vec();
        let alone = Batch { logits, positions: vec![batch.positions[r]], ..batch.clone() }.run(2);
        assert_eq!((alone.ids[0], alone.log_prob[0]), (all.ids[r], all.log_prob[r]));
        assert_eq!(alone.top_ids, all.top_ids[r * TOPS..][..TOPS]);
    }
}

#[test]
fn ties_at_the_borders() {
    let row = [1.0, 2.0, 2.0, 2.0, 1.0, -3.0];
    let kept = |s: Settings| -> Vec<usize> {
        super::cpu::kept_weights(&row, &s).iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(i, _)| i).collect()
    };
    assert_eq!(kept(Settings { top_k: 1, ..settings() }), [1, 2, 3], "equals of the k-th stay");
    assert_eq!(kept(Settings { top_k: 4, ..settings() }), [0, 1, 2, 3, 4]);
    assert_eq!(kept(Settings { top_p: 0.0, ..settings() }), [1], "of equals the lower id, and always one");
    assert_eq!(kept(Settings { top_k: 1, top_p: 0.5, ..settings() }), [1, 2], "top-p of what top-k left");
    assert_eq!(one_row(&row, Settings { temperature: 0.0, ..settings() }).0, 1);
}

fn nothing_to_choose_from() {
    for temperature in [0.0, 1.0] {
        let s = Settings { temperature, ..settings() };
        for poison in [f32::NAN, -f32::NAN] {
            let mut row = numbers(100, 1, 1.0);
            row[63] = poison;
            let (id, log_prob) = one_row(&row, s.clone());
            assert!(id == -1 && log_prob.is_nan());
        }
        assert_eq!(one_row(&[f32::NEG_INFINITY; 20], s.clone()).0, -1);
        let all = Settings { suppressed: (0..3).collect(), ..s };
        assert_eq!(one_row(&[1.0, 2.0, 3.0], all).0, -1);
    }
}

fn a_whole_vocabulary_follows_the_formula() {
    // Interpreted, a part of it has to do.
    let vocab = if device() == Device::Sim { 20_011 } else { 152_064 };
    let logits: Vec<f32> = numbers(vocab, 8, 2.5).iter().map(|x| (x * 16.0).round() / 16.0).collect();
    let s = Settings { top_p: 0.9, top_k: 4000, history: vec![5, 5, 20_000], penalty: 1.25, ..settings() };
    check(&logits, &s, 3, 4).unwrap();
}

#[test]
fn a_whole_vocabulary() {
    let vocab = 152_064;
    // Flat: everything must be ranked. Peaked: next to nothing.
    for (scale, top_p) in [(0.0, 0.95), (0.3, 0.95), (3.0, 0.95), (3.0, 0.001)] {
        let row = numbers(vocab, 3, scale);
        let s = Settings { top_p, ..settings() };
        let weights = super::cpu::kept_weights(&row, &s);
        let kept = weights.iter().filter(|w| **w > 0.0).count() as i64;
        let want = formula::ranked(&wide(&row), &s).iter().filter(|t| t.2 < top_p).count() as i64;
        assert!((kept - want).abs() <= 1 + want / 10_000, "scale {scale}, p {top_p}: {kept} kept, want {want}");
        let k = 50;
        // Hot enough that no weight leaves f32's range.
        let weights = super::cpu::kept_weights(&row, &Settings { top_k: k, temperature: 5.0, ..settings() });
        let kept = weights.iter().filter(|w| **w > 0.0).count();
        assert!(if scale == 0.0 { kept == vocab } else { kept == k }, "scale {scale}: {kept} of {k}");
    }
}
