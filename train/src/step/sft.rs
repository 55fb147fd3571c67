//! Does one training step of supervised fine-tuning. [`grpo`](super::grpo) has the same structure with other data and
//! another loss.

use reel_device::{Device, RangeName, range};
use reel_model::flops::ForwardFlops;
use reel_model::qwen_vl::ForwardOptions;
use reel_runtime::ops;
use reel_samples::sample::Sample;

use crate::Result;
use crate::options::LossMean;
use crate::step::trainer::{ComputedMicroBatch, MicroBatchInput, StepResult, StepTotals, Trainer};

/// The gradients of [`LossMean::Step`] are divided by this number of learned tokens while they are added up. It is a
/// power of two, so that the division rounds nothing.
const EXPECTED_TOKENS: f32 = 1024.0;

/// Does step `n`, counted from 1, on the micro-batches that `next` returns; `None` if `next` returns no micro-batch.
///
/// The loss of a micro-batch is the mean over its learned tokens. The loss of the step is the mean over its
/// micro-batches, or with [`LossMean::Step`] the mean over all its learned tokens, in which a micro-batch has the
/// weight of its learned tokens.
pub fn step(
    t: &mut Trainer,
    n: u64,
    mut next: impl FnMut() -> Result<Option<Vec<Sample>>>,
) -> Result<Option<StepResult>> {
    t.begin_step();
    let device = t.device.clone();
    let (mut own, mut count) = (Vec::new(), 0);
    // The weights of the micro-batches add up to 1 only after the multiplication at the end of the step: the number of
    // micro-batches of the run's last step, and the number of learned tokens of a step, are known only then.
    let is_per_token = t.hyperparameters.loss_mean == LossMean::Step;
    let full = if is_per_token { EXPECTED_TOKENS } else { t.hyperparameters.gradient_accumulation_steps as f32 };
    let weight_of = |learned: usize| if is_per_token { learned as f64 } else { 1.0 };
    while count < t.hyperparameters.gradient_accumulation_steps {
        // With several ranks, each rank computes one micro-batch of the round.
        let Some((in_round, samples)) = next_round(t, count, &mut next)? else { break };
        let mut computed = None;
        if let Some(samples) = samples {
            let index = (count..count + in_round).find(|&index| t.computes_micro_batch(index));
            let _micro_batch = range(RangeName::MicroBatch(index.unwrap_or(count)));
            let forward = device.profiler().phase("forward");
            let pack_on = |device: &Device| MicroBatchInput::new(device, &t.model.config, &samples);
            let packed = pack_on(&device)?; // rows → one row of S tokens with cu_seqlens
            let size = (&packed.batch, packed.targets.count());
            let kept =
                t.checkpointing.choose_kept_activations(&device, size, |dry| Ok(pack_on(dry)?.learned_tokens()))?;
            let cx = t.training_cx(kept);
            let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
            let hidden = t.model.forward(&cx, &packed.batch, learned)?; // [L, H]
            let log_prob = |head: &_| ops::linear_log_prob(&cx, &hidden, head, &packed.targets, 1.0);
            let log_probs = t.model.text.with_lm_head(&cx, log_prob)?; // [L]
            let loss = ops::weighted_sum(&cx, &log_probs, &packed.weights)?; // −1/L · Σ log p
            drop(forward);
            let _backward = device.profiler().phase("backward");
            let learned = packed.targets.count();
            t.backward(&cx, &loss, weight_of(learned) as f32 / full)?;
            let forward = ForwardFlops::for_batch(&t.model.config, &packed.batch, learned);
            let model_flops = forward.training_flops(t.hyperparameters.trained_parts(&t.model.config));
            computed = Some((loss, [learned as u32, packed.batch.token_count() as u32], model_flops));
        }
        t.end_round()?; // several ranks: adds the gradients of the round to the sums
        // The loss is read only after `end_round`. If another rank hangs, `end_round` returns an error after its time
        // limit; an earlier read would wait for the device forever.
        if let Some((loss, [learned, tokens], model_flops)) = computed {
            let _range = range(RangeName::Phase("read the loss"));
            let loss = f64::from(loss.to_f32()?[0]);
            own.push(vec![ComputedMicroBatch { model_flops, loss, learned, tokens }]);
        }
        count += in_round;
    }
    if count == 0 {
        return Ok(None);
    }
    let all = t.gather("losses of the micro-batches", own)?.concat();
    let weight: f64 = all.iter().map(|batch| weight_of(batch.learned as usize)).sum();
    let loss = all.iter().map(|batch| batch.loss * weight_of(batch.learned as usize)).sum::<f64>() / weight;
    let tokens = all.iter().map(|batch| batch.tokens as usize).sum();
    let model_flops = all.iter().map(|batch| batch.model_flops).sum();
    Ok(Some(t.finish_step(n, full / weight as f32, StepTotals { loss, tokens, model_flops })?))
}

/// Takes the micro-batches of the round that begins with micro-batch `first` of the step. Returns their number, and
/// the samples of this rank's micro-batch, if it has one. `None` if `next` returns no micro-batch.
fn next_round(
    t: &Trainer,
    first: usize,
    next: &mut impl FnMut() -> Result<Option<Vec<Sample>>>,
) -> Result<Option<(usize, Option<Vec<Sample>>)>> {
    let len = t.micro_batches_per_round().min(t.hyperparameters.gradient_accumulation_steps - first);
    let (mut count, mut own) = (0, None);
    let _range = range(RangeName::Phase("data loading"));
    while count < len {
        let Some(samples) = next()? else { break };
        own = if t.computes_micro_batch(first + count) { Some(samples) } else { own };
        count += 1;
    }
    Ok((count > 0).then_some((count, own)))
}
