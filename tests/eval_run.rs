//! `reel eval` with a model answers and scores benchmarks. Batch size, threads, parts, the order of rows and kills
//! change no answer, and errors about wrong data name the data.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{file_names_in, golden, run_in, send_signal, tiny_model};

/// Returns questions in the form of Video-Holmes about three videos, one of which is missing.
fn holmes_rows() -> Vec<Value> {
    let row = |i: usize| {
        json!({"video ID": format!("v{}", i / 4), "Question ID": i, "Question Type": if i.is_multiple_of(2) { "SR" } else { "TA" },
            "Question": format!("Who is {i}?"), "Options": {"A": "he", "B": "she", "C": "it"}, "Answer": "B"})
    };
    (0..12).map(row).collect()
}

fn write_json(file: &Path, value: &Value) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(file, value.to_string()).expect("written");
}

/// Creates a folder with a tiny model and the data of two benchmarks, in separate folders.
fn folder_with_benchmarks() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    write_json(&at.join("data/videoholmes/test_Video-Holmes.json"), &json!(holmes_rows()));
    let mmvu = |i: usize| {
        json!({"id": format!("validation_{i}"), "video": "https://example.org/videos/Art/1.mp4", "answer": "A",
            "question_type": if i == 2 { "open-ended" } else { "multiple-choice" }, "question": format!("Why {i}?"),
            "choices": {"A": "x", "B": "y"}, "metadata": {"subject": "Art"}})
    };
    write_json(&at.join("data/mmvu/validation.json"), &(0..4).map(mmvu).collect());
    for video in ["videoholmes/videos/v0.mp4", "videoholmes/videos_cropped/v1.mp4", "mmvu/videos/Art/1.mp4"] {
        let to = at.join("data").join(video);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(golden("train/sft_videorft_mp4/media/clip.mp4"), to).expect("copied");
    }
    folder
}

/// Frames have 112 x 112 pixels: larger frames would take most of the time of an evaluation.
const EVAL: [&str; 15] = [
    "eval",
    "--model",
    "tiny",
    "--benchmark",
    "mmvu,videoholmes",
    "--data",
    "data",
    "--max-new-tokens",
    "6",
    "--nframes",
    "4",
    "--min-pixels",
    "3136",
    "--max-pixels",
    "12544",
];

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON")
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn benchmarks_are_answered_and_scored() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    let args = [&EVAL[..], &["--temperature", "1", "--top-p", "1", "--out", "a"]].concat();
    let done = run_in(at, &args);
    // The videos of four rows are missing: the rows count as wrong, and the exit code is 1.
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("mmvu: 3 questions of 1 file, layout authors (1 left out: open-ended question)"));
    assert!(done.stderr.contains("lacks the videos of 4 of 12 rows of Video-Holmes"), "{}", done.stderr);
    let last = done.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: a: 4 of 12 rows of videoholmes have an error"), "{last}");
    let names = [
        "mmvu.json",
        "mmvu.jsonl",
        "mmvu.jsonl.run.json",
        "report.html",
        "videoholmes.json",
        "videoholmes.jsonl",
        "videoholmes.jsonl.run.json",
    ];
    assert_eq!(file_names_in(&at.join("a")), names);

    let report = read(&at.join("a/videoholmes.json"));
    assert_eq!((&report["n"], &report["errors"], &report["task_version"]), (&json!(12), &json!(4), &json!(1)));
    assert_eq!(report["by_category"].as_object().map(serde_json::Map::len), Some(2));
    let protocol = &report["protocol"]["options"];
    assert_eq!((&protocol["nframes"], &protocol["profile"]), (&json!(4), &json!("videorft-eval")));
    assert_eq!(
        read(&at.join("a/mmvu.json"))["protocol"]["options"]["data_files"]["left_out"]["open-ended question"],
        1
    );
    let rows = lines(&at.join("a/videoholmes.jsonl"));
    assert_eq!(rows[0]["prompt"][0]["content"][0], json!({"type": "video", "video": "videos/v0.mp4"}));
    assert_eq!(rows[4]["path"], "videos_cropped/v1.mp4");
    assert!(rows[8]["error"].as_str().is_some_and(|e| e.contains("videos/v2.mp4")), "{}", rows[8]);
    let text = rows[0]["prompt"][0]["content"][1]["text"].as_str().unwrap_or_default();
    assert!(text.starts_with("Who is 0?\nA. he\nB. she\nC. it\n\nPlease think"), "{text}");

    // `--score-only` with the same answers gives the same scores.
    let score = ["eval", "--score-only", "--benchmark", "videoholmes", "--predictions", "a/videoholmes.jsonl"];
    let scored = run_in(at, score.iter().chain(&["--out", "s.json", "--json"])).json();
    assert!(scored.as_object().expect("an object").iter().all(|(name, value)| report[name] == *value), "{scored}");
    // Rows whose video is missing can be left out; they are counted.
    let skipped = run_in(at, [&EVAL[..], &["--skip-bad-rows", "--quiet", "--out", "skipped"]].concat());
    assert_eq!(skipped.code, Some(0), "{}", skipped.stderr);
    let fewer = read(&at.join("skipped/videoholmes.json"));
    let left_out = &fewer["protocol"]["options"]["data_files"]["left_out"];
    assert_eq!((&fewer["n"], &left_out["video is missing"], &fewer["truncated"]), (&json!(8), &json!(4), &json!(8)));
    // Resuming a complete run sends no question to the model; only the missing scores are written again.
    fs::remove_file(at.join("a/mmvu.json")).expect("removed");
    let again = run_in(at, [&args[..], &["--resume"]].concat());
    assert!(!again.stderr.contains("row/s") && at.join("a/mmvu.json").exists(), "{}", again.stderr);
    run_in(at, [&args[..], &["--quiet"]].concat()).assert_refused(1, &["a/mmvu.jsonl", "exists", "--resume"]);
    let other = ["--resume", "--quiet", "--nframes", "8"];
    run_in(at, support::with_options(&args, &other)).assert_refused(2, &["--nframes: is 8, but it was 4"]);
}

