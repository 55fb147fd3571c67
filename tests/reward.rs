//! `reel reward`: gives the scores of the reference code, refuses malformed input, and calls custom reward functions
//! in Python.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reel_samples::rewards::CustomReward;
use serde_json::{Value, json};
use support::{FinishedRun, file_names_in, golden, run};

/// A temporary folder in which files are scored.
struct Workspace(tempfile::TempDir);

impl Workspace {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `reel reward` on a file with this text.
    fn reward(&self, text: impl AsRef<[u8]>, more: &[&str]) -> FinishedRun {
        fs::write(self.path("in.jsonl"), text).expect("written");
        let (input, output) = (self.path("in.jsonl"), self.path("out.jsonl"));
        let paths = ["--input", input.to_str().expect("UTF-8"), "--output", output.to_str().expect("UTF-8")];
        run(support::with_options(&[&["reward"], &paths[..]].concat(), more))
    }

    fn output(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out.jsonl")).expect("an output");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[test]
fn rewards_equal_reference_code_for_each_parity() {
    let text = fs::read_to_string(golden("rewards/rewards.jsonl")).expect("golden rows");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for parity in ["paper", "videorft", "video-r1"] {
        let rows: Vec<&Value> = rows.iter().filter(|row| row["parity"] == parity).collect();
        assert!(rows.len() > 20);
        let workspace = Workspace::new();
        let input: String = rows.iter().map(|row| format!("{}\n", row["input"])).collect();
        workspace.reward(input, &["--parity", parity]).ok();
        let got = workspace.output();
        assert_eq!(got.len(), rows.len());
        for (got, row) in got.iter().zip(rows) {
            for (key, want) in row["expect"].as_object().expect("an object") {
                assert!(near(&got[key], want), "{} {key}: {}, want {want}", row["id"], got[key]);
            }
        }
    }
}

/// Returns true if two numbers, or all numbers in two lists, differ by at most 1e-5.
fn near(got: &Value, want: &Value) -> bool {
    match (got, want) {
        (Value::Array(got), Value::Array(want)) => {
            got.len() == want.len() && got.iter().zip(want).all(|(got, want)| near(got, want))
        }
        _ => matches!((got.as_f64(), want.as_f64()), (Some(got), Some(want)) if (got - want).abs() <= 1e-5),
    }
}

fn row() -> Value {
    json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "lengths": [400, 400],
        "completions": ["<think>a</think><answer>A</answer>", "<answer>B</answer>"]})
}

#[test]
fn unusable_solutions_are_counted_and_said() {
    let workspace = Workspace::new();
    let kind = |kind: &str, solution: &str| json!({"problem_type": kind, "solution": solution, "completion": "<answer>5</answer>"});
    let rows = [
        kind("regression", "<answer>5</answer>"),
        kind("regression", "5"),
        kind("regression", "<answer>nan</answer>"),
        kind("regression", "<answer>about five</answer>"),
        kind("essay", "<answer>5</answer>"),
    ];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let got = workspace.reward(&text, &["--json"]);
    assert_eq!(got.json()["unusable_solutions"], 4);
    assert!(
        got.stderr.starts_with("warning: 4 of 5 rows have a solution that no answer can match, "),
        "{}",
        got.stderr
    );
    assert!(got.stderr.contains("in.jsonl:2: solution: has no answer in <answer> tags; "), "{}", got.stderr);
    assert_eq!(workspace.reward(&text, &["--quiet"]).stderr, "");
    assert_eq!(workspace.reward(rows[0].to_string(), &[]).stderr, "");
}

