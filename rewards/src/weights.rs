//! How much each reward counts in the sum (TRL's `reward_weights`, by name).

use std::collections::BTreeMap;

use crate::{Result, RewardError};

/// The names that can be weighted: the recipes' rewards, and a user's own by command and by address.
pub const NAMES: [&str; 7] = ["accuracy", "format", "temporal", "semantic", "length", "command", "url"];

/// Weights by name; 1 for what is not named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardWeights(BTreeMap<String, f32>);

impl RewardWeights {
    /// Reads `NAME=W,…`.
    pub fn parse(text: &str) -> Result<Self> {
        let fault = |what: String, cure: &str| RewardError::option("--reward-weights", what, cure);
        let mut weights = BTreeMap::new();
        for item in text.split(',') {
            let Some((name, weight)) = item.split_once('=') else {
                return Err(fault(format!("`{item}` is no NAME=WEIGHT"), "write accuracy=1,format=0.5"));
            };
            let name = name.trim();
            if !NAMES.contains(&name) {
                let known = NAMES.join(", ");
                return Err(fault(format!("there is no reward `{name}`"), &format!("use one of {known}")));
            }
            let number = weight.trim().parse::<f32>().ok().filter(|w| w.is_finite());
            let Some(number) = number else {
                return Err(fault(format!("the weight of {name} is `{weight}`"), "give a number, such as 0.5"));
            };
            if weights.insert(name.to_string(), number).is_some() {
                return Err(fault(format!("{name} is weighted twice"), "name it once"));
            }
        }
        Ok(Self(weights))
    }

    /// The weight of a reward.
    pub fn weight(&self, name: &str) -> f32 {
        self.0.get(name).copied().unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_checked() {
        let weights = RewardWeights::parse("format=0.5, command=-2").unwrap();
        assert_eq!((weights.weight("format"), weights.weight("command"), weights.weight("accuracy")), (0.5, -2.0, 1.0));
        for (text, named) in [
            ("", "NAME=WEIGHT"),
            ("format", "`format`"),
            ("acuracy=1", "accuracy, format"),
            ("format=nan", "`nan`"),
            ("format=1e99", "`1e99`"),
            ("format=", "``"),
            ("format=1,format=2", "twice"),
            ("format=1,", "``"),
        ] {
            let e = RewardWeights::parse(text).unwrap_err();
            assert!(e.is_usage() && e.to_string().starts_with("--reward-weights: "), "{e}");
            assert!(e.to_string().contains(named), "{text}: {e}");
        }
    }
}
