//! `reel eval --tools`: a model that calls `crop_video` and a user's tool inside its answers. Answers are those of
//! training and depend on no slots, processes or kills; what cannot be done with tools is refused by name.

mod support;
#[path = "support/tool_model.rs"]
mod tool_model;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{reel, run_in};
use tool_model::{LISTED, MEDIA, QUESTION, folder};

/// A benchmark whose prompts are those of the training rows.
const TASK: &str = r#"
name = "colors"
title = "Colors"
version = 1
source = "https://example.org"
[prompt]
template = "{question}"
[[layout]]
name = "own"
files = ["*.jsonl"]
columns = ["q", "a", "v"]
row = { id = "{row.number}", question = "{q}", kind = "free-form", answer = "{a}", answer-form = "plain", video = ["{v}"] }
"#;

/// Writes a benchmark of `rows` questions about one clip into the folder `NAME` of the folder with the model.
fn benchmark(name: &str, rows: usize) {
    let at = folder().join(name);
    fs::create_dir_all(&at).expect("a folder");
    fs::copy(folder().join("clip.mp4"), at.join("clip.mp4")).expect("copied");
    fs::write(at.join("colors.toml"), TASK).expect("written");
    let row = json!({"q": QUESTION, "a": "red", "v": "clip.mp4"});
    fs::write(at.join("rows.jsonl"), format!("{row}\n").repeat(rows)).expect("written");
}