#[test]
fn batches_threads_parts_and_order_change_no_answer() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    let args = [&EVAL[..], &["--temperature", "1", "--top-p", "1", "--quiet", "--out"]].concat();
    run_in(at, [&args[..], &["whole"]].concat());
    let whole = fs::read(at.join("whole/videoholmes.jsonl")).expect("answers");
    for more in [&["one", "--batch-size", "1"][..], &["threads", "--threads", "3", "--batch-size", "5"]] {
        run_in(at, support::with_options(&args, more));
        assert!(fs::read(at.join(more[0]).join("videoholmes.jsonl")).expect("answers") == whole, "{more:?}");
    }
    for part in ["2/3", "0/3", "1/3"] {
        let done = run_in(at, [&args[..], &["parts", "--shard", part]].concat());
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let merged = run_in(at, ["eval", "merge", "parts"]);
        if part != "1/3" {
            merged.assert_refused(1, &["parts/", "is missing or not complete", "--shard"]);
        }
    }
    for name in
        ["mmvu.jsonl", "mmvu.jsonl.run.json", "videoholmes.jsonl", "videoholmes.jsonl.run.json", "videoholmes.json"]
    {
        let [a, b] = ["whole", "parts"].map(|run| fs::read(at.join(run).join(name)).expect("a file"));
        assert!(a == b, "{name}");
    }
    run_in(at, ["eval", "merge", "parts"])
        .assert_refused(1, &["parts/mmvu.jsonl: already exists beside the files of the shards", "--overwrite"]);
    run_in(at, [&args[..], &["parts", "--shard", "3/3"]].concat()).assert_refused(2, &["--shard", "numbered from 0"]);
    run_in(at, [&args[..], &["parts", "--shard", "19/20"]].concat())
        .assert_refused(2, &["--shard: leaves this part without a row"]);
    run_in(at, [&args[..], &["parts", "--shard", "0/4"]].concat());
    run_in(at, ["eval", "merge", "parts", "--overwrite"])
        .assert_refused(1, &["a run with 3 parts and from one with 4 parts"]);
    // Rows in another order have the same answers.
    let reversed: Vec<Value> = holmes_rows().into_iter().rev().collect();
    write_json(&at.join("data/videoholmes/test_Video-Holmes.json"), &json!(reversed));
    run_in(at, [&args[..], &["reversed"]].concat());
    let [mut a, mut b] = ["whole", "reversed"].map(|run| lines(&at.join(run).join("videoholmes.jsonl")));
    b.reverse();
    // The text of an error contains the line number of the row, so only the presence of an error is compared.
    a.iter_mut().chain(&mut b).for_each(|row| row["error"] = json!(row.get("error").is_some()));
    assert_eq!(a, b);
}

