//! The policy loss of GRPO and its variants (DAPO, Dr. GRPO, GSPO), computed from log-probabilities.

use reel_device::{Addr, DType, in_op};
use reel_kernels::{elementwise, grpo_loss as kernel, reduce};

use super::attention::CuSeqlens;
use super::{size, want_dtype, want_shape};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

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
    /// Whether importance ratios are computed per completion (GSPO) instead of per token.
    pub sequence_level: bool,
    /// The importance ratio is clipped below at `1 - epsilon_low`.
    pub epsilon_low: f32,
    /// The importance ratio is clipped above at `1 + epsilon_high`.
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
    let others = [("old_log_probs", inputs.old_log_probs.as_ref()), ("ref_log_probs", inputs.ref_log_probs.as_ref())];
    let given = others.into_iter().filter_map(|(what, x)| Some((what, x?)));
    for (what, x) in [("log_probs", log_probs)].into_iter().chain(given) {
        want_dtype(OP, what, x, DType::F32)?;
        want_shape(OP, what, x, &[tokens], "one value for each token of the completions")?;
    }
    let address = |x: &Option<Tensor>| x.as_ref().map_or(Addr::NULL, Tensor::addr);
    let (gradient, stats) =
        (cx.empty(&[tokens], DType::F32)?, cx.empty(&[n, kernel::STATS_PER_COMPLETION], DType::F32)?);
    let params = kernel::Params {
        log_prob: log_probs.addr(),
        old: address(&inputs.old_log_probs),
        reference: address(&inputs.ref_log_probs),
        cu_seqlens: inputs.completions.addr(),
        counted: inputs.completion_lens.addr(),
        advantage: inputs.advantages.addr(),
        weight: inputs.weights.addr(),
        d_log_prob: gradient.addr(),
        stats: stats.addr(),
        completions: size(OP, n)?,
        sequence_level: inputs.sequence_level.into(),
        epsilon_low: inputs.epsilon_low,
        epsilon_high: inputs.epsilon_high,
        beta: inputs.beta,
        kl_limit: inputs.kl_limit,
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
    let to_log_probs = log_probs.meta().clone();
    let loss = cx.record(OP, &[log_probs], loss, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&to_log_probs)?;
        let scale =
            elementwise::MulScalarParams { x: gradient.addr(), scalar: dy.addr(), y: dx.addr(), count: tokens as u64 };
        bw.launch(&elementwise::mul_scalar(&scale))?;
        bw.add_grad(&to_log_probs, dx)
    });
    Ok((loss, stats))
}
