//! `--report-to wandb` as a command: the folder for `wandb sync` has the numbers of metrics.jsonl, as read by an
//! independent parser.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{FinishedRun, crc32, file_names_in, finished_run, golden, read_metrics, reel, tiny_model};

/// Reads the records of a `.wandb` file: a file header of 7 bytes, then blocks of 32768 bytes. A record is one chunk,
/// or several chunks if it crosses blocks.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).expect("a datastore");
    assert_eq!(file[..7], *b":W&B\xe1\xbe\x00");
    let (mut all, mut part) = (Vec::new(), Vec::new());
    for (i, block) in file.chunks(32768).enumerate() {
        let mut at = if i == 0 { 7 } else { 0 };
        while at + 7 <= block.len() {
            let length = usize::from(u16::from_le_bytes([block[at + 4], block[at + 5]]));
            let chunk = &block[at + 6..at + 7 + length];
            assert_eq!(block[at..at + 4], crc32(chunk).to_le_bytes(), "wrong checksum in block {i} at byte {at}");
            part.extend(&chunk[1..]);
            if chunk[0] == 1 || chunk[0] == 4 {
                all.push(std::mem::take(&mut part));
            }
            at += 7 + length;
        }
        assert!(block[at..].iter().all(|&b| b == 0));
    }
    assert!(part.is_empty());
    all
}

/// Parses a protobuf message into its fields: (field number, value). A varint becomes the 8 bytes of a u64; other
/// values keep their bytes.
fn fields(message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut at = 0;
    let varint = |at: &mut usize| {
        let mut n = 0u64;
        for shift in (0..).step_by(7) {
            n |= u64::from(message[*at] & 0x7f) << shift;
            *at += 1;
            if message[*at - 1] < 0x80 {
                return n;
            }
        }
        unreachable!()
    };
    let mut all = Vec::new();
    while at < message.len() {
        let tag = varint(&mut at);
        let value = match tag & 7 {
            0 => varint(&mut at).to_le_bytes().to_vec(),
            2 => {
                let length = varint(&mut at) as usize;
                at += length;
                message[at - length..at].to_vec()
            }
            wire => panic!("wire type {wire}"),
        };
        all.push((tag >> 3, value));
    }
    all
}

fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(message).into_iter().find(|f| f.0 == number).map(|f| f.1)
}

fn text(message: &[u8], number: u64) -> String {
    String::from_utf8(field(message, number).unwrap_or_default()).expect("UTF-8")
}

fn number(message: &[u8], number: u64) -> u64 {
    field(message, number).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("a number")))
}

/// Parses a message whose field 1 is repeated into a map; each element has a name and a value. `key` is the number of
/// the name's field; field 16 is the value as JSON.
fn items(message: &[u8], key: u64) -> BTreeMap<String, Value> {
    let items = fields(message).into_iter().filter(|f| f.0 == 1).map(|f| f.1);
    items.map(|item| (text(&item, key), serde_json::from_str(&text(&item, 16)).expect("JSON"))).collect()
}

/// The contents of a `.wandb` file, which describes one run.
#[derive(Debug, Default)]
struct WandbLog {
    id: String,
    project: String,
    name: String,
    config: BTreeMap<String, Value>,
    steps: Vec<BTreeMap<String, Value>>,
    summary: BTreeMap<String, Value>,
    files: Vec<String>,
    exit: Option<u64>,
}

fn parse_log(folder: &Path) -> WandbLog {
    let file_name = file_names_in(folder).into_iter().find(|name| name.ends_with(".wandb")).expect("a datastore");
    let mut log = WandbLog::default();
    for (i, record) in records(&folder.join(&file_name)).iter().enumerate() {
        assert_eq!(number(record, 1), i as u64 + 1);
        let (kind, body) = fields(record).remove(1);
        match kind {
            2 => {
                log.steps.push(items(&body, 2));
                assert_eq!(log.steps[log.steps.len() - 1]["_step"], number(&field(&body, 2).expect("a step"), 1));
            }
            3 => log.summary.extend(items(&body, 2)),
            6 => log.files.push(text(&field(&body, 1).expect("a file"), 1)),
            17 => {
                (log.id, log.project, log.name) = (text(&body, 1), text(&body, 3), text(&body, 8));
                log.config = items(&field(&body, 4).expect("a config"), 1);
            }
            18 => log.exit = Some(number(&body, 1)),
            21 => assert_eq!(i, 0),
            other => panic!("a record of kind {other}"),
        }
    }
    assert_eq!(file_name, format!("run-{}.wandb", log.id));
    for path in &log.files {
        assert!(folder.join("files").join(path).is_file(), "{path}");
    }
    log
}

