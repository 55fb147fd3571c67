//! The kinds of problem in the data sets of VideoRFT and Video-R1.

use crate::error::{Error, Result};

/// A known `problem_type`, which selects the rule by which accuracy is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// The answer is the letter of an option.
    MultipleChoice,
    /// The answer is a number, compared after rounding to two decimals.
    Numerical,
    /// The answer is text read from an image.
    Ocr,
    /// The answer is a sentence.
    FreeForm,
    /// The answer is a number, scored by its relative error.
    Regression,
}

impl ProblemType {
    /// All kinds of problem, in the order in which error messages list them.
    pub const ALL: [Self; 5] = [Self::MultipleChoice, Self::Numerical, Self::Ocr, Self::FreeForm, Self::Regression];

    /// Parses the exact name of a kind.
    ///
    /// # Errors
    /// The name is unknown; the error lists all names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::reward("problem_type", format!("is `{name}`, which is unknown"), format!("use one of {known}"))
        })
    }

    /// The name of this kind in data files.
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
    fn names_are_parsed_exactly() {
        for kind in ProblemType::ALL {
            assert_eq!(ProblemType::parse(kind.name()).unwrap(), kind);
        }
        for name in ["ocr", "Multiple Choice", "multiple choice ", ""] {
            assert!(ProblemType::parse(name).unwrap_err().to_string().contains("multiple choice, numerical, OCR"));
        }
    }
}
