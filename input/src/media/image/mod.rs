//! Decodes images: a file, bytes or a `data:` URI to u8 RGB `[H, W, 3]`, by the rules of Pillow and qwen-vl-utils.
//!
//! Alpha is blended over white only if Pillow opens the image in mode RGBA; the alpha of palette images and grey
//! images is dropped. An image is turned by the orientation that its EXIF data state ([`ExifOrientation`]). Only the
//! first frame of an animation is used. The format is detected from the content, not from the file name.

use std::io::Cursor;
use std::num::NonZeroU64;
use std::path::Path;

use ::image::codecs::{bmp::BmpDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits};
use base64::Engine as _;
use reel_support::diagnostic::{input, print_note_once};

use crate::error::{Error, Result};
use crate::media::DATA_URI;
use crate::media::error::cannot_read_media;
use crate::media::frames::{FrameView, MAX_IMAGE_PIXELS};

mod exif;
mod jpeg;
#[cfg(test)]
mod tests;

/// Memory that a decoder may allocate: the largest image at 8 bytes per pixel (16-bit RGBA), and 64 MiB for tables.
const MAX_DECODER_BYTES: u64 = MAX_IMAGE_PIXELS as u64 * 8 + (64 << 20);

/// Longer files are refused before they are read. Even an uncompressed image within the decoder's memory limit has
/// fewer bytes.
const MAX_FILE_BYTES: u64 = MAX_DECODER_BYTES;
/// Memory limit for decoding a GIF frame: one byte per pixel of the largest image.
const GIF_FRAME_BYTES: NonZeroU64 = NonZeroU64::new(MAX_IMAGE_PIXELS as u64).unwrap();

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels, u8 RGB `[H, W, 3]`, row-major.
    pub data: Vec<u8>,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl RgbImage {
    /// Borrows the image as a single frame.
    ///
    /// # Errors
    /// `data` does not have the length that `height` and `width` state, or is empty.
    pub fn view(&self) -> Result<FrameView<'_>> {
        FrameView::new(&self.data, 1, self.height, self.width)
    }

    /// Turns the image by the orientation that the EXIF data of `file` state, if the rule is to apply it.
    fn turn_by_exif(self, file: ImageFile<'_>, rule: ExifOrientation) -> Result<Self> {
        let orientation = exif::orientation(file.bytes, file.format);
        if orientation == Orientation::NoTransforms || rule == ExifOrientation::Ignore {
            return Ok(self);
        }
        print_note_once(
            "images with an EXIF orientation are turned upright, as by transformers and datasets; \
             --ignore-exif-orientation leaves them as they are stored, as qwen-vl-utils does"
                .to_string(),
        );
        self.turn(orientation, file.name)
    }

    fn turn(self, orientation: Orientation, name: &str) -> Result<Self> {
        if orientation == Orientation::NoTransforms {
            return Ok(self);
        }
        let damaged = || Error::media_file(name, "is damaged or cut off", "save or download it again");
        let rgb = ::image::RgbImage::from_raw(self.width as u32, self.height as u32, self.data).ok_or_else(damaged)?;
        let mut turned = DynamicImage::ImageRgb8(rgb);
        turned.apply_orientation(orientation);
        let (width, height) = (turned.width() as usize, turned.height() as usize);
        Ok(Self { data: turned.into_rgb8().into_raw(), height, width })
    }
}

/// What happens to a JPEG, PNG or WebP image whose EXIF data state an orientation. TIFF images are always turned, as
/// Pillow does when it loads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExifOrientation {
    /// The image is turned upright, as by transformers' `load_image` and by datasets.
    #[default]
    Apply,
    /// The pixels stay as they are stored, as in qwen-vl-utils.
    Ignore,
}

/// Reads and decodes an image file (PNG, JPEG, WebP, GIF, BMP or TIFF).
///
/// # Errors
/// The file cannot be read, is not a regular file, is too long, is damaged, or is not an image of a supported format.
pub fn open(path: &Path, rule: ExifOrientation) -> Result<RgbImage> {
    let cannot_read = |e| cannot_read_media(path, &e);
    let bytes = input::read_file(path, MAX_FILE_BYTES).map_err(cannot_read)?;
    decode(&bytes, &path.display().to_string(), rule)
}

