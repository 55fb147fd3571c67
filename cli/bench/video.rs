//! `reel bench video`: videos per minute through preprocessing, the prefill of their prompts, and GRPO steps.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_input::config::ModelConfig;
use reel_input::fetch::MediaAccess;
use reel_tools::measure::rounds::hardware_json;
use reel_tools::measure::video::{VideoBench, VideoBenchShape, VideoTimes};
use serde_json::json;

use super::not_zero;
use super::progress::{BenchmarkProgress, timing_line};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::generate::MAX_COMPLETIONS;
use crate::media::{MediaFlags, WorkerFlags, check_fits_model, media_error_to_usage_error};
use crate::{model, output, prompt};

/// Measure videos per minute through preprocessing, prefill and GRPO steps.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench video clip.mp4 --model tiny --nframes 8 --rounds 3")]
pub struct VideoArgs {
    /// Videos to measure, one after the other
    #[arg(value_name = "FILE", required = true)]
    videos: Vec<PathBuf>,
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Completions that a GRPO step samples for the video, and trains on
    #[arg(long, value_name = "B", default_value_t = 8)]
    batch: usize,
    /// Tokens of each completion
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Timed rounds of each video; one warm-up round comes before them
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl VideoArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let (rounds, completions, tokens) = (self.rounds, self.batch, self.tokens);
        not_zero(&[("--tokens", tokens), ("--rounds", rounds)])?;
        if !(2..=MAX_COMPLETIONS).contains(&completions) {
            let what = format!("is {completions}, but a GRPO step compares several completions");
            return Err(usage_error("--batch", what, format!("give 2 to {MAX_COMPLETIONS}")));
        }
        let folder = prompt::find_or_download_model(&self.model)?;
        let (access, says_so) = (MediaAccess::default(), !common.quiet);
        let media = prompt::media_options(&self.media, &self.worker, Some(&folder), access, says_so, common)?;
        check_fits_model(&media, &ModelConfig::open(&folder)?)?;
        let (device, dtype, profile) = (model::open_device(common)?, model::activation_dtype(common), media.profile);
        let shape = VideoBenchShape { rounds, completions, tokens };
        let mut bench = VideoBench::open(&device, dtype, &folder, media, shape)?;
        let progress = BenchmarkProgress::new(common.quiet || common.json);
        let mut videos = Vec::new();
        for (i, file) in self.videos.iter().enumerate() {
            progress.show(&timing_line(&file.display().to_string(), i + 1, self.videos.len()));
            let times = bench.measure(file).map_err(media_error_to_usage_error)?;
            progress.clear();
            if !common.json {
                if i == 0 {
                    output::print_line(VideoTimes::table_header())?;
                }
                output::print_line(times.table_row(file))?;
            }
            videos.push(times.json(file));
        }
        let record = json!({
            "op": "video", "model": folder, "device": device.name(), "threads": device.threads(), "dtype": dtype.name(),
            "machine": hardware_json(&device), "profile": profile, "n": rounds, "batch": completions, "tokens": tokens,
            "videos": videos, "version": env!("CARGO_PKG_VERSION"),
        });
        if common.json { output::print_json(&record) } else { Ok(()) }
    }
}