fn eval(data: &str, out: &str, more: &[&str]) -> Vec<String> {
    let (task, out) = (format!("{data}/colors.toml"), format!("{data}/{out}"));
    let fixed = ["eval", "--model", "warm", "--benchmark", &task, "--data", data, "--out", &out, "--quiet"];
    let rest = "--tools crop_video --nframes 2 --max-new-tokens 160 --temperature 0.7 --top-p 1";
    let fixed: Vec<&str> = fixed.into_iter().chain(rest.split_whitespace()).chain(MEDIA).collect();
    support::with_options(&fixed, more).into_iter().map(String::from).collect()
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn answers_with_tools_depend_on_no_slots_and_processes() {
    let at = folder();
    benchmark("slots", 12);
    run_in(at, eval("slots", "one", &["--batch-size", "1"])).ok();
    let one = fs::read(at.join("slots/one/colors.jsonl")).expect("answers");
    for (out, more) in [
        ("many", &["--batch-size", "12"][..]),
        ("three", &["--batch-size", "3", "--threads", "3"]),
        ("processes", &["--gpus", "2", "--device", "cpu"]),
    ] {
        run_in(at, eval("slots", out, more)).ok();
        assert!(fs::read(at.join("slots").join(out).join("colors.jsonl")).expect("answers") == one, "{out}");
    }
    let rows = lines(&at.join("slots/one/colors.jsonl"));
    let calls = rows.iter().flat_map(|row| row["tool_calls"].as_array().expect("a list"));
    let good = calls.filter(|call| call["is_error"] == false && call["frames"].as_u64() >= Some(2));
    assert!(good.count() >= 6, "{rows:?}");
    for row in &rows {
        assert!(!row["output"].as_str().expect("a text").contains("<tool_response>"), "{row}");
    }
    let told = &rows[0]["generation"]["completion_tokens"];
    assert!(told.as_u64().is_some_and(|tokens| tokens > 20), "the tokens of tools are counted: {told}");
}

/// The rows of the evaluation, whose predictions have the prompts, are the data of GRPO.
#[test]
fn answers_are_those_of_rollouts() {
    let at = folder();
    benchmark("rollouts", 4);
    run_in(at, eval("rollouts", "answers", &["--top-k", "1"])).ok();
    let rest = "grpo --model warm --data rollouts/answers/colors.jsonl --media-root rollouts --out rollouts/run --quiet \
                --tools crop_video --nframes 2 --max-completion-length 160 --top-k 1 --top-p 1 --num-generations 2 \
                --per-device-train-batch-size 2 --gradient-accumulation-steps 4 --max-steps 1 --eval-steps 1 \
                --eval-benchmark rollouts/colors.toml --eval-data rollouts --eval-max-new-tokens 160";
    run_in(at, rest.split_whitespace().chain(MEDIA)).ok();
    let answers = lines(&at.join("rollouts/answers/colors.jsonl"));
    let groups = lines(&at.join("rollouts/run/rollouts/000001.jsonl"));
    assert_eq!(groups.len(), 4);
    for group in groups {
        let answer = &answers[group["row"].as_u64().expect("a row") as usize];
        let turns = group["turns"][0].as_array().expect("turns");
        assert_eq!(Some(&answer["output"]), turns.last());
        let calls = group["tool_turns"][0].as_array().expect("turns of tools").iter();
        let calls: Vec<Value> = calls.flat_map(|turn| turn["calls"].as_array().expect("calls").clone()).collect();
        assert!(calls.len() == 1 && answer["tool_calls"] == json!(calls), "{answer} {group}");
        assert_eq!(answer["generation"]["completion_tokens"], json!(group["completions"][0].as_array().map(Vec::len)));
    }
    // The evaluation in training has the tools, too.
    let evaluated = lines(&at.join("rollouts/run/eval/step-1/colors.jsonl"));
    assert!(evaluated.len() == 4 && evaluated.iter().all(|row| row["tool_calls"].is_array()), "{evaluated:?}");
}

/// The command answers at irregular times.
#[test]
fn killed_evaluations_with_tools_resume_to_the_same_bytes() {
    let at = folder();
    benchmark("killed", 30);
    let command = format!(
        "n=0; while read -r l; do n=$((n + 1)); case $l in *list_tools*) echo '{LISTED}';; *) \
         if [ $((n % 3)) = 0 ]; then sleep 0.1; fi; echo '\"it is red\"';; esac; done"
    );
    let more = ["--tool-command", &command, "--batch-size", "4"];
    let arguments = |out: &str, more: &[&str]| {
        let mut arguments = eval("killed", out, more);
        let tools = arguments.iter().position(|argument| argument == "--tools").expect("the option");
        arguments.drain(tools..tools + 2);
        arguments
    };
    let begun = Instant::now();
    run_in(at, arguments("whole", &more)).ok();
    let whole = begun.elapsed();
    let again = [&more[..], &["--resume"]].concat();
    let mut kills = 0;
    for i in 0u32.. {
        let resumed = arguments("broken", &again);
        let mut child = reel().current_dir(at).args(resumed).stdout(Stdio::null()).spawn().expect("it starts");
        let life = if i < 12 { whole.mul_f64(0.2 + 0.05 * f64::from(i * 7 % 9)) } else { Duration::from_secs(600) };
        let born = Instant::now();
        while born.elapsed() < life && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        kills += 1;
    }
    assert!(kills >= 2, "the run was killed only {kills} times before it ended; 2 are needed");
    for name in ["colors.jsonl", "colors.json"] {
        let [a, b] = ["whole", "broken"].map(|run| fs::read(at.join("killed").join(run).join(name)).expect("a file"));
        assert!(a == b, "{name}: differs from that of the uninterrupted run");
    }
    let rows = lines(&at.join("killed/whole/colors.jsonl"));
    assert!(rows.iter().any(|row| row["tool_calls"].to_string().contains("it is red")), "{rows:?}");
    // A run that continues must have the same tools.
    let other_command = format!("{command}; true");
    for (other, words) in [
        (&["--max-tool-calls", "3"][..], "--max-tool-calls: is 3, but it was 5"),
        (&["--tool-command", &other_command], "done; true\", but it was"),
        (&["--tool-tags", "<a>,</a>"], "--tool-tags: is \"<a>,</a>\", but it was null"),
    ] {
        let again = support::with_options(&again, other);
        run_in(at, arguments("whole", &again)).assert_refused(2, &[words]);
    }
    // The code of a tool is a part of it.
    fs::write(at.join("mine-eval.py"), "def look():\n    return 'red'\n").expect("written");
    let python =
        |more: &[&str]| run_in(at, eval("killed", "python", &[&["--tools", "mine-eval.py:look"], more].concat()));
    python(&["--limit", "1"]).ok();
    fs::write(at.join("mine-eval.py"), "def look():\n    return 'blue'\n").expect("written");
    python(&["--limit", "1", "--resume"]).assert_refused(2, &["--tools: is [\"mine-eval.py:look (", "but it was"]);
}

/// A completion without room for the answer of its tool counts as truncated, whether --max-new-tokens or the model's
/// positions end, and with any number of slots.
#[test]
fn answers_without_room_for_a_tool_are_counted_as_truncated() {
    let at = folder();
    benchmark("room", 6);
    run_in(at, eval("room", "wide", &[])).ok();
    let wide = lines(&at.join("room/wide/colors.jsonl"));
    let tokens = |row: &Value, key: &str| row["generation"][key].as_u64().expect("a number");
    // The call fits, and its answer does not.
    let room = wide.iter().map(|row| tokens(row, "completion_tokens")).min().expect("rows") * 3 / 4;
    let positions = tokens(&wide[0], "prompt_tokens") + room;
    fs::create_dir(at.join("few-positions")).expect("a folder");
    for name in support::file_names_in(&at.join("warm")).iter().filter(|name| at.join("warm").join(name).is_file()) {
        fs::copy(at.join("warm").join(name), at.join("few-positions").join(name)).expect("copied");
    }
    let config = fs::read(at.join("warm/config.json")).expect("a config");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    for place in ["/max_position_embeddings", "/text_config/max_position_embeddings"] {
        config.pointer_mut(place).into_iter().for_each(|number| *number = json!(positions));
    }
    fs::write(at.join("few-positions/config.json"), config.to_string()).expect("written");
    let room = room.to_string();
    let narrow = |out: &str, more: &[&str]| {
        run_in(at, eval("room", out, more)).ok();
        fs::read(at.join("room").join(out).join("colors.jsonl")).expect("answers")
    };
    let one = narrow("one", &["--max-new-tokens", &room, "--batch-size", "1"]);
    assert!(one == narrow("six", &["--max-new-tokens", &room, "--batch-size", "6"]));
    assert!(one == narrow("positions", &["--model", "few-positions", "--batch-size", "4"]));
    let rows = lines(&at.join("room/one/colors.jsonl"));
    let cut: Vec<&Value> = rows.iter().filter(|row| row["generation"]["finish_reason"] == "length").collect();
    assert!(cut.len() >= 3 && cut.iter().all(|row| row["tool_calls"] == json!([])), "{rows:?}");
    let report: Value =
        serde_json::from_slice(&fs::read(at.join("room/one/colors.json")).expect("scores")).expect("JSON");
    assert_eq!(report["truncated"], json!(cut.len()), "{report}");
}

#[test]
fn tools_that_cannot_be_used_are_refused_by_name() {
    let at = folder();
    benchmark("refused", 2);
    for (more, words) in [
        (&["--tools", "crop"][..], "--tools: \"crop\" is no tool"),
        (&["--max-tool-calls", "0"], "--max-tool-calls: is 0"),
        (&["--tool-tags", "<t>"], "--tool-tags: is"),
    ] {
        run_in(at, eval("refused", "out", more)).assert_refused(2, &[words]);
    }
    let words = "eval --benchmark refused/colors.toml --out refused/other";
    let refused = |more: &str, said: &[&str]| {
        let words = words.split(' ').chain(more.split(' '));
        run_in(at, words).assert_refused(2, said);
    };
    refused("--data refused --endpoint http://127.0.0.1:9/v1 --tools zoom", &["--endpoint", "--tools"]);
    refused("--data refused --endpoint http://127.0.0.1:9/v1 --tool-command cat", &["--endpoint", "--tool-command"]);
    refused("--data refused --model warm --tool-timeout 3", &["--tools: is not given", "--tool-timeout"]);
    refused("--score-only --predictions p.jsonl --tools zoom", &["--tools: has no effect with --score-only"]);
    // A video that is a folder of frames has no file of which a tool could show parts.
    fs::create_dir(at.join("refused/shots")).expect("a folder");
    fs::copy(support::golden("grpo/grpo_clip_iter2/media/b.png"), at.join("refused/shots/1.png")).expect("copied");
    let row = json!({"q": QUESTION, "a": "red", "v": "shots"});
    fs::write(at.join("refused/rows.jsonl"), row.to_string()).expect("written");
    let done = run_in(at, eval("refused", "frames", &[]));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let error = &lines(&at.join("refused/frames/colors.jsonl"))[0]["error"];
    assert!(error.as_str().is_some_and(|e| e.contains("is a video that is not a file")), "{error}");
}
