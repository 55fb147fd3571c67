//! `reel curate` against an endpoint that fails in every possible way. Each row is accounted for, no answer is
//! requested twice, the cost limit holds, and training reads the data set. If there is a browser
//! (`support/page_checks.rs`), the HTML page is tested, too.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/chat_endpoint.rs"]
mod chat_endpoint;
#[path = "support/page_checks.rs"]
mod page_checks;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chat_endpoint::{ANSWER_TOKENS, ChatEndpoint, EndpointReply, PROMPT_TOKENS};
use serde_json::{Value, json};
use support::{FinishedRun, golden, reel, run, tiny_model};
use tempfile::TempDir;

/// Number of different rows in the list. The image of row i is grey with pixel value i * GREY.
const ROWS: usize = 20;
const GREY: usize = 12;

/// Creates a folder with a list of `rows` multiple-choice rows about images.
fn list(rows: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    let lines: String = (0..rows).map(|i| format!("{}\n", row(i))).collect();
    fs::write(folder.path().join("list.jsonl"), lines).unwrap();
    for i in 0..rows {
        let pixels = vec![(i * GREY) as u8; 16 * 16 * 3];
        let png = reel_input::media::strip::thumbnail(&pixels, (16, 16), 16).unwrap();
        fs::write(folder.path().join(format!("{i}.png")), png.bytes).unwrap();
    }
    folder
}

fn row(i: usize) -> Value {
    json!({"problem_id": i, "problem": format!("Q{i}: Which is it?"), "data_type": "image", "problem_type": "multiple choice",
        "options": ["A. this", "B. that"], "solution": "<answer>A</answer>", "path": format!("./{i}.png"),
        "data_source": if i.is_multiple_of(2) { "even" } else { "odd" }})
}

/// Returns the curation stage and the row that a request is about.
fn asked(body: &Value) -> (&'static str, usize) {
    let system = body["messages"][0]["content"].as_str().unwrap();
    let content = &body["messages"][1]["content"];
    let text = content.as_str().or_else(|| content.as_array()?.last()?["text"].as_str()).unwrap();
    if system.starts_with("You describe") {
        let url = content[0]["image_url"]["url"].as_str().unwrap();
        let level = usize::from(
            reel_input::media::image::from_data_uri(url, reel_input::media::image::ExifOrientation::Apply)
                .unwrap()
                .data[0],
        );
        return ("caption", (level + GREY / 2) / GREY);
    }
    let after = text.split("Question: Q").nth(1).unwrap();
    let stage = if system.starts_with("You think") { "reason" } else { "revise" };
    assert_eq!(stage == "revise", content.is_array(), "the reasoning model sees no image");
    (stage, after.split(':').next().unwrap().parse().unwrap())
}

fn description(i: usize) -> String {
    let elements = json!({"objects": [format!("thing {i}")], "actions": [], "scene": "", "spatial_relations": [],
        "potential_interactions": []});
    let frame = json!({"timestamp": 0, "caption": "grey", "key_elements": elements});
    json!({"video_caption": format!("A grey image {i}."), "frames": [frame]}).to_string()
}

/// Returns a chain of thought with an answer; the words of the chain depend on `i`.
fn chain(i: usize, answer: &str) -> String {
    let words: Vec<String> = (0..30).map(|w| format!("w{}", i * 1000 + w)).collect();
    format!(
        "<think>First I look around and see {}. So it must be this.</think><answer>{answer}</answer>",
        words.join(" ")
    )
}

/// Returns the answer of the endpoint without faults for a stage and row. The filters reject some of these answers.
fn good((stage, i): (&str, usize)) -> String {
    match (stage, i) {
        ("caption", _) => description(i),
        (_, 5) => chain(i, "B"),
        ("revise", 6) => chain(i, "B"),
        (_, 7) => "<think>Too short.</think><answer>A</answer>".into(),
        (_, 8) => chain(i, "A").replace("look around", "read the description"),
        // For row 9, the endpoint returns the chain of row 10, a duplicate.
        (_, 9) => chain(10, "A"),
        _ => chain(i, "A"),
    }
}

/// Number of different faults of the endpoint.
const FAULTS: usize = 11;

