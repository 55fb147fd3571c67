//! Prints lines about work in progress to stderr.

use std::collections::BTreeSet;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use crate::diagnostic::escape_controls;

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

/// Notes of one kind, of which the first 10 are printed. A data set may have many videos with the same note.
#[derive(Debug)]
pub struct FirstNotes {
    /// What has been noted.
    subjects: Mutex<BTreeSet<String>>,
    /// The note that replaces further ones.
    further: &'static str,
}

impl FirstNotes {
    const MAX: usize = 10;

    /// No notes yet.
    pub const fn new(further: &'static str) -> Self {
        Self { subjects: Mutex::new(BTreeSet::new()), further }
    }

    /// Prints the note about `subject` unless there was one.
    pub fn print(&self, subject: String, note: String) {
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if subjects.contains(&subject) {
            return;
        }
        if subjects.len() == Self::MAX {
            return print_note_once(self.further.to_string());
        }
        subjects.insert(subject);
        print_note_once(escape_controls(&note).into_owned());
    }
}
