//! Weights of reward functions by name (`--reward-weights`, TRL's `reward_weights`).

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::rewards::BuiltInReward;

const FLAG: &str = "--reward-weights";

/// Weights of reward functions by name; the default is 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardWeights(BTreeMap<String, f32>);

impl RewardWeights {
    /// Parses `NAME=WEIGHT,…`, or TRL's form `WEIGHT,…` with one number for each custom reward in turn. `custom`
    /// lists the names of the custom rewards, including those that `--reward-funcs` names.
    ///
    /// # Errors
    /// An item has another form, an unknown or repeated name, or a weight that is not a finite number; TRL's form has
    /// more or fewer numbers than there are custom rewards.
    pub fn parse(text: &str, custom: &[String]) -> Result<Self> {
        let error = |what: String, help: &str| Error::usage(FLAG, what, help);
        let number = |name: &str, weight: &str| {
            let number = weight.trim().parse::<f32>().ok().filter(|w| w.is_finite());
            let what = || format!("the weight of {name} is `{weight}`, which is not a finite number");
            number.ok_or_else(|| error(what(), "give a finite number, such as 0.5"))
        };
        let items: Vec<&str> = text.split(',').collect();
        if items[0].trim().parse::<f32>().is_ok() {
            if items.len() != custom.len() {
                let what = format!("has {} numbers for {} custom rewards", items.len(), custom.len());
                let help =
                    "give one number per --reward-command, --reward-funcs and --reward-url, or write NAME=WEIGHT,…";
                return Err(error(what, help));
            }
            let weights = custom.iter().zip(items).map(|(name, weight)| Ok((name.clone(), number(name, weight)?)));
            return Ok(Self(weights.collect::<Result<_>>()?));
        }
        let mut weights = BTreeMap::new();
        for item in items {
            let Some((name, weight)) = item.split_once('=') else {
                return Err(error(format!("`{item}` is not NAME=WEIGHT"), "write accuracy=1,format=0.5"));
            };
            let name = name.trim();
            let own = BuiltInReward::ALL.iter().map(|reward| reward.name());
            let known = own.chain(custom.iter().map(String::as_str));
            if !known.clone().any(|known| known == name) {
                let all = known.collect::<Vec<_>>().join(", ");
                return Err(error(format!("unknown reward `{name}`"), &format!("use one of {all}")));
            }
            if weights.insert(name.to_string(), number(name, weight)?).is_some() {
                return Err(error(format!("{name} is given twice"), "give it once"));
            }
        }
        Ok(Self(weights))
    }

    /// Gives the length reward the weight 0, as `--len-control false` does.
    ///
    /// # Errors
    /// The length reward was given a weight.
    pub fn without_length_reward(mut self) -> Result<Self> {
        match self.0.insert("length".into(), 0.0) {
            None => Ok(self),
            Some(_) => {
                let what = "sets a weight for length, but --len-control false sets that weight to 0";
                Err(Error::usage(FLAG, what, "leave one of the two out"))
            }
        }
    }

    /// Gives the rewards `names` the weight 0, unless the user has given them a weight.
    #[must_use]
    pub fn with_default_weight_zero<'a>(mut self, names: impl Iterator<Item = &'a str>) -> Self {
        for name in names {
            self.0.entry(name.into()).or_insert(0.0);
        }
        self
    }

    /// Returns the weight of a reward function; 1 if none was given.
    pub fn weight(&self, name: &str) -> f32 {
        self.0.get(name).copied().unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_and_numbers_are_refused() {
        let custom = ["command".to_string()];
        let weights = RewardWeights::parse("format=0.5, command=-2", &custom).unwrap();
        assert_eq!((weights.weight("format"), weights.weight("command"), weights.weight("accuracy")), (0.5, -2.0, 1.0));
        for (text, named) in [
            ("", "NAME=WEIGHT"),
            ("format", "`format`"),
            ("acuracy=1", "accuracy, temporal, format"),
            ("format=nan", "`nan`"),
            ("format=1e99", "`1e99`"),
            ("format=", "``"),
            ("format=1,format=2", "twice"),
            ("format=1,", "``"),
            ("format=1,2", "`2`"),
            ("url=1", "length, structure, overlong, command"),
            ("1,2", "has 2 numbers for 1 custom rewards"),
            ("nan", "`nan`"),
        ] {
            let e = RewardWeights::parse(text, &custom).unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with("--reward-weights: "), "{e}");
            assert!(e.to_string().contains(named), "{text}: {e}");
        }
    }
}
