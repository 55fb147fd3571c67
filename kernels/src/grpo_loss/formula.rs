//! The definition of the losses and of their gradients, in f64.

use super::RatioLevel;

/// The correction of the difference between sampling and training.
#[derive(Clone, Copy, Debug)]
pub struct Correction {
    /// True for one correction per completion, false for one per token.
    pub per_sequence: bool,
    /// True: 0 beyond the bounds; false: the nearer bound.
    pub masks: bool,
    /// Lower and upper bound.
    pub range: (f64, f64),
}

/// The options of the loss, the same for all tokens.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// Lower and upper bound of the importance ratio: `1 − epsilon_low` and `1 + epsilon_high`; with CISPO the upper
    /// bound is `epsilon_high`.
    pub range: (f64, f64),
    /// Weight of the KL term.
    pub beta: f64,
    /// Bound of |reference − log_prob|, the log ratio to the reference.
    pub kl_limit: f64,
    /// For which tokens importance ratios are computed.
    pub level: RatioLevel,
    /// True for the loss of CISPO.
    pub cispo: bool,
    /// `None`: no token is corrected.
    pub correction: Option<Correction>,
    /// Least entropy of the tokens in the policy term and in the entropy term.
    pub min_entropy: f64,
}

/// What is constant in the loss of one completion.
#[derive(Clone, Debug)]
pub struct Constants {
    /// Log-probabilities at the first step on the completion.
    pub old: Vec<f64>,
    /// Log-probabilities at which the tokens were sampled; NaN if unknown.
    pub sampled: Vec<f64>,
    /// Log-probabilities under the reference weights.
    pub reference: Vec<f64>,
    /// Entropies of the distributions of the tokens.
    pub entropy: Vec<f64>,
    /// The advantage of the completion.
    pub advantage: f64,
}

/// What one token adds to the sums of its completion.
#[derive(Clone, Copy, Debug)]
pub struct TokenTerms {
    /// The loss without the KL term.
    pub policy: f64,
    /// The KL term `e^x − x − 1` with `x` the limited log ratio to the reference.
    pub distance: f64,
    /// 1 if the ratio is clipped, otherwise 0.
    pub clipped: f64,
}

/// Whether each token is in the policy term and in the entropy term.
pub fn are_selected(options: &LossOptions, c: &Constants) -> Vec<bool> {
    c.entropy.iter().map(|&entropy| entropy >= options.min_entropy).collect()
}

/// Returns the factor of the policy term of each token: 0 if the token is not selected, else its correction.
fn factors(options: &LossOptions, c: &Constants) -> Vec<f64> {
    let drift: Vec<f64> = c.old.iter().zip(&c.sampled).map(|(o, s)| if s.is_nan() { 0.0 } else { o - s }).collect();
    let corrected = |t: usize| {
        let Some(Correction { per_sequence, masks, range: (min, max) }) = options.correction else { return 1.0 };
        let ratio = if per_sequence { drift.iter().sum() } else { drift[t] }.exp();
        let is_inside = (min..=max).contains(&ratio);
        if masks && !is_inside { 0.0 } else { ratio.clamp(min, max) }
    };
    are_selected(options, c).iter().enumerate().map(|(t, &of)| if of { corrected(t) } else { 0.0 }).collect()
}

/// Returns the logarithms of the importance ratios of a completion's tokens. `constant` are the log-probabilities for
/// which no derivative is taken.
fn log_ratios(options: &LossOptions, log_prob: &[f64], constant: &[f64], old: &[f64]) -> Vec<f64> {
    let mean = |log_prob: &[f64]| log_prob.iter().zip(old).map(|(l, o)| l - o).sum::<f64>() / old.len() as f64;
    let (mean, constant_mean) = (mean(log_prob), mean(constant));
    let of_token = |t: usize| match options.level {
        RatioLevel::Token => log_prob[t] - old[t],
        RatioLevel::Sequence => mean,
        RatioLevel::SequenceToken => constant_mean + (log_prob[t] - constant[t]),
    };
    (0..old.len()).map(of_token).collect()
}

/// Returns the terms of the tokens of one completion. `constant` are the log-probabilities where the loss takes them as
/// constants: equal to `log_prob`, except to take derivatives.
pub fn token_terms(options: &LossOptions, log_prob: &[f64], constant: &[f64], c: &Constants) -> Vec<TokenTerms> {
    let (a, (low, high)) = (c.advantage, options.range);
    let detached = log_ratios(options, constant, constant, &c.old);
    let (ratios, factors) = (log_ratios(options, log_prob, constant, &c.old), factors(options, c));
    let of_token = |t: usize| {
        let ratio = ratios[t].exp();
        let (policy, outside) = if options.cispo {
            let weight = detached[t].exp();
            (-weight.min(high) * a * log_prob[t], weight > high && a > 0.0)
        } else {
            let held = ratio.clamp(low, high);
            (-(ratio * a).min(held * a), ratio < low && a < 0.0 || ratio > high && a > 0.0)
        };
        let x = (c.reference[t] - log_prob[t]).clamp(-options.kl_limit, options.kl_limit);
        let clipped = f64::from(u8::from(outside));
        TokenTerms { policy: factors[t] * policy, distance: x.exp() - x - 1.0, clipped }
    };
    (0..log_prob.len()).map(of_token).collect()
}

/// Returns three sums over the tokens of one completion: the loss, the KL term, and the number of clipped tokens.
pub fn completion_sums(options: &LossOptions, terms: &[TokenTerms]) -> [f64; 3] {
    let add = |sums: [f64; 3], t: &TokenTerms| {
        [sums[0] + t.policy + options.beta * t.distance, sums[1] + t.distance, sums[2] + t.clipped]
    };
    terms.iter().fold([0.0; 3], add)
}

/// Returns which smooth piece of the loss token `t` is on: whether its ratio is below or above the range, and whether
/// its log ratio to the reference is below or above the limits. The loss has no derivative where two pieces meet.
pub fn clip_and_kl_limit_flags(
    options: &LossOptions,
    log_prob: &[f64],
    constant: &[f64],
    c: &Constants,
    t: usize,
) -> [bool; 4] {
    let ratio = log_ratios(options, log_prob, constant, &c.old)[t].exp();
    let x = c.reference[t] - log_prob[t];
    [ratio < options.range.0, ratio > options.range.1, x < -options.kl_limit, x > options.kl_limit]
}

/// Returns the gradient of the loss in [`completion_sums`] with respect to `log_prob`, by the chain rule.
pub fn gradient(options: &LossOptions, log_prob: &[f64], c: &Constants) -> Vec<f64> {
    let (a, (low, high)) = (c.advantage, options.range);
    let (log_ratios, factors) = (log_ratios(options, log_prob, log_prob, &c.old), factors(options, c));
    let mean_factor = factors.iter().sum::<f64>() / factors.len() as f64;
    let one = |t: usize| {
        let ratio = log_ratios[t].exp();
        let x = c.reference[t] - log_prob[t];
        let pull = if x.abs() < options.kl_limit { options.beta * x.exp_m1() } else { 0.0 };
        if options.cispo {
            return -factors[t] * ratio.min(high) * a - pull;
        }
        let factor = if options.level == RatioLevel::Sequence { mean_factor } else { factors[t] };
        let outside = ratio < low && a < 0.0 || ratio > high && a > 0.0;
        if outside { -pull } else { -factor * ratio * a - pull }
    };
    (0..log_prob.len()).map(one).collect()
}
