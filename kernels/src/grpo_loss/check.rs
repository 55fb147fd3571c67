use reel_device::Addr;
use reel_device::DType::F32;

use super::{Params, STATS_PER_COMPLETION, formula, loss, test_batches_length_learned_tokens};
use crate::checks::{addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded};

checks!(
    loss_and_gradient_equal_the_formula,
    without_old_the_ratio_is_one,
    clipping_cuts_the_gradient,
    tokens_that_are_not_learned_do_not_count
);

/// The inputs of the loss for a few completions.
struct Batch {
    ends: Vec<i32>,
    counted: Vec<i32>,
    log_prob: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
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
        let (old, reference) = (near(2), near(3));
        let advantage = normal_numbers(n, 4, 1.0);
        let weight = (0..n).map(|i| 0.1 + 0.01 * i as f32).collect();
        Batch {
            ends,
            counted: lengths.iter().map(|l| l.1 as i32).collect(),
            log_prob,
            old,
            reference,
            advantage,
            weight,
        }
    }

    fn params(&self) -> Params {
        Params {
            log_prob: addr(&self.log_prob),
            old: addr(&self.old),
            reference: addr(&self.reference),
            cu_seqlens: addr(&self.ends),
            counted: addr(&self.counted),
            advantage: addr(&self.advantage),
            weight: addr(&self.weight),
            d_log_prob: Addr::NULL,
            stats: Addr::NULL,
            completions: self.counted.len() as u32,
            sequence_level: 0,
            epsilon_low: 0.2,
            epsilon_high: 0.28,
            beta: 0.04,
            kl_limit: 10.0,
        }
    }

    /// Launches the loss and returns the gradient and the stats.
    fn run(&self, params: &Params) -> (Vec<f32>, Vec<f32>) {
        let (mut gradient, mut stats) =
            (vec![f32::NAN; self.log_prob.len()], vec![f32::NAN; STATS_PER_COMPLETION * self.counted.len()]);
        let params = Params { d_log_prob: addr_mut(&mut gradient), stats: addr_mut(&mut stats), ..*params };
        run(&loss(self.log_prob.len(), &params), 3);
        (gradient, stats)
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
    formula::LossOptions {
        range: (1.0 - p.epsilon_low as f64, 1.0 + p.epsilon_high as f64),
        beta: p.beta as f64,
        kl_limit: p.kl_limit as f64,
        sequence_level: p.sequence_level != 0,
    }
}

fn loss_and_gradient_equal_the_formula() {
    for lengths in test_batches_length_learned_tokens() {
        let batch = Batch::new(&lengths, 0.3);
        for (sequence_level, kl_limit) in [(0, 10.0), (1, 10.0), (0, 0.25), (1, f32::INFINITY)] {
            let params = Params { sequence_level, kl_limit, ..batch.params() };
            let (gradient, stats) = batch.run(&params);
            let o = options(&params);
            for i in 0..lengths.len() {
                let (n, weight, a) = (batch.counted[i] as usize, batch.weight[i] as f64, batch.advantage[i] as f64);
                let [lp, old, reference] =
                    [&batch.log_prob, &batch.old, &batch.reference].map(|x| exact(batch.of(i, x)));
                let of_tokens = formula::token_terms(&o, &lp, &old, &reference, a);
                let [value, distance, clipped] = formula::completion_sums(&o, &of_tokens);
                let want = [weight * value, distance, clipped, n as f64];
                for (k, want) in want.iter().enumerate() {
                    let name = format!(
                        "column {k} of stats for completion {i}; batch as (length, counted tokens): {lengths:?}"
                    );
                    assert_rounded(
                        &name,
                        F32,
                        &stats[STATS_PER_COMPLETION * i + k..][..1],
                        &[*want],
                        &[*want],
                        DEFAULT_ROUNDING_FACTOR,
                    );
                }
                let slopes = formula::gradient(&o, &lp, &old, &reference, a);
                let want: Vec<f64> = slopes.iter().map(|s| weight * s).collect();
                let name = format!(
                    "gradient of completion {i} by the formula; batch as (length, counted tokens): {lengths:?}"
                );
                assert_rounded(&name, F32, batch.of(i, &gradient), &want, &want, DEFAULT_ROUNDING_FACTOR);
                // Checks the chain rule of the formula by central differences.
                let (h, mut moved) = (1e-6, lp.clone());
                let mut want = vec![];
                // With a sequence-level ratio all tokens of a completion share one ratio, so the check varies only a
                // few tokens.
                for t in 0..n {
                    if sequence_level == 1 && t % 50 != 0 {
                        want.push(gradient[batch.ends[i] as usize + t] as f64);
                        continue;
                    }
                    let mut at = |x: f64| {
                        moved[t] = x;
                        let of_tokens = formula::token_terms(&o, &moved, &old, &reference, a);
                        (of_tokens, formula::clip_and_kl_limit_flags(&o, &moved, &old, &reference, t))
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
    for sequence_level in [0, 1] {
        let (gradient, stats) = batch.run(&Params { sequence_level, ..params });
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

fn clipping_cuts_the_gradient() {
    let mut batch = Batch::new(&[(4, 4), (4, 4)], 0.0);
    batch.advantage = vec![1.0, -1.0];
    // Differences between log-probability and old log-probability. In both completions the ratios lie below, inside
    // and above the clipping range.
    for (t, d) in [-0.5f32, -0.1, 0.1, 0.5, -0.5, -0.1, 0.1, 0.5].into_iter().enumerate() {
        batch.log_prob[t] = -1.0 + d;
        batch.old[t] = -1.0;
    }
    let (gradient, stats) = batch.run(&Params { reference: Addr::NULL, ..batch.params() });
    let flat: Vec<bool> = gradient.iter().map(|g| *g == 0.0).collect();
    assert_eq!(flat, [false, false, false, true, true, false, false, false]);
    assert_eq!((stats[2], stats[STATS_PER_COMPLETION + 2]), (1.0, 1.0));
}

fn tokens_that_are_not_learned_do_not_count() {
    let batch = Batch::new(&[(300, 7), (5, 0)], 0.2);
    let (gradient, stats) = batch.run(&batch.params());
    assert!(gradient[..7].iter().all(|g| *g != 0.0) && gradient[7..].iter().all(|g| *g == 0.0));
    assert_eq!(stats[STATS_PER_COMPLETION..], [0.0; STATS_PER_COMPLETION]);
}
