//! The errors of training. Each error names a location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;

use reel_device::DeviceError;
use reel_input::InputError;
use reel_model::ModelError;
use reel_samples::{RowFailureKind, SampleError};
use reel_support::diagnostic::Diagnostic;
use reel_support::files::{FileError, LockError};
use reel_support::ranks::RankError;

/// An error of training, from reading the data to writing the trained model folder.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An error of the options, the data, a file or another process of the run, or an interruption.
    #[error(transparent)]
    Sample(SampleError),
    /// A file that a resumed or replayed run reads is missing, or its bytes differ from what the run wrote.
    #[error("{0}")]
    Damaged(Diagnostic),
    /// The loss or the gradient norm is NaN or infinite.
    #[error("{0}")]
    NotFinite(Diagnostic),
    /// An error of the model, its folder or its inputs.
    #[error(transparent)]
    Model(#[from] reel_model::ModelError),
    /// An error of a reward function, a reward model, or their options.
    #[error(transparent)]
    Reward(#[from] reel_samples::rewards::RewardError),
    /// An error that occurs while completions are sampled.
    #[error(transparent)]
    Engine(#[from] reel_engine::EngineError),
    /// An error of the device, a tensor or the tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
}

/// The result of a function of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

impl TrainError {
    /// Makes a [`SampleError::Option`] from location, problem and help.
    pub fn option(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        SampleError::option(location, what, help).into()
    }

    /// Makes an error of [`RowFailureKind::Data`] from location, problem and help.
    pub fn data(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        SampleError::data(location, what, help).into()
    }

    /// Makes an error of [`RowFailureKind::Row`] from location, problem and help.
    pub fn row(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        SampleError::row(location, what, help).into()
    }

    /// Makes a [`SampleError::Output`] from location, problem and help.
    pub fn output(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        SampleError::output(location, what, help).into()
    }

    /// The error for a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_read(path, &source).into()
    }

    /// The error for a file or folder that could not be written.
    pub fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        FileError::cannot_write(path, &source).into()
    }

    /// The error for a failed attempt to lock the file or folder `path`, the value of the option `flag`.
    pub fn cannot_lock(e: LockError, flag: &str, path: &Path) -> Self {
        SampleError::cannot_lock(e, flag, path).into()
    }

    /// The error for a model folder or adapter folder that could not be written.
    pub fn cannot_save(e: ModelError) -> Self {
        match e {
            ModelError::Input(InputError::NoRoom { diagnostic, remedy }) => {
                SampleError::NoRoom { diagnostic, remedy }.into()
            }
            other => Self::Model(other),
        }
    }

    /// The error for a thread that could not be started; `what` names the thread's work.
    pub fn cannot_start_thread(what: &str, e: &io::Error) -> Self {
        SampleError::cannot_start_thread(what, e).into()
    }

    /// Replaces the path `from` by `to` in the location of an error about a file.
    pub fn with_path_renamed(mut self, from: &Path, to: &Path) -> Self {
        let (Self::Sample(
            SampleError::NoRoom { diagnostic, .. } | SampleError::Io(diagnostic) | SampleError::Output(diagnostic),
        )
        | Self::Model(ModelError::Input(InputError::Io(diagnostic)))) = &mut self
        else {
            return self;
        };
        diagnostic.location = diagnostic.location.replace(&from.display().to_string(), &to.display().to_string());
        self
    }

    /// Adds to the help of an error about a row, the data or media how to resume from the newest checkpoint. `strict`
    /// tells whether the run stops at the first unusable row (`--strict`). Other errors are returned unchanged.
    pub fn with_help_to_resume(mut self, strict: bool) -> Self {
        if let Self::Sample(SampleError::Row(failure)) = &mut self {
            failure.diagnostic.help += match strict && failure.kind != RowFailureKind::MediaUnavailable {
                true => "; then resume with --resume-from-checkpoint last, without --strict to skip such rows",
                false => "; then resume with --resume-from-checkpoint last",
            };
        }
        self
    }

    /// The error of an operation that Ctrl-C has interrupted. The training loop replaces it by an error that names
    /// the last finished step and says how to resume.
    pub fn interrupted() -> Self {
        SampleError::interrupted().into()
    }

    /// Whether this error is a mistake in the command line or a configuration file, for which the program exits with
    /// code 2.
    pub fn is_usage_error(&self) -> bool {
        match self {
            Self::Sample(e) => e.is_usage_error(),
            Self::Reward(e) => e.is_usage_error(),
            _ => false,
        }
    }
}

impl From<reel_input::rows::DataError> for TrainError {
    fn from(e: reel_input::rows::DataError) -> Self {
        SampleError::from(e).into()
    }
}

impl From<DeviceError> for TrainError {
    fn from(e: DeviceError) -> Self {
        Self::Runtime(e.into())
    }
}

impl From<InputError> for TrainError {
    fn from(e: InputError) -> Self {
        Self::Model(e.into())
    }
}

impl From<FileError> for TrainError {
    fn from(e: FileError) -> Self {
        SampleError::from(e).into()
    }
}

impl From<RankError> for TrainError {
    fn from(e: RankError) -> Self {
        SampleError::from(e).into()
    }
}

impl From<SampleError> for TrainError {
    fn from(e: SampleError) -> Self {
        match e {
            SampleError::Input(e) => e.into(),
            other => Self::Sample(other),
        }
    }
}
