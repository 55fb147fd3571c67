//! A range of training steps, as the value of an option.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use serde::Deserialize;

/// The steps `first` to `last`, both inclusive, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct StepRange {
    /// The first step.
    pub first: u64,
    /// The last step, at least `first`.
    pub last: u64,
}

impl StepRange {
    /// Whether step `n` is in the range.
    pub fn contains(&self, n: u64) -> bool {
        (self.first..=self.last).contains(&n)
    }
}

impl FromStr for StepRange {
    type Err = String;

    /// Parses `A-B`, or `A` for one step.
    fn from_str(text: &str) -> Result<Self, String> {
        let help = "give the first and the last step, such as 3-5, counted from 1";
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u64>().map_err(|_| help.to_string());
        let (first, last) = (number(first)?, number(last)?);
        match first >= 1 && first <= last {
            true => Ok(Self { first, last }),
            false => Err(help.into()),
        }
    }
}

impl TryFrom<String> for StepRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Display for StepRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_its_first_and_its_last_step() {
        let range: StepRange = "3-5".parse().unwrap();
        assert_eq!([2, 3, 5, 6].map(|n| range.contains(n)), [false, true, true, false]);
        assert_eq!("7".parse(), Ok(StepRange { first: 7, last: 7 }));
        for wrong in ["", "0", "0-3", "5-3", "-3", "3-", "a-b", "1-2-3", "1.5"] {
            assert!(wrong.parse::<StepRange>().is_err(), "{wrong}");
        }
        assert_eq!(range.to_string(), "3-5");
    }
}
