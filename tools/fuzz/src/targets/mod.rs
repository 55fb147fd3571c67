//! The fuzz targets. Each target tests a parser of data from outside the program: it has valid inputs (seeds) and the
//! function that gives the parser an input. Words that a parser knows, which libFuzzer inserts into inputs, are in
//! `tools/fuzz/words/NAME`, in libFuzzer's format of dictionaries; `words/common` has those of all targets.

mod data;
mod model;
mod run;
mod scoring;
mod serve;
mod sim;
mod text;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Gives an input to a parser: `Some` if the parser accepts the input, `None` if it refuses the input with a message.
/// Anything else is a failure, for which the function panics.
pub type Runner = Box<dyn FnMut(&[u8]) -> Option<()> + Send>;

/// A fuzz target.
pub struct FuzzTarget {
    /// The name on the command line.
    pub name: &'static str,
    /// Prepares what all inputs share. The argument is an empty folder for the files of inputs.
    pub open: fn(PathBuf) -> Result<Runner>,
    /// Files and folders of the repository whose files are seeds, beside those in `tools/fuzz/seeds/NAME`.
    pub seeds: &'static [&'static str],
}

const fn target(name: &'static str, open: fn(PathBuf) -> Result<Runner>, seeds: &'static [&'static str]) -> FuzzTarget {
    FuzzTarget { name, open, seeds }
}

/// All targets.
pub const ALL_TARGETS: &[FuzzTarget] = &[
    target("safetensors", model::safetensors, &[]),
    target("shards", model::shards, &[]),
    target("quantized", model::quantized, &[]),
    target("config", model::config, &["tests/golden/siglip/model/config.json"]),
    target("adapter", model::adapter, &[]),
    target("tokenizer", model::tokenizer, &["tests/golden/siglip/model/tokenizer.json"]),
    target("chat-template", model::chat_template, &[]),
    target("template-values", model::template_values, &[]),
    target("messages", text::messages, &[]),
    target("urls", text::urls, &[]),
    target("rows", text::rows, &[]),
    target("run-config", text::run_config, &[]),
    target("quarantine", text::quarantine, &[]),
    target("parquet", |folder| data::table(folder.join("rows.parquet")), PARQUET_FILES),
    target("arrow", |folder| data::table(folder.join("rows.arrow")), &[ARROW_FILE]),
    target("image", data::image, &["tests/golden/pixels/kinds"]),
    #[cfg(feature = "ffmpeg")]
    target("video", data::video, VIDEO_FILES),
    target("run-folder", run::run_folder, &[]),
    target("bench-result", run::bench_result, &[]),
    target("wandb", run::wandb, &[]),
    target("predictions", scoring::predictions, &[]),
    target("rewards", scoring::rewards, &[]),
    target("reward-command", scoring::reward_command, &[]),
    target("request", serve::request, &[]),
    target("request-body", serve::request_body, &["tools/fuzz/seeds/request"]),
    target("grammar", serve::grammar, &[]),
    target("events", serve::events, &[]),
    target("ptx", sim::ptx, PTX_FILES),
    target("ptx-run", sim::ptx_run, &[]),
    target("tensor-map", sim::tensor_map, &[]),
];

const ARROW_FILE: &str = "tests/golden/data/saved/data-00000-of-00002.arrow";

const PARQUET_FILES: &[&str] =
    &["tests/golden/data/datasets.parquet", "tests/golden/data/types_v1.parquet", "tests/golden/data/types_v2.parquet"];

#[cfg(feature = "ffmpeg")]
const VIDEO_FILES: &[&str] = &[
    "tests/golden/clips/h264_709.mp4",
    "tests/golden/clips/h264_vfr.mp4",
    "tests/golden/clips/h264_rot90.mp4",
    "tests/golden/clips/open_group_cut.mp4",
    "tests/golden/clips/vp9.webm",
    "tests/golden/clips/mpeg4_odd.avi",
];

const PTX_FILES: &[&str] = &[
    "tools/fuzz/seeds/ptx-run",
    "sim/src/ptx/testdata/debug.ptx",
    "sim/src/ptx/testdata/functions.ptx",
    "sim/src/ptx/testdata/hopper.ptx",
];

/// A target whose parser is faulty: it shows in the tests of this program that each kind of failure is reported.
pub const BROKEN: FuzzTarget = target("broken", broken, &[]);

fn broken(_: PathBuf) -> Result<Runner> {
    fn overflow(depth: usize) -> usize {
        std::hint::black_box([depth; 99])[1] + if depth == 0 { 0 } else { overflow(depth - 1) }
    }
    run(|input| match input {
        b"seed" => Some(()),
        b"hang" => loop {
            std::thread::yield_now();
        },
        b"memory" => (std::hint::black_box(vec![0u8; 1 << 30]).len() > 9).then_some(()),
        b"stack" => (overflow(1 << 20) > 9).then_some(()),
        b"message" => accepted(Err("two\nlines")),
        b"thread" => std::thread::spawn(|| panic!("in a thread")).join().ok(),
        _ => panic!("a panic"),
    })
}

/// Whether the error messages of refused inputs are printed; true when a single input is run again (`--input`).
pub static PRINTS_MESSAGES: AtomicBool = AtomicBool::new(false);

/// Maximum length of an error message in characters. A message that quotes a whole file hides what is wrong.
const MAX_MESSAGE_CHARS: usize = 7_000;

fn run(runner: impl FnMut(&[u8]) -> Option<()> + Send + 'static) -> Result<Runner> {
    Ok(Box::new(runner))
}

/// Returns the value of a parser's result, or `None` for an error. Checks the error's message.
fn accepted<T, E: Display>(result: Result<T, E>) -> Option<T> {
    result.map_err(|e| check_error_message(&e.to_string())).ok()
}

/// Checks that an error's message is short, has no control characters except tabs, and does not quote a panic.
fn check_error_message(text: &str) {
    if PRINTS_MESSAGES.load(Ordering::Relaxed) {
        println!("  {text:?}");
    }
    let start: String = text.chars().take(200).collect();
    let control = text.chars().find(|c| c.is_control() && *c != '\t');
    assert!(control.is_none(), "the error message has the control character {control:?}: {start:?}");
    let count = text.chars().count();
    assert!(count <= MAX_MESSAGE_CHARS, "the error message has {count} characters: {start:?}");
    assert!(!text.contains("panicked"), "a panic became an error message: {start:?}");
}

/// The path of a file of the repository.
pub fn repository_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// Separates the parts of an input, one for each of its files.
const PART_SEPARATOR: &[u8] = b"\n%%%%\n";

/// Splits an input into its parts. An input has at least one part.
fn parts_of(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(PART_SEPARATOR.len()).position(|window| window == PART_SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + PART_SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

/// Splits an input after its first part. The second part is empty if the input has no separator.
fn first_part_of(input: &[u8]) -> (&[u8], &[u8]) {
    let first = parts_of(input)[0];
    (first, input.get(first.len() + PART_SEPARATOR.len()..).unwrap_or_default())
}

/// Writes the parts of an input to files.
fn write_parts(folder: &Path, names: &[&str], input: &[u8]) {
    for (name, part) in names.iter().zip(parts_of(input)) {
        write(&folder.join(name), part);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the worker's folder is writable");
}

/// Returns an input as text, in which U+FFFD replaces bytes that are not UTF-8.
fn text_of(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Random numbers that depend on the input alone, for choices that the input does not make.
fn random_of(input: &[u8]) -> fastrand::Rng {
    fastrand::Rng::with_seed(u64::from(crc32fast::hash(input)))
}
