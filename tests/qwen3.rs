//! Qwen3-VL trains, resumes, replays and serves with the same bits, in the ways that the other test programs try with
//! Qwen2.5-VL. `REEL_TEST_PRESET=qwen3-tiny` runs those with Qwen3-VL, too.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/server.rs"]
mod server;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;

use rank_runs::assert_same_results;
use serde_json::{Value, json};
use server::Server;
use sft_rows::{copy_test_media, media_question_row};
use support::{FinishedRun, run, run_in, tiny_model_of};

/// Limits for small videos and images, as options.
const SMALL: [&str; 6] = ["--nframes", "4", "--min-pixels", "4096", "--max-pixels", "8192"];

/// Creates a folder with a tiny Qwen3-VL model, a video, an image, rows for SFT, and rows for GRPO.
fn training_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model_of(at, "qwen3-tiny");
    copy_test_media(at);
    let media = [media_question_row("video", "good.mp4"), media_question_row("image", "good.png")].concat();
    let text = r#"{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}"#;
    fs::write(at.join("rows.jsonl"), media.repeat(3) + text + "\n").expect("written");
    let question = json!([{"role": "user", "content": [
        {"type": "video", "video": "good.mp4"}, {"type": "text", "text": "Which way?"}]}]);
    let row = json!({"prompt": question, "solution": "<answer>A</answer>", "problem_type": "multiple choice"});
    fs::write(at.join("grpo.jsonl"), format!("{row}\n").repeat(3)).expect("written");
    folder
}

fn train(at: &Path, command: &str, out: &str, more: &[&str]) -> FinishedRun {
    let fixed = "--model tiny --device cpu --learning-rate 1e-3 --lr-scheduler-type constant --threads 1 --quiet";
    let mut args = vec![command, "--out", out];
    args.extend(fixed.split_whitespace());
    args.extend(SMALL);
    args.extend(more);
    run_in(at, args)
}

#[test]
fn supervised_fine_tuning_gives_the_same_bits_by_any_number_of_processes_and_after_a_resume() {
    let w = training_folder();
    let common =
        ["--data", "rows.jsonl", "--gradient-accumulation-steps", "4", "--max-steps", "2", "--save-steps", "1"];
    let sft = |out: &str, more: &[&str]| {
        train(w.path(), "sft", out, &[&common[..], more].concat()).ok();
    };
    sft("one", &[]);
    for (out, more) in [
        ("two", &["--gpus", "2"][..]),
        ("four", &["--gpus", "4"]),
        ("zero", &["--gpus", "2", "--zero-stage", "3"]),
        ("recomputed", &["--gradient-checkpointing", "full"]),
        ("kept", &["--gradient-checkpointing", "none"]),
    ] {
        sft(out, more);
        if ["recomputed", "kept"].contains(&out) {
            let weights = |run: &str| fs::read(w.path().join(run).join("model.safetensors")).expect("weights");
            assert!(weights("one") == weights(out), "{out}");
        } else {
            assert_same_results(&w.path().join("one"), &w.path().join(out), "checkpoint-2");
        }
    }
    fs::create_dir(w.path().join("resumed")).expect("a folder");
    let checkpoint = w.path().join("one/checkpoint-1").display().to_string();
    sft("resumed", &["--resume-from-checkpoint", &checkpoint]);
    let weights = |run: &str| fs::read(w.path().join(run).join("model.safetensors")).expect("weights");
    assert!(weights("one") == weights("resumed"));
    // The form of a video's prompt may not change on a resume.
    let changed = ["--resume-from-checkpoint", &checkpoint, "--video-marks", "outer"];
    train(w.path(), "sft", "changed", &[&common[..], &changed].concat()).assert_refused(2, &["--video-marks"]);
}

/// Options for the prompts of Qwen3-VL are refused by name where they would have no effect.
#[test]
fn options_of_qwen3_are_refused_for_other_models() {
    let plan = ["plan", "sft", "--preset", "tiny", "--nframes", "4"];
    for (name, value) in [("--video-marks", "outer"), ("--profile", "qwen3-processor")] {
        run([&plan[..], &[name, value]].concat()).assert_refused(2, &[name, "Qwen3-VL"]);
    }
    let frames = ["frames", "--total-frames", "30", "--video-fps", "10"];
    run([&frames[..], &["--video-marks", "inner"]].concat()).assert_refused(2, &["--video-marks"]);
}

#[test]
fn grpo_on_video_is_replayed_and_does_not_depend_on_the_number_of_processes() {
    let w = training_folder();
    let options = "--data grpo.jsonl --temporal --num-generations 2 --per-device-train-batch-size 2 \
                   --gradient-accumulation-steps 4 --max-completion-length 6 --max-steps 2 --save-steps 1 \
                   --reward-command";
    let reward = "while read -r line; do echo $((${#line} % 7)); done";
    let mut options: Vec<&str> = options.split_whitespace().collect();
    options.push(reward);
    for (out, processes) in [("one", "1"), ("two", "2")] {
        train(w.path(), "grpo", out, &[&options[..], &["--gpus", processes]].concat()).ok();
    }
    assert_same_results(&w.path().join("one"), &w.path().join("two"), "checkpoint-2");
    run_in(w.path(), ["replay", "one", "--step", "2"]).ok();
}

#[test]
fn an_answer_of_a_server_does_not_depend_on_other_requests() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model_of(folder.path(), "qwen3-tiny");
    copy_test_media(folder.path());
    let root = folder.path().display().to_string();
    let server = Server::start_with(folder, model, &["--media-root", &root, "--batch-size", "4"]);
    let ask = |kind: &str, path: &str| {
        let key = format!("{kind}_url");
        let url = format!("file://{root}/{path}");
        let media = json!({"type": key, &key: {"url": url, "min_pixels": 4096, "max_pixels": 8192}});
        let content = json!([media, {"type": "text", "text": "What is it?"}]);
        let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0});
        let reply = server.chat(&body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
        (answer["choices"][0]["message"]["content"].clone(), answer["usage"]["prompt_tokens"].clone())
    };
    let alone = [ask("video", "good.mp4"), ask("image", "good.png")];
    std::thread::scope(|scope| {
        let ask = &ask;
        let beside: Vec<_> = (0..8)
            .map(|i| {
                let medium = [("video", "good.mp4"), ("image", "good.png")][i % 2];
                scope.spawn(move || ask(medium.0, medium.1))
            })
            .collect();
        for (i, answer) in beside.into_iter().enumerate() {
            assert_eq!(answer.join().expect("an answer"), alone[i % 2]);
        }
    });
}
