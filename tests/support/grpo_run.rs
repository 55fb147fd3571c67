//! Files and arguments of a small GRPO run: a tiny model, rows of text, and a shell command as reward.

use std::fs;

use serde_json::json;

use crate::support::{tiny_model, with_options};

/// Creates a temporary folder with a tiny model and text rows.
pub fn training_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    let row = |i: usize| {
        let asked = json!([{"role": "user", "content": format!("What is {i} + {i}?")}]);
        json!({"prompt": asked, "solution": format!("<answer>{}</answer>", 2 * i), "problem_type": "numerical"})
            .to_string()
    };
    let rows: Vec<String> = (0..7).map(row).collect();
    fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).expect("rows");
    folder
}

/// Returns the arguments of a run that rewards each completion by the length of its JSON line. Options in `more`
/// replace options of the same name.
pub fn grpo_args(out: &str, more: &[&str]) -> Vec<String> {
    let own =
        ["grpo", "--model", "tiny", "--out", out, "--reward-command", "while read -r line; do echo ${#line}; done"];
    let fixed = "--data rows.jsonl --num-generations 4 --per-device-train-batch-size 4 --max-completion-length 8 \
                 --learning-rate 1e-3 --threads 1 --quiet";
    let args: Vec<&str> = own.into_iter().chain(fixed.split_whitespace()).collect();
    with_options(&args, more).into_iter().map(str::to_string).collect()
}
