//! Encodes one or several frames as a PNG or JPEG image, for logs, HTML pages, and requests to other servers.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::error::Error;
use crate::media::Result;
use crate::media::frames::{FrameBuf, FrameView};
use crate::media::resize::pillow_bicubic;

/// An image as the bytes of a PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PngImage {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The bytes of the PNG file.
    pub bytes: Vec<u8>,
}

/// Draws at most `max_frames` frames, evenly spaced from the first to the last, side by side. Frames higher than
/// `max_height` pixels are shrunk to that height.
///
/// # Errors
/// `frames.data` does not have the length that `frames` states, or memory runs out.
pub fn frame_strip(frames: &FrameBuf, max_frames: usize, max_height: usize) -> Result<PngImage> {
    let height = frames.height.min(max_height).max(1);
    let width = (frames.width * frames.height.min(max_height) / frames.height.max(1)).max(1);
    let shown = evenly_spaced(frames.frames, max_frames.max(1));
    encode_png(&side_by_side(frames, &shown, (height, width))?, height, width * shown.len())
}

/// Frames side by side as the bytes of a JPEG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JpegStrip {
    /// Indices of the frames, from left to right.
    pub shown: Vec<usize>,
    /// Width of one frame in pixels.
    pub width: usize,
    /// Height of a frame in pixels.
    pub height: usize,
    /// The bytes of the JPEG file.
    pub bytes: Vec<u8>,
}

/// Draws at most `max_frames` evenly spaced frames side by side, as [`frame_strip`] does, and encodes them as JPEG of
/// this `quality` (1 to 100). Frames are shrunk so that neither side exceeds `max_side` pixels.
///
/// # Errors
/// `frames.data` does not have the length that `frames` states, there is no frame, or memory runs out.
pub fn jpeg_strip(frames: &FrameBuf, max_frames: usize, max_side: usize, quality: u8) -> Result<JpegStrip> {
    let longer = frames.height.max(frames.width).max(1);
    let shrunk = |side: usize| if longer > max_side { (side * max_side / longer).max(1) } else { side };
    let (height, width) = (shrunk(frames.height), shrunk(frames.width));
    let shown = evenly_spaced(frames.frames, max_frames.max(1));
    let pixels = side_by_side(frames, &shown, (height, width))?;
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&pixels, (width * shown.len()) as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::media_file("JPEG image", e.to_string(), "report this as a bug"))?;
    Ok(JpegStrip { shown, width, height, bytes })
}

/// Returns at most `most` evenly spaced indices below `count`, including the first and the last index.
pub fn evenly_spaced(count: usize, most: usize) -> Vec<usize> {
    let shown = count.min(most);
    (0..shown).map(|i| i * (count - 1) / (shown - 1).max(1)).collect()
}

/// Returns the pixels of an image that shows the frames `shown` side by side, each resized to `size`, (height, width).
fn side_by_side(frames: &FrameBuf, shown: &[usize], size: (usize, usize)) -> Result<Vec<u8>> {
    let ((height, width), count) = (size, shown.len());
    // `view` checks that the data has the length that the frames' size and number state.
    let data = frames.view()?.data();
    let mut pixels = vec![0u8; height * width * count * 3];
    let frame_len = frames.height * frames.width * 3;
    for (i, index) in shown.iter().enumerate() {
        let frame = FrameView::new(&data[index * frame_len..][..frame_len], 1, frames.height, frames.width)?;
        let small = pillow_bicubic(frame, size)?;
        for (y, row) in small.data.chunks_exact(width * 3).enumerate() {
            let start = (y * count + i) * width * 3;
            pixels[start..start + width * 3].copy_from_slice(row);
        }
    }
    Ok(pixels)
}

/// Draws one frame, u8 RGB `[height, width, 3]`, shrunk so that neither side exceeds `max_side` pixels.
///
/// # Errors
/// `frame` does not have the length that `height` and `width` state, or memory runs out.
pub fn thumbnail(frame: &[u8], (height, width): (usize, usize), max_side: usize) -> Result<PngImage> {
    let longer = height.max(width).max(1);
    let shrunk = |side: usize| if longer > max_side { (side * max_side / longer).max(1) } else { side };
    let small = pillow_bicubic(FrameView::new(frame, 1, height, width)?, (shrunk(height), shrunk(width)))?;
    encode_png(&small.data, small.height, small.width)
}

/// Draws the frame `index` of `frames` as [`thumbnail`] does.
///
/// # Errors
/// `frames.data` does not have the length that `frames` states, there is no such frame, or memory runs out.
pub fn frame_thumbnail(frames: &FrameBuf, index: usize, max_side: usize) -> Result<PngImage> {
    let size = (frames.height, frames.width);
    let missing = || Error::setting("frames", format!("have no frame {index}"), "report this as a bug");
    thumbnail(frames.view()?.iter().nth(index).ok_or_else(missing)?, size, max_side)
}

/// JPEG quality that [`encode_jpeg`] uses, on the scale from 1 to 100.
const JPEG_QUALITY: u8 = 90;

/// Encodes one frame, u8 RGB `[height, width, 3]`, as the bytes of a JPEG file.
///
/// # Errors
/// `frame` does not have the length that `height` and `width` state, or a side has more than 65,535 pixels.
pub fn encode_jpeg(frame: &[u8], (height, width): (usize, usize)) -> Result<Vec<u8>> {
    FrameView::new(frame, 1, height, width)?;
    let side = |pixels: usize| {
        u16::try_from(pixels).map(u32::from).map_err(|_| {
            let what = format!("a side of {pixels} pixels is above JPEG's limit of {}", u16::MAX);
            Error::setting("frames", what, "give smaller frames")
        })
    };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .write_image(frame, side(width)?, side(height)?, ExtendedColorType::Rgb8)
        .map_err(|e| Error::media_file("JPEG image", e.to_string(), "report this as a bug"))?;
    Ok(bytes)
}

