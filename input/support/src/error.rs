//! The error type of the program's crates: a [`Diagnostic`] for the user, and a [`Kind`] for callers.
//!
//! A caller looks at the kind to decide how to continue: to skip a row, to try again, to exit with another code. Kinds
//! that no caller distinguishes share [`Kind::Failed`]. A caller that adds context changes the diagnostic. Crates whose
//! errors are those of a device have their own types, which become an [`Error`] by `From`.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, disk_full_help};
use crate::files::LockError;

/// The result type of the program's crates.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that the user can act on. Prints as its diagnostic: `location: what; help`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What callers distinguish.
    pub kind: Kind,
    /// Where the problem is, what is wrong, and what the user can do.
    pub diagnostic: Diagnostic,
}

/// The kinds of errors that callers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A mistake in the command line or a configuration file. The program exits with code 2.
    Usage,
    /// A model folder, a conversation or prepared inputs are wrong. All processes that read them get the same error.
    Input,
    /// A file or folder cannot be read or written.
    Io,
    /// A file cannot be written because the disk is full.
    DiskFull,
    /// A file cannot be written because it would exceed the limit on file sizes.
    FileTooLarge,
    /// An image or a video cannot be loaded, or an option of its loading is wrong.
    Media(MediaFailure),
    /// A data file or one of its rows cannot be used.
    Row(RowFailureKind),
    /// A reward function gave no usable rewards.
    Reward,
    /// The model of the semantic reward failed.
    SemanticReward,
    /// A file that a resumed or replayed run reads is missing, or its bytes differ from what the run wrote.
    Damaged,
    /// Another process of the job has failed, or cannot be reached.
    Rank,
    /// The run was interrupted and has stopped after a finished step.
    Stopped,
    /// The caller's interrupt flag ended a generation.
    Interrupted,
    /// A request was not finished by its deadline.
    DeadlineExceeded,
    /// A field of a generation request is invalid. The location in the diagnostic is the field's name.
    Request,
    /// A request has more tokens than the KV cache holds.
    TooLong {
        /// The number of tokens that the KV cache holds.
        room: usize,
    },
    /// The loss does not depend on any trained parameter.
    NothingToTrain,
    /// Logits are NaN.
    NotANumber,
    /// The device has too little free memory.
    OutOfMemory,
    /// The device is not available or failed, or an op refused its arguments.
    Device,
    /// Anything else.
    Failed,
}

/// What is wrong when an image or a video is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MediaFailure {
    /// The content of a file is not usable. Reading it again would not help.
    File,
    /// A file cannot be read: it does not exist, the operating system reports an error, or the file changed while it
    /// was read.
    Unreadable,
    /// Decoding a file took longer than the time limit.
    Timeout,
    /// Decoding a file needs more memory than the memory limit allows, or resizing its frames needs more memory than is
    /// free.
    Memory,
    /// The worker process that decodes a file was killed by a signal.
    Killed,
    /// The caller has stopped the decoding.
    Stopped,
    /// A setting is invalid, or does not fit the video: a command-line flag, or a key in the video or image part of a
    /// chat message. The location in the diagnostic is the setting's name.
    Setting,
    /// No file is at fault: the worker process that decodes files cannot be started or fails, or this machine lacks
    /// threads, open files or memory. Other files would fail too.
    Worker,
}

/// The kinds of errors of rows. All ranks handle a row's error in the same way: all skip the row, or all end the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Kind {
    /// An error of this kind.
    pub fn error(self, diagnostic: Diagnostic) -> Error {
        Error { kind: self, diagnostic }
    }
}

/// Defines a constructor `Error::NAME(location, what, help)` for each of these kinds.
macro_rules! constructors {
    ($($name:ident: $kind:expr),* $(,)?) => {
        impl Error {
            $(
                #[doc = concat!("An error of `", stringify!($kind), "` from location, problem and help.")]
                pub fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                    $kind.error(Diagnostic::new(location, what, help))
                }
            )*
        }
    };
}

constructors! {
    usage: Kind::Usage,
    input: Kind::Input,
    failed: Kind::Failed,
    io: Kind::Io,
    setting: Kind::Media(MediaFailure::Setting),
    data: Kind::Row(RowFailureKind::Data),
    row: Kind::Row(RowFailureKind::Row),
    row_too_long: Kind::Row(RowFailureKind::TooLong),
    reward: Kind::Reward,
    damaged: Kind::Damaged,
    stopped: Kind::Stopped,
    request: Kind::Request,
}