/// Starts a run and kills it once `is_time` returns true. Returns whether the run was killed before its end.
fn kill_when(mut command: Command, is_time: impl Fn() -> bool) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    while !is_time() {
        if child.try_wait().expect("a state").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    send_signal(child.id(), "-KILL");
    child.wait().expect("it ends");
    true
}

/// Returns the number of answers in a folder, including those in incomplete files.
fn answers_in(folder: &Path) -> usize {
    let files = ["mmvu.jsonl", "mmvu.jsonl.partial", "videoholmes.jsonl", "videoholmes.jsonl.partial"];
    let count = |name| fs::read(folder.join(name)).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
    files.into_iter().map(count).sum()
}

/// An evaluation that is killed twenty times at random moments ends with the bytes of an uninterrupted one. Ten kills
/// are within its first tenth of a second, the other ten after up to thirty answers.
#[test]
fn killed_evaluation_resumes_to_the_same_bytes() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    let many = |i: usize| {
        holmes_rows().into_iter().map(move |mut row| {
            row["Question"] = json!(format!("Which {i}?"));
            row
        })
    };
    let rows: Vec<Value> = (0..24).flat_map(many).collect();
    write_json(&at.join("data/videoholmes/test_Video-Holmes.json"), &json!(rows));
    let args = ["--text-only", "--temperature", "1", "--top-p", "1", "--quiet", "--max-new-tokens", "16", "--out"];
    let args = support::with_options(&EVAL, &args);
    run_in(at, args.iter().chain(&["whole"])).ok();
    let broken = at.join("broken");
    let mut random = 12345u64;
    for kill in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (share, before, begun) = ((random >> 40) as f64 / f64::from(1 << 24), answers_in(&broken), Instant::now());
        let mut command = support::reel();
        command.current_dir(at).args(&args).args(["broken", "--resume", "--batch-size", "4"]);
        let is_time = || match kill % 2 {
            0 => begun.elapsed().as_secs_f64() >= 0.1 * share,
            _ => answers_in(&broken) >= before + (30.0 * share) as usize,
        };
        assert!(kill_when(command, is_time), "kill {kill} came too late");
    }
    run_in(at, args.iter().chain(&["broken", "--resume"])).ok();
    for name in ["mmvu.jsonl", "videoholmes.jsonl", "videoholmes.json"] {
        let [a, b] = ["whole", "broken"].map(|run| fs::read(at.join(run).join(name)).expect("a file"));
        assert!(a == b, "{name}: differs from that of the uninterrupted run");
    }
}

#[test]
fn runs_are_compared_row_by_row() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    for (out, seed) in [("a", "1"), ("b", "2")] {
        let more = ["--text-only", "--temperature", "1", "--top-p", "1", "--quiet", "--seed", seed, "--out", out];
        run_in(at, support::with_options(&EVAL, &more)).ok();
    }
    let compared = run_in(at, ["eval", "compare", "a", "b", "--out", "c.json"]);
    assert!(compared.ok().contains("McNemar p = "), "{}", compared.stdout);
    assert!(compared.stderr.contains("note: the runs differ in seed (1 and 2)"), "{}", compared.stderr);
    assert_eq!(read(&at.join("c.json")).as_array().map(Vec::len), Some(2));
    run_in(at, ["eval", "compare", "a", "none"]).assert_refused(1, &["none: does not exist"]);
    run_in(at, ["eval", "compare", "nowhere", "a"]).assert_refused(1, &["nowhere: does not exist"]);
    run_in(at, ["eval", "compare", "data", "b"]).assert_refused(1, &["data: has no predictions"]);
    run_in(at, ["eval", "compare", "a/mmvu.jsonl", "b/videoholmes.jsonl"])
        .assert_refused(1, &["benchmark: is `videoholmes`, not mmvu"]);
}

