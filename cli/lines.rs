//! Reads files with one JSON value per line.

use std::path::Path;

use anyhow::Result;
use reel_support::diagnostic::Diagnostic;

use crate::fail::failed;
use crate::output;

/// Parses each line that is not blank with `parse`. Returns the values with their line numbers, counted from 1. An
/// error has the file and the line number in front.
pub fn parse_json_lines<T, E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<(usize, T)>> {
    let bytes = output::read_file(path)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            return Err(failed(location(path, line), "is not UTF-8", "save the file as UTF-8"));
        }
    };
    // Skips the byte order mark that some Windows programs write at the start of a file.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(i, line)| -> Result<(usize, T)> {
        let row = parse(line).map_err(|e| {
            let message = format!("{}: {e}", location(path, i + 1));
            anyhow::Error::from(e).context(message)
        })?;
        Ok((i + 1, row))
    });
    rows.collect()
}

/// Prints a warning on stderr if some rows have a solution that no answer can be compared with, because the scores of
/// these rows say nothing about the answers. `check` returns what is wrong with a row's solution. Returns the number
/// of these rows.
pub fn warn_of_unusable_solutions<T>(
    path: &Path,
    rows: &[(usize, T)],
    check: impl Fn(&T) -> Result<(), Diagnostic>,
    quiet: bool,
) -> usize {
    let mut faults = rows.iter().filter_map(|(line, row)| Some(check(row).err()?.at(location(path, *line))));
    let Some(first) = faults.next() else { return 0 };
    let count = 1 + faults.count();
    if !quiet {
        let of = rows.len();
        reel_support::diagnostic::note!(
            "warning: {count} of {of} rows have a solution that no answer can match, so their scores say nothing about the answers; the first: {first}"
        );
    }
    count
}

fn location(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}
