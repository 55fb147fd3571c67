//! The policy loss of GRPO and its variants (DAPO, Dr. GRPO, GSPO, CISPO), computed from log-probabilities and
//! entropies.

use reel_device::{Addr, DType, in_op};
pub use reel_kernels::grpo_loss::RatioLevel;
use reel_kernels::{elementwise, grpo_loss as kernel, reduce};

use super::attention::CuSeqlens;
use super::{size, want_dtype, want_shape};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// The correction of the difference between sampling and training: the policy term of a token is multiplied by the
/// ratio of its probability in training to that in sampling.
#[derive(Clone, Debug)]
pub struct SamplingCorrection {
    /// f32 `[L]`: log-probabilities at which the tokens were sampled.
    pub sampled_log_probs: Tensor,
    /// Whether all tokens of a completion have the product of their ratios.
    pub per_sequence: bool,
    /// Whether a ratio beyond the bounds becomes 0, not the nearer bound.
    pub masks: bool,
    /// Lower bound of the ratio.
    pub min: f32,
    /// Upper bound of the ratio.
    pub max: f32,
}

/// The entropies of the distributions of the tokens, and their part in the loss.
#[derive(Clone, Debug)]
pub struct EntropyTerm {
    /// f32 `[L]`: entropies in nats. The loss has a gradient with respect to them if `weight` is not 0.
    pub entropies: Tensor,
    /// The policy term and the sum of the entropies have only tokens of at least this entropy.
    pub min: f32,
    /// The weight of the sum of the entropies, which is subtracted from the loss.
    pub weight: f32,
}

/// The inputs of [`grpo_loss`] other than the policy log-probabilities, for `n` completions with `L` tokens in total.
/// [`kernel`] has the formula.
#[derive(Clone, Debug)]
pub struct GrpoInputs {
    /// Where the tokens of each completion begin among all L tokens.
    pub completions: CuSeqlens,
    /// i32 `[n]`: the number of leading tokens of each completion that count in the loss.
    pub completion_lens: Tensor,
    /// f32 `[n]`: the advantage of each completion.
    pub advantages: Tensor,
    /// f32 `[n]`: the factor by which the loss multiplies the sum over each completion's tokens.
    pub weights: Tensor,
    /// f32 `[L]`: log-probabilities of the training pass that first used these completions; `None` in that pass, whose
    /// importance ratios are 1.
    pub old_log_probs: Option<Tensor>,
    /// f32 `[L]`: log-probabilities under the reference model; `None`: no KL term.
    pub ref_log_probs: Option<Tensor>,
    /// The correction of the difference between sampling and training, if any.
    pub correction: Option<SamplingCorrection>,
    /// The entropies, if the loss depends on them.
    pub entropy: Option<EntropyTerm>,
    /// For which tokens importance ratios are computed.
    pub level: RatioLevel,
    /// Whether the loss is that of CISPO, whose factor `min(ratio, epsilon_high)` is a constant.
    pub cispo: bool,
    /// The importance ratio is clipped below at `1 - epsilon_low`.
    pub epsilon_low: f32,
    /// The importance ratio is clipped above at `1 + epsilon_high`; with `cispo` at `epsilon_high`.
    pub epsilon_high: f32,
    /// The weight of the KL term.
    pub beta: f32,
    /// The logarithm of the ratio of policy to reference probability is clamped to `± kl_limit`; infinite: not
    /// clamped.
    pub kl_limit: f32,
}

