//! `reel resize`: the size to which the reference resizes a picture.

use anyhow::Result;
use clap::Args;
use reel_media::resize::smart_resize;

use crate::common::Common;
use crate::fail::failed;
use crate::output;

/// Say to which size a picture is resized.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel resize --height 1080 --width 1920 --max-pixels 200704")]
pub struct Resize {
    /// Height of the picture in pixels
    #[arg(long, value_name = "H")]
    height: usize,
    /// Width of the picture in pixels
    #[arg(long, value_name = "W")]
    width: usize,
    /// Sides become multiples of this
    #[arg(long, value_name = "N", default_value_t = 28)]
    factor: usize,
    /// Fewest pixels of the result
    #[arg(long, value_name = "N", default_value_t = 3136)]
    min_pixels: u64,
    /// Most pixels of the result
    #[arg(long, value_name = "N", default_value_t = 12_845_056)]
    max_pixels: u64,
}

impl Resize {
    /// Prints the size.
    pub fn run(&self, common: &Common) -> Result<()> {
        if self.factor == 0 {
            return Err(failed("--factor", "0 is no factor", "use 28, Qwen2.5-VL's"));
        }
        let (height, width) =
            smart_resize(self.height, self.width, self.factor, self.min_pixels, self.max_pixels as f64)?;
        if height == 0 || width == 0 {
            let what = format!("{} x {} would shrink to {height} x {width}", self.height, self.width);
            return Err(failed("--max-pixels", what, "raise --max-pixels, or crop the picture"));
        }
        if common.json {
            output::json(&serde_json::json!({"height": height, "width": width}))
        } else {
            output::line(format!("{height} x {width}"))
        }
    }
}