/// Returns the folders in OUT/wandb, one per run, oldest first.
fn runs(out: &Path) -> Vec<PathBuf> {
    file_names_in(&out.join("wandb")).into_iter().map(|name| out.join("wandb").join(name)).collect()
}

/// Asserts that the logged steps contain every number of metrics.jsonl.
#[track_caller]
fn assert_is(log: &WandbLog, lines: &[Value]) {
    assert_eq!(log.steps.len(), lines.len());
    for (step, line) in log.steps.iter().zip(lines) {
        let not_reported = ["step", "tokens", "step_seconds"];
        let numbers = line
            .as_object()
            .expect("an object")
            .iter()
            .filter(|(k, v)| v.is_number() && !not_reported.contains(&k.as_str()));
        let want: BTreeMap<String, f64> =
            numbers.map(|(k, v)| (format!("train/{k}"), v.as_f64().expect("a number"))).collect();
        let got = step.iter().filter(|(k, _)| k.starts_with("train/"));
        assert_eq!(got.map(|(k, v)| (k.clone(), v.as_f64().expect("a number"))).collect::<BTreeMap<_, _>>(), want);
        assert_eq!(step["_step"], line["step"]);
    }
    let last = log.steps.last().expect("a step");
    assert!(last.iter().all(|(name, value)| log.summary[name] == *value));
}

/// A temporary folder with a tiny model and rows for `sft` and `grpo`.
fn training_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    let sft = json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]});
    fs::write(folder.path().join("sft.jsonl"), sft.to_string()).expect("rows");
    let frames: Vec<String> = (0..4)
        .map(|i| golden(&format!("grpo/grpo_clip_iter2/media/frames/{i:03}.png")).display().to_string())
        .collect();
    let asked = json!([{"type": "video", "video": frames}, {"type": "text", "text": "Where?"}]);
    let grpo = json!({"prompt": [{"role": "user", "content": asked}], "solution": "<answer>left</answer>", "problem_type": "free-form"});
    fs::write(folder.path().join("grpo.jsonl"), grpo.to_string()).expect("rows");
    folder
}

/// Runs a training command without WANDB_PROJECT in its environment.
fn train(at: &Path, command: &str, out: &str, more: &[&str]) -> FinishedRun {
    let grpo = ["--num-generations", "4", "--per-device-train-batch-size", "4", "--max-completion-length", "8"];
    let mut process = reel();
    process.current_dir(at).env_remove("WANDB_PROJECT");
    process.args([command, "--model", "tiny", "--data", &format!("{command}.jsonl"), "--out", out, "--quiet"]);
    let fixed = [&["--learning-rate", "1e-3"][..], if command == "grpo" { &grpo[..] } else { &[] }].concat();
    process.args(support::with_options(&fixed, more));
    finished_run(process.output().expect("the binary starts"))
}

#[test]
fn sft_run_is_logged_and_results_do_not_change() {
    let folder = training_folder();
    let at = folder.path();
    let more = ["--max-steps", "5", "--report-to", "tensorboard", "--report-to", "wandb", "--wandb-project", "films"];
    train(at, "sft", "out", &more).ok();
    train(at, "sft", "plain", &["--max-steps", "5"]).ok();
    let log = parse_log(&runs(&at.join("out"))[0]);
    assert_is(&log, &read_metrics(&at.join("out")));
    assert_eq!((log.project.as_str(), log.name.as_str(), log.exit), ("films", "out", Some(0)));
    assert_eq!(log.files, ["wandb-metadata.json"]);
    assert_eq!((&log.config["learning_rate"], &log.config["command"]), (&json!(1e-3), &json!("sft")));
    let run: Value = serde_json::from_slice(&fs::read(at.join("out/run.json")).expect("run.json")).expect("JSON");
    for (name, value) in run["options"].as_object().expect("options") {
        assert!(log.config[name] == *value || run.get(name).is_some(), "{name}");
    }
    let events = |out: &str| file_names_in(&at.join(out)).iter().filter(|name| name.starts_with("events.")).count();
    assert_eq!((events("out"), events("plain")), (1, 1));
    assert!(!at.join("plain/wandb").exists());
    let hashes = |out: &str| read_metrics(&at.join(out)).iter().map(|line| line["hash"].clone()).collect::<Vec<_>>();
    assert_eq!(hashes("out"), hashes("plain"));
    let weights = |out: &str| fs::read(at.join(out).join("model.safetensors")).expect("weights");
    assert!(weights("out") == weights("plain"));
    train(at, "sft", "none", &["--max-steps", "1", "--report-to", "none"]).ok();
    assert!(events("none") == 0 && !at.join("none/wandb").exists());
}

