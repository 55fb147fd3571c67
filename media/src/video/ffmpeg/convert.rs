//! A decoded picture into RGB as shown: colour conversion by swscale, then the turn that the container asks for.

use std::path::Path;
use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as AvFrame;
use ffmpeg::software::scaling::Flags;

use super::failed;
use crate::resize::{FrameView, torch_bicubic};
use crate::{MediaError, Result};

/// A quarter turn and mirror: where pixel `(x, y)` of the film is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotation {
    /// Columns become rows.
    transpose: bool,
    /// Mirrored left to right, after the transposition.
    flip_x: bool,
    /// Mirrored top to bottom, after the transposition.
    flip_y: bool,
}

impl Rotation {
    /// From a display matrix: nine native-endian i32 `a b u / c d v / x y w` (ISO 14496-12, 6.2.2) that take `(p, q)` to
    /// `(a p + c q, b p + d q)`. Turns that are not by quarters are left out, as the reference's reader does.
    pub(super) fn from_matrix(bytes: &[u8]) -> Self {
        let m: Vec<f64> = bytes
            .chunks_exact(4)
            .filter_map(|four| Some(f64::from(i32::from_ne_bytes(four.try_into().ok()?))))
            .collect();
        let [a, b, _, c, d, ..] = m[..] else { return Self::default() };
        // Within about one degree.
        let straight = |main: f64, off: f64| off.abs() < main.abs() * 0.0175;
        if straight(a, b) && straight(d, c) {
            Self { transpose: false, flip_x: a < 0.0, flip_y: d < 0.0 }
        } else if straight(b, a) && straight(c, d) {
            Self { transpose: true, flip_x: c < 0.0, flip_y: b < 0.0 }
        } else {
            Self::default()
        }
    }

    /// `(height, width)` as shown of a picture of `(height, width)`.
    pub(super) fn size(self, (height, width): (usize, usize)) -> (usize, usize) {
        if self.transpose { (width, height) } else { (height, width) }
    }

    /// Writes the RGB rows of `rgb` (`stride` bytes each) as shown into `out`, [h, w, 3] without gaps.
    fn write(self, rgb: &[u8], stride: usize, (height, width): (usize, usize), out: &mut [u8]) {
        if self == Self::default() {
            for (row, to) in rgb.chunks(stride).zip(out.chunks_exact_mut(width * 3)) {
                to.copy_from_slice(&row[..width * 3]);
            }
            return;
        }
        let (out_height, out_width) = self.size((height, width));
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

/// What a conversion depends on; a film may change it on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SourceFormat {
    format: ffi::AVPixelFormat,
    width: i32,
    height: i32,
    colorspace: i32,
    full_range: bool,
}

/// Turns decoded pictures into RGB; keeps its tables between pictures of one kind.
pub(super) struct Converter {
    coded: (usize, usize),
    turn: Rotation,
    target: Option<(usize, usize)>,
    scaler: Option<(SourceFormat, Scaler)>,
    rgb: AvFrame,
    shown: Vec<u8>,
}

/// Owns a swscale context.
struct Scaler(*mut ffi::SwsContext);

// SAFETY: a context has no ties to the thread that made it, and `Scaler` is its only owner.
unsafe impl Send for Scaler {}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: made by `sws_getContext`, freed once.
        unsafe { ffi::sws_freeContext(self.0) }
    }
}

impl Converter {
    /// For pictures of `coded` size, shown after `turn`, then resized to `target` where one is given.
    pub(super) fn new(coded: (usize, usize), turn: Rotation, target: Option<(usize, usize)>) -> Self {
        Self { coded, turn, target, scaler: None, rgb: AvFrame::empty(), shown: Vec::new() }
    }

    /// Writes `picture` into `out`, u8 [height, width, 3] of the target size (the shown size without one).
    pub(super) fn write(&mut self, path: &Path, picture: &AvFrame, out: &mut [u8]) -> Result<()> {
        self.convert(path, picture)?;
        let (height, width) = self.coded;
        let (rgb, stride) = (self.rgb.data(0), self.rgb.stride(0));
        let Some(target) = self.target else {
            self.turn.write(rgb, stride, (height, width), out);
            return Ok(());
        };
        self.shown.resize(height * width * 3, 0);
        self.turn.write(rgb, stride, (height, width), &mut self.shown);
        let (h, w) = self.turn.size((height, width));
        let resized = torch_bicubic(FrameView::new(&self.shown, 1, h, w)?, target)?;
        out.copy_from_slice(&resized.data);
        Ok(())
    }

