//! The recipes of docs/examples in which a model learns to call tools: their data, and one step of each command.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{read_metrics, run_in, with_options};

/// A folder with the clips, a tiny model, and the files of the recipe `name`.
fn recipe(folder: &Path, name: &str, more: &[&str]) -> PathBuf {
    run_in(folder, with_options(&["demo-clips", "--out", "clips"], more)).ok();
    let at = folder.join("clips");
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name)).expect("a recipe")
    {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), at.join(entry.file_name())).expect("copied");
    }
    run_in(&at, ["init", "--preset", "tiny", "--out", "model"]).ok();
    at
}

fn rows(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name)).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Runs a step of each command of a recipe. All rows can be used.
fn run_steps(folder: &Path) {
    for (command, model, data) in [("sft", "model", "sft.jsonl"), ("grpo", "sft", "rl.jsonl")] {
        let file = format!("{command}.toml");
        let fixed = ["--model", model, "--data", data, "--media-root", ".", "--out", command, "--max-steps", "1"];
        run_in(folder, [&[command, "--quiet", "--strict", "--config", &file][..], &fixed].concat()).ok();
        assert_eq!(read_metrics(&folder.join(command)).len(), 1);
    }
}

/// The prompts show the first and the last frame, which are equal in all clips, and every question has its own clip.
#[test]
fn answers_are_not_in_the_frames_of_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = recipe(folder.path(), "tools-longvt", &[]);
    let shown = run_in(&at, ["frames", "--video", "clips/held-out-000.mp4", "--nframes", "2", "--json"]).json();
    assert_eq!(shown["indices"], json!([0, 23]));
    let held_out = rows(&at, "held-out.jsonl");
    for color in ["red", "green", "blue", "yellow"] {
        let count = held_out.iter().filter(|row| row["answer"] == color).count();
        assert!((15..=45).contains(&count), "{color}: {count}");
    }
    assert!(rows(&at, "sft.jsonl").iter().all(|row| !row.to_string().contains("held-out")));
    run_steps(&at);
    run_in(folder.path(), ["demo-clips", "--out", "clips"]).assert_refused(2, &["--out", "clips exists"]);
}

#[test]
fn evidence_is_rewarded() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = recipe(folder.path(), "tools-open-o3", &["--boxes"]);
    run_steps(&at);
    let metrics = &read_metrics(&at.join("grpo"))[0];
    for reward in ["rewards/accuracy", "rewards/format", "rewards/temporal", "rewards/spatial"] {
        assert!(metrics[reward].is_number(), "{reward}: {metrics}");
    }
}
