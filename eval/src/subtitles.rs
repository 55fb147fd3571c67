//! The subtitles of a video as one text, which the prompt of `--subtitles` has before the question.

use std::path::Path;

use reel_support::diagnostic::input;
use serde_json::Value;

use crate::error::{Error, Result};

/// Reads a file of subtitles and returns their texts, a line each: SRT, a JSON list of objects with `text` or `line`
/// (LongVideoBench), or JSON Lines of such objects, whose texts are words of one line (Video-MME-v2).
///
/// # Errors
/// The file cannot be read, or is not in one of these formats.
pub fn read_subtitles(path: &Path) -> Result<String> {
    let text = input::read_text(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
    let wrong = |what: String| Error::failed(path.display().to_string(), what, "give the subtitles as published");
    let text = text.trim_start_matches('\u{feff}');
    let parse = |json: &str| serde_json::from_str::<Value>(json).map_err(|e| wrong(format!("is not JSON: {e}")));
    let spoken = |entry: &Value| {
        let text = entry.get("text").or_else(|| entry.get("line")).and_then(Value::as_str);
        text.map(String::from).ok_or_else(|| wrong("has an entry without text".into()))
    };
    match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("json") => {
            let value = parse(text)?;
            let entries = value.as_array().ok_or_else(|| wrong("is not a list of subtitles".into()))?;
            Ok(entries.iter().map(spoken).collect::<Result<Vec<_>>>()?.join("\n"))
        }
        Some("jsonl") => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            Ok(lines.map(|line| spoken(&parse(line)?)).collect::<Result<Vec<_>>>()?.join(" "))
        }
        _ => Ok(lines_of_srt(text)),
    }
}

/// Returns the lines of an SRT file without the numbers and times of the subtitles.
fn lines_of_srt(text: &str) -> String {
    let mut spoken = Vec::new();
    for block in text.replace("\r\n", "\n").split("\n\n") {
        let lines: Vec<&str> = block.lines().filter(|line| !line.trim().is_empty()).collect();
        let times = lines.iter().position(|line| line.contains("-->"));
        spoken.extend(lines.iter().skip(times.map_or(0, |index| index + 1)).map(|line| line.trim().to_string()));
    }
    spoken.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_gives_the_spoken_text() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_subtitles(&path)
        };
        let srt = "1\r\n00:00:01,000 --> 00:00:02,500\r\nTwo and two\r\nmake\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n4\r\n";
        assert_eq!(read("a.srt", srt).unwrap(), "Two and two\nmake\n4");
        let list =
            r#"[{"timestamp": [0, 1], "text": "a b"}, {"start": "00:00:01.0", "end": "00:00:02.0", "line": "c"}]"#;
        assert_eq!(read("a.json", list).unwrap(), "a b\nc");
        assert_eq!(read("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n").unwrap(), "a b");
        for (name, text) in [("b.json", "{}"), ("b.json", "[{}]"), ("b.jsonl", "x"), ("b.json", "[")] {
            let e = read(name, text).unwrap_err().to_string();
            assert!(e.contains(name) && !e.contains('\n'), "{e}");
        }
    }
}
