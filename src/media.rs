//! Options of every subcommand that reads videos or images.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::worker::{self, DecodeWorker};
use serde::{Deserialize, Serialize};

use crate::common::CommonOptions;
use crate::fail::bad_usage;

/// Options for frame selection and pixel limits.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct MediaFlags {
    /// Frame and pixel limits: videorft-train, video-r1-train, videorft-eval, qwen, uniform-16 or stride-1fps [default:
    /// videorft-train for sft and grpo, else qwen]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Select N frames, evenly spaced
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    nframes: Option<i64>,
    /// Select RATE frames per second of video
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    fps: Option<f64>,
    /// Minimum number of frames with --fps
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    min_frames: Option<i64>,
    /// Maximum number of frames with --fps
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_frames: Option<i64>,
    /// Minimum pixels (height x width) of an image or frame after resizing
    #[arg(long, value_name = "N")]
    min_pixels: Option<u64>,
    /// Maximum pixels (height x width) of an image or frame after resizing
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    /// Maximum pixels of all frames of a video together
    #[arg(long, value_name = "N")]
    total_pixels: Option<u64>,
}

impl MediaFlags {
    /// Returns the profile that `--profile` names, else `default`.
    pub fn profile(&self, default: MediaProfile) -> Result<MediaProfile> {
        Ok(self.profile.as_deref().map_or(Ok(default), MediaProfile::parse)?)
    }

    /// Returns the limits that flags set. They override those of the profile and those that a chat message sets for
    /// its image or video.
    pub fn overrides(&self) -> MediaOverrides {
        MediaOverrides {
            nframes: self.nframes,
            fps: self.fps,
            min_frames: self.min_frames,
            max_frames: self.max_frames,
            min_pixels: self.min_pixels,
            max_pixels: self.max_pixels,
            total_pixels: self.total_pixels,
            ..MediaOverrides::default()
        }
    }
}

/// Options for the limits of decoding one media file.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct WorkerFlags {
    /// Time limit for decoding one media file, in seconds
    #[arg(long, value_name = "S", default_value_t = worker::DEFAULT_DECODE_TIMEOUT.as_secs_f64())]
    media_timeout: f64,
    /// Memory limit for decoding one media file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = worker::DEFAULT_DECODE_MEMORY_MIB)]
    media_memory: u64,
}

impl Default for WorkerFlags {
    fn default() -> Self {
        Self {
            media_timeout: worker::DEFAULT_DECODE_TIMEOUT.as_secs_f64(),
            media_memory: worker::DEFAULT_DECODE_MEMORY_MIB,
        }
    }
}

impl WorkerFlags {
    /// Creates a decoder that decodes each media file in a worker process of this program, within these limits.
    pub fn decode_worker(&self, common: &CommonOptions) -> Result<DecodeWorker> {
        let mut decoder = DecodeWorker::from_this_program();
        decoder.timeout = self.timeout()?;
        decoder.memory_mib = self.media_memory;
        if common.threads.is_some() {
            decoder.threads = common.threads()?;
        }
        Ok(decoder)
    }

    fn timeout(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.media_timeout).ok().filter(|d| !d.is_zero()).ok_or_else(|| {
            bad_usage("--media-timeout", format!("{} is not a time limit", self.media_timeout), "give seconds above 0")
        })
    }
}
