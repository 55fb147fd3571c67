//! The size of the planned rows (training examples or prompts): tokens and patches as options, or a video whose frames
//! and sizes are computed by the functions that the planned command calls.

use std::fmt;

use anyhow::Result;
use clap::Args;
use reel_input::MediaOptions;
use reel_input::config::{Family, ModelConfig};
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::media::planned::{PlannedVideo, VideoShape, plan_video};
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::video_marks::TEXT_TOKENS_PER_FRAME_PAIR;
use reel_support::error::Error;
use reel_train::runs::plan::{RowShape, RowSizes};
use serde_json::{Value, json};

use crate::fail::usage_error;
use crate::media::{MediaFlags, media_error_to_usage_error};

/// Width and height, seconds and frames per second of a planned video if the options do not say them.
const DEFAULT_FRAME_SIZE: (usize, usize) = (1280, 720);
const DEFAULT_DURATION: f64 = 30.0;
const DEFAULT_VIDEO_FPS: f64 = 30.0;
/// Text tokens of a row with a planned video if `--tokens` does not say the number of all tokens.
const DEFAULT_TEXT_TOKENS: usize = 512;

/// Processor time of decoding a pixel of H.264, and of converting and resizing a pixel of a selected frame, in
/// nanoseconds. Measured on a Zen 4 processor: `tools/benches/results/amd-epyc/2026-12-01-video-peers-zen4.json`.
const DECODING_NANOSECONDS: f64 = 2.4;
const RESIZING_NANOSECONDS: f64 = 13.0;
/// Frames that are decoded for a selected one: half of a group of pictures of 250 frames, as x264 makes them.
const DECODED_PER_FRAME: u64 = 125;

/// Media options that concern images only.
const OF_IMAGES: [&str; 3] = ["--image-min-pixels", "--image-max-pixels", "--ignore-exif-orientation"];

/// Options for the size of the planned rows.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Plan options")]
pub struct RowSizeFlags {
    /// Tokens per row (training example or prompt), including the vision tokens of its media [default: those of the
    /// video, and 512 of text; in Qwen3-VL also those of the times]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Patches of the video in each row, instead of a video's size; 4 patches make a vision token [default: 0]
    #[arg(long, value_name = "N")]
    vision_patches: Option<usize>,
    /// Width and height of the video in each row, in pixels; frames are selected and resized as the command does [default
    /// with a media option: 1280x720]
    #[arg(long, value_name = "WxH", value_parser = frame_size)]
    frame_size: Option<(usize, usize)>,
    /// Seconds of the video in each row [default with a media option: 30]
    #[arg(long, value_name = "S", value_parser = positive_number)]
    duration: Option<f64>,
    /// Frame rate of the video in each row, in frames per second [default: 30]
    #[arg(long, value_name = "RATE", value_parser = positive_number)]
    source_fps: Option<f64>,
}

/// Parses a width and a height in pixels, such as `1280x720`.
fn frame_size(text: &str) -> Result<(usize, usize), String> {
    let side = |side: &str| side.parse().ok().filter(|&side| side > 0);
    let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
    sides.ok_or_else(|| "give WIDTHxHEIGHT in pixels, such as 1280x720".to_string())
}

fn positive_number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "give a number above 0".to_string())
}

/// The frame and pixel limits of the planned command.
#[derive(Clone, Debug)]
pub struct PlannedMedia {
    pub profile: MediaProfile,
    pub limits: MediaOverrides,
    /// The names of the media options that were given, such as `--nframes`.
    pub given: Vec<String>,
}

impl PlannedMedia {
    /// Returns the limits of `options`. `flags` are the media options that the user gave.
    pub fn new(options: &MediaOptions, flags: &MediaFlags) -> Self {
        let limits = options.overrides.or_fallback(options.trained);
        Self { profile: options.profile, limits, given: flags.given_options() }
    }
}

/// A planned row.
#[derive(Clone, Debug)]
pub struct PlannedRow {
    pub shape: RowShape,
    video: Option<DescribedVideo>,
    vision_tokens: usize,
}

/// The video of a planned row: as stored, and as the model sees it.
#[derive(Clone, Copy, Debug)]
struct DescribedVideo {
    stored: VideoShape,
    seconds: f64,
    seen: PlannedVideo,
    profile: MediaProfile,
}

