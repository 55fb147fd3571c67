//! Compares the rewards of grounding and other video tasks, the soft overlong penalty and the advantages of EMA-GRPO
//! with golden values (`tests/golden/rewards/video-rl`).

use clap::ValueEnum;
use reel_samples::rewards::{
    AdvantageRules, AnswerRules, EmaMoments, EmaRules, OverlongPenalty, ProblemType, Recipe, RewardRow, RewardRules,
    ScaleRewards, Scores, TemporalIou, ema_task,
};
use serde_json::{Map, Value, json};

/// Math answers that need the algebra of complex numbers, which the math rule does not have.
const NOT_EQUAL_HERE: [&str; 1] = ["g0500"];

fn near(got: f64, want: f64, tolerance: f64) -> bool {
    (got - want).abs() <= tolerance * want.abs().max(1.0)
}

#[test]
fn answers_score_as_golden_lines_say() {
    let lines = include_str!("../../../tests/golden/rewards/video-rl/grounding.jsonl");
    let (mut checked, mut wrong) = (0, Vec::new());
    for line in lines.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let params = case["params"].as_object().unwrap();
        let named = |name: &str| params.get(name).and_then(Value::as_str);
        let recipe = named("parity").map_or(Recipe::Paper, |name| Recipe::from_str(name, false).unwrap());
        let temporal_iou =
            named("temporal_iou").map_or(TemporalIou::Plain, |name| TemporalIou::from_str(name, false).unwrap());
        let rules = RewardRules {
            answers: AnswerRules { recipe, temporal_iou },
            has_structure_reward: true,
            ..RewardRules::default()
        };
        let mut row: Map<String, Value> = params.clone();
        row.insert("problem_type".into(), case["kind"].clone());
        row.insert("solution".into(), format!("<answer>{}</answer>", case["truth"].as_str().unwrap()).into());
        row.insert("completion".into(), case["answer"].clone());
        let row = RewardRow::parse(&Value::Object(row).to_string(), &rules).unwrap();
        // `inf` is a truth of one regression line.
        assert!(row.check_solution().is_ok() || case["truth"] == "inf", "{line}");
        let scores = row.score(&rules, None).unwrap();
        let got = serde_json::to_value(scores.first_completion_scores()).unwrap();
        for (key, want) in case["expected"].as_object().unwrap() {
            let want = if NOT_EQUAL_HERE.contains(&case["id"].as_str().unwrap()) && key == "accuracy" {
                0.0
            } else {
                want.as_f64().unwrap()
            };
            if !near(got[key].as_f64().unwrap(), want, 2e-6) {
                wrong.push(format!("{} ({}) {key}: {got}, want {want}", case["id"], case["why"]));
            }
            checked += 1;
        }
        let is_malformed = got.get("malformed").is_some();
        assert!(!is_malformed || got["accuracy"] == 0.0, "{} {got}", case["id"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 1200, "{checked}");
}

#[test]
fn overlong_penalties_equal_golden_values() {
    let lines = include_str!("../../../tests/golden/rewards/video-rl/overlong.jsonl");
    for line in lines.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let tokens = |name: &str| usize::try_from(case[name].as_u64().unwrap()).unwrap();
        let penalty = OverlongPenalty::new(tokens("cache"), tokens("max_completion_length")).unwrap();
        let want = case["expected"]["overlong"].as_f64().unwrap();
        assert!(near(penalty.of(tokens("length")).into(), want, 1e-6), "{case}");
    }
}

/// The first half of a run, then the second half with moments that were written and read again, must have the same bits
/// as the whole run.
#[test]
fn ema_advantages_equal_golden_values_also_after_a_resume() {
    let text = include_str!("../../../tests/golden/rewards/video-rl/ema.json");
    let runs: Vec<Value> = serde_json::from_str(text).unwrap();
    for run in &runs {
        let option = |name: &str| run["options"][name].as_f64().unwrap();
        let ema = EmaRules {
            ema_decay: option("ema-decay"),
            ema_min_std: option("ema-min-std"),
            ema_guard: option("ema-guard"),
        };
        let rules = AdvantageRules { scale: ScaleRewards::Ema, ema, ..AdvantageRules::default() };
        rules.validate().unwrap();
        let rows = run["rows"].as_array().unwrap();
        let last = rows.last().unwrap()["step"].as_u64().unwrap();
        let mut moments = EmaMoments::default();
        for step in 0..=last {
            let of_step: Vec<&Value> = rows.iter().filter(|row| row["step"] == step).collect();
            let groups: Vec<(Scores, String)> = of_step.iter().map(|row| scored(row)).collect();
            let groups: Vec<(&Scores, String)> = groups.iter().map(|(scores, task)| (scores, task.clone())).collect();
            let stored = serde_json::to_string(&moments).unwrap();
            let advantages = rules.of_step(&groups, &mut moments);
            let mut resumed: EmaMoments = serde_json::from_str(&stored).unwrap();
            assert_eq!(rules.of_step(&groups, &mut resumed), advantages);
            assert_eq!(resumed, moments);
            for ((row, (scores, _)), advantages) in of_step.iter().zip(&groups).zip(advantages) {
                for (key, got, tolerance) in [("reward", &scores.reward, 1e-6), ("advantage", &advantages, 3e-4)] {
                    let want = row["expected"][key].as_array().unwrap();
                    let equal = |(got, want): (&f32, &Value)| near((*got).into(), want.as_f64().unwrap(), tolerance);
                    assert_eq!(got.len(), want.len());
                    assert!(got.iter().zip(want).all(equal), "{} step {step}: {key} {got:?}, want {want:?}", run["id"]);
                }
            }
        }
    }
}

/// Scores a golden row of completions.
fn scored(row: &Value) -> (Scores, String) {
    let kind = row["kind"].as_str().unwrap();
    let given = json!({"problem_type": kind, "solution": format!("<answer>{}</answer>", row["truth"].as_str().unwrap()),
        "completions": row["answers"], "data_type": "video"});
    let rules = RewardRules::default();
    let scores = RewardRow::parse(&given.to_string(), &rules).unwrap().score(&rules, None).unwrap();
    (scores, ema_task(ProblemType::parse(kind).ok(), Some(true)))
}
