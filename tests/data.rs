//! `reel data`, and data files of every format in the training and generation commands.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{FinishedRun, golden, read_metrics, run_in, tiny_model};

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
    // A loop of symbolic links is not reported as a missing file.
    std::os::unix::fs::symlink("circle.mp4", dir.join("circle.mp4")).expect("a link");
    write(dir, "circle.jsonl", video("circle.mp4").to_string() + "\n");
    let got = run_in(dir, ["data", "check", "circle.jsonl", "--json"]);
    assert!(
        got.stdout.contains("symbolic links form a loop") && !got.stdout.contains("does not exist"),
        "{}",
        got.stdout
    );
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
    run_in(dir, ["data", "convert", "a.jsonl", "c.json"]).assert_refused(1, &["c.json: exists", "--overwrite"]);
    run_in(dir, ["data", "convert", "a.jsonl", "c.json", "--overwrite"]).ok();
    run_in(dir, ["data", "convert", "a.jsonl", "c.csv"]).assert_refused(1, &["c.csv", ".parquet"]);
    write(dir, "cut.parquet", &fs::read(dir.join("b.parquet")).expect("a file")[..100]);
    run_in(dir, ["data", "convert", "cut.parquet", "d.json"])
        .assert_refused(1, &["cut.parquet: is not a whole Parquet file"]);
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
    run_in(dir, ["data", "stats", "set@dev"]).assert_refused(1, &["set: has no split dev; it has test, train"]);
}

#[test]
fn training_and_generation_read_every_format() {
    let folder = folder();
    let dir = folder.path();
    let model = tiny_model(dir).display().to_string();
    write(dir, "a.jsonl", format!("{CHAT}\n{CHAT}\n"));
    run_in(dir, ["data", "convert", "a.jsonl", "set/train.parquet"]).assert_refused(1, &["set"]);
    fs::create_dir(dir.join("set")).expect("created");
    run_in(dir, ["data", "convert", "a.jsonl", "set/train.parquet"]).ok();
    let sft = |data: &str, out: &str| {
        run_in(dir, ["sft", "--model", &model, "--data", data, "--out", out, "--max-steps", "2"])
    };
    sft("set:0.5,a.jsonl:0.5", "mixed").ok();
    let run = json_of(&fs::read_to_string(dir.join("mixed/run.json")).expect("a record"));
    assert_eq!(run["data_files"][1]["path"], "a.jsonl");
    sft("a.jsonl:0,set:1", "none").assert_refused(2, &["--data", "a.jsonl", "not a positive number"]);
    let generate = |data: &str, out: &str| {
        run_in(dir, ["generate", "--model", &model, "--data", data, "--out", out, "--max-new-tokens", "2"])
    };
    generate("set@train,a.jsonl", "p.jsonl").ok();
    assert_eq!(fs::read_to_string(dir.join("p.jsonl")).expect("predictions").lines().count(), 4);
    generate("set:1,a.jsonl:1", "q.jsonl").assert_refused(2, &["--data", "each row is used once"]);
}

/// Reads files of the library `datasets` whose message contents have the type JSON, or whose content parts have null
/// for missing keys.
#[test]
fn parts_of_datasets_files_keep_their_images() {
    let folder = folder();
    let dir = folder.path();
    let model = tiny_model(dir).display().to_string();
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("a.png")).expect("copied");
    for (name, media) in [
        ("mixed_parts.parquet", 1),
        ("mixed_parts.arrow", 1),
        ("nullkeys.parquet", 1),
        ("list_of_json.parquet", 0),
        ("json_messages.arrow", 0),
    ] {
        let file = golden("data/json").join(name).display().to_string();
        let got = run_in(dir, ["data", "check", "--model", &model, "--media-root", ".", &file, "--json"]).json();
        assert_eq!((&got["media_files"], &got["unusable_rows"]), (&json!(media), &json!(0)), "{name}: {got}");
    }
}

