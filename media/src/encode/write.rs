//! Writing through FFmpeg.

#![allow(unsafe_code)]

use std::path::Path;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{self, encoder};
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as AvFrame;
use ffmpeg::software::scaling;

use super::{VideoCodec, VideoEncoding};
use crate::resize::FrameView;
use crate::{MediaError, Result};

/// Writes `frames` to the file `aside`; `path` is for messages.
pub(super) fn write(path: &Path, aside: &Path, frames: FrameView<'_>, how: &VideoEncoding) -> Result<()> {
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
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
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
    let mut picture = FrameConverter::new(frames.size(), pixel(how.codec)).map_err(cannot("preparing its frames"))?;
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

fn pixel(codec: VideoCodec) -> Pixel {
    if codec == VideoCodec::Gif { Pixel::RGB8 } else { Pixel::YUV420P }
}

fn rate(how: &VideoEncoding) -> ffmpeg::Rational {
    ffmpeg::Rational::new(how.fps.0, how.fps.1)
}

fn time_base(how: &VideoEncoding) -> ffmpeg::Rational {
    if how.times.is_some() { ffmpeg::Rational::new(1, 1000) } else { rate(how).invert() }
}

fn open_encoder(
    output: &ffmpeg::format::context::Output,
    (height, width): (usize, usize),
    how: &VideoEncoding,
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
    video.set_format(pixel(how.codec));
    video.set_time_base(time_base(how));
    video.set_frame_rate(Some(rate(how)));
    if let Some(gop) = how.gop {
        video.set_gop(gop);
    }
    if let Some(b) = how.b_frames {
        video.set_max_b_frames(b);
    }
    if how.codec == VideoCodec::Mpeg4 {
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
struct FrameConverter {
    rgb: AvFrame,
    converted: AvFrame,
    scaler: scaling::Context,
    row: usize,
}

impl FrameConverter {
    fn new((height, width): (usize, usize), to: Pixel) -> std::result::Result<Self, ffmpeg::Error> {
        let side = |n: usize| u32::try_from(n).map_err(|_| ffmpeg::Error::InvalidData);
        let (h, w) = (side(height)?, side(width)?);
        let flags = scaling::Flags::BICUBIC | scaling::Flags::ACCURATE_RND;
        Ok(Self {
            rgb: AvFrame::new(Pixel::RGB24, w, h),
            converted: AvFrame::empty(),
            scaler: scaling::Context::get(Pixel::RGB24, w, h, to, w, h, flags)?,
            row: width * 3,
        })
    }

    fn fill(&mut self, rgb: &[u8], time: i64) -> std::result::Result<&AvFrame, ffmpeg::Error> {
        let stride = self.rgb.stride(0);
        for (from, to) in rgb.chunks_exact(self.row).zip(self.rgb.data_mut(0).chunks_mut(stride)) {
            to[..self.row].copy_from_slice(from);
        }
        // A new buffer each time: the encoder may still hold the last one.
        self.converted = AvFrame::empty();
        self.scaler.run(&self.rgb, &mut self.converted)?;
        self.converted.set_pts(Some(time));
        Ok(&self.converted)
    }
}
