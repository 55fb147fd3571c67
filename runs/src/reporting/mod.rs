//! Reports of a run while it trains: progress on the terminal, TensorBoard and Weights & Biases.

pub mod events;
pub mod progress;
pub mod protobuf;
pub mod wandb;
pub mod watch;
