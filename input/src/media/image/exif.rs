//! The orientation of a photograph: EXIF's tag `Orientation` in a JPEG, PNG or WebP file, else the same tag in XMP.
//!
//! Pillow's `ImageOps.exif_transpose` reads both; `load_image` of transformers and the images of datasets turn an image
//! by it, qwen-vl-utils does not. Sources: the EXIF standard (JEITA CP-3451), PNG's chunk `eXIf`, WebP's container.

use ::image::ImageFormat;
use ::image::metadata::Orientation;

/// The name that begins the EXIF segment of a JPEG file, and sometimes the EXIF chunk of other files.
const EXIF: &[u8] = b"Exif\0\0";

/// The name that begins the XMP segment of a JPEG file.
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// The keyword, compression and languages that begin PNG's text chunk with XMP.
const PNG_XMP: &[u8] = b"XML:com.adobe.xmp\0\0\0\0\0";

/// Returns how the stored pixels of a file must be turned to be upright. A tag that cannot be read, or has another
/// value than 1 to 8, does not turn the image.
pub(super) fn orientation(file: &[u8], format: ImageFormat) -> Orientation {
    let blocks = match format {
        ImageFormat::Jpeg => jpeg_blocks(file),
        ImageFormat::Png => png_blocks(file),
        ImageFormat::WebP => webp_blocks(file),
        _ => Vec::new(),
    };
    let exif = blocks.iter().find_map(|block| match block {
        Block::Exif(exif) => Orientation::from_exif_chunk(exif.strip_prefix(EXIF).unwrap_or(exif)),
        Block::Xmp(_) => None,
    });
    let xmp = || {
        blocks.iter().find_map(|block| match block {
            Block::Xmp(xmp) => orientation_in_xmp(xmp),
            Block::Exif(_) => None,
        })
    };
    exif.or_else(xmp).unwrap_or(Orientation::NoTransforms)
}

/// A block of metadata in a file.
enum Block<'f> {
    Exif(&'f [u8]),
    Xmp(&'f [u8]),
}

/// The segments APP1 before the first scan.
fn jpeg_blocks(file: &[u8]) -> Vec<Block<'_>> {
    let (mut blocks, mut rest) = (Vec::new(), file.get(2..).unwrap_or_default());
    while let [0xff, marker, tail @ ..] = rest {
        match (marker, tail) {
            (0xff, _) => rest = &rest[1..],
            (0x01 | 0xd0..=0xd7, _) => rest = tail,
            (0xd8..=0xda, _) => break,
            (_, [high, low, ..]) => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some((segment, after)) = tail.split_at_checked(length.max(2)) else { break };
                let content = &segment[2..];
                if *marker == 0xe1 && content.starts_with(EXIF) {
                    blocks.push(Block::Exif(content));
                } else if *marker == 0xe1 && content.starts_with(XMP) {
                    blocks.push(Block::Xmp(&content[XMP.len()..]));
                }
                rest = after;
            }
            _ => break,
        }
    }
    blocks
}

/// The chunks `eXIf` and `iTXt` anywhere in the file. A chunk is its length, its name, the content and a checksum.
fn png_blocks(file: &[u8]) -> Vec<Block<'_>> {
    let (mut blocks, mut rest) = (Vec::new(), file.get(8..).unwrap_or_default());
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, name @ ..] = *head;
        let Some((content, after)) = tail.split_at_checked(u32::from_be_bytes([a, b, c, d]) as usize) else { break };
        match &name {
            b"eXIf" => blocks.push(Block::Exif(content)),
            b"iTXt" => blocks.extend(content.strip_prefix(PNG_XMP).map(Block::Xmp)),
            _ => {}
        }
        rest = after.get(4..).unwrap_or_default();
    }
    blocks
}

/// The chunks `EXIF` and `XMP ` of a RIFF file. A chunk is its name, its length and the content, padded to even length.
fn webp_blocks(file: &[u8]) -> Vec<Block<'_>> {
    let (mut blocks, mut rest) = (Vec::new(), file.get(12..).unwrap_or_default());
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let [name @ .., a, b, c, d] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some((content, after)) = tail.split_at_checked(length) else { break };
        match &name {
            b"EXIF" => blocks.push(Block::Exif(content)),
            b"XMP " => blocks.push(Block::Xmp(content)),
            _ => {}
        }
        rest = after.get(length % 2..).unwrap_or_default();
    }
    blocks
}

/// Reads `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn orientation_in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(NAME.len()).position(|window| window == NAME)?;
    match &xmp[at + NAME.len()..] {
        [b'=', b'"', digit, ..] | [b'>', digit, ..] => Orientation::from_exif(digit.wrapping_sub(b'0')),
        _ => None,
    }
}