#[test]
fn output_has_only_applicable_rewards() {
    let workspace = Workspace::new();
    let mut shuffled = row();
    shuffled["shuffled_completions"] = json!(["<answer>B</answer>"]);
    let mut single = row();
    single["completion"] = single["completions"][0].clone();
    single["completions"] = Value::Null;
    single["lengths"] = Value::Null;
    // Blank lines are ignored, and so is a byte order mark, which Windows programs write.
    let said = workspace.reward(format!("\u{feff}{shuffled}\n\r\n \n{single}"), &["--json"]).json();
    assert_eq!((&said["rows"], &said["completions"]), (&json!(2), &json!(3)));
    let text = fs::read_to_string(workspace.path("out.jsonl")).expect("an output");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(
        r#"{"accuracy":[1.0,0.0],"temporal":[0.3,0.0],"format":[1.0,0.0],"length":[0.0,0.0],"reward":[2.3,0.0],"advantage":[0.7070"#
    ), "{text}");
    assert_eq!(lines[1], r#"{"accuracy":1.0,"format":1.0,"reward":2.0}"#);
    assert_eq!(file_names_in(workspace.0.path()), ["in.jsonl", "out.jsonl"]);
}

#[test]
fn fields_that_are_not_used_are_said() {
    let workspace = Workspace::new();
    let mut with_frames = row();
    with_frames["frames"] = json!(["a.png"]);
    let mut shuffled = row();
    shuffled["shuffled_completions"] = json!(["<answer>B</answer>"]);
    let rows = format!("{with_frames}\n{shuffled}");
    let said = workspace.reward(&rows, &[]).stderr;
    assert_eq!(said, "note: 1 of 2 rows have frames, which are not used: the semantic reward needs --siglip\n");
    let said = workspace.reward(&rows, &["--parity", "videorft"]).stderr;
    assert!(said.contains("\nnote: 1 of 2 rows have shuffled_completions, which are not used: "), "{said}");
    assert_eq!(workspace.reward(&rows, &["--quiet"]).stderr, "");
    shuffled["data_type"] = json!("image");
    let words = ["in.jsonl:1: shuffled_completions: is given, but the row's data_type is image", "remove it"];
    workspace.reward(shuffled.to_string(), &[]).assert_refused(1, &words);
}

/// Returns the golden rows with frames for recipe `parity`, and the text of an input file with these rows. Copies the
/// frames into the workspace.
fn siglip_rows(workspace: &Workspace, parity: &str) -> (Vec<Value>, String) {
    let folder = workspace.path("frames");
    fs::create_dir_all(&folder).expect("a folder");
    for frame in fs::read_dir(golden("siglip/frames")).expect("frames").flatten() {
        fs::copy(frame.path(), folder.join(frame.file_name())).expect("copied");
    }
    let text = fs::read_to_string(golden("siglip/rewards.jsonl")).expect("golden rows");
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let rows: Vec<Value> = rows.filter(|row| row["parity"] == parity).collect();
    let input = rows.iter().map(|row| format!("{}\n", row["input"])).collect();
    (rows, input)
}

#[test]
fn semantic_rewards_equal_reference_code() {
    let model = golden("siglip/model");
    let model = model.to_str().expect("UTF-8");
    let mut rows_seen = 0;
    for parity in ["paper", "videorft"] {
        let workspace = Workspace::new();
        let (rows, input) = siglip_rows(&workspace, parity);
        let said = workspace.reward(&input, &["--parity", parity, "--siglip", model, "--json"]).json();
        // SigLIP encodes each frame at most twice, regardless of the number of rows that use it: once unchanged, once
        // with negated pixels.
        let encoded = said["frames_encoded"].as_u64().expect("a count");
        assert!((3..=16).contains(&encoded), "{encoded} frames");
        for (got, row) in workspace.output().iter().zip(&rows) {
            for key in ["semantic", "reward"] {
                let (got, want) = (numbers(&got[key]), numbers(&row["expect"][key]));
                assert_eq!(got.len(), want.len(), "{} {key}", row["id"]);
                let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
                assert!(
                    off <= 3e-4 && got.iter().all(|x| x.is_finite()),
                    "{} {key}: {got:?}, want {want:?}",
                    row["id"]
                );
            }
        }
        rows_seen += rows.len();
        // Without `--siglip` there is no semantic reward.
        workspace.reward(&input, &["--parity", parity]).ok();
        assert!(workspace.output().iter().all(|row| row["semantic"].is_null()));
    }
    assert!(rows_seen >= 10);
}

