//! Reports of a run while it trains: progress on the terminal, TensorBoard, Weights & Biases, and a command of the
//! user.

pub mod command;
pub mod events;
mod preview;
pub mod progress;
pub mod protobuf;
pub mod signal;
pub mod wandb;
pub mod watch;
