//! `reel sft` and `reel plan` through the binary: golden steps, resume after interruptions, unusable rows, planned
//! memory.

mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/training.rs"]
mod training;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{file_names_in, golden, metrics_without_times, read_metrics, reel, run, run_in, tiny_model};
use training::check_training_case;

#[test]
fn sft_all_tokens() {
    check_training_case(reel(), "train/sft_all_tokens", &[]);
}

#[test]
fn sft_assistant_only() {
    check_training_case(reel(), "train/sft_assistant_only", &[]);
}

#[test]
fn sft_videorft_mp4() {
    check_training_case(reel(), "train/sft_videorft_mp4", &[]);
}

#[test]
fn sft_videorft_rows() {
    check_training_case(reel(), "train/sft_videorft_rows", &[]);
}

/// A temporary folder with a tiny model and text rows.
fn training_folder(rows: usize) -> tempfile::TempDir {
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

fn sft(folder: &Path, out: &str, more: &[&str]) -> support::FinishedRun {
    run_in(
        folder,
        [&["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", out, "--learning-rate", "1e-3"][..], more]
            .concat(),
    )
}

#[track_caller]
fn same_results(a: &Path, b: &Path, checkpoint: &str) {
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

/// Rows of LLaMA-Factory, ms-swift and TRL, with files in columns, are trained on as rows with files in their messages.
#[test]
fn media_columns_equal_media_in_messages() {
    let w = training_folder(1);
    fs::copy(golden("pixels/00_png_rgb.png"), w.path().join("a.png")).expect("copied");
    let answer = r#"{"role": "assistant", "content": "yes"}"#;
    let inline = format!(
        r#"{{"messages": [{{"role": "user", "content": [{{"type": "image", "image": "a.png"}}, {{"type": "text", "text": "Red?"}}]}}, {answer}]}}"#
    );
    let columns =
        format!(r#"{{"messages": [{{"role": "user", "content": "<image>Red?"}}, {answer}], "images": ["a.png"]}}"#);
    let sharegpt = r#"{"conversations": [{"from": "human", "value": "<image>Red?"}, {"from": "gpt", "value": "yes"}], "image": "a.png"}"#;
    let mut seen = Vec::new();
    for (out, row) in [("inline", inline.as_str()), ("columns", &columns), ("sharegpt", sharegpt)] {
        fs::write(w.path().join("rows.jsonl"), row).expect("written");
        sft(w.path(), out, &["--max-steps", "1"]).ok();
        seen.push(read_metrics(&w.path().join(out))[0]["hash"].clone());
    }
    assert!(seen[0].is_string() && seen[0] == seen[1] && seen[0] == seen[2], "{seen:?}");
    for (row, field) in [
        (columns.replace("images", "pictures"), "messages[0].content"),
        (columns.replace("<image>", ""), "images"),
        (columns.replace("images", "audios").replace("<image>", ""), "audios"),
    ] {
        fs::write(w.path().join("rows.jsonl"), row).expect("written");
        sft(w.path(), "refused", &[]).refused(1, &["rows.jsonl:1", &format!("{field}: ")]);
    }
}

/// A trained folder and its checkpoints are used with the frames and pixels that they were trained with.
#[test]
fn trained_folders_carry_their_frame_settings() {
    let w = training_folder(2);
    sft(w.path(), "out", &["--max-steps", "1", "--nframes", "6", "--max-pixels", "3136"]).ok();
    let video = golden("clips/h264_709.mp4").display().to_string();
    let messages = format!(r#"[{{"role": "user", "content": [{{"type": "video", "video": {video:?}}}]}}]"#);
    fs::write(w.path().join("m.json"), messages).expect("written");
    let frames = |model: &str, more: &[&str]| {
        let args = ["preprocess", "--model", model, "--messages", "m.json", "--out", "p.safetensors"];
        let got = run_in(w.path(), [&args[..], more].concat());
        got.ok();
        let tensors = tensors::read_tensors(&w.path().join("p.safetensors"));
        (tensors["frame_indices"].shape[0], got.stderr)
    };
    let said = "frames and pixels as in training: --profile videorft-train --nframes 6 --max-pixels 3136 (from ";
    for model in ["out", "out/checkpoint-1"] {
        let (count, stderr) = frames(model, &[]);
        assert!(count == 6 && stderr.starts_with(&format!("{said}out/run.json; flags win)")), "{count}: {stderr}");
    }
    assert_eq!(frames("out", &["--nframes", "4"]).0, 4);
    let (count, stderr) = frames("out", &["--profile", "qwen"]);
    assert!(count != 6 && stderr.is_empty(), "{count}: {stderr}");
    assert_eq!(frames("tiny", &[]), (count, String::new()));
}

#[test]
fn results_depend_on_the_seed_only() {
    let w = training_folder(7);
    for (out, seed) in [("a", "3"), ("b", "3"), ("c", "4")] {
        sft(w.path(), out, &["--max-steps", "6", "--seed", seed]).ok();
    }
    same_results(&w.path().join("a"), &w.path().join("b"), "checkpoint-6");
    assert_ne!(metrics_without_times(&w.path().join("a")), metrics_without_times(&w.path().join("c")));
}

#[test]
fn thread_count_changes_no_bit() {
    let w = training_folder(5);
    for (out, threads) in [("one", "1"), ("three", "3")] {
        sft(w.path(), out, &["--max-steps", "4", "--threads", threads, "--dtype", "bf16"]).ok();
    }
    same_results(&w.path().join("one"), &w.path().join("three"), "checkpoint-4");
}

fn start_long(folder: &Path, out: &str) -> Child {
    reel()
        .current_dir(folder)
        .args(["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", out, "--learning-rate", "1e-3"])
        .args(["--max-steps", "400", "--save-steps", "50"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Waits until `metrics.jsonl` has `steps` lines.
fn wait_for_steps(out: &Path, steps: usize) {
    let begun = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count() < steps {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not do {steps} steps in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    support::send_signal(child.id(), name);
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let w = training_folder(9);
    let straight = w.path().join("straight");
    let mut child = start_long(w.path(), "straight");
    assert!(child.wait().expect("it ends").success());

    // After Ctrl-C or SIGTERM, the run stops at the end of a step and prints how to resume.
    support::let_children_receive_sigint();
    for (out, name, code) in [("stopped", "-INT", 130), ("terminated", "-TERM", 143)] {
        let child = start_long(w.path(), out);
        wait_for_steps(&w.path().join(out), 20);
        signal(&child, name);
        let done = support::finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(code), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains("--resume-from-checkpoint last"), "{}", done.stderr);
    }

    // The run is killed with SIGKILL at an arbitrary moment.
    let mut child = start_long(w.path(), "killed");
    wait_for_steps(&w.path().join("killed"), 120);
    child.kill().expect("killed");
    child.wait().expect("it ends");

    for out in ["stopped", "killed"] {
        let more = ["--max-steps", "400", "--save-steps", "50", "--resume-from-checkpoint", "last"];
        sft(w.path(), out, &more).ok();
        same_results(&straight, &w.path().join(out), "checkpoint-400");
    }
}

#[test]
fn progress_that_nobody_can_read_does_not_end_a_run() {
    let w = training_folder(4);
    let args = "sft --model tiny --data rows.jsonl --learning-rate 1e-3 --max-steps 12 --logging-steps 1 --out";
    let run = |out: &str, stderr: Stdio| {
        let mut command = reel();
        command.current_dir(w.path()).args(args.split(' ')).arg(out).stdout(Stdio::null()).stderr(stderr);
        command.spawn().expect("the binary starts")
    };
    let mut closed = run("closed", Stdio::piped());
    drop(closed.stderr.take());
    assert!(closed.wait().expect("it ends").success());
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    assert!(run("full", full.into()).wait().expect("it ends").success());
    same_results(&w.path().join("closed"), &w.path().join("full"), "checkpoint-12");
}

#[test]
fn second_run_in_a_folder_is_refused() {
    let w = training_folder(9);
    let out = w.path().join("out");
    let mut first = start_long(w.path(), "out");
    wait_for_steps(&out, 1);
    let holder = format!("--out out: is in use by process {}; ", first.id());
    for more in [&["--overwrite"][..], &["--resume-from-checkpoint", "last"], &["--check-data"], &[]] {
        sft(w.path(), "out", more).refused(1, &[&holder]);
    }
    let holder = format!("out: is being written by process {}; ", first.id());
    run_in(w.path(), ["demo", "--out", "out"]).refused(1, &[&holder]);
    run_in(w.path(), ["init", "--preset", "tiny", "--out", "out"]).refused(1, &[&holder]);
    // The lock of a killed process is no obstacle, although its file is left.
    first.kill().expect("killed");
    first.wait().expect("it ends");
    assert!(out.join(".reel.lock").exists());
    sft(w.path(), "out", &["--max-steps", "1", "--overwrite"]).ok();
    assert!(!out.join(".reel.lock").exists());
}

#[test]
fn instruction_set_is_recorded_and_compared() {
    let w = training_folder(3);
    let run = |isa: &str, args: &[&str]| {
        let out = reel().current_dir(w.path()).env("REEL_CPU", isa).args(args).output().expect("it runs");
        support::finished_run(out)
    };
    let train = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "out", "--max-steps"];
    run("plain", &[&train[..], &["2"]].concat()).ok();
    let recorded = |key: &str| {
        let text = fs::read_to_string(w.path().join("out/run.json")).expect("run.json");
        serde_json::from_str::<Value>(&text).expect("JSON")[key].clone()
    };
    assert_eq!(recorded("instruction_set"), "plain");
    let doctor = run("plain", &["doctor"]);
    assert!(
        doctor.ok().contains("plain: no vector instructions") && doctor.stdout.contains("set by REEL_CPU"),
        "{}",
        doctor.stdout
    );
    assert!(run("plain", &["replay", "out", "--step", "2"]).ok().contains("same bits"));
    // The best instruction set of this machine, unless that is the plain one.
    let replayed = run("", &["replay", "out", "--step", "1"]);
    let resumed = run("", &[&train[..], &["3", "--resume-from-checkpoint", "last"]].concat());
    resumed.ok();
    if recorded("instruction_set") != "plain" {
        for said in [&replayed.stderr, &resumed.stderr] {
            assert!(said.contains("warning: ") && said.contains("REEL_CPU=plain selects the run's"), "{said}");
        }
    }
    run("sse9", &["doctor"]).refused(2, &["REEL_CPU: is \"sse9\"", "plain, avx2, avx512, avx512-bf16, amx"]);
    assert!(doctor.stdout.contains("bf16 products") && doctor.stdout.contains("f32 multiply-adds of widened bf16"));
    // AMX: used by default where the machine has it, else refused with a reason.
    let by_default = run("", &["doctor"]);
    if by_default.ok().contains("amx: AVX-512, and AMX for bf16 products; the best of this machine") {
        assert!(run("amx", &["doctor"]).ok().contains("AMX tiles (tdpbf16ps)"));
    } else {
        run("amx", &["doctor"]).refused(2, &["REEL_CPU: is amx, which this machine does not have (", "its best is"]);
    }
}

#[test]
fn non_empty_folder_needs_overwrite() {
    let w = training_folder(2);
    sft(w.path(), "out", &["--max-steps", "1"]).ok();
    sft(w.path(), "out", &["--max-steps", "1"]).refused(1, &["out", "--overwrite"]);
    sft(w.path(), "out", &["--max-steps", "1", "--overwrite"]).ok();
    sft(w.path(), "out", &["--resume-from-checkpoint", "out/checkpoint-7"]).refused(1, &["checkpoint-7"]);
}

/// A file of the base model that was changed since the run started is named by a resume and by a replay.
#[test]
fn changed_file_of_the_base_model_is_named() {
    let w = training_folder(3);
    sft(w.path(), "out", &["--max-steps", "1"]).ok();
    let file = w.path().join("tiny/vocab.json");
    let changed = fs::read_to_string(&file).expect("a vocabulary").replace("\"!\":", "\"?!\":");
    fs::write(&file, changed).expect("written");
    let resumed = sft(w.path(), "out", &["--max-steps", "2", "--resume-from-checkpoint", "last"]);
    resumed.refused(2, &["--model: is not the model of the run that wrote out/checkpoint-1 (vocab.json differs)"]);
    run_in(w.path(), ["replay", "out", "--step", "1"]).refused(1, &["tiny: is not the model", "(vocab.json differs)"]);
}

#[test]
fn config_file_sets_options_and_flags_win() {
    let w = training_folder(4);
    fs::write(w.path().join("c.toml"), "max-steps = 3\nlearning-rate = 0.5\nseed = 9\ndtype = \"bf16\"\n")
        .expect("written");
    sft(w.path(), "out", &["--config", "c.toml"]).ok();
    let text = fs::read_to_string(w.path().join("out/run.json")).expect("run.json");
    let run: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&run["steps"], &run["seed"], &run["dtype"]), (&3.into(), &9.into(), &"bf16".into()));
    assert_eq!(run["options"]["learning_rate"], 1e-3);
    fs::write(w.path().join("bad.toml"), "learning-rat = 1\n").expect("written");
    sft(w.path(), "other", &["--config", "bad.toml"]).refused(2, &["bad.toml", "learning-rat"]);
    assert!(!w.path().join("other").exists());
    sft(w.path(), "out", &["--config", "c.toml"]).refused(1, &["out", "--overwrite"]);
    fs::write(w.path().join("again.toml"), "max-steps = 2\noverwrite = true\n").expect("written");
    sft(w.path(), "out", &["--config", "again.toml"]).ok();
    fs::write(w.path().join("on.toml"), "max-steps = 3\nresume-from-checkpoint = \"last\"\n").expect("written");
    sft(w.path(), "out", &["--config", "on.toml"]).ok();
    assert_eq!(read_metrics(&w.path().join("out")).len(), 3);
    let many = ["--per-device-train-batch-size", "20000000"];
    sft(w.path(), "more", &many).refused(2, &["--per-device-train-batch-size", "65536"]);
}

/// A refused option leaves nothing in the way of the corrected command.
#[test]
fn refused_options_leave_no_folder() {
    let w = training_folder(2);
    media(w.path());
    fs::write(w.path().join("rows.jsonl"), about("video", "good.mp4")).expect("written");
    for (options, words) in [
        ("--fps 0", &["--fps: is 0, "][..]),
        ("--fps -1 --profile qwen", &["--fps: is -1, "]),
        ("--fps nan", &["--fps: is NaN, "]),
        ("--fps 2 --nframes 4", &["--nframes: cannot be given together with fps"]),
        ("--nframes 1", &["--nframes: is 1, "]),
        ("--nframes 7", &["--nframes: is 7, ", "give 6 or 8"]),
        ("--min-frames 8 --max-frames 4", &["--min-frames: is 8, "]),
        ("--max-pixels 1", &["--max-pixels: is 1, "]),
        ("--max-pixels -1", &["--max-pixels: is -1, "]),
        ("--min-pixels 6272 --max-pixels 3136", &["--min-pixels: is 6272, "]),
        ("--media-memory 0", &["--media-memory: is 0, "]),
        ("--profile nosuch", &["--profile: ", "nosuch", "qwen"]),
        ("--device nonsense", &["--device: is nonsense, "]),
        ("--threads 0", &["--threads: is 0"]),
        ("--learning-rate -1", &["--learning-rate: is -1; "]),
    ] {
        sft(w.path(), "out", &options.split(' ').collect::<Vec<_>>()).refused(2, words);
        assert!(!w.path().join("out").exists(), "{options}");
    }
    fs::write(w.path().join("c.toml"), "nframes = 7\n").expect("written");
    sft(w.path(), "out", &["--config", "c.toml"]).refused(2, &["--nframes: is 7, "]);
    sft(w.path(), "out", &["--max-steps", "1", "--nframes", "4", "--max-pixels", "12544", "--quiet"]).ok();
}

#[test]
fn config_files_may_be_yaml_or_json_with_names_of_trl() {
    let w = training_folder(2);
    let at = w.path();
    let yaml = "# a run\nmodel_name_or_path: tiny\ndataset_name: rows.jsonl\noutput_dir: yaml\nmax_steps: 1\nlearning_rate: 1e-5\n\
                report_to: none\n";
    fs::write(at.join("c.yaml"), yaml).expect("written");
    fs::write(at.join("c.json"), r#"{"model": "tiny", "data": "rows.jsonl", "out": "json", "max_steps": 1}"#)
        .expect("written");
    for out in ["yaml", "json"] {
        run_in(at, ["sft", "--config", &format!("c.{out}"), "--quiet"]).ok();
        assert_eq!(read_metrics(&at.join(out)).len(), 1, "{out}");
    }
    fs::write(at.join("bad.yaml"), "max_steps: 1\nepochs: 3\n").expect("written");
    run_in(at, ["sft", "--config", "bad.yaml"]).refused(2, &["bad.yaml: epochs: ", "use num-train-epochs"]);
    fs::write(at.join("bad.json"), "{\"max_steps\": }").expect("written");
    run_in(at, ["sft", "--config", "bad.json"]).refused(2, &["bad.json:1: is not a JSON object"]);
    let trl = "sft --model_name_or_path tiny --dataset_name rows.jsonl --output_dir trl --max_steps 1 --gradient_checkpointing true \
               --overwrite_output_dir true --torch_dtype float32 --optim adamw_torch --quiet";
    run_in(at, trl.split_whitespace()).ok();
    // --max-steps 0 sets no limit, as in TRL, and the command says so.
    let said = run_in(at, ["sft", "--config", "c.json", "--out", "zero", "--max-steps", "0"]);
    assert!(said.stderr.contains("--max-steps 0 sets no limit") && said.code == Some(0), "{}", said.stderr);
    assert_eq!(read_metrics(&at.join("zero")).len(), 1);
}

#[test]
fn errors_name_the_malformed_row() {
    let w = training_folder(2);
    for (rows, words) in [
        ("{\"messages\": [{\"role\": \"user\"}]}\n", &["rows.jsonl:1"][..]),
        ("{\"problem\": \"x\", \"data_type\": \"video\"}\n", &["rows.jsonl:1"]),
        ("{\"messages\": \n", &["rows.jsonl:1"]),
        ("{\"other\": 1}\n", &["rows.jsonl:1"]),
        ("", &["rows.jsonl"]),
    ] {
        fs::write(w.path().join("rows.jsonl"), rows).expect("written");
        sft(w.path(), "out", &["--max-steps", "1"]).refused(1, words);
        assert!(!w.path().join("out/model.safetensors").exists());
    }
    run_in(w.path(), ["sft", "--model", "tiny", "--data", "none.jsonl", "--out", "out"]).refused(1, &["none.jsonl"]);
}

#[test]
fn rows_without_their_media_are_skipped_or_stop_a_strict_run() {
    let w = training_folder(3);
    let good = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    let video = "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"video\", \"video\": \"gone.mp4\"}, {\"type\": \"text\", \
                \"text\": \"?\"}]}, {\"role\": \"assistant\", \"content\": \"x\"}]}\n";
    fs::write(w.path().join("rows.jsonl"), format!("{good}{video}")).expect("written");
    let said = sft(w.path(), "out", &["--no-shuffle", "--num-train-epochs", "1", "--json"]).json();
    assert_eq!(said["skipped"], 1);
    assert_eq!(said["skipped_by_cause"], serde_json::json!({"media": 1}));
    let skipped = fs::read_to_string(w.path().join("out/skipped.jsonl")).expect("skipped.jsonl");
    assert!(
        skipped.lines().count() == 1 && skipped.contains("gone.mp4") && skipped.contains("\"cause\":\"media\""),
        "{skipped}"
    );
    let said = sft(w.path(), "out", &["--no-shuffle", "--num-train-epochs", "1", "--overwrite"]);
    assert!(said.ok().contains("1 rows skipped (1 unreadable media, see out/skipped.jsonl)"), "{}", said.stdout);
    sft(w.path(), "strict", &["--no-shuffle", "--strict", "--quiet"]).refused(1, &["gone.mp4"]);
}

/// A row with a question about a video or an image.
fn about(kind: &str, path: &str) -> String {
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": [{{\"type\": \"{kind}\", \"{kind}\": \"{path}\"}}, {{\"type\": \"text\", \
         \"text\": \"?\"}}]}}, {{\"role\": \"assistant\", \"content\": \"x\"}}]}}\n"
    )
}

/// Copies a video and an image of the golden cases into a folder.
fn media(folder: &Path) {
    let video = golden("train").join("sft_videorft_mp4/media/clip.mp4");
    let image = golden("grpo/grpo_clip_iter2/media/b.png");
    for (from, to) in [(video, "good.mp4"), (image, "good.png")] {
        fs::copy(&from, folder.join(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

#[test]
fn a_step_without_media_leaves_the_vision_tower_alone() {
    let w = training_folder(2);
    media(w.path());
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    fs::write(w.path().join("rows.jsonl"), about("image", "good.png") + &text).expect("written");
    let options = "--no-shuffle --gradient-accumulation-steps 1 --max-steps 3 --media-root . --lora-r 2 \
                   --lora-target-modules qkv";
    sft(w.path(), "out", &options.split_whitespace().collect::<Vec<_>>()).ok();
    let steps = read_metrics(&w.path().join("out"));
    let norms: Vec<f64> = steps.iter().map(|step| step["grad_norm"].as_f64().expect("a norm")).collect();
    assert!(norms[0] > 0.0 && norms[1..] == [0.0, 0.0], "{norms:?}");
    assert_eq!(steps[0]["hash"], steps[2]["hash"]);
}

#[test]
fn check_data_lists_unusable_rows_and_a_run_skips_them() {
    let w = training_folder(2);
    let at = w.path();
    media(at);
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    for name in ["good.mp4", "good.png"] {
        let bytes = fs::read(at.join(name)).expect("media");
        fs::write(at.join(name.replace("good", "cut")), &bytes[..bytes.len() / 3]).expect("written");
        fs::write(at.join(name.replace("good", "empty")), b"").expect("written");
        fs::write(at.join(name.replace("good", "text")), b"This is no medium.\n").expect("written");
    }
    fs::create_dir(at.join("folder.mp4")).expect("a folder");
    let bad = [
        ("video", "cut.mp4"),
        ("video", "empty.mp4"),
        ("video", "text.mp4"),
        ("video", "folder.mp4"),
        ("video", "gone.mp4"),
        ("image", "cut.png"),
        ("image", "empty.png"),
        ("image", "text.png"),
        ("image", "gone.png"),
    ];
    let bad_rows: String = bad.map(|(kind, path)| about(kind, path)).concat();
    let good = [about("video", "good.mp4"), about("image", "good.png")].concat();
    fs::write(at.join("rows.jsonl"), format!("{text}{bad_rows}{good}")).expect("written");
    let check = |more: &[&str]| {
        run_in(at, [&["sft", "--model", "tiny", "--data", "rows.jsonl", "--check-data", "--quiet"][..], more].concat())
    };
    check(&[]).refused(2, &["--quarantine", "is missing"]);
    check(&["--quarantine", "q.jsonl"]).refused(1, &["rows.jsonl: 9 of 13 rows cannot be used", "q.jsonl"]);
    let list = fs::read_to_string(at.join("q.jsonl")).expect("the list");
    let listed: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(listed.len(), bad.len(), "{list}");
    for ((i, row), (_, path)) in listed.iter().enumerate().zip(bad) {
        assert_eq!((row["row"].as_u64(), row["line"].as_u64()), (Some(i as u64 + 2), Some(i as u64 + 3)));
        assert!(row["reason"].as_str().is_some_and(|reason| reason.contains(path) && reason.contains("; ")), "{row}");
    }
    assert!(!at.join("q.jsonl.journal").exists());
    // Rows in the quarantine list are skipped without being read, even if their missing file exists by now.
    fs::copy(at.join("good.mp4"), at.join("gone.mp4")).expect("copied");
    let said = sft(at, "out", &["--quarantine", "q.jsonl", "--num-train-epochs", "1", "--json"]).json();
    assert_eq!(said["skipped"], 9);
    assert_eq!(fs::read_to_string(at.join("out/skipped.jsonl")).expect("skipped.jsonl"), list);
    sft(at, "strict", &["--quarantine", "q.jsonl", "--strict", "--max-steps", "2", "--quiet"]).ok();
    // A check before a run writes its list of unusable rows to OUT. A list made for other data is refused.
    let said = sft(at, "checked", &["--check-data", "--max-steps", "1", "--json"]).json();
    assert_eq!(said["skipped"], 8);
    assert_eq!(fs::read_to_string(at.join("checked/quarantine.jsonl")).expect("the list").lines().count(), 8);
    fs::write(at.join("rows.jsonl"), &text).expect("written");
    sft(at, "other", &["--quarantine", "q.jsonl"]).refused(2, &["--quarantine: q.jsonl:1: lists row 2 at line 3"]);
    let said = check(&["--quarantine", "q.jsonl", "--json"]).json();
    assert_eq!((&said["rows"], &said["bad"]), (&2.into(), &0.into()));
}

#[test]
fn killed_check_continues() {
    let w = training_folder(1);
    let at = w.path();
    media(at);
    fs::write(at.join("cut.mp4"), b"").expect("written");
    let row = |i: usize| about("video", if i % 3 == 1 { "cut.mp4" } else { "good.mp4" });
    fs::write(at.join("rows.jsonl"), (0..40).map(row).collect::<String>()).expect("written");
    let check = |list: &str| {
        let args = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--check-data", "--quarantine", list];
        let mut command = reel();
        command.current_dir(at).args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let mut child = check("broken.jsonl").spawn().expect("it starts");
    let journal = at.join("broken.jsonl.journal");
    let checked = || fs::read_to_string(&journal).unwrap_or_default().lines().count().saturating_sub(1);
    let begun = Instant::now();
    while checked() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no 5 rows in two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("it ends");
    let before = checked();
    assert!(before < 40 && !at.join("broken.jsonl").exists(), "the data check ended before it was killed");
    let said = support::finished_run(check("broken.jsonl").output().expect("it runs"));
    let again = format!("{before} rows were checked before");
    let again_without_the_last = format!("{} rows were checked before", before - 1);
    assert!(said.stderr.contains(&again) || said.stderr.contains(&again_without_the_last), "{}", said.stderr);
    let whole = support::finished_run(check("whole.jsonl").output().expect("it runs"));
    assert!(!whole.stderr.contains("were checked before"), "{}", whole.stderr);
    let list = |name: &str| fs::read_to_string(at.join(name)).expect("the list");
    assert_eq!(list("broken.jsonl"), list("whole.jsonl"));
    assert_eq!(list("whole.jsonl").lines().count(), 13);
}

#[test]
fn non_finite_loss_stops_the_run() {
    let w = training_folder(4);
    let got = sft(w.path(), "out", &["--learning-rate", "1e30", "--max-steps", "20", "--quiet"]);
    got.refused(1, &["step", "rows.jsonl"]);
    assert!(!w.path().join("out/model.safetensors").exists(), "non-finite weights were saved");
}

/// A write that fails half way, as on a full disk, leaves no incomplete model or checkpoint.
#[test]
fn failed_write_leaves_no_incomplete_files() {
    let w = training_folder(4);
    let script = format!(
        "ulimit -f 1000; exec {} sft --model tiny --data rows.jsonl --out out --max-steps 4 --quiet",
        env!("CARGO_BIN_EXE_reel")
    );
    let out = Command::new("bash").args(["-c", &script]).current_dir(w.path()).output().expect("bash starts");
    support::finished_run(out).refused(1, &["out"]);
    let left = file_names_in(&w.path().join("out"));
    assert!(!left.iter().any(|n| n == "model.safetensors" || n.starts_with("checkpoint-")), "{left:?}");
}

#[test]
fn plan_and_run_agree_on_peak_bytes() {
    let w = training_folder(6);
    let cases = [("f32", "full"), ("f32", "none"), ("bf16", "full"), ("bf16", "selective"), ("f32", "auto")];
    for (dtype, checkpointing) in cases {
        let options =
            format!("--dtype {dtype} --gradient-checkpointing {checkpointing} --no-shuffle --max-steps 3 --quiet");
        let options: Vec<&str> = options.split(' ').collect();
        sft(w.path(), "out", &[&options[..], &["--overwrite"]].concat()).ok();
        let ran = read_metrics(&w.path().join("out")).last().expect("a step")["peak_bytes"].as_f64().expect("a number");
        let base = ["plan", "sft", "--model", "tiny", "--data", "rows.jsonl", "--device", "cpu", "--json"];
        let planned = run_in(w.path(), [&base[..], &options].concat()).json()["peak_bytes"].as_f64().expect("a number");
        assert!((planned / ran - 1.0).abs() <= 0.01, "{options:?}: planned {planned}, ran {ran}");
    }
}

/// Counts the launches of one training step of the 7B model on a GPU, with all weights trained. A third of the 5549
/// launches that a step once had is 1849.
#[test]
fn launches_of_a_7b_step_are_few() {
    // How often each layer's first part runs forward, and the most launches.
    for (checkpointing, forward, most) in [("none", 1.0, 1849.0), ("selective", 1.0, 1849.0), ("full", 2.0, 2400.0)] {
        launches_of_a_7b_step(checkpointing, forward, most);
    }
}

fn launches_of_a_7b_step(checkpointing: &str, forward: f64, most: f64) {
    let command = "plan sft --preset 7b --tokens 4096 --vision-patches 8192 --gpu h200 --json \
                   --gradient-accumulation-steps 1 --optim adamw-bf16 --gradient-checkpointing";
    let plan = run(command.split_whitespace().chain([checkpointing])).json();
    let ops = plan["ops"].as_array().expect("ops");
    let launches = |of: &dyn Fn(&str) -> bool| -> f64 {
        let is_of = |op: &&Value| op["op"].as_str().is_some_and(of);
        ops.iter().filter(is_of).filter_map(|op| op["launches"].as_f64()).sum()
    };
    // One launch each for the gradient norm, the clipping factor and AdamW, for 729 tensors.
    for name in ["sum_squares", "clip", "adamw_bf16_moments_bf16"] {
        assert_eq!(launches(&|op| op == name), 1.0, "{name}");
    }
    // Only gradients that few rows are added to begin with zeros: of the embeddings, and in the last layer, which goes on
    // with the learned rows, of the residual and of attention.
    assert_eq!(launches(&|op| op.starts_with("fill")), 3.0);
    assert_eq!(launches(&|op| op.starts_with("accumulate")), 0.0);
    // The decoder's 28 layers and the 32 blocks of the vision tower rotate queries and keys in one launch in each
    // direction, and sum the gradients of their biases in one. Patch embedding and merger have the last products.
    assert_eq!(launches(&|op| op.starts_with("rope_apply")), (forward + 1.0) * (28.0 + 32.0));
    assert!(launches(&|op| op.starts_with("column_sum")) <= 28.0 + 32.0 + 2.0);
    let all = launches(&|_| true);
    assert!(all <= most, "{all} launches with {checkpointing}");
}

/// Selective checkpointing makes room for 8192 tokens of the 7B model on a GPU with 141 GB.
#[test]
fn selective_checkpointing_takes_little_memory_and_time() {
    let plan = |checkpointing: &str| {
        let command = "plan sft --preset 7b --tokens 8192 --vision-patches 4096 --gpu h200 --json --optim adamw-bf16 \
                       --gradient-accumulation-steps 1 --gradient-checkpointing";
        let plan = run(command.split_whitespace().chain([checkpointing])).json();
        let number = |key: &str| plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key}"));
        let named = plan["subject"].as_str().is_some_and(|s| s.contains(", gradient checkpointing "));
        assert!(named, "the plan does not say what it computes again: {}", plan["subject"]);
        (number("/peak_bytes"), number("/flops"))
    };
    let [none, selective, full, auto] = ["none", "selective", "full", "auto"].map(plan);
    assert!(full.0 < selective.0 && selective.0 < none.0 && selective.0 < 141e9, "{full:?} {selective:?} {none:?}");
    assert!(selective.1 < 1.001 * none.1 && full.1 > 1.25 * none.1, "{full:?} {selective:?} {none:?}");
    // The plan takes the first that fits.
    assert!([none, selective].contains(&auto), "{auto:?}");
}

#[test]
fn plan_of_a_preset_needs_no_weights() {
    for (preset, least) in [("3b", 3.7e9), ("7b", 8.2e9)] {
        let command = format!("plan sft --preset {preset} --tokens 1024 --vision-patches 2048 --gpu h200 --json");
        let plan = run(command.split(' ')).json();
        let number = |key: &str| plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key}"));
        // At least 16 bytes per parameter: 2 for the bf16 weight, 2 for the low bits of the master weight, 8 for two
        // f32 moments, 4 for the f32 gradient.
        assert!(number("/peak_bytes") > 16.0 * least && number("/memory/optimizer") > 10.0 * least, "{preset}");
        let parts: f64 = plan["memory"].as_object().expect("memory").values().filter_map(Value::as_f64).sum();
        assert_eq!(parts, number("/peak_bytes"));
        assert!(
            plan["ops"]
                .as_array()
                .is_some_and(|ops| ops.len() > 10 && ops.iter().all(|o| o["seconds"].as_f64() > Some(0.0)))
        );
        // Per parameter and token: 2 operations in the forward pass and 4 in the backward pass.
        assert!(number("/flops") > 6.0 * 0.8 * least * 1024.0, "{preset}: {}", number("/flops"));
    }
    let w = training_folder(3);
    let rows = w.path().join("rows.jsonl").display().to_string();
    let plan = run(["plan", "sft", "--preset", "3b", "--data", &rows, "--gpu", "h100", "--json"]).json();
    assert!(plan["tokens"].as_f64() > Some(60.0) && plan["fits"] == true, "{plan}");
    let plan = run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --json".split(' ')).json();
    let (prefill, decode) = (plan["phases"]["prefill"].as_f64(), plan["phases"]["decode"].as_f64());
    assert!(prefill > Some(0.0) && decode > prefill, "{prefill:?} {decode:?}");
    let int8 =
        run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --quantize int8 --json".split(' '));
    let (int8, weights) = (int8.json(), |plan: &Value| plan["memory"]["weights"].as_f64().expect("bytes"));
    // 2.77e9 weights of linear layers take one byte less each. With tied embeddings the output layer has an int8 copy
    // of its own, 0.31e9 bytes.
    let saved = weights(&plan) - weights(&int8);
    assert!((saved - 2.46e9).abs() < 0.02e9, "{saved}");
    assert!(int8["phases"]["decode"].as_f64() < decode.map(|seconds| 0.65 * seconds), "{int8}");
}
