//! Prints lines about work in progress to stderr.

use std::collections::BTreeSet;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Prints a line to stderr, with the arguments of `format!`. If the line cannot be written, because the pipe is
/// closed or the disk of the log is full, the line is lost and the program continues. `eprintln!` would panic.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => {
        $crate::diagnostic::print_note(format_args!($($text)*))
    };
}

/// Prints `text` and a line break to stderr. See [`note!`](crate::diagnostic::note).
pub fn print_note(text: Arguments) {
    // The line is written by one call, so that lines of several processes do not mix.
    let line = format!("{text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Prints a line to stderr, at most once per process for each text. Commands read the files of a model folder more
/// than once, and would repeat the line otherwise.
pub fn print_note_once(text: String) {
    static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let is_new = PRINTED.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
    if is_new {
        print_note(format_args!("note: {text}"));
    }
}
