//! The validation loss of `reel sft` (`--eval-file`, `--val-size`) is the mean over the learned tokens. Its bits do
//! not depend on the number of processes or the micro-batch. Validation does not affect training; a resumed run has
//! the same evaluations as an uninterrupted one; and the best checkpoint can be the one with the lowest loss.

#[path = "support/own_task.rs"]
mod own_task;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use sft_rows::{copy_test_media, media_question_row, training_folder};
use support::{FinishedRun, check_page, file_names_in, metrics_without_times, read_metrics, run_in, with_options};

const SFT: [&str; 15] = [
    "sft",
    "--model",
    "tiny",
    "--data",
    "rows.jsonl",
    "--device",
    "cpu",
    "--learning-rate",
    "1e-3",
    "--gradient-accumulation-steps",
    "2",
    "--save-steps",
    "2",
    "--max-steps",
    "4",
];

fn sft(at: &Path, out: &str, more: &[&str]) -> FinishedRun {
    run_in(at, with_options(&with_options(&SFT, more), &["--threads", "1", "--out", out]))
}

/// Returns the lines of eval.jsonl without the times.
fn evaluations(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("eval.jsonl")).expect("eval.jsonl");
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        assert!(line.shift_remove("eval_seconds").is_some_and(|seconds| seconds.is_number()));
    }
    lines
}

fn of_step(lines: &[Value], step: u64) -> &Value {
    lines.iter().find(|line| line["step"] == step).unwrap_or_else(|| panic!("no line of step {step}: {lines:?}"))
}

fn loss(line: &Value) -> f64 {
    line["eval_loss"].as_f64().unwrap_or_else(|| panic!("no loss: {line}"))
}

/// Returns the metrics of a run without the validation loss and the times.
fn of_training(out: &Path) -> Vec<Value> {
    let mut lines = metrics_without_times(out);
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        line.retain(|name, _| !name.starts_with("eval_"));
    }
    lines
}

#[test]
fn loss_is_that_of_training_and_training_is_unchanged() {
    let folder = training_folder(8);
    let at = folder.path();
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    let row = text.lines().nth(3).expect("a row");
    fs::write(at.join("one.jsonl"), row).expect("written");
    let one =
        ["--data", "one.jsonl", "--eval-file", "one.jsonl", "--eval-on-start", "--gradient-accumulation-steps", "1"];
    let said = sft(at, "one", &one);
    said.ok();
    assert!(said.stderr.contains("step 2: eval_loss "), "{}", said.stderr);
    let lines = evaluations(&at.join("one"));
    let trained = read_metrics(&at.join("one"));
    // Step N trains with the weights that step N - 1 produced.
    for (before, step) in [(0, 1), (2, 3)] {
        let training = of_step(&trained, step)["loss"].as_f64().expect("a loss");
        let difference = (loss(of_step(&lines, before)) - training).abs();
        assert!(difference < 1e-6 * training, "step {step}: {training} differs by {difference}");
    }
    assert_eq!(of_step(&trained, 2)["eval_loss"], of_step(&lines, 2)["eval_loss"]);
    assert!(of_step(&trained, 1).get("eval_loss").is_none());
    // The bits do not depend on the micro-batch, and the training is the same as without validation.
    let file = ["--eval-file", "rows.jsonl", "--report-to", "tensorboard,wandb"];
    sft(at, "a", &file).ok();
    sft(at, "plain", &[]).ok();
    assert_eq!(of_training(&at.join("a")), metrics_without_times(&at.join("plain")));
    let weights = |out: &str| fs::read(at.join(out).join("model.safetensors")).expect("weights");
    assert!(weights("a") == weights("plain"));
    let of_start = |out: &str, more: &[&str]| {
        sft(at, out, &[&file[..2], &["--eval-on-start", "--max-steps", "1"], more].concat()).ok();
        let line = of_step(&evaluations(&at.join(out)), 0).clone();
        (line["eval_loss"].to_string(), line["eval_tokens"].clone(), line["eval_rows"].clone())
    };
    let alone = of_start("b1", &[]);
    assert_eq!(alone.2, 8);
    assert_eq!(of_start("b3", &["--per-device-train-batch-size", "3"]), alone);
    assert_eq!(of_start("packed", &["--packing", "--max-length", "80"]), alone);
    // The page and the logs of TensorBoard and Weights & Biases have the loss.
    run_in(at, ["report", "a", "--out", "page.html"]).ok();
    let page = fs::read_to_string(at.join("page.html")).expect("a page");
    assert!(check_page(&page).iter().any(|chart| chart["name"] == "eval/loss"), "no chart of the loss");
    let has_name = |folder: &Path| {
        let files = file_names_in(folder).into_iter().map(|name| folder.join(name)).filter(|path| path.is_file());
        let bytes: Vec<u8> = files.flat_map(|file| fs::read(file).expect("a file")).collect();
        bytes.windows(9).any(|part| part == b"eval/loss")
    };
    let part = file_names_in(&at.join("a/wandb")).remove(0);
    assert!(has_name(&at.join("a")) && has_name(&at.join("a/wandb").join(part)));
}

