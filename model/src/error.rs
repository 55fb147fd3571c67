//! The crate's error: every variant names the place, what is wrong there, and what to do.

/// What can go wrong between a model folder, a conversation and the model's inputs.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A key of one of the folder's JSON files is missing, of the wrong kind, or contradicts another.
    #[error("{place}: {what}; {cure}")]
    Config {
        /// File and key.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A weight file is damaged, incomplete, or does not belong to the config.
    #[error("{place}: {what}; {cure}")]
    Weights {
        /// File, and the tensor where it is one.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// The tokenizer cannot be read or does not fit the config.
    #[error("{place}: {what}; {cure}")]
    Tokenizer {
        /// File, and the token where it is one.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// The chat template cannot be read, or refuses the conversation.
    #[error("{place}: {what}; {cure}")]
    Template {
        /// The file that the template came from.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// The conversation is malformed, or one of its media cannot be had.
    #[error("{place}: {what}; {cure}")]
    Messages {
        /// The file, and the turn and part where it is one.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// Prepared inputs (`--inputs`) do not fit together or do not fit the model.
    #[error("{place}: {what}; {cure}")]
    Inputs {
        /// The file and tensor.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A hub id could not be resolved.
    #[error("{place}: {what}; {cure}")]
    Hub {
        /// The id or the address.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A picture or film could not be decoded, or its limits make no sense.
    #[error(transparent)]
    Media(#[from] reel_media::MediaError),
    /// A device, a tensor or the tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
    /// A file could not be read or written.
    #[error("{path}: {what}; {cure}")]
    Io {
        /// The path.
        path: String,
        /// What the system said.
        what: String,
        /// What to do.
        cure: String,
        /// The system's own error.
        #[source]
        source: std::io::Error,
    },
}

/// The crate's result.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Stamps a short constructor for each variant that has a place, a fault and a cure.
macro_rules! constructors {
    ($($name:ident => $variant:ident),* $(,)?) => {
        impl ModelError {
            $(pub(crate) fn $name(place: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
                Self::$variant { place: place.into(), what: one_line(what.into()), cure: cure.into() }
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
}

impl ModelError {
    /// A failed read: says what the system said, and a cure that depends on it.
    pub(crate) fn read(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        let cure = match source.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "make it readable for this user",
            _ => "check the file and the disk it is on",
        };
        Self::io(path, "cannot be read", cure, source)
    }

    /// A failed write.
    pub(crate) fn write(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        let cure = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "free space on that disk, or choose another folder"
            }
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "choose a folder that this user may write"
            }
            _ => "check the folder and the disk it is on",
        };
        Self::io(path, "cannot be written", cure, source)
    }

    fn io(path: impl AsRef<std::path::Path>, doing: &str, cure: &str, source: std::io::Error) -> Self {
        let said = match source.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_string(),
            std::io::ErrorKind::StorageFull => "the disk is full".to_string(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
            _ => one_line(source.to_string()),
        };
        Self::Io {
            path: path.as_ref().display().to_string(),
            what: format!("{doing}: {said}"),
            cure: cure.to_string(),
            source,
        }
    }
}

/// Messages of other crates may have several lines; an error of ours has one.
fn one_line(text: String) -> String {
    if !text.contains(['\n', '\r']) {
        return text;
    }
    let words: Vec<&str> = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join(" ")
}