fn numbers(list: &Value) -> Vec<f64> {
    match list {
        Value::Array(list) => list.iter().map(|x| x.as_f64().expect("a number")).collect(),
        one => vec![one.as_f64().expect("a number")],
    }
}

#[test]
fn unusable_siglip_folder_or_frame_is_refused() {
    let workspace = Workspace::new();
    let (_, input) = siglip_rows(&workspace, "paper");
    let model = golden("siglip/model");
    let model = model.to_str().expect("UTF-8");
    let siglip = |folder: &str, words: &[&str]| {
        workspace.reward(&input, &["--siglip", folder]).assert_refused(1, words);
        assert!(!workspace.path("out.jsonl").exists());
    };
    siglip("nowhere", &["nowhere", "config.json"]);
    siglip(golden("model/text_multiturn/model").to_str().expect("UTF-8"), &["model_type", "qwen2_5_vl", "not siglip"]);
    workspace.reward(&input, &["--siglip", model, "--device", "dry"]).assert_refused(2, &["--device"]);
    fs::write(workspace.path("frames/v0_1.png"), "not an image").expect("written");
    siglip(model, &["v0_1.png", "image"]);
    fs::remove_file(workspace.path("frames/v0_1.png")).expect("removed");
    siglip(model, &["v0_1.png"]);
}

#[test]
fn tiny_siglip_made_by_init_gives_semantic_rewards() {
    let workspace = Workspace::new();
    let (rows, input) = siglip_rows(&workspace, "paper");
    let folder = workspace.path("siglip");
    let folder = folder.to_str().expect("UTF-8");
    run(["init", "--preset", "siglip-tiny", "--seed", "5", "--out", folder]).ok();
    for dtype in ["f32", "bf16"] {
        workspace.reward(&input, &["--siglip", folder, "--dtype", dtype]).ok();
        let got = workspace.output();
        assert_eq!(got.len(), rows.len());
        let all: Vec<f64> = got.iter().flat_map(|row| numbers(&row["semantic"])).collect();
        assert!(all.iter().all(|s| (0.0..=1.0).contains(s)), "{all:?}");
    }
}

#[test]
fn one_malformed_line_refuses_the_file() {
    let without = |key: &str| {
        let mut row = row();
        row[key] = Value::Null;
        row.to_string()
    };
    let with = |key: &str, value: Value| {
        let mut row = row();
        row[key] = value;
        row.to_string()
    };
    for (bad, words) in [
        ("{\"problem_type\": ".to_string(), vec!["the line", "not JSON"]),
        ("[]".into(), vec!["not an object"]),
        (without("solution"), vec!["solution", "missing"]),
        (without("problem_type"), vec!["problem_type", "missing"]),
        (without("completions"), vec!["completion"]),
        (with("completion", json!("x")), vec!["together"]),
        (with("solution", json!(3)), vec!["solution", "not a string"]),
        (with("lengths", json!([400])), vec!["lengths", "1 numbers for 2"]),
        (with("completions", json!([])), vec!["completions", "empty"]),
        (with("data_type", json!("film")), vec!["data_type", "film"]),
        ("{\"a\":".repeat(200_000), vec!["not JSON"]),
    ] {
        let workspace = Workspace::new();
        let got = workspace.reward(format!("{}\n\n{bad}\n{}\n", row(), row()), &[]);
        got.assert_refused(1, &words).assert_refused(1, &["in.jsonl:3: "]);
        assert_eq!(file_names_in(workspace.0.path()), ["in.jsonl"], "{bad:.80}");
    }
    let workspace = Workspace::new();
    workspace.reward(b"{}\n\xff\n", &[]).assert_refused(1, &["in.jsonl:2: ", "UTF-8"]);
    workspace.reward("\n \n", &[]).assert_refused(1, &["in.jsonl", "no rows"]);
    workspace.reward(row().to_string(), &["--parity", "nosuch"]).assert_refused(2, &["--parity"]);
    workspace.reward(row().to_string(), &["--output", "no/such/folder/o"]).assert_refused(1, &["no/such/folder"]);
    run(["reward", "--input", "no/such", "--output", "o"]).assert_refused(1, &["no/such"]);
    run(["reward", "--input", "."]).assert_refused(2, &["--output"]);
}

