//! `reel frames`: which frames of a film are taken, and the frames themselves.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::selection::select_frames;
use reel_media::video::FrameSize;
use reel_model::save::{StoredTensor, write_safetensors};

use crate::common::Common;
use crate::fail::bad_usage;
use crate::media::{MediaFlags, WorkerFlags};
use crate::{output, trace};

/// Say which frames of a film are taken, and decode them.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel frames --total-frames 300 --video-fps 30 --nframes 8")]
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
        let profile = self.media.profile(MediaProfile::Qwen)?;
        let overrides = self.media.overrides();
        match (&self.video, self.total_frames, self.video_fps) {
            (None, Some(total), Some(fps)) => {
                let choice = select_frames(total, fps, profile, &overrides)?;
                self.say(common, &choice.indices, choice.sample_fps)
            }
            (Some(film), ..) => self.decode(common, film, profile, &overrides),
            _ => Err(bad_usage("--video", "a film is needed", "give --video FILE, or --total-frames with --video-fps")),
        }
    }

    /// Decodes the frames. Nobody sees them without `--out`, but a film that cannot be decoded is refused all the same;
    /// then small frames do, which need little memory.
    fn decode(&self, common: &Common, film: &Path, profile: MediaProfile, overrides: &MediaOverrides) -> Result<()> {
        let size = if self.out.is_some() { FrameSize::Original } else { FrameSize::Resized };
        let frames = trace::span("decode", || {
            self.worker.decoder(common)?.decode_at_size(film, profile, overrides, size).map_err(anyhow::Error::from)
        })?;
        if let Some(to) = &self.out {
            let indices: Vec<u8> = frames.indices.iter().flat_map(|&i| (i as i64).to_le_bytes()).collect();
            let shape = vec![frames.indices.len(), frames.height, frames.width, 3];
            let tensors = [
                StoredTensor { name: "frames", dtype: "U8", shape, bytes: &frames.data },
                StoredTensor { name: "indices", dtype: "I64", shape: vec![frames.indices.len()], bytes: &indices },
            ];
            trace::span("write", || write_safetensors(to, &tensors))?;
        }
        match &self.out {
            Some(to) if !common.json && !common.quiet => {
                let n = frames.indices.len();
                output::line(format!("{}: {n} frames of {} x {}", to.display(), frames.height, frames.width))
            }
            Some(_) if !common.json => Ok(()),
            _ => self.say(common, &frames.indices, frames.sample_fps),
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
