//! Frames side by side in one small picture, for people.

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::Result;
use crate::error::MediaError;
use crate::resize::{FrameBuf, FrameView, pillow_bicubic};

/// A picture as a PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Png {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The file.
    pub bytes: Vec<u8>,
}

/// At most `most` frames, evenly from the first to the last, `height` pixels high at most, one beside the other.
///
/// # Errors
/// Frames that cannot be resized.
pub fn frame_strip(frames: &FrameBuf, most: usize, height: usize) -> Result<Png> {
    let count = frames.frames.min(most).max(1);
    let (h, w) =
        (frames.height.min(height).max(1), (frames.width * frames.height.min(height) / frames.height.max(1)).max(1));
    let mut pixels = vec![0u8; h * w * count * 3];
    let size = frames.height * frames.width * 3;
    for i in 0..count {
        let at = i * (frames.frames - 1) / (count - 1).max(1);
        let one = FrameView::new(&frames.data[at * size..(at + 1) * size], 1, frames.height, frames.width)?;
        let small = pillow_bicubic(one, (h, w))?;
        for (y, row) in small.data.chunks_exact(w * 3).enumerate() {
            let from = (y * count + i) * w * 3;
            pixels[from..from + w * 3].copy_from_slice(row);
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    let (width, height) = (w * count, h);
    PngEncoder::new(&mut bytes)
        .write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| MediaError::file("strip", e.to_string(), "report this as a defect"))?;
    Ok(Png { width, height, bytes: bytes.into_inner() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any film becomes a PNG of the size that it says, its first frame on the left and its last on the right.
        #[test]
        fn any_film_has_a_strip(frames in 1usize..9, h in 1usize..40, w in 1usize..40, most in 1usize..6, high in 1usize..30) {
            let data = (0..frames).flat_map(|f| vec![(f * 20) as u8; h * w * 3]).collect();
            let png = frame_strip(&FrameBuf { data, frames, height: h, width: w }, most, high).unwrap();
            let read = crate::image::decode(&png.bytes, "strip").unwrap();
            let view = read.view().unwrap();
            prop_assert_eq!(view.size(), (png.height, png.width));
            prop_assert!(png.height <= high && png.width.is_multiple_of(frames.min(most)));
            prop_assert_eq!(view.data()[0], 0);
            if frames.min(most) > 1 {
                prop_assert_eq!(*view.data().last().unwrap(), ((frames - 1) * 20) as u8);
            }
        }
    }
}