/// The number of pixels of the image in a `data:` URI, by its header, without decoding it. `None` if the header is not
/// in the first 768 KiB or cannot be read, and for a GIF, whose first frame may be larger than its header states.
pub fn pixels_of_data_uri(uri: &str) -> Option<u64> {
    const MAX_CHARS: usize = 1 << 20;
    let (_, text) = uri.split_once("base64,")?;
    let whole_groups = |bytes: usize| bytes / 4 * 4;
    let text = text.trim_end_matches('=').as_bytes();
    let head = if text.len() > MAX_CHARS { &text[..whole_groups(MAX_CHARS)] } else { text };
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(head).ok()?;
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let reader = Some(reader).filter(|reader| reader.format() != Some(ImageFormat::Gif))?;
    let (width, height) = reel_support::diagnostic::catch_panic(|| reader.into_dimensions()).ok()?.ok()?;
    Some(u64::from(width) * u64::from(height))
}

/// Decodes a `data:image/...;base64,...` URI. The media type may be missing or `application/octet-stream`, as the
/// content decides.
///
/// # Errors
/// The URI has another form, its base64 is damaged, or its content is not a supported image.
pub fn from_data_uri(uri: &str, rule: ExifOrientation) -> Result<RgbImage> {
    let media_type =
        uri.get(5..).and_then(|rest| rest.split([';', ',']).next()).unwrap_or_default().to_ascii_lowercase();
    let may_be_image = media_type.starts_with("image") || ["", "application/octet-stream"].contains(&&*media_type);
    let Some((_, text)) = uri.split_once("base64,").filter(|_| may_be_image) else {
        return Err(Error::media_file(DATA_URI, "is not data:image/...;base64,...", "encode the image as base64"));
    };
    let mut text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    while text.last() == Some(&b'=') {
        text.pop();
    }
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).map_err(|error| {
        Error::media_file(DATA_URI, format!("contains invalid base64 ({error})"), "encode the image again")
    })?;
    decode(&bytes, DATA_URI, rule)
}

/// Decodes an image from the bytes of its file; error messages use `name` as location.
///
/// # Errors
/// The bytes are empty, damaged, or not an image of a supported format, or the image exceeds [`MAX_IMAGE_PIXELS`].
pub fn decode(bytes: &[u8], name: &str, rule: ExifOrientation) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(Error::media_file(name, "is empty", "give an image file"));
    }
    let unknown = || match input::recognise(&bytes[..bytes.len().min(input::SIGNATURE_BYTES)]) {
        Some(other) => cannot_read_media(Path::new(name), &other.into()),
        None => Error::media_file(
            name,
            "is not an image of a supported format",
            "give a PNG, JPEG, WebP, GIF, BMP or TIFF file",
        ),
    };
    let cursor = Cursor::new(bytes);
    let format = ::image::guess_format(bytes).map_err(|_| unknown())?;
    let file = ImageFile { bytes, format, name };
    let decoded = reel_support::diagnostic::catch_panic(|| match format {
        ImageFormat::Jpeg => jpeg::decode(file)?.turn_by_exif(file, rule),
        ImageFormat::Png => {
            pixels(PngDecoder::with_limits(cursor, limits()), png_is_rgba(bytes), file)?.turn_by_exif(file, rule)
        }
        ImageFormat::WebP => pixels(WebPDecoder::new(cursor), true, file)?.turn_by_exif(file, rule),
        ImageFormat::Gif => gif(file),
        ImageFormat::Bmp => pixels(BmpDecoder::new(cursor), true, file),
        ImageFormat::Tiff => tiff(file),
        _ => Err(unknown()),
    });
    decoded.unwrap_or_else(|panic| {
        let what = format!("is damaged: its decoder ended with \"{panic}\"");
        Err(Error::media_file(name, what, "save or download it again"))
    })
}

