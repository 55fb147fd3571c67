//! `reel demo` with one or two training steps. All parts are tested except that the model learns something, because
//! that takes minutes of training.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{check_page, file_names_in, finished_run, reel, run_in};

/// Number of rows that teach tool calls, and how many of them are whole examples.
const TOOL_ROWS: (usize, usize) = (1020, 60);

/// Reads the lines of a JSON Lines file.
fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Checks the curated data set: it has all clips with colored shapes. The chains about grey shapes are rejected, two
/// for each reason. The simulated faults of the stand-in model cause three more requests, and no answer is lost.
fn check_curation(out: &Path) {
    let kept = lines(&out.join("curated/dataset.jsonl"));
    assert_eq!(kept.len(), 192);
    let [question, answer] = [0, 1].map(|turn| kept[0]["messages"][turn]["content"].clone());
    assert_eq!(question[0]["video"], "clips/sft-000-motion.mp4");
    assert_eq!(answer, "<think>It starts at the right and ends at the left.</think><answer>left</answer>");
    let mut reasons: Vec<String> = lines(&out.join("curated/rejected.jsonl"))
        .iter()
        .map(|row| row["reason"].as_str().expect("a reason").to_string())
        .collect();
    reasons.sort();
    let wanted = ["accuracy", "conclusion-changed", "early-answer", "mentions-description", "repetition", "too-short"];
    assert_eq!(reasons, wanted.map(|reason| [reason; 2]).concat());
    let summary: Value =
        serde_json::from_slice(&fs::read(out.join("curated/summary.json")).expect("a summary")).expect("JSON");
    let stages = summary["stages"].as_array().expect("stages");
    let counts = |field: &str| stages.iter().map(|stage| stage[field].as_u64().expect("a count")).collect::<Vec<_>>();
    assert_eq!((counts("ok"), counts("attempts")), (vec![204; 3], vec![206, 205, 204]));
    let page = fs::read_to_string(out.join("curated/report.html")).expect("a page");
    assert!(page.contains("stand-in-describer") && page.contains("grey shapes"));
}

/// Checks the third stage: it starts from the random model, all its rows can be used, and the same questions are asked
/// with and without the tool.
fn check_tool_stage(out: &Path, page: &str) {
    let rows = lines(&out.join("tool-rows/sft.jsonl"));
    let has_tools = |row: &&Value| row["tools"][0]["function"]["name"] == "crop_video";
    assert_eq!((rows.len(), rows.iter().filter(has_tools).count()), TOOL_ROWS);
    let run: Value = serde_json::from_slice(&fs::read(out.join("tools/run.json")).expect("options")).expect("JSON");
    assert!(run.to_string().contains("demo/model\""), "{run}");
    assert!(lines(&out.join("tools/skipped.jsonl")).is_empty());
    let [with, without] = ["tools", "tools-off"].map(|name| lines(&out.join("eval").join(name).join("held-out.jsonl")));
    let questions = |rows: &[Value]| {
        let texts = rows.iter().map(|row| row["problem"].as_str().expect("a question").to_string());
        texts.collect::<BTreeSet<String>>()
    };
    let wanted = [3, 5, 7, 9].map(|second| format!("What color is shown at {second} s?"));
    assert!(questions(&with) == wanted.into() && with.len() == 4, "{with:?}");
    assert_eq!(questions(&with), questions(&without));
    assert!(with.iter().all(|row| row["tool_calls"].is_array()) && without[0]["tool_calls"].is_null());
    assert!(page.contains("With crop_video") && page.contains("What color is shown at 3 s?"));
}

