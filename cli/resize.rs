//! `reel resize`: the size to which the image processor of a model resizes an image (smart resize).

use anyhow::Result;
use clap::Args;
use reel_input::media::resize::smart_resize;
use reel_support::error::{Error, Kind, MediaFailure};

use crate::common::CommonOptions;
use crate::fail::{UsageError, usage_error};
use crate::media::media_error_to_usage_error;
use crate::output;

/// Show to which height and width an image is resized: multiples of the factor, within the pixel limits, nearly the
/// same aspect ratio.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel resize --height 1080 --width 1920 --max-pixels 200704")]
pub struct ResizeArgs {
    /// Height of the image in pixels
    #[arg(long, value_name = "H")]
    height: usize,
    /// Width of the image in pixels
    #[arg(long, value_name = "W")]
    width: usize,
    /// Height and width of the result are multiples of N pixels: 28 for Qwen2.5-VL, 32 for Qwen3-VL
    #[arg(long, value_name = "N", default_value_t = 28)]
    factor: usize,
    /// Minimum pixels (height x width) of the result
    #[arg(long, value_name = "N", default_value_t = 3136)]
    min_pixels: u64,
    /// Maximum pixels (height x width) of the result
    #[arg(long, value_name = "N", default_value_t = 12_845_056)]
    max_pixels: u64,
}

/// Converts an error about sizes to a usage error. If the error is about one setting, it names the command-line
/// option.
fn usage_error_of_sizes(e: Error) -> anyhow::Error {
    match e.kind == Kind::Media(MediaFailure::Setting) && !e.diagnostic.location.contains(' ') {
        true => media_error_to_usage_error(e),
        false => UsageError(e.to_string()).into(),
    }
}

impl ResizeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        if self.factor == 0 {
            return Err(usage_error("--factor", "0 is not a factor", "give 28 for Qwen2.5-VL, 32 for Qwen3-VL"));
        }
        let (height, width) =
            smart_resize(self.height, self.width, self.factor, self.min_pixels, self.max_pixels as f64)
                .map_err(usage_error_of_sizes)?;
        if height == 0 || width == 0 {
            let what = format!("{} x {} would be resized to {height} x {width}", self.height, self.width);
            return Err(usage_error("--max-pixels", what, "raise --max-pixels, or crop the image"));
        }
        if common.json {
            output::print_json(&serde_json::json!({"height": height, "width": width}))
        } else {
            output::print_line(format!("{height} x {width}"))
        }
    }
}
