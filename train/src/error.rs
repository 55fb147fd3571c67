//! The crate's error: every variant names the place, what is wrong there, and what to do.

use std::io;
use std::path::Path;

/// What can go wrong between a data file and a trained model folder.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An option, on the command line or in a configuration file, makes no sense.
    #[error("{location}: {what}; {help}")]
    Option {
        /// The flag, or the file and key.
        location: String,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The data file, or a row of it, is malformed.
    #[error("{location}: {what}; {help}")]
    Data {
        /// File and line, and the field where it is one.
        location: String,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// A row cannot be trained on: its media cannot be had, or it is longer than the limit.
    #[error("{location}: {what}; {help}")]
    Row {
        /// File and line.
        location: String,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The output folder, a checkpoint or a log cannot be used as asked.
    #[error("{location}: {what}; {help}")]
    Output {
        /// The file or folder.
        location: String,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {what}; {help}")]
    Io {
        /// The path.
        path: String,
        /// What the system said.
        what: String,
        /// What to do.
        help: String,
        /// The system's own error.
        #[source]
        source: io::Error,
    },
    /// The loss or the gradients stopped being numbers.
    #[error("step {step}: {what} (rows {rows}); {help}")]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// Which number.
        what: String,
        /// File and lines of the rows.
        rows: String,
        /// What to do.
        help: String,
    },
    /// The run was asked to stop, and did.
    #[error("{location}: stopped after step {step}; {help}")]
    Stopped {
        /// The output folder.
        location: String,
        /// The last finished step.
        step: u64,
        /// How to go on.
        help: String,
    },
    /// The model, its folder or its inputs.
    #[error(transparent)]
    Model(#[from] reel_model::ModelError),
    /// A reward, or the options of rewards.
    #[error(transparent)]
    Reward(#[from] reel_rewards::RewardError),
    /// Drawing completions.
    #[error(transparent)]
    Engine(#[from] reel_engine::EngineError),
    /// The device, a tensor or the tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
}

/// The crate's result.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Stamps a short constructor for each variant that has a place, a fault and a cure.
macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => {
        impl TrainError {
            $($(#[$doc])*
            pub fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                Self::$variant { location: location.into(), what: one_line(&what.into()), help: help.into() }
            })*
        }
    };
}

constructors! {
    /// A [`TrainError::Option`] from texts.
    option => Option,
    /// A [`TrainError::Data`] from texts.
    data => Data,
    /// A [`TrainError::Row`] from texts.
    row => Row,
    /// A [`TrainError::Output`] from texts.
    output => Output,
}

impl TrainError {
    /// A failed read: what the system said, and a cure that depends on it.
    pub fn read(path: impl AsRef<Path>, source: io::Error) -> Self {
        let help = match source.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "make it readable for this user",
            _ => "check the file and the disk it is on",
        };
        Self::io(path.as_ref(), "cannot be read", help, source)
    }

    /// A failed write: what the system said, and a cure that depends on it.
    pub fn write(path: impl AsRef<Path>, source: io::Error) -> Self {
        let help = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on that disk, then go on with --resume-from-checkpoint last"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose a folder that this user may write"
            }
            _ => "check the folder and the disk it is on",
        };
        Self::io(path.as_ref(), "cannot be written", help, source)
    }

    fn io(path: &Path, doing: &str, help: &str, source: io::Error) -> Self {
        let said = match source.kind() {
            io::ErrorKind::NotFound => "there is no such file or folder".to_string(),
            io::ErrorKind::StorageFull => "the disk is full".to_string(),
            io::ErrorKind::PermissionDenied => "permission denied".to_string(),
            _ => one_line(&source.to_string()),
        };
        Self::Io { path: path.display().to_string(), what: format!("{doing}: {said}"), help: help.to_string(), source }
    }

    /// The run was asked to stop; where and how to go on, it says itself when it has stopped.
    pub(crate) fn interrupted() -> Self {
        Self::Stopped { location: String::new(), step: 0, help: String::new() }
    }

    /// Whether this is a mistake in the command line or a configuration file (exit code 2).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Option { .. } => true,
            Self::Reward(e) => e.is_usage(),
            _ => false,
        }
    }
}

/// Messages of other crates may have several lines; an error of ours has one.
pub(crate) fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
