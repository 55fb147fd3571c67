//! Does one training step of supervised fine-tuning. [`grpo`](super::grpo) has the same structure with other data and
//! another loss.

use reel_device::Device;
use reel_model::qwen2_5_vl::ForwardOptions;
use reel_runtime::{Cx, ops};
use reel_samples::sample::Sample;

use crate::Result;
use crate::step::trainer::{MicroBatchInput, StepResult, Trainer};

/// Does step `n`, counted from 1, on the micro-batches that `next` returns; `None` if `next` returns no micro-batch.
///
/// The loss of a micro-batch is the mean over its learned tokens; the loss of the step is the mean over its
/// micro-batches.
pub fn step(
    t: &mut Trainer,
    n: u64,
    mut next: impl FnMut() -> Result<Option<Vec<Sample>>>,
) -> Result<Option<StepResult>> {
    t.grads.clear();
    let device = t.device.clone();
    let part = |name| device.profiler().set_work_part(name);
    let (mut losses, mut tokens) = (Vec::new(), 0);
    while losses.len() < t.hyperparameters.gradient_accumulation_steps {
        let Some(samples) = next()? else { break };
        part("forward");
        let pack_on = |device: &Device| MicroBatchInput::new(device, &t.model.config, &samples);
        let packed = pack_on(&device)?; // rows → one row of S tokens with cu_seqlens
        let size = (&packed.batch, packed.targets.count());
        let kept = t.checkpointing.choose(&device, size, |dry| Ok(pack_on(dry)?.learned_tokens()))?;
        let cx = Cx::training(&device, t.dtype).with_checkpointing(kept);
        let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
        let hidden = t.model.forward(&cx, &packed.batch, learned)?; // [L, H]
        let log_probs = ops::linear_log_prob(&cx, &hidden, t.model.text.lm_head()?, &packed.targets, 1.0)?; // [L]
        let loss = ops::weighted_sum(&cx, &log_probs, &packed.weights)?; // −1/L · Σ log p
        part("backward");
        t.backward(&cx, &loss, 1.0 / t.hyperparameters.gradient_accumulation_steps as f32)?;
        losses.push(loss.to_f32()?[0]);
        tokens += packed.batch.token_count();
    }
    if losses.is_empty() {
        return Ok(None);
    }
    part("optimizer");
    // Each gradient was divided by the number of micro-batches of a full step. The run's last step may have fewer
    // micro-batches; this factor then corrects the division.
    let clip = t.norm_and_clip_factor(t.hyperparameters.gradient_accumulation_steps as f32 / losses.len() as f32)?; // [norm, factor]
    let loss = losses.iter().map(|&x| f64::from(x)).sum::<f64>() / losses.len() as f64;
    let result = StepResult::new(loss, &clip, t.hyperparameters.decoder_learning_rate(n), tokens)?;
    if result.is_finite() {
        t.optimizer.step(&t.grads, &clip, |name| t.hyperparameters.adamw_params_of(name, n))?;
    }
    part("");
    Ok(Some(result))
}
