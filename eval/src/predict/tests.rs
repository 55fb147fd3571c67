use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use proptest::prelude::*;
use reel_device::{DType, Device};
use reel_engine::{Engine, SamplingParams};
use reel_input::config::ModelConfig;
use reel_input::{MediaOptions, ModelFolder};
use reel_model::checkpoint::Checkpoint;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use reel_samples::conversations::RowConversations;
use reel_samples::dataset::Dataset;
use reel_samples::prompts::QuestionTemplate;
use reel_samples::rewards::ProgramLog;
use reel_train::options::{Recipe, ToolOptions};
use reel_train::rollout::tools::ToolSet;
use serde_json::{Value, json};

use super::*;
use crate::error::{Kind, Result};

/// A small model with its tokenizer, and the device on which it generates completions.
struct Fixture {
    folder: PathBuf,
    bundle: Arc<ModelFolder>,
    model: QwenVl,
    device: Device,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
    let (device, config) = (Device::cpu(1), ModelConfig::open(&folder).unwrap());
    let model = QwenVl::open(&device, &Checkpoint::open(&folder).unwrap(), &config, DType::F32).unwrap();
    Fixture { bundle: Arc::new(ModelFolder::open(&folder).unwrap()), folder, model, device }
});

/// The options of a run that the tests change.
#[derive(Clone, Copy, Debug)]
struct Options {
    existing: ExistingOutput,
    slots: usize,
    kv_bytes: u64,
    n: usize,
    temperature: f32,
    strict: bool,
    /// Whether the model may call tools: a text between two letters is then a call.
    tools: bool,
}

const OPTIONS: Options = Options {
    existing: ExistingOutput::Refuse,
    slots: 3,
    kv_bytes: 1 << 30,
    n: 2,
    temperature: 1.0,
    strict: false,
    tools: false,
};
const RESUME: Options = Options { existing: ExistingOutput::Resume, ..OPTIONS };
const SEED: u64 = 5;

/// Lets one test at a time use the fixture, because a device captures the graph of one decode step at a time.
static IN_USE: Mutex<()> = Mutex::new(());

fn predict(data: &Path, out: &Path, options: Options) -> Result<PredictionSummary> {
    let _in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let f = &*FIXTURE;
    let rules = (Recipe::Paper, QuestionTemplate::Evaluation);
    let data_file = Dataset::open(data)?;
    let rows = RowConversations::new(data_file, MediaOptions::default(), Path::new(""), rules, SEED);
    let tools = ToolOptions { tools: vec!["zoom".into()], tool_tags: Some("e,a".into()), ..ToolOptions::default() };
    let open = || ToolSet::open(&tools, rows.media_options(), &ProgramLog::new(|_| {}));
    let tools = options.tools.then(open).transpose()?;
    let prompts = Arc::new(RowPrompts::new(Arc::new(rows), f.bundle.clone()).with_tools(tools));
    let compared = json!({"n": options.n, "temperature": options.temperature}).as_object().unwrap().clone();
    let described = (data, prompts.rows().data().fingerprint(), prompts.rows().data().len());
    let model = (FingerprintedInput::of_folder(&f.folder)?, None);
    let settings = PredictionSettings::new("generate", model, described, compared, Some((&f.device, options.slots)));
    let file = PredictionFile::open(out, options.existing, settings, |row| prompts.rows().columns(row))?;
    if let Some(done) = PredictionSummary::of_complete_file(&file) {
        return Ok(done);
    }
    let engine = Engine::new(&f.model, &Cx::inference(&f.device, DType::F32))?.max_slots(options.slots);
    let run = PredictionRun {
        prompts,
        engine: &engine,
        sampling: SamplingSettings {
            params: SamplingParams { temperature: options.temperature, ..SamplingParams::default() },
            max_new_tokens: if options.tools { 300 } else { 7 },
            n: options.n,
            stop: if options.tools { Vec::new() } else { vec!["zzz".into()] },
        },
        max_kv_bytes: options.kv_bytes,
        strict: options.strict,
        quiet: true,
        stop: &AtomicBool::new(false),
        divided: None,
    };
    run.run(file.into()).map(|summary| summary.expect("one process writes the file"))
}

/// Bytes of a KV block of the model: keys and values of 64 tokens in f32.
fn block_bytes() -> u64 {
    let text = &FIXTURE.bundle.config.text;
    (2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 64 * 4) as u64
}

