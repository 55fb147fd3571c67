//! Prompts in, completions out: one engine for rollouts, evaluation and the command line.

pub mod bench;
mod decode;
mod engine;
mod error;
mod kv_blocks;
mod running;
mod sampler;
mod scheduler;
mod stop;

pub use engine::{Completion, Engine, FinishReason, GenerationRequest, Timing, TokenEvent};
pub use error::{EngineError, Result};
pub use sampler::SamplingParams;
pub use stop::{StopCondition, TextSource};
