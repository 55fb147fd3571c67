//! The optimizer: AdamW over named parameters, clipping by the global norm, and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, Hyper, Moments, ParameterState};
pub use schedule::{Schedule, ScheduleKind};
