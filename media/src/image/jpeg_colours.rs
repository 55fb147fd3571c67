//! Which colours the components of a JPEG are, by the rules of libjpeg (`default_decompress_parms`), which Pillow uses:
//! the JFIF marker counts first, then Adobe's, then the ids of the components.

use jpeg_decoder::ColorTransform;

/// What the markers before the first scan say.
#[derive(Debug, Default, PartialEq)]
struct Markers {
    has_jfif: bool,
    /// The transform in Adobe's marker: 0 none, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
    /// Ids of the components.
    components: Vec<u8>,
}

/// The conversion to RGB or CMYK that the samples of a JPEG need. `None` for grey images, which need none, and for files
/// without a frame.
pub fn colour_transform(file: &[u8]) -> Option<ColorTransform> {
    let Markers { has_jfif, adobe, components } = markers(file);
    match (components.len(), adobe) {
        (3, _) if has_jfif => Some(ColorTransform::YCbCr),
        (3, Some(0)) => Some(ColorTransform::RGB),
        (3, None) if components == *b"RGB" => Some(ColorTransform::RGB),
        (3, _) => Some(ColorTransform::YCbCr),
        (4, None | Some(0)) => Some(ColorTransform::CMYK),
        (4, _) => Some(ColorTransform::YCCK),
        _ => None,
    }
}

fn markers(file: &[u8]) -> Markers {
    let (mut found, mut rest) = (Markers::default(), file.get(2..).unwrap_or_default());
    while let Some((marker, content, after)) = next_segment(rest) {
        match marker {
            0xe0 if content.len() >= 14 && content.starts_with(b"JFIF\0") => found.has_jfif = true,
            0xee if content.len() >= 12 && content.starts_with(b"Adobe") => found.adobe = Some(content[11]),
            // Start of frame: precision, height, width, number of components, then three bytes for each. Not among these
            // numbers: Huffman tables (c4), an extension (c8), arithmetic conditioning (cc).
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                found.components = content.get(6..).unwrap_or_default().chunks_exact(3).map(|part| part[0]).collect();
            }
            // The first scan begins.
            0xda => break,
            _ => {}
        }
        rest = after;
    }
    found
}

/// Splits off the next segment: its marker, its content, and what follows.
fn next_segment(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let start = bytes.iter().position(|&byte| byte == 0xff)?;
    // A marker may have any number of bytes ff before it.
    let at = start + bytes[start..].iter().position(|&byte| byte != 0xff)?;
    let (marker, bytes) = (bytes[at], &bytes[at + 1..]);
    if marker == 0 || marker == 1 || (0xd0..=0xd8).contains(&marker) {
        // A marker without content, or no marker.
        return Some((marker, &[], bytes));
    }
    let length = usize::from(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    Some((marker, bytes.get(2..length)?, &bytes[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len() + 2).unwrap();
        [&[0xff, marker], &length.to_be_bytes()[..], content].concat()
    }

    fn jpeg(jfif: bool, adobe: Option<u8>, ids: &[u8]) -> Vec<u8> {
        let mut file = vec![0xff, 0xd8];
        if jfif {
            file.extend(segment(0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"));
        }
        if let Some(transform) = adobe {
            file.extend(segment(0xee, &[&b"Adobe\0\x64\0\0\0\0"[..], &[transform]].concat()));
        }
        // Fill bytes before a marker, and a table whose number lies among those of frames.
        file.push(0xff);
        file.extend(segment(0xc4, &[1; 20]));
        let parts: Vec<u8> = ids.iter().flat_map(|&id| [id, 0x11, 0]).collect();
        file.extend(segment(0xc2, &[&[8, 0, 16, 0, 16, ids.len() as u8][..], &parts].concat()));
        file.extend(segment(0xda, &[0; 10]));
        file
    }

    #[test]
    fn jfif_counts_before_adobe_and_adobe_before_the_ids() {
        use ColorTransform::{CMYK, RGB, YCCK, YCbCr};
        for (jfif, adobe, ids, want) in [
            (true, None, &[1, 2, 3][..], Some(YCbCr)),
            (true, None, b"RGB", Some(YCbCr)),
            (true, Some(0), &[1, 2, 3], Some(YCbCr)),
            (false, Some(0), &[1, 2, 3], Some(RGB)),
            (false, Some(1), b"RGB", Some(YCbCr)),
            (false, Some(7), b"RGB", Some(YCbCr)),
            (false, None, &[1, 2, 3], Some(YCbCr)),
            (false, None, b"RGB", Some(RGB)),
            (false, None, &[1, 34, 35], Some(YCbCr)),
            (false, None, &[0, 1, 2, 3], Some(CMYK)),
            (false, Some(0), &[1, 2, 3, 4], Some(CMYK)),
            (false, Some(1), &[1, 2, 3, 4], Some(YCCK)),
            (false, Some(2), &[1, 2, 3, 4], Some(YCCK)),
            (true, None, &[1], None),
        ] {
            assert_eq!(colour_transform(&jpeg(jfif, adobe, ids)), want, "{jfif} {adobe:?} {ids:?}");
        }
    }

    #[test]
    fn cut_files_have_no_frame() {
        let file = jpeg(true, Some(1), &[1, 2, 3]);
        let frame_end = file.len() - 14;
        for len in 0..frame_end {
            assert_eq!(colour_transform(&file[..len]), None, "{len} bytes");
        }
        assert!(colour_transform(&file[..frame_end]).is_some());
    }
}