/// Rows in several layouts, with prompts of different lengths. The last two rows are equal.
fn rows() -> Vec<Value> {
    let ask = |text: &str| json!([{"role": "user", "content": text}]);
    vec![
        json!({"prompt": ask("Hello"), "solution": "<answer>1</answer>", "id": 7}),
        json!({"messages": [{"role": "user", "content": "A longer question, so that the prompts differ in length?"},
            {"role": "assistant", "content": "left out"}]}),
        json!({"prompt": "text without a template", "output": "an old answer", "error": "an old error"}),
        json!({"problem": "Which?", "data_type": "text", "problem_type": "multiple choice", "options": ["A. x", "B. y"],
            "solution": "<answer>A</answer>", "path": "", "category": "speed"}),
        json!({"prompt": ask("twice")}),
        json!({"prompt": ask("twice")}),
    ]
}

fn write_rows(file: &Path, rows: &[Value]) {
    fs::write(file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// The lines that a run writes for these rows if it decodes one sequence at a time.
fn lines_of(rows: &[Value], tools: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    write_rows(&data, rows);
    predict(&data, &out, Options { slots: 1, tools, ..OPTIONS }).unwrap();
    fs::read(out).unwrap()
}

static EXPECTED: LazyLock<Vec<u8>> = LazyLock::new(|| lines_of(&rows(), false));
static EXPECTED_WITH_TOOLS: LazyLock<Vec<u8>> = LazyLock::new(|| lines_of(&rows(), true));

fn sorted_lines(bytes: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = std::str::from_utf8(bytes).unwrap().lines().map(String::from).collect();
    lines.sort();
    lines
}

/// Turns the files of a complete run into the files of a run that was killed after it wrote `bytes` bytes of lines.
fn kill_after(out: &Path, bytes: usize) {
    let lines = fs::read(out).unwrap();
    let [settings, partial, partial_settings, _] = companion_paths(out);
    fs::write(partial, &lines[..bytes]).unwrap();
    fs::remove_file(out).unwrap();
    fs::rename(settings, partial_settings).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    /// The bytes of a row's line depend on the row alone: not on the number of sequences that decode together, the
    /// memory for them, the order of the rows, or where a run was killed and resumed.
    #[test]
    fn lines_do_not_depend_on_batch_size_row_order_or_resume(
        slots in 1usize..6, resumed_slots in 1usize..6, small_memory: bool, cut in 0.0f64..1.0,
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(), tools: bool,
    ) {
        let expected = if tools { &*EXPECTED_WITH_TOOLS } else { &*EXPECTED };
        let dir = tempfile::tempdir().unwrap();
        let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
        // The small KV cache has room for one sequence of the longest row.
        let kv_bytes = if small_memory { if tools { 16 } else { 5 } * block_bytes() } else { 1 << 30 };
        write_rows(&data, &rows());
        predict(&data, &out, Options { slots, kv_bytes, tools, ..OPTIONS }).unwrap();
        prop_assert_eq!(&fs::read(&out).unwrap(), expected);

        kill_after(&out, (cut * expected.len() as f64) as usize);
        let resumed = predict(&data, &out, Options { slots: resumed_slots, kv_bytes, tools, ..RESUME }).unwrap();
        prop_assert_eq!(&fs::read(&out).unwrap(), expected);
        // A prompt that is a text has no description of the tools.
        prop_assert_eq!((resumed.rows, resumed.errors), (6, usize::from(tools)));
        let whole_lines = expected[..(cut * expected.len() as f64) as usize].iter().filter(|&&b| b == b'\n').count();
        prop_assert_eq!(resumed.resumed_after, whole_lines);

        let rows = rows();
        let moved: Vec<Value> = order.iter().map(|&row| rows[row].clone()).collect();
        write_rows(&data, &moved);
        predict(&data, &out, Options { slots, existing: ExistingOutput::Overwrite, tools, ..OPTIONS }).unwrap();
        let [mut lines, mut expected] = [&fs::read(&out).unwrap(), expected].map(|bytes| sorted_lines(bytes));
        // The text of an error has the number of the row.
        lines.iter_mut().chain(&mut expected).for_each(|line| line.truncate(line.find("rows.jsonl:").unwrap_or(line.len())));
        prop_assert_eq!(lines, expected);
    }
}

#[test]
fn lines_of_a_run_with_tools_have_the_calls_of_each_completion() {
    let text = std::str::from_utf8(&EXPECTED_WITH_TOOLS).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[2]["error"].as_str().is_some_and(|e| e.contains("leave --tools out")), "{}", lines[2]);
    let calls = |line: &Value| -> Vec<Vec<Value>> { serde_json::from_value(line["tool_calls"].clone()).unwrap() };
    let all: Vec<Vec<Vec<Value>>> = lines.iter().filter(|line| line.get("error").is_none()).map(calls).collect();
    assert!(all.iter().all(|calls| calls.len() == 2) && all.concat().iter().any(|calls| calls.len() > 1), "{all:?}");
    for call in all.concat().concat() {
        assert!(call["is_error"] == true && call["content"].to_string().contains("the call is not"), "{call}");
    }
}

#[test]
fn line_has_the_columns_of_its_row_and_the_completions() {
    let lines: Vec<Value> = EXPECTED.split(|&b| b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    assert_eq!(lines.len(), 6);
    for (line, row) in lines.iter().zip(rows()) {
        for (name, value) in
            row.as_object().unwrap().iter().filter(|(name, _)| !["output", "error"].contains(&&***name))
        {
            assert_eq!(&line[name], value);
        }
        let (outputs, about) = (line["outputs"].as_array().unwrap(), &line["generation"]);
        assert_eq!((outputs.len(), &line["output"], line.get("error")), (2, &outputs[0], None));
        assert_eq!(about["completion_tokens"].as_array().unwrap().len(), 2);
        assert!(about["prompt_tokens"].as_u64().unwrap() > 0 && about["finish_reason"][0].is_string());
    }
    assert_ne!(lines[4]["generation"]["seed"], lines[5]["generation"]["seed"], "equal rows have seeds of their own");
    assert_ne!(lines[4]["outputs"], lines[5]["outputs"]);
    // The line of a row with a single completion has no lists.
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    write_rows(&data, &rows()[..1]);
    predict(&data, &out, Options { n: 1, ..OPTIONS }).unwrap();
    let one: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!((&one["output"], one.get("outputs")), (&lines[0]["output"], None));
    assert!(one["generation"]["completion_tokens"].is_u64());
}

#[test]
fn rows_that_cannot_be_used_get_a_line_with_their_error() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    let good = rows()[0].to_string();
    let no_image =
        json!({"prompt": [{"role": "user", "content": [{"type": "image", "image": "/no/such.png"}]}], "id": 3});
    fs::write(&data, format!("{good}\n{{\"prompt\"\n{no_image}\n[1]\n{good}\n")).unwrap();
    let summary = predict(&data, &out, OPTIONS).unwrap();
    assert_eq!((summary.rows, summary.errors), (5, 3));
    assert!(summary.first_error.unwrap().contains("rows.jsonl:2: is not JSON"));
    let text = fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0].get("error").is_none() && lines[4].get("error").is_none());
    for (line, words) in [(&lines[1], "is not JSON"), (&lines[2], "/no/such.png"), (&lines[3], "is not an object")] {
        assert!(line["error"].as_str().unwrap().contains(words) && line["output"] == "", "{line}");
    }
    assert_eq!(lines[2]["id"], 3);
    // A run that is resumed after lines with errors counts these errors, too.
    for bytes in [text.len() - 1, text.len() / 2] {
        kill_after(&out, bytes);
        assert_eq!(predict(&data, &out, RESUME).unwrap().errors, 3);
        assert_eq!(fs::read_to_string(&out).unwrap(), text);
    }
    let e = predict(&data, &dir.path().join("strict.jsonl"), Options { strict: true, ..OPTIONS }).unwrap_err();
    assert!(e.to_string().contains("rows.jsonl:2: "), "{e}");
}

