//! `reel preprocess`: messages and their media as the model reads them, to a file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::common::Common;
use crate::prompt::MessageFlags;
use crate::{output, trace};

/// Turn messages and their media into what the model reads.
#[derive(Args, Debug)]
#[command(mut_arg("messages", |a| a.required(true)))]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"role\": \"user\", \"content\": \"Hello\"}]' > messages.json
  reel preprocess --model tiny --messages messages.json --out in.safetensors")]
pub struct Preprocess {
    /// The model folder, or a hub id; its weights need not be there
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    messages: MessageFlags,
    /// Where to write `input_ids`, `position_ids`, `rope_delta`, and the pixels, grids and frame numbers of media
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

impl Preprocess {
    /// Writes the file.
    pub fn run(&self, common: &Common) -> Result<()> {
        let prompt = self.messages.encode(&self.model, common)?;
        trace::span("write", || prompt.tokens.write(&self.out, &prompt.bundle.config))?;
        let tokens = prompt.tokens.len();
        if common.json {
            return output::json(&serde_json::json!({"tokens": tokens, "seconds": prompt.seconds, "out": self.out}));
        }
        if !common.quiet {
            output::line(format!("{}: {tokens} tokens", self.out.display()))?;
        }
        Ok(())
    }
}
