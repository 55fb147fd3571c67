//! Detects the media type of an image or a video from its bytes.

/// Returns the media type of a file that starts with `content`, by its first bytes; `application/octet-stream` for an
/// unknown format. An unknown format is not an error here, because readers of `data:` URIs also check the bytes.
pub(crate) fn media_type(content: &[u8]) -> &'static str {
    let at = |start: usize, magic: &[u8]| content.get(start..start + magic.len()) == Some(magic);
    match () {
        () if at(0, b"\x89PNG\r\n\x1a\n") => "image/png",
        () if at(0, b"\xff\xd8\xff") => "image/jpeg",
        () if at(0, b"GIF8") => "image/gif",
        () if at(0, b"BM") => "image/bmp",
        () if at(0, b"II*\0") || at(0, b"MM\0*") => "image/tiff",
        () if at(0, b"RIFF") && at(8, b"WEBP") => "image/webp",
        () if at(0, b"RIFF") && at(8, b"AVI ") => "video/x-msvideo",
        () if at(4, b"ftypqt") => "video/quicktime",
        () if at(4, b"ftyp") => "video/mp4",
        // Matroska and WebM files begin with the same bytes.
        () if at(0, b"\x1a\x45\xdf\xa3") => "video/webm",
        () => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_format() {
        for (content, wanted) in [
            (&b"\x89PNG\r\n\x1a\n\0"[..], "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
            (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
            (b"\0\0\0\x20ftypisom", "video/mp4"),
            (b"\x1a\x45\xdf\xa3\x01", "video/webm"),
            (b"RIFF", "application/octet-stream"),
            (b"", "application/octet-stream"),
        ] {
            assert_eq!(media_type(content), wanted);
        }
    }
}
