use reel_device::Addr;
use reel_device::DType::F32;

use super::{
    CORRECTION_MASKS, CORRECTION_PER_SEQUENCE, Params, RatioLevel, STATS_PER_COMPLETION, formula, loss,
    test_batches_length_learned_tokens,
};
use crate::checks::{addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded};

checks!(
    loss_and_gradient_equal_the_formula,
    without_old_the_ratio_is_one,
    factors_of_one_change_no_bit,
    clipping_cuts_the_gradient,
    tokens_that_are_not_learned_do_not_count
);

const LEVELS: [RatioLevel; 3] = [RatioLevel::Token, RatioLevel::Sequence, RatioLevel::SequenceToken];

/// The inputs of the loss for a few completions.
struct Batch {
    ends: Vec<i32>,
    counted: Vec<i32>,
    log_prob: Vec<f32>,
    old: Vec<f32>,
    sampled: Vec<f32>,
    reference: Vec<f32>,
    entropy: Vec<f32>,
    advantage: Vec<f32>,
    weight: Vec<f32>,
}

impl Batch {
    fn new(lengths: &[(usize, usize)], spread: f32) -> Batch {
        let mut ends = vec![0];
        for (len, _) in lengths {
            ends.push(ends[ends.len() - 1] + *len as i32);
        }
        let (tokens, n) = (ends[lengths.len()] as usize, lengths.len());
        let log_prob: Vec<f32> = normal_numbers(tokens, 1, 1.0).iter().map(|x| -x.abs()).collect();
        let near = |seed| normal_numbers(tokens, seed, spread).iter().zip(&log_prob).map(|(d, l)| l + d).collect();
        let [old, reference, mut sampled]: [Vec<f32>; 3] = [2, 3, 5].map(near);
        sampled.iter_mut().skip(4).step_by(7).for_each(|sampled| *sampled = f32::NAN);
        let entropy = normal_numbers(tokens, 6, 1.0).iter().map(|x| x.abs()).collect();
        let advantage = normal_numbers(n, 4, 1.0);
        let weight = (0..n).map(|i| 0.1 + 0.01 * i as f32).collect();
        Batch {
            ends,
            counted: lengths.iter().map(|l| l.1 as i32).collect(),
            log_prob,
            old,
            sampled,
            reference,
            entropy,
            advantage,
            weight,
        }
    }

    fn params(&self) -> Params {
        Params {
            log_prob: addr(&self.log_prob),
            old: addr(&self.old),
            sampled: Addr::NULL,
            reference: addr(&self.reference),
            entropy: Addr::NULL,
            cu_seqlens: addr(&self.ends),
            counted: addr(&self.counted),
            advantage: addr(&self.advantage),
            weight: addr(&self.weight),
            d_log_prob: Addr::NULL,
            d_entropy: Addr::NULL,
            stats: Addr::NULL,
            completions: self.counted.len() as u32,
            level: RatioLevel::Token as u32,
            cispo: 0,
            correction: 0,
            epsilon_low: 0.2,
            epsilon_high: 0.28,
            beta: 0.04,
            kl_limit: 10.0,
            min_entropy: f32::NEG_INFINITY,
            entropy_weight: 0.0,
            correction_min: 0.0,
            correction_max: 0.0,
        }
    }

    /// Parameters with a correction whose bounds some tokens exceed.
    fn corrected(&self, correction: u32) -> Params {
        let bounds = if correction & CORRECTION_PER_SEQUENCE == 0 { (0.8, 1.2) } else { (0.1, 10.0) };
        let (correction_min, correction_max) = bounds;
        Params { sampled: addr(&self.sampled), correction, correction_min, correction_max, ..self.params() }
    }

    /// The parameters of each variant of the loss.
    fn variants(&self) -> Vec<Params> {
        let plain = self.params();
        let entropy = Params { entropy: addr(&self.entropy), min_entropy: 0.6, entropy_weight: 0.02, ..plain };
        let mut all = vec![
            plain,
            Params { kl_limit: 0.25, ..plain },
            Params { level: RatioLevel::Sequence as u32, kl_limit: f32::INFINITY, ..plain },
            Params { cispo: 1, epsilon_high: 1.2, ..plain },
            entropy,
            Params { min_entropy: f32::NEG_INFINITY, level: RatioLevel::Sequence as u32, ..entropy },
            Params { min_entropy: 0.1, cispo: 1, epsilon_high: 0.9, level: RatioLevel::Sequence as u32, ..entropy },
        ];
        for level in LEVELS.map(|level| level as u32) {
            all.push(Params { level, ..entropy });
            for correction in 0..=CORRECTION_PER_SEQUENCE + CORRECTION_MASKS {
                all.push(Params { level, ..self.corrected(correction) });
            }
            let Params { entropy, min_entropy, entropy_weight, .. } = entropy;
            all.push(Params { level, entropy, min_entropy, entropy_weight, ..self.corrected(CORRECTION_MASKS) });
        }
        all
    }

