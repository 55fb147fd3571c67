//! `reel frames`: shows which frames of a video are selected, and decodes them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_input::config::Family;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::selection::select_frames;
use reel_input::media::video::DecodedFrameSize;
use reel_input::tensor_file::{StoredTensor, write_safetensors};
use reel_tools::measure::trace;

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::media::{MediaFlags, WorkerFlags, media_error_to_usage_error};
use crate::output;

/// Show which frames of a video are selected, and decode them.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel frames --total-frames 300 --video-fps 30 --nframes 8")]
pub struct FramesArgs {
    /// Video file; its frames are decoded at their stored size, before any resize
    #[arg(long, value_name = "FILE", required_unless_present = "total_frames")]
    video: Option<PathBuf>,
    /// Number of frames of the video, given instead of --video
    #[arg(long, value_name = "N", conflicts_with = "video", requires = "video_fps")]
    total_frames: Option<u64>,
    /// Frame rate of the video in frames per second, given instead of --video
    #[arg(long, value_name = "RATE", conflicts_with = "video", requires = "total_frames")]
    video_fps: Option<f64>,
    /// Safetensors file for the decoded frames: `frames` u8 [T,H,W,3] and `indices` i64 [T]
    #[arg(long, value_name = "F.safetensors", requires = "video")]
    out: Option<PathBuf>,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

/// Whether a path is an http or https address.
fn is_address(path: &Path) -> bool {
    let text = path.to_string_lossy();
    ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
}

impl FramesArgs {
    /// Selects frames, decodes them if there is a video, and prints the selection.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.media.refuse_prompt_form()?;
        let profile = self.media.profile(MediaProfile::Qwen)?;
        match (&self.video, self.total_frames, self.video_fps) {
            (None, Some(_), Some(_)) if self.out.is_some() => Err(usage_error(
                "--out",
                "is for the frames of a video, but no video is given",
                "give --video FILE, or remove --out",
            )),
            (None, Some(total), Some(fps)) => {
                // With `--total-frames` the command shows what qwen-vl-utils does with any limits, so the limits are
                // not checked.
                let overrides = self.media.unchecked_limit_overrides();
                let choice = select_frames(total, fps, profile, &overrides).map_err(media_error_to_usage_error)?;
                self.print(common, &choice.indices, choice.sample_fps)
            }
            (Some(video), ..) if is_address(video) => {
                Err(failed(video.display(), "is an address, but reel frames reads files", "download the video first"))
            }
            (Some(video), ..) => self.decode(common, video, profile, &self.media.limit_overrides(profile)?),
            _ => Err(usage_error(
                "--video",
                "a video is needed",
                "give --video FILE, or --total-frames with --video-fps",
            )),
        }
    }

    /// Decodes the selected frames and writes them to `--out`. Without `--out` frames are decoded only to report a
    /// damaged video as an error; they are then resized as for a model, to need less memory.
    fn decode(
        &self,
        common: &CommonOptions,
        video: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
    ) -> Result<()> {
        let size =
            if self.out.is_some() { DecodedFrameSize::Original } else { DecodedFrameSize::Resized(Family::Qwen25Vl) };
        let frames = trace::span("decode", || {
            self.worker
                .decode_worker(common)?
                .decode_at_size(video, profile, overrides, size)
                .map_err(media_error_to_usage_error)
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
                output::print_line(format!("{}: {n} frames of {} x {}", to.display(), frames.height, frames.width))
            }
            Some(_) if !common.json => Ok(()),
            _ => self.print(common, &frames.indices, frames.sample_fps),
        }
    }

    fn print(&self, common: &CommonOptions, indices: &[u64], sample_fps: f64) -> Result<()> {
        if common.json {
            let n = indices.len();
            return output::print_json(
                &serde_json::json!({"nframes": n, "indices": indices, "sample_fps": sample_fps}),
            );
        }
        let list: Vec<String> = indices.iter().map(u64::to_string).collect();
        output::print_line(format!("{} frames at {sample_fps:.4} frames/s: {}", list.len(), list.join(" ")))
    }
}