/// With ZeRO-3, ranks gather the weights unit by unit for the forward passes of validation, and all weights at once
/// for a benchmark.
#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let folder = training_folder(9);
    let at = folder.path();
    copy_test_media(at);
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    let more = [
        media_question_row("video", "good.mp4"),
        media_question_row("image", "missing.png"),
        media_question_row("image", "good.png"),
    ]
    .concat();
    fs::write(at.join("media.jsonl"), text + &more).expect("written");
    fs::create_dir(at.join("bench")).expect("a folder");
    fs::write(at.join("bench/rows.jsonl"), r#"{"q": "Which?", "o": ["x", "y"], "a": 0, "v": "none"}"#)
        .expect("written");
    fs::write(at.join("mine.toml"), own_task::CUSTOM_TASK_TOML).expect("written");
    let benchmark = ["--eval-benchmark", "mine.toml", "--eval-data", "bench", "--eval-max-new-tokens", "2"];
    let lora = ["--lora-r", "4", "--dtype", "bf16"];
    let with_media =
        [&["--eval-file", "media.jsonl", "--max-pixels", "12544", "--eval-steps", "2"], &benchmark[..]].concat();
    let packed = [&["--val-size", "0.5", "--packing", "--max-length", "80"], &lora[..]].concat();
    let cases: [(&str, &[&str], &[&str]); 3] = [
        ("plain", &["--val-size", "5"], &["--gpus 2", "--gpus 3 --zero-stage 3"]),
        ("lora", &packed, &["--gpus 2 --zero-stage 3"]),
        ("media", &with_media, &["--gpus 2 --zero-stage 3", "--gpus 3"]),
    ];
    for (name, options, others) in cases {
        let options = [&["--max-steps", "2", "--gradient-accumulation-steps", "6"], options].concat();
        sft(at, name, &options).ok();
        let alone = at.join(name);
        assert!(loss(of_step(&evaluations(&alone), 2)).is_finite());
        for (i, other) in others.iter().enumerate() {
            let out = format!("{name}{i}");
            sft(at, &out, &[&options[..], &other.split(' ').collect::<Vec<_>>()].concat()).ok();
            assert_eq!(evaluations(&at.join(&out)), evaluations(&alone), "{name} {other}");
            assert_eq!(of_step(&read_metrics(&at.join(&out)), 2)["hash"], of_step(&read_metrics(&alone), 2)["hash"]);
        }
    }
    let line = of_step(&evaluations(&at.join("media")), 2).clone();
    assert_eq!((&line["eval_rows"], &line["eval_skipped"]), (&Value::from(11), &Value::from(1)));
    assert!(line["score"].is_number() && line["benchmarks"]["mine"]["n"] == 1, "{line}");
}

