//! The command line as a whole: exit codes, one-line errors, help whose examples run.

mod support;

use std::process::{Command, Stdio};

use support::{reel, run, run_in};

#[test]
fn version_and_help_are_no_errors() {
    assert!(run(["--version"]).ok().starts_with("reel "));
    let help = run(["--help"]);
    assert!(help.ok().contains("generate") && help.stderr.is_empty());
    assert_eq!(run(Vec::<&str>::new()).code, Some(2));
}

#[test]
fn bad_usage_is_one_line_and_code_2() {
    run(["frobnicate"]).refused(2, &["frobnicate", "--help"]);
    run(["resize", "--hight", "3"]).refused(2, &["--hight", "--height"]);
    run(["resize", "--height", "3"]).refused(2, &["--width"]);
    run(["resize", "--height", "x", "--width", "3"]).refused(2, &["--height"]);
    run(["frames"]).refused(2, &["--video"]);
    run(["frames", "--total-frames", "9"]).refused(2, &["--video-fps"]);
    run(["generate", "--model", "m"]).refused(2, &["--prompt"]);
    for n in ["0", "100000000"] {
        run(["generate", "--model", "m", "--prompt", "x", "--n", n]).refused(2, &["--n", n]);
        run(["plan", "generate", "--preset", "tiny", "--tokens", "9", "--n", n]).refused(2, &["--n", n]);
    }
    for tokens in ["0", "99999999999999"] {
        run(["plan", "sft", "--preset", "tiny", "--tokens", tokens]).refused(2, &["--tokens", tokens]);
    }
    run(["plan", "generate", "--preset", "tiny", "--tokens", "9", "--max-new-tokens", "999999999"])
        .refused(2, &["--max-new-tokens", "999999999"]);
    // The last of several wins, as in scripts that add to a command.
    assert_eq!(run(["resize", "--height", "1", "--width", "56", "--height", "28"]).ok(), "56 x 84\n");
}

#[test]
fn commands_of_other_devices_say_what_to_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path());
    let score = |device: &str| {
        let model = tiny.display().to_string();
        run(["generate", "--model", &model, "--prompt", "x", "--max-new-tokens", "1", "--device", device])
    };
    // The GPU is hidden where there is one.
    score("cuda").refused(1, &["cuda: ", "--device cpu"]);
    score("cuda:1").refused(1, &["cuda: ", "--device cpu"]);
    score("cuda:x").refused(2, &["--device", "cuda:N"]);
    score("dry").refused(2, &["--device", "reel plan"]);
    score("tpu").refused(2, &["--device", "tpu"]);
    score("cpu").ok();
}

#[test]
fn numbers_without_sense_are_refused_by_name() {
    run(["resize", "--height", "0", "--width", "10"]).refused(1, &["0 x 10"]);
    run(["resize", "--height", "10", "--width", "9000"]).refused(1, &["ratio"]);
    run(["frames", "--total-frames", "9", "--video-fps", "nan"]).refused(1, &["fps"]);
    run(["frames", "--total-frames", "9", "--video-fps", "25", "--profile", "nosuch"])
        .refused(1, &["nosuch", "videorft-eval"]);
    run(["frames", "--total-frames", "99", "--video-fps", "25", "--fps", "2", "--nframes", "4"])
        .refused(1, &["nframes"]);
}

#[test]
fn json_is_one_line_and_alone() {
    let got = run(["resize", "--height", "1080", "--width", "1920", "--max-pixels", "200704", "--json"]);
    assert_eq!(got.ok(), "{\"height\":336,\"width\":588}\n");
    let got = run(["frames", "--total-frames", "300", "--video-fps", "30", "--nframes", "4", "--json"]).json();
    assert_eq!(got["indices"], serde_json::json!([0, 100, 199, 299]));
    assert!(run(["doctor", "--json"]).json()["findings"].as_array().is_some_and(|f| f.len() > 5));
}

#[test]
fn verbose_adds_causes() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path()).display().to_string();
    let plain = run(["tokenize", "--model", &tiny, "--file", "no/such"]);
    plain.refused(1, &["no/such"]);
    let verbose = run(["tokenize", "--model", &tiny, "--file", "no/such", "-v"]);
    assert!(verbose.stderr.starts_with(&plain.stderr) && verbose.stderr.contains("caused by: "), "{}", verbose.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = reel()
        .args(["frames", "--total-frames", "1000000", "--video-fps", "1", "--profile", "stride-1fps"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let done = support::done(child.wait_with_output().expect("it ends"));
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
}

/// The lines after `Example:` of a help text.
fn example(help: &str) -> Option<String> {
    let (_, after) = help.split_once("Example:\n")?;
    Some(after.lines().map(str::trim).collect::<Vec<_>>().join("\n"))
}

#[test]
fn examples_of_help_run_as_printed() {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_reel"));
    let path =
        format!("{}:{}", binary.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default());
    let listed = run(["--help"]);
    let commands: Vec<&str> = listed
        .ok()
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    // The demo trains for minutes; its parts are tested by themselves.
    for command in commands.into_iter().filter(|c| *c != "demo") {
        let help = run([command, "--help"]);
        let Some(script) = example(help.ok()) else { panic!("{command} has no example") };
        let folder = tempfile::tempdir().expect("a folder");
        let out = Command::new("sh")
            .args(["-euc", &script])
            .env("PATH", &path)
            .current_dir(folder.path())
            .output()
            .expect("sh starts");
        assert!(out.status.success(), "{command}: {script}\n{}", String::from_utf8_lossy(&out.stderr));
        assert!(!out.stdout.is_empty(), "{command}: {script}\nsaid nothing");
    }
}

#[test]
fn tokenize_names_the_bad_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path());
    std::fs::write(folder.path().join("texts.jsonl"), "\"good\"\n\nnot json\n").expect("written");
    let got = run_in(folder.path(), ["tokenize", "--model", &tiny.display().to_string(), "--file", "texts.jsonl"]);
    got.refused(1, &["texts.jsonl:3"]);
}
