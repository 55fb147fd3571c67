//! The pipeline of `reel demo`: a tiny model with random weights learns to answer questions about synthetic video
//! clips.
//!
//! [`clips`] draws the clips, with a question, a chain of thought and an answer each; [`pipeline`] trains on them (SFT,
//! then GRPO with or without the temporal reward) and calls [`evaluation`] on held-out clips before, between and after
//! the two stages; [`page`] writes the results as HTML.

pub mod clips;
mod error;
pub mod evaluation;
pub mod page;
pub mod pipeline;

pub use error::{Result, ShowcaseError};
