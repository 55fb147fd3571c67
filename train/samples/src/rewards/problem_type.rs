//! The kinds of problem in data sets of video reinforcement learning, by the names of VideoRFT, Video-R1, OneThinker
//! and EasyVideoR1.

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
    /// The answer names one or several segments of time.
    TemporalGrounding,
    /// The answer is a box.
    SpatialGrounding,
    /// The answer is a segment of time, and a box for each of some frames.
    SpatialTemporalGrounding,
    /// The answer is a box for each frame.
    Tracking,
    /// The answer is a box with positive and negative points, for a video also a time.
    Segmentation,
    /// The answer is yes or no.
    Boolean,
    /// The answer is a number, a tuple or an expression, written as LaTeX or plainly.
    Math,
    /// The answer is a text; an equal text is right, else it is scored as a sentence.
    OpenEnded,
}

impl ProblemType {
    /// All kinds of problem, in the order in which error messages list them.
    pub const ALL: [Self; 13] = [
        Self::MultipleChoice,
        Self::Numerical,
        Self::Ocr,
        Self::FreeForm,
        Self::Regression,
        Self::TemporalGrounding,
        Self::SpatialGrounding,
        Self::SpatialTemporalGrounding,
        Self::Tracking,
        Self::Segmentation,
        Self::Boolean,
        Self::Math,
        Self::OpenEnded,
    ];

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
            Self::TemporalGrounding => "temporal grounding",
            Self::SpatialGrounding => "spatial grounding",
            Self::SpatialTemporalGrounding => "spatial-temporal grounding",
            Self::Tracking => "tracking",
            Self::Segmentation => "segmentation",
            Self::Boolean => "boolean",
            Self::Math => "math",
            Self::OpenEnded => "open-ended",
        }
    }

    /// Whether answers name boxes.
    pub fn has_boxes(self) -> bool {
        matches!(self, Self::SpatialGrounding | Self::SpatialTemporalGrounding | Self::Tracking | Self::Segmentation)
    }

    /// Whether answers are JSON, to which the structure reward applies.
    pub fn has_structure(self) -> bool {
        self == Self::TemporalGrounding || self.has_boxes()
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
