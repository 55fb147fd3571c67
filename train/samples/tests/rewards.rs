//! Compares the rewards of golden completions with those of the reference code
//! (`tests/golden/rewards/rewards.jsonl`).

use clap::ValueEnum;
use reel_samples::rewards::{AnswerRules, Recipe, RewardRow, RewardRules};
use serde_json::Value;

#[test]
fn rewards_equal_golden_rows_bit_for_bit() {
    let rows = include_str!("../../../tests/golden/rewards/rewards.jsonl");
    let mut numbers = 0;
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let recipe = Recipe::from_str(row["parity"].as_str().unwrap(), false).unwrap();
        let rules = RewardRules { answers: AnswerRules { recipe, ..AnswerRules::default() }, ..RewardRules::default() };
        let given = RewardRow::parse(&row["input"].to_string(), &rules).unwrap();
        let single = given.is_single;
        let scores = given.score(&rules, None).unwrap();
        let got =
            if single { serde_json::to_value(scores.first_completion_scores()) } else { serde_json::to_value(&scores) }
                .unwrap();
        let expected = row["expect"].as_object().unwrap();
        for (key, want) in expected {
            let list = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let (got, want) = (list(&got[key]), list(want));
            assert_eq!(got.len(), want.len(), "{} {key}", row["id"]);
            for (got, want) in got.iter().zip(&want) {
                let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
                // The values must have equal bits in f32, also the advantages.
                assert_eq!(got as f32, want as f32, "{} ({}) {key}", row["id"], row["why"]);
                numbers += 1;
            }
        }
        // The output must have only scores that the golden file lists. For a single completion the file lists all
        // scores except `reward`, for a group all scores.
        let written = got.as_object().unwrap().keys().filter(|key| !(single && *key == "reward"));
        assert!(written.clone().all(|key| expected.contains_key(key)), "{} {got}", row["id"]);
    }
    assert!(numbers > 2000, "{numbers}");
}
