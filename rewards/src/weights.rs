//! Weights of reward functions by name (`--reward-weights`, TRL's `reward_weights`).

use std::collections::BTreeMap;

use crate::{Result, RewardError};

/// Reward functions that can have a weight; `command` and `url` are the custom rewards.
const REWARD_NAMES: [&str; 7] = ["accuracy", "format", "temporal", "semantic", "length", "command", "url"];

/// Weights of reward functions by name; the default is 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardWeights(BTreeMap<String, f32>);

impl RewardWeights {
    /// Parses `NAME=WEIGHT,…`.
    ///
    /// # Errors
    /// An item has another form, an unknown or repeated name, or a weight that is not a finite number.
    pub fn parse(text: &str) -> Result<Self> {
        let error = |what: String, help: &str| RewardError::bad_option("--reward-weights", what, help);
        let mut weights = BTreeMap::new();
        for item in text.split(',') {
            let Some((name, weight)) = item.split_once('=') else {
                return Err(error(format!("`{item}` is not NAME=WEIGHT"), "write accuracy=1,format=0.5"));
            };
            let name = name.trim();
            if !REWARD_NAMES.contains(&name) {
                let known = REWARD_NAMES.join(", ");
                return Err(error(format!("unknown reward `{name}`"), &format!("use one of {known}")));
            }
            let number = weight.trim().parse::<f32>().ok().filter(|w| w.is_finite());
            let Some(number) = number else {
                return Err(error(
                    format!("the weight of {name} is `{weight}`, which is not a finite number"),
                    "give a finite number, such as 0.5",
                ));
            };
            if weights.insert(name.to_string(), number).is_some() {
                return Err(error(format!("{name} is given twice"), "give it once"));
            }
        }
        Ok(Self(weights))
    }

    /// The weight of a reward function.
    pub fn weight(&self, name: &str) -> f32 {
        self.0.get(name).copied().unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_and_numbers_are_refused() {
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
            assert!(e.is_usage_error() && e.to_string().starts_with("--reward-weights: "), "{e}");
            assert!(e.to_string().contains(named), "{text}: {e}");
        }
    }
}