/// Frames given as image files, as in one task of MVBench, are selected like the frames of a video. With `--clips`,
/// the model sees only the part that the question is about.
#[test]
fn frames_of_folders_are_selected() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    let frames = at.join("data/tvqa/frames_fps3_hq/clip");
    fs::create_dir_all(&frames).expect("a folder");
    for i in 1..=40u8 {
        fs::write(frames.join(format!("{i:05}.bmp")), grey_bitmap(6 * i)).expect("written");
    }
    let row =
        json!({"video": "clip", "question": "Why?", "candidates": ["a", "b"], "answer": "a", "start": 2.0, "end": 5.0});
    write_json(&at.join("data/json/episodic_reasoning.json"), &json!([row]));
    let args = [
        "eval",
        "--model",
        "tiny",
        "--benchmark",
        "mvbench",
        "--data",
        "data",
        "--max-new-tokens",
        "2",
        "--nframes",
        "4",
    ];
    for (more, first, last, fps) in [(&["--out", "whole"][..], 1, 40, 0.3), (&["--out", "part", "--clips"], 7, 16, 1.2)]
    {
        run_in(at, support::with_options(&args, more)).ok();
        let row = lines(&at.join(more[1]).join("mvbench.jsonl")).remove(0);
        let part = &row["prompt"][0]["content"][0];
        let shown = part["video"].as_array().expect("frames");
        let name = |i: usize| format!("tvqa/frames_fps3_hq/clip/{i:05}.bmp");
        assert_eq!((shown.len(), &shown[0], &shown[3]), (4, &json!(name(first)), &json!(name(last))));
        assert!((part["fps"].as_f64().expect("a rate") - fps).abs() < 1e-9, "{part}");
        assert!(row.get("error").is_none(), "{row}");
    }
}

/// Returns a bitmap of 64 x 64 grey pixels.
fn grey_bitmap(grey: u8) -> Vec<u8> {
    let mut bmp = b"BM".to_vec();
    let numbers: [u32; 13] = [54 + 12288, 0, 54, 40, 64, 64, 1 | 24 << 16, 0, 12288, 2835, 2835, 0, 0];
    bmp.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bmp.extend([grey; 64 * 64 * 3]);
    bmp
}

/// A task file is refused if it would leave parts of the questions out; no question is sent to the model.
#[test]
fn rules_that_would_be_left_out_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    let task = r#"
name = "mine"
title = "Mine"
version = 1
source = "https://example.org"
[prompt]
template = "{question}\n{options}"
[[layout]]
name = "own"
files = ["rows*.jsonl"]
columns = ["q", "o", "a"]
[layout.row]
id = "{file.stem}-{row.number}"
question = "{q}"
kind = "multiple choice"
options = "o"
answer = "{a}"
answer-form = "index"
category = ["{topic}"]
"#;
    let row = json!({"q": "One?", "o": ["x1", "y1"], "a": 1, "topic": "t"});
    let write = |name: &str, row: &Value| fs::write(at.join(name), format!("{row}\n{row}\n")).expect("written");
    let evaluate = |task: &str, row: &Value| {
        fs::write(at.join("mine.toml"), task).expect("written");
        write("rows1.jsonl", row);
        write("rows2.jsonl", row);
        let words = "eval --model tiny --benchmark mine.toml --data . --out r --max-new-tokens 1 --overwrite";
        run_in(at, words.split(' '))
    };
    evaluate(task, &row).ok();
    // A task may omit the options from the prompt if its answers are texts. A note says that the model does not see
    // the options.
    let bare = task.replace("{question}\\n{options}", "{question}");
    for (question, notes) in [("x1 or y1?", 0), ("One?", 1)] {
        let said = evaluate(&bare, &json!({"q": question, "o": ["x1", "y1"], "a": 1, "topic": "t"}));
        said.ok();
        let note = "does not see the options of 4 questions: prompt.template has no {options}";
        assert_eq!(said.stderr.matches(note).count(), notes, "{}", said.stderr);
    }
    for (from, to, words) in [
        (
            "{topic}",
            "{topicc}",
            ["layout `own`: category: names the column topicc, which no row has", "rows have a, o, q, topic"],
        ),
        ("category = ", "images = [\"pic\"]\ncategory = ", ["images: names the column pic", "correct the name"]),
        (
            "{file.stem}-{row.number}",
            "{row.number}",
            ["rows2.jsonl:1: id: is `1`, which is also the id of", "rows1.jsonl:1"],
        ),
        ("{file.stem}-{row.number}", "{topic}", ["rows1.jsonl:2: id: is `t`", "rows1.jsonl:1"]),
    ] {
        assert!(task.contains(from), "{from}");
        evaluate(&task.replace(from, to), &row).assert_refused(1, &words);
    }
    let case = format!("{task}[[layout.case]]\nwhen = {{ kindd = [\"a\"] }}\nrow = {{ kind = \"OCR\" }}\n");
    evaluate(&case, &row).assert_refused(1, &["when: names the column kindd, which no row has"]);
    for (options, words) in [
        (json!("['x', 'y']"), "o: is a text that looks like a list, but is not JSON"),
        (json!(["x"]), "o: has only one option"),
        (json!("x, y"), "o: has only one option"),
    ] {
        evaluate(task, &json!({"q": "One?", "o": options, "a": 1, "topic": "t"})).assert_refused(1, &[words]);
    }
    evaluate(task, &json!({"q": "One?", "o": "[\"x\", \"y\"]", "a": 1, "topic": "t"})).ok();
    assert_eq!(lines(&at.join("r/mine.jsonl")).remove(0)["options"], json!(["A. x", "B. y"]));
    // The file has the right format, but its name is not in the layout.
    for name in ["rows1.jsonl", "rows2.jsonl"] {
        fs::remove_file(at.join(name)).expect("removed");
    }
    let two = task.replace(
        "[[layout]]",
        "[[layout]]\nname = \"other\"\nfiles = [\"data.jsonl\"]\ncolumns = [\"z\"]\nrow = {}\n[[layout]]",
    );
    fs::write(at.join("mine.toml"), two).expect("written");
    write("data.jsonl", &row);
    let words = "eval --model tiny --benchmark mine.toml --data . --out r --overwrite";
    let said = [
        "data.jsonl: has the columns of layout own of Mine, whose files have other names; rename the file to rows*.jsonl",
    ];
    run_in(at, words.split(' ')).assert_refused(1, &said);
}

