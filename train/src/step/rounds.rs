//! What the training steps of [`sft`](super::sft) and [`grpo`](super::grpo) have in common: the rounds of their
//! micro-batches, of which each rank computes its own, the results of all ranks, and the update of the weights.

use bytemuck::Pod;
use reel_device::{RangeName, range};

use crate::Result;
use crate::exchange::gather_in_order;
use crate::step::trainer::{StepResult, StepTotals, Trainer};

impl Trainer {
    /// Calls `compute` for those of the `count` micro-batches of the step that this rank computes, in order, and adds
    /// up the gradients of all ranks. Returns the results of `compute`. All ranks call it together.
    ///
    /// # Errors
    /// `compute` fails; another rank has failed; the device fails.
    pub fn compute_micro_batches<R>(
        &mut self,
        count: usize,
        mut compute: impl FnMut(&mut Trainer, usize) -> Result<R>,
    ) -> Result<Vec<R>> {
        let mut own = Vec::new();
        for index in 0..count {
            if self.computes_micro_batch(index) {
                own.push(compute(self, index)?);
            }
            if (index + 1).is_multiple_of(self.micro_batches_per_round()) || index + 1 == count {
                self.end_round()?;
            }
        }
        Ok(own)
    }

    /// Gathers one list for each micro-batch of the step, in the order of the micro-batches. `own` has the lists of
    /// this rank's micro-batches. `name` is the name of the call in messages and traces. All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn gather<T: Pod>(&self, name: &'static str, own: Vec<Vec<T>>) -> Result<Vec<Vec<T>>> {
        let _range = range(RangeName::Phase(name));
        gather_in_order(self.ranks(), name, own, |index| self.rank_of_micro_batch(index))
    }

    /// Ends step `n`: multiplies the gradients by `scale`, clips them and updates the weights, unless the loss or the
    /// norm of the gradients is not finite.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn finish_step(&mut self, n: u64, scale: f32, totals: StepTotals) -> Result<StepResult> {
        let _phase = self.device.clone().profiler().phase("optimizer");
        let clip = self.norm_and_clip_factor(scale)?; // [norm, factor]
        let result = StepResult::new(totals, &clip, self.hyperparameters.decoder_learning_rate(n))?;
        if result.is_finite() {
            self.update_weights(n, &clip)?;
        }
        Ok(result)
    }
}
