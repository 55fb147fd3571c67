//! `reel data`, and data files of every format through the training and generation commands.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{golden, run_in, tiny_model};

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}"#;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    fs::create_dir_all(folder.join(name).parent().expect("a folder")).expect("created");
    fs::write(folder.join(name), text).expect("written");
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn check_names_unusable_rows_and_counts_all() {
    let folder = folder();
    let dir = folder.path();
    fs::copy(golden("media").join("../clips/vp9.webm"), dir.join("good.webm")).expect("copied");
    fs::copy(golden("media").join("../clips/bad_text.mp4"), dir.join("bad.mp4")).expect("copied");
    let video = |path: &str| {
        json!({"problem": "?", "data_type": "video", "problem_type": "free-form", "path": path,
        "solution": "<answer>4</answer>", "process": "<think>x</think>"})
    };
    let mut no_answer = video("good.webm");
    no_answer["problem"] = json!("another");
    no_answer["solution"] = json!("");
    let rows =
        [video("good.webm"), video("none.mp4"), video("bad.mp4"), json!({"x": 1}), video("good.webm"), no_answer];
    write(dir, "rows.jsonl", rows.map(|row| row.to_string()).join("\n") + "\nnot json\n" + CHAT);
    let got = run_in(dir, ["data", "check", "rows.jsonl", "--json"]);
    assert_eq!(got.code, Some(1), "{}", got.stderr);
    assert!(got.stderr.contains("4 of 8 rows cannot be used; the first: rows.jsonl:4"), "{}", got.stderr);
    let result = json_of(&got.stdout);
    let counts: Vec<(&str, u64)> = result["problem_counts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|pair| (pair[0].as_str().expect("a kind"), pair[1].as_u64().expect("a count")))
        .collect();
    let wanted = [("malformed", 2), ("missing_media", 1), ("unusable_media", 1), ("no_answer", 1), ("duplicate", 1)];
    assert_eq!(counts, wanted, "{result}");
    let messages: Vec<&str> = result["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|problem| problem["message"].as_str().expect("a text"))
        .collect();
    for (line, part) in [("2", "none.mp4: does not exist"), ("3", "bad.mp4"), ("7", "is not JSON"), ("5", "is equal")] {
        let starts = format!("rows.jsonl:{line}");
        assert!(messages.iter().any(|m| m.starts_with(&starts) && m.contains(part)), "{starts} {part}: {messages:?}");
    }
    assert_eq!(result["video_seconds"]["count"], 1);
    assert_eq!(result["layouts"], json!({"messages": 1, "problem": 5}));
    // A circle of links is not a missing file.
    std::os::unix::fs::symlink("circle.mp4", dir.join("circle.mp4")).expect("a link");
    write(dir, "circle.jsonl", video("circle.mp4").to_string() + "\n");
    let got = run_in(dir, ["data", "check", "circle.jsonl", "--json"]);
    assert!(got.stdout.contains("lead in a circle") && !got.stdout.contains("does not exist"), "{}", got.stdout);
    // Without decoding, the damaged video counts as usable.
    let got = run_in(dir, ["data", "check", "rows.jsonl", "--no-decode", "--show", "1"]);
    assert!(got.code == Some(1) && got.stderr.contains("3 of 8 rows cannot be used"), "{}", got.stderr);
    write(dir, "good.jsonl", CHAT);
    assert!(run_in(dir, ["data", "check", "good.jsonl"]).ok().contains("no problem found"));
}

#[test]
fn formats_are_converted_and_files_are_not_replaced() {
    let folder = folder();
    let dir = folder.path();
    write(dir, "a.jsonl", format!("{CHAT}\n{CHAT}\n"));
    run_in(dir, ["data", "convert", "a.jsonl", "b.parquet"]).ok();
    run_in(dir, ["data", "convert", "b.parquet", "c.json"]).ok();
    let rows = json_of(&fs::read_to_string(dir.join("c.json")).expect("a file"));
    assert_eq!(rows, json!([json_of(CHAT), json_of(CHAT)]));
    run_in(dir, ["data", "convert", "a.jsonl", "c.json"]).refused(1, &["c.json: exists", "--overwrite"]);
    run_in(dir, ["data", "convert", "a.jsonl", "c.json", "--overwrite"]).ok();
    run_in(dir, ["data", "convert", "a.jsonl", "c.csv"]).refused(1, &["c.csv", ".parquet"]);
    write(dir, "cut.parquet", &fs::read(dir.join("b.parquet")).expect("a file")[..100]);
    run_in(dir, ["data", "convert", "cut.parquet", "d.json"]).refused(1, &["cut.parquet: is not a whole Parquet file"]);
    assert!(!dir.join("d.json").exists());
}

#[test]
fn stats_write_a_page() {
    let folder = folder();
    let dir = folder.path();
    let model = tiny_model(dir).display().to_string();
    write(dir, "set/data/train-00000-of-00001.jsonl", format!("{CHAT}\n{CHAT}\n"));
    write(dir, "set/data/test-00000-of-00001.jsonl", CHAT);
    let got = run_in(dir, ["data", "stats", "set@train", "--model", &model, "--html", "s.html"]);
    assert!(
        got.ok().contains("rows: 2, of which 0") && got.stdout.contains("tokens per row (tokens): min"),
        "{}",
        got.stdout
    );
    let page = fs::read_to_string(dir.join("s.html")).expect("a page");
    assert!(page.contains("Tokens per row") && page.contains("prefers-color-scheme"), "{page}");
    run_in(dir, ["data", "stats", "set@dev"]).refused(1, &["set: has no split dev; it has test, train"]);
}

#[test]
fn training_and_generation_read_every_format() {
    let folder = folder();
    let dir = folder.path();
    let model = tiny_model(dir).display().to_string();
    write(dir, "a.jsonl", format!("{CHAT}\n{CHAT}\n"));
    run_in(dir, ["data", "convert", "a.jsonl", "set/train.parquet"]).refused(1, &["set"]);
    fs::create_dir(dir.join("set")).expect("created");
    run_in(dir, ["data", "convert", "a.jsonl", "set/train.parquet"]).ok();
    let sft = |data: &str, out: &str| {
        run_in(dir, ["sft", "--model", &model, "--data", data, "--out", out, "--max-steps", "2"])
    };
    sft("set:0.5,a.jsonl:0.5", "mixed").ok();
    let run = json_of(&fs::read_to_string(dir.join("mixed/run.json")).expect("a record"));
    assert_eq!(run["data_files"][1]["path"], "a.jsonl");
    sft("a.jsonl:0,set:1", "none").refused(2, &["--data", "a.jsonl", "not a positive number"]);
    let generate = |data: &str, out: &str| {
        run_in(dir, ["generate", "--model", &model, "--data", data, "--out", out, "--max-new-tokens", "2"])
    };
    generate("set@train,a.jsonl", "p.jsonl").ok();
    assert_eq!(fs::read_to_string(dir.join("p.jsonl")).expect("predictions").lines().count(), 4);
    generate("set:1,a.jsonl:1", "q.jsonl").refused(2, &["--data", "each row once"]);
}
