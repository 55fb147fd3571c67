//! Creates a folder with training rows, and runs `reel sft` in it.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::fs;
use std::path::Path;

use super::support::{FinishedRun, file_names_in, golden, metrics_without_times, run_in, tiny_model, with_options};

/// Creates a temporary folder with a tiny model and text rows.
pub fn training_folder(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    let row = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{i} + {i}?\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
            2 * i
        )
    };
    fs::write(folder.path().join("rows.jsonl"), (0..rows).map(row).collect::<String>()).expect("written");
    folder
}

/// Runs `reel sft` in this folder on `rows.jsonl`. Options in `more` replace options of the same name.
pub fn run_sft(folder: &Path, out: &str, more: &[&str]) -> FinishedRun {
    let args = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", out, "--learning-rate", "1e-3"];
    run_in(folder, with_options(&args, more))
}

/// Returns a row with a question about a video or an image.
pub fn media_question_row(kind: &str, path: &str) -> String {
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": [{{\"type\": \"{kind}\", \"{kind}\": \"{path}\"}}, {{\"type\": \"text\", \
         \"text\": \"?\"}}]}}, {{\"role\": \"assistant\", \"content\": \"x\"}}]}}\n"
    )
}

/// Copies a video and an image of the golden cases into a folder.
pub fn copy_test_media(folder: &Path) {
    let video = golden("train").join("sft_videorft_mp4/media/clip.mp4");
    let image = golden("grpo/grpo_clip_iter2/media/b.png");
    for (from, to) in [(video, "good.mp4"), (image, "good.png")] {
        fs::copy(&from, folder.join(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

/// Asserts that two runs have the same metrics, the same checkpoint files, and the same weights.
#[track_caller]
pub fn assert_same_results(a: &Path, b: &Path, checkpoint: &str) {
    assert_eq!(metrics_without_times(a), metrics_without_times(b));
    let files = file_names_in(&a.join(checkpoint));
    assert_eq!(files, file_names_in(&b.join(checkpoint)));
    for name in files.iter().filter(|n| n.ends_with(".safetensors")) {
        let bytes = |out: &Path| fs::read(out.join(checkpoint).join(name)).expect("a file");
        assert!(bytes(a) == bytes(b), "{checkpoint}/{name} differs");
    }
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).expect("weights");
    assert!(weights(a) == weights(b), "the final weights differ");
}
