//! The pipeline of `reel demo`: a tiny model with random weights learns to answer questions about synthetic video
//! clips.
//!
//! [`clips`] draws the clips, with a question, a chain of thought and an answer each. [`pipeline`] curates the chains
//! of thought with the models of [`endpoint`], where [`stand_in`] answers in place of large models. Then it trains on
//! the chains (SFT, then GRPO with or without the temporal reward). It evaluates on held-out clips before training,
//! after SFT and after GRPO: [`benchmarks`] writes the clips as benchmarks, `reel eval` answers them, [`evaluation`]
//! reads the answers. In [`tool_stage`] the model learns to call `crop_video` from the rows of [`tool_rows`].
//! `commands.rs` has the command lines, and [`page`] writes the results as HTML.

pub mod benchmarks;
pub mod clips;
pub mod command_line;
mod commands;
pub mod endpoint;
pub mod evaluation;
pub mod page;
pub mod pipeline;
pub mod stand_in;
mod tool_answers;
pub mod tool_rows;
pub mod tool_stage;

use std::io::Write;
use std::path::Path;

use reel_support::files::AtomicFile;

use crate::error::{Error, Result};

/// Writes a whole file, and creates the folder that contains it. If writing fails, an earlier file stays unchanged.
fn write(to: &Path, text: &str) -> Result<()> {
    let cannot_write = |e: std::io::Error| Error::cannot_write(to, &e);
    std::fs::create_dir_all(to.parent().unwrap_or(to)).map_err(cannot_write)?;
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(text.as_bytes()).map_err(cannot_write)?;
    draft.commit()
}