    /// Launches the loss and returns the gradients of the log-probabilities and of the entropies, and the stats. The
    /// kernel writes the gradient of the entropies if the parameters have entropies.
    fn run(&self, params: &Params) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let [mut gradient, mut of_entropy] = [(); 2].map(|()| vec![f32::NAN; self.log_prob.len()]);
        let mut stats = vec![f32::NAN; STATS_PER_COMPLETION * self.counted.len()];
        let d_entropy = if params.entropy.is_null() { Addr::NULL } else { addr_mut(&mut of_entropy) };
        let (d_log_prob, stats_at) = (addr_mut(&mut gradient), addr_mut(&mut stats));
        run(&loss(self.log_prob.len(), &Params { d_log_prob, d_entropy, stats: stats_at, ..*params }), 3);
        (gradient, of_entropy, stats)
    }

    /// The constants of completion `i`, restricted to its learned tokens.
    fn constants(&self, i: usize) -> formula::Constants {
        let [old, sampled, reference, entropy] =
            [&self.old, &self.sampled, &self.reference, &self.entropy].map(|x| exact(self.of(i, x)));
        formula::Constants { old, sampled, reference, entropy, advantage: self.advantage[i] as f64 }
    }

    /// Returns the elements of `x` that belong to the learned tokens of completion `i`. `x` has one element for each
    /// token of all completions.
    fn of<'a>(&self, i: usize, x: &'a [f32]) -> &'a [f32] {
        &x[self.ends[i] as usize..][..self.counted[i] as usize]
    }
}

