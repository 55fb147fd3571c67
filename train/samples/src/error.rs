//! The errors of rows and data files. Each error names a location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;
use reel_support::files::LockError;
use serde::{Deserialize, Serialize};

/// An error on the way from a data file to a training sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// An option on the command line or in a configuration file is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// The data file is malformed, or one of its rows cannot be used.
    #[error("{}", .0.diagnostic)]
    Row(RowFailure),
    /// The output folder, a checkpoint or a log cannot be used as requested.
    #[error("{0}")]
    Output(Diagnostic),
    /// A file could not be read or written.
    #[error("{0}")]
    Io(Diagnostic),
    /// A file could not be written because the disk is full, or because the file would exceed the limit on file sizes.
    #[error("{diagnostic}")]
    NoRoom {
        /// The file, what is wrong, and what to do.
        diagnostic: Diagnostic,
        /// How the user can free disk space or raise the limit (a text of
        /// [`reel_support::diagnostic::disk_full_help`]).
        remedy: &'static str,
    },
    /// The run was interrupted and stopped after a finished step.
    #[error("{0}")]
    Stopped(Diagnostic),
    /// Another process of the run has failed, or cannot be reached.
    #[error(transparent)]
    Ranks(#[from] reel_support::ranks::RankError),
    /// An error of the model's folder or of its inputs.
    #[error(transparent)]
    Input(#[from] reel_input::InputError),
}

/// The error of a row. All ranks handle it in the same way: all skip the row, or all end the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowFailure {
    /// The kind of the error.
    pub kind: RowFailureKind,
    /// Names the row, and its media file if that is at fault, what is wrong, and what to do.
    pub diagnostic: Diagnostic,
}

/// The kinds of errors of rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RowFailureKind {
    /// The data file, or one of its rows, is malformed.
    Data,
    /// A row cannot be trained on, for example because it has no token to learn.
    Row,
    /// A row has more tokens than the limit.
    TooLong,
    /// An image or a video of a row cannot be loaded.
    Media {
        /// Why the image or video cannot be loaded.
        cause: SkipCause,
        /// Whether the media file could be read; if so, its content is at fault.
        was_read: bool,
    },
    /// Images or videos cannot be read for a reason that does not concern a single row, such as a media folder that
    /// no longer exists.
    MediaUnavailable,
}

impl RowFailureKind {
    /// The error of this kind with the given diagnostic.
    pub fn error(self, diagnostic: Diagnostic) -> SampleError {
        SampleError::Row(RowFailure { kind: self, diagnostic })
    }
}

/// Why a row is skipped. Rows that are skipped for one cause can usually be fixed in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipCause {
    /// The row is not JSON, or its fields are wrong.
    Malformed,
    /// The row has more tokens than the limit.
    TooLong,
    /// An image or a video cannot be read.
    Media,
    /// Decoding a video took longer than `--media-timeout`, both in the first and in the second attempt.
    DecoderTimeout,
    /// The process that decodes a video was killed by a signal, both in the first and in the second attempt.
    DecoderKilled,
    /// Anything else, such as a row without a token to learn.
    Other,
}

impl SkipCause {
    /// The cause's name in a message such as `2 decoder timeout`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too long",
            Self::Media => "unreadable media",
            Self::DecoderTimeout => "decoder timeout",
            Self::DecoderKilled => "decoder killed",
            Self::Other => "other",
        }
    }
}

/// The result type of this crate.
pub type Result<T, E = SampleError> = std::result::Result<T, E>;

impl SampleError {
    /// A [`SampleError::Option`] from location, problem and help.
    pub fn option(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Option(Diagnostic::new(location, what, help))
    }

    /// An error of [`RowFailureKind::Data`] from location, problem and help.
    pub fn data(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        RowFailureKind::Data.error(Diagnostic::new(location, what, help))
    }

    /// An error of [`RowFailureKind::Row`] from location, problem and help.
    pub fn row(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        RowFailureKind::Row.error(Diagnostic::new(location, what, help))
    }

    /// An error of [`RowFailureKind::TooLong`] from location, problem and help.
    pub fn too_long(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        RowFailureKind::TooLong.error(Diagnostic::new(location, what, help))
    }

    /// A [`SampleError::Output`] from location, problem and help.
    pub fn output(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Output(Diagnostic::new(location, what, help))
    }

    /// The error of a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_read(path, &source).into()
    }

    /// The error of a file or folder that could not be written.
    pub fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_write(path, &source).into()
    }

    /// The error for a failed attempt to lock the file or folder `path`, the value of the option `flag`.
    pub fn cannot_lock(e: LockError, flag: &str, path: &Path) -> Self {
        let refuse = |what: String, help: &str| Self::output(format!("{flag} {}", path.display()), what, help);
        match e {
            LockError::InUse(holder) => {
                refuse(format!("is in use by {holder}"), "wait until that process ends, or give another path")
            }
            LockError::Io(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists) => {
                refuse("is a file, or has a file in place of a parent folder".into(), "give a folder")
            }
            LockError::Io(e) => Self::cannot_write(path, e),
        }
    }

    /// The error for a thread that could not be started; `what` names the thread's work.
    pub fn cannot_start_thread(what: &str, e: &io::Error) -> Self {
        Self::Output(Diagnostic::cannot_start_thread(what, e))
    }

    /// The error for a data file without a usable row. `reason` is the error of the row at `location`; `used` tells
    /// whether rows of the file were used earlier.
    pub fn no_usable_row(location: &str, reason: &str, used: bool) -> Self {
        Self::data(
            location,
            if used { "no usable row is left" } else { "no row of the file can be used" },
            format!("fix the rows; the error of this row is: {reason}"),
        )
    }

    /// Why a row with this error is skipped.
    pub fn skip_cause(&self) -> SkipCause {
        let Self::Row(failure) = self else { return SkipCause::Other };
        match failure.kind {
            RowFailureKind::Data => SkipCause::Malformed,
            RowFailureKind::TooLong => SkipCause::TooLong,
            RowFailureKind::Media { cause, .. } => cause,
            RowFailureKind::Row | RowFailureKind::MediaUnavailable => SkipCause::Other,
        }
    }

    /// Whether this error is a mistake in the command line, for which the program exits with code 2.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }

    /// The error that an operation interrupted by Ctrl-C returns. The training loop replaces this error by one that
    /// names the last finished step and says how to resume.
    pub fn interrupted() -> Self {
        Self::Stopped(Diagnostic::new("", "interrupted", "run the command again"))
    }
}

impl From<reel_input::rows::DataError> for SampleError {
    fn from(e: reel_input::rows::DataError) -> Self {
        match e {
            reel_input::rows::DataError::Data(diagnostic) => RowFailureKind::Data.error(diagnostic),
            reel_input::rows::DataError::Io(diagnostic) => Self::Io(diagnostic),
        }
    }
}

impl From<FileError> for SampleError {
    fn from(e: FileError) -> Self {
        match e.remedy {
            Some(remedy) => Self::NoRoom { diagnostic: e.diagnostic, remedy },
            None => Self::Io(e.diagnostic),
        }
    }
}

/// Returns [`SampleError::Stopped`] when the run was interrupted.
pub fn error_if_stopped(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(SampleError::interrupted()),
        false => Ok(()),
    }
}
