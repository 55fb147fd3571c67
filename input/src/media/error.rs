//! The error type of this crate. Each variant carries a [`Diagnostic`]: which file or setting, what is wrong, what to
//! do.

use std::path::Path;

use reel_support::diagnostic::input::UnsuitableFile;
use reel_support::diagnostic::{Diagnostic, failed_start_help, resource_shortage_help};
use serde::{Deserialize, Serialize};

/// The result of a function of this crate.
pub type Result<T> = std::result::Result<T, MediaError>;

/// The location in errors about a `data:` URI, in place of the URI, which is too long.
pub const DATA_URI: &str = "data: URI";

/// An error in reading a media file or in converting it to frames or patches.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum MediaError {
    /// The content of a file is not usable. Reading it again would not help.
    #[error("{0}")]
    File(Diagnostic),
    /// A file cannot be read: it does not exist, the operating system reports an error, or the file changed while it
    /// was read.
    #[error("{0}")]
    Unreadable(Diagnostic),
    /// Decoding a file took longer than the time limit.
    #[error("{0}")]
    Timeout(Diagnostic),
    /// Decoding a file needs more memory than the memory limit allows, or resizing its frames needs more memory than is
    /// free.
    #[error("{0}")]
    Memory(Diagnostic),
    /// The worker process that decodes a file was killed by a signal.
    #[error("{0}")]
    Killed(Diagnostic),
    /// The caller has stopped the decoding ([`DecodeControl`](crate::media::worker::DecodeControl)).
    #[error("{0}")]
    Stopped(Diagnostic),
    /// A setting is invalid, or does not fit the video: a command-line flag, or a key in the video or image part of a
    /// chat message. The location in the diagnostic is the setting's name.
    #[error("{0}")]
    Setting(Diagnostic),
    /// No file is at fault: the worker process that decodes files cannot be started or fails, or this machine lacks
    /// threads, open files or memory. Other files would fail too.
    #[error("{0}")]
    Worker(Diagnostic),
}

impl MediaError {
    /// Creates a [`MediaError::File`].
    pub fn file_error(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::File(Diagnostic::new(path.as_ref().display().to_string(), what, help))
    }

    /// Creates a [`MediaError::Memory`].
    pub(crate) fn memory_error(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Memory(Diagnostic::new(path.as_ref().display().to_string(), what, help))
    }

    /// Creates a [`MediaError::Setting`].
    pub fn setting_error(name: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Setting(Diagnostic::new(name, what, help))
    }

    /// Creates a [`MediaError::Unreadable`]; a [`MediaError::File`] if the file is something else than its name says;
    /// or a [`MediaError::Worker`] if this machine lacks a resource such as memory or open files.
    pub(crate) fn cannot_read(path: &Path, error: &std::io::Error) -> Self {
        let diagnostic = Diagnostic::cannot_read(path, error);
        let why = error.get_ref().and_then(|cause| cause.downcast_ref());
        match why {
            Some(UnsuitableFile::Other { .. }) => Self::File(diagnostic),
            _ if resource_shortage_help(error).is_some() => Self::Worker(diagnostic),
            _ => Self::Unreadable(diagnostic),
        }
    }

    pub(crate) fn cannot_start_worker(program: &Path, error: &std::io::Error) -> Self {
        let what = format!("cannot be started as the process that decodes media: {error}");
        let help = failed_start_help(error).unwrap_or("check that the program exists and may be executed");
        Self::Worker(Diagnostic::new(program.display().to_string(), what, help))
    }

    /// Creates a [`MediaError::Worker`]: the `operation` on a file failed because this machine could not create
    /// threads.
    pub(crate) fn cannot_start_threads(path: &Path, operation: &str, error: &std::io::Error) -> Self {
        let what = format!("{operation} failed because threads cannot be created: {error}");
        let help = failed_start_help(error).unwrap_or("check the limits of this process (ulimit -a)");
        Self::Worker(Diagnostic::new(path.display().to_string(), what, help))
    }

    /// Location, problem and help of this error.
    pub fn diagnostic(&self) -> &Diagnostic {
        match self {
            Self::File(diagnostic)
            | Self::Unreadable(diagnostic)
            | Self::Timeout(diagnostic)
            | Self::Memory(diagnostic)
            | Self::Killed(diagnostic)
            | Self::Stopped(diagnostic)
            | Self::Setting(diagnostic)
            | Self::Worker(diagnostic) => diagnostic,
        }
    }

    /// Replaces the path in an error about a file by `name`, for a caller that knows a better name of the file. Errors
    /// of settings and of the worker program stay as they are.
    #[must_use]
    pub fn with_file_name(self, name: &str) -> Self {
        match self {
            Self::Setting(_) | Self::Worker(_) => self,
            _ => self.with_location(|_| name.to_owned()),
        }
    }

    /// Adds `part`, the part of a chat message that has the media, to the error's location if the location is a setting
    /// or a `data:` URI. Other errors already have the path or address of their file.
    #[must_use]
    pub fn with_message_part(self, part: &str) -> Self {
        match matches!(self, Self::Setting(_)) || self.diagnostic().location == DATA_URI {
            true => self.with_location(|location| format!("{part}: {location}")),
            false => self,
        }
    }

    /// Names the image file in an error about the size of an image: a [`MediaError::Setting`] becomes a
    /// [`MediaError::File`], and a [`MediaError::Memory`] gets the file's name. Other errors stay as they are.
    pub(crate) fn into_file_error(self, name: &str) -> Self {
        match self {
            Self::Setting(diagnostic) => Self::File(diagnostic).with_file_name(name),
            Self::Memory(_) => self.with_file_name(name),
            other => other,
        }
    }

    fn with_location(mut self, change: impl FnOnce(&str) -> String) -> Self {
        let (Self::File(diagnostic)
        | Self::Unreadable(diagnostic)
        | Self::Timeout(diagnostic)
        | Self::Memory(diagnostic)
        | Self::Killed(diagnostic)
        | Self::Stopped(diagnostic)
        | Self::Setting(diagnostic)
        | Self::Worker(diagnostic)) = &mut self;
        diagnostic.location = change(&diagnostic.location);
        self
    }
}