impl Error {
    /// The error of a file or folder that cannot be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: impl Borrow<io::Error>) -> Self {
        Kind::Io.error(Diagnostic::cannot_read(path, source.borrow()))
    }

    /// The error of a file or folder that cannot be written.
    pub fn cannot_write(path: impl AsRef<Path>, source: impl Borrow<io::Error>) -> Self {
        let source = source.borrow();
        let kind = match source.kind() {
            io::ErrorKind::FileTooLarge => Kind::FileTooLarge,
            kind if disk_full_help(kind).is_some() => Kind::DiskFull,
            _ => Kind::Io,
        };
        kind.error(Diagnostic::cannot_write(path, source))
    }

    /// The error of a failed attempt to lock the file or folder `path`, the value of the option `flag`.
    pub fn cannot_lock(e: LockError, flag: &str, path: &Path) -> Self {
        let refuse = |what: String, help: &str| Self::failed(format!("{flag} {}", path.display()), what, help);
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

    /// The error of a command that cannot lock `folder`.
    pub fn cannot_lock_folder(folder: &Path, error: LockError) -> Self {
        match error {
            LockError::InUse(holder) => Self::failed(
                folder.display().to_string(),
                format!("is being written by {holder}"),
                "wait until that process ends, or choose another folder",
            ),
            LockError::Io(e) => Self::cannot_write(folder, e),
        }
    }

    /// The error of a thread that cannot be started; `what` names the thread's work.
    pub fn cannot_start_thread(what: &str, e: &io::Error) -> Self {
        Kind::Failed.error(Diagnostic::cannot_start_thread(what, e))
    }

    /// The error of a media file that is damaged or of the wrong format.
    pub fn media_file(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Kind::Media(MediaFailure::File).error(Diagnostic::new(path.as_ref().display().to_string(), what, help))
    }

    /// The error of a media file whose decoding needs too much memory.
    pub fn media_memory(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Kind::Media(MediaFailure::Memory).error(Diagnostic::new(path.as_ref().display().to_string(), what, help))
    }

    /// The error of an operation that Ctrl-C has interrupted. The training loop replaces it by one that names the last
    /// finished step and says how to resume.
    pub fn interrupted() -> Self {
        Self::stopped("", "interrupted", "run the command again")
    }

    /// The error of a generation that the caller's interrupt flag ended.
    pub fn generation_interrupted() -> Self {
        let (what, help) = ("generation was stopped before it was complete", "run the command again");
        Kind::Interrupted.error(Diagnostic::new("interrupted", what, help))
    }

    /// The error of a request that was not finished by its deadline.
    pub fn deadline_exceeded() -> Self {
        let (what, help) =
            ("reached its time limit before it was complete", "give it more time, or ask for fewer tokens");
        Kind::DeadlineExceeded.error(Diagnostic::new("request", what, help))
    }

    /// The error of logits that are NaN; `position` says for which token.
    pub fn logits_not_a_number(position: &str) -> Self {
        let help = "the weights are damaged, or the dtype overflows: try --dtype f32";
        Kind::NotANumber.error(Diagnostic::new("logits", format!("not a number {position}"), help))
    }

    /// Whether this error is a mistake in the command line or a configuration file, for which the program exits with
    /// code 2.
    pub fn is_usage_error(&self) -> bool {
        self.kind == Kind::Usage
    }

    /// The error of a device or an op with this text, which is printed as it is.
    pub fn device(text: String) -> Self {
        Kind::Device.error(Diagnostic { location: String::new(), what: text, help: String::new() })
    }

    /// How the user can free disk space or raise the limit on file sizes, if one of them is the cause.
    pub fn remedy_for_space(&self) -> Option<&'static str> {
        match self.kind {
            Kind::DiskFull => disk_full_help(io::ErrorKind::StorageFull),
            Kind::FileTooLarge => disk_full_help(io::ErrorKind::FileTooLarge),
            _ => None,
        }
    }

    /// Why a row with this error is skipped.
    pub fn skip_cause(&self) -> SkipCause {
        match self.kind {
            Kind::Row(RowFailureKind::Data) => SkipCause::Malformed,
            Kind::Row(RowFailureKind::TooLong) => SkipCause::TooLong,
            Kind::Row(RowFailureKind::Media { cause, .. }) => cause,
            _ => SkipCause::Other,
        }
    }

    /// Replaces the help text. For callers that know a better one.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        self.kind.error(self.diagnostic.with_help(help))
    }

    /// Replaces the path `from` by `to` in the location.
    #[must_use]
    pub fn with_path_renamed(mut self, from: &Path, to: &Path) -> Self {
        let location = &mut self.diagnostic.location;
        *location = location.replace(&from.display().to_string(), &to.display().to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            // The text of a device's error is that of its own type, such as the full report of the simulator.
            Kind::Device | Kind::OutOfMemory if self.diagnostic.location.is_empty() => {
                f.write_str(&self.diagnostic.what)
            }
            _ => self.diagnostic.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
