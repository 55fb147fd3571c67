//! Computes the loss of validation rows with forward passes that keep no activations. The loss of a row has the same
//! bits in any micro-batch, except on devices where the bits of a row depend on its batch (docs/design.md). Sums over
//! rows are made in the order of the rows. So the validation loss does not depend on the number of processes (ranks)
//! and, apart from this exception, not on the micro-batches.

use std::rc::Rc;

use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_runtime::{Checkpointing, Cx, GatheredWeights, ops};
use reel_samples::sample::Sample;

use crate::Result;
use crate::exchange::gather_in_order;
use crate::metrics::ValidationLoss;
use crate::step::trainer::{MicroBatchInput, Trainer};
use crate::step::weight_shards::ForwardRoundsGuard;

/// The loss of a validation row: a sum and the number of its terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowLoss {
    /// The negative log-probabilities of the learned tokens, added in the order of the tokens.
    pub sum: f64,
    /// The number of learned tokens of the row.
    pub tokens: u64,
}

/// Computes the validation loss from the losses `rows` of the rows, in their order. `skipped` is the number of rows
/// that could not be used, and `hash` is the fingerprint of the set of rows. `None` if the rows have no learned
/// token, because their mean is then undefined.
pub fn validation_loss(rows: &[RowLoss], skipped: usize, hash: &str) -> Option<ValidationLoss> {
    let tokens: u64 = rows.iter().map(|row| row.tokens).sum();
    let sum: f64 = rows.iter().map(|row| row.sum).sum();
    (tokens > 0).then(|| ValidationLoss {
        eval_loss: sum / tokens as f64,
        eval_tokens: tokens,
        eval_rows: rows.len(),
        eval_skipped: skipped,
        eval_data_hash: hash.into(),
    })
}

/// Computes the losses of the micro-batches of validation rows. With several ranks, micro-batch i belongs to rank i mod
/// N, and N micro-batches are a round.
#[derive(Debug)]
pub struct ValidationLossPass<'t> {
    model: &'t QwenVl,
    /// The trainer of the model, if it is in training.
    trainer: Option<&'t Trainer>,
    cx: Cx,
    rounds: Option<ForwardRoundsGuard>,
    /// The losses of this rank's micro-batches.
    own: Vec<Vec<RowLoss>>,
}

impl<'t> ValidationLossPass<'t> {
    /// Begins a pass over validation rows. With several ranks, all ranks begin it together.
    pub fn new(trainer: &'t Trainer) -> Self {
        let shards = trainer.weight_shards.clone();
        let rounds = shards.as_ref().map(|shards| shards.forward_rounds());
        let shards = shards.map(|shards| shards as Rc<dyn GatheredWeights>);
        let cx = Cx::inference(&trainer.device, trainer.dtype).with_gathered_weights(shards);
        Self { model: &trainer.model, trainer: Some(trainer), cx, rounds, own: Vec::new() }
    }

    /// Begins a pass with a model that is not in training, in one process. `cx` is a context for inference.
    pub fn of_model(model: &'t QwenVl, cx: &Cx) -> Self {
        Self { model, trainer: None, cx: cx.without_tape(), rounds: None, own: Vec::new() }
    }

    /// Computes the losses of a micro-batch that belongs to this rank. Must be called at most once in a round.
    ///
    /// # Errors
    /// The device fails; another rank has failed.
    pub fn add(&mut self, samples: &[Sample]) -> Result<()> {
        let (model, cx) = (self.model, &self.cx);
        cx.device().profiler().set_work_part("validation");
        let packed = MicroBatchInput::new(cx.device(), &model.config, samples)?; // S tokens, L of them learned
        // Without a tape, a forward pass requires that the vision tower's weights are always in memory. With ZeRO-3,
        // the weights of a trained tower are gathered during the pass. So the pass then has a tape, which keeps the
        // inputs of the tower's blocks until it is dropped.
        let trainer = self.trainer.filter(|_| self.rounds.is_some());
        let trainer = trainer.filter(|trainer| trainer.hyperparameters.trains_vision(&model.config));
        let taped = packed.batch.vision.as_ref().zip(trainer);
        let taped = taped.map(|(media, trainer)| (media, trainer.training_cx(Checkpointing::Full)));
        let vision = taped.map(|(media, taped)| model.vision_tokens(&taped, media)).transpose()?;
        let learned = ForwardOptions { rows: Some(&packed.positions), vision: vision.as_ref(), ..Default::default() };
        let hidden = model.forward(cx, &packed.batch, learned)?; // [L, H]
        let log_prob = |head: &_| ops::linear_log_prob(cx, &hidden, head, &packed.targets, 1.0);
        let log_probs = model.text.with_lm_head(cx, log_prob)?.to_f32()?; // [L]
        let mut log_probs = log_probs.into_iter();
        let of_row = |sample: &Sample| {
            let tokens = sample.targets.iter().filter(|target| **target >= 0).count();
            let sum = log_probs.by_ref().take(tokens).map(|log_prob| -f64::from(log_prob)).sum();
            RowLoss { sum, tokens: tokens as u64 }
        };
        self.own.push(samples.iter().map(of_row).collect());
        cx.device().profiler().set_work_part("");
        Ok(())
    }

    /// Ends a round. All ranks call it together, also ranks without a micro-batch in the round.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn end_round(&self) -> Result<()> {
        self.rounds.as_ref().map_or(Ok(()), ForwardRoundsGuard::end_round)
    }

    /// Ends the pass. Returns the losses of the rows of each micro-batch, in the order of the micro-batches, on all
    /// ranks.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn finish(self) -> Result<Vec<Vec<RowLoss>>> {
        let ranks = self.trainer.and_then(Trainer::ranks);
        let size = ranks.map_or(1, |ranks| ranks.size());
        gather_in_order(ranks, "losses of validation rows", self.own, |index| index % size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_the_mean_over_tokens_not_over_rows() {
        let rows = [RowLoss { sum: 6.0, tokens: 3 }, RowLoss { sum: 1.0, tokens: 1 }];
        let loss = validation_loss(&rows, 2, "00").unwrap();
        assert_eq!((loss.eval_loss, loss.eval_tokens, loss.eval_rows, loss.eval_skipped), (1.75, 4, 2, 2));
    }

    #[test]
    fn rows_without_learned_tokens_have_no_loss() {
        assert_eq!(validation_loss(&[], 3, "00"), None);
        assert_eq!(validation_loss(&[RowLoss::default()], 0, "00"), None);
    }
}