fn exact(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

fn options(p: &Params) -> formula::LossOptions {
    let [low, high] = [1.0 - p.epsilon_low as f64, 1.0 + p.epsilon_high as f64];
    let correction = formula::Correction {
        per_sequence: p.correction & CORRECTION_PER_SEQUENCE != 0,
        masks: p.correction & CORRECTION_MASKS != 0,
        range: (p.correction_min as f64, p.correction_max as f64),
    };
    formula::LossOptions {
        range: if p.cispo != 0 { (f64::NEG_INFINITY, p.epsilon_high as f64) } else { (low, high) },
        beta: p.beta as f64,
        kl_limit: p.kl_limit as f64,
        level: LEVELS[p.level as usize],
        cispo: p.cispo != 0,
        correction: (!p.sampled.is_null()).then_some(correction),
        min_entropy: if p.entropy.is_null() { f64::NEG_INFINITY } else { p.min_entropy as f64 },
    }
}

fn loss_and_gradient_equal_the_formula() {
    for lengths in test_batches_length_learned_tokens() {
        let batch = Batch::new(&lengths, 0.3);
        for params in batch.variants() {
            let (gradient, of_entropy, stats) = batch.run(&params);
            let o = options(&params);
            for i in 0..lengths.len() {
                let (n, weight, a) = (batch.counted[i] as usize, batch.weight[i] as f64, batch.advantage[i] as f64);
                let (lp, c) = (exact(batch.of(i, &batch.log_prob)), batch.constants(i));
                let of_tokens = formula::token_terms(&o, &lp, &lp, &c);
                let [value, distance, clipped] = formula::completion_sums(&o, &of_tokens);
                let selected = formula::are_selected(&o, &c);
                let entropies: f64 = c.entropy.iter().zip(&selected).filter(|(_, of)| **of).map(|(e, _)| e).sum();
                let want = [weight * value - params.entropy_weight as f64 * entropies, distance, clipped, n as f64];
                for (k, want) in want.into_iter().enumerate() {
                    let name = format!(
                        "column {k} of stats for completion {i} of {lengths:?} (length, counted tokens); {params:?}"
                    );
                    let of_column = &stats[STATS_PER_COMPLETION * i + k..][..1];
                    assert_rounded(&name, F32, of_column, &[want], &[want], DEFAULT_ROUNDING_FACTOR);
                }
                if !params.entropy.is_null() {
                    let want = selected.iter().map(|&of| if of { -params.entropy_weight } else { 0.0 });
                    assert!(want.eq(batch.of(i, &of_entropy).iter().copied()), "{i}: {of_entropy:?}");
                }
                let slopes = formula::gradient(&o, &lp, &c);
                let want: Vec<f64> = slopes.iter().map(|s| weight * s).collect();
                let name = format!(
                    "gradient of completion {i} of {lengths:?} (length, counted tokens) by the formula; {params:?}"
                );
                assert_rounded(&name, F32, batch.of(i, &gradient), &want, &want, DEFAULT_ROUNDING_FACTOR);
                // Checks the chain rule of the formula by central differences.
                let (h, mut moved) = (1e-6, lp.clone());
                let mut want = vec![];
                // With a sequence-level ratio all tokens of a completion share one ratio, so the check varies only a
                // few tokens.
                for t in 0..n {
                    if params.level == RatioLevel::Sequence as u32 && t % 50 != 0 {
                        want.push(gradient[batch.ends[i] as usize + t] as f64);
                        continue;
                    }
                    let mut at = |x: f64| {
                        moved[t] = x;
                        let of_tokens = formula::token_terms(&o, &moved, &lp, &c);
                        (of_tokens, formula::clip_and_kl_limit_flags(&o, &moved, &lp, &c, t))
                    };
                    let (above, below) = (at(lp[t] + h), at(lp[t] - h));
                    // If the loss is not differentiable between lp - h and lp + h, the difference does not
                    // approximate a derivative and is not used. Differences are summed term by term: a token's ratio
                    // may be e^20, and a sum with so large a term would lose the other terms.
                    let difference = |of: fn(&formula::TokenTerms) -> f64| -> f64 {
                        above.0.iter().zip(&below.0).map(|(above, below)| of(above) - of(below)).sum()
                    };
                    let difference = difference(|t| t.policy) + o.beta * difference(|t| t.distance);
                    want.push(match above.1 == below.1 {
                        true => weight * difference / (2.0 * h),
                        false => gradient[batch.ends[i] as usize + t] as f64,
                    });
                    moved[t] = lp[t];
                }
                // The bound covers the kernel's roundings of the policy term and of the reference term (as large as an
                // exponential), and the f64 error of the differences.
                let terms = 4.0 * weight * (a.abs() + o.beta);
                let bound = |t: usize| 16.0 * F32_HALF_ULP * (terms + want[t].abs()) + 1e-9 * weight;
                assert_close(
                    &format!(
                        "gradient of completion {i} by finite differences; batch as (length, counted tokens): {lengths:?}"
                    ),
                    batch.of(i, &gradient),
                    &want,
                    1e-5,
                    bound,
                );
            }
        }
    }
}

fn without_old_the_ratio_is_one() {
    let batch = Batch::new(&[(40, 40), (9, 3)], 0.3);
    let params = Params { old: Addr::NULL, reference: Addr::NULL, ..batch.params() };
    // The log-probabilities of this step take the place of the old ones in the correction.
    let corrected = Params { old: Addr::NULL, ..batch.corrected(0) };
    let equal_old = Params { old: addr(&batch.log_prob), ..corrected };
    assert_eq!(batch.run(&corrected).0, batch.run(&equal_old).0);
    for level in LEVELS.map(|level| level as u32) {
        let (gradient, _, stats) = batch.run(&Params { level, ..params });
        for i in 0..2 {
            let slope = -batch.weight[i] * batch.advantage[i];
            assert!(batch.of(i, &gradient).iter().all(|g| *g == slope));
            let want = [slope * batch.counted[i] as f32, 0.0, 0.0, batch.counted[i] as f32];
            assert!(
                stats[STATS_PER_COMPLETION * i..][..STATS_PER_COMPLETION]
                    .iter()
                    .zip(want)
                    .all(|(s, w)| (s - w).abs() <= 1e-6),
                "{stats:?} {want:?}"
            );
        }
    }
}

fn factors_of_one_change_no_bit() {
    let mut batch = Batch::new(&[(300, 290), (40, 40), (9, 3)], 0.3);
    batch.sampled = batch.old.clone();
    for (level, cispo) in [(0, 0), (1, 0), (2, 0), (0, 1)] {
        let plain = batch.run(&Params { level, cispo, ..batch.params() });
        for correction in 0..4 {
            let entropy = addr(&batch.entropy);
            let variant = batch.run(&Params { level, cispo, entropy, ..batch.corrected(correction) });
            assert_eq!((&variant.0, &variant.2), (&plain.0, &plain.2), "{level} {cispo} {correction}");
            assert!(variant.1.iter().all(|of_entropy| *of_entropy == 0.0));
        }
    }
}

fn clipping_cuts_the_gradient() {
    let mut batch = Batch::new(&[(4, 4), (4, 4)], 0.0);
    batch.advantage = vec![1.0, -1.0];
    // Differences between log-probability and old log-probability. In both completions the ratios lie below, inside
    // and above the clipping range.
    for (t, d) in [-0.5f32, -0.1, 0.1, 0.5, -0.5, -0.1, 0.1, 0.5].into_iter().enumerate() {
        batch.log_prob[t] = -1.0 + d;
        batch.old[t] = -1.0;
    }
    let (gradient, _, stats) = batch.run(&Params { reference: Addr::NULL, ..batch.params() });
    let flat: Vec<bool> = gradient.iter().map(|g| *g == 0.0).collect();
    assert_eq!(flat, [false, false, false, true, true, false, false, false]);
    assert_eq!((stats[2], stats[STATS_PER_COMPLETION + 2]), (1.0, 1.0));
}

fn tokens_that_are_not_learned_do_not_count() {
    let batch = Batch::new(&[(300, 7), (5, 0)], 0.2);
    let entropy = Params { entropy: addr(&batch.entropy), entropy_weight: 0.5, ..batch.params() };
    let (gradient, of_entropy, stats) = batch.run(&entropy);
    for gradient in [gradient, of_entropy] {
        assert!(gradient[..7].iter().all(|g| *g != 0.0) && gradient[7..].iter().all(|g| *g == 0.0));
    }
    assert_eq!(stats[STATS_PER_COMPLETION..], [0.0; STATS_PER_COMPLETION]);
}
