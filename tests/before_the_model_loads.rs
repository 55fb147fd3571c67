//! Mistakes in the options of a training run are found before its model is loaded: the weights of these models are
//! damaged, and the error is about the option.

#[path = "support/grpo_run.rs"]
mod grpo_run;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;

use sft_rows::{copy_test_media, media_question_row, run_sft};
use support::{file_names_in, run_in};

/// Damages the weights of the model in `folder`, so that loading it fails.
fn damage_weights(folder: &Path) {
    fs::write(folder.join("tiny/model.safetensors"), "no weights").expect("written");
}

#[test]
fn steps_to_profile_that_the_run_does_not_have() {
    let w = sft_rows::training_folder(3);
    damage_weights(w.path());
    run_sft(w.path(), "out", &["--quiet", "--max-steps", "4"]).assert_refused(1, &["model.safetensors"]);
    run_sft(w.path(), "out", &["--quiet", "--max-steps", "4", "--profile-steps", "5-9"])
        .assert_refused(2, &["--profile-steps: is 5-9, but this process does the steps 1 to 4 of the run; give some"]);
}

#[test]
fn media_that_are_not_below_the_media_root() {
    let w = sft_rows::training_folder(3);
    let at = w.path();
    damage_weights(at);
    fs::create_dir(at.join("clips")).expect("a folder");
    copy_test_media(&at.join("clips"));
    let rows: String = (0..2000).map(|_| media_question_row("video", "good.mp4")).collect();
    fs::write(at.join("rows.jsonl"), rows).expect("written");
    let looked_at = at.join("good.mp4").display().to_string();
    let below = format!("relative paths are below {}; correct", at.display());
    run_sft(at, "out", &["--quiet"]).assert_refused(1, &["rows.jsonl:1: no row", &looked_at, &below, "--media-root"]);
    run_sft(at, "out", &["--quiet", "--media-root", "tiny"]).assert_refused(1, &["tiny/good.mp4", "--media-root"]);
    run_sft(at, "out", &["--quiet", "--media-root", "clips"]).assert_refused(1, &["model.safetensors"]);
    // One of the rows is enough to go on: the others are skipped as before.
    let rows = media_question_row("video", "nowhere.mp4") + &media_question_row("image", "good.png");
    fs::write(at.join("rows.jsonl"), rows).expect("written");
    run_sft(at, "out", &["--quiet", "--media-root", "clips"]).assert_refused(1, &["model.safetensors"]);

    let prompt = r#"{"prompt": [{"role": "user", "content": [{"type": "video", "video": "good.mp4"}, {"type": "text", "text": "?"}]}], "solution": "<answer>1</answer>", "problem_type": "numerical"}"#;
    fs::write(at.join("rows.jsonl"), prompt).expect("written");
    let run = |more: &[&str]| run_in(at, grpo_run::grpo_args("out", more));
    run(&[]).assert_refused(1, &["rows.jsonl:1: no row", &looked_at, &below, "--media-root"]);
    run(&["--media-root", "clips"]).assert_refused(1, &["model.safetensors"]);
}

#[test]
fn a_reward_function_that_does_not_exist() {
    let w = grpo_run::training_folder();
    let at = w.path();
    damage_weights(at);
    // The code of the module is not run for this.
    let code = "raise SystemExit('was run')\ndef score(completions, **columns):\n    return [0.0] * len(completions)\n";
    fs::write(at.join("my.py"), code).expect("written");
    fs::write(at.join("wrong.py"), "def score(:\n").expect("written");
    let run = |function: &str| {
        let mut args = grpo_run::grpo_args("out", &[]);
        let command = args.iter().position(|arg| arg == "--reward-command").expect("a reward command");
        args.drain(command..command + 2);
        run_in(at, args.into_iter().chain(["--reward-funcs".into(), function.into()]))
    };
    for (function, words) in [
        ("my.py:scores", "my.py has no function scores; give one that it has: score"),
        ("my:scores", "my.py has no function scores; give one that it has: score"),
        ("your:score", "there is no module your; install it, or add its folder to PYTHONPATH"),
        ("wrong.py:score", "wrong.py:1: SyntaxError: "),
        ("your.py:score", "there is no file your.py; give FILE.py:NAME"),
    ] {
        run(function).assert_refused(2, &["--reward-funcs: ", words]);
    }
    for function in ["my.py:score", "my:score"] {
        run(function).assert_refused(1, &["model.safetensors"]);
    }
}

/// Nothing is created either, and the model does not even have to exist.
#[test]
fn tools_that_cannot_be_used() {
    let w = grpo_run::training_folder();
    let at = w.path();
    damage_weights(at);
    fs::write(at.join("my.py"), "def look(a):\n    return 'x'\n").expect("written");
    fs::write(at.join("wrong.py"), "def look(:\n").expect("written");
    let before = file_names_in(at);
    let options = ["--model", "gone", "--frame-cache", "cache"];
    let eval = "eval --benchmark mvbench --data . --out new/out --quiet";
    let refused = |option: &str, value: &str, words: &str, more: &[&str]| {
        let more = [&options[..], &[option, value], more].concat();
        run_in(at, grpo_run::grpo_args("new/out", &more)).assert_refused(2, &[option, words]);
        run_in(at, eval.split(' ').chain(more)).assert_refused(2, &[option, words]);
        assert_eq!(file_names_in(at), before, "{option} {value}");
    };
    for (value, words) in [
        ("crop", "\"crop\" is no tool; give crop_video, select_frames, zoom, FILE.py:NAME or MODULE:NAME"),
        ("zoom,zoom", "tools[1]: is a second function with the name \"zoom\""),
        ("my.py:see", "my.py: has no function see"),
        ("your.py:look", "there is no file your.py"),
        ("your:look", "No module named 'your'"),
        ("wrong.py:look", "wrong.py:1: SyntaxError"),
    ] {
        refused("--tools", value, words, &[]);
    }
    for (reply, words) in [
        ("[]", "replies to list_tools with []; reply with a list of tools"),
        ("3", "replies to list_tools with 3"),
        ("[3]", "tools[0].function: is missing or not an object"),
        ("[{}]", "tools[0].function: has no name"),
        (r#"[{"name": "look", "parameters": 3}]"#, "tools[0].function.parameters: is 3, not a JSON schema"),
    ] {
        refused("--tool-command", &format!("read -r l; echo '{reply}'"), words, &[]);
    }
    refused("--tools", "crop", "\"crop\" is no tool", &["--gpus", "2", "--device", "cpu"]);
    refused("--tool-command", "exit 3", "exited with code 3", &[]);
    refused("--tool-command", "sleep 9", "timed out after 0.2 s", &["--tool-timeout", "0.2"]);
    run_in(at, grpo_run::grpo_args("out", &["--tools", "my.py:look"])).assert_refused(1, &["model.safetensors"]);
}
