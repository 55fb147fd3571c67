//! Images and videos that are sent with each prompt, as data URIs.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Whether a file is sent as an image or as a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// A part of type `image_url`.
    Image,
    /// A part of type `video_url`.
    Video,
}

/// An image or a video with its bytes.
#[derive(Clone, Debug)]
pub struct MediaFile {
    /// Whether the file is sent as an image or as a video.
    pub kind: MediaKind,
    /// The file's bytes.
    pub bytes: Arc<[u8]>,
}

impl MediaFile {
    /// The part of a chat message that carries this file.
    pub(crate) fn message_part(&self) -> Value {
        let uri = format!("data:{};base64,{}", self.mime_type(), STANDARD.encode(&self.bytes));
        match self.kind {
            MediaKind::Image => json!({"type": "image_url", "image_url": {"url": uri}}),
            MediaKind::Video => json!({"type": "video_url", "video_url": {"url": uri}}),
        }
    }

    /// The MIME type, found by the first bytes of the file; a general type for formats that are not listed here.
    fn mime_type(&self) -> &'static str {
        let begins = |signature: &[u8]| self.bytes.starts_with(signature);
        let has_at = |at: usize, signature: &[u8]| self.bytes.get(at..).is_some_and(|rest| rest.starts_with(signature));
        match self.kind {
            MediaKind::Image if begins(b"\x89PNG") => "image/png",
            MediaKind::Image if begins(b"\xff\xd8") => "image/jpeg",
            MediaKind::Image if begins(b"GIF8") => "image/gif",
            MediaKind::Image if has_at(8, b"WEBP") => "image/webp",
            MediaKind::Image if begins(b"BM") => "image/bmp",
            MediaKind::Video if begins(b"\x1a\x45\xdf\xa3") => "video/webm",
            MediaKind::Video if has_at(8, b"AVI ") => "video/x-msvideo",
            MediaKind::Video if has_at(4, b"ftyp") => "video/mp4",
            MediaKind::Image | MediaKind::Video => "application/octet-stream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_a_data_uri_with_its_type() {
        for (kind, bytes, uri) in [
            (MediaKind::Image, &b"\x89PNG\r\n"[..], "data:image/png;base64,iVBORw0K"),
            (MediaKind::Image, b"\xff\xd8\xff", "data:image/jpeg;base64,/9j/"),
            (MediaKind::Video, b"\0\0\0 ftyp", "data:video/mp4;base64,AAAAIGZ0eXA="),
            (MediaKind::Video, b"", "data:application/octet-stream;base64,"),
        ] {
            let part = MediaFile { kind, bytes: bytes.into() }.message_part();
            let field = if kind == MediaKind::Image { "image_url" } else { "video_url" };
            assert_eq!((&part["type"], &part[field]["url"]), (&field.into(), &uri.into()));
        }
    }
}
