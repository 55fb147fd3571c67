//! The options of every command that reads films or pictures.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::worker::{self, DecodeWorker};
use serde::{Deserialize, Serialize};

use crate::common::Common;
use crate::fail::bad_usage;

/// Which frames to take and how large to make them.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct MediaFlags {
    /// Frame and pixel limits: videorft-train, video-r1-train, videorft-eval, qwen, uniform-16 or stride-1fps [default: videorft-train for sft and grpo, qwen elsewhere]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Take this many frames
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    nframes: Option<i64>,
    /// Take this many frames a second
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    fps: Option<f64>,
    /// Fewest frames at a rate
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    min_frames: Option<i64>,
    /// Most frames at a rate
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_frames: Option<i64>,
    /// Fewest pixels of a picture or frame
    #[arg(long, value_name = "N")]
    min_pixels: Option<u64>,
    /// Most pixels of a picture or frame
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    /// Most pixels of all frames of a film together
    #[arg(long, value_name = "N")]
    total_pixels: Option<u64>,
}

impl MediaFlags {
    /// The profile: the one asked for, else `default`.
    pub fn profile(&self, default: MediaProfile) -> Result<MediaProfile> {
        Ok(self.profile.as_deref().map_or(Ok(default), MediaProfile::parse)?)
    }

    /// The flags that stand above a profile and above the keys of a message part.
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

/// How long and how much memory decoding one file may take.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct WorkerFlags {
    /// Seconds that decoding one file may take
    #[arg(long, value_name = "S", default_value_t = worker::DEFAULT_TIMEOUT.as_secs_f64())]
    media_timeout: f64,
    /// MiB of memory that decoding one file may take
    #[arg(long, value_name = "MIB", default_value_t = worker::DEFAULT_MEMORY_MIB)]
    media_memory: u64,
}

impl Default for WorkerFlags {
    fn default() -> Self {
        Self { media_timeout: worker::DEFAULT_TIMEOUT.as_secs_f64(), media_memory: worker::DEFAULT_MEMORY_MIB }
    }
}

impl WorkerFlags {
    /// A decoder of films in worker processes of this very program.
    pub fn decoder(&self, common: &Common) -> Result<DecodeWorker> {
        let mut decoder = DecodeWorker::this_program();
        decoder.timeout = self.timeout()?;
        decoder.memory_mib = self.media_memory;
        if common.threads.is_some() {
            decoder.threads = common.threads()?;
        }
        Ok(decoder)
    }

    fn timeout(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.media_timeout).ok().filter(|d| !d.is_zero()).ok_or_else(|| {
            bad_usage("--media-timeout", format!("{} is no time", self.media_timeout), "give seconds above 0")
        })
    }
}
