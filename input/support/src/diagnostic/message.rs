//! An error message as data.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diagnostic::input;
use crate::diagnostic::printable::{escape_controls, one_line};
use crate::diagnostic::redact::redact_urls;
use crate::diagnostic::shortage::{disk_full_help, failed_start_help, resource_shortage_help};

/// A problem that the user can act on. Prints as one line: `location: what; help`. User names, passwords and queries
/// in URLs are not printed ([`redact_urls`]). A text longer than 2000 characters is printed without its middle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file, line, field, flag or tensor that is wrong. If the location is empty, the caller sets it with
    /// [`Diagnostic::at`].
    pub location: String,
    /// What is wrong at the location.
    pub what: String,
    /// What the user can do about the problem.
    pub help: String,
}

impl Diagnostic {
    /// Creates a diagnostic from these three texts. Line breaks in them become spaces.
    pub fn new(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { location: one_line(location.into()), what: one_line(what.into()), help: one_line(help.into()) }
    }

    /// Creates the diagnostic for a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, error: &io::Error) -> Self {
        if let Some(unsuitable) = unsuitable_file(error) {
            return Self::new(display_path(path), unsuitable.to_string(), unsuitable.help());
        }
        let help = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "make it readable for this user",
            io::ErrorKind::InvalidData => "save the file as UTF-8",
            _ if is_link_loop(error) => LOOP_HELP,
            _ => resource_shortage_help(error).unwrap_or("check the file and the disk it is on"),
        };
        Self::new(display_path(path), format!("cannot be read: {}", io_cause(error)), help)
    }

    /// Creates the diagnostic for a file or folder that could not be written.
    pub fn cannot_write(path: impl AsRef<Path>, error: &io::Error) -> Self {
        let path = path.as_ref();
        if let Some(unsuitable) = unsuitable_file(error) {
            return Self::new(path.display().to_string(), unsuitable.to_string(), unsuitable.help());
        }
        if let Some(folder) = missing_folder(path).filter(|_| error.kind() == io::ErrorKind::NotFound) {
            let what = format!("cannot be written: the folder {} does not exist", folder.display());
            return Self::new(path.display().to_string(), what, "create it, or choose another folder");
        }
        // Creating a file also reports "file exists" for a path that cannot be followed, such as a loop of links. The
        // error of following the path is then the true cause.
        let not_followed = std::fs::metadata(path).err().filter(|_| error.kind() == io::ErrorKind::AlreadyExists);
        let error = not_followed.as_ref().unwrap_or(error);
        if let Some(help) = disk_full_help(error.kind()) {
            let what = format!("cannot be written: {}", io_cause(error));
            return Self::new(path.display().to_string(), what, format!("{help}, or choose another folder"));
        }
        let help = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose a folder that this user may write"
            }
            io::ErrorKind::IsADirectory => "give the name of a file",
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "choose another name",
            _ if is_link_loop(error) => LOOP_HELP,
            _ => resource_shortage_help(error).unwrap_or("check the folder and the disk it is on"),
        };
        Self::new(path.display().to_string(), format!("cannot be written: {}", io_cause(error)), help)
    }

    /// Creates the diagnostic for a thread that could not be started. `purpose` says what the thread is for.
    pub fn cannot_start_thread(purpose: &str, error: &io::Error) -> Self {
        let help = failed_start_help(error).unwrap_or("check the limits of this process (ulimit -a)");
        Self::new(purpose, format!("a thread cannot be created: {error}"), help)
    }

    /// Puts `outer` before the current location: if the location is `fps`, `at("rows.jsonl:3")` makes it
    /// `rows.jsonl:3: fps`.
    #[must_use]
    pub fn at(mut self, outer: impl fmt::Display) -> Self {
        let outer = one_line(outer.to_string());
        self.location = match (outer.is_empty(), self.location.is_empty()) {
            (true, _) => self.location,
            (false, true) => outer,
            (false, false) => format!("{outer}: {}", self.location),
        };
        self
    }

    /// Replaces the help text. For callers that know a better one.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = one_line(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Location, problem and help may each quote text of a file, a row or a model folder. So each of them is
        // escaped and its URLs are redacted.
        let mut text = String::new();
        if !self.location.is_empty() {
            text = printed(&self.location) + ": ";
        }
        text += &printed(&self.what);
        if !self.help.is_empty() {
            text += "; ";
            text += &printed(&self.help);
        }
        f.write_str(&text)
    }
}

/// The maximum number of printed characters per text of a diagnostic. A message may quote a value of any length.
const MAX_PRINTED_CHARS: usize = 2000;

/// Returns a text of a diagnostic as it is printed. URLs are redacted before the text is cut, because a part of a URL
/// may not be recognised as one.
fn printed(text: &str) -> String {
    let redacted = redact_urls(text);
    shortened(&escape_controls(&redacted), MAX_PRINTED_CHARS)
}

/// The maximum number of characters of a path in an error. A longer text that was given as a path is most likely the
/// content of a file.
const MAX_PATH_CHARS: usize = 400;

/// Returns a path for display in an error: without its middle if it is very long.
pub fn display_path(path: impl AsRef<Path>) -> String {
    shortened(&path.as_ref().display().to_string(), MAX_PATH_CHARS)
}

