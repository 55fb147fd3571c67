//! One training step. Read [`sft`] and [`grpo`] side by side: they differ in their data and their loss. [`trainer`]
//! holds the model, its gradients and its optimizer; [`hyperparameters`] the learning rates and weight decays.

pub mod checkpointing;
mod gradient_sum;
pub mod grpo;
mod grpo_inputs;
pub mod hyperparameters;
#[cfg(test)]
mod loss_mean_tests;
pub mod packing;
pub mod rounds;
pub mod sft;
pub mod shard_exchange;
mod tensor_exchange;
#[cfg(test)]
mod testing;
pub mod trainer;
pub mod validation;
pub mod weight_shards;

pub use gradient_sum::order::{ExchangedBucket, FinishedGradients, GradientOrder};
pub use gradient_sum::{MAX_PENDING_BUCKETS, MAX_WEIGHTS_PER_BUCKET};
