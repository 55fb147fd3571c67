//! Scores of the six video benchmarks from a model's answers, as the evaluation scripts of VideoRFT and Video-R1 give them.
//! Texts and numbers only: no device, no model, no media.

mod benchmarks;
mod error;
mod interval;
mod prediction;
mod score;

pub use benchmarks::Benchmark;
pub use error::{EvalError, Result};
pub use prediction::Prediction;
pub use score::{BenchmarkReport, CategoryScore, score_benchmark};
