//! `reel preprocess`: writes the model inputs of chat messages with their images and videos.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_input::media::worker::FrameCacheOptions;
use reel_tools::measure::trace;

use crate::common::CommonOptions;
use crate::media::open_disk_cache;
use crate::output;
use crate::prompt::MessageFlags;

/// Write the model inputs of chat messages: token ids after the chat template, M-RoPE positions, and patches of images
/// and videos.
#[derive(Args, Debug)]
#[command(mut_arg("messages", |a| a.required(true)))]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"role\": \"user\", \"content\": \"Hello\"}]' > messages.json
  reel preprocess --model tiny --messages messages.json --out in.safetensors")]
pub struct PreprocessArgs {
    /// Model folder, or Hugging Face model id; its weights are not needed
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    messages: MessageFlags,
    #[command(flatten)]
    frame_cache: FrameCacheOptions,
    /// Safetensors file to write: `input_ids`, `position_ids`, `rope_delta`, and for media their patches, grids and
    /// frame indices
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

impl PreprocessArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        open_disk_cache(&self.frame_cache)?;
        let prompt = self.messages.encode(&self.model, None, common)?;
        trace::span("write", || prompt.tokens.write(&self.out, &prompt.bundle.config))?;
        let tokens = prompt.tokens.len();
        if common.json {
            return output::print_json(
                &serde_json::json!({"tokens": tokens, "seconds": prompt.seconds, "out": self.out}),
            );
        }
        if !common.quiet {
            output::print_line(format!("{}: {tokens} tokens", self.out.display()))?;
        }
        Ok(())
    }
}