    fn convert(&mut self, path: &Path, picture: &AvFrame) -> Result<()> {
        let source = source_of(picture);
        if self.scaler.as_ref().is_none_or(|(made_for, _)| *made_for != source) {
            self.scaler = Some((source, scaler(path, source, self.coded)?));
        }
        let (height, width) = self.coded;
        if self.rgb.width() == 0 {
            let mut rgb = AvFrame::empty();
            rgb.set_format(Pixel::RGB24);
            rgb.set_width(u32::try_from(width).unwrap_or(0));
            rgb.set_height(u32::try_from(height).unwrap_or(0));
            // SAFETY: the frame has a format and a size and no buffer yet.
            let code = unsafe { ffi::av_frame_get_buffer(rgb.as_mut_ptr(), 0) };
            if code < 0 {
                return Err(failed(path, "converting its frames", ffmpeg::Error::from(code)));
            }
            self.rgb = rgb;
        }
        let Some((_, scaler)) = &self.scaler else {
            return Err(MediaError::file(path, "its frames cannot be converted to RGB", "convert it to H.264"));
        };
        // SAFETY: the scaler was made for this picture's format and size and for the size of `rgb`, whose buffer is its own.
        let rows = unsafe {
            let (from, to) = (picture.as_ptr(), self.rgb.as_mut_ptr());
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
            return Err(MediaError::file(path, "its frames cannot be converted to RGB", "convert it to H.264"));
        }
        Ok(())
    }
}

fn source_of(picture: &AvFrame) -> SourceFormat {
    // SAFETY: the frame is live; tags are read as plain numbers, because a file may hold ones without a name.
    let (colorspace, range) = unsafe {
        let p = picture.as_ptr();
        (ptr::addr_of!((*p).colorspace).cast::<i32>().read(), ptr::addr_of!((*p).color_range).cast::<i32>().read())
    };
    SourceFormat {
        format: picture.format().into(),
        width: i32::try_from(picture.width()).unwrap_or(0),
        height: i32::try_from(picture.height()).unwrap_or(0),
        colorspace,
        full_range: range == ffi::AVColorRange::AVCOL_RANGE_JPEG as i32,
    }
}

/// A conversion to RGB24 of the `coded` size, with the matrix and range that the film is tagged with (BT.601 limited if it is
/// not). FFmpeg's default flags, or `bilinear` where a side is odd: what the reference's reader uses.
fn scaler(path: &Path, from: SourceFormat, (height, width): (usize, usize)) -> Result<Scaler> {
    let odd = from.width % 2 != 0 || from.height % 2 != 0;
    let flags = if odd { Flags::BILINEAR } else { Flags::BICUBIC };
    let [to_width, to_height] = [width, height].map(|side| i32::try_from(side).unwrap_or(0));
    let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24;
    // SAFETY: plain numbers in; null filters and parameters mean the defaults.
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
        return Err(MediaError::file(
            path,
            format!("its frames ({} x {}) are in a pixel format that cannot become RGB", from.width, from.height),
            "convert it to H.264 (yuv420p)",
        ));
    }
    let scaler = Scaler(context);
    // SAFETY: the context is live, the out-parameters are locals, and the coefficient tables are FFmpeg's own statics.
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

    /// A 2 x 3 picture whose pixels are 0..6, shown through each matrix.
    #[test]
    fn each_quarter_turn_and_mirror() {
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
            let turn = Rotation::from_matrix(&matrix(a, b, c, d));
            assert_eq!(turn.size((2, 3)), size);
            let mut out = vec![0; 18];
            turn.write(&rgb, 9, (2, 3), &mut out);
            let got: Vec<u8> = out.chunks(3).map(|p| p[0]).collect();
            assert_eq!(got, want, "{a} {b} {c} {d}");
            assert!(out.chunks(3).all(|p| p[1] == p[0] + 10 && p[2] == p[0] + 20));
        }
    }

    #[test]
    fn slanted_and_short_matrices_turn_nothing() {
        for m in [matrix(46341, 46341, -46341, 46341), matrix(0, 0, 0, 0), vec![1, 2, 3], Vec::new()] {
            assert_eq!(Rotation::from_matrix(&m), Rotation::default());
        }
    }
}
