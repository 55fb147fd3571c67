//! The error type of this crate. Each message names the location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;

use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;

/// An error in a file of a model folder, in a conversation or its media, or in prepared inputs.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A key of a JSON file of the model folder is missing, has the wrong type, or contradicts another key.
    #[error(transparent)]
    Config(Diagnostic),
    /// A safetensors file is damaged or incomplete.
    #[error(transparent)]
    TensorFile(Diagnostic),
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
    /// A file could not be read or written.
    #[error(transparent)]
    Io(Diagnostic),
    /// A file could not be written because the disk is full, or because the file would exceed the limit on file sizes.
    #[error("{diagnostic}")]
    NoRoom {
        /// The file, what is wrong, and what to do.
        diagnostic: Diagnostic,
        /// How the user can make room ([`reel_support::diagnostic::disk_full_help`]).
        remedy: &'static str,
    },
    /// An image or a video could not be decoded, or its size or frame limits contradict each other.
    #[error(transparent)]
    Media(#[from] crate::media::MediaError),
}

/// The result type of this crate.
pub type Result<T, E = InputError> = std::result::Result<T, E>;

/// Defines a constructor `InputError::NAME(location, what, help)` for each variant that holds a [`Diagnostic`].
macro_rules! constructors {
    ($($name:ident => $variant:ident),* $(,)?) => {
        impl InputError {
            $(pub(crate) fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                Self::$variant(Diagnostic::new(location, what, help))
            })*
        }
    };
}

constructors! {
    config => Config,
    tensor_file => TensorFile,
    tokenizer => Tokenizer,
    template => Template,
    messages => Messages,
    inputs => Inputs,
}

impl InputError {
    /// An [`InputError::Io`] for a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, &source))
    }

    /// An [`InputError::Io`] or [`InputError::NoRoom`] for a file or folder that could not be written.
    pub(crate) fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_write(path, &source).into()
    }

    /// The error's location, problem and help as separate fields, so that a caller can add context
    /// ([`Diagnostic::at`]).
    pub fn into_diagnostic(self) -> Diagnostic {
        match self {
            Self::Config(d)
            | Self::TensorFile(d)
            | Self::Tokenizer(d)
            | Self::Template(d)
            | Self::Messages(d)
            | Self::Inputs(d)
            | Self::Io(d)
            | Self::NoRoom { diagnostic: d, .. } => d,
            Self::Media(e) => e.diagnostic().clone(),
        }
    }
}

impl From<FileError> for InputError {
    fn from(error: FileError) -> Self {
        match error {
            FileError { diagnostic, remedy: Some(remedy) } => Self::NoRoom { diagnostic, remedy },
            FileError { diagnostic, remedy: None } => Self::Io(diagnostic),
        }
    }
}
