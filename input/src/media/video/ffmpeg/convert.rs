//! Converts a decoded frame to RGB: colour conversion by swscale, then the rotation that the container states, then
//! the resize.

use std::path::Path;
use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as AvFrame;
use ffmpeg::software::scaling::Flags;

use super::error::ffmpeg_error;
use crate::error::{Error, Result};
use crate::media::resize::{FrameResizer, ResizeTarget};

/// The rotation by a multiple of 90 degrees, and the optional mirroring, that a player must apply to coded frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotation {
    /// Whether rows and columns are exchanged.
    transpose: bool,
    /// Whether the frame is mirrored left to right, after the transposition.
    flip_x: bool,
    /// Whether the frame is mirrored top to bottom, after the transposition.
    flip_y: bool,
}

impl Rotation {
    /// Parses a display matrix: nine native-endian i32 `a b u / c d v / x y w` (ISO 14496-12, 6.2.2) that map a pixel
    /// position `(p, q)` to `(a p + c q, b p + d q)`. A rotation that is not by a multiple of 90 degrees is ignored, as
    /// in decord.
    pub(super) fn from_display_matrix(bytes: &[u8]) -> Self {
        let m: Vec<f64> = bytes
            .chunks_exact(4)
            .filter_map(|four| Some(f64::from(i32::from_ne_bytes(four.try_into().ok()?))))
            .collect();
        let [a, b, _, c, d, ..] = m[..] else { return Self::default() };
        // `off / main` is the tangent of the angle to the axis; 0.0175 = tan(1 degree), so a deviation of up to one
        // degree is accepted.
        let is_axis = |main: f64, off: f64| off.abs() < main.abs() * 0.0175;
        if is_axis(a, b) && is_axis(d, c) {
            Self { transpose: false, flip_x: a < 0.0, flip_y: d < 0.0 }
        } else if is_axis(b, a) && is_axis(c, d) {
            Self { transpose: true, flip_x: c < 0.0, flip_y: b < 0.0 }
        } else {
            Self::default()
        }
    }

    /// The displayed `(height, width)` of a frame of coded `(height, width)`.
    pub(super) fn displayed_height_and_width(self, (height, width): (usize, usize)) -> (usize, usize) {
        if self.transpose { (width, height) } else { (height, width) }
    }

    /// Writes `rgb` (rows of `stride` bytes) rotated into `out`, u8 `[h, w, 3]` without gaps.
    fn write(self, rgb: &[u8], stride: usize, (height, width): (usize, usize), out: &mut [u8]) {
        if self == Self::default() {
            for (row, to) in rgb.chunks(stride).zip(out.chunks_exact_mut(width * 3)) {
                to.copy_from_slice(&row[..width * 3]);
            }
            return;
        }
        let (out_height, out_width) = self.displayed_height_and_width((height, width));
        for (i, row) in out.chunks_exact_mut(out_width * 3).enumerate() {
            let v = if self.flip_y { out_height - 1 - i } else { i };
            for (j, to) in row.chunks_exact_mut(3).enumerate() {
                let h = if self.flip_x { out_width - 1 - j } else { j };
                let (y, x) = if self.transpose { (h, v) } else { (v, h) };
                to.copy_from_slice(&rgb[y * stride + x * 3..][..3]);
            }
        }
    }
}

/// Properties of a decoded frame that determine its conversion to RGB; they may change within a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SourceFormat {
    format: ffi::AVPixelFormat,
    width: i32,
    height: i32,
    colorspace: i32,
    full_range: bool,
}

/// Converts decoded frames to RGB. Reuses the swscale context for frames of the same format.
pub(super) struct RgbConverter {
    coded_size: (usize, usize),
    rotation: Rotation,
    resizer: Option<FrameResizer>,
    scaler: Option<(SourceFormat, Scaler)>,
    /// RGB frame of the coded size, before the rotation.
    rgb: AvFrame,
    /// Rotated RGB pixels, used if a resize follows a rotation.
    rotated: Vec<u8>,
}

/// Owns a swscale context.
struct Scaler(*mut ffi::SwsContext);

// SAFETY: a context is not bound to the thread that created it, and `Scaler` is its only owner.
unsafe impl Send for Scaler {}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: the context was created by `sws_getContext` and is freed once.
        unsafe { ffi::sws_freeContext(self.0) }
    }
}