fn sft(dir: &Path, data: &str, out: &str) -> FinishedRun {
    run_in(dir, ["sft", "--model", "tiny", "--data", data, "--out", out, "--max-steps", "1", "--no-shuffle", "--quiet"])
}

/// Training on rows in the layouts of TRL, ms-swift and LLaMA-Factory gives the same bits as training on the same chats
/// in `messages`.
#[test]
fn rows_of_other_programs_train_as_their_chats() {
    let folder = folder();
    let dir = folder.path();
    tiny_model(dir);
    let pairs = [("What color is the sky?", "Blue."), ("And grass?", "Green.")];
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let rows = |row: &dyn Fn(&str, &str) -> Value| pairs.map(|(q, a)| row(q, a).to_string()).join("\n");
    let chat = |q: &str, a: &str| json!({"messages": [message("user", q), message("assistant", a)]});
    write(dir, "chat.jsonl", rows(&chat));
    let trl = |q: &str, a: &str| json!({"prompt": [message("user", q)], "completion": [message("assistant", a)]});
    write(dir, "trl.jsonl", rows(&trl));
    write(dir, "swift.jsonl", rows(&|q, a| json!({"query": q, "response": a})));
    write(dir, "alpaca.jsonl", rows(&|q, a| json!({"instruction": q, "input": "", "output": a})));
    let hash = |name: &str| {
        sft(dir, &format!("{name}.jsonl"), name).ok();
        read_metrics(&dir.join(name))[0]["hash"].clone()
    };
    let wanted = hash("chat");
    assert!(["trl", "swift", "alpaca"].into_iter().all(|name| hash(name) == wanted));
    // Plain texts are used without the chat template, as in TRL: the prompt, the completion and its end token.
    write(dir, "texts.jsonl", rows(&|q, a| json!({"prompt": q, "completion": a})));
    sft(dir, "texts.jsonl", "texts").ok();
    let step = &read_metrics(&dir.join("texts"))[0];
    assert!(step["tokens"].as_u64() < read_metrics(&dir.join("chat"))[0]["tokens"].as_u64(), "{step}");
}

/// Rows of EasyR1, and chats of ms-swift that end before the answer, are prompts for GRPO.
#[test]
fn rows_of_easyr1_and_chats_without_answers_are_prompts() {
    let folder = folder();
    let dir = folder.path();
    tiny_model(dir);
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("a.png")).expect("copied");
    let easyr1 = json!({"problem": "<image>Find x.", "answer": "3", "images": ["a.png"]});
    // A row whose solution has no `problem_type` can be used with a custom reward.
    let chat = json!({"messages": [{"role": "user", "content": "2 + 2?"}], "solution": "<answer>4</answer>"});
    write(dir, "rows.jsonl", format!("{easyr1}\n{chat}\n"));
    let own = ["--reward-command", "while read -r line; do echo 1; done"];
    let fixed = "grpo --model tiny --data rows.jsonl --out out --max-steps 1 --num-generations 2 --quiet --strict \
                 --per-device-train-batch-size 4 --gradient-accumulation-steps 1 --max-completion-length 2";
    run_in(dir, fixed.split_whitespace().chain(own)).ok();
    // `reel data check` reports how many rows each training command can use.
    let check = |more: &[&str]| run_in(dir, [&["data", "check", "rows.jsonl"][..], more].concat());
    let both = check(&[]);
    assert!(
        both.ok().contains("reel grpo can use 2 of 2 rows") && both.stdout.contains("reel sft can use 0 of 2 rows")
    );
    check(&["--for", "grpo"]).ok();
    let words = ["2 of 2 rows cannot be used by reel sft", "rows.jsonl:1: has a prompt without an answer to learn"];
    check(&["--for", "sft"]).assert_refused(1, &words);
    write(dir, "rows.jsonl", CHAT);
    check(&["--for", "sft"]).ok();
    check(&["--for", "grpo"]).assert_refused(1, &["rows.jsonl:1: ends with an answer of the assistant"]);
    // If all rows of a JSON list are on one line, the error names the row.
    write(dir, "list.json", format!("[{CHAT}, {}]", CHAT.replace("2 + 2", "<image>")));
    run_in(dir, ["data", "check", "list.json"]).assert_refused(1, &["list.json: row 2: messages[0].content"]);
}