#[test]
fn options_add_rewards_and_select_advantages() {
    let workspace = Workspace::new();
    let answer = |time: &str| format!("<think></think><answer>{time}</answer>");
    let row = |step: u64| {
        json!({"problem_type": "temporal grounding", "solution": "<answer>[0, 8]</answer>", "step": step,
            "lengths": [10, 95], "completions": [answer("{\"time\": [0, 8]}"), answer("in the middle")]})
    };
    let rows = [row(7), row(3)].map(|row| row.to_string()).join("\n");
    let options = ["--structure-reward", "--overlong-cache=10", "--max-completion-length=100", "--scale-rewards=ema"];
    workspace.reward(&rows, &options).ok();
    for got in workspace.output() {
        assert_eq!((&got["structure"], &got["overlong"]), (&json!([0.5, 0.0]), &json!([0.0, -0.5])), "{got}");
        assert_eq!((&got["reward"], &got["malformed"]), (&json!([2.5, 0.5]), &json!([null, "no_time"])), "{got}");
        assert!(near(&got["advantage"], &json!([1.0, -1.0])), "{got}");
    }
    workspace.reward(&rows, &["--advantage-estimator=rloo", "--scale-rewards=none"]).ok();
    assert_eq!(workspace.output()[0]["advantage"], json!([1.0, -1.0]));
    workspace.reward(&rows, &["--multi-objective-aggregation=normalize_then_sum"]).ok();
    let got = &workspace.output()[0]["advantage"];
    // Both groups are steps of their own, of two completions, whose deviation has the divisor 1.
    assert!((got[0].as_f64().expect("a number") - 0.5f64.sqrt()).abs() < 1e-3, "{got}");
    for (options, code, words) in [
        (&["--ema-decay=1.5", "--scale-rewards=ema"][..], 2, &["--ema-decay: is 1.5; "][..]),
        (&["--ema-guard=3"], 2, &["--ema-guard: is for --scale-rewards ema, which is not given; "]),
        (&["--overlong-cache=200", "--max-completion-length=100"], 2, &["--overlong-cache: is 200, more than "]),
        (&["--advantage-estimator=rloo"], 2, &["--advantage-estimator: is rloo, "]),
        (
            &["--multi-objective-aggregation=normalize_then_sum", "--scale-rewards=none"],
            2,
            &["--multi-objective-aggregation: is normalize_then_sum, but --scale-rewards"],
        ),
        (&["--temporal-iou=time-r1"], 1, &["in.jsonl:1: duration: is missing, "]),
    ] {
        workspace.reward(&rows, options).assert_refused(code, words);
    }
}

#[test]
fn very_long_answers_are_scored_quickly() {
    let words = "word ".repeat(200_000);
    let solution = format!("<answer>{}</answer>", "other ".repeat(50));
    for kind in ["OCR", "free-form"] {
        let workspace = Workspace::new();
        let row =
            json!({"problem_type": kind, "solution": solution, "completion": format!("<answer>{words}</answer>")});
        workspace.reward(row.to_string(), &[]).ok();
        assert_eq!(workspace.output()[0]["accuracy"], 0.0);
    }
    let (times, boxes) = ("1 to 2 and 1 ".repeat(50_000), "[1, 2, 3, {\"a\": 4 ".repeat(30_000));
    for (kind, truth) in
        [("temporal grounding", "[900, 901]"), ("spatial grounding", "[1, 2, 3, 4]"), ("math", "7"), ("boolean", "no")]
    {
        for text in [&words, &times, &boxes] {
            let (solution, completion) = (format!("<answer>{truth}</answer>"), format!("<answer>{text}</answer>"));
            let row = json!({"problem_type": kind, "solution": solution, "completion": completion});
            let workspace = Workspace::new();
            workspace.reward(row.to_string(), &[]).ok();
            assert_eq!(workspace.output()[0]["accuracy"], 0.0, "{kind}");
        }
    }
}

