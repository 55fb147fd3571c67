//! The optimizer: AdamW on named parameters, gradient clipping by the global norm, and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWParams, MomentFormat, ParameterState};
pub use schedule::{LearningRateSchedule, ScheduleKind};
