//! `reel grpo` as several processes (ranks).

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rank_runs::{assert_same_results, wait_for_steps};
use serde_json::{Value, json};
use sft_rows::copy_test_media;
use support::{FinishedRun, file_names_in, finished_run, golden, read_metrics, reel, run_in, tiny_model, with_options};

const GRPO: &str = "grpo --model tiny --data rows.jsonl --device cpu --num-generations 2 --per-device-train-batch-size 2 \
    --gradient-accumulation-steps 8 --max-completion-length 6 --learning-rate 1e-3 --lr-scheduler-type constant \
    --save-steps 2 --threads 1";

/// A reward command whose reward depends on the row, but not on the row's index in the batch that a process sends.
const REWARD: [&str; 2] =
    ["--reward-command", "while read -r line; do row=${line%,*_batch*}; echo $((${#row} % 7)); done"];

/// The file of a checkpoint with the rollouts and log-probabilities for the next steps.
const SET: &str = "training/set.json";

/// Returns a command that trains in `folder`. Options in `more` replace earlier options of the same name.
fn grpo(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = reel();
    let fixed: Vec<&str> = GRPO.split_whitespace().collect();
    command.current_dir(folder).args(with_options(&fixed, more)).args(["--out", out]);
    command
}

fn train(folder: &Path, out: &str, more: &[&str]) -> FinishedRun {
    finished_run(grpo(folder, out, more).output().expect("the binary starts"))
}

/// Returns a row with a question; `media` are the content parts before the question.
fn row(i: usize, media: &[Value]) -> String {
    let content = [media, &[json!({"type": "text", "text": format!("What is {i} + {i}?")})]].concat();
    let prompt = json!([{"role": "user", "content": content}]);
    let solution = format!("<answer>{}</answer>", 2 * i);
    json!({"prompt": prompt, "solution": solution, "problem_type": "numerical"}).to_string() + "\n"
}

/// Creates a temporary folder with a tiny model, rows of text, and rows about videos and images, one of which is
/// damaged.
fn training_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    copy_test_media(folder.path());
    fs::write(folder.path().join("bad.png"), "no image").expect("written");
    fs::write(folder.path().join("rows.jsonl"), (0..11).map(|i| row(i, &[])).collect::<String>()).expect("written");
    let video = || json!({"type": "video", "video": "good.mp4"});
    let image = |name: &str| json!({"type": "image", "image": name});
    let rows = [
        row(1, &[video()]),
        row(2, &[image("bad.png")]),
        row(3, &[image("good.png"), video()]),
        row(4, &[]),
        row(5, &[image("good.png")]),
        row(6, &[video()]),
    ];
    fs::write(folder.path().join("media.jsonl"), rows.concat()).expect("written");
    folder
}

/// Returns the names and contents of all files below OUT/rollouts.
fn rollouts(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for folder in ["rollouts", "rollouts/strips"] {
        let names = file_names_in(&out.join(folder)).into_iter().map(|name| format!("{folder}/{name}"));
        files.extend(names.filter(|name| out.join(name).is_file()));
    }
    files.into_iter().map(|name| (name.clone(), fs::read(out.join(name)).expect("a file"))).collect()
}

/// Asserts that two runs have the same metrics, rollouts and skipped rows, and the same checkpoint.
#[track_caller]
fn same_runs(a: &Path, b: &Path, checkpoint: &str) {
    assert_same_results(a, b, checkpoint);
    assert!(!rollouts(a).is_empty(), "{}", a.display());
    let differing: Vec<String> =
        rollouts(a).into_iter().zip(rollouts(b)).filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
    assert_eq!((rollouts(a).len(), differing), (rollouts(b).len(), Vec::new()));
    let text = |out: &Path, name: &str| fs::read_to_string(out.join(name)).ok();
    assert_eq!(text(a, "skipped.jsonl"), text(b, "skipped.jsonl"));
    let set = format!("{checkpoint}/{SET}");
    assert_eq!(text(a, &set), text(b, &set));
}

