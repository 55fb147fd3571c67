//! Generates completions for prompts. Rollouts, evaluation and the command line use this one engine.
//!
//! Requests go in, completions come out: [`Engine::generate`], or [`Engine::continuous_batch`] for more requests than
//! fit into memory at a time. The loop `schedule → run → postprocess` is in `run.rs`. The scheduler (`scheduler.rs`)
//! decides which sequence holds which decode slot and KV blocks; the running batch (`running_batch.rs`) holds what the
//! device needs for a decode step.

pub mod bench;
mod block_allocator;
mod continuous;
mod engine;
mod error;
mod prefill;
mod request;
mod run;
mod running_batch;
mod sampler;
mod scheduler;
mod sequence;
mod stop;
mod token_text;

pub use continuous::ContinuousBatch;
pub use engine::Engine;
pub use error::{EngineError, Result};
pub use request::{Completion, FinishReason, GenerationRequest, GenerationTiming, TokenEvent};
pub use sampler::SamplingParams;
pub use stop::{Detokenizer, StopCondition};
pub use token_text::{CompletionStream, TokenText, completion_text};