impl RgbConverter {
    /// A converter for frames of `coded_size`. It rotates each frame and then, if there is a `target_size`, resizes
    /// it, all in the calling thread.
    ///
    /// # Errors
    /// The frames cannot be resized to this size.
    pub(super) fn new(
        coded_size: (usize, usize),
        rotation: Rotation,
        target_size: Option<ResizeTarget>,
    ) -> Result<Self> {
        let displayed = rotation.displayed_height_and_width(coded_size);
        let resizer = target_size.map(|target| FrameResizer::new(displayed, target)).transpose()?;
        Ok(Self { coded_size, rotation, resizer, scaler: None, rgb: AvFrame::empty(), rotated: Vec::new() })
    }

    /// Writes `frame` into `out`, u8 `[height, width, 3]`, in the target size if there is one, otherwise in the
    /// displayed size.
    pub(super) fn write_as_rgb(&mut self, path: &Path, frame: &AvFrame, out: &mut [u8]) -> Result<()> {
        self.convert_to_rgb(path, frame)?;
        let (height, width) = self.coded_size;
        let (rgb, stride) = (self.rgb.data(0), self.rgb.stride(0));
        match &mut self.resizer {
            None => self.rotation.write(rgb, stride, (height, width), out),
            Some(resizer) if self.rotation == Rotation::default() => {
                resizer.resize(&rgb[..height * stride], stride, out);
            }
            Some(resizer) => {
                self.rotated.resize(height * width * 3, 0);
                self.rotation.write(rgb, stride, (height, width), &mut self.rotated);
                let (_, width) = self.rotation.displayed_height_and_width((height, width));
                resizer.resize(&self.rotated, width * 3, out);
            }
        }
        Ok(())
    }

    fn convert_to_rgb(&mut self, path: &Path, frame: &AvFrame) -> Result<()> {
        let source = source_format(frame);
        if self.scaler.as_ref().is_none_or(|(format, _)| *format != source) {
            self.scaler = Some((source, new_scaler(path, source, self.coded_size)?));
        }
        let (height, width) = self.coded_size;
        if self.rgb.width() == 0 {
            let [width, height] = [width, height].map(|side| u32::try_from(side).unwrap_or(0));
            let rgb = allocate_frame(Pixel::RGB24, width, height);
            self.rgb = rgb.map_err(|e| ffmpeg_error(path, "converting its frames", e))?;
        }
        let Some((_, scaler)) = &self.scaler else {
            return Err(Error::media_file(path, "its frames cannot be converted to RGB", "convert it to H.264"));
        };
        // SAFETY: the scaler was created for the format and size of this frame and for the size of `rgb`, which owns
        // its buffer.
        let rows = unsafe {
            let (from, to) = (frame.as_ptr(), self.rgb.as_mut_ptr());
            ffi::sws_scale(
                scaler.0,
                (*from).data.as_ptr().cast(),
                (*from).linesize.as_ptr(),
                0,
                source.height,
                (*to).data.as_ptr(),
                (*to).linesize.as_ptr(),
            )
        };
        if usize::try_from(rows) != Ok(height) {
            return Err(Error::media_file(path, "its frames cannot be converted to RGB", "convert it to H.264"));
        }
        Ok(())
    }
}

/// A frame in host memory whose samples are not set yet. Sides are in pixels.
pub(super) fn allocate_frame(format: Pixel, width: u32, height: u32) -> std::result::Result<AvFrame, ffmpeg::Error> {
    let mut frame = AvFrame::empty();
    frame.set_format(format);
    frame.set_width(width);
    frame.set_height(height);
    // SAFETY: the frame has a format and a size and no buffer yet.
    let code = unsafe { ffi::av_frame_get_buffer(frame.as_mut_ptr(), 0) };
    if code < 0 { Err(ffmpeg::Error::from(code)) } else { Ok(frame) }
}

fn source_format(frame: &AvFrame) -> SourceFormat {
    // SAFETY: the frame is alive. Tags are read as plain numbers, because a file may contain values that the enums do
    // not have.
    let (colorspace, range) = unsafe {
        let p = frame.as_ptr();
        (ptr::addr_of!((*p).colorspace).cast::<i32>().read(), ptr::addr_of!((*p).color_range).cast::<i32>().read())
    };
    SourceFormat {
        format: frame.format().into(),
        width: i32::try_from(frame.width()).unwrap_or(0),
        height: i32::try_from(frame.height()).unwrap_or(0),
        colorspace,
        full_range: range == ffi::AVColorRange::AVCOL_RANGE_JPEG as i32,
    }
}

