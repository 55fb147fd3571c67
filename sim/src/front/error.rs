//! The errors of the commands. Each message is one line: `location: what is wrong; what to do`.

use std::fmt::Display;

/// An error in the command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Makes a [`UsageError`] with the text `location: what; help`.
pub fn usage_error(location: &str, what: impl Display, help: impl Display) -> anyhow::Error {
    UsageError(format!("{location}: {what}; {help}")).into()
}

/// Makes an error with the text `location: what; help` for failed work.
pub fn failed(location: impl Display, what: impl Display, help: impl Display) -> anyhow::Error {
    let text = format!("{location}: {what}; {help}");
    anyhow::Error::msg(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
}
