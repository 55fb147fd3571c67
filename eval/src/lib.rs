//! Scores predictions of the six video benchmarks as the evaluation scripts of VideoRFT and Video-R1 do. Input and
//! output are texts and numbers: no device, no model, no media. Start at [`score_benchmark`].

mod benchmarks;
mod error;
mod interval;
mod prediction;
mod score;

pub use benchmarks::Benchmark;
pub use error::{EvalError, Result};
pub use prediction::Prediction;
pub use score::{BenchmarkReport, CategoryScore, score_benchmark};
