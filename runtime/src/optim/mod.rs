//! The optimizer: AdamW on named parameters, gradient clipping by the global norm, and learning-rate schedules.

mod adamw;
mod partition;
mod schedule;

pub use adamw::{AdamW, AdamWParams, CellState, GradientSource, MomentFormat, ParameterState, clip_factor};
pub use partition::{ParameterCell, ParameterSize, Partition};
pub use reel_kernels::adamw::WEIGHTS_PER_SCALE;
pub use schedule::{LearningRateSchedule, ScheduleKind};