/// Returns a text without its middle if it has more than `limit` characters.
fn shortened(text: &str, limit: usize) -> String {
    let count = text.chars().count();
    if count <= limit {
        return text.to_string();
    }
    let (start, end) = (limit * 3 / 4, limit / 4);
    let part = |from: usize, chars: usize| text.chars().skip(from).take(chars).collect::<String>();
    format!("{} […{} characters…] {}", part(0, start), count - start - end, part(count - end, end))
}

impl std::error::Error for Diagnostic {}

const LOOP_HELP: &str = "remove or correct the symbolic links";

fn unsuitable_file(error: &io::Error) -> Option<&input::UnsuitableFile> {
    error.get_ref().and_then(|cause| cause.downcast_ref())
}

/// Tells whether a path could not be followed because its symbolic links form a loop.
fn is_link_loop(error: &io::Error) -> bool {
    // Linux's error number for a loop of links. The standard library's `ErrorKind` for this error is not stable.
    const ELOOP: i32 = 40;
    error.raw_os_error() == Some(ELOOP)
}

/// Returns the outermost missing folder of a path.
fn missing_folder(path: &Path) -> Option<&Path> {
    let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    folders.take_while(|folder| folder.symlink_metadata().is_err()).last()
}

/// Returns the cause of an I/O error, in the same English words on every operating system.
fn io_cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or folder".to_string(),
        io::ErrorKind::StorageFull => "the disk is full".to_string(),
        io::ErrorKind::FileTooLarge => "it would be larger than the limit on file sizes".to_string(),
        io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        io::ErrorKind::IsADirectory => "it is a folder".to_string(),
        io::ErrorKind::AlreadyExists => "a file of this name exists".to_string(),
        io::ErrorKind::NotADirectory => "a part of its path is a file, not a folder".to_string(),
        _ if is_link_loop(error) => "its symbolic links form a loop".to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_location_problem_and_help() {
        let d = Diagnostic::new("fps", "is negative", "give a number above 0");
        assert_eq!(d.to_string(), "fps: is negative; give a number above 0");
        assert_eq!(d.clone().at("rows.jsonl:3").to_string(), "rows.jsonl:3: fps: is negative; give a number above 0");
        assert_eq!(d.with_help("remove it").to_string(), "fps: is negative; remove it");
        assert_eq!(Diagnostic::new("", "a", "").at("b").to_string(), "b: a");
    }

    #[test]
    fn io_errors_name_cause_and_help() {
        let missing = Diagnostic::cannot_read("a/b", &io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(missing.to_string(), "a/b: cannot be read: there is no such file or folder; check the path");
        let full = Diagnostic::cannot_write("c", &io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.what, "cannot be written: the disk is full");
        let limit = Diagnostic::cannot_write("d", &io::Error::from(io::ErrorKind::FileTooLarge)).to_string();
        assert!(
            limit.contains("larger than the limit on file sizes; raise the limit on file sizes (ulimit"),
            "{limit}"
        );
    }

    #[test]
    fn errors_name_a_missing_folder_and_a_loop_of_links() {
        for (kind, wanted) in [
            (io::ErrorKind::IsADirectory, "c: cannot be written: it is a folder; give the name of a file"),
            (io::ErrorKind::AlreadyExists, "c: cannot be written: a file of this name exists; choose another name"),
            (
                io::ErrorKind::NotADirectory,
                "c: cannot be written: a part of its path is a file, not a folder; choose another name",
            ),
        ] {
            // The path must exist, because for a missing path the message names the missing folder instead.
            let said = Diagnostic::cannot_write("/", &io::Error::from(kind)).to_string();
            assert_eq!(said.replacen('/', "c", 1), wanted);
        }
        let missing = Diagnostic::cannot_write("/no-such/a/b/c.json", &io::Error::from(io::ErrorKind::NotFound));
        let wanted = "/no-such/a/b/c.json: cannot be written: the folder /no-such does not exist; \
                      create it, or choose another folder";
        assert_eq!(missing.to_string(), wanted);
        let circle = Diagnostic::cannot_read("a", &io::Error::from_raw_os_error(40)).to_string();
        assert_eq!(circle, "a: cannot be read: its symbolic links form a loop; remove or correct the symbolic links");
    }

    #[test]
    fn long_texts_are_cut_in_the_middle() {
        let long = format!("is `{}`", "é".repeat(100_000));
        let text = Diagnostic::new("fps", long, "give a number").to_string();
        assert!(text.starts_with("fps: is `ééé") && text.ends_with("ééé`; give a number"), "{text}");
        assert!(text.contains(" […98005 characters…] ") && text.chars().count() < 2100, "{text}");
        let url = format!("http://user:SECRET@host/{}?key=SECRET", "a".repeat(5000));
        assert!(!Diagnostic::new("", url, "").to_string().contains("SECRET"));
    }

    proptest! {
        #[test]
        fn is_always_one_line(location in ".{0,40}", what in "[ -~\n\r]{0,40}", help in "[ -~\n\r]{0,40}", outer in "[ -~\n]{0,9}") {
            let text = Diagnostic::new(location.replace('\u{85}', ""), what, help).at(outer).to_string();
            prop_assert!(!text.contains(['\n', '\r']));
        }
    }
}
