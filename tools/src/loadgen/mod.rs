//! A load generator: sends chat or completion requests to any server with OpenAI's API, streams the answers, and
//! measures throughput and latency as `vllm bench serve` does.
//!
//! ```text
//! settings ──► request bodies (prompts.rs) ──► arrival times (arrivals.rs) ──► one task per request (run.rs)
//! task     ──► HTTP client (client.rs) ──► server-sent events (sse.rs) ──► times of one answer (answer.rs)
//! answers  ──► throughput and distributions (report.rs, statistics.rs) ──► table and JSON
//! ```
//!
//! All tasks share one thread, so that the load generator takes little processor time from a server on the same
//! machine. The figures of one answer are defined at [`MeasuredAnswer`], those of a run at [`LoadReport`].

mod answer;
mod arrivals;
mod client;
mod error;
mod media;
mod prompts;
mod report;
mod run;
mod settings;
mod sse;
mod statistics;

pub use answer::{AnswerReader, MeasuredAnswer};
pub use client::ServerUrl;
pub use error::{FailureKind, RequestFailure};
pub use media::{MediaFile, MediaKind};
pub use report::{FailureGroup, LoadReport};
pub use run::{LoadProgress, OnProgress, run};
pub use settings::{LoadSettings, OpenAiApi, RequestAmount};
pub use sse::{EventParser, EventTooLong};
pub use statistics::Distribution;
