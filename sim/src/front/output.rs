//! Prints results on stdout.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};

use super::printable::{escape_controls, escape_controls_in_json};

/// Prints a line on stdout, with control characters except newline and tab escaped.
pub fn print_line(text: impl std::fmt::Display) -> Result<()> {
    print(&(escape_controls(&text.to_string()) + "\n"))
}

/// Prints a text on stdout without a line break. On a terminal, control characters except newline and tab are escaped.
/// A file or pipe gets the text unchanged.
pub fn print_text(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print(&escape_controls(text)) } else { print(text) }
}

/// Prints a result as one line of JSON on stdout, with all control characters escaped as JSON does.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&(escape_controls_in_json(&value.to_string()) + "\n"))
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("stdout: cannot be written; check where it is redirected to")
}