#[test]
fn held_out_rows_stay_and_the_best_checkpoint_has_the_lowest_loss() {
    let folder = training_folder(12);
    let at = folder.path();
    let held_out = ["--val-size", "5", "--save-total-limit", "1"];
    let epoch = ["--max-steps", "0", "--num-train-epochs", "2", "--gradient-accumulation-steps", "1"];
    // The other 7 rows are left for training.
    assert!(sft(at, "epochs", &[&held_out[..], &epoch].concat()).ok().contains("14 steps"));
    sft(at, "straight", &[&held_out[..], &["--max-steps", "6"]].concat()).ok();
    let straight = evaluations(&at.join("straight"));
    assert_eq!(straight.iter().map(|line| line["step"].clone()).collect::<Vec<_>>(), [2, 4, 6]);
    assert!(straight.iter().all(|line| line["eval_rows"] == 5 && line.get("score").is_none()), "{straight:?}");
    let best = straight.iter().fold(&straight[0], |best, line| if loss(line) < loss(best) { line } else { best });
    let state: Value =
        serde_json::from_slice(&fs::read(at.join("straight/trainer_state.json")).expect("a file")).expect("JSON");
    assert_eq!((&state["best_global_step"], &state["best_metric"]), (&best["step"], &best["eval_loss"]));
    assert_eq!(state["stateful_callbacks"]["reel"]["args"]["metric_for_best_model"], "eval_loss");
    let history = state["log_history"].as_array().expect("a list");
    assert_eq!(history.len(), 6);
    assert!(history.iter().all(|entry| entry["loss"].is_f64() && entry["step"].is_u64()), "{history:?}");
    assert!(at.join(format!("straight/checkpoint-{}", best["step"])).is_dir());
    // A resumed run has the same evaluations. Another number of validation rows is refused, because it would change
    // the training rows.
    sft(at, "parts", &[&held_out[..], &["--max-steps", "3"]].concat()).ok();
    let resume = ["--resume-from-checkpoint", "last", "--max-steps", "6"];
    let other = sft(at, "parts", &[&resume[..], &["--val-size", "4"]].concat());
    other.assert_refused(2, &["--val-size: is 4.0, but was 5.0 in", "start a new run"]);
    sft(at, "parts", &[&held_out[..], &resume].concat()).ok();
    let of_steps = |lines: Vec<Value>| lines.into_iter().filter(|line| line["step"] != 3).collect::<Vec<_>>();
    // The interrupted run first planned 3 steps and so had other learning rates; therefore only the rows are
    // compared.
    let rows = |lines: Vec<Value>| lines.into_iter().map(|line| line["eval_data_hash"].clone()).collect::<Vec<_>>();
    assert_eq!(rows(of_steps(evaluations(&at.join("parts")))), rows(straight));
    // A replay holds the same rows back, but does not evaluate.
    assert!(run_in(at, ["replay", "straight", "--step", "5"]).ok().contains("gives the same bits"));
}

/// If the checkpoint of step 2 has no evaluation, as after an interruption, the resumed run makes it.
#[test]
fn a_missing_evaluation_is_made_up_for_at_a_resume() {
    let folder = training_folder(6);
    let at = folder.path();
    let constant = ["--lr-scheduler-type", "constant"];
    let file = [&["--eval-file", "rows.jsonl"], &constant[..]].concat();
    sft(at, "straight", &file).ok();
    sft(at, "parts", &[&constant[..], &["--max-steps", "2"]].concat()).ok();
    sft(at, "parts", &[&file[..], &["--resume-from-checkpoint", "last"]].concat()).ok();
    assert_eq!(evaluations(&at.join("parts")), evaluations(&at.join("straight")));
    // The digests in the checkpoint cover the line of step 2 in metrics.jsonl, so the loss is not added to this line.
    assert_eq!(of_training(&at.join("parts")), of_training(&at.join("straight")));
    let has_loss = |step| of_step(&read_metrics(&at.join("parts")), step).get("eval_loss").is_some();
    assert_eq!((has_loss(2), has_loss(4)), (false, true));
    sft(at, "parts", &[&file[..], &["--resume-from-checkpoint", "last", "--max-steps", "5"]].concat()).ok();
}

/// A skipped row makes the data end after step 4 of 5. Step 4 is thus the last step, for which an evaluation is due.
/// Its checkpoint is written before the evaluation, and again after it.
#[test]
fn evaluation_at_an_early_end_of_the_data_is_in_the_checkpoint() {
    let folder = training_folder(4);
    let at = folder.path();
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    fs::write(at.join("five.jsonl"), text + &media_question_row("image", "missing.png")).expect("written");
    let epoch = ["--data", "five.jsonl", "--max-steps", "0", "--num-train-epochs", "1"];
    let steps = ["--gradient-accumulation-steps", "1", "--save-steps", "4", "--eval-steps", "3"];
    let options = [&epoch[..], &steps, &["--eval-file", "rows.jsonl", "--metric-for-best-model", "none"]].concat();
    let said = sft(at, "ended", &options);
    assert!(said.ok().contains("4 of 5 planned steps"));
    assert!(said.stderr.contains("step 4: eval_loss "), "{}", said.stderr);
    let lines = evaluations(&at.join("ended"));
    assert_eq!(lines.iter().map(|line| line["step"].clone()).collect::<Vec<_>>(), [3, 4]);
    assert!(of_step(&read_metrics(&at.join("ended")), 4).get("eval_loss").is_none());
    let resumed = sft(at, "ended", &[&options[..], &["--resume-from-checkpoint", "last"]].concat());
    resumed.ok();
    assert!(!resumed.stderr.contains("step 4: eval_loss"), "evaluated again: {}", resumed.stderr);
    assert_eq!(evaluations(&at.join("ended")), lines);
}

