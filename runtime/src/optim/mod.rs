//! The optimizer: AdamW on named parameters, gradient clipping by the global norm, and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWParams, Moments, ParameterState};
pub use schedule::{Schedule, ScheduleKind};
