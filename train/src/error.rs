//! The errors of training. Each error names a location, what is wrong there, and what the user can do.

use std::io;
use std::path::Path;

use reel_device::DeviceError;
use reel_diagnostic::Diagnostic;
use reel_files::{FileError, LockError};
use reel_input::InputError;
use reel_model::ModelError;
use reel_samples::{SampleError, SkipCause};

/// An error of training, from reading the data to writing the trained model folder.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An option on the command line or in a configuration file is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// The data file, or one of its rows, is malformed.
    #[error("{0}")]
    Data(Diagnostic),
    /// A row cannot be trained on, for example because it has no token to learn.
    #[error("{0}")]
    Row(Diagnostic),
    /// A row has more tokens than the limit.
    #[error("{0}")]
    TooLong(Diagnostic),
    /// An image or a video of a row cannot be loaded.
    #[error("{diagnostic}")]
    Media {
        /// Names the row and its media file, what is wrong with the file, and what to do.
        diagnostic: Diagnostic,
        /// Why the image or video cannot be loaded.
        cause: SkipCause,
        /// Whether the media file could be read; if so, its content is at fault.
        was_read: bool,
    },
    /// The output folder, a checkpoint or a log cannot be used as requested.
    #[error("{0}")]
    Output(Diagnostic),
    /// A file that a resumed or replayed run reads is missing, or its bytes differ from what the run wrote.
    #[error("{0}")]
    Damaged(Diagnostic),
    /// A file could not be read or written.
    #[error("{0}")]
    Io(Diagnostic),
    /// A file could not be written because the disk is full, or because the file would exceed the limit on file sizes.
    #[error("{diagnostic}")]
    NoRoom {
        /// The file, what is wrong, and what to do.
        diagnostic: Diagnostic,
        /// How the user can free disk space or raise the limit (a text of [`reel_diagnostic::disk_full_help`]).
        remedy: &'static str,
    },
    /// Images or videos cannot be read for a reason that does not concern a single row, such as a media folder that
    /// is not there any more.
    #[error("{0}")]
    MediaUnavailable(Diagnostic),
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
    /// An error that occurs while completions are sampled.
    #[error(transparent)]
    Engine(#[from] reel_engine::EngineError),
    /// An error of the device, a tensor or the tape.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
    /// Another process of the run has failed, or cannot be reached.
    #[error(transparent)]
    Ranks(#[from] reel_ranks::RankError),
}

/// The result of a function of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Defines a constructor for each variant that holds a diagnostic. A constructor takes the diagnostic's three texts:
/// location, problem and help.
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
    /// Makes a [`TrainError::Option`] from location, problem and help.
    option => Option,
    /// Makes a [`TrainError::Data`] from location, problem and help.
    data => Data,
    /// Makes a [`TrainError::Row`] from location, problem and help.
    row => Row,
    /// Makes a [`TrainError::Output`] from location, problem and help.
    output => Output,
}

impl TrainError {
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
            ModelError::Input(InputError::NoRoom { diagnostic, remedy }) => Self::NoRoom { diagnostic, remedy },
            other => Self::Model(other),
        }
    }

    /// The error for a thread that could not be started; `what` names the thread's work.
    pub fn cannot_start_thread(what: &str, e: &io::Error) -> Self {
        Self::Output(Diagnostic::cannot_start_thread(what, e))
    }

    /// Replaces the path `from` by `to` in the location of an error about a file.
    pub fn with_path_renamed(mut self, from: &Path, to: &Path) -> Self {
        let (Self::NoRoom { diagnostic, .. }
        | Self::Io(diagnostic)
        | Self::Output(diagnostic)
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
        let row = matches!(self, Self::Row(_) | Self::TooLong(_) | Self::Media { .. } | Self::Data(_));
        if let Self::Row(diagnostic)
        | Self::TooLong(diagnostic)
        | Self::Media { diagnostic, .. }
        | Self::Data(diagnostic)
        | Self::MediaUnavailable(diagnostic) = &mut self
        {
            diagnostic.help += match strict && row {
                true => "; then resume with --resume-from-checkpoint last, without --strict to skip such rows",
                false => "; then resume with --resume-from-checkpoint last",
            };
        }
        self
    }

    /// Whether the error concerns one row, which a run can skip.
    pub fn is_row_error(&self) -> bool {
        matches!(self, Self::Data(_) | Self::Row(_) | Self::TooLong(_) | Self::Media { .. })
    }

    /// The error of an operation that Ctrl-C has interrupted. The training loop replaces it by an error that names
    /// the last finished step and says how to resume.
    pub fn interrupted() -> Self {
        Self::Stopped(Diagnostic::new("", "interrupted", "run the command again"))
    }

    /// Whether this error is a mistake in the command line or a configuration file, for which the program exits with
    /// code 2.
    pub fn is_usage_error(&self) -> bool {
        match self {
            Self::Option(_) => true,
            Self::Reward(e) => e.is_usage_error(),
            _ => false,
        }
    }
}

impl From<reel_data::DataError> for TrainError {
    fn from(e: reel_data::DataError) -> Self {
        match e {
            reel_data::DataError::Data(diagnostic) => Self::Data(diagnostic),
            reel_data::DataError::Io(diagnostic) => Self::Io(diagnostic),
        }
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
        match e.remedy {
            Some(remedy) => Self::NoRoom { diagnostic: e.diagnostic, remedy },
            None => Self::Io(e.diagnostic),
        }
    }
}

impl From<SampleError> for TrainError {
    fn from(e: SampleError) -> Self {
        match e {
            SampleError::Option(diagnostic) => Self::Option(diagnostic),
            SampleError::Data(diagnostic) => Self::Data(diagnostic),
            SampleError::Row(diagnostic) => Self::Row(diagnostic),
            SampleError::TooLong(diagnostic) => Self::TooLong(diagnostic),
            SampleError::Media { diagnostic, cause, was_read } => Self::Media { diagnostic, cause, was_read },
            SampleError::Output(diagnostic) => Self::Output(diagnostic),
            SampleError::Io(diagnostic) => Self::Io(diagnostic),
            SampleError::NoRoom { diagnostic, remedy } => Self::NoRoom { diagnostic, remedy },
            SampleError::MediaUnavailable(diagnostic) => Self::MediaUnavailable(diagnostic),
            SampleError::Stopped(diagnostic) => Self::Stopped(diagnostic),
            SampleError::Ranks(e) => Self::Ranks(e),
            SampleError::Input(e) => e.into(),
        }
    }
}