#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let w = training_folder();
    let at = w.path();
    let siglip = golden("siglip/model").display().to_string();
    let two_groups = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "4"];
    let four = ["--gradient-accumulation-steps", "4"];
    // The last checkpoint is written between two steps on the same rollouts, and has the moments of the rewards.
    let iterations = ["--num-iterations", "2", "--max-steps", "3", "--save-steps", "3", "--scale-rewards", "ema"];
    let dapo = ["--loss-type", "dapo", "--scale-rewards", "batch", "--importance-sampling-level", "sequence"];
    let entropy = ["--top-entropy-quantile", "0.4", "--entropy-coef", "0.01"];
    let correction = ["--vllm-importance-sampling-mode", "token_truncate"];
    // With this reward, many groups have equal rewards.
    let parity = ["--reward-command", "while read -r line; do row=${line%,*_batch*}; echo $((${#row} % 2)); done"];
    let dynamic = ["--dynamic-sampling", "--lora-r", "4", "--lora-target-modules", "all-linear"];
    let dapo = [&dapo[..], &entropy, &correction].concat();
    // In the last step there are only two groups, so some ranks have none.
    let temporal = [
        "--temporal",
        "--siglip",
        &siglip,
        "--data",
        "media.jsonl",
        "--num-train-epochs",
        "2",
        "--max-pixels",
        "12288",
        "--min-pixels",
        "4096",
    ];
    let divided = ["--zero-stage", "3", "--max-steps", "2", "--save-steps", "2"];
    let adapter = ["--lora-r", "4", "--dtype", "bf16"];
    let runs: [(&str, Vec<&str>, &[&str]); 6] = [
        ("divided", [&REWARD[..], &divided, &["--num-iterations", "2"]].concat(), &["3"]),
        ("divided_adapter", [&REWARD[..], &divided, &adapter, &["--beta", "0.04"]].concat(), &["2"]),
        ("iterations", [&REWARD[..], &iterations].concat(), &["2", "3", "4", "8"]),
        ("dapo", [&REWARD[..], &two_groups, &dapo, &["--max-steps", "2"]].concat(), &["3"]),
        ("dynamic", [&parity[..], &four, &dynamic, &["--max-steps", "2"]].concat(), &["3"]),
        ("temporal", [&REWARD[..], &temporal].concat(), &["2", "3", "4", "8"]),
    ];
    for (name, options, sizes) in &runs {
        let one = at.join(format!("{name}1"));
        train(at, &format!("{name}1"), options).ok();
        let checkpoint = format!("checkpoint-{}", read_metrics(&one).len());
        for size in *sizes {
            let out = format!("{name}{size}");
            let done = train(at, &out, &[&options[..], &["--gpus", size]].concat());
            assert!(done.ok().starts_with(&format!("{out}: ")), "{name}: {}", done.stdout);
            same_runs(&one, &at.join(&out), &checkpoint);
            let left = file_names_in(&at.join(&out));
            assert!(!left.iter().any(|file| file.starts_with("ranks-")), "{left:?}");
        }
    }
    // Checks that the runs above covered the cases that they are meant to test.
    let last = |name: &str| read_metrics(&at.join(name)).pop().expect("a step");
    assert!(at.join("iterations8/checkpoint-3").join(SET).exists());
    assert!(last("iterations8")["kl"].as_f64().expect("kl") > 0.0);
    let dropped: u64 =
        read_metrics(&at.join("dynamic3")).iter().filter_map(|line| line["dropped_groups"].as_u64()).sum();
    assert!(dropped > 0, "{}", last("dynamic3"));
    let (steps, record) = (read_metrics(&at.join("temporal8")).len(), &rollouts(&at.join("temporal8"))[1].1);
    assert_eq!((steps, record.iter().filter(|byte| **byte == b'\n').count()), (2, 2));
    assert!(last("temporal8")["rewards/temporal"].is_number(), "{}", last("temporal8"));
    let skipped = fs::read_to_string(at.join("temporal8/skipped.jsonl")).expect("skipped rows");
    assert!(skipped.contains("bad.png") && skipped.lines().count() == 1, "{skipped}");

    // Runs with `--rollouts` train on recorded completions and sample nothing. A single process replays a step that
    // several processes have computed.
    let given = ["--rollouts", "iterations8/rollouts/000001.jsonl", "--max-steps", "2"];
    train(at, "given1", &given).ok();
    train(at, "given4", &[&given[..], &["--gpus", "4"]].concat()).ok();
    assert_same_results(&at.join("given1"), &at.join("given4"), "checkpoint-2");
    for step in ["2", "3"] {
        assert!(run_in(at, ["replay", "iterations8", "--step", step]).ok().contains("same bits"));
    }
}

