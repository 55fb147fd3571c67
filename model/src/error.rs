//! The error of this crate. Each message names the location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;

use reel_device::DeviceError;
use reel_input::InputError;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::{FileError, LockError};

/// An error of this crate: in a model folder, a conversation, or the computation of hidden states.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An error that the crate `reel-input` also reports: a file of the model folder cannot be read or written, its
    /// content is wrong, or prepared inputs are wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A weight file is incomplete, or does not match the config.
    #[error(transparent)]
    Weights(Diagnostic),
    /// An option of the command line has a value that does not fit the other options.
    #[error(transparent)]
    Option(Diagnostic),
    /// An exchange with the other processes that compute the model failed.
    #[error(transparent)]
    Rank(Diagnostic),
    /// An error of a device, a tensor or the autograd tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
}

impl From<DeviceError> for ModelError {
    fn from(e: DeviceError) -> ModelError {
        ModelError::Runtime(e.into())
    }
}

/// The result type of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Defines a constructor `ModelError::NAME(location, what, help)` for each kind of error that holds a [`Diagnostic`].
macro_rules! constructors {
    ($($name:ident => $make:expr),* $(,)?) => {
        impl ModelError {
            $(pub(crate) fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                $make(Diagnostic::new(location, what, help))
            })*
        }
    };
}

constructors! {
    config => |d| Self::Input(InputError::Config(d)),
    tokenizer => |d| Self::Input(InputError::Tokenizer(d)),
    inputs => |d| Self::Input(InputError::Inputs(d)),
    weights => Self::Weights,
    option => Self::Option,
}

impl ModelError {
    /// Whether this error is a mistake in the command line.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }

    /// The error of a file or folder that could not be read.
    pub(crate) fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Input(InputError::Io(Diagnostic::cannot_read(path, &source)))
    }

    /// The error of a file or folder that could not be written.
    pub(crate) fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_write(path, &source).into()
    }

    /// The error of a command that cannot lock `folder`.
    pub fn cannot_lock(folder: &Path, error: LockError) -> Self {
        match error {
            LockError::InUse(holder) => Self::config(
                folder.display().to_string(),
                format!("is being written by {holder}"),
                "wait until that process ends, or choose another folder",
            ),
            LockError::Io(e) => Self::cannot_write(folder, e),
        }
    }

    /// The error's location, problem and help as separate fields, so that a caller can add context
    /// ([`Diagnostic::at`]).
    pub fn into_diagnostic(self) -> Diagnostic {
        match self {
            Self::Input(e) => e.into_diagnostic(),
            Self::Weights(d) | Self::Option(d) | Self::Rank(d) => d,
            Self::Runtime(e) => Diagnostic::new("", e.to_string(), ""),
        }
    }
}

impl From<FileError> for ModelError {
    fn from(error: FileError) -> Self {
        Self::Input(error.into())
    }
}

impl From<reel_input::media::MediaError> for ModelError {
    fn from(error: reel_input::media::MediaError) -> Self {
        Self::Input(error.into())
    }
}
