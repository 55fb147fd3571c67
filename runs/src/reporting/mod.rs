//! What a run reports while it trains: the progress bar, TensorBoard and Weights & Biases.

pub mod events;
pub mod progress;
pub mod protobuf;
pub mod wandb;
pub mod watch;
