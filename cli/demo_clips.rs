//! `reel demo-clips`: writes the clips and rows of the recipes in docs/examples whose questions need a tool.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_tools::showcase::tool_rows::ToolRows;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::output;

/// Number of clips for GRPO.
const RL_CLIPS: usize = 240;
/// Number of held-out clips.
const HELD_OUT_CLIPS: usize = 120;

/// Write the clips and rows of the recipes docs/examples/tools-longvt and tools-open-o3, whose questions can be
/// answered only with the tool crop_video. Equal seeds give equal files.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel demo-clips --out clips")]
pub struct DemoClipsArgs {
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A flash fills a quarter of the frame, and answers name its second and box as evidence (tools-open-o3)
    #[arg(long)]
    boxes: bool,
}

impl DemoClipsArgs {
    /// Writes the folder and prints its path.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        if self.out.exists() {
            let what = format!("{} exists", self.out.display());
            return Err(usage_error("--out", what, "remove it, or give another folder"));
        }
        let rows = ToolRows { seed: common.seed(), rl: RL_CLIPS, held_out: HELD_OUT_CLIPS, in_quarters: self.boxes };
        rows.write(&self.out)?;
        if common.json {
            return output::print_json(&json!({"out": self.out}));
        }
        output::print_line(format!("{}: sft.jsonl, rl.jsonl, held-out.jsonl and their clips", self.out.display()))
    }
}
