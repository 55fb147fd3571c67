//! The value of an option that is for one curation stage or for all: `[STAGE=]VALUE`.

use std::str::FromStr;

use reel_tools::curate::StageName;

/// A value of an option with its curation stage; `None` means all stages.
#[derive(Clone, Debug, PartialEq)]
pub struct StageValue<T> {
    stage: Option<StageName>,
    value: T,
}

impl<T: FromStr> FromStr for StageValue<T>
where
    T::Err: std::fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let stage = text.split_once('=').and_then(|(stage, value)| Some((StageName::parse(stage)?, value)));
        let (stage, value) = stage.map_or((None, text), |(stage, value)| (Some(stage), value));
        Ok(Self { stage, value: value.parse().map_err(|e: T::Err| e.to_string())? })
    }
}

/// Returns the value for a stage: the last value given for this stage, else the last value given for all stages.
pub fn value_of_stage<T>(values: &[StageValue<T>], stage: StageName) -> Option<&T> {
    let last = |wanted| values.iter().rev().find(|own| own.stage == wanted).map(|own| &own.value);
    last(Some(stage)).or_else(|| last(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_of_the_stage_wins_over_one_for_all() {
        let values: Vec<StageValue<f64>> = ["caption=0.5", "1", "0.25"].map(|text| text.parse().unwrap()).into();
        assert_eq!(value_of_stage(&values, StageName::Caption), Some(&0.5));
        assert_eq!(value_of_stage(&values, StageName::Reason), Some(&0.25));
        assert_eq!(value_of_stage::<f64>(&[], StageName::Reason), None);
        assert!("caption=x".parse::<StageValue<f64>>().is_err() && "captions=1".parse::<StageValue<f64>>().is_err());
        // The value itself may contain an equals sign.
        let name: StageValue<String> = "a=b".parse().unwrap();
        assert_eq!(value_of_stage(&[name], StageName::Revise).map(String::as_str), Some("a=b"));
    }
}
