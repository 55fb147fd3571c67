//! The kinds of answer that the recipes' data sets ask for.

use crate::{Result, RewardError};

/// A `problem_type` that has a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// One letter.
    MultipleChoice,
    /// A number to be met to two decimals.
    Numerical,
    /// A text to be read off.
    Ocr,
    /// A sentence in the model's own words.
    FreeForm,
    /// A number to come near to.
    Regression,
}

impl ProblemType {
    /// All kinds, in the order in which errors list them.
    pub const ALL: [Self; 5] = [Self::MultipleChoice, Self::Numerical, Self::Ocr, Self::FreeForm, Self::Regression];

    /// The kind of this name, to the letter; the error lists the names that exist.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            RewardError::row("problem_type", format!("is `{name}`, which has no rule"), format!("use one of {known}"))
        })
    }

    /// The name in data files.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultipleChoice => "multiple choice",
            Self::Numerical => "numerical",
            Self::Ocr => "OCR",
            Self::FreeForm => "free-form",
            Self::Regression => "regression",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_to_the_letter() {
        for kind in ProblemType::ALL {
            assert_eq!(ProblemType::parse(kind.name()).unwrap(), kind);
        }
        for name in ["ocr", "Multiple Choice", "multiple choice ", ""] {
            assert!(ProblemType::parse(name).unwrap_err().to_string().contains("multiple choice, numerical, OCR"));
        }
    }
}
