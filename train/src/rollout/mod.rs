//! From prompts to groups of completions with rewards and advantages, sampled by the engine or read from a file.
//! Read [`worker`] first: it samples, scores, records and groups the completions of one step.

pub(crate) mod given;
pub(crate) mod group;
pub(crate) mod products;
pub(crate) mod prompts;
pub(crate) mod records;
pub(crate) mod sampler;
pub(crate) mod scorer;
pub mod siglip;
pub(crate) mod worker;

pub use group::{CompletionTokens, Group, RolloutSet};
pub use products::RolloutProducts;
pub use prompts::{Prompt, PromptSource};
pub use sampler::with_shuffled_frames;
