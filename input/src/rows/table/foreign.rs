//! Recognises files that are not data files, by their first bytes or their name: images, videos and tables in text
//! formats.

use std::path::Path;

use crate::rows::columnar::media_type;

const CONVERT: &str = "convert it to JSONL or Parquet";

/// If a file that starts with `start` has a format other than JSON and JSONL, returns the name of the format and the
/// help text.
pub(super) fn foreign_format(path: &Path, start: &[u8]) -> Option<(String, &'static str)> {
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
        for (name, start, wanted) in [
            ("a.png", &b"\x89PNG\r\n\x1a\n\0"[..], "is an image file"),
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
