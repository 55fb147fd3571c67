use reel_device::Addr;
use reel_device::DType::F32;

use super::formula::SamplingSettings;
use super::{PHILOX_STREAM_NUMBER, Params, formula, sample, workspace_bytes};
use crate::checks::rounding::{F32_ULP, approximate};
use crate::checks::{
    RandomChoices, TestArray, addr, addr_mut, checks, normal_numbers, run, runs_cuda_code, with_one_interleaving,
};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::log_prob::check::log_prob_in_chunks;
use crate::log_prob::formula::{log_prob, lse_rounded};
use reel_support::philox;

checks!(
    generated_rows_follow_the_formula,
    rows_that_all_warps_share_follow_the_formula,
    a_row_does_not_depend_on_its_batch,
    a_row_without_a_possible_token_gives_minus_one,
    a_whole_vocabulary_follows_the_formula,
    vocabularies_of_published_models_follow_the_formula;
    cuda: log_probabilities_have_the_bits_of_training
);

/// Rows to sample in one launch. They share the seed and all settings; each has its own logits and its own position
/// in the random sequence.
#[derive(Clone)]
struct Batch {
    logits: Vec<f32>,
    settings: SamplingSettings,
    seed: u64,
    positions: Vec<i32>,
}

/// The outputs of the kernel.
#[derive(Clone, Debug, PartialEq)]
struct Chosen {
    ids: Vec<i32>,
    log_prob: Vec<f32>,
    raw_log_prob: Vec<f32>,
    top_ids: Vec<i32>,
    top_log_probs: Vec<f32>,
}

/// Number of most likely tokens that each launch requests.
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
        let scratch = TestArray::output(F32, workspace_bytes(&params) / 4);
        params.workspace = scratch.addr();
        run(&sample(&params), threads);
        out
    }
}

