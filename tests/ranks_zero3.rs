//! `reel sft --zero-stage 3`: processes (ranks) that divide the weights, and checkpoints that all ranks write.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;

use rank_runs::{assert_same_results, run_sft};
use sft_rows::{copy_test_media, media_question_row, training_folder};
use support::file_names_in;

/// Asserts that two runs have the same model files, except for the name of the base model in an adapter's config.
#[track_caller]
fn same_final_model(a: &Path, b: &Path) {
    let weights = |out: &Path| -> Vec<String> {
        file_names_in(out).into_iter().filter(|name| name.ends_with(".safetensors") || name == "config.json").collect()
    };
    assert_eq!(weights(a), weights(b));
    assert!(!weights(a).is_empty(), "{}", a.display());
    for name in weights(a) {
        assert!(fs::read(a.join(&name)).expect("a file") == fs::read(b.join(&name)).expect("a file"), "{name} differs");
    }
}

const ZERO_3: [&str; 2] = ["--zero-stage", "3"];

#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let w = training_folder(9);
    copy_test_media(w.path());
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    let more = [
        media_question_row("video", "good.mp4"),
        media_question_row("image", "missing.png"),
        media_question_row("image", "good.png"),
    ]
    .concat();
    fs::write(w.path().join("media.jsonl"), text + &more).expect("written");
    let lora = ["--lora-r", "4", "--lora-target-modules", "all-linear", "--gradient-checkpointing", "full"];
    let with_media =
        ["--data", "media.jsonl", "--num-train-epochs", "1", "--max-pixels", "12288", "--min-pixels", "4096"];
    let merger = [&["--freeze-vision", "--freeze-merger", "false"][..], &with_media].concat();
    let tower = [&["--freeze-llm", "--freeze-merger"][..], &with_media].concat();
    let runs: [(&str, &[&str], &[&str]); 8] = [
        ("full", &[], &["1", "2", "3", "4", "8"]),
        ("bf16", &["--dtype", "bf16", "--optim", "adamw-8bit"], &["3"]),
        ("lora", &lora, &["2"]),
        ("frozen", &["--freeze-vision", "--gradient-checkpointing", "selective"], &["2"]),
        ("packing", &["--packing", "--max-length", "60"], &["2"]),
        // Only some micro-batches have media, and the last step has fewer micro-batches than the others.
        ("media", &with_media, &["2", "3"]),
        ("merger", &merger, &["2"]),
        ("tower", &tower, &["3"]),
    ];
    for (name, options, sizes) in runs {
        let options = [&["--max-steps", "2"], options].concat();
        let one = format!("{name}1");
        let printed = run_sft(w.path(), &one, &options);
        for size in sizes {
            let out = format!("{name}_{size}");
            let done = run_sft(w.path(), &out, &[&options[..], &ZERO_3, &["--gpus", size]].concat());
            assert_eq!(done.ok(), printed.ok().replace(&one, &out), "{name}");
            assert_same_results(&w.path().join(&one), &w.path().join(&out), "checkpoint-2");
            same_final_model(&w.path().join(&one), &w.path().join(&out));
        }
    }
}

#[test]
fn a_run_changes_stage_and_number_of_processes_at_a_resume() {
    let w = training_folder(9);
    let bf16 = ["--dtype", "bf16", "--optim", "adamw-bf16"];
    run_sft(w.path(), "straight", &[&["--max-steps", "8"], &bf16[..]].concat()).ok();
    for (steps, gpus, stage) in [("2", "2", "2"), ("4", "3", "3"), ("6", "1", "3"), ("8", "2", "3")] {
        let more: &[&str] = if steps == "2" { &[] } else { &["--resume-from-checkpoint", "last"] };
        let options = ["--max-steps", steps, "--gpus", gpus, "--zero-stage", stage];
        run_sft(w.path(), "changing", &[&options, &bf16[..], more].concat()).ok();
    }
    assert_same_results(&w.path().join("straight"), &w.path().join("changing"), "checkpoint-8");
    same_final_model(&w.path().join("straight"), &w.path().join("changing"));
}

#[test]
fn other_stages_are_refused() {
    let w = training_folder(9);
    let done = run_sft(w.path(), "out", &["--zero-stage", "4"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("--zero-stage: is ") && done.stderr.contains('2'), "{}", done.stderr);
}
