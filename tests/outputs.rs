//! Output files are complete or absent, even if a write fails or a signal ends the program, and never replace an
//! input.

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::process::Command;

use support::{file_names_in, golden, run_in};
use workspace::ModelWorkspace;

#[test]
fn unwritable_outputs_are_refused() {
    let s = ModelWorkspace::new();
    let score = |out: &str| {
        fs::write(s.dir.path().join("m.json"), "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
        run_in(s.dir.path(), ["score", "--model", "tiny", "--messages", "m.json", "--out", out])
    };
    score("no/such/folder/s.safetensors").assert_refused(1, &["no/such/folder/s.safetensors"]);
    score("tiny").assert_refused(2, &["--out", "the same folder as --model"]);
    fs::create_dir(s.dir.path().join("folder")).expect("a folder");
    score("folder").assert_refused(1, &["folder"]);
    run_in(s.dir.path(), ["init", "--preset", "tiny", "--out", "tiny"]).assert_refused(1, &["tiny"]);
    run_in(s.dir.path(), ["init", "--preset", "huge", "--out", "other"]).assert_refused(
        2,
        &["huge", "tiny, 3b, 7b, 32b, 72b, qwen3-tiny, qwen3-2b, qwen3-4b, qwen3-8b, qwen3-32b or siglip-tiny"],
    );
    run_in(s.dir.path(), ["init", "--preset", "siglip-tiny", "--vocab", "9", "--out", "other"])
        .assert_refused(2, &["--vocab"]);
    assert!(!s.dir.path().join("other").exists());
}

/// A file size limit makes writes fail midway, as a full disk does.
#[test]
fn failed_write_leaves_no_file() {
    let s = ModelWorkspace::new();
    fs::write(s.dir.path().join("m.json"), "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
    let reel = env!("CARGO_BIN_EXE_reel");
    for (command, out) in [
        (format!("{reel} score --model tiny --messages m.json --out s.safetensors"), "s.safetensors"),
        (format!("{reel} init --preset tiny --out new"), "new"),
    ] {
        let script = format!("ulimit -f 20; exec {command}");
        let got = Command::new("bash").args(["-c", &script]).current_dir(s.dir.path()).output().expect("bash starts");
        support::finished_run(got).assert_refused(1, &[out]);
        let left = file_names_in(s.dir.path());
        assert!(!left.iter().any(|n| n.contains("s.safetensors") || n == "new"), "{left:?}");
    }
}

/// SIGINT ends the program while it writes a large model. A signal that was ignored when the program started (as with
/// `nohup` and SIGHUP) does not end it.
#[test]
fn interrupted_init_leaves_no_file() {
    let dir = tempfile::tempdir().expect("a folder");
    support::let_children_receive_sigint();
    let script =
        format!("trap '' HUP; exec {} init --preset 3b --layers 12 --out new --threads 1", env!("CARGO_BIN_EXE_reel"));
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("bash starts");
    let writing = || {
        let new = dir.path().join("new");
        new.is_dir() && file_names_in(&new).iter().any(|n| n.contains("safetensors"))
    };
    let pid = child.id();
    let signal = |name: &str| support::send_signal(pid, name);
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    while !writing() {
        pause();
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it wrote");
    }
    signal("-HUP");
    (0..5).for_each(|_| pause());
    assert!(
        child.try_wait().expect("a child").is_none(),
        "SIGHUP ended the command, although it was started with SIGHUP ignored"
    );
    signal("-INT");
    support::finished_run(child.wait_with_output().expect("it ends")).assert_refused(130, &["interrupted"]);
    assert_eq!(file_names_in(dir.path()), Vec::<String>::new());
}

/// A signal ends the program even if its message cannot be printed because stderr is closed.
#[test]
fn signal_without_a_reader_of_stderr_ends_the_program() {
    let dir = tempfile::tempdir().expect("a folder");
    support::let_children_receive_sigint();
    let mut child = support::reel()
        .args(["init", "--preset", "3b", "--layers", "12", "--out", "new", "--threads", "1"])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stderr.take());
    while !dir.path().join("new").is_dir() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it wrote");
    }
    support::send_signal(child.id(), "-TERM");
    let begun = std::time::Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break Some(status),
            None if begun.elapsed().as_secs() > 30 => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    child.kill().expect("it is ended");
    assert_eq!(status.and_then(|status| status.code()), Some(143));
}

