//! Decodes JPEG files to the same pixels as Pillow, which uses the arithmetic of libjpeg-turbo and reads a JPEG in mode
//! L, RGB or CMYK.

use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};

use super::{ImageFile, MAX_DECODER_BYTES, RgbImage, check_size, divide_by_255};
use crate::error::{Error, Result};

/// Files with more scans than this are refused, because decoding a scan of a few bytes takes as long as the whole
/// image.
const MAX_SCANS: usize = 500;

/// Maximum number of pixels that the scans of a file decode together, unless it has at most [`USUAL_SCANS`]. Encoders
/// write about 10 scans.
const MAX_SCANNED_PIXELS: usize = 1 << 28;
const USUAL_SCANS: usize = 20;

/// Decodes a JPEG file.
///
/// # Errors
/// The file is damaged, cut off, too large, has samples of more than 8 bits, has 2 or more than 4 components, or is a
/// CMYK image with an unsupported sampling.
pub fn decode(file: ImageFile<'_>) -> Result<RgbImage> {
    let name = file.name;
    let refuse = |error: JpegError| {
        let (what, help) = match error {
            JpegError::Unsupported(_) => ("has an unsupported format", "convert it to 8-bit RGB"),
            JpegError::LimitExceeded { .. } | JpegError::AllocationFailed { .. } => {
                ("needs more memory or scans than images may use", "make it smaller, or save it as a baseline JPEG")
            }
            _ => ("is damaged or cut off", "save or download it again"),
        };
        Error::media_file(name, format!("{what} ({error})"), help)
    };
    let mut limits =
        DecodeLimits { max_scans: MAX_SCANS, max_memory: Some(MAX_DECODER_BYTES), ..DecodeLimits::default() };
    let frame = Decoder::new_with_limits(file.bytes, limits).map_err(refuse)?.header().clone();
    check_size(u32::from(frame.height), u32::from(frame.width), file)?;
    let pixels = usize::from(frame.height) * usize::from(frame.width);
    limits.max_scans = (MAX_SCANNED_PIXELS / pixels).clamp(USUAL_SCANS, MAX_SCANS);
    let mut decoder = Decoder::new_with_limits(file.bytes, limits).map_err(refuse)?;
    if frame.precision != 8 {
        let what = format!("is a JPEG of {} bits per sample", frame.precision);
        return Err(Error::media_file(name, what, "convert it to 8-bit RGB"));
    }
    let format = match frame.components.len() {
        1 => PixelFormat::Grayscale,
        3 => PixelFormat::Rgb,
        4 => PixelFormat::Cmyk,
        components => {
            let what = format!("is a JPEG of {components} components");
            return Err(Error::media_file(name, what, "convert it to 8-bit RGB"));
        }
    };
    let sampling: Vec<_> = frame
        .components
        .iter()
        .map(|c| (usize::from(c.horizontal_sampling), usize::from(c.vertical_sampling)))
        .collect();
    if let &[first, second, third, fourth] = sampling.as_slice() {
        // The decoder is correct only if the first and the fourth component have full resolution, and the second and
        // the third have one common resolution that divides the full one. It would decode other files to a wrong
        // image.
        let divides = second.0 <= first.0 && second.1 <= first.1 && first.0 % second.0 == 0 && first.1 % second.1 == 0;
        if fourth != first || third != second || !divides {
            let what = format!("is a CMYK JPEG whose components have the sampling {sampling:?}");
            return Err(Error::media_file(name, what, "convert it to 8-bit RGB"));
        }
    }
    decoder.set_output_format(format);
    let image = decoder.decode_image().map_err(refuse)?;
    let data = match format {
        PixelFormat::Grayscale => image.data.iter().flat_map(|&v| [v; 3]).collect(),
        PixelFormat::Cmyk => image.data.chunks_exact(4).flat_map(|p| inks_to_rgb([p[0], p[1], p[2]], p[3])).collect(),
        _ => image.data,
    };
    Ok(RgbImage { data, height: image.height, width: image.width })
}

/// Pillow's conversion of CMYK to RGB. Pillow assumes that every CMYK JPEG is Adobe's, with inverted samples: 255 means
/// no ink. `colours` and `black` are such inverted samples.
fn inks_to_rgb(colours: [u8; 3], black: u8) -> [u8; 3] {
    // Pillow computes (255 - k) - (255 - k) * c / 255 with c = 255 - colour and k = 255 - black.
    colours.map(|colour| black - divide_by_255(u32::from(255 - colour) * u32::from(black)))
}
