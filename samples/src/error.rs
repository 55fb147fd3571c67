//! The errors of rows and data files. Each error names a location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reel_diagnostic::Diagnostic;
use reel_files::FileError;
use reel_files::LockError;
use serde::{Deserialize, Serialize};

/// An error on the way from a data file to a training sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// An option on the command line or in a configuration file is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// The data file, or one of its rows, is malformed.
    #[error("{0}")]
    Data(Diagnostic),
    /// A row cannot be trained on, for example because it has no token to learn.
    #[error("{0}")]
    Row(Diagnostic),
    /// A row has more tokens than the limit.
    #[error("{0}")]
    TooLong(Diagnostic),
    /// An image or a video of a row cannot be loaded.
    #[error("{diagnostic}")]
    Media {
        /// Names the row and its media file, what is wrong with the file, and what to do.
        diagnostic: Diagnostic,
        /// Why the image or video cannot be loaded.
        cause: SkipCause,
        /// Whether the media file could be read; if so, its content is at fault.
        was_read: bool,
    },
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
        /// How the user can free disk space or raise the limit (a text of [`reel_diagnostic::disk_full_help`]).
        remedy: &'static str,
    },
    /// Images or videos cannot be read for a reason that does not concern a single row, such as a media folder that
    /// no longer exists.
    #[error("{0}")]
    MediaUnavailable(Diagnostic),
    /// The run was interrupted and stopped after a finished step.
    #[error("{0}")]
    Stopped(Diagnostic),
    /// Another process of the run has failed, or cannot be reached.
    #[error(transparent)]
    Ranks(#[from] reel_ranks::RankError),
    /// An error of the model's folder or of its inputs.
    #[error(transparent)]
    Input(#[from] reel_input::InputError),
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

/// Defines a constructor for each variant that holds a diagnostic. It takes the diagnostic's three texts: location,
/// problem and help.
macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => {
        impl SampleError {
            $($(#[$doc])*
            pub fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                Self::$variant(Diagnostic::new(location, what, help))
            })*
        }
    };
}

constructors! {
    /// A [`SampleError::Option`] from location, problem and help.
    option => Option,
    /// A [`SampleError::Data`] from location, problem and help.
    data => Data,
    /// A [`SampleError::Row`] from location, problem and help.
    row => Row,
    /// A [`SampleError::TooLong`] from location, problem and help.
    too_long => TooLong,
    /// A [`SampleError::Output`] from location, problem and help.
    output => Output,
}

impl SampleError {
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
        match self {
            Self::Data(_) => SkipCause::Malformed,
            Self::TooLong(_) => SkipCause::TooLong,
            Self::Media { cause, .. } => *cause,
            _ => SkipCause::Other,
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

impl From<reel_data::DataError> for SampleError {
    fn from(e: reel_data::DataError) -> Self {
        match e {
            reel_data::DataError::Data(diagnostic) => Self::Data(diagnostic),
            reel_data::DataError::Io(diagnostic) => Self::Io(diagnostic),
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
