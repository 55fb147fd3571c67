//! The pipeline of `reel demo`: a tiny model with random weights learns to answer questions about synthetic video
//! clips.
//!
//! [`clips`] draws the clips, with a question, a chain of thought and an answer each. [`pipeline`] has the chains of
//! thought curated, for which [`endpoint`] stands in for large models ([`stand_in`]), trains on them (SFT, then GRPO
//! with or without the temporal reward) and evaluates on held-out clips before, between and after the two stages:
//! [`benchmarks`] writes the clips as benchmarks, `reel eval` answers them, [`evaluation`] reads the answers.
//! `commands.rs` has the command lines, and [`page`] writes the results as HTML.

pub mod benchmarks;
pub mod clips;
pub mod command_line;
mod commands;
pub mod endpoint;
mod error;
pub mod evaluation;
pub mod page;
pub mod pipeline;
pub mod stand_in;

use std::io::Write;
use std::path::Path;

use reel_diagnostic::Diagnostic;
use reel_files::AtomicFile;

pub use error::{Result, ShowcaseError};

/// Writes a whole file, and the folder that it is in; if that fails, an earlier file stays.
fn write(to: &Path, text: &str) -> Result<()> {
    let cannot_write = |e: std::io::Error| ShowcaseError::Output(Diagnostic::cannot_write(to, &e));
    std::fs::create_dir_all(to.parent().unwrap_or(to)).map_err(cannot_write)?;
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(text.as_bytes()).map_err(cannot_write)?;
    Ok(draft.commit()?)
}