/// The file of an image: its length, format, and name for error messages.
#[derive(Clone, Copy)]
struct ImageFile<'a> {
    bytes: &'a [u8],
    format: ImageFormat,
    name: &'a str,
}

impl ImageFile<'_> {
    /// Whether the file is long enough for this many pixels. Decoders allocate the pixels that the header states before
    /// they read the data, so a few damaged bytes could take a gigabyte.
    fn can_hold(self, pixels: u64) -> bool {
        /// Images of up to this many pixels are always decoded.
        const SMALL: u64 = 1 << 24;
        let pixels_per_byte = match self.format {
            // Lossless WebP codes the pixels of an image of one colour in 0 bits, so a file of any length can hold
            // any number of pixels.
            ImageFormat::WebP if self.bytes.get(12..16) == Some(b"VP8L") => return true,
            // An image of one colour takes almost no data in WebP, and white lines take almost none in TIFF.
            ImageFormat::WebP | ImageFormat::Tiff => 1 << 17,
            // Deflate (PNG) compresses up to 1032 times, and a byte holds eight black and white pixels. The other
            // formats compress less.
            _ => 8 * 1032,
        };
        pixels <= SMALL || pixels <= (self.bytes.len() as u64).saturating_mul(pixels_per_byte)
    }
}

/// Whether Pillow opens this PNG in mode RGBA. It does so for colour type 6 (RGBA), and for type 4 (grey with alpha)
/// with 16 bits. For other types with transparency, the decoder of this program returns RGBA too, but Pillow drops
/// their alpha.
fn png_is_rgba(bytes: &[u8]) -> bool {
    // Bytes 24 and 25 are bit depth and colour type. Before them are 8 bytes of signature, 8 bytes of IHDR's length and
    // name, and 8 bytes of width and height.
    matches!(bytes.get(24..26), Some([_, 6] | [16, 4]))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    limits
}

/// Decodes all pixels after a check of the size in the header. With `blend`, alpha is blended over white; otherwise
/// it is dropped.
fn pixels(decoder: ImageResult<impl ImageDecoder>, blend: bool, file: ImageFile<'_>) -> Result<RgbImage> {
    let name = file.name;
    let damaged = |error| damaged(name, &error);
    let mut decoder = decoder.map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(height, width, file)?;
    decoder.set_limits(limits()).map_err(damaged)?;
    let data = match DynamicImage::from_decoder(decoder).map_err(damaged)? {
        DynamicImage::ImageLuma8(grey) => grey.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => grey.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => drop_alpha(&rgba, blend),
        // Pillow clips 16-bit grey values to 255; for other 16-bit formats it takes the upper byte.
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|&v| [v.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => {
            let rgba: Vec<u8> =
                grey.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]].map(|v| upper_byte(&v))).collect();
            drop_alpha(&rgba, blend)
        }
        DynamicImage::ImageRgb16(rgb) => rgb.iter().map(upper_byte).collect(),
        DynamicImage::ImageRgba16(rgba) => drop_alpha(&rgba.iter().map(upper_byte).collect::<Vec<u8>>(), blend),
        other => {
            let what = format!("has an unsupported pixel format ({:?})", other.color());
            return Err(Error::media_file(name, what, "convert it to 8-bit RGB"));
        }
    };
    Ok(RgbImage { data, height: height as usize, width: width as usize })
}

/// Decodes a TIFF file and turns it by its tag `Orientation`.
fn tiff(file: ImageFile<'_>) -> Result<RgbImage> {
    let decoder = || TiffDecoder::new(Cursor::new(file.bytes));
    let image = pixels(decoder(), true, file)?;
    // A tag that cannot be read, or has another value than 1 to 8, does not turn the image.
    let orientation = decoder().and_then(|mut decoder| decoder.orientation()).unwrap_or(Orientation::NoTransforms);
    image.turn(orientation, file.name)
}

fn upper_byte(sample: &u16) -> u8 {
    (sample >> 8) as u8
}

