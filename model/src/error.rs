//! The error of this crate. Each message names the location, what is wrong there, and what the user can do.

use reel_device::DeviceError;
use std::io;
use std::path::Path;

use reel_diagnostic::{Diagnostic, no_room_help};

/// An error of this crate: in a model folder, a conversation, or the computation of hidden states.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A key of a JSON file of the model folder is missing, has the wrong type, or contradicts another key.
    #[error(transparent)]
    Config(Diagnostic),
    /// A weight file is damaged or incomplete, or does not match the config.
    #[error(transparent)]
    Weights(Diagnostic),
    /// The tokenizer cannot be read or does not match the config.
    #[error(transparent)]
    Tokenizer(Diagnostic),
    /// The chat template cannot be read, or rejects the conversation.
    #[error(transparent)]
    Template(Diagnostic),
    /// The conversation is malformed, or one of its images or videos cannot be loaded.
    #[error(transparent)]
    Messages(Diagnostic),
    /// Prepared inputs (`--inputs`) contradict each other or the model.
    #[error(transparent)]
    Inputs(Diagnostic),
    /// An option of the command line has a value that does not fit the others.
    #[error(transparent)]
    Option(Diagnostic),
    /// A hub id could not be resolved.
    #[error(transparent)]
    Hub(Diagnostic),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(Diagnostic),
    /// A file could not be written because the disk is full, or because the file would exceed the limit on file sizes.
    #[error("{diagnostic}")]
    NoRoom {
        /// The file, what is wrong, and what to do.
        diagnostic: Diagnostic,
        /// What makes room ([`no_room_help`]).
        remedy: &'static str,
    },
    /// An image or a video could not be decoded, or the limits for it contradict each other.
    #[error(transparent)]
    Media(#[from] reel_media::MediaError),
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

/// Defines a constructor `ModelError::NAME(location, what, help)` for each variant that holds a [`Diagnostic`].
macro_rules! constructors {
    ($($name:ident => $variant:ident),* $(,)?) => {
        impl ModelError {
            $(pub(crate) fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                Self::$variant(Diagnostic::new(location, what, help))
            })*
        }
    };
}

constructors! {
    config => Config,
    weights => Weights,
    tokenizer => Tokenizer,
    template => Template,
    messages => Messages,
    inputs => Inputs,
    hub => Hub,
    option => Option,
}

impl ModelError {
    /// Whether the command line is wrong.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }

    /// An [`ModelError::Io`] for a file or folder that could not be read.
    pub(crate) fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, &source))
    }

    /// An [`ModelError::Io`] or [`ModelError::NoRoom`] for a file or folder that could not be written.
    pub(crate) fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        let diagnostic = Diagnostic::cannot_write(path, &source);
        match no_room_help(source.kind()) {
            Some(remedy) => Self::NoRoom { diagnostic, remedy },
            None => Self::Io(diagnostic),
        }
    }

    /// The error's location, problem and help as separate fields, so that a caller can add context
    /// ([`Diagnostic::at`]).
    pub fn into_diagnostic(self) -> Diagnostic {
        match self {
            Self::Option(d)
            | Self::Config(d)
            | Self::Weights(d)
            | Self::Tokenizer(d)
            | Self::Template(d)
            | Self::Messages(d)
            | Self::Inputs(d)
            | Self::Hub(d)
            | Self::Io(d)
            | Self::NoRoom { diagnostic: d, .. } => d,
            Self::Media(e) => e.diagnostic().clone(),
            Self::Runtime(e) => Diagnostic::new("", e.to_string(), ""),
        }
    }
}
