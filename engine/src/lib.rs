//! Generates completions for prompts. Rollouts, evaluation and the command line use the same engine.
//!
//! Requests go in, completions come out: use [`Engine::generate`] if all requests are known, or
//! [`Engine::continuous_batch`] if requests arrive over time. The loop `schedule → run → postprocess` is in `run.rs`.
//! The scheduler (`scheduler.rs`) decides which prompts are computed, and which sequence holds which decode slot and
//! KV blocks (`block_allocator.rs`, with the prefix cache). `prefill.rs` computes chunks of prompts. The running
//! batch (`running_batch.rs`) holds what the device needs for a decode step.

mod adapters;
pub mod bench;
mod block_allocator;
mod block_hash;
mod context;
mod continuous;
mod engine;
mod grammar;
mod grammar_compiler;
mod grammar_worker;
mod json_schema;
mod prefill;
mod prompt_log_probs;
mod request;
mod run;
mod running_batch;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod stop;
mod token_text;
mod tool_calls;

pub use adapters::AdapterId;
pub use continuous::ContinuousBatch;
pub use engine::{Continuations, Engine};
pub use grammar::{Grammar, GrammarSpec};
pub use grammar_compiler::GrammarCompiler;
pub use grammar_worker::{CompileCancellation, GRAMMAR_WORKER};
pub use prompt_log_probs::PromptTokenLogProbs;
pub use reel_runtime::ops::SamplingParams;
pub use reel_support::error::{self, Result};
pub use request::{
    Completion, FinishReason, GenerationRequest, GenerationTiming, MAX_BIASED_TOKENS, MAX_TOP_LOG_PROBS, StepOutput,
    TokenEvent, TokenLogProbs, TooLongReason, new_tokens_within_positions,
};
pub use sampler::{resolve_sampling, validate_sampling};
pub use stats::EngineStats;
pub use stop::StopCondition;
pub use token_text::{CompletionStream, completion_text};