const FUNCTIONS: &str = r#"
def length(prompts, completions, solution, **columns):
    print("this goes to standard error")
    assert len(prompts) == len(completions) == len(solution) == len(columns["n"])
    return [len(c) + n for c, n in zip(completions, columns["n"])]

def chat(prompts, completions, **columns):
    return [None if c[0]["content"] == "" else float(c[0]["role"] == "assistant") for c in completions]

async def later(completions, **columns):
    return [0.5 for _ in completions]

def short(completions, **columns):
    return [1.0]

def none(completions, **columns):
    return [float("nan") for _ in completions]

def endless(completions, **columns):
    return [float("inf") for _ in completions]

def breaks(completions, **columns):
    raise KeyError("colour")
"#;

/// Returns the rewards of a Python reward function for two rows: called through `--reward-command`, then through
/// HTTP. `None` if Python is not installed.
fn python(function: &str, chat: bool) -> Option<[Result<Vec<f64>, String>; 2]> {
    if Command::new("python3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("skipped: python3 is not installed");
        return None;
    }
    let workspace = Workspace::new();
    fs::write(workspace.path("functions.py"), FUNCTIONS).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/rewards.py");
    let function = format!("{}:{function}", workspace.path("functions.py").display());
    let prompt = if chat { json!([{"role": "user", "content": "?"}]) } else { json!("?") };
    let rows: Vec<Value> = ["four", ""]
        .iter()
        .enumerate()
        .map(|(n, text)| json!({"prompt": prompt, "completion": text, "solution": "é", "n": n}))
        .collect();
    let timeout = Duration::from_secs(60);
    let score_twice = |mut reward: CustomReward| {
        // NaN stands for a reward that does not apply. NaN is not equal to itself, so it is replaced by -1.
        let numbers = |rewards: Vec<f64>| rewards.into_iter().map(|r| if r.is_nan() { -1.0 } else { r }).collect();
        let twice: [Result<Vec<f64>, String>; 2] =
            [reward.score(&rows), reward.score(&rows)].map(|r| r.map(numbers).map_err(|e| e.to_string()));
        assert_eq!(twice[0], twice[1]);
        twice[0].clone()
    };
    let piped = score_twice(
        CustomReward::from_command(&format!("python3 '{}' '{function}'", script.display()), timeout).unwrap(),
    );
    let server = Server::start(&script, &function);
    let posted = score_twice(CustomReward::from_url(&server.url, timeout).unwrap());
    Some([piped, posted])
}

/// A running `docs/examples/rewards.py` that serves rewards over HTTP.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(script: &Path, function: &str) -> Self {
        let mut child = Command::new("python3")
            .args([script.to_str().expect("UTF-8"), function, "--port", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let url = line.trim().strip_prefix("listening on ").expect("its address").to_string();
        Self { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn trl_reward_functions_run_unchanged() {
    for (function, chat, want) in [
        ("length", false, vec![4.0, 1.0]),
        ("chat", true, vec![1.0, -1.0]),
        ("later", true, vec![0.5, 0.5]),
        ("none", true, vec![-1.0, -1.0]),
    ] {
        let Some(got) = python(function, chat) else { return };
        assert_eq!(got, [Ok(want.clone()), Ok(want)], "{function}");
    }
    for (function, words) in [
        ("short", "the function returned 1 rewards for 2 completions"),
        ("endless", "the function returned inf for completion 0"),
        ("breaks", "KeyError: 'colour'"),
    ] {
        let Some(got) = python(function, false) else { return };
        for answer in got {
            let e = answer.expect_err("an error");
            assert!(e.contains(words) && !e.contains('\n'), "{function}: {e}");
        }
    }
}
