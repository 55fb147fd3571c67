//! Benchmarks of video reasoning: reads the published files of a benchmark as questions, and turns the answers of a
//! model into scores: texts and numbers, for which no device, model or media files are needed. [`predict`] computes
//! completions of a data file, by the engine or a server.
//!
//! ```text
//! task file + data files -> rows (question, options, answer, video) -> prompts           load_benchmark
//! rows with outputs      -> answers -> row scores -> scores with 95 % intervals           score_benchmark
//! two runs               -> paired differences                                            compare_runs
//! ```
//! [`Task`] is the declarative file of a benchmark; start there. Rows are scored as the evaluation scripts of VideoRFT
//! and Video-R1 do.

mod bootstrap;
mod compare;
mod expand;
mod extraction;
mod interval;
mod load;
mod metrics;
pub mod predict;
mod prediction;
mod row;
mod row_fields;
mod score;
mod source;
mod subtitles;
mod task;

pub use compare::{Comparison, ScoreDifference, compare_runs};
pub use extraction::Extraction;
pub use load::{DataFile, LoadedBenchmark, load_benchmark};
pub use metrics::MetricScore;
pub use prediction::{GroupMember, Prediction};
pub use reel_support::error::{self, Result};
pub use row::{BenchmarkRow, VideoClip};
pub use score::{BenchmarkReport, CategoryScore, HeadlineScore, can_be_predictions_of, overall_score, score_benchmark};
pub use subtitles::read_subtitles;
pub use task::{Headline, OWN_ROWS, PublishedScore, Suite, Task};
