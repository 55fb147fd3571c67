//! Options for writing a video: codec, frame rate, key frames.

use crate::media::libraries;

/// A video codec that [`super::encode_video`] can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    /// H.264, encoded by libx264.
    H264,
    /// HEVC, encoded by libx265.
    Hevc,
    /// VP9, encoded by libvpx.
    Vp9,
    /// AV1, encoded by libsvtav1 or libaom.
    Av1,
    /// MPEG-4 part 2, encoded by FFmpeg itself.
    Mpeg4,
    /// Animated GIF, encoded by FFmpeg itself (256 fixed colours).
    Gif,
}

impl VideoCodec {
    /// Names of FFmpeg's encoders for this codec, in order of preference.
    pub(super) fn ffmpeg_encoder_names(self) -> &'static [&'static str] {
        match self {
            Self::H264 => &["libx264"],
            Self::Hevc => &["libx265"],
            Self::Vp9 => &["libvpx-vp9"],
            Self::Av1 => &["libsvtav1", "libaom-av1"],
            Self::Mpeg4 => &["mpeg4"],
            Self::Gif => &["gif"],
        }
    }

    /// Name of FFmpeg's preferred encoder for this codec among those that the linked FFmpeg libraries have.
    pub fn available_encoder_name(self) -> Option<&'static str> {
        self.ffmpeg_encoder_names().iter().copied().find(|name| libraries::has_encoder(name))
    }

    /// H.264 if the linked FFmpeg libraries can encode it, otherwise MPEG-4.
    pub fn best_available_codec() -> Self {
        if Self::H264.available_encoder_name().is_some() { Self::H264 } else { Self::Mpeg4 }
    }
}

/// Options for writing a video.
#[derive(Clone, Debug)]
pub struct VideoEncodingOptions {
    /// The codec.
    pub codec: VideoCodec,
    /// Frames per second as numerator and denominator.
    pub fps: (i32, i32),
    /// Presentation time of each frame in milliseconds, ascending; `None`: evenly spaced.
    pub times_ms: Option<Vec<i64>>,
    /// Frames from one key frame to the next; `None`: the encoder's default.
    pub gop: Option<u32>,
    /// Maximum number of consecutive B-frames; `None`: the encoder's default.
    pub b_frames: Option<usize>,
    /// Options of this one encoder, as FFmpeg names and values (`preset`, `x264-params`, …).
    pub options: Vec<(String, String)>,
}

impl VideoEncodingOptions {
    /// Options for evenly spaced frames with the encoder's defaults.
    pub fn new(codec: VideoCodec, fps_fraction: (i32, i32)) -> Self {
        Self { codec, fps: fps_fraction, times_ms: None, gop: None, b_frames: None, options: Vec::new() }
    }
}