/// A task file adds a benchmark of the user; it also sets the words around the question.
#[test]
fn a_benchmark_is_added_without_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    let task = r#"
name = "mine"
title = "Mine"
version = 3
source = "https://example.org"
[prompt]
template = "Q: {question}\n{options}"
system = "Be brief."
[[layout]]
name = "own"
files = ["*.jsonl"]
columns = ["q", "o", "a"]
row = { id = "{row.number}", question = "{q}", kind = "multiple choice", options = "o", answer = "{a}", answer-form = "index" }
"#;
    fs::write(at.join("mine.toml"), task).expect("written");
    fs::write(at.join("rows.jsonl"), json!({"q": "One?", "o": ["x", "y"], "a": 1}).to_string()).expect("written");
    let args =
        ["eval", "--model", "tiny", "--benchmark", "mine.toml", "--data", ".", "--out", "r", "--max-new-tokens", "3"];
    run_in(at, args).ok();
    let row = lines(&at.join("r/mine.jsonl")).remove(0);
    assert_eq!(row["prompt"][0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!(row["prompt"][1]["content"], json!([{"type": "text", "text": "Q: One?\nA. x\nB. y\n"}]));
    assert_eq!(
        (&row["solution"], &read(&at.join("r/mine.json"))["task_version"]),
        (&json!("<answer>B</answer>"), &json!(3))
    );
    // The output folder has a copy of the task file, by which other commands find the task.
    let again = [&args[..7], &["--out", "s", "--max-new-tokens", "3", "--seed", "5"]].concat();
    run_in(at, again).ok();
    fs::rename(at.join("mine.toml"), at.join("moved.toml")).expect("renamed");
    let compared = |pair: [&str; 2]| run_in(at, ["eval", "compare", pair[0], pair[1], "--json"]).json();
    assert_eq!(compared(["r", "s"])[0]["benchmark"], "mine");
    assert_eq!(compared(["r/mine.jsonl", "s/mine.jsonl"]), compared(["r", "s"]));
    // The output folder already has another task file with this name, which the run must not replace.
    fs::create_dir(at.join("t")).expect("a folder");
    fs::write(at.join("t/mine.toml"), "mine = 1").expect("written");
    let beside =
        ["eval", "--model", "tiny", "--benchmark", "moved.toml", "--data", ".", "--out", "t", "--text-only", "--quiet"];
    run_in(at, beside).assert_refused(1, &["mine.toml: exists", "--overwrite"]);
    let printed = run_in(at, ["eval", "tasks", "mmvu"]);
    assert!(printed.ok().contains("name = \"mmvu\"") && run_in(at, ["eval", "tasks"]).ok().lines().count() == 19);
}

/// `--data` can name a hub data set in the local cache, or a file of it.
#[test]
fn benchmarks_are_read_from_a_data_set_of_the_hub() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    let store = at.join("hub/datasets--org--name");
    let snapshot = store.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(snapshot.parent().expect("a folder")).expect("a folder");
    fs::rename(at.join("data"), &snapshot).expect("renamed");
    fs::write(snapshot.join(".reel-complete"), "").expect("written");
    fs::create_dir(store.join("refs")).expect("a folder");
    fs::write(store.join("refs/main"), snapshot.file_name().expect("a name").as_encoded_bytes()).expect("written");
    let evaluate = |data: &str, out: &str| {
        let mut reel = support::reel();
        reel.current_dir(at).env("HF_HUB_CACHE", "hub");
        let options =
            ["--data", data, "--benchmark", "mmvu", "--limit", "2", "--text-only", "--out", out, "--gpus", "2"];
        let args = support::with_options(&EVAL, &options);
        support::finished_run(reel.args(args).output().expect("it starts"))
    };
    evaluate(&snapshot.display().to_string(), "here").ok();
    let wanted = fs::read(at.join("here/mmvu.jsonl")).expect("answers");
    for (data, out) in [("org/name", "a"), ("hf://datasets/org/name/mmvu/validation.json", "b")] {
        evaluate(data, out).ok();
        assert!(fs::read(at.join(out).join("mmvu.jsonl")).expect("answers") == wanted, "{data}");
    }
    evaluate("org/other", "c").assert_refused(1, &["org/other: is not complete", "HF_HUB_OFFLINE"]);
    evaluate("org/name@test", "c").assert_refused(2, &["--data: org/name@test names a part of a data set"]);
}