#[test]
fn resume_requires_the_same_settings_and_unchanged_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    let [settings, partial, partial_settings, _] = companion_paths(&out);
    write_rows(&data, &rows());
    // No output exists: the run starts with the first row.
    assert_eq!(predict(&data, &out, RESUME).unwrap().resumed_after, 0);
    let refused = |options: Options, words: &[&str]| {
        let e = predict(&data, &out, options).unwrap_err();
        let said = e.to_string();
        assert!(words.iter().all(|word| said.contains(word)) && said.contains("--overwrite"), "{said}");
        e
    };
    refused(OPTIONS, &["out.jsonl: exists"]);
    // A complete file is not changed.
    assert_eq!(predict(&data, &out, RESUME).unwrap().resumed_after, 6);
    kill_after(&out, EXPECTED.len() / 2);
    refused(OPTIONS, &["out.jsonl.partial: is the unfinished output", "--resume"]);
    let e = refused(Options { temperature: 0.5, ..RESUME }, &["--temperature: is 0.5, but it was 1.0"]);
    assert!(e.is_usage_error());
    refused(Options { n: 3, ..RESUME }, &["--n: is 3, but it was 2"]);
    let kept = fs::read(&partial).unwrap();
    assert_eq!(kept, EXPECTED[..EXPECTED.len() / 2]);
    // Each change makes a line of the earlier run invalid, so that the run is refused.
    let text = String::from_utf8(kept.clone()).unwrap();
    for (changed, words) in [
        (text.replacen("\"id\":7", "\"id\":8", 1), "partial:1: is not the prediction of row 1"),
        (text.replacen('{', "[", 1), "partial:1: is not JSON"),
        (text.split_once('\n').unwrap().1.to_string(), "partial:1: is not the prediction"),
        ([&text[..], "\n"].concat(), ":"),
    ] {
        fs::write(&partial, changed).unwrap();
        refused(RESUME, &[words]);
    }
    fs::write(&partial, &kept).unwrap();
    let text = fs::read(&partial_settings).unwrap();
    fs::remove_file(&partial_settings).unwrap();
    refused(RESUME, &["partial.run.json: is missing"]);
    fs::write(&partial_settings, &text).unwrap();
    write_rows(&data, &rows()[..5]);
    refused(RESUME, &["--data: differs from the data"]);
    write_rows(&data, &rows());
    predict(&data, &out, RESUME).unwrap();
    assert_eq!(fs::read(&out).unwrap(), *EXPECTED);
    // A process that was killed between the last two renames leaves these files.
    fs::rename(&settings, &partial_settings).unwrap();
    assert_eq!(predict(&data, &out, RESUME).unwrap().resumed_after, 6);
    fs::remove_file(&out).unwrap();
    fs::write(&partial, "").unwrap();
    predict(&data, &out, RESUME).unwrap();
    assert_eq!(fs::read(&out).unwrap(), *EXPECTED);
    assert!(!partial.exists() && !partial_settings.exists() && settings.exists());
}

