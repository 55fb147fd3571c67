//! Writing small films: synthetic clips for the demo, and films of every kind for tests.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{self, encoder};
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as Picture;
use ffmpeg::software::scaling;

use crate::resize::FrameView;
use crate::{MediaError, Result};

/// A kind of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
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

impl Codec {
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
        self.encoders().iter().copied().find(|name| encoder::find_by_name(name).is_some())
    }

    /// H.264 where this FFmpeg can write it, else MPEG-4.
    pub fn best() -> Self {
        if Self::H264.encoder().is_some() { Self::H264 } else { Self::Mpeg4 }
    }

    fn pixel(self) -> Pixel {
        if self == Self::Gif { Pixel::RGB8 } else { Pixel::YUV420P }
    }
}

/// How to write a film.
#[derive(Clone, Debug)]
pub struct Encoding {
    /// The compression.
    pub codec: Codec,
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

impl Encoding {
    /// Evenly spaced frames with the encoder's defaults.
    pub fn new(codec: Codec, fps: (i32, i32)) -> Self {
        Self { codec, fps, times: None, gop: None, b_frames: None, options: Vec::new() }
    }
}

/// Writes `frames` as a film to `path`, whose extension names the container (mp4, mkv, webm, avi, mov, gif). The file appears
/// under its name only when it is whole. One thread, so that the same frames give the same bytes.
///
/// Refused: an encoder that this FFmpeg lacks, a rate that is not positive, as many times as there are not frames, odd sides
/// for a codec that needs even ones.
pub fn encode(path: &Path, frames: FrameView<'_>, how: &Encoding) -> Result<()> {
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
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

fn check(frames: FrameView<'_>, how: &Encoding) -> Result<()> {
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
            format!("this FFmpeg has none of the encoders {}", how.codec.encoders().join(", ")),
            "use another codec, or install an FFmpeg with it",
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

fn write(path: &Path, aside: &Path, frames: FrameView<'_>, how: &Encoding) -> Result<()> {
    let cannot = |doing: &str| {
        let doing = doing.to_owned();
        move |e: ffmpeg::Error| {
            MediaError::file(
                path,
                format!("{doing} failed: {e}"),
                "check the folder, the free space, the size and the extension",
            )
        }
    };
    let mut output = ffmpeg::format::output(aside).map_err(cannot("creating the file"))?;
    let mut encoder = open_encoder(&output, frames.size(), how).map_err(cannot("opening the encoder"))?;
    let time_base = time_base(how);
    {
        let mut stream = output.add_stream_with(&encoder).map_err(cannot("adding the video stream"))?;
        stream.set_time_base(time_base);
        stream.set_avg_frame_rate(rate(how));
    }
    output.write_header().map_err(cannot("writing the header"))?;
    let stream_base = output.stream(0).map_or(time_base, |s| s.time_base());

    let pass_on = |encoder: &mut encoder::Video, output: &mut ffmpeg::format::context::Output| {
        let mut packet = ffmpeg::Packet::empty();
        while encoder.receive_packet(&mut packet).is_ok() {
            packet.set_stream(0);
            if how.times.is_none() && packet.duration() == 0 {
                packet.set_duration(1);
            }
            packet.rescale_ts(time_base, stream_base);
            packet.write_interleaved(output)?;
        }
        Ok(())
    };
    let mut picture = Pictures::new(frames.size(), how.codec.pixel()).map_err(cannot("preparing its frames"))?;
    for (i, rgb) in frames.iter().enumerate() {
        let time = how.times.as_ref().map_or(i as i64, |t| t[i]);
        let picture = picture.fill(rgb, time).map_err(cannot("converting a frame"))?;
        encoder.send_frame(picture).map_err(cannot("encoding"))?;
        pass_on(&mut encoder, &mut output).map_err(cannot("writing"))?;
    }
    encoder.send_eof().map_err(cannot("encoding"))?;
    pass_on(&mut encoder, &mut output).map_err(cannot("writing"))?;
    output.write_trailer().map_err(cannot("finishing the file"))
}

fn rate(how: &Encoding) -> ffmpeg::Rational {
    ffmpeg::Rational::new(how.fps.0, how.fps.1)
}

fn time_base(how: &Encoding) -> ffmpeg::Rational {
    if how.times.is_some() { ffmpeg::Rational::new(1, 1000) } else { rate(how).invert() }
}

fn open_encoder(
    output: &ffmpeg::format::context::Output,
    (height, width): (usize, usize),
    how: &Encoding,
) -> std::result::Result<encoder::Video, ffmpeg::Error> {
    let name = how.codec.encoder().ok_or(ffmpeg::Error::EncoderNotFound)?;
    let codec = encoder::find_by_name(name).ok_or(ffmpeg::Error::EncoderNotFound)?;
    let mut context = codec::context::Context::new_with_codec(codec);
    context.set_threading(codec::threading::Config::count(1));
    if output.format().flags().contains(ffmpeg::format::flag::Flags::GLOBAL_HEADER) {
        context.set_flags(codec::flag::Flags::GLOBAL_HEADER);
    }
    let mut video = context.encoder().video()?;
    let side = |n: usize| u32::try_from(n).map_err(|_| ffmpeg::Error::InvalidData);
    video.set_height(side(height)?);
    video.set_width(side(width)?);
    video.set_format(how.codec.pixel());
    video.set_time_base(time_base(how));
    video.set_frame_rate(Some(rate(how)));
    if let Some(gop) = how.gop {
        video.set_gop(gop);
    }
    if let Some(b) = how.b_frames {
        video.set_max_b_frames(b);
    }
    if how.codec == Codec::Mpeg4 {
        // Its default of 200 kbit/s would blur the clips.
        let flags = flags_of(&video);
        video.set_flags(flags | codec::flag::Flags::QSCALE);
        video.set_global_quality(2 * ffmpeg::ffi::FF_QP2LAMBDA);
    }
    let options: ffmpeg::Dictionary = how.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    video.open_as_with(codec, options)
}

fn flags_of(video: &encoder::video::Video) -> codec::flag::Flags {
    // SAFETY: the context is live; only a number is read.
    codec::flag::Flags::from_bits_truncate(unsafe { (*video.as_ptr()).flags } as u32)
}

/// Turns RGB frames into the encoder's pictures.
struct Pictures {
    rgb: Picture,
    converted: Picture,
    scaler: scaling::Context,
    row: usize,
}

impl Pictures {
    fn new((height, width): (usize, usize), to: Pixel) -> std::result::Result<Self, ffmpeg::Error> {
        let side = |n: usize| u32::try_from(n).map_err(|_| ffmpeg::Error::InvalidData);
        let (h, w) = (side(height)?, side(width)?);
        let flags = scaling::Flags::BICUBIC | scaling::Flags::ACCURATE_RND;
        Ok(Self {
            rgb: Picture::new(Pixel::RGB24, w, h),
            converted: Picture::empty(),
            scaler: scaling::Context::get(Pixel::RGB24, w, h, to, w, h, flags)?,
            row: width * 3,
        })
    }

    fn fill(&mut self, rgb: &[u8], time: i64) -> std::result::Result<&Picture, ffmpeg::Error> {
        let stride = self.rgb.stride(0);
        for (from, to) in rgb.chunks_exact(self.row).zip(self.rgb.data_mut(0).chunks_mut(stride)) {
            to[..self.row].copy_from_slice(from);
        }
        // A new buffer each time: the encoder may still hold the last one.
        self.converted = Picture::empty();
        self.scaler.run(&self.rgb, &mut self.converted)?;
        self.converted.set_pts(Some(time));
        Ok(&self.converted)
    }
}
