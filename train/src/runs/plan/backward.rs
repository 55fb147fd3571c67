//! The launches of a backward pass, recorded on device `dry`, and the times at which its gradients are finished.

use crate::step::GradientOrder;
use crate::step::trainer::Trainer;
use reel_device::{LaunchEvent, OpTotals};

/// A backward pass in the order of its launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackwardPass {
    /// The op and the costs of each launch.
    pub launches: Vec<(&'static str, OpTotals)>,
    /// The launches after which each gradient is finished.
    pub gradients: GradientOrder,
}

impl BackwardPass {
    /// Returns the first backward pass of a step whose launches are `events`. Takes the order of gradients that
    /// `trainer` has recorded in this step.
    pub(super) fn of_step_launches(trainer: &mut Trainer, events: &[LaunchEvent]) -> Self {
        let is_backward = |event: &LaunchEvent| event.part == "backward";
        let first = events.iter().position(is_backward).unwrap_or(events.len());
        let launch = |event: &LaunchEvent| {
            let mut totals = OpTotals { launches: 1, cost: event.cost, ..OpTotals::default() };
            totals.planned.add(&event.stages, event.cost, 1);
            event.product.iter().for_each(|product| totals.products.add(*product, 1));
            (event.name, totals)
        };
        let launches: Vec<_> = events[first..].iter().take_while(|event| is_backward(event)).map(launch).collect();
        let mut finished = trainer.finished_gradients.take().unwrap_or_default();
        finished.iter_mut().for_each(|(after, _)| *after = after.saturating_sub(first));
        let parameters: Vec<_> = trainer.model.parameters().collect();
        let gradients = GradientOrder::new(&trainer.optimizer, parameters.into_iter(), launches.len(), &finished);
        Self { launches, gradients }
    }
}