/// The loss (one f32 element) for the policy log-probabilities `log_probs`, f32 `[L]`, and statistics f32 `[n, 4]`
/// without a gradient. The statistics of a completion: its part of the loss, its sum of KL terms, its number of
/// clipped tokens, its number of tokens that count.
pub fn grpo_loss(cx: &Cx, log_probs: &Tensor, inputs: &GrpoInputs) -> Result<(Tensor, Tensor)> {
    let _op = in_op("grpo_loss");
    const OP: &str = "grpo_loss";
    let (tokens, n) = (inputs.completions.token_count(), inputs.completions.sequence_count());
    want_dtype(OP, "completion_lens", &inputs.completion_lens, DType::I32)?;
    want_shape(OP, "completion_lens", &inputs.completion_lens, &[n], "one value for each completion")?;
    for (what, x) in [("advantages", &inputs.advantages), ("weights", &inputs.weights)] {
        want_dtype(OP, what, x, DType::F32)?;
        want_shape(OP, what, x, &[n], "one value for each completion")?;
    }
    let (correction, entropy) = (inputs.correction.as_ref(), inputs.entropy.as_ref());
    let others = [
        ("old_log_probs", inputs.old_log_probs.as_ref()),
        ("ref_log_probs", inputs.ref_log_probs.as_ref()),
        ("sampled_log_probs", correction.map(|c| &c.sampled_log_probs)),
        ("entropies", entropy.map(|e| &e.entropies)),
    ];
    let given = others.into_iter().filter_map(|(what, x)| Some((what, x?)));
    for (what, x) in [("log_probs", log_probs)].into_iter().chain(given) {
        want_dtype(OP, what, x, DType::F32)?;
        want_shape(OP, what, x, &[tokens], "one value for each token of the completions")?;
    }
    let address = |x: Option<&Tensor>| x.map_or(Addr::NULL, Tensor::addr);
    let (gradient, stats) =
        (cx.empty(&[tokens], DType::F32)?, cx.empty(&[n, kernel::STATS_PER_COMPLETION], DType::F32)?);
    let bonus = entropy.filter(|entropy| entropy.weight != 0.0);
    let of_entropies = bonus.map(|_| cx.empty(&[tokens], DType::F32)).transpose()?;
    let flag = |flag: u32, of: fn(&SamplingCorrection) -> bool| if correction.is_some_and(of) { flag } else { 0 };
    let params = kernel::Params {
        log_prob: log_probs.addr(),
        old: address(inputs.old_log_probs.as_ref()),
        sampled: address(correction.map(|c| &c.sampled_log_probs)),
        reference: address(inputs.ref_log_probs.as_ref()),
        entropy: address(entropy.map(|e| &e.entropies)),
        cu_seqlens: inputs.completions.addr(),
        counted: inputs.completion_lens.addr(),
        advantage: inputs.advantages.addr(),
        weight: inputs.weights.addr(),
        d_log_prob: gradient.addr(),
        d_entropy: address(of_entropies.as_ref()),
        stats: stats.addr(),
        completions: size(OP, n)?,
        level: inputs.level as u32,
        cispo: inputs.cispo.into(),
        correction: flag(kernel::CORRECTION_PER_SEQUENCE, |c| c.per_sequence)
            + flag(kernel::CORRECTION_MASKS, |c| c.masks),
        epsilon_low: inputs.epsilon_low,
        epsilon_high: inputs.epsilon_high,
        beta: inputs.beta,
        kl_limit: inputs.kl_limit,
        min_entropy: entropy.map_or(f32::NEG_INFINITY, |e| e.min),
        entropy_weight: entropy.map_or(0.0, |e| e.weight),
        correction_min: correction.map_or(0.0, |c| c.min),
        correction_max: correction.map_or(0.0, |c| c.max),
    };
    cx.launch(&kernel::loss(tokens, &params))?;
    // The loss is the sum of the first of the four columns of the statistics.
    let first: Vec<f32> = [1.0, 0.0, 0.0, 0.0].repeat(n);
    let column = Tensor::from_f32(
        cx.device(),
        &[n, kernel::STATS_PER_COMPLETION],
        DType::F32,
        &first,
        reel_device::MemoryCategory::Inputs,
    )?;
    let loss = cx.empty(&[1], DType::F32)?;
    let sum = reduce::WeightedSumParams {
        x: stats.addr(),
        w: column.addr(),
        out: loss.addr(),
        n: (n * kernel::STATS_PER_COMPLETION) as u64,
    };
    cx.launch(&reduce::weighted_sum(&sum))?;
    let gradients = [Some((log_probs, gradient)), bonus.map(|e| &e.entropies).zip(of_entropies)];
    let (recorded, gradients): (Vec<&Tensor>, Vec<_>) =
        gradients.into_iter().flatten().map(|(x, gradient)| (x, (x.meta().clone(), gradient))).unzip();
    let loss = cx.record(OP, &recorded, loss, move |bw| {
        let dy = bw.take_dy();
        for (to, gradient) in &gradients {
            let dx = bw.empty_like(to)?;
            let (x, scalar, y) = (gradient.addr(), dy.addr(), dx.addr());
            bw.launch(&elementwise::mul_scalar(&elementwise::MulScalarParams { x, scalar, y, count: tokens as u64 }))?;
            bw.add_grad(to, dx)?;
        }
        Ok(())
    });
    Ok((loss, stats))
}