/// Converts RGBA to RGB: blends over white with the integer arithmetic of Pillow's `paste` with a mask, or drops alpha.
fn drop_alpha(rgba: &[u8], blend: bool) -> Vec<u8> {
    let over_white = |sample: u8, alpha: u8| {
        let alpha = u32::from(alpha);
        divide_by_255(255 * (255 - alpha) + u32::from(sample) * alpha)
    };
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for p in rgba.chunks_exact(4) {
        let colour = [p[0], p[1], p[2]];
        rgb.extend_from_slice(&if blend { colour.map(|sample| over_white(sample, p[3])) } else { colour });
    }
    rgb
}

/// `value / 255`, rounded to nearest, for `value` up to 255 * 255.
fn divide_by_255(value: u32) -> u8 {
    let value = value + 128;
    (((value >> 8) + value) >> 8) as u8
}

/// Decodes the first frame of a GIF. The canvas around the frame is filled with the transparent colour, or with colour
/// 0 if the frame has none, as in Pillow.
fn gif(file: ImageFile<'_>) -> Result<RgbImage> {
    let name = file.name;
    let refuse = |error: gif::DecodingError| {
        Error::media_file(name, format!("is damaged or cut off ({error})"), "save or download it again")
    };
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Bytes(GIF_FRAME_BYTES));
    let mut decoder = options.read_info(file.bytes).map_err(refuse)?;
    check_size(u32::from(decoder.height()), u32::from(decoder.width()), file)?;
    let (mut height, mut width) = (usize::from(decoder.height()), usize::from(decoder.width()));
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let missing = || Error::media_file(name, "contains no image", "save or download it again");
    let frame = decoder.read_next_frame().map_err(refuse)?.ok_or_else(missing)?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    // A frame that reaches beyond the canvas enlarges the canvas, as in Pillow.
    height = height.max(top + usize::from(frame.height));
    width = width.max(left + usize::from(frame.width));
    check_size(height as u32, width as u32, file)?;
    let palette = frame.palette.as_ref().or(global.as_ref());
    let colour = |index: u8| match palette {
        Some(palette) => palette.chunks_exact(3).nth(usize::from(index)).map_or([0; 3], |c| [c[0], c[1], c[2]]),
        None => [index; 3],
    };
    let colours: Vec<[u8; 3]> = (0..=u8::MAX).map(colour).collect();
    let mut data = colours[usize::from(frame.transparent.unwrap_or(0))].repeat(height * width);
    if frame.width > 0 {
        for (y, row) in frame.buffer.chunks_exact(usize::from(frame.width)).enumerate() {
            let start = ((top + y) * width + left) * 3;
            for (pixel, &index) in data[start..].chunks_exact_mut(3).zip(row) {
                pixel.copy_from_slice(&colours[usize::from(index)]);
            }
        }
    }
    Ok(RgbImage { data, height, width })
}

fn check_size(height: u32, width: u32, file: ImageFile<'_>) -> Result<()> {
    let name = file.name;
    if height == 0 || width == 0 {
        return Err(Error::media_file(name, "has a side of 0 pixels", "save or download it again"));
    }
    if u64::from(height) * u64::from(width) > MAX_IMAGE_PIXELS as u64 {
        let what = format!("is {height} x {width} pixels, above the limit of {MAX_IMAGE_PIXELS} pixels in total");
        return Err(Error::media_file(name, what, "make it smaller"));
    }
    if !file.can_hold(u64::from(height) * u64::from(width)) {
        let what = format!("is damaged or cut off: {} bytes cannot hold {height} x {width} pixels", file.bytes.len());
        return Err(Error::media_file(name, what, "save or download it again"));
    }
    Ok(())
}

fn damaged(name: &str, error: &::image::ImageError) -> Error {
    use ::image::ImageError;
    let (what, help) = match error {
        ImageError::Unsupported(_) => ("has an unsupported format", "convert it to 8-bit RGB"),
        ImageError::Limits(_) => ("needs more memory than images may use", "make it smaller"),
        _ => ("is damaged or cut off", "save or download it again"),
    };
    Error::media_file(name, format!("{what} ({error})"), help)
}
