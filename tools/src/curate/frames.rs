//! The frames that models see: about one per second of video, each sent as a JPEG image after a line of text with its
//! time. For a question about an image, the image is sent without a time.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_input::config::Family;
use reel_input::media::frames::{FrameBuf, FrameView};
use reel_input::media::image::{self, ExifOrientation};
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::resize::pillow_bicubic;
use reel_input::media::strip::encode_jpeg;
use reel_input::media::worker::DecodeWorker;
use reel_support::client::image_part;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Result;

/// How many frames of a video models see, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrameSettings {
    /// Frames per second of video.
    pub fps: f64,
    /// Maximum number of frames of a video. From a longer video, this number of frames is taken, evenly spaced from
    /// the first to the last frame.
    pub max_frames: u32,
    /// Maximum number of pixels (height × width) of a frame or image. Larger frames and images are shrunk.
    pub max_pixels: u64,
}

impl Default for FrameSettings {
    /// One frame per second, at most 64, of at most 512 × 512 pixels.
    fn default() -> Self {
        Self { fps: 1.0, max_frames: 64, max_pixels: 512 * 512 }
    }
}

/// Frames and their times.
#[derive(Debug)]
pub struct TimedFrames {
    /// The pixels.
    pub frames: FrameBuf,
    /// The time of each frame in seconds; empty for an image.
    pub seconds: Vec<f64>,
}

/// Minimum pixels of a frame. Smaller frames are enlarged, as Qwen2.5-VL's processor does.
const MIN_PIXELS: u64 = 28 * 28;

/// Decodes the frames of a video, or an image.
///
/// # Errors
/// The file cannot be decoded.
pub fn read_frames(
    path: &Path,
    is_video: bool,
    settings: &FrameSettings,
    decoder: &DecodeWorker,
) -> Result<TimedFrames> {
    if !is_video {
        let image = image::open(path, ExifOrientation::Apply)?;
        let pixels = (image.height * image.width) as f64;
        let scale = (settings.max_pixels as f64 / pixels).sqrt().min(1.0);
        let shrunk = |side: usize| ((side as f64 * scale) as usize).max(1);
        let frames = match scale < 1.0 {
            true => pillow_bicubic(image.view()?, (shrunk(image.height), shrunk(image.width)))?,
            false => FrameBuf { data: image.data.into(), frames: 1, height: image.height, width: image.width },
        };
        return Ok(TimedFrames { frames, seconds: Vec::new() });
    }
    let overrides = MediaOverrides {
        fps: Some(settings.fps),
        min_frames: Some(2),
        max_frames: Some(settings.max_frames.into()),
        min_pixels: Some(MIN_PIXELS),
        max_pixels: Some(settings.max_pixels),
        total_pixels: Some(settings.max_pixels.saturating_mul(settings.max_frames.into())),
        ..MediaOverrides::default()
    };
    let video = decoder.decode_resized(path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &overrides)?;
    let seconds = video.indices.iter().map(|&index| index as f64 / video.video_fps).collect();
    let frames = FrameBuf {
        data: video.data.to_vec().into(),
        frames: video.indices.len(),
        height: video.height,
        width: video.width,
    };
    Ok(TimedFrames { frames, seconds })
}

impl TimedFrames {
    /// The frames as parts of a chat message.
    ///
    /// # Errors
    /// A frame cannot be encoded.
    pub fn message_parts(&self) -> Result<Vec<Value>> {
        let view: FrameView<'_> = self.frames.view()?;
        let mut parts = Vec::with_capacity(2 * view.frame_count());
        for (i, frame) in view.iter().enumerate() {
            if let Some(seconds) = self.seconds.get(i) {
                parts.push(json!({"type": "text", "text": format!("Frame at {seconds:.1} s:")}));
            }
            let jpeg = encode_jpeg(frame, view.height_and_width())?;
            parts.push(image_part("image/jpeg", &STANDARD.encode(jpeg)));
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_their_times_and_an_image_has_none() {
        let frames = FrameBuf { data: vec![9; 2 * 4 * 6 * 3].into(), frames: 2, height: 4, width: 6 };
        let parts = TimedFrames { frames, seconds: vec![0.0, 1.0333] }.message_parts().unwrap();
        let texts: Vec<_> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        assert_eq!(texts, ["Frame at 0.0 s:", "Frame at 1.0 s:"]);
        let url = parts[3]["image_url"]["url"].as_str().unwrap();
        assert!(url.starts_with("data:image/jpeg;base64,"), "{url}");
        let read = image::from_data_uri(url, ExifOrientation::Apply).unwrap();
        assert_eq!((read.height, read.width), (4, 6));
    }

    #[test]
    fn large_images_are_shrunk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let png = reel_input::media::strip::thumbnail(&vec![7; 100 * 50 * 3], (100, 50), 100).unwrap();
        std::fs::write(&path, png.bytes).unwrap();
        let settings = FrameSettings { max_pixels: 500, ..FrameSettings::default() };
        let read = |settings| read_frames(&path, false, settings, &DecodeWorker::from_this_program()).unwrap();
        let small = read(&settings);
        assert!(small.frames.height * small.frames.width <= 500 && small.seconds.is_empty());
        assert_eq!((small.frames.height, small.frames.width), (31, 15));
        assert_eq!(read(&FrameSettings::default()).frames.height, 100);
        assert_eq!(small.message_parts().unwrap().len(), 1);
    }
}