/// If no training row can be used, the run ends with an error. Rows that are held out for validation do not count as
/// training rows.
#[test]
fn training_rows_without_media_are_refused_also_if_rows_are_held_out() {
    let folder = training_folder(1);
    let at = folder.path();
    fs::write(at.join("lost.jsonl"), media_question_row("image", "missing.png").repeat(4)).expect("written");
    let lost = ["--data", "lost.jsonl", "--val-size", "2", "--quiet"];
    let packed = ["--max-steps", "0", "--num-train-epochs", "1", "--packing", "--max-length", "80"];
    let cases: [(&str, &[&str]); 3] = [("steps", &[]), ("epochs", &packed[..4]), ("packed", &packed)];
    for (out, more) in cases {
        sft(at, out, &[&lost[..], more].concat()).assert_refused(1, &["no row of the file can be used", "missing.png"]);
        assert!(!at.join(out).join("model.safetensors").exists(), "{out}");
    }
}

#[test]
fn unusable_validation_rows_are_skipped_and_counted_or_refused() {
    let folder = training_folder(4);
    let at = folder.path();
    fs::write(at.join("bad.jsonl"), media_question_row("image", "missing.png")).expect("written");
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    fs::write(
        at.join("some.jsonl"),
        format!("{{\"messages\": 1}}\n{text}{}", media_question_row("image", "missing.png")),
    )
    .expect("written");
    let said = sft(at, "some", &["--eval-file", "some.jsonl", "--max-steps", "2"]);
    said.ok();
    assert!(said.stderr.contains("2 of 6 validation rows are skipped; the first: some.jsonl:1"), "{}", said.stderr);
    assert!(said.stderr.contains(" of 4 rows, 2 skipped)"), "{}", said.stderr);
    let checked =
        "sft --model tiny --data rows.jsonl --device cpu --eval-file some.jsonl --check-data --quarantine l.jsonl";
    let checked = run_in(at, checked.split(' '));
    // Each row has a line of its own before the error.
    assert_eq!(checked.code, Some(1), "{}", checked.stderr);
    let found =
        ["error: --eval-file: 2 of 6 rows cannot be used", "--eval-file: some.jsonl:1: ", "jsonl:6: missing.png"];
    found.iter().for_each(|words| assert!(checked.stderr.contains(words), "no {words:?} in: {}", checked.stderr));
    assert!(checked.stdout.contains("rows.jsonl: all 4 rows can be used"), "{}", checked.stdout);
    sft(at, "strict", &["--eval-file", "some.jsonl", "--strict"]).assert_refused(1, &["some.jsonl:1", "messages"]);
    sft(at, "none", &["--eval-file", "bad.jsonl", "--max-steps", "2", "--quiet"])
        .assert_refused(1, &["--eval-file: bad.jsonl:1", "no row of the file can be used", "missing.png"]);
    sft(at, "x", &["--eval-file", "no.jsonl"]).assert_refused(1, &["no.jsonl"]);
    sft(at, "x", &["--eval-file", "rows.jsonl:0.5,bad.jsonl:0.5"])
        .assert_refused(2, &["--eval-file", "leave the weights out"]);
    sft(at, "x", &["--val-size", "4"]).assert_refused(2, &["--val-size: is 4", "none of the 4 rows"]);
    assert!(!at.join("x").exists());
    run_in(at, ["plan", "sft", "--model", "tiny", "--data", "rows.jsonl", "--val-size", "0.5", "--max-steps", "1"])
        .ok();
}