#[test]
fn output_must_be_a_regular_file_that_no_other_process_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    write_rows(&data, &rows()[..1]);
    let e = predict(&data, dir.path(), OPTIONS).unwrap_err().to_string();
    assert!(e.contains("is a folder; "), "{e}");
    let e = predict(&data, Path::new("/dev/null"), OPTIONS).unwrap_err().to_string();
    assert!(e.contains("is not a regular file"), "{e}");
    let lock = reel_support::files::FileLock::acquire(&reel_samples::quarantine::lock_path(&out)).unwrap();
    let e = predict(&data, &out, OPTIONS).unwrap_err();
    assert!(e.kind == Kind::Failed && e.to_string().contains("is in use by process"), "{e}");
    drop(lock);
    let [_, partial, ..] = companion_paths(&out);
    fs::write(&partial, "of another program").unwrap();
    for existing in [ExistingOutput::Refuse, ExistingOutput::Resume] {
        assert!(predict(&data, &out, Options { existing, ..OPTIONS }).is_err());
    }
    assert_eq!(fs::read(&partial).unwrap(), b"of another program");
    // An earlier output file stays until the new output file is complete.
    fs::write(&out, "earlier").unwrap();
    fs::write(dir.path().join("bad.jsonl"), "[1]\n").unwrap();
    let overwrite = Options { existing: ExistingOutput::Overwrite, strict: true, ..OPTIONS };
    predict(&dir.path().join("bad.jsonl"), &out, overwrite).unwrap_err();
    assert_eq!(fs::read(&out).unwrap(), b"earlier");
    predict(&data, &out, overwrite).unwrap();
    assert_ne!(fs::read(&out).unwrap(), b"earlier");
}

/// The test changes the recorded answers. If they are in the final file, the continued run has not generated them
/// again.
#[test]
fn lines_before_their_order_are_kept_by_a_run_that_continues_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    let [_, _, _, early] = companion_paths(&out);
    write_rows(&data, &rows());
    predict(&data, &out, OPTIONS).unwrap();
    assert!(!early.exists());
    let text = String::from_utf8(EXPECTED.clone()).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in [1, 3, 5] {
        lines[row]["output"] = json!(format!("recorded {row}"));
    }
    let text = |row: usize| format!("{}\n", lines[row]);
    kill_after(&out, text(0).len());
    // The process was killed after it had written the line of row 1 to `OUT.partial.early` and before it wrote this
    // line to `OUT.partial`.
    let early_line = |row: usize| format!("{}\n", json!({"row": row, "line": lines[row]}));
    fs::write(&early, [3, 1, 5].map(early_line).concat() + "{\"row\": 4, ").unwrap();
    let done = predict(&data, &out, Options { slots: 1, ..RESUME }).unwrap();
    assert_eq!((done.rows, done.resumed_after), (6, 1));
    assert_eq!(fs::read_to_string(&out).unwrap(), (0..6).map(text).collect::<String>());
    assert!(!early.exists());
}
