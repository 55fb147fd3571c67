//! The error type of this crate. Each variant names the location, what is wrong there, and what to do.

use std::path::Path;

use reel_input::media::MediaError;
use reel_input::rows::DataError;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;

/// The reason why a curation cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum CurateError {
    /// A row of the list of questions, or the media file that the row names, cannot be used.
    #[error("{0}")]
    Row(Diagnostic),
    /// A file of the output folder has other content than an earlier run wrote, or belongs to another run.
    #[error("{0}")]
    Output(Diagnostic),
    /// An endpoint cannot be used at all.
    #[error("{0}")]
    Endpoint(Diagnostic),
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(Diagnostic),
    /// The process was asked to stop.
    #[error("{0}")]
    Stopped(Diagnostic),
    /// The list cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A video or an image cannot be read.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// The result of a function of this crate.
pub type Result<T, E = CurateError> = std::result::Result<T, E>;

impl CurateError {
    pub(crate) fn output_error(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Output(Diagnostic::new(location, what, help))
    }

    pub(crate) fn cannot_read(path: &Path, e: &std::io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, e))
    }

    pub(crate) fn cannot_write(path: &Path, e: &std::io::Error) -> Self {
        Self::cannot_save(FileError::cannot_write(path, e))
    }

    /// The error of writing a file, which is first written under a temporary name.
    pub(crate) fn cannot_save(e: FileError) -> Self {
        match e.remedy {
            Some(remedy) => Self::no_room(e.diagnostic, remedy),
            None => Self::Io(e.diagnostic),
        }
    }

    fn no_room(diagnostic: Diagnostic, remedy: &str) -> Self {
        Self::Io(diagnostic.with_help(format!("{remedy}, then run reel curate again with --resume")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use super::*;

    #[test]
    fn full_disk_says_how_the_curation_continues() {
        let full = io::Error::from(ErrorKind::StorageFull);
        let path = Path::new("out/reason.parquet");
        let want = "out/reason.parquet: cannot be written: the disk is full; free space on that disk, then run reel \
                    curate again with --resume";
        assert_eq!(CurateError::cannot_write(path, &full).to_string(), want);
        let denied = CurateError::cannot_write(path, &ErrorKind::PermissionDenied.into()).to_string();
        assert!(!denied.contains("--resume"), "{denied}");
    }
}