fn settings() -> SamplingSettings {
    SamplingSettings {
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

fn one_row(logits: &[f32], settings: SamplingSettings) -> (i32, f32) {
    let out = Batch { logits: logits.to_vec(), settings, seed: 1, positions: vec![0] }.run(1);
    (out.ids[0], out.log_prob[0])
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

/// Returns logits that are multiples of a fixed step, so that two logits are either equal or far enough apart that
/// rounding cannot change their order. The penalties in `any_settings` preserve that.
fn any_logits(picks: &mut RandomChoices, vocab: usize) -> Vec<f32> {
    let steps = (1 << picks.integer_between(0, 7)) as f32;
    normal_numbers(vocab, picks.random_u64(), 3.0).iter().map(|x| (x * steps).round() / steps).collect()
}

fn any_settings(picks: &mut RandomChoices, vocab: usize) -> SamplingSettings {
    let top_p = [1.0, 0.0, 0.001, 0.95, picks.unit_float()];
    let top_k = [0, 1, 50, picks.integer_between(1, vocab + 5)];
    let min_p = [0.0, 0.0, picks.unit_float(), 1.5];
    let (frequency, presence) = picks.one_of(&[(0.0f32, 0.0f32), (0.5, 0.0), (0.0, -0.75), (-0.25, 1.5)]);
    // The history may have more tokens than a warp has threads. Its last token also gets a bias.
    let history = picks.random_list(0, 80, |p| p.integer_between(0, vocab + 4) as i32 - 2);
    let mut bias_ids = picks.random_list(0, 5, |p| p.integer_between(0, vocab + 3) as i32 - 1);
    bias_ids.extend(history.last());
    bias_ids.sort();
    bias_ids.dedup();
    SamplingSettings {
        temperature: picks.one_of(&[0.1f32, 0.7, 1.0, 1.7]) as f64,
        top_p: picks.one_of(&top_p) as f64,
        top_k: picks.one_of(&top_k),
        min_p: picks.one_of(&min_p) as f64,
        penalty: picks.one_of(&[1.0f32, 1.25, 0.75]) as f64,
        frequency_penalty: frequency as f64,
        presence_penalty: presence as f64,
        history,
        counted_from: picks.one_of(&[0, 0, 3, 30]),
        bias: bias_ids.iter().map(|_| picks.one_of(&[0.5f32, -2.25, 100.0, -100.0])).collect(),
        bias_ids,
        suppressed: picks.random_list(0, vocab.min(9), |p| p.integer_between(0, vocab) as i32),
        allowed: match picks.true_with_probability(0.3) {
            true => (0..vocab.div_ceil(32)).map(|_| picks.random_u64() as u32).collect(),
            false => vec![],
        },
    }
}

fn any_case(picks: &mut RandomChoices) -> (Vec<f32>, SamplingSettings) {
    let vocab = picks.integer_between(2, 1500);
    (any_logits(picks, vocab), any_settings(picks, vocab))
}

fn generated_rows_follow_the_formula() {
    let mut picks = RandomChoices::new(1);
    let mut held = Held::default();
    for i in 0..if runs_cuda_code() { 25 } else { 300 } {
        let (logits, s) = any_case(&mut picks);
        let position = (picks.random_u64() >> 33) as i32;
        check(&format!("case {i}, {s:?}"), &logits, &s, picks.random_u64(), position, &mut held);
    }
    assert_rounded("log-probabilities", F32, &held.got, &held.with, &held.want, DEFAULT_ROUNDING_FACTOR);
}

/// Checks rows in which all warps have tokens, and the last run (range of token ids) ends in the middle of
/// a vector.
fn rows_that_all_warps_share_follow_the_formula() {
    let mut picks = RandomChoices::new(3);
    let mut held = Held::default();
    let flat = SamplingSettings { top_p: 0.7, ..settings() };
    let many = SamplingSettings { top_k: 3000, top_p: 0.95, temperature: 1.7, ..settings() };
    let few = SamplingSettings { top_k: 40, top_p: 0.9, min_p: 0.05, temperature: 0.6, ..settings() };
    let penalised =
        SamplingSettings { penalty: 1.25, history: vec![0, 16_000, 9000, 9000, 2048, 16_300], ..few.clone() };
    let forbidden =
        SamplingSettings { allowed: (0..16_303usize.div_ceil(32)).map(|i| 1 << (i % 40)).collect(), ..few.clone() };
    for (i, s) in [flat.clone(), many, few, penalised, forbidden].into_iter().enumerate() {
        let logits = any_logits(&mut picks, 16_303 - i);
        check(&format!("settings {i}"), &logits, &s, picks.random_u64(), i as i32, &mut held);
    }
    // All weights are equal, so top-p keeps the tokens of the lowest ids; all warps have tokens of the largest logit.
    check("equal logits", &[1.5; 15_001], &flat, 5, 6, &mut held);
    // The likeliest tokens are all in the last run (range of token ids), so the largest logit of each run is a poor
    // bound for top-k.
    let ascending: Vec<f32> = (0..16_000).map(|i| (i / 4) as f32 / 1024.0).collect();
    check("ascending logits", &ascending, &SamplingSettings { top_k: 100, ..flat }, 7, 8, &mut held);
    assert_rounded("log-probabilities", F32, &held.got, &held.with, &held.want, DEFAULT_ROUNDING_FACTOR);
}

/// Log-probabilities, collected over many rows: from the kernel (`got`), from the formula with the kernel's roundings
/// (`with`), and from the exact formula (`want`).
#[derive(Default)]
struct Held {
    got: Vec<f32>,
    with: Vec<f64>,
    want: Vec<f64>,
}

impl Held {
    /// Compares `got`, the log-probability of `id` under softmax(logits · s), with the formula and records both. A
    /// relative error of a millionth is allowed.
    fn hold(&mut self, case: &str, got: f32, logits: &[f64], id: i32, s: f64) {
        let want = log_prob(logits, id, s);
        let near = got as f64 == want || (got as f64 - want).abs() <= 1e-6 * (1.0 + want.abs());
        assert!(near, "{case}: log-probability {got}, want {want}");
        let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let ln_sum = approximate(lse_rounded(logits, s) - max * s, 2.0 * F32_ULP);
        self.got.push(got);
        self.with.push((logits[id as usize] - max) * s - ln_sum);
        self.want.push(want);
    }
}

/// Checks every output of the kernel for one row, once with the given settings and once greedily.
fn check(case: &str, logits: &[f32], s: &SamplingSettings, seed: u64, position: i32, held: &mut Held) {
    let wide = wide(logits);
    let batch = Batch { logits: logits.to_vec(), settings: s.clone(), seed, positions: vec![position] };
    let out = batch.run(1);
    let ranked = formula::ranked_tokens(&wide, s);
    let u = philox::uniform_f64(seed, PHILOX_STREAM_NUMBER, position as u64);
    let around = |x: f64| [x, x - 1e-6, x + 1e-6];
    let choices = around(u).into_iter().flat_map(|u| around(s.top_p).map(|p| (u.clamp(0.0, 1.0), p)));
    let want: Vec<i32> = choices
        .flat_map(|(u, p)| around(s.min_p).map(|m| formula::sample_token(&ranked, p, m, u).map_or(-1, |i| i as i32)))
        .collect();
    let id = out.ids[0];
    assert!(want.contains(&id), "{case}: {id} drawn, want {want:?}");
    if id < 0 {
        assert!(out.log_prob[0].is_nan() && out.raw_log_prob[0].is_nan(), "{case}");
    } else {
        for (got, scale) in [(out.raw_log_prob[0], 1.0), (out.log_prob[0], 1.0 / s.temperature)] {
            held.hold(case, got, &wide, id, scale);
        }
    }
    let likeliest = formula::likeliest_tokens(&wide, TOPS);
    for i in 0..TOPS {
        let (id, value) = (out.top_ids[i], out.top_log_probs[i]);
        match likeliest.get(i) {
            None => assert!(id == -1 && value.is_nan(), "{case}: {i}"),
            Some(want) => {
                assert!(
                    id == want.0 as i32,
                    "{case}: most likely token {i} is {id} with log-probability {value}, want {want:?}"
                );
                held.hold(case, value, &wide, id, 1.0);
            }
        }
    }

    let scores = formula::adjusted_scores(&wide, s);
    let (id, value) = one_row(logits, SamplingSettings { temperature: 0.0, ..s.clone() });
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    if top == f64::NEG_INFINITY {
        assert_eq!(id, -1, "{case}");
    } else {
        assert_eq!(Some(id as usize), scores.iter().position(|&x| x == top), "{case}");
        held.hold(case, value, &wide, id, 1.0);
    }
}

fn a_row_does_not_depend_on_its_batch() {
    with_one_interleaving(|| {
        let (rows, vocab) = (5, 2003);
        let s = SamplingSettings { top_p: 0.95, history: vec![3, 8], penalty: 1.2, ..settings() };
        let batch = Batch {
            logits: normal_numbers(rows * vocab, 9, 2.0),
            settings: s,
            seed: 77,
            positions: vec![4, 0, 9, 4, 1],
        };
        let all = batch.run(1);
        assert_eq!(batch.run(4), all);
        for r in 0..rows {
            let logits = batch.logits[r * vocab..][..vocab].to_vec();
            let alone = Batch { logits, positions: vec![batch.positions[r]], ..batch.clone() }.run(2);
            assert_eq!((alone.ids[0], alone.log_prob[0]), (all.ids[r], all.log_prob[r]));
            assert_eq!(alone.top_ids, all.top_ids[r * TOPS..][..TOPS]);
        }
    });
}

fn a_row_without_a_possible_token_gives_minus_one() {
    for temperature in [0.0, 1.0] {
        let s = SamplingSettings { temperature, ..settings() };
        for poison in [f32::NAN, -f32::NAN] {
            let mut row = normal_numbers(100, 1, 1.0);
            row[63] = poison;
            let (id, log_prob) = one_row(&row, s.clone());
            assert!(id == -1 && log_prob.is_nan());
        }
        assert_eq!(one_row(&[f32::NEG_INFINITY; 20], s.clone()).0, -1);
        let all = SamplingSettings { suppressed: (0..3).collect(), ..s.clone() };
        assert_eq!(one_row(&[1.0, 2.0, 3.0], all).0, -1);
        // Tests a NaN in the last run (range of token ids) of a row in which all warps have tokens, and a row
        // without any allowed token.
        let mut row = normal_numbers(15_999, 2, 1.0);
        let none = SamplingSettings { allowed: vec![0; 500], ..s.clone() };
        let batch = Batch { logits: row.clone(), settings: none, seed: 1, positions: vec![0] }.run(1);
        assert_eq!(batch.ids, [-1]);
        assert!(batch.log_prob[0].is_nan() && batch.raw_log_prob[0].is_nan());
        let likeliest: Vec<i32> = formula::likeliest_tokens(&wide(&row), TOPS).iter().map(|t| t.0 as i32).collect();
        assert_eq!(batch.top_ids, likeliest);
        row[15_998] = f32::NAN;
        let batch = Batch { logits: row, settings: s, seed: 1, positions: vec![0] }.run(1);
        assert_eq!((batch.ids, batch.top_ids), (vec![-1], vec![-1; TOPS]));
        assert!(batch.log_prob[0].is_nan() && batch.top_log_probs.iter().all(|x| x.is_nan()));
    }
}

fn a_whole_vocabulary_follows_the_formula() {
    // The simulator is too slow for the whole vocabulary.
    let vocab = if runs_cuda_code() { 20_011 } else { 152_064 };
    let logits: Vec<f32> = normal_numbers(vocab, 8, 2.5).iter().map(|x| (x * 16.0).round() / 16.0).collect();
    let s = SamplingSettings { top_p: 0.9, top_k: 4000, history: vec![5, 5, 20_000], penalty: 1.25, ..settings() };
    check("a whole vocabulary", &logits, &s, 3, 4, &mut Held::default());
}

fn vocabularies_of_published_models_follow_the_formula() {
    let s = SamplingSettings { top_p: 0.9, top_k: 50, history: vec![5, 5, 151_000], penalty: 1.25, ..settings() };
    with_one_interleaving(|| {
        for (i, vocab) in [152_064, 151_936].into_iter().enumerate() {
            let logits: Vec<f32> =
                normal_numbers(vocab, i as u64, 2.5).iter().map(|x| (x * 16.0).round() / 16.0).collect();
            check(&format!("a vocabulary of {vocab}"), &logits, &s, 3, 4, &mut Held::default());
        }
    });
}

#[cfg(test)]
mod tests;

/// The log-probability of a sampled token is bit-identical to the one that the training pass computes from the same
/// logits, however that pass divides the vocabulary.
fn log_probabilities_have_the_bits_of_training() {
    with_one_interleaving(|| {
        for (vocab, spread, temperature) in [(5, 1.0, 1.0), (300, 9.0, 0.7), (4099, 3.0, 1.3), (2500, 40.0, 0.0)] {
            let rows = 3;
            let logits = normal_numbers(rows * vocab, 7, spread);
            let settings = SamplingSettings { temperature, ..settings() };
            let sampled = Batch { logits: logits.clone(), settings, seed: 3, positions: vec![0, 1, 2] }.run(1);
            let s = if temperature == 0.0 { 1.0 } else { 1.0 / temperature as f32 };
            for (got, s) in [(&sampled.log_prob, s), (&sampled.raw_log_prob, 1.0)] {
                for (columns, with_entropy) in [(usize::MAX, false), (1024, true)] {
                    let [trained, ..] = log_prob_in_chunks(&logits, &sampled.ids, s, columns, with_entropy, 1);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(got), bits(&trained), "{vocab} tokens, {s}, chunks of {columns}: {got:?}");
                }
            }
        }
    });
}
