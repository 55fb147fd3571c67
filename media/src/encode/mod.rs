//! Writing small films: synthetic clips for the demo, and films of every kind for tests.

#[cfg(feature = "ffmpeg")]
mod write;

use std::path::{Path, PathBuf};

use crate::resize::FrameView;
use crate::{MediaError, Result, libraries};

/// A kind of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    /// H.264, by libx264.
    H264,
    /// HEVC, by libx265.
    Hevc,
    /// VP9, by libvpx.
    Vp9,
    /// AV1, by libsvtav1 or libaom.
    Av1,
    /// MPEG-4 part 2, by FFmpeg itself.
    Mpeg4,
    /// Animated GIF, by FFmpeg itself (256 fixed colours).
    Gif,
}

impl VideoCodec {
    /// FFmpeg's encoders for it, the preferred first.
    fn encoders(self) -> &'static [&'static str] {
        match self {
            Self::H264 => &["libx264"],
            Self::Hevc => &["libx265"],
            Self::Vp9 => &["libvpx-vp9"],
            Self::Av1 => &["libsvtav1", "libaom-av1"],
            Self::Mpeg4 => &["mpeg4"],
            Self::Gif => &["gif"],
        }
    }

    /// The encoder that this FFmpeg has for it.
    pub fn encoder(self) -> Option<&'static str> {
        self.encoders().iter().copied().find(|name| libraries::has_encoder(name))
    }

    /// H.264 where this FFmpeg can write it, else MPEG-4.
    pub fn best() -> Self {
        if Self::H264.encoder().is_some() { Self::H264 } else { Self::Mpeg4 }
    }
}

/// How to write a film.
#[derive(Clone, Debug)]
pub struct VideoEncoding {
    /// The compression.
    pub codec: VideoCodec,
    /// Frames a second as numerator and denominator.
    pub fps: (i32, i32),
    /// When each frame is shown, in milliseconds and ascending; without it they are evenly spaced.
    pub times: Option<Vec<i64>>,
    /// Frames between key frames; without it the encoder's own number.
    pub gop: Option<u32>,
    /// Most B-frames in a row; without it the encoder's own number.
    pub b_frames: Option<usize>,
    /// The encoder's private options (`preset`, `x264-params`, ...).
    pub options: Vec<(String, String)>,
}

impl VideoEncoding {
    /// Evenly spaced frames with the encoder's defaults.
    pub fn new(codec: VideoCodec, fps: (i32, i32)) -> Self {
        Self { codec, fps, times: None, gop: None, b_frames: None, options: Vec::new() }
    }
}

/// Writes `frames` as a film to `path`, whose extension names the container (mp4, mkv, webm, avi, mov, gif). The file appears
/// under its name only when it is whole. One thread, so that the same frames give the same bytes.
///
/// Refused: an encoder that this FFmpeg lacks, a rate that is not positive, as many times as there are not frames, odd sides
/// for a codec that needs even ones.
pub fn encode_video(path: &Path, frames: FrameView<'_>, how: &VideoEncoding) -> Result<()> {
    check(frames, how)?;
    let aside = aside(path)?;
    let written = write(path, &aside, frames, how);
    let renamed = written.and_then(|()| {
        std::fs::rename(&aside, path).map_err(|source| MediaError::Io { path: path.to_owned(), source })
    });
    if renamed.is_err() {
        // It may not be there yet; what matters is that nothing half-written stays.
        let _ = std::fs::remove_file(&aside);
    }
    renamed
}

fn check(frames: FrameView<'_>, how: &VideoEncoding) -> Result<()> {
    if how.fps.0 <= 0 || how.fps.1 <= 0 {
        return Err(MediaError::setting(
            "fps",
            format!("{}/{} is not a rate", how.fps.0, how.fps.1),
            "give a positive rate",
        ));
    }
    let unfit = |times: &Vec<i64>| times.len() != frames.frames() || times.windows(2).any(|w| w[0] >= w[1]);
    if let Some(times) = how.times.as_ref().filter(|times| unfit(times)) {
        return Err(MediaError::setting(
            "times",
            format!("{} times for {} frames, or not ascending", times.len(), frames.frames()),
            "give one ascending time a frame",
        ));
    }
    if how.codec.encoder().is_none() {
        return Err(MediaError::setting(
            "codec",
            format!("{} has none of the encoders {}", libraries::BUILD_NAME, how.codec.encoders().join(", ")),
            "use another codec, or an FFmpeg with it",
        ));
    }
    Ok(())
}

/// A name beside `path` with the same extension, which FFmpeg needs to know the container.
fn aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|n| n.to_str());
    match (name, path.to_str()) {
        (Some(name), Some(_)) => Ok(path.with_file_name(format!(".unfinished-{}-{name}", std::process::id()))),
        _ => Err(MediaError::file(path, "is not a UTF-8 file name", "choose another name")),
    }
}

#[cfg(feature = "ffmpeg")]
use write::write;

/// Never comes here: without FFmpeg there is no encoder, which `check` has said.
#[cfg(not(feature = "ffmpeg"))]
fn write(path: &Path, _aside: &Path, _frames: FrameView<'_>, _how: &VideoEncoding) -> Result<()> {
    Err(crate::video::absent(path))
}
