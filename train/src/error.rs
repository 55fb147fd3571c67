//! The errors of training. Each error names a location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;

use reel_diagnostic::Diagnostic;

/// What can go wrong between a data file and a trained model folder.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An option on the command line or in a configuration file is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// The data file, or one of its rows, is malformed.
    #[error("{0}")]
    Data(Diagnostic),
    /// A row cannot be trained on: its media cannot be loaded, or it has more tokens than the limit.
    #[error("{0}")]
    Row(Diagnostic),
    /// The output folder, a checkpoint or a log cannot be used as requested.
    #[error("{0}")]
    Output(Diagnostic),
    /// A file could not be read or written.
    #[error("{0}")]
    Io(Diagnostic),
    /// The loss or the gradient norm is NaN or infinite.
    #[error("{0}")]
    NotFinite(Diagnostic),
    /// The run was interrupted and stopped after a finished step.
    #[error("{0}")]
    Stopped(Diagnostic),
    /// An error of the model, its folder or its inputs.
    #[error(transparent)]
    Model(#[from] reel_model::ModelError),
    /// An error of a reward function, a reward model, or their options.
    #[error(transparent)]
    Reward(#[from] reel_rewards::RewardError),
    /// An error while completions were sampled.
    #[error(transparent)]
    Engine(#[from] reel_engine::EngineError),
    /// An error of the device, a tensor or the tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
}

/// The crate's result.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Defines a constructor for each variant that holds a diagnostic. It takes the diagnostic's three texts: location,
/// problem and help.
macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => {
        impl TrainError {
            $($(#[$doc])*
            pub fn $name(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
                Self::$variant(Diagnostic::new(location, what, help))
            })*
        }
    };
}

constructors! {
    /// A [`TrainError::Option`] from location, problem and help.
    option => Option,
    /// A [`TrainError::Data`] from location, problem and help.
    data => Data,
    /// A [`TrainError::Row`] from location, problem and help.
    row => Row,
    /// A [`TrainError::Output`] from location, problem and help.
    output => Output,
}

impl TrainError {
    /// The error of a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, &source))
    }

    /// The error of a file or folder that could not be written. With a full disk the help says how to resume the run.
    pub fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        let diagnostic = Diagnostic::cannot_write(path, &source);
        Self::Io(match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                diagnostic.with_help("free space on that disk, then resume with --resume-from-checkpoint last")
            }
            _ => diagnostic,
        })
    }

    /// The error that an interrupted operation (Ctrl-C) returns. The training loop replaces it by an error that says
    /// after which step the run stopped and how to resume.
    pub(crate) fn interrupted() -> Self {
        Self::Stopped(Diagnostic::new("", "interrupted", "run the command again"))
    }

    /// Whether this is a mistake in the command line or a configuration file (exit code 2).
    pub fn is_usage_error(&self) -> bool {
        match self {
            Self::Option(_) => true,
            Self::Reward(e) => e.is_usage_error(),
            _ => false,
        }
    }
}