/// An output that is also an input would destroy the input. The command is refused, and the input stays as it was.
#[test]
fn outputs_that_would_replace_an_input_are_refused() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    let files = [
        ("r.jsonl", r#"{"problem_type": "numerical", "solution": "<answer>4</answer>", "completion": "4"}"#),
        (
            "p.jsonl",
            r#"{"problem_type": "free-form", "solution": "<answer>A</answer>", "category": "x", "output": "A"}"#,
        ),
        (
            "m.json",
            r#"[{"role": "user", "content": [{"type": "image", "image": "i.png"}, {"type": "text", "text": "?"}]}]"#,
        ),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).expect("written");
    }
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("i.png")).expect("copied");
    std::os::unix::fs::symlink("r.jsonl", dir.join("link.jsonl")).expect("a link");
    fs::hard_link(dir.join("p.jsonl"), dir.join("hard.jsonl")).expect("a link");
    let before: Vec<Vec<u8>> = file_names_in(dir).iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect();
    for (command, words) in [
        ("reward --input r.jsonl --output r.jsonl", &["--output", "same file as --input"][..]),
        ("reward --input r.jsonl --out link.jsonl", &["--output", "same file as --input"]),
        ("eval --score-only --benchmark mmvu --predictions p.jsonl --out hard.jsonl", &["--predictions"]),
        ("preprocess --model tiny --messages m.json --out m.json", &["same file as --messages"]),
        ("preprocess --model tiny --messages m.json --out i.png", &["same file as m.json: message 0, part 0"]),
        ("score --model tiny --messages m.json --out tiny/model.safetensors", &["in the folder of --model"]),
        ("frames --video i.png --out i.png", &["same file as --video"]),
        ("tokenize --model tiny --file r.jsonl --trace r.jsonl", &["--trace", "same file as"]),
        ("sft --model tiny --data p.jsonl --check-data --quarantine p.jsonl", &["--quarantine", "same file as --data"]),
        ("sft --model tiny --data p.jsonl --out tiny --overwrite", &["--out", "same folder as --model"]),
    ] {
        run_in(dir, command.split(' ')).assert_refused(2, words);
    }
    let after: Vec<Vec<u8>> = file_names_in(dir).iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect();
    assert!(before == after, "an input changed");
    // A file that is both an output and an input is refused, even if only a configuration file or a row names it as
    // input.
    let row = r#"{"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}], "images": ["i.png"]}"#;
    fs::write(dir.join("rows.jsonl"), row).expect("written");
    let config = |out: &str, more: &str| {
        fs::write(dir.join("c.toml"), format!("model = \"tiny\"\ndata = \"rows.jsonl\"\nout = \"{out}\"\n{more}"))
            .expect("written");
    };
    for (out, more, command, words) in [
        (
            "o",
            "quarantine = \"c.toml\"\ncheck-data = true",
            "sft --config c.toml",
            &["--quarantine", "as --config"][..],
        ),
        ("o", "quarantine = \"rows.jsonl\"\ncheck-data = true", "sft --config c.toml", &["same file as --data"]),
        ("o", "", "sft --config c.toml --trace rows.jsonl", &["--trace", "rows.jsonl"]),
        ("o", "", "sft --config c.toml --trace i.png", &["--trace: is i.png, an existing file that is not a trace"]),
        ("o", "", "sft --config c.toml --check-data --quarantine i.png", &["is not a list of unusable rows"]),
        ("old", "", "sft --config c.toml --overwrite --trace old/model.safetensors", &["writes itself (--out)"]),
        ("c.toml", "", "sft --config c.toml", &["--out: is c.toml, the same file as --config"]),
        ("o", "", "score --model tiny --messages m.json --out s --trace s", &["--trace: is ", "as --out is"]),
        ("o", "", "preprocess --model tiny --messages m.json --out -", &["--out: is -, ", "./-"]),
    ] {
        config(out, more);
        fs::create_dir_all(dir.join("old")).expect("a folder");
        let kept = |name: &str| fs::read(dir.join(name)).expect("a file");
        let before = ["c.toml", "rows.jsonl", "i.png"].map(kept);
        run_in(dir, command.split(' ')).assert_refused(2, words);
        assert!(before == ["c.toml", "rows.jsonl", "i.png"].map(kept), "{command}: an input changed");
        assert!(!dir.join("o").exists() && !dir.join("s").exists() && !dir.join("-").exists(), "{command}");
    }
    run_in(dir, ["reward", "--input", "r.jsonl", "--output", "scores.jsonl"]).ok();
}