fn fault(number: usize, good: String) -> EndpointReply {
    match number % FAULTS {
        0 => EndpointReply::Status(429, "retry-after: 0.05\r\n", "{\"error\": {\"message\": \"slow down\"}}"),
        1 => EndpointReply::Status(500, "", "{\"error\": {\"message\": \"scripted\"}}"),
        2 => EndpointReply::Late(Duration::from_millis(1200), good),
        3 => EndpointReply::Cut(good),
        4 => EndpointReply::Body("{\"choices\": [{\"message\": {\"cont".into()),
        5 => EndpointReply::Text("{\"video_caption\": 3, \"think\": true}".into()),
        6 => EndpointReply::Text(String::new()),
        7 => EndpointReply::Text(format!("<think>{}</think><answer>A</answer>", "long ".repeat(20_000))),
        8 => EndpointReply::Reset,
        9 => EndpointReply::Text(good[..good.len() / 2].into()),
        _ => EndpointReply::Text(format!("{good}{good}").replace("</answer>", "")),
    }
}

struct Curation<'a> {
    folder: &'a Path,
    url: &'a str,
}

impl Curation<'_> {
    fn command(&self, args: &[&str]) -> std::process::Command {
        let (list, out) = (self.folder.join("list.jsonl"), self.folder.join("out"));
        let mut command = reel();
        command.arg("curate").arg("--videos").arg(list).arg("--out").arg(out);
        for stage in ["--caption", "--reason", "--revise"] {
            command.args([stage, self.url]);
        }
        let fixed = ["--first-wait", "0.001", "--timeout", "0.7", "--max-attempts", "3"];
        command.args(support::with_options(&fixed, args));
        command
    }

    fn run(&self, args: &[&str]) -> FinishedRun {
        support::finished_run(self.command(args).output().unwrap())
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join("out").join(name)).unwrap()
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        self.file(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the numbers of kept, rejected and failed rows of the last run. Checks that each row of the list is in
    /// exactly one of the three files.
    #[track_caller]
    fn counts(&self) -> [usize; 3] {
        let summary: Value = serde_json::from_str(&self.file("summary.json")).unwrap();
        let number = |name: &str| summary[name].as_u64().unwrap() as usize;
        let counts = ["kept", "rejected", "failed"].map(number);
        let list = fs::read_to_string(self.folder.join("list.jsonl")).unwrap().lines().count();
        assert_eq!((counts.iter().sum::<usize>(), number("rows")), (list, list), "{summary}");
        let files = ["dataset.jsonl", "rejected.jsonl", "failed.jsonl"].map(|name| self.lines(name).len());
        assert_eq!(files, counts);
        counts
    }

    /// Returns the stage and row of each accepted answer in the answer tables.
    fn accepted(&self) -> BTreeSet<(&'static str, usize)> {
        let mut accepted = BTreeSet::new();
        for stage in ["caption", "reason", "revise"] {
            let text = fs::read_to_string(self.folder.join(format!("out/{stage}.jsonl"))).unwrap_or_default();
            // The last line of a killed process may be incomplete.
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let record: Value = serde_json::from_str(line).unwrap();
                if record["status"] == "ok" {
                    let (_, line) = record["location"].as_str().unwrap().rsplit_once(':').unwrap();
                    assert!(accepted.insert((stage, line.parse::<usize>().unwrap() - 1)), "accepted twice: {record}");
                }
            }
        }
        accepted
    }
}