impl RowSizeFlags {
    /// Returns the names of the given options.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--tokens", self.tokens.is_some()),
            ("--vision-patches", self.vision_patches.is_some()),
            ("--frame-size", self.frame_size.is_some()),
            ("--duration", self.duration.is_some()),
            ("--source-fps", self.source_fps.is_some()),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
    }

    /// Refuses options for the size of every row beside a data file, whose rows have their own sizes.
    pub fn refuse_beside_data(&self) -> Result<()> {
        let what = "sets the size of every row, but the rows of --data have their own sizes";
        self.given().first().map_or(Ok(()), |name| Err(usage_error(name, what, "give one of the two")))
    }

    /// Returns the row of these sizes. A video is planned if a media option or a size of the video is given.
    ///
    /// # Errors
    /// No size is given, options contradict each other, or no frames can be selected.
    pub fn row(
        &self,
        config: &ModelConfig,
        processor: &ImageProcessorSettings,
        media: &PlannedMedia,
        rows: &str,
    ) -> Result<PlannedRow> {
        let of_video = self.given().into_iter().filter(|name| !["--tokens", "--vision-patches"].contains(name));
        let given: Vec<&str> = of_video.chain(media.given.iter().map(String::as_str)).collect();
        if let Some(name) = given.iter().find(|name| OF_IMAGES.contains(name)) {
            return Err(usage_error(name, "concerns images, but the planned rows have none", "leave it out"));
        }
        let unit = config.vision.patches_per_vision_token();
        if let (Some(_), Some(name)) = (self.vision_patches, given.first()) {
            let what = "selects or sizes the frames of a video, but --vision-patches gives its patches";
            return Err(usage_error(name, what, "give one of the two"));
        }
        if given.is_empty() {
            let patches = self.vision_patches.unwrap_or(0);
            let Some(tokens) = self.tokens else {
                let help = format!("give the number of tokens of {rows}, or a video (--frame-size WxH, --duration S)");
                return Err(usage_error("--tokens", "is missing", help));
            };
            let shape = RowShape::new(tokens, patches, config)?;
            return Ok(PlannedRow { shape, video: None, vision_tokens: patches / unit });
        }
        let (width, height) = self.frame_size.unwrap_or(DEFAULT_FRAME_SIZE);
        let (seconds, video_fps) =
            (self.duration.unwrap_or(DEFAULT_DURATION), self.source_fps.unwrap_or(DEFAULT_VIDEO_FPS));
        let stored = VideoShape { total_frames: (seconds * video_fps).round() as u64, video_fps, height, width };
        let seen = plan_video(stored, media.profile, &media.limits, processor).map_err(|e| {
            let is_about = |name: &str| e.diagnostic.location.contains(name);
            match () {
                () if is_about("total_frames") => about_option("--duration", e),
                () if is_about("height and width") => about_option("--frame-size", e),
                () => media_error_to_usage_error(e),
            }
        })?;
        let vision_tokens = seen.grid_thw.iter().product::<usize>() / unit;
        let text_tokens = match config.family() {
            Family::Qwen25Vl => DEFAULT_TEXT_TOKENS,
            Family::Qwen3Vl => DEFAULT_TEXT_TOKENS + seen.grid_thw[0] * TEXT_TOKENS_PER_FRAME_PAIR,
        };
        let tokens = self.tokens.unwrap_or(vision_tokens + text_tokens);
        if tokens <= vision_tokens {
            let what = format!("is {tokens}, but the video alone has {vision_tokens} vision tokens");
            return Err(usage_error("--tokens", what, "raise it, leave it out, or take fewer frames or pixels"));
        }
        let shape = RowShape::with_video(tokens, seen.grid_thw)?;
        let video = DescribedVideo { stored, seconds, seen, profile: media.profile };
        Ok(PlannedRow { shape, video: Some(video), vision_tokens })
    }
}

fn about_option(option: &str, e: Error) -> anyhow::Error {
    usage_error(option, e.diagnostic.what, e.diagnostic.help)
}

impl PlannedRow {
    /// The sizes of rows that all have the size of this one.
    pub fn sizes(&self) -> RowSizes {
        RowSizes::of_shape(&self.shape)
    }

    /// Returns the row with only `tokens` tokens, at most as many as it has. The text becomes shorter.
    ///
    /// # Errors
    /// The vision tokens do not fit.
    pub fn shortened_to(mut self, tokens: usize, config: &ModelConfig) -> Result<Self> {
        if self.video.is_none() {
            let patches = self.vision_tokens * config.vision.patches_per_vision_token();
            return Ok(Self { shape: RowShape::new(tokens, patches, config)?, ..self });
        }
        if tokens <= self.vision_tokens {
            let what = format!("leaves {tokens} tokens for a prompt of {} vision tokens", self.vision_tokens);
            return Err(usage_error("--max-model-len", what, "raise it, or take fewer frames or pixels"));
        }
        self.shape.tokens = tokens;
        Ok(self)
    }

    /// Processor seconds for decoding and resizing the frames of the planned video; `None` without one.
    pub fn decoding_seconds(&self) -> Option<f64> {
        let DescribedVideo { stored, seen, .. } = self.video?;
        let needed = (seen.frames as u64).saturating_mul(DECODED_PER_FRAME).min(stored.total_frames);
        let pixels = (stored.height * stored.width) as f64;
        Some(1e-9 * pixels * (needed as f64 * DECODING_NANOSECONDS + seen.frames as f64 * RESIZING_NANOSECONDS))
    }

    /// The planned video as JSON; null without one.
    pub fn video_json(&self) -> Value {
        let Some(DescribedVideo { stored, seconds, seen, profile }) = self.video else { return Value::Null };
        json!({
            "frames": seen.frames, "width": seen.width, "height": seen.height, "grid_thw": seen.grid_thw,
            "profile": profile, "frame_size": [stored.width, stored.height], "duration_seconds": seconds,
            "source_fps": stored.video_fps,
        })
    }
}

impl fmt::Display for PlannedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tokens, vision) = (self.shape.tokens, self.vision_tokens);
        write!(f, "{tokens} tokens, {} patches", self.sizes().patches[1])?;
        if vision > 0 {
            write!(f, " ({vision} vision tokens and {} of text)", tokens - vision)?;
        }
        let Some(DescribedVideo { stored, seconds, seen, profile }) = self.video else { return Ok(()) };
        write!(
            f,
            ", {} frames of {} x {} pixels from a video of {} x {} pixels, {seconds} s at {} frames/s (profile {profile})",
            seen.frames, seen.width, seen.height, stored.width, stored.height, stored.video_fps
        )
    }
}
