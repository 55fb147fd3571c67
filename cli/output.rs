//! Prints results on stdout as text or JSON, and writes output files atomically: a failed write leaves no incomplete
//! file.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use reel_support::diagnostic::{Diagnostic, escape_controls, escape_controls_in_json, input};
use reel_support::files::AtomicFile;
use serde::Serialize;

/// Prints a line on stdout, with control characters except newline and tab escaped.
pub fn print_line(text: impl std::fmt::Display) -> Result<()> {
    write_line(&escape_controls(&text.to_string()))
}

fn write_line(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("stdout: cannot be written; check where it is redirected to")
}

/// Prints a text, such as a model's answer, on stdout without a line break, and flushes. On a terminal, control
/// characters except newline and tab are escaped, because the terminal would interpret them. A file or pipe gets the
/// text unchanged.
pub fn print_text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let shown = if out.is_terminal() { escape_controls(text) } else { Cow::Borrowed(text) };
    out.write_all(shown.as_bytes())
        .and_then(|()| out.flush())
        .context("stdout: cannot be written; check where it is redirected to")
}

/// Returns true if stdout shows colours: it is a terminal, and `NO_COLOR` and `TERM=dumb` do not forbid them.
pub fn stdout_shows_colors() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints a line of texts on stdout, each with the terminal's code for its colour (such as `32` for green), or with
/// none. Control characters of the texts except newline and tab are escaped.
pub fn print_colored_line<'a>(texts: impl IntoIterator<Item = (&'a str, Option<u8>)>) -> Result<()> {
    let shown = texts.into_iter().map(|(text, color)| match color {
        Some(code) => format!("\x1b[{code}m{}\x1b[0m", escape_controls(text)),
        None => escape_controls(text).into_owned(),
    });
    write_line(&shown.collect::<String>())
}

/// Prints a result as one line of JSON on stdout, with all control characters escaped as JSON does.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    write_line(&escape_controls_in_json(&serde_json::to_string(value)?))
}

/// Returns true if stderr is a terminal, on which progress can be redrawn in place.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Writes a file atomically. If the write fails, an existing file at this path stays unchanged.
pub fn write_file(to: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(bytes).map_err(|e| cannot_write(to, e))?;
    Ok(draft.commit()?)
}

/// Makes the error for a file that could not be written.
pub fn cannot_write(path: &Path, e: io::Error) -> anyhow::Error {
    let message = Diagnostic::cannot_write(path, &e);
    anyhow::Error::from(e).context(message)
}

/// Makes the error for a file that could not be read.
pub fn cannot_read(path: &Path, e: io::Error) -> anyhow::Error {
    let message = Diagnostic::cannot_read(path, &e);
    anyhow::Error::from(e).context(message)
}

/// Reads a whole file that the user named. Refuses pipes and devices, which may never end, and files above 4 GiB.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| cannot_read(path, e))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_is_replaced_without_leftovers() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let to = dir.path().join("x.bin");
        write_file(&to, b"before")?;
        write_file(&to, b"after")?;
        assert_eq!(fs::read(&to)?, b"after");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn error_names_the_missing_folder_in_one_line() {
        let e = write_file(Path::new("no/such/folder/x"), b"").unwrap_err().to_string();
        assert!(e.starts_with("no/such/folder/x: ") && !e.contains('\n'), "{e}");
    }
}
