//! The error of an input that cannot be checked. Each message is one line: `location: what is wrong; what to do`.

use std::fmt::Display;

/// An input that cannot be checked: a wrong option, file or argument, a launch outside of the limits, or a kernel that
/// the simulator cannot run to its end. The programs exit with code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

impl InputError {
    /// Makes the error with the text `location: what; help`, on one line.
    pub fn new(location: impl Display, what: impl Display, help: impl Display) -> InputError {
        let text = format!("{location}: {what}; {help}");
        InputError(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
    }
}

/// Makes an [`InputError`] with the text `location: what; help`, on one line.
pub fn failed(location: impl Display, what: impl Display, help: impl Display) -> anyhow::Error {
    InputError::new(location, what, help).into()
}
