//! Fuzz targets for the scoring of completions: predictions of benchmarks, rows of `reel reward`, and the output of a
//! custom reward command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use reel_eval::{Extraction, Prediction, Task, score_benchmark};
use reel_samples::rewards::{
    CustomReward, ProblemType, RewardRow, RewardRules, RewardWeights, accuracy_reward, extract_answer, parse_number,
    reasoning_text, strip_white_space,
};
use serde_json::{Value, json};

use super::{Runner, accepted, random_of, run, text_of, write};

/// The file of predictions that `reel eval --score-only` reads.
pub fn predictions(_: PathBuf) -> Result<Runner> {
    let tasks = Task::built_in_tasks();
    run(move |input| {
        let text = text_of(input);
        let predictions: Vec<_> = text.lines().filter_map(|line| accepted(Prediction::from_json_line(line))).collect();
        for prediction in &predictions {
            accepted(prediction.check_solution());
            let rules = [Extraction::Tags, Extraction::Lenient, Extraction::Reference];
            let scores = tasks.iter().flat_map(|task| rules.map(|rule| prediction.score(task, rule)));
            let score = scores.fold(0.0, f64::max);
            assert!((0.0..=1.0).contains(&score), "the score is {score}");
        }
        let task = &tasks[random_of(input).usize(..tasks.len())];
        if let Some(report) = accepted(score_benchmark(task, &predictions, Extraction::Tags)) {
            let bounds = [report.overall_ci95[0], report.overall, report.overall_ci95[1]];
            assert!(bounds.is_sorted() && bounds[2].is_finite(), "score between its bounds: {bounds:?}");
            std::hint::black_box(json!(report).to_string());
        }
        (predictions.len() == text.lines().count()).then_some(())
    })
}

/// The rows that `reel reward` reads. Each completion is also scored as every other kind of problem.
pub fn rewards(_: PathBuf) -> Result<Runner> {
    let rules = RewardRules { has_structure_reward: true, ..RewardRules::default() };
    run(move |input| {
        let text = text_of(input);
        accepted(RewardWeights::parse(&text, &["command".to_string(), "url".to_string()]));
        score_text(&text);
        let rows: Vec<_> = text.lines().filter_map(|line| accepted(RewardRow::parse(line, &rules))).collect();
        let count = rows.len();
        for row in rows {
            accepted(row.check_solution());
            row.group.completions.iter().for_each(|completion| score_text(completion));
            let Some(scores) = accepted(row.score(&rules, None)) else { continue };
            assert!(scores.reward.iter().chain(&scores.advantage).all(|value| value.is_finite()), "{}", json!(scores));
        }
        (count == text.lines().count()).then_some(())
    })
}

/// Extracts the answer of a text, and checks the accuracy reward that the text gets as each kind of problem.
fn score_text(text: &str) {
    let start: String = text.chars().take(4_000).collect();
    std::hint::black_box((extract_answer(text), reasoning_text(text), strip_white_space(text), parse_number(text)));
    let tagged = format!("<answer>{start}</answer>");
    for kind in [None].into_iter().chain(ProblemType::ALL.map(Some)) {
        for [completion, solution] in [[&start[..], &tagged], [&tagged, &tagged], [&tagged, "<answer>4</answer>"]] {
            let accuracy = accuracy_reward(kind, completion, solution);
            assert!((0.0..=1.0).contains(&accuracy), "the accuracy reward as {kind:?} is {accuracy}");
        }
    }
}

/// The output of a custom reward command (`--reward-command`).
pub fn reward_command(folder: PathBuf) -> Result<Runner> {
    let file = folder.join("reply");
    let command = format!("read -r a; read -r b; cat '{}'", file.display());
    let rows: Vec<Value> = (0..2).map(|i| json!({"prompt": "?", "completion": i.to_string()})).collect();
    run(move |input| {
        write(&file, input);
        let mut reward = accepted(CustomReward::from_command(&command, Duration::from_secs(10)))?;
        let rewards = accepted(reward.score(&rows))?;
        assert!(!rewards.iter().any(|reward| reward.is_infinite()), "rewards {rewards:?}");
        Some(())
    })
}