#[test]
fn a_run_changes_its_number_of_processes_at_a_resume() {
    let w = training_folder();
    // Each run ends between the two steps on its rollouts.
    let options = [&REWARD[..], &["--num-iterations", "2", "--save-steps", "1"]].concat();
    train(w.path(), "straight", &[&options[..], &["--max-steps", "6"]].concat()).ok();
    for (steps, gpus) in [("1", "2"), ("3", "3"), ("5", "1"), ("6", "4")] {
        let more: &[&str] = if steps == "1" { &[] } else { &["--resume-from-checkpoint", "last"] };
        train(w.path(), "changing", &[&options[..], &["--max-steps", steps, "--gpus", gpus], more].concat()).ok();
    }
    same_runs(&w.path().join("straight"), &w.path().join("changing"), "checkpoint-6");
}

#[test]
fn a_killed_process_ends_the_others_and_the_run_resumes_to_the_same_bits() {
    let w = training_folder();
    let options = [&REWARD[..], &["--num-iterations", "2"]].concat();
    train(w.path(), "straight", &[&options[..], &["--max-steps", "6"]].concat()).ok();
    let mut command = grpo(w.path(), "killed", &[&options[..], &["--max-steps", "400", "--gpus", "3"]].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    wait_for_steps(&w.path().join("killed"), 3);
    support::send_signal(support::child_processes(&child)[1], "-KILL");
    let done = finished_run(child.wait_with_output().expect("it ends"));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let last = done.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: rank 1: ended with signal: 9"), "{}", done.stderr);
    let resumed = ["--max-steps", "6", "--gpus", "2", "--resume-from-checkpoint", "last"];
    train(w.path(), "killed", &[&options[..], &resumed].concat()).ok();
    same_runs(&w.path().join("straight"), &w.path().join("killed"), "checkpoint-6");
}

/// If the reward of one process fails, all processes end after the same step, and this step is saved.
#[test]
fn a_failed_reward_of_one_process_saves_the_finished_steps() {
    let w = training_folder();
    // The command of rank 1 scores the 8 completions of 4 groups in each step, and fails in the second step.
    let command = "while read -r line; do if [ \"$RANK\" = 1 ]; then echo >> seen; [ $(wc -l < seen) -lt 13 ] || exit 1; fi; \
        row=${line%,*_batch*}; echo $((${#row} % 7)); done";
    let options = ["--reward-command", command, "--save-steps", "100"];
    let done = train(w.path(), "out", &[&options[..], &["--max-steps", "10", "--gpus", "2"]].concat());
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for rank in 0..2 {
        let prefix = format!("[rank {rank}] error: --reward-command ");
        assert!(done.stderr.lines().any(|line| line.starts_with(&prefix)), "{}", done.stderr);
    }
    assert!(w.path().join("out/checkpoint-1").is_dir(), "{:?}", file_names_in(&w.path().join("out")));
    // In a single process, RANK is not set, so the command does not fail.
    let straight = [&options[..], &["--max-steps", "3"]].concat();
    train(w.path(), "straight", &straight).ok();
    train(w.path(), "out", &[&straight[..], &["--resume-from-checkpoint", "last"]].concat()).ok();
    same_runs(&w.path().join("straight"), &w.path().join("out"), "checkpoint-3");
}

#[test]
fn a_process_without_a_micro_batch_is_refused_in_one_line() {
    let w = training_folder();
    let done = train(w.path(), "out", &["--gradient-accumulation-steps", "1", "--gpus", "2"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    let said = done.stderr.lines().find(|line| line.contains("] error: ")).unwrap_or_default();
    assert!(said.contains("--gradient-accumulation-steps: is 1") && said.contains("at least 2"), "{}", done.stderr);
}