/// A swscale context that converts frames to RGB24 without resizing them. The colour matrix and range are those that
/// the video is tagged with, or BT.601 limited range without tags. The scaling flags are FFmpeg's default, or
/// `bilinear` where a side is odd, as in decord.
fn new_scaler(path: &Path, from: SourceFormat, (height, width): (usize, usize)) -> Result<Scaler> {
    let odd = from.width % 2 != 0 || from.height % 2 != 0;
    let flags = if odd { Flags::BILINEAR } else { Flags::BICUBIC };
    let [to_width, to_height] = [width, height].map(|side| i32::try_from(side).unwrap_or(0));
    let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24;
    // SAFETY: all arguments are plain numbers; null filters and parameters select the defaults.
    let context = unsafe {
        ffi::sws_getContext(
            from.width,
            from.height,
            from.format,
            to_width,
            to_height,
            rgb,
            flags.bits(),
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null(),
        )
    };
    if context.is_null() {
        return Err(Error::media_file(
            path,
            format!(
                "its frames ({} x {}) have a pixel format that cannot be converted to RGB",
                from.width, from.height
            ),
            "convert it to H.264 (yuv420p)",
        ));
    }
    let scaler = Scaler(context);
    // SAFETY: the context is alive, the out-parameters are local variables, and the coefficient tables are statics of
    // FFmpeg.
    unsafe {
        let (mut inverse, mut table) = (ptr::null_mut(), ptr::null_mut());
        let (mut from_full, mut to_full, mut brightness, mut contrast, mut saturation) = (0, 0, 0, 0, 0);
        let known = ffi::sws_getColorspaceDetails(
            context,
            &mut inverse,
            &mut from_full,
            &mut table,
            &mut to_full,
            &mut brightness,
            &mut contrast,
            &mut saturation,
        );
        if known >= 0 {
            let matrix = ffi::sws_getCoefficients(from.colorspace);
            let full = i32::from(from.full_range) | from_full;
            ffi::sws_setColorspaceDetails(context, matrix, full, matrix, to_full, brightness, contrast, saturation);
        }
    }
    Ok(scaler)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(a: i32, b: i32, c: i32, d: i32) -> Vec<u8> {
        [a, b, 0, c, d, 0, 0, 0, 1 << 30].iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    /// Applies each matrix to a 2 × 3 frame with the pixels 0..6.
    #[test]
    fn rotates_and_mirrors_by_display_matrix() {
        const ONE: i32 = 1 << 16;
        let rgb: Vec<u8> = (0..6).flat_map(|p| [p, p + 10, p + 20]).collect();
        type Case = ([i32; 4], (usize, usize), [u8; 6]);
        let cases: [Case; 8] = [
            ([ONE, 0, 0, ONE], (2, 3), [0, 1, 2, 3, 4, 5]),
            ([0, ONE, -ONE, 0], (3, 2), [3, 0, 4, 1, 5, 2]),
            ([-ONE, 0, 0, -ONE], (2, 3), [5, 4, 3, 2, 1, 0]),
            ([0, -ONE, ONE, 0], (3, 2), [2, 5, 1, 4, 0, 3]),
            ([-ONE, 0, 0, ONE], (2, 3), [2, 1, 0, 5, 4, 3]),
            ([ONE, 0, 0, -ONE], (2, 3), [3, 4, 5, 0, 1, 2]),
            ([0, ONE, ONE, 0], (3, 2), [0, 3, 1, 4, 2, 5]),
            ([0, -ONE, -ONE, 0], (3, 2), [5, 2, 4, 1, 3, 0]),
        ];
        for ([a, b, c, d], size, want) in cases {
            let rotation = Rotation::from_display_matrix(&matrix(a, b, c, d));
            assert_eq!(rotation.displayed_height_and_width((2, 3)), size);
            let mut out = vec![0; 18];
            rotation.write(&rgb, 9, (2, 3), &mut out);
            let got: Vec<u8> = out.chunks(3).map(|p| p[0]).collect();
            assert_eq!(got, want, "{a} {b} {c} {d}");
            assert!(out.chunks(3).all(|p| p[1] == p[0] + 10 && p[2] == p[0] + 20));
        }
    }

    #[test]
    fn ignores_other_angles_and_incomplete_matrices() {
        for m in [matrix(46341, 46341, -46341, 46341), matrix(0, 0, 0, 0), vec![1, 2, 3], Vec::new()] {
            assert_eq!(Rotation::from_display_matrix(&m), Rotation::default());
        }
    }
}
