//! The fields of the rows of a curated data set.

use clap::ValueEnum;

/// The fields of the data set's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RowLayout {
    /// VideoRFT's fields: `problem`, `process`, `solution`, …. Training writes VideoRFT's prompt around the question.
    #[default]
    Problem,
    /// `messages`: the user message is the question with its options, the assistant message the chain with the answer.
    Chat,
}