#[test]
fn each_row_is_accounted_for_and_only_failed_rows_are_asked_again() {
    let folder = list(ROWS);
    let path = folder.path();
    // Row 20 is a duplicate of row 3; the image of row 21 is missing.
    let missing = json!({"problem": "Q21: ?", "data_type": "image", "problem_type": "numerical", "solution": "<answer>1</answer>",
        "path": "none.png"});
    let more = format!("{}\n{missing}\n", row(3));
    fs::write(path.join("list.jsonl"), fs::read_to_string(path.join("list.jsonl")).unwrap() + &more).unwrap();
    let is_repaired = Arc::new(AtomicBool::new(false));
    let repaired = is_repaired.clone();
    let endpoint = ChatEndpoint::start(move |body, before| {
        let (stage, i) = asked(body);
        // Rows 0, 1 and 2 fail in one stage each, at every attempt.
        let fails = !repaired.load(Ordering::SeqCst) && ["caption", "reason", "revise"].get(i) == Some(&stage);
        let number = i + 4 * stage.len();
        match before {
            _ if fails => fault(5 + i, good((stage, i))),
            0 => fault(number, good((stage, i))),
            _ => EndpointReply::Text(good((stage, i))),
        }
    });
    let curation = Curation { folder: path, url: &endpoint.url };
    curation.run(&[]).assert_refused(1, &["list.jsonl:22: path: ", "none.png", "--skip-bad-rows"]);
    assert_eq!(endpoint.request_count(), 0);
    let first = curation.run(&["--skip-bad-rows", "--json"]);
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    assert!(first.stderr.contains("failed.jsonl: 3 of 22 rows have no accepted answer; "), "{}", first.stderr);
    assert_eq!(curation.counts(), [12, 7, 3]);
    let summary: Value = serde_json::from_str(&first.stdout).unwrap();
    let reasons = json!({"unusable-row": 1, "duplicate-row": 1, "conclusion-changed": 1, "accuracy": 1, "too-short": 1,
        "mentions-description": 1, "duplicate-chain": 1});
    assert_eq!(summary["reasons"], reasons);
    // The faults are numbered consecutively over the rows of a stage, so each kind of fault occurred in each stage.
    let failed: Vec<Value> = curation.lines("failed.jsonl");
    let stages: Vec<&str> = failed.iter().map(|row| row["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["caption", "reason", "revise"]);

    curation.run(&["--skip-bad-rows"]).assert_refused(1, &["has a curation; ", "--resume"]);
    is_repaired.store(true, Ordering::SeqCst);
    let before = endpoint.request_count();
    let second = curation.run(&["--skip-bad-rows", "--resume", "--quiet"]);
    second.ok();
    assert_eq!(curation.counts(), [15, 7, 0]);
    let again: BTreeSet<(&str, usize)> = endpoint.received_requests()[before..].iter().map(asked).collect();
    let wanted = [("caption", 0), ("reason", 0), ("revise", 0), ("reason", 1), ("revise", 1), ("revise", 2)];
    assert_eq!(again, BTreeSet::from(wanted));
    let before = endpoint.request_count();
    curation.run(&["--skip-bad-rows", "--resume", "--quiet"]).ok();
    assert_eq!((endpoint.request_count(), curation.counts()), (before, [15, 7, 0]));

    // Answers to a changed prompt are not mixed with answers to the earlier prompt, unless --accept-changes is given.
    let changed = ["--skip-bad-rows", "--resume", "--max-tokens", "reason=9"];
    fs::write(path.join("list.jsonl"), fs::read_to_string(path.join("list.jsonl")).unwrap() + &row(21).to_string())
        .unwrap();
    fs::copy(path.join("0.png"), path.join("21.png")).unwrap();
    curation.run(&changed).assert_refused(1, &["reason.jsonl: was made with the prompt reason-1-", "--redo reason"]);
    curation.run(&[&changed[..], &["--accept-changes", "--quiet"]].concat()).ok();
    assert_eq!(curation.counts(), [16, 7, 0]);
    let prompts: BTreeSet<String> = curation.lines("reason.jsonl").iter().map(|r| r["prompt"].to_string()).collect();
    assert_eq!(prompts.len(), 2);

    let status = run([Path::new("curate"), Path::new("status"), &path.join("out"), Path::new("--json")]).json();
    assert_eq!((&status["summary"]["kept"], &status["stages"][0]["ok"]), (&json!(16), &json!(20)), "{status}");
    let page = curation.file("report.html");
    support::check_page(&page);
    for part in ["Funnel", "duplicate-chain", "even", "Samples of kept rows"] {
        assert!(page.contains(part), "{part}");
    }
    for table in ["caption", "reason", "revise", "filter"] {
        let parquet = path.join(format!("out/{table}.parquet"));
        let rows = reel_input::rows::Table::open(&parquet).unwrap();
        assert!(rows.value(0).unwrap()["key"].is_string(), "{table}");
    }
    training_reads(&path.join("out/dataset.jsonl"), path);
}

/// Checks that SFT trains a step on the data set, and that GRPO can use all of its rows.
fn training_reads(dataset: &Path, folder: &Path) {
    let model = tiny_model(folder);
    let text = |path: &Path| path.display().to_string();
    let (data, model) = (text(dataset), text(&model));
    let out = text(&folder.join("trained"));
    run([
        "sft",
        "--model",
        &model,
        "--data",
        &data,
        "--out",
        &out,
        "--max-steps",
        "1",
        "--device",
        "cpu",
        "--strict",
        "--quiet",
    ])
    .ok();
    assert_eq!(support::read_metrics(&folder.join("trained")).len(), 1);
    let out = text(&folder.join("checked"));
    run([
        "grpo",
        "--model",
        &model,
        "--data",
        &data,
        "--out",
        &out,
        "--check-data",
        "--strict",
        "--device",
        "cpu",
        "--quiet",
    ])
    .ok();
}

#[test]
fn status_leaves_out_answers_about_other_lists() {
    let folder = list(4);
    let endpoint = ChatEndpoint::start(|body, _| EndpointReply::Text(good(asked(body))));
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    curation.run(&["--quiet"]).ok();
    curation.run(&["--quiet", "--resume", "--limit", "2"]).ok();
    let out = folder.path().join("out").display().to_string();
    let status = run(["curate", "status", &out, "--json"]).json();
    for stage in status["stages"].as_array().expect("stages") {
        let count = |name: &str| stage[name].as_u64().expect("a count");
        assert_eq!((count("keys"), count("ok"), count("open")), (2, 2, 0), "{stage}");
    }
}

#[test]
fn kills_lose_no_finished_answer() {
    let folder = list(ROWS);
    let endpoint = ChatEndpoint::start(|body, _| EndpointReply::Late(Duration::from_millis(15), good(asked(body))));
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut kills = 0;
    for _ in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = endpoint.request_count();
        let known = curation.accepted();
        let args: &[&str] = if folder.path().join("out/curation.json").exists() { &["--resume"] } else { &[] };
        let mut command = curation.command(args);
        let mut child =
            command.args(["--concurrency", "2"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Some runs are killed before their first request, others after some answers.
        let until = Instant::now() + Duration::from_millis(20 + (random >> 33) % 160);
        while Instant::now() < until && endpoint.request_count() < before + 1 + (random >> 40) as usize % 6 {
            std::thread::sleep(Duration::from_millis(2));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let again: BTreeSet<_> =
            endpoint.received_requests()[before..].iter().map(asked).filter(|key| known.contains(key)).collect();
        assert!(again.is_empty(), "asked twice: {again:?}");
        assert!(curation.accepted().is_superset(&known));
    }
    assert_eq!(kills, 20);
    let known = curation.accepted();
    let before = endpoint.request_count();
    curation.run(&["--resume", "--quiet"]).ok();
    assert_eq!(curation.counts(), [15, 5, 0]);
    let seen: Vec<_> = endpoint.received_requests()[before..].iter().map(asked).collect();
    let rest: BTreeSet<_> = seen.iter().copied().collect();
    assert!(rest.is_disjoint(&known) && rest.len() == seen.len() && rest.len() + known.len() == 3 * ROWS, "{rest:?}");
}

/// A run that is killed while it writes its first files leaves a folder that the next run accepts.
#[test]
fn folder_of_a_run_killed_before_its_settings_is_accepted() {
    let folder = list(1);
    let endpoint = ChatEndpoint::start(|body, _| EndpointReply::Text(good(asked(body))));
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    curation.run(&["--quiet"]).ok();
    let out = folder.path().join("out");
    let first_files = ["media-hashes.jsonl", "list-keys.json"].map(|name| (name, curation.file(name)));
    for (args, unfinished) in
        [(&["--quiet"][..], ".media-hashes.jsonl.7.part"), (&["--quiet", "--resume"], ".curation.json.7.part")]
    {
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::create_dir(&out).unwrap();
        first_files.iter().for_each(|(name, text)| std::fs::write(out.join(name), text).unwrap());
        std::fs::write(out.join(unfinished), "{").unwrap();
        curation.run(args).ok();
        assert_eq!(curation.file("list-keys.json"), first_files[1].1);
    }
    std::fs::remove_file(out.join("curation.json")).unwrap();
    std::fs::write(out.join("list-keys.json.bak"), "").unwrap();
    curation.run(&[]).assert_refused(1, &["has files that do not belong to a curation"]);
}

#[test]
fn cap_on_cost_is_never_exceeded() {
    let folder = list(ROWS);
    // For every third row, the first answer is empty. An empty answer is rejected but still costs money.
    let endpoint = ChatEndpoint::start(|body, before| {
        let key = asked(body);
        if before == 0 && key.1.is_multiple_of(3) {
            EndpointReply::Text(String::new())
        } else {
            EndpointReply::Text(good(key))
        }
    });
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    // A token of a prompt costs 1e-4 dollars, and a token of an answer 1e-3 dollars.
    let cost_of_one = PROMPT_TOKENS as f64 * 1e-4 + ANSWER_TOKENS as f64 * 1e-3;
    let price = ["--price", "100,1000", "--max-tokens", "200"];
    let capped = |cap: &'static str| [&price[..], &["--max-cost", cap]].concat();
    let plan = curation.run(&[&price[..], &["--dry-run", "--json"]].concat()).json();
    assert_eq!(plan["stages"][2]["requests"], ROWS);
    let most: f64 = plan["stages"].as_array().unwrap().iter().map(|stage| stage["max_cost"].as_f64().unwrap()).sum();
    assert!(most > 3.0 * ROWS as f64 * cost_of_one && endpoint.request_count() == 0, "{plan}");
    for (args, cap) in [(vec![], 1.5), (vec!["--resume"], 1.5), (vec!["--resume"], 2.5)] {
        let args = [capped(if cap == 1.5 { "1.5" } else { "2.5" }), args].concat();
        let done = curation.run(&args);
        assert_eq!(done.code, Some(1));
        assert!(done.stderr.contains("error: --max-cost: $"), "{}", done.stderr);
        let spent = endpoint.request_count() as f64 * cost_of_one;
        let summary: Value = serde_json::from_str(&curation.file("summary.json")).unwrap();
        let recorded = summary["cost"].as_f64().unwrap();
        assert!(spent <= cap && recorded <= cap && (recorded - spent).abs() < 1e-9, "{spent} {recorded} {cap}");
        // The run does not stop too early: it spends until the next request could exceed the cap.
        assert!(spent > cap - 0.9, "{spent} of {cap}");
        assert!(curation.counts()[2] > 0);
    }
    curation.run(&[&capped("1000")[..], &["--resume", "--quiet"]].concat()).ok();
    assert_eq!(curation.counts(), [15, 5, 0]);
    let e = curation.run(&["--max-cost", "1", "--resume"]);
    e.assert_refused(2, &["--max-cost: needs the price", "--price caption=IN,OUT"]);
}

#[test]
fn a_wait_that_the_server_asks_for_is_printed() {
    for quiet in [&[][..], &["--quiet"]] {
        let folder = list(1);
        let asks_to_wait = AtomicBool::new(true);
        let endpoint = ChatEndpoint::start(move |body, _| match asks_to_wait.swap(false, Ordering::SeqCst) {
            true => EndpointReply::Status(429, "retry-after: 2\r\n", ""),
            false => EndpointReply::Text(good(asked(body))),
        });
        let run = Curation { folder: folder.path(), url: &endpoint.url }.run(quiet);
        run.ok();
        let line = format!("{}: asks to wait 2 s (Retry-After)\n", endpoint.url);
        assert_eq!(run.stderr.matches(&line).count(), usize::from(quiet.is_empty()), "{}", run.stderr);
    }
}

#[test]
fn bad_input_is_named_in_one_line_before_money_is_spent() {
    let folder = list(3);
    let endpoint = ChatEndpoint::start(|body, _| EndpointReply::Text(good(asked(body))));
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    let down = Curation { folder: folder.path(), url: "http://127.0.0.1:1/v1" };
    down.run(&[]).assert_refused(1, &["--caption: http://127.0.0.1:1/v1: cannot be reached"]);
    assert!(!folder.path().join("out").exists(), "nothing is left");
    curation.run(&["--recipe", "video-r1"]).assert_refused(2, &["--caption: has no effect with this --recipe"]);
    curation.run(&["--api-key-env", "REEL_NO_SUCH_KEY"]).assert_refused(2, &["REEL_NO_SUCH_KEY", "not set"]);
    curation.run(&["--temperature", "revise=3"]).assert_refused(2, &["--temperature: is 3"]);
    // A row about an open question needs SigLIP.
    let list = folder.path().join("list.jsonl");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, text.replace("multiple choice", "free-form")).unwrap();
    curation.run(&[]).assert_refused(2, &["--siglip: is missing", "--no-similarity"]);
    fs::write(&list, "{\"problem\": \"Q0: ?\", \"data_type\": \"audio\"}\n").unwrap();
    curation.run(&[]).assert_refused(1, &["list.jsonl:1: data_type: is `audio`"]);
    fs::write(&list, "{\"problem\": \n").unwrap();
    curation.run(&[]).assert_refused(1, &["list.jsonl:1: is not JSON"]);
    assert_eq!(endpoint.request_count(), 0);
    fs::write(&list, &text).unwrap();
    let parquet = folder.path().join("list.parquet");
    run([Path::new("data"), Path::new("convert"), &list, &parquet]).ok();
    let bytes = fs::read(&parquet).unwrap();
    fs::write(&list, &bytes[..bytes.len() / 2]).unwrap();
    curation.run(&[]).assert_refused(1, &["list.jsonl", "Parquet"]);
    // The same Parquet file, not cut short, is accepted as a list.
    fs::write(&list, &bytes).unwrap();
    curation.run(&["--quiet"]).ok();
    // The error about a changed table names its line and field.
    let table = folder.path().join("out/reason.jsonl");
    let lines = fs::read_to_string(&table).unwrap().replacen("\"model\"", "\"modell\"", 1);
    fs::write(&table, lines).unwrap();
    curation
        .run(&["--resume"])
        .assert_refused(1, &["reason.jsonl:1: is not a record of this stage: unknown field `modell`"]);
    curation.run(&["--resume", "--redo", "reason", "--quiet"]).ok();
    fs::write(folder.path().join("list.jsonl"), text).unwrap();
    let other = Curation { folder: folder.path(), url: &endpoint.url };
    other.run(&["--resume", "--recipe", "video-r1"]).assert_refused(2, &["--recipe"]);
}

#[test]
fn chat_layout_has_the_question_as_it_is_and_copies_can_be_kept() {
    let folder = list(11);
    let endpoint = ChatEndpoint::start(|body, _| EndpointReply::Text(good(asked(body))));
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    curation.run(&["--layout", "chat", "--keep-paths", "--quiet"]).ok();
    assert_eq!(curation.counts(), [6, 5, 0]);
    // Rows 9 and 10 have the same chain; with --max-overlap 1 both are kept.
    curation.run(&["--layout", "chat", "--keep-paths", "--max-overlap", "1", "--resume", "--quiet"]).ok();
    assert_eq!(curation.counts(), [7, 4, 0]);
    let row = curation.lines("dataset.jsonl").remove(6);
    let asked = json!([{"type": "image", "image": "./10.png"}, {"type": "text", "text": "Q10: Which is it?\nA. this\nB. that"}]);
    assert_eq!(
        row["messages"],
        json!([{"role": "user", "content": asked}, {"role": "assistant", "content": chain(10, "A")}])
    );
    assert_eq!((&row["problem_id"], &row["solution"]), (&json!(10), &json!("<answer>A</answer>")));
    let (model, data) = (tiny_model(folder.path()), folder.path().join("out/dataset.jsonl"));
    let mut sft = reel();
    sft.arg("sft").arg("--model").arg(model).arg("--data").arg(data).arg("--media-root").arg(folder.path());
    sft.arg("--out").arg(folder.path().join("checked")).args([
        "--check-data",
        "--strict",
        "--device",
        "cpu",
        "--quiet",
    ]);
    support::finished_run(sft.output().unwrap()).ok();
}

/// Checks the page of a curation at two widths, with chains that contain HTML and a very long word.
#[test]
fn page_is_read_in_the_browser() {
    let Some(mut page) = page_checks::start_browser("page_is_read_in_the_browser") else { return };
    let folder = list(ROWS);
    let endpoint = ChatEndpoint::start(|body, _| {
        let hostile = "<img src=x onerror='window.hacked=1'>".to_string() + &"m".repeat(400);
        EndpointReply::Text(good(asked(body)).replace("So it must be this.", &format!("So it must be this {hostile}.")))
    });
    let curation = Curation { folder: folder.path(), url: &endpoint.url };
    curation.run(&["--quiet"]).ok();
    page_checks::open_page(&mut page, &folder.path().join("out/report.html"), "");
    for (width, height) in [(1280, 900), (390, 844)] {
        for scheme in ["light", "dark"] {
            page.set_preferred_color_scheme(scheme);
            page.eval("scrollTo(0, 0)");
            page_checks::check_width(&mut page, width, height);
            page_checks::save_screenshot(&mut page, &format!("curation-{scheme}-{width}"));
        }
    }
    page_checks::check_layout(&mut page);
    page.resize(1280, 900);
    // The page has charts of the funnel, the rejection reasons and the lengths; each bar is as wide as its share of
    // the rows.
    assert_eq!(page.count_elements(".bars"), 3);
    let bars = "(chart) => [...document.querySelectorAll('.bars')[chart].querySelectorAll('i')]
        .map((bar) => bar.getBoundingClientRect()).map((bar) => bar.height < 8 ? 0 : bar.width)";
    let widths = |page: &mut browser::Browser, chart: usize| -> Vec<f64> {
        let widths = page.eval(&format!("({bars})({chart})"));
        widths.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
    };
    let funnel = widths(&mut page, 0);
    assert_eq!(funnel.len(), 6, "list, usable, caption, reason, revise, filters");
    assert!((funnel[5] / funnel[0] - 15.0 / 20.0).abs() < 0.01 && funnel[0] > 300.0, "{funnel:?}");
    assert_eq!(page.visible_text(".bars span:nth-child(18)"), "15");
    let lengths = widths(&mut page, 2);
    assert!(lengths.iter().any(|&width| width > 300.0), "{lengths:?}");
    assert!(page.visible_text("details summary").contains("Q0: Which is it?"));
    // Samples are collapsed and open on a click. HTML in a model's text is shown as text.
    assert_eq!(page.count_elements("details"), 15);
    assert_eq!(page.eval("document.querySelector('details p').checkVisibility()"), false);
    page.click("details summary");
    let opened = page.visible_text("details p:nth-of-type(2)");
    assert!(opened.contains("<img src=x") && page.eval("window.hacked === undefined") == true, "{opened}");
    page.eval("document.querySelectorAll('details').forEach((e) => { e.open = true; })");
    for width in [1280, 390] {
        page_checks::check_width(&mut page, width, 900);
    }
    page_checks::check_errors(&mut page);
}

/// The recipe of Video-R1: one model answers, and SigLIP compares chains for open questions with the image.
#[test]
fn video_r1_asks_one_model() {
    let folder = list(4);
    let list = folder.path().join("list.jsonl");
    let text = fs::read_to_string(&list).unwrap().replace("multiple choice", "free-form");
    fs::write(&list, text.replace("<answer>A</answer>", "<answer>this one</answer>")).unwrap();
    let endpoint = ChatEndpoint::start(|body, _| {
        let text = body["messages"][0]["content"][1]["text"].as_str().unwrap();
        let i: usize = text.trim_start_matches('Q').split(':').next().unwrap().parse().unwrap();
        assert!((body["temperature"] == 1.0) && (body["top_p"] == 0.95) && (body["max_tokens"] == 512), "{body}");
        EndpointReply::Text(chain(i, if i == 0 { "no idea" } else { "this one" }))
    });
    let siglip = golden("siglip/model").display().to_string();
    let curate = |args: &[&str]| {
        let mut command = reel();
        command.arg("curate").arg("--videos").arg(&list).args(["--recipe", "video-r1", "--device", "cpu", "--json"]);
        command.args(["--siglip", &siglip]).args(args);
        support::finished_run(command.output().unwrap())
    };
    let out = folder.path().join("out").display().to_string();
    let summary = curate(&["--model", &endpoint.url, "--min-similarity", "0", "--out", &out]).json();
    assert_eq!((&summary["kept"], &summary["reasons"]), (&json!(3), &json!({"accuracy": 1})), "{summary}");
    // The filters are applied again with other thresholds; no model gets a request.
    let args = ["--model", &endpoint.url, "--min-similarity", "1", "--out", &out, "--resume"];
    let summary = curate(&args).json();
    assert_eq!((&summary["reasons"]["similarity"], endpoint.request_count()), (&json!(3), 4), "{summary}");
    let filter = fs::read_to_string(folder.path().join("out/filter.jsonl")).unwrap();
    assert_eq!(filter.matches("\"similarity\":0.").count(), 3, "{filter}");
    // If --model is a local folder, this process serves the model. With random weights it gives no chain, or an empty
    // answer.
    let model = tiny_model(folder.path()).display().to_string();
    let local = folder.path().join("local").display().to_string();
    let args = ["--model", &model, "--max-attempts", "1", "--max-tokens", "8", "--out", &local];
    let failed = curate(&args);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let reasons = fs::read_to_string(folder.path().join("local/failed.jsonl")).unwrap();
    assert_eq!(reasons.matches("gave an answer that ").count(), 4, "{reasons}");
}
