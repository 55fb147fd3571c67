//! `reel frames`: which frames of a film are taken, and the frames themselves.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_media::frames;
use reel_media::profile::Profile;

use crate::common::Common;
use crate::fail::bad_usage;
use crate::media::{MediaFlags, WorkerFlags};
use crate::output;

/// Say which frames of a film are taken, and decode them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel frames --total-frames 300 --video-fps 29.97 --profile videorft-train --json")]
pub struct Frames {
    /// The film; its frames are decoded as stored, before any resize
    #[arg(long, value_name = "FILE", required_unless_present = "total_frames")]
    video: Option<PathBuf>,
    /// Instead of a film: how many frames it would have
    #[arg(long, value_name = "N", conflicts_with = "video", requires = "video_fps")]
    total_frames: Option<u64>,
    /// Instead of a film: its frames a second
    #[arg(long, value_name = "RATE", conflicts_with = "video", requires = "total_frames", allow_hyphen_values = true)]
    video_fps: Option<f64>,
    /// Write `frames` u8 [T,H,W,3] and `indices` i64 [T] to this safetensors file
    #[arg(long, value_name = "F.safetensors", requires = "video")]
    out: Option<PathBuf>,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl Frames {
    /// Chooses, decodes where there is a film, and says what was taken.
    pub fn run(&self, common: &Common) -> Result<()> {
        let profile = self.media.profile(Profile::Qwen)?;
        let overrides = self.media.overrides();
        match (&self.video, self.total_frames, self.video_fps) {
            (None, Some(total), Some(fps)) => {
                let choice = frames::choose(total, fps, profile, &overrides)?;
                self.say(common, &choice.indices, choice.sample_fps)
            }
            _ => Err(bad_usage("--video", "a film is needed", "give --video FILE, or --total-frames with --video-fps")),
        }
    }

    fn say(&self, common: &Common, indices: &[u64], sample_fps: f64) -> Result<()> {
        if common.json {
            let n = indices.len();
            return output::json(&serde_json::json!({"nframes": n, "indices": indices, "sample_fps": sample_fps}));
        }
        let list: Vec<String> = indices.iter().map(u64::to_string).collect();
        output::line(format!("{} frames at {sample_fps:.4} a second: {}", list.len(), list.join(" ")))
    }
}
