//! Recognises files that are not data files, by their first bytes or their name: compressed files, archives, images,
//! videos and tables in text formats.

use std::path::Path;

use crate::columnar::media_type;

/// The number of bytes at the start of a file that [`foreign_format`] reads. The signature of a tar archive ends at
/// byte 262.
pub(super) const SIGNATURE_BYTES: u64 = 512;

const UNPACK: &str = "unpack it, and give the file in it";
const CONVERT: &str = "convert it to JSONL or Parquet";

/// If a file that starts with `start` has a format other than JSON and JSONL, returns the name of the format and the
/// help text.
pub(super) fn foreign_format(path: &Path, start: &[u8]) -> Option<(String, &'static str)> {
    let at = |position: usize, magic: &[u8]| start.get(position..position + magic.len()) == Some(magic);
    let packed = match () {
        () if at(0, b"\x1f\x8b") => Some("is compressed with gzip"),
        () if at(0, b"\x28\xb5\x2f\xfd") => Some("is compressed with zstd"),
        () if at(0, b"\xfd7zXZ\0") => Some("is compressed with xz"),
        () if at(0, b"BZh") => Some("is compressed with bzip2"),
        () if at(0, b"PK\x03\x04") => Some("is a ZIP archive"),
        () if at(0, b"7z\xbc\xaf\x27\x1c") => Some("is a 7z archive"),
        () if at(257, b"ustar") => Some("is a tar archive"),
        () => None,
    };
    if let Some(what) = packed {
        return Some((format!("{what}, not a data file itself"), UNPACK));
    }
    // The signature of BMP has only two letters, so a text may begin with it.
    let media = Some(media_type(start)).filter(|media| *media != "image/bmp");
    let kind =
        media.and_then(|media| media.split_once('/')).map(|(kind, _)| kind).filter(|kind| *kind != "application");
    if let Some(kind) = kind {
        let what = format!("is {} file, not a data file", if kind == "image" { "an image" } else { "a video" });
        return Some((what, "give a data file whose rows name it"));
    }
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte))?;
    let is_json = matches!(first, b'{' | b'[');
    match extension.as_str() {
        "csv" | "tsv" if !is_json => {
            Some((format!("is a table in {}, which is not supported", extension.to_ascii_uppercase()), CONVERT))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_formats_are_named() {
        let mut tar = vec![b'a'; 300];
        tar[257..262].copy_from_slice(b"ustar");
        for (name, start, wanted) in [
            ("r.jsonl.gz", &b"\x1f\x8b\x08"[..], "is compressed with gzip"),
            ("r.jsonl", b"\x28\xb5\x2f\xfd\x04", "is compressed with zstd"),
            ("r.zip", b"PK\x03\x04", "is a ZIP archive"),
            ("r.tar", &tar, "is a tar archive"),
            ("a.png", b"\x89PNG\r\n\x1a\n\0", "is an image file"),
            ("v.mp4", b"\0\0\0\x20ftypisom", "is a video file"),
            ("r.csv", b"prompt,answer\n", "is a table in CSV"),
            ("r.TSV", b"\xef\xbb\xbfprompt\tanswer\n", "is a table in TSV"),
        ] {
            let (what, help) = foreign_format(Path::new(name), start).unwrap();
            assert!(what.starts_with(wanted) && !help.is_empty(), "{name}: {what}");
        }
        for (name, start) in [("r.csv", &b" {\"a\": 1}"[..]), ("r.jsonl", b"text"), ("r.json", b""), ("r", b"[")] {
            assert_eq!(foreign_format(Path::new(name), start), None, "{name}");
        }
    }
}