#[test]
fn a_video_may_be_the_folder_of_its_frames() {
    let folder = folder();
    let dir = folder.path();
    let model = tiny_model(dir).display().to_string();
    let frame = |name: &str, from: &str| {
        fs::create_dir_all(dir.join("clip")).expect("created");
        fs::copy(golden("pixels").join(from), dir.join("clip").join(name)).expect("copied");
    };
    ["f1.png", "f2.png", "f10.png"].into_iter().for_each(|name| frame(name, "00_png_rgb.png"));
    let row = |video: Value| {
        json!({"messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "A"}],
            "videos": [video]})
        .to_string()
    };
    write(dir, "folder.jsonl", row(json!("clip")));
    write(dir, "list.jsonl", row(json!(["clip/f1.png", "clip/f2.png", "clip/f10.png"])));
    let check = |name: &str| run_in(dir, ["data", "check", "--model", &model, name, "--json"]);
    assert_eq!(check("folder.jsonl").json()["tokens"], check("list.jsonl").json()["tokens"]);
    run_in(dir, ["data", "check", "--no-decode", "folder.jsonl"]).ok();
    frame("f11.png", "01_png_rgb.png");
    check("folder.jsonl").assert_refused(1, &["clip/f11.png: has ", "pixels, but the first frame of the folder has"]);
    fs::write(dir.join("clip/times.txt"), "0").expect("written");
    check("folder.jsonl").assert_refused(1, &["clip: is a folder with `times.txt`"]);
}

/// A data set in the hub cache is found by its id, split, revision and file name.
#[test]
fn data_sets_of_the_hub_are_read_from_the_cache() {
    let folder = folder();
    let dir = folder.path();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let store = "hub/datasets--org--name";
    let snapshot = format!("{store}/snapshots/{commit}");
    write(dir, &format!("{store}/refs/main"), commit);
    write(dir, &format!("{store}/refs/v1"), commit);
    write(dir, &format!("{snapshot}/train.jsonl"), [CHAT; 3].join("\n"));
    write(dir, &format!("{snapshot}/test.jsonl"), [CHAT; 2].join("\n"));
    write(dir, "more.jsonl", CHAT);
    let rows = |data: &[&str]| {
        let mut reel = support::reel();
        reel.current_dir(dir).env("HF_HUB_CACHE", "hub").args(["data", "stats", "--json"]).args(data);
        support::finished_run(reel.output().expect("it starts"))
    };
    // Other hub clients write no marker that a data set is complete, so reel prints a warning.
    let got = rows(&["org/name"]);
    assert!(got.stderr.contains("was not downloaded by reel and may be incomplete"), "{}", got.stderr);
    write(dir, &format!("{snapshot}/.reel-complete"), "");
    for (data, wanted) in [
        (&["org/name"][..], 3),
        (&["org/name@test"], 2),
        (&["hf://datasets/org/name@v1/test.jsonl"], 2),
        (&["org/name", "more.jsonl"], 4),
    ] {
        let got = rows(data);
        assert_eq!((got.code, got.stderr.as_str()), (Some(0), ""), "{data:?}");
        assert_eq!(json_of(&got.stdout)["rows"], wanted, "{data:?}: {}", got.stdout);
    }
    rows(&["org/other"]).assert_refused(1, &["org/other: is not complete", "HF_HUB_OFFLINE"]);
    rows(&["hf://datasets/org"])
        .assert_refused(2, &["--data: hf://datasets/org is not the address", "hf://datasets/ORG/NAME"]);
    // A missing data file whose path has the form ORG/NAME is not taken for a data set of the hub.
    rows(&["org/none.jsonl"]).assert_refused(1, &["org/none.jsonl", "there is no such file"]);
}
