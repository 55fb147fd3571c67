//! Runs whose advantages depend on earlier steps or on single reward functions, and groups with offline answers: they
//! resume, and repeat from their records, with equal bits.

use reel_samples::rewards::{AdvantageEstimator, RewardAggregation, ScaleRewards};

use super::live::{DIFFERENT_REWARDS, case, data_rows};
use super::*;
use crate::file_names::REWARD_MOMENTS_FILE;

fn live(dir: &Path, out: &str, rows: &str) -> Case {
    case(dir, out, rows).with(|o| {
        (o.reward_command, o.save_steps, o.beta) = (vec![DIFFERENT_REWARDS.into()], 1, 0.0);
    })
}

fn hashes(out: &Path) -> Vec<String> {
    read_metrics(out).into_iter().map(|line| line.hash).collect()
}

/// Runs `case` of four steps in one go, with a stop after two steps, and from the records of the first run. All must
/// have the same weights, which are returned as hashes by step.
fn hashes_of_whole_resumed_and_repeated_run(dir: &Path, case: impl Fn(&str) -> Case) -> Vec<String> {
    case("whole").run().unwrap();
    case("resumed").with(|o| o.max_steps = Some(2)).run().unwrap();
    case("resumed").with(|o| o.resume_from_checkpoint = Some("last".into())).run().unwrap();
    case("repeated").with(|o| o.recorded = Some(dir.join("whole/rollouts"))).run().unwrap();
    let [whole, resumed, repeated] = ["whole", "resumed", "repeated"].map(|out| hashes(&dir.join(out)));
    assert_eq!((&whole, &whole), (&resumed, &repeated));
    whole
}

#[test]
fn advantages_of_several_rewards_and_steps_have_equal_bits_after_a_resume() {
    let changes: [fn(&mut GrpoOptions); 4] = [
        |_| {},
        |o| o.scale_rewards = ScaleRewards::Ema,
        |o| o.multi_objective_aggregation = RewardAggregation::NormalizeThenSum,
        |o| (o.advantage_estimator, o.scale_rewards) = (AdvantageEstimator::Rloo, ScaleRewards::Batch),
    ];
    let mut all = Vec::new();
    for change in changes {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        all.push(hashes_of_whole_resumed_and_repeated_run(at, |out| live(at, out, &data_rows()).with(change)));
        let moments = [2, 4].map(|step| at.join(format!("whole/checkpoint-{step}")).join(REWARD_MOMENTS_FILE));
        let is_ema = all.len() == 2;
        assert_eq!(moments.each_ref().map(|file| file.exists()), [is_ema; 2]);
        if is_ema {
            assert_ne!(fs::read(&moments[0]).unwrap(), fs::read(&moments[1]).unwrap());
            // Without its moments, a checkpoint cannot be resumed.
            fs::remove_file(at.join("resumed/checkpoint-4").join(REWARD_MOMENTS_FILE)).unwrap();
            let resumed = live(at, "resumed", &data_rows()).with(change);
            let resumed = resumed.with(|o| (o.resume_from_checkpoint, o.max_steps) = (Some("last".into()), Some(5)));
            let e = resumed.run().unwrap_err().to_string();
            assert!(e.contains(REWARD_MOMENTS_FILE) && e.contains("is missing"), "{e}");
        }
    }
    assert!((1..4).all(|i| !all[..i].contains(&all[i])), "{all:?}");
}

#[test]
fn offline_answers_join_the_sampled_completions() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let row = |offline: Value| {
        json!({"prompt": [{"role": "user", "content": "2 + 2?"}], "problem_type": "numerical",
            "solution": "<answer>4</answer>", "offline_output": offline})
        .to_string()
    };
    let good = row(json!("<think>2 + 2</think><answer>4</answer>"));
    let rows = [good.clone(), row(json!(["a", "b", "c", "d"])), row(json!("long ".repeat(400)))].join("\n");
    let rows_of = |out: &str, rows: &str| {
        live(at, out, rows).with(|o| {
            (o.temporal, o.reward_command, o.max_completion_length) = (false, Vec::new(), 100);
            (o.num_iterations, o.num_train_epochs) = (2, 9.0);
        })
    };
    hashes_of_whole_resumed_and_repeated_run(at, |out| rows_of(out, &rows));
    let recorded = fs::read_to_string(records::rollouts_file_path(&at.join("whole/rollouts"), 1)).unwrap();
    let line: Value = serde_json::from_str(recorded.lines().next().unwrap()).unwrap();
    let texts = line["texts"].as_array().unwrap();
    assert_eq!((texts.len(), &texts[3]), (4, &json!("<think>2 + 2</think><answer>4</answer>")));
    assert_eq!(line["scores"]["accuracy"][3], 1.0);
    assert_eq!((line["log_probs"][3].clone(), line["finish_reasons"][3].clone()), (json!([]), json!("stop")));
    assert!(!line["log_probs"][0].as_array().unwrap().is_empty());
    for line in read_metrics(&at.join("whole")).iter().step_by(2) {
        assert_eq!(line.grpo.rollout_drift, Some(0.0), "step {}", line.step);
    }
    let skipped = fs::read_to_string(at.join("whole/skipped.jsonl")).unwrap();
    assert!(skipped.contains("has 4 answers, but a group has --num-generations 4 completions"), "{skipped}");
    assert!(skipped.contains("more than --max-completion-length 100"), "{skipped}");
    let sampled = rows_of("sampled", &good.replace("offline_output", "other"));
    sampled.run().unwrap();
    assert_ne!(hashes(&at.join("sampled"))[0], hashes(&at.join("whole"))[0]);
}