#[test]
fn wrong_use_and_wrong_data_are_refused_by_name() {
    let folder = folder_with_benchmarks();
    let at = folder.path();
    let refused = |line: &str, code: i32, words: &[&str]| {
        run_in(at, ["eval"].into_iter().chain(line.split(' '))).assert_refused(code, words);
    };
    refused("--benchmark mmvu --out o", 2, &["--model: is missing"]);
    refused("--benchmark mmvu --out o --model tiny", 2, &["--data: is missing"]);
    refused("--benchmark none --out o --model tiny --data data", 2, &["`none`", "videoholmes"]);
    refused("--benchmark mmvu --out o --predictions p.jsonl", 2, &["--predictions: needs --score-only"]);
    refused("--benchmark mmvu --out o --score-only --predictions p --limit 3", 2, &["--limit: has no effect"]);
    refused("--benchmark mmvu --out o --model tiny --data data --temperature -1", 2, &["--temperature"]);
    refused("--benchmark mmvu --out o --model tiny --data data --limit 0", 2, &["--limit: is 0"]);
    refused("--benchmark mmvu --out o --model tiny --data gone", 1, &["gone"]);
    refused("--benchmark tempcompass --out o --model tiny --data data", 1, &["data: has no data file of TempCompass"]);
    let holmes = "data/videoholmes/test_Video-Holmes.json";
    refused(&format!("--benchmark mmvu --out o --model tiny --data {holmes}"), 1, &[holmes, "columns of Video-Holmes"]);
    refused(
        "--benchmark mmvu --out o --model tiny --data data --media-root tiny",
        1,
        &["tiny: has none of the 3 videos", "--media-root"],
    );
    assert!(!at.join("o").exists(), "nothing is written before the data is read");
    // Answers must not overwrite the data file.
    let row = json!({"problem_id": 1, "problem": "Q?", "problem_type": "multiple choice", "options": ["A. x", "B. y"],
        "solution": "<answer>A</answer>", "path": "mmvu/videos/Art/1.mp4"});
    write_json(&at.join("data/mmvu.jsonl"), &row);
    fs::remove_dir_all(at.join("data/mmvu")).expect("removed");
    refused(
        "--benchmark mmvu --out ./data --model tiny --data data/mmvu.jsonl --text-only",
        2,
        &["mmvu.jsonl", "--data"],
    );
    // A row that cannot be used and a truncated file are refused.
    let mut rows = holmes_rows();
    rows[7]["Answer"] = json!("D");
    write_json(&at.join(holmes), &json!(rows));
    let text = "--benchmark videoholmes --out o --model tiny --data data --text-only --max-new-tokens 2 --quiet";
    refused(
        text,
        1,
        &["test_Video-Holmes.json: row 8: Answer: `D` is not the letter of any of the 3 options", "--skip-bad-rows"],
    );
    run_in(at, ["eval"].into_iter().chain(text.split(' ')).chain(["--skip-bad-rows"])).ok();
    assert_eq!(read(&at.join("o/videoholmes.json"))["protocol"]["options"]["data_files"]["left_out"]["bad row"], 1);
    let whole = fs::read(at.join(holmes)).expect("data");
    fs::write(at.join(holmes), &whole[..whole.len() / 2]).expect("written");
    refused(text, 1, &["test_Video-Holmes.json", "is not JSON"]);
}

