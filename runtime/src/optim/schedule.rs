//! Learning-rate schedules with the curves of transformers' schedulers.

/// The shape of the learning-rate curve after warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Linear decay to 0.
    Linear,
    /// Decay to 0 along half a cosine.
    Cosine,
    /// The full learning rate from the first step on. Warmup is ignored, as in transformers.
    Constant,
    /// The full learning rate after warmup.
    ConstantWithWarmup,
}

/// The learning rate of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRateSchedule {
    /// The shape of the learning-rate curve after warmup.
    pub kind: ScheduleKind,
    /// The learning rate at the end of warmup.
    pub learning_rate: f64,
    /// The number of warmup steps, in which the rate rises linearly from 0.
    pub warmup_steps: u64,
    /// The number of steps of the run.
    pub max_steps: u64,
}

impl LearningRateSchedule {
    /// The learning rate of step `step`, counted from 1.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let (done, warmup) = (step.saturating_sub(1) as f64, self.warmup_steps as f64);
        if self.kind == ScheduleKind::Constant {
            return self.learning_rate;
        }
        if done < warmup {
            return self.learning_rate * done / warmup.max(1.0);
        }
        let rest = (self.max_steps as f64 - warmup).max(1.0);
        self.learning_rate
            * match self.kind {
                ScheduleKind::Linear => ((self.max_steps as f64 - done) / rest).max(0.0),
                ScheduleKind::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * (done - warmup) / rest).cos())).max(0.0),
                ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind, warmup_steps: u64) -> Vec<f64> {
        let s = LearningRateSchedule { kind, learning_rate: 1.0, warmup_steps, max_steps: 4 };
        (1..=5).map(|n| s.learning_rate_at(n)).collect()
    }

    #[test]
    fn rates_follow_the_formulas() {
        assert_eq!(rates(ScheduleKind::Linear, 0), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(rates(ScheduleKind::Linear, 2), [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(rates(ScheduleKind::Constant, 2), [1.0; 5]);
        assert_eq!(rates(ScheduleKind::ConstantWithWarmup, 2), [0.0, 0.5, 1.0, 1.0, 1.0]);
        let cosine = rates(ScheduleKind::Cosine, 1);
        for (got, want) in cosine.iter().zip([0.0, 1.0, 0.75, 0.25, 0.0]) {
            assert!((got - want).abs() < 1e-15, "{cosine:?}");
        }
    }

    #[test]
    fn rates_are_finite_when_warmup_is_as_long_as_the_run() {
        assert!(rates(ScheduleKind::Cosine, 4).iter().chain(&rates(ScheduleKind::Linear, 9)).all(|r| r.is_finite()));
    }
}
