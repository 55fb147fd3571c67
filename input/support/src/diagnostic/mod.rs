//! Error messages as data: where the problem is, what is wrong, and what the user can do.
//!
//! Every library error that a user can cause carries a [`Diagnostic`]. A caller that adds context (for example a file
//! and a line before the name of a field) changes the fields of the diagnostic; it never parses the printed message.
//!
//! [`note!`] prints a line about the work to stderr. [`input`] opens the files that a user names. [`escape_controls`]
//! makes text of unknown origin safe to print. [`catch_panic`] turns a panic of a library that reads untrusted files
//! into an error. [`resource_shortage_help`], [`failed_start_help`] and [`disk_full_help`] return the help texts for
//! exceeded limits of the machine. [`TemporaryPaths`] registers files that a signal must not leave behind.

pub mod input;
mod message;
mod notes;
mod panics;
mod printable;
mod redact;
mod shortage;
mod unfinished;

pub use crate::note;
pub use message::{Diagnostic, display_path};
pub use notes::{print_note, print_note_once};
pub use panics::{catch_panic, is_panic_caught};
pub use printable::{escape_controls, escape_controls_in_json, one_line};
pub use redact::redact_urls;
pub use shortage::{disk_full_help, failed_start_help, resource_shortage_help};
pub use unfinished::{TemporaryPaths, create_temporary, remove_unfinished_files};
