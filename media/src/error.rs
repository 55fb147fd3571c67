//! The one error type of this crate. Each message names the file or field, what is wrong and what to do.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, MediaError>;

/// What can go wrong between a media file and its frames or patches.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// A file that cannot be opened or read.
    #[error("{}: cannot be read: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file whose content is not what it should be.
    #[error("{}: {what}; {cure}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        cure: String,
    },
    /// A setting (part key or flag) that makes no sense, alone or for this film.
    #[error("{field}: {what}; {cure}")]
    Setting {
        /// The key or flag, in the spelling of part keys.
        field: String,
        /// What is wrong with its value.
        what: String,
        /// What to do about it.
        cure: String,
    },
    /// The worker process that decodes files could not be started.
    #[error("{}: cannot be started as decoding worker: {source}; check that the program exists and may be run", exe.display())]
    Worker {
        /// The program.
        exe: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl MediaError {
    /// A [`MediaError::File`] from texts.
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into(), cure: cure.into() }
    }

    /// A [`MediaError::Setting`] from texts.
    pub fn setting(field: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Setting { field: field.into(), what: what.into(), cure: cure.into() }
    }
}
