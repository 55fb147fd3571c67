//! Encodes and writes a video with FFmpeg's libraries.

#![allow(unsafe_code)]

use std::path::Path;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{self, encoder};
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as AvFrame;
use ffmpeg::software::scaling;

use super::encoding::{VideoCodec, VideoEncodingOptions};
use crate::error::{Error, Result};
use crate::media::frames::FrameView;

/// Encodes `frames` into the file `temporary`. Error messages name `path`, the file that the caller asked for.
pub(super) fn encode_to_file(
    path: &Path,
    temporary: &Path,
    frames: FrameView<'_>,
    encoding: &VideoEncodingOptions,
) -> Result<()> {
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |e: ffmpeg::Error| {
            Error::media_file(
                path,
                format!("{operation} failed: {e}"),
                "check that the folder exists, the disk has space, and the codec supports the frame size and file extension",
            )
        }
    };
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    let mut output = ffmpeg::format::output(temporary).map_err(failed("creating the file"))?;
    let mut encoder =
        open_encoder(&output, frames.height_and_width(), encoding).map_err(failed("opening the encoder"))?;
    let time_base = time_base(encoding);
    {
        let mut stream = output.add_stream_with(&encoder).map_err(failed("adding the video stream"))?;
        stream.set_time_base(time_base);
        stream.set_avg_frame_rate(frame_rate(encoding));
    }
    output.write_header().map_err(failed("writing the header"))?;
    let stream_base = output.stream(0).map_or(time_base, |s| s.time_base());

    let write_packets = |encoder: &mut encoder::Video, output: &mut ffmpeg::format::context::Output| {
        let mut packet = ffmpeg::Packet::empty();
        while encoder.receive_packet(&mut packet).is_ok() {
            packet.set_stream(0);
            if encoding.times_ms.is_none() && packet.duration() == 0 {
                packet.set_duration(1);
            }
            packet.rescale_ts(time_base, stream_base);
            packet.write_interleaved(output)?;
        }
        Ok(())
    };
    let mut converter = FrameConverter::new(frames.height_and_width(), pixel_format(encoding.codec))
        .map_err(failed("preparing its frames"))?;
    for (i, rgb) in frames.iter().enumerate() {
        let time = encoding.times_ms.as_ref().map_or(i as i64, |t| t[i]);
        let frame = converter.convert(rgb, time).map_err(failed("converting a frame"))?;
        encoder.send_frame(frame).map_err(failed("encoding"))?;
        write_packets(&mut encoder, &mut output).map_err(failed("writing"))?;
    }
    encoder.send_eof().map_err(failed("encoding"))?;
    write_packets(&mut encoder, &mut output).map_err(failed("writing"))?;
    output.write_trailer().map_err(failed("finishing the file"))
}

fn pixel_format(codec: VideoCodec) -> Pixel {
    if codec == VideoCodec::Gif { Pixel::RGB8 } else { Pixel::YUV420P }
}

fn frame_rate(encoding: &VideoEncodingOptions) -> ffmpeg::Rational {
    ffmpeg::Rational::new(encoding.fps.0, encoding.fps.1)
}

fn time_base(encoding: &VideoEncodingOptions) -> ffmpeg::Rational {
    if encoding.times_ms.is_some() { ffmpeg::Rational::new(1, 1000) } else { frame_rate(encoding).invert() }
}

fn open_encoder(
    output: &ffmpeg::format::context::Output,
    (height, width): (usize, usize),
    encoding: &VideoEncodingOptions,
) -> std::result::Result<encoder::Video, ffmpeg::Error> {
    let name = encoding.codec.available_encoder_name().ok_or(ffmpeg::Error::EncoderNotFound)?;
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
    video.set_format(pixel_format(encoding.codec));
    video.set_time_base(time_base(encoding));
    video.set_frame_rate(Some(frame_rate(encoding)));
    if let Some(gop) = encoding.gop {
        video.set_gop(gop);
    }
    if let Some(b) = encoding.b_frames {
        video.set_max_b_frames(b);
    }
    if encoding.codec == VideoCodec::Mpeg4 {
        // The encoder's default of 200 kbit/s would blur the clips, so the quantiser is fixed instead.
        let flags = codec_flags(&video);
        video.set_flags(flags | codec::flag::Flags::QSCALE);
        video.set_global_quality(2 * ffmpeg::ffi::FF_QP2LAMBDA);
    }
    // libx264 0.164 reads uninitialised memory in its macroblock tree, so its output would differ from run to run.
    let deterministic = (encoding.codec == VideoCodec::H264).then_some(("mbtree", "0"));
    let given = encoding.options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let options: ffmpeg::Dictionary = deterministic.into_iter().chain(given).collect();
    video.open_as_with(codec, options)
}

fn codec_flags(video: &encoder::video::Video) -> codec::flag::Flags {
    // SAFETY: the context is alive; only a number is read.
    codec::flag::Flags::from_bits_truncate(unsafe { (*video.as_ptr()).flags } as u32)
}

/// Converts RGB frames to the pixel format of the encoder.
struct FrameConverter {
    rgb: AvFrame,
    converted: AvFrame,
    scaler: scaling::Context,
    /// Length of an RGB row in bytes.
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

    fn convert(&mut self, rgb: &[u8], time: i64) -> std::result::Result<&AvFrame, ffmpeg::Error> {
        let stride = self.rgb.stride(0);
        for (from, to) in rgb.chunks_exact(self.row).zip(self.rgb.data_mut(0).chunks_mut(stride)) {
            to[..self.row].copy_from_slice(from);
        }
        // Each frame gets a new buffer, because the encoder may still hold the previous one.
        self.converted = AvFrame::empty();
        self.scaler.run(&self.rgb, &mut self.converted)?;
        self.converted.set_pts(Some(time));
        Ok(&self.converted)
    }
}
