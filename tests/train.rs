//! `reel sft` as a command: golden steps, what affects the results, options and configuration files.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/training.rs"]
mod training;

use std::fs;

use serde_json::Value;
use sft_rows::{assert_same_results, copy_test_media, media_question_row, run_sft, training_folder};
use support::{golden, metrics_without_times, read_metrics, reel, run_in};
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

/// A trained model folder and its checkpoints are used with the frame and pixel settings of their training.
#[test]
fn trained_folders_carry_their_frame_settings() {
    let w = training_folder(2);
    run_sft(w.path(), "out", &["--max-steps", "1", "--nframes", "6", "--max-pixels", "3136"]).ok();
    let video = golden("clips/h264_709.mp4").display().to_string();
    let messages = format!(r#"[{{"role": "user", "content": [{{"type": "video", "video": {video:?}}}]}}]"#);
    fs::write(w.path().join("m.json"), messages).expect("written");
    let frames = |model: &str, more: &[&str]| {
        let args = ["preprocess", "--model", model, "--messages", "m.json", "--out", "p.safetensors"];
        let got = run_in(w.path(), support::with_options(&args, more));
        got.ok();
        let tensors = tensors::read_tensors(&w.path().join("p.safetensors"));
        (tensors["frame_indices"].shape[0], got.stderr)
    };
    let said = "frame and pixel limits as in training: --profile videorft-train --nframes 6 --max-pixels 3136 (from ";
    for model in ["out", "out/checkpoint-1"] {
        let (count, stderr) = frames(model, &[]);
        assert!(
            count == 6 && stderr.starts_with(&format!("{said}out/run.json; options take precedence)")),
            "{count}: {stderr}"
        );
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
        run_sft(w.path(), out, &["--max-steps", "6", "--seed", seed]).ok();
    }
    assert_same_results(&w.path().join("a"), &w.path().join("b"), "checkpoint-6");
    assert_ne!(metrics_without_times(&w.path().join("a")), metrics_without_times(&w.path().join("c")));
}

#[test]
fn thread_count_changes_no_bit() {
    let w = training_folder(5);
    for (out, threads) in [("one", "1"), ("three", "3")] {
        run_sft(w.path(), out, &["--max-steps", "4", "--threads", threads, "--dtype", "bf16"]).ok();
    }
    assert_same_results(&w.path().join("one"), &w.path().join("three"), "checkpoint-4");
}

#[test]
fn config_file_sets_options_and_flags_win() {
    let w = training_folder(4);
    fs::write(w.path().join("c.toml"), "max-steps = 3\nlearning-rate = 0.5\nseed = 9\ndtype = \"bf16\"\n")
        .expect("written");
    run_sft(w.path(), "out", &["--config", "c.toml"]).ok();
    let text = fs::read_to_string(w.path().join("out/run.json")).expect("run.json");
    let run: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&run["steps"], &run["seed"], &run["dtype"]), (&3.into(), &9.into(), &"bf16".into()));
    assert_eq!(run["options"]["learning_rate"], 1e-3);
    fs::write(w.path().join("bad.toml"), "learning-rat = 1\n").expect("written");
    run_sft(w.path(), "other", &["--config", "bad.toml"]).assert_refused(2, &["bad.toml", "learning-rat"]);
    assert!(!w.path().join("other").exists());
    run_sft(w.path(), "out", &["--config", "c.toml"]).assert_refused(1, &["out", "--overwrite"]);
    fs::write(w.path().join("again.toml"), "max-steps = 2\noverwrite = true\n").expect("written");
    run_sft(w.path(), "out", &["--config", "again.toml"]).ok();
    fs::write(w.path().join("on.toml"), "max-steps = 3\nresume-from-checkpoint = \"last\"\n").expect("written");
    run_sft(w.path(), "out", &["--config", "on.toml"]).ok();
    assert_eq!(read_metrics(&w.path().join("out")).len(), 3);
    // A configuration file can also set the options for output and start.
    let output = "max_steps: 2\njson: true\nquiet: true\nverbose: true\noffline: true\ntrace: t.json\ngpus: 1\n";
    fs::write(w.path().join("said.yaml"), output).expect("written");
    let said = run_sft(w.path(), "said", &["--config", "said.yaml"]);
    assert_eq!((&said.json()["steps"], said.stderr.as_str()), (&2.into(), ""));
    assert!(w.path().join("t.json").is_file());
    let many = ["--per-device-train-batch-size", "20000000"];
    run_sft(w.path(), "more", &many).assert_refused(2, &["--per-device-train-batch-size", "65536"]);
}

/// Scripts for TRL set both --resume-from-checkpoint and --overwrite.
#[test]
fn overwrite_of_a_resumed_run_is_said_to_have_no_effect() {
    let w = training_folder(4);
    let note = "so --overwrite has no effect";
    run_sft(w.path(), "out", &["--max-steps", "1", "--save-steps", "1"]).ok();
    let both = ["--max-steps", "2", "--resume-from-checkpoint", "last", "--overwrite"];
    let resumed = run_sft(w.path(), "out", &both);
    assert_eq!((resumed.code, resumed.stderr.matches(note).count()), (Some(0), 1), "{}", resumed.stderr);
    assert_eq!(read_metrics(&w.path().join("out")).len(), 2);
    let fresh = run_sft(w.path(), "out", &["--max-steps", "1", "--overwrite"]);
    assert_eq!((fresh.code, fresh.stderr.contains(note)), (Some(0), false), "{}", fresh.stderr);
}

/// A refused command creates no output folder, which would make the corrected command fail.
#[test]
fn refused_options_leave_no_folder() {
    let w = training_folder(2);
    copy_test_media(w.path());
    fs::write(w.path().join("rows.jsonl"), media_question_row("video", "good.mp4")).expect("written");
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
        run_sft(w.path(), "out", &options.split(' ').collect::<Vec<_>>()).assert_refused(2, words);
        assert!(!w.path().join("out").exists(), "{options}");
    }
    fs::write(w.path().join("c.toml"), "nframes = 7\n").expect("written");
    run_sft(w.path(), "out", &["--config", "c.toml"]).assert_refused(2, &["--nframes: is 7, "]);
    run_sft(w.path(), "out", &["--max-steps", "1", "--nframes", "4", "--max-pixels", "12544", "--quiet"]).ok();
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
    fs::write(at.join("bad.yaml"), "max_steps: 1\nlearning_ratee: 3\n").expect("written");
    run_in(at, ["sft", "--config", "bad.yaml"]).assert_refused(2, &["bad.yaml: learning_ratee: "]);
    fs::write(at.join("bad.json"), "{\"max_steps\": }").expect("written");
    run_in(at, ["sft", "--config", "bad.json"]).assert_refused(2, &["bad.json:1: is not a JSON object"]);
    let trl = "sft --model_name_or_path tiny --dataset_name rows.jsonl --output_dir trl --max_steps 1 --gradient_checkpointing true \
               --overwrite_output_dir true --torch_dtype float32 --optim adamw_torch --quiet";
    run_in(at, trl.split_whitespace()).ok();
    // --max-steps 0 sets no limit, as in TRL, and the command says so.
    let said = run_in(at, ["sft", "--config", "c.json", "--out", "zero", "--max-steps", "0"]);
    assert!(said.stderr.contains("--max-steps 0 sets no limit") && said.code == Some(0), "{}", said.stderr);
    assert_eq!(read_metrics(&at.join("zero")).len(), 1);
}
