//! Adds the memory of computing the validation loss to a plan.

use crate::Result;
use crate::step::trainer::Trainer;
use crate::step::validation::ValidationLossPass;
use reel_samples::sample::Sample;

use super::Plan;

/// Returns the plan. If the validation loss of the micro-batches that `next` returns needs more memory than a step,
/// the plan's memory becomes that of the validation. The trainer is on the dry device.
pub(super) fn add_validation_memory(
    mut plan: Plan,
    trainer: &Trainer,
    mut next: impl FnMut() -> Result<Option<Vec<Sample>>>,
) -> Result<Plan> {
    trainer.device.reset_peak();
    let mut pass = ValidationLossPass::new(trainer);
    while let Some(samples) = next()? {
        pass.add(&samples)?;
        pass.end_round()?;
    }
    let memory = trainer.device.memory();
    // With ZeRO-3 a validation gathers the weights unit by unit, as a step does.
    if memory.peak > plan.divided.memory_by_units.peak {
        plan.divided.memory_by_units = memory.clone();
    }
    if memory.peak > plan.memory.peak {
        plan.memory = memory;
    }
    Ok(plan)
}