/// A suite prints the scores of a paper's benchmarks beside the published ones; prompts of a reference protocol, and
/// subtitles, are those of the harness.
#[test]
fn suites_reference_protocols_and_subtitles() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    for name in ["vsibench", "videommmu", "mmvu", "mvbench", "tempcompass", "videomme"] {
        let row = json!({"problem_id": 1, "problem": "Who?", "data_type": "video", "problem_type": "multiple choice",
            "options": ["A. he", "B. she"], "solution": "<answer>B</answer>", "path": "./v.mp4", "data_source": ""});
        write_json(&at.join(format!("data/eval_{name}.json")), &json!([row]));
    }
    let eval = |more: &[&str]| {
        let args = ["eval", "--model", "tiny", "--text-only", "--max-new-tokens", "2"];
        run_in(at, args.into_iter().chain(more.iter().copied()))
    };
    let suite = eval(&["--suite", "videorft", "--data", "data", "--out", "suite"]);
    assert_eq!(suite.code, Some(0), "{}", suite.stderr);
    for line in ["VideoRFT (arXiv 2505.12434)", "VideoRFT-7B    VideoRFT-3B", "59.8           45.4"] {
        assert!(suite.stdout.contains(line), "{line}: {}", suite.stdout);
    }
    let unknown = eval(&["--suite", "nosuch", "--data", "data", "--out", "x"]);
    assert!(
        unknown.code == Some(2) && unknown.stderr.contains("--suite: unknown suite `nosuch`"),
        "{}",
        unknown.stderr
    );

    let question = json!({"id": "v_0", "question": "Who?", "candidates": ["he", "she"], "correct_choice": 1,
        "duration_group": 15, "question_category": "S2E", "video_path": "v.mp4", "subtitle_path": "v_en.json"});
    write_json(&at.join("lvb/lvb_val.json"), &json!([question]));
    let long = ["--benchmark", "longvideobench", "--data", "lvb", "--protocol", "reference"];
    let without = eval(&[&long[..], &["--subtitles", "--out", "x"]].concat());
    assert!(without.code == Some(2) && without.stderr.contains("--subtitles: is given, but"), "{}", without.stderr);
    write_json(&at.join("lvb/subtitles/v_en.json"), &json!([{"timestamp": [0, 1], "text": "Hello there"}]));
    let with = eval(&[&long[..], &["--subtitles", "--out", "long"]].concat());
    assert_eq!(with.code, Some(0), "{}", with.stderr);
    let row = read(&at.join("long/longvideobench.jsonl"));
    let want = "This video's subtitles are listed below:\nHello there\nWho?\nA. he\nB. she\nAnswer with the option's letter \
        from the given choices directly.\n";
    assert_eq!(row["prompt"][0]["content"][0]["text"], want);
    let scores = read(&at.join("long/longvideobench.json"));
    assert_eq!(
        (&scores["extraction"], &scores["protocol"]["options"]["subtitles"]),
        (&json!("reference"), &json!(true))
    );
    // A merge finds the answers by the protocol of the run.
    assert_eq!(run_in(at, ["eval", "merge", "long"]).code, Some(0));
    assert_eq!(read(&at.join("long/longvideobench.json")), scores);
    let none = eval(&["--benchmark", "mmvu", "--data", "data", "--protocol", "reference", "--out", "x"]);
    assert!(none.code == Some(2) && none.stderr.contains("mmvu has no [reference]"), "{}", none.stderr);
}
