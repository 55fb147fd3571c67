//! Reads files with one JSON value per line.

use std::path::Path;

use anyhow::Result;

use crate::fail::failed;
use crate::output;

/// Parses each line that is not blank with `parse`. Returns the first error, prefixed by the file and the line
/// number.
pub fn parse_json_lines<T, E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>> {
    let bytes = output::read_file(path)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            return Err(failed(location(path, line), "is not UTF-8", "save the file as UTF-8"));
        }
    };
    // Skip the byte order mark with which some Windows programs begin a file.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(i, line)| {
        parse(line).map_err(|e| {
            let message = format!("{}: {e}", location(path, i + 1));
            anyhow::Error::from(e).context(message)
        })
    });
    rows.collect()
}

fn location(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}