#[test]
fn resumed_grpo_run_is_one_wandb_run_with_all_previews() {
    let folder = training_folder();
    let at = folder.path();
    let more = |steps| ["--max-steps", steps, "--save-steps", "2", "--report-to", "wandb", "--run-name", "a b"];
    train(at, "grpo", "out", &more("3")).ok();
    let first = parse_log(&runs(&at.join("out"))[0]);
    assert_is(&first, &read_metrics(&at.join("out")));
    train(at, "grpo", "out", &[&more("6")[..], &["--resume-from-checkpoint", "out/checkpoint-2"]].concat()).ok();
    let folders = runs(&at.join("out"));
    let log = parse_log(&folders[1]);
    assert_is(&log, &read_metrics(&at.join("out")));
    assert_eq!(
        (folders.len(), &log.id, log.name.as_str(), log.project.as_str()),
        (2, &first.id, "a b", "uncategorized")
    );
    assert!(folders[0].join(format!("run-{}.wandb.synced", log.id)).exists());
    for (i, step) in log.steps.iter().enumerate() {
        let (frames, pages) = (&step["rollouts/frames"], &step["rollouts/completions"]);
        let bytes = |value: &Value| {
            fs::read(folders[1].join("files").join(value["path"].as_str().expect("a path"))).expect("media")
        };
        assert!(bytes(frames).starts_with(b"\x89PNG") && frames["_type"] == "image-file");
        assert_eq!(frames["size"], bytes(frames).len());
        assert!(String::from_utf8(bytes(pages)).expect("a page").contains("grpo.jsonl:1"));
        let counts = step["rollouts/rewards"]["values"].as_array().expect("a histogram");
        assert_eq!(counts.iter().filter_map(Value::as_u64).sum::<u64>(), 4, "step {}", i + 1);
    }
    assert_eq!(log.files.len(), 1 + 2 * 6);
    assert_eq!(first.steps[..2], log.steps[..2]);
    // A new run with --overwrite replaces the earlier runs.
    train(at, "grpo", "out", &[&more("1")[..], &["--overwrite"]].concat()).ok();
    assert_eq!(runs(&at.join("out")).len(), 1);
}

#[test]
fn project_comes_from_the_environment_and_logging_steps_apply() {
    let folder = training_folder();
    let at = folder.path();
    let mut process = reel();
    process.current_dir(at).env("WANDB_PROJECT", "from outside");
    let args = "sft --model tiny --data sft.jsonl --out out --quiet --max-steps 5 --logging-steps 2 --report-to wandb";
    finished_run(process.args(args.split(' ')).output().expect("the binary starts")).ok();
    let log = parse_log(&runs(&at.join("out"))[0]);
    assert_eq!(log.project, "from outside");
    let all = read_metrics(&at.join("out"));
    assert_is(&log, &[all[1].clone(), all[3].clone(), all[4].clone()]);
}

#[test]
fn invalid_options_are_refused() {
    let folder = training_folder();
    let at = folder.path();
    let bad = |more: &[&str], words: &[&str]| {
        train(at, "sft", "out", more).assert_refused(2, words);
        assert!(!at.join("out").exists());
    };
    let refused = train(at, "sft", "out", &["--report-to", "foo"]);
    assert!(refused.code == Some(2) && refused.stderr.starts_with("error: "), "{}", refused.stderr);
    assert!(["foo", "--report-to", "tensorboard", "wandb"].iter().all(|word| refused.stderr.contains(word)));
    bad(&["--report-to", "none,wandb"], &["--report-to: is empty, or combines none with reporters"]);
    bad(&["--report-to", "wandb", "--wandb-project", "a/b"], &["--wandb-project: is \"a/b\""]);
    bad(&["--report-command", " "], &["--report-command: is empty"]);
    fs::write(at.join("c.toml"), "report-to = [\"foo\"]\n").expect("written");
    let refused = train(at, "sft", "out", &["--config", "c.toml"]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("c.toml: report-to: foo: names foo"),
        "{}",
        refused.stderr
    );
    fs::create_dir(at.join("out")).expect("a folder");
    fs::write(at.join("out/wandb"), "a file").expect("written");
    let more = ["--report-to", "wandb", "--overwrite", "--max-steps", "1"];
    train(at, "sft", "out", &more).assert_refused(1, &["out/wandb", "cannot be written"]);
    assert_eq!(fs::read_to_string(at.join("out/wandb")).expect("the file"), "a file");
}
