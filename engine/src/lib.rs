//! Prompts in, completions out: one engine for rollouts, evaluation and the command line.

pub mod bench;
mod decode;
mod engine;
mod error;
mod kv_blocks;
mod running;
mod sampler;
mod seats;
mod stop;

pub use engine::{Completion, Engine, FinishReason, Request, Timing, Token};
pub use error::{Error, Result};
pub use sampler::Sampling;
pub use stop::{Stop, TextSource};
