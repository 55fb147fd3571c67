//! Turns prompts ([`Prompt`]) into rollouts ([`Rollout`]): groups of completions with rewards and advantages, sampled
//! by the engine or read from a file. Read [`worker`] first: it samples, scores and records the rollouts of one step.

mod expected_lengths;
pub mod given;
pub mod group;
mod offline;
pub mod prompts;
pub mod records;
pub mod reward_log;
pub mod sampler;
pub mod scorer;
pub mod siglip;
pub mod spread;
mod tool_media;
pub mod tools;
pub mod worker;

pub use group::{CompletionTokens, Rollout, RolloutSet};
pub use prompts::{Prompt, PromptSource};
pub use sampler::with_shuffled_frames;