/// Encodes one frame, u8 RGB `[height, width, 3]`, as PNG, which keeps every pixel.
///
/// # Errors
/// `pixels` does not have the length that `height` and `width` state.
pub fn encode_png(pixels: &[u8], height: usize, width: usize) -> Result<PngImage> {
    FrameView::new(pixels, 1, height, width)?;
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new(&mut bytes)
        .write_image(pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::media_file("PNG image", e.to_string(), "report this as a bug"))?;
    Ok(PngImage { width, height, bytes: bytes.into_inner() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::image::{ExifOrientation, decode};
    use proptest::prelude::*;

    #[test]
    fn shown_frames_are_evenly_spaced_from_the_first_to_the_last() {
        assert_eq!(evenly_spaced(3, 64), [0, 1, 2]);
        assert_eq!(evenly_spaced(9, 5), [0, 2, 4, 6, 8]);
        assert_eq!(evenly_spaced(1, 64), [0]);
        assert_eq!(evenly_spaced(5, 1), [0]);
        assert_eq!(evenly_spaced(5, 0), [0; 0]);
        let many = evenly_spaced(768, 64);
        assert_eq!((many.len(), many[0], many[63]), (64, 0, 767));
        assert!(many.windows(2).all(|pair| pair[0] < pair[1]));
    }

    proptest! {
        #[test]
        fn thumbnail_fits_and_keeps_the_aspect_ratio_and_pixels(h in 1usize..60, w in 1usize..60, side in 1usize..50) {
            let frame: Vec<u8> = (0..h * w * 3).map(|i| (i % 251) as u8).collect();
            let png = thumbnail(&frame, (h, w), side).unwrap();
            let read = decode(&png.bytes, "thumbnail", ExifOrientation::Apply).unwrap();
            let view = read.view().unwrap();
            prop_assert_eq!(view.height_and_width(), (png.height, png.width));
            if h.max(w) <= side {
                prop_assert_eq!(view.data(), &frame[..]);
            } else {
                let scale = side as f64 / h.max(w) as f64;
                for (to, from) in [(png.height, h), (png.width, w)] {
                    prop_assert!(to <= side && (to as f64 - from as f64 * scale).abs() <= 1.0);
                }
            }
            prop_assert!(thumbnail(&frame[1..], (h, w), side).is_err());
        }

        #[test]
        fn jpeg_has_the_size_and_about_the_pixels_of_its_frame(h in 1usize..40, w in 1usize..40, level in any::<u8>()) {
            let frame = vec![level; h * w * 3];
            let read = decode(&encode_jpeg(&frame, (h, w)).unwrap(), "frame", ExifOrientation::Apply).unwrap();
            prop_assert_eq!((read.height, read.width), (h, w));
            prop_assert!(read.data.iter().all(|&got| got.abs_diff(level) <= 3));
            prop_assert!(encode_jpeg(&frame[1..], (h, w)).is_err());
        }

        #[test]
        fn png_has_stated_size_with_first_frame_left_and_last_frame_right(
            frames in 1usize..9, h in 1usize..40, w in 1usize..40, max_frames in 1usize..6, max_height in 1usize..30,
        ) {
            let data = (0..frames).flat_map(|f| vec![(f * 20) as u8; h * w * 3]).collect();
            let png = frame_strip(&FrameBuf { data: data.into(), frames, height: h, width: w }, max_frames, max_height).unwrap();
            let read = decode(&png.bytes, "strip", ExifOrientation::Apply).unwrap();
            let view = read.view().unwrap();
            prop_assert_eq!(view.height_and_width(), (png.height, png.width));
            prop_assert!(png.height <= max_height && png.width.is_multiple_of(frames.min(max_frames)));
            prop_assert_eq!(view.data()[0], 0);
            if frames.min(max_frames) > 1 {
                prop_assert_eq!(*view.data().last().unwrap(), ((frames - 1) * 20) as u8);
            }
        }
    }

    proptest! {
        /// The strip shows frames of one grey value each; it has these values from left to right, up to JPEG's loss.
        #[test]
        fn jpeg_strip_has_the_stated_frames_in_order(
            frames in 1usize..40, h in 1usize..300, w in 1usize..300, max_frames in 1usize..9, side in 8usize..80,
        ) {
            let grey = |frame: usize| (frame * 6) as u8;
            let data = (0..frames).flat_map(|f| vec![grey(f); h * w * 3]).collect();
            let strip = jpeg_strip(&FrameBuf { data: data.into(), frames, height: h, width: w }, max_frames, side, 70).unwrap();
            prop_assert!(strip.width.max(strip.height) <= side.max(1) && strip.shown.len() == frames.min(max_frames));
            let read = decode(&strip.bytes, "strip", ExifOrientation::Apply).unwrap();
            let view = read.view().unwrap();
            prop_assert_eq!(view.height_and_width(), (strip.height, strip.width * strip.shown.len()));
            for (i, &frame) in strip.shown.iter().enumerate() {
                // JPEG codes blocks of 8 x 8 pixels, which may cover several narrow frames, so only wide frames are
                // compared.
                let pixel = view.data()[3 * (i * strip.width + strip.width / 2)];
                prop_assert!(strip.width < 24 || pixel.abs_diff(grey(frame)) <= 6, "{} for {}", pixel, grey(frame));
            }
        }
    }
}
