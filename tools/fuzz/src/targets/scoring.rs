//! Fuzz targets for the scoring of completions: predictions of benchmarks, rows of `reel reward`, and the output of a
//! custom reward command.

use std::fs;
use std::time::Duration;

use reel_eval::{Extraction, Prediction, Task, score_benchmark};
use reel_samples::rewards::{
    CustomReward, ProblemType, RewardRow, RewardRules, RewardWeights, accuracy_reward, extract_answer, parse_number,
    reasoning_text, strip_white_space,
};
use serde_json::{Value, json};

use super::{FuzzTarget, scratch_folder, text_of};
use crate::mutate::{PartFormat, Seed};
use crate::verdict::{require, value_if_accepted, verdict_of};

const WORDS: &[&str] = &[
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer/>",
    "<ANSWER>",
    "numerical",
    "multiple choice",
    "OCR",
    "free-form",
    "regression",
    "math",
    "A",
    "B.",
    "1,000",
    "-1e308",
    "1e-320",
    "NaN",
    "١٢",
    "½",
    "$5",
    "5%",
    " ",
    "\n",
    "problem_type",
    "solution",
    "output",
    "category",
    "completion",
    "completions",
    "lengths",
    "shuffled_completions",
    "frames",
    "data_type",
    "video",
    "object_counting",
    "route_planning",
    "reward",
    "accuracy=2,format=0",
    "the",
    "running",
    "ation",
];

const KINDS: [&str; 6] = ["multiple choice", "numerical", "OCR", "free-form", "regression", "math"];

/// For each of [`KINDS`], a completion and the solution that it is scored against.
const ANSWERS: [[&str; 2]; 6] = [
    ["<think>It is B.</think><answer>B</answer>", "<answer>B</answer>"],
    ["<think>2 + 2</think>\n<answer>4.00</answer>", "<answer>4</answer>"],
    ["<answer>Exit 12 north</answer>", "<answer>exit 12 North</answer>"],
    [
        "<think>t</think><answer>The running dogs were playing quickly</answer>",
        "<answer>dogs play in the park</answer>",
    ],
    ["<answer>1,234.5</answer> and so on", "<answer>1200</answer>"],
    ["x <answer> sqrt(2) </answer>", "<answer>1.41</answer>"],
];

/// The file of predictions that `reel eval --score-only` reads.
pub const PREDICTIONS: FuzzTarget = FuzzTarget {
    name: "predictions",
    words: WORDS,
    seeds: || {
        let rows = (0..6).map(|i| {
            let [output, solution] = ANSWERS[i];
            json!({"problem_type": KINDS[i], "solution": solution, "output": output, "category": "object_counting", "path": "x"})
        });
        Ok(vec![Seed::new(PartFormat::JsonLines, rows.map(|row| row.to_string()).collect::<Vec<_>>().join("\n"))])
    },
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            let mut predictions = Vec::new();
            let mut all = true;
            for line in text.lines() {
                let read = value_if_accepted(Prediction::from_json_line(line))?;
                all &= read.is_some();
                predictions.extend(read);
            }
            for prediction in &predictions {
                verdict_of(prediction.check_solution())?;
                let score = prediction.score(Extraction::Tags).max(prediction.score(Extraction::Lenient));
                require((0.0..=1.0).contains(&score), || format!("the score is {score}"))?;
            }
            for task in Task::built_in_tasks() {
                if let Some(report) = value_if_accepted(score_benchmark(&task, &predictions, Extraction::Tags))? {
                    let bounds = [report.overall_ci95[0], report.overall, report.overall_ci95[1]];
                    require(bounds.is_sorted() && bounds[2].is_finite(), || {
                        format!("interval start, score, interval end are not ascending: {bounds:?}")
                    })?;
                    std::hint::black_box(json!(report).to_string());
                }
            }
            Ok(all)
        }))
    },
};

/// The rows that `reel reward` reads. Each completion is also scored as every other kind of problem.
pub const REWARDS: FuzzTarget = FuzzTarget {
    name: "rewards",
    words: WORDS,
    seeds: || {
        let rows = (0..6).map(|i| {
            let [completion, solution] = ANSWERS[i];
            json!({
                "problem_type": KINDS[i], "solution": solution, "completions": [completion, "no tags", ANSWERS[(i + 1) % 6][0]],
                "lengths": [400, 3, 512], "shuffled_completions": [completion, "x"], "data_type": "video",
            })
        });
        let single = json!({"problem_type": "numerical", "solution": "<answer>4</answer>", "completion": "4", "frames": ["a.png"]});
        let rows = rows.chain([single]).map(|row| row.to_string()).collect::<Vec<_>>().join("\n");
        Ok(vec![Seed::new(PartFormat::JsonLines, rows)])
    },
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            verdict_of(RewardWeights::parse(&text, &["command".to_string(), "url".to_string()]))?;
            score_text(&text)?;
            let mut all = true;
            for line in text.lines() {
                let Some(row) = value_if_accepted(RewardRow::parse(line))? else {
                    all = false;
                    continue;
                };
                verdict_of(row.check_solution())?;
                row.group.completions.iter().try_for_each(|completion| score_text(completion))?;
                if let Some(scores) = value_if_accepted(row.score(&RewardRules::default(), None))? {
                    let is_finite = scores.reward.iter().chain(&scores.advantage).all(|value| value.is_finite());
                    require(is_finite, || format!("rewards {:?}, advantages {:?}", scores.reward, scores.advantage))?;
                    std::hint::black_box(json!(scores).to_string());
                }
            }
            Ok(all)
        }))
    },
};

/// Extracts the answer of a text, and checks the accuracy reward that the text gets as each kind of problem.
fn score_text(text: &str) -> Result<(), String> {
    let start: String = text.chars().take(4_000).collect();
    std::hint::black_box((extract_answer(text), reasoning_text(text), strip_white_space(text), parse_number(text)));
    let tagged = format!("<answer>{start}</answer>");
    for kind in KINDS.map(|kind| ProblemType::parse(kind).ok()) {
        for [completion, solution] in [[&start[..], &tagged], [&tagged, &tagged], [&tagged, "<answer>4</answer>"]] {
            let accuracy = accuracy_reward(kind, completion, solution);
            require((0.0..=1.0).contains(&accuracy), || format!("the accuracy reward as {kind:?} is {accuracy}"))?;
        }
    }
    Ok(())
}

/// The output of a custom reward command (`--reward-command`).
pub const REWARD_COMMAND: FuzzTarget = FuzzTarget {
    name: "reward-command",
    words: &["reward", "{\"reward\": 1}", "nan", "1e400", "null", "[1]", "-1"],
    seeds: || {
        Ok(vec![Seed::new(PartFormat::JsonLines, "0.5\n{\"reward\": 1.0}\n"), Seed::new(PartFormat::Text, "1\n-2e3\n")])
    },
    open: || {
        let file = scratch_folder()?.join("reply");
        let command = format!("read -r a; read -r b; cat '{}'", file.display());
        let rows: Vec<Value> = (0..2).map(|i| json!({"prompt": "?", "completion": i.to_string()})).collect();
        Ok(Box::new(move |input| {
            fs::write(&file, input).map_err(|e| e.to_string())?;
            let reward = value_if_accepted(CustomReward::from_command(&command, Duration::from_secs(10)))?;
            let Some(mut reward) = reward else { return Ok(false) };
            let Some(rewards) = value_if_accepted(reward.score(&rows))? else { return Ok(false) };
            require(!rewards.iter().any(|reward| reward.is_infinite()), || format!("rewards {rewards:?}"))?;
            Ok(true)
        }))
    },
};
