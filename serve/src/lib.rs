//! An HTTP server with OpenAI's API, over the engine that also generates rollouts and predictions.
//!
//! ```text
//! client  ──► connection: limits, TLS, request id, access log (http/) ──► key (server.rs)
//! request ──► check (api/) ──► encode on a blocking thread (api/encode.rs) ──► queue ──► engine thread
//! answer  ◄── text of tokens, stop strings (api/answer.rs, stream.rs) ◄── tokens and completions (api/events.rs)
//! ```
//!
//! One thread owns the model and runs the engine's continuous batch (`engine_thread.rs`). Requests reach this thread
//! through a queue, in the order in which they were encoded. Each request has a channel for its tokens. If the client
//! closes the connection, the channel's receiver is dropped, and the engine drops the request before its next step. A
//! process may serve a part of the model, together with others (`divided_model.rs`, `follower.rs`).

mod api;
mod divided_model;
mod engine_thread;
mod follower;
mod hardware_gauges;
mod histogram;
mod http;
mod metrics;
mod new_weights;
#[cfg(test)]
mod panic_tests;
mod prompt_bytes;
mod request_reader;
#[cfg(test)]
mod request_tests;
mod server;
mod settings;
mod step_message;
#[cfg(test)]
mod testing;

use reel_support::error;

pub use divided_model::DividedModel;
pub use follower::follow_rank_0;
pub use http::{ConnectionLimits, Tls};
pub use request_reader::{QueuedRequest, ReadRequest, RequestReader};
pub use server::serve;
pub use settings::{
    RequestMedia, ServeError, ServeOptions, ServedModel, ServedWeights, ServerLimits, ServerProfiler, WriteProfile,
    folder_name,
};