#[test]
fn demo_writes_its_folder_and_replaces_an_earlier_demo() {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = |more: &[&str]| run_in(dir.path(), support::with_options(&["demo"], more));
    let printed = demo(&["--steps", "2", "--held-out", "16", "--quiet"]);
    assert!(printed.ok().contains("after T-GRPO") && printed.stdout.contains("demo/report.html"), "{}", printed.stdout);
    assert!(printed.stderr.is_empty(), "{}", printed.stderr);
    let out = dir.path().join("demo");
    let made = "benchmarks clips curated eval grpo grpo.toml list.jsonl model report.html rl.jsonl sft sft.toml siglip tool-rows tools tools.toml training.html";
    assert_eq!(file_names_in(&out).join(" "), made);
    assert_eq!(file_names_in(&out.join("clips")).len(), 192 + 12 + 576 + 16 + 4);
    let rows = |name: &str| fs::read_to_string(out.join(name)).expect("rows");
    check_curation(&out);
    let rl = rows("rl.jsonl");
    assert!(rl.lines().count() == 576 && !rl.contains("<think>") && rl.contains("\"problem_type\":\"numerical\""));
    let page = fs::read_to_string(out.join("report.html")).expect("the page");
    check_page(&page);
    check_tool_stage(&out, &page);
    let training = fs::read_to_string(out.join("training.html")).expect("the page");
    assert!(check_page(&training).iter().any(|chart| chart["kind"] == "lines"));

    // The second training stage also sampled completions for shuffled frames. It also computed the semantic reward,
    // although that reward has weight 0.
    let metrics = fs::read_to_string(out.join("grpo/metrics.jsonl")).expect("metrics");
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().expect("a step")).expect("JSON");
    assert!(first["rewards/temporal"].is_number() && first["rewards/semantic"].is_number(), "{first}");
    let options = fs::read_to_string(out.join("grpo/run.json")).expect("options");
    assert!(options.contains("semantic=0"), "{options}");

    // The shell commands on the page repeat the demo with the same bits. The curation command sends no requests,
    // because the stand-in for large models has ended; it uses the recorded answers. The last command answers a
    // question about a clip.
    let files = [
        "curated/dataset.jsonl",
        "grpo/model.safetensors",
        "eval/model/demo-mvbench.jsonl",
        "eval/grpo/demo-vsibench.json",
        "tools/model.safetensors",
        "eval/tools/held-out.jsonl",
        "eval/tools-off/held-out.jsonl",
    ];
    let bytes = || files.map(|file| fs::read(out.join(file)).expect(file));
    let before = bytes();
    let (_, shown) = page.split_once("<pre class=\"commands\">").expect("commands");
    let (shown, _) = shown.split_once("</pre>").expect("their end");
    let shown = shown.replace("&#39;", "'").replace("&quot;", "\"");
    let names: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("reel ")?.split(' ').next()).collect();
    let wanted = "init init curate eval sft eval grpo eval sft eval eval report report generate";
    assert_eq!(names.join(" "), wanted, "{shown}");
    files.iter().for_each(|file| fs::remove_file(out.join(file)).expect(file));
    for command in shown.replace("\\\n", "").lines() {
        // A model that has learned nothing gives long answers, so this answer is limited to 4 tokens.
        let more = if command.starts_with("reel generate ") { " --max-new-tokens 4" } else { "" };
        let reel = reel();
        let folder = Path::new(reel.get_program()).parent().expect("a folder");
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{command}{more}")]).current_dir(dir.path()).env("PATH", path);
        shell.envs(reel.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finished_run(shell.output().expect("a shell")).ok();
    }
    let after = bytes();
    for (i, file) in files.iter().enumerate() {
        assert!(before[i] == after[i], "the commands of the page write a different {file}");
    }
    let video = out.join("clips").join("held-out-001-colors.mp4").display().to_string();
    let ask =
        ["generate", "--model", "demo/grpo", "--video", &video, "--prompt", "Which colors?", "--max-new-tokens", "4"];
    let answer = run_in(dir.path(), [&ask[..], &["--json"]].concat());
    assert_eq!(answer.json()["token_ids"].as_array().map(Vec::len), Some(4));
    // The model folder records the frame and pixel settings of its training.
    let settings = "--profile qwen --nframes 8 --min-pixels 3136 --max-pixels 3136";
    assert!(answer.stderr.contains(settings), "{}", answer.stderr);

    // With several seeds, each has its own folder (`seed-5`); an earlier demo in that folder is replaced. Without the
    // temporal reward the second training stage is plain GRPO.
    let seeds = dir.path().join("seeds");
    fs::create_dir(&seeds).expect("made");
    fs::rename(&out, seeds.join("seed-5")).expect("moved");
    let more =
        ["--out", "seeds", "--steps", "1", "--held-out", "8", "--seeds", "2", "--seed", "5", "--no-temporal", "--json"];
    let result = demo(&more).json();
    for seed in result["seeds"].as_array().expect("seeds") {
        let answered = |task: &str| seed["right"][task]["n"].clone();
        assert_eq!((answered("all"), answered("motion")), (8.into(), 4.into()));
        assert_eq!(answered("motion, frames shuffled"), 2);
        assert_eq!(seed["right"]["all"]["before"], 0);
        assert_eq!(seed["tools"], json!({"n": 2, "with": 0, "without": 0}));
    }
    assert_eq!((&result["seeds"][0]["seed"], &result["seeds"][1]["seed"]), (&5.into(), &6.into()));
    assert_eq!(file_names_in(&seeds), ["report.html", "seed-5", "seed-6"]);
    let page = fs::read_to_string(seeds.join("report.html")).expect("the page");
    assert!(page.contains("seed-5/report.html") && page.contains("seed-6/report.html"));
    // Without the temporal reward the second stage is called GRPO, not T-GRPO.
    assert_eq!(result["seeds"][0]["temporal"], false);
    assert!(page.contains("After GRPO") && !page.contains("T-GRPO"), "{page}");
    let metrics = fs::read_to_string(seeds.join("seed-5/grpo/metrics.jsonl")).expect("metrics");
    assert!(metrics.contains("rewards/accuracy") && !metrics.contains("rewards/temporal"), "{metrics}");
    let weights = |seed: &str| fs::read(seeds.join(seed).join("grpo/model.safetensors")).expect("weights");
    assert!(weights("seed-5") != weights("seed-6"));
    demo(&["--seeds", "0"]).assert_refused(2, &["--seeds"]);
    demo(&["--held-out", "3"]).assert_refused(2, &["--held-out"]);

    fs::create_dir(dir.path().join("mine")).expect("made");
    fs::write(dir.path().join("mine/thesis.txt"), "years of work").expect("written");
    demo(&["--out", "mine"]).assert_refused(1, &["mine", "--out"]);
    assert_eq!(file_names_in(&dir.path().join("mine")), ["thesis.txt"]);
    // A folder with sub-folders of the same names is not treated as a demo's folder.
    for part in ["clips", "model"] {
        fs::create_dir_all(dir.path().join("work").join(part)).expect("made");
    }
    fs::write(dir.path().join("work/model/weights"), "days of training").expect("written");
    demo(&["--out", "work"]).assert_refused(1, &["work", "--out"]);
    assert_eq!(file_names_in(&dir.path().join("work/model")), ["weights"]);
}
