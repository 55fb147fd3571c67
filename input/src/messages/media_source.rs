//! Where the bytes of an image or a video come from: a path, an address, a `data:` URI, or base64 without its head.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::fetch::without_secrets;

/// Where the bytes of an image or a video come from.
#[derive(Debug, Clone, PartialEq)]
pub enum MediaSource {
    /// The path of a local file.
    Path(PathBuf),
    /// An `http:` or `https:` address.
    Url(String),
    /// A whole `data:` URI.
    Data(String),
}

impl MediaSource {
    /// Parses a path, or a `file://`, `http(s)://` or `data:` address. Relative paths are resolved against `root`. A
    /// text that is the base64 of an image or a video file, as ms-swift accepts it, becomes a `data:` URI.
    pub fn parse(text: &str, root: &Path) -> Self {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        if lower.starts_with("http://") || lower.starts_with("https://") {
            MediaSource::Url(text.to_string())
        } else if lower.starts_with("data:") {
            MediaSource::Data(text.to_string())
        } else if let Some(path) = text.strip_prefix("file://") {
            MediaSource::Path(root.join(path))
        } else if let Some(media_type) = media_type_of_base64(text) {
            MediaSource::Data(format!("data:{media_type};base64,{text}"))
        } else {
            MediaSource::Path(root.join(text))
        }
    }

    /// The path or address of this source, or the text `data: URI`, for error messages and the chat template. An
    /// address is shown without user name, password and query.
    pub fn path_or_address(&self) -> String {
        match self {
            MediaSource::Path(path) => path.display().to_string(),
            MediaSource::Url(url) => without_secrets(url),
            MediaSource::Data(_) => crate::media::DATA_URI.to_string(),
        }
    }
}

/// A `data:` URI with the bytes of an image file.
pub fn image_data_uri(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    format!("data:{};base64,{text}", media_type_of_base64(&text).unwrap_or("application/octet-stream"))
}

/// The minimum length, in characters, of a text that may be base64. The smallest image files have about this length
/// in base64.
const MIN_BASE64: usize = 48;

/// The media type of a text that is the base64 of an image or a video file, by the file's first bytes; `None` for any
/// other text. A path is practically never taken for base64: its first characters would have to decode to the
/// signature of a format, and it could not contain `.`, `_` or `-`.
pub fn media_type_of_base64(text: &str) -> Option<&'static str> {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'\r' | b'\n');
    if text.len() < MIN_BASE64 || !text.bytes().all(is_base64) {
        return None;
    }
    let start: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).take(16).collect();
    let bytes = STANDARD_NO_PAD.decode(start).ok()?;
    let at = |start: usize, magic: &[u8]| bytes.get(start..start + magic.len()) == Some(magic);
    match () {
        () if at(0, b"\x89PNG\r\n\x1a\n") => Some("image/png"),
        () if at(0, b"\xff\xd8\xff") => Some("image/jpeg"),
        () if at(0, b"GIF8") => Some("image/gif"),
        // The four bytes after the size of a BMP file are reserved and 0.
        () if at(0, b"BM") && at(6, &[0; 4]) => Some("image/bmp"),
        () if at(0, b"II*\0") || at(0, b"MM\0*") => Some("image/tiff"),
        () if at(0, b"RIFF") && at(8, b"WEBP") => Some("image/webp"),
        () if at(0, b"RIFF") && at(8, b"AVI ") => Some("video/x-msvideo"),
        () if at(4, b"ftyp") => Some("video/mp4"),
        () if at(0, b"\x1a\x45\xdf\xa3") => Some("video/webm"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The base64 of a file with the signature of a format is a `data:` URI of that file, with or without line
        /// breaks.
        #[test]
        fn base64_of_images_and_videos_is_data(
            kind in prop::sample::select(vec![
                (&b"\x89PNG\r\n\x1a\n"[..], "image/png"), (b"\xff\xd8\xff\xe0", "image/jpeg"), (b"GIF89a", "image/gif"),
                (b"RIFF\0\0\0\0WEBP", "image/webp"), (b"\0\0\0\x20ftyp", "video/mp4"),
            ]),
            rest in prop::collection::vec(any::<u8>(), 40..200),
            in_lines in any::<bool>(),
        ) {
            let mut text = STANDARD.encode([kind.0, &rest].concat());
            if in_lines {
                text.insert(44, '\n');
            }
            let source = MediaSource::parse(&text, Path::new("root"));
            prop_assert_eq!(source, MediaSource::Data(format!("data:{};base64,{text}", kind.1)));
        }

        #[test]
        fn paths_stay_paths(path in "[a-zA-Z0-9+/]{1,80}(\\.[a-z]{3})?") {
            prop_assume!(media_type_of_base64(&path).is_none());
            prop_assert_eq!(MediaSource::parse(&path, Path::new("/r")), MediaSource::Path(Path::new("/r").join(&path)));
        }
    }
}
