//! The definition of the losses and of their gradient, in f64.

/// The options of the loss, the same for all tokens.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// Lower and upper bound of the importance ratio: `1 − epsilon_low` and `1 + epsilon_high`.
    pub range: (f64, f64),
    /// Weight of the KL term.
    pub beta: f64,
    /// Bound of |reference − log_prob|, the log ratio to the reference.
    pub kl_limit: f64,
    /// True for one importance ratio per sequence (GSPO), false for one per token.
    pub sequence_level: bool,
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

/// Returns the terms of the tokens of one completion.
pub fn token_terms(
    options: &LossOptions,
    log_prob: &[f64],
    old: &[f64],
    reference: &[f64],
    advantage: f64,
) -> Vec<TokenTerms> {
    let d: Vec<f64> = log_prob.iter().zip(old).map(|(l, o)| l - o).collect();
    let mean = d.iter().sum::<f64>() / d.len() as f64;
    let of_token = |(t, d): (usize, &f64)| {
        let ratio = if options.sequence_level { mean } else { *d }.exp();
        let (free, held) = (ratio * advantage, ratio.clamp(options.range.0, options.range.1) * advantage);
        let x = (reference[t] - log_prob[t]).clamp(-options.kl_limit, options.kl_limit);
        let outside = ratio < options.range.0 && advantage < 0.0 || ratio > options.range.1 && advantage > 0.0;
        TokenTerms { policy: -free.min(held), distance: x.exp() - x - 1.0, clipped: f64::from(u8::from(outside)) }
    };
    d.iter().enumerate().map(of_token).collect()
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
    old: &[f64],
    reference: &[f64],
    t: usize,
) -> [bool; 4] {
    let d = |t: usize| log_prob[t] - old[t];
    let mean = || (0..log_prob.len()).map(d).sum::<f64>() / log_prob.len() as f64;
    let ratio = if options.sequence_level { mean() } else { d(t) }.exp();
    let x = reference[t] - log_prob[t];
    [ratio < options.range.0, ratio > options.range.1, x < -options.kl_limit, x > options.kl_limit]
}

/// Returns the gradient of the loss in [`completion_sums`] with respect to `log_prob`, by the chain rule; `old` and
/// `reference` are constants.
pub fn gradient(options: &LossOptions, log_prob: &[f64], old: &[f64], reference: &[f64], advantage: f64) -> Vec<f64> {
    let d: Vec<f64> = log_prob.iter().zip(old).map(|(l, o)| l - o).collect();
    let mean = d.iter().sum::<f64>() / d.len() as f64;
    let one = |t: usize| {
        let ratio = if options.sequence_level { mean } else { d[t] }.exp();
        let outside = ratio < options.range.0 && advantage < 0.0 || ratio > options.range.1 && advantage > 0.0;
        let x = reference[t] - log_prob[t];
        let pull = if x.abs() < options.kl_limit { options.beta * x.exp_m1() } else { 0.0 };
        if outside { -pull } else { -ratio * advantage - pull }
    };
    (0..d.len()).map(one).collect()
}
