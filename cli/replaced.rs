//! Refuses a command whose output would replace one of its inputs or another of its outputs.
//!
//! Some inputs are not known at the start: the rows of a data file, for example, name media files. Therefore a page,
//! a trace or a list of unusable rows may only replace a file of the same kind. Paths are compared by device and
//! inode, so that hard links, symbolic links and different spellings of a path are noticed. Options are classified by
//! their name in the parser; a test checks that every path option has a class.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use clap::ArgMatches;
use reel_support::diagnostic::input;

use crate::fail::{failed, usage_error};

/// Names of options for a file to write.
const OUTPUT_FILES: [&str; 6] = ["out", "output", "html", "trace", "sarif", "speedscope"];

/// Commands whose `--out` is a folder.
const WRITES_FOLDER: [&str; 10] =
    ["curate", "demo", "demo-clips", "dequantize", "grpo", "init", "man", "merge", "quantize", "sft"];

/// Options and arguments that name files or folders to read.
const INPUTS: [&str; 32] = [
    "frame_cache",
    "videos",
    "model",
    "adapter",
    "messages",
    "inputs",
    "data",
    "config",
    "rollouts",
    "siglip",
    "quarantine",
    "source",
    "eval_data",
    "eval_file",
    "input",
    "predictions",
    "video",
    "image",
    "file",
    "times",
    "run",
    "against",
    "compare",
    "a",
    "b",
    "folder",
    "args",
    "resume_from_checkpoint",
    "api_key_file",
    "tls_cert",
    "tls_key",
    "with",
];

/// Files and folders that a training command writes into its output folder, beside weights and checkpoints.
const RUN_FILES: [&str; 9] = [
    "metrics.jsonl",
    "skipped.jsonl",
    "run.json",
    "trainer_state.json",
    "hashes.bin",
    "reward.log",
    "rollouts",
    "eval.jsonl",
    "eval",
];

/// Files of a model folder in addition to the weights. Training commands, `dequantize`, `quantize`, `merge` and `init`
/// write these files into their output folder.
const MODEL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
];

/// A file or folder that the command is going to write, with the option that names it.
#[derive(Clone, Debug)]
struct Output {
    option: String,
    path: PathBuf,
    is_folder: bool,
}

/// The output files of this command. Inputs that become known later are compared with this list.
static OUTPUTS: Mutex<Vec<Output>> = Mutex::new(Vec::new());

/// The identity of a file or folder on disk, which does not depend on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// Returns the identity of an existing file or folder; `None` for devices and pipes, which are not replaced.
fn identity(path: &Path) -> Option<Identity> {
    let facts = fs::metadata(path).ok().filter(|facts| facts.is_file() || facts.is_dir())?;
    Some(Identity { device: facts.dev(), inode: facts.ino() })
}

/// Refuses the command `name` if one of its outputs is one of its inputs or another output, or if the folder of an
/// output file is missing. `matches` are the command's parsed arguments.
pub fn refuse_replaced_inputs(name: &str, matches: &ArgMatches) -> Result<()> {
    let mut given = Vec::new();
    collect(name, matches, &mut given);
    let checks_data = matches.try_get_one::<bool>("check_data").ok().flatten() == Some(&true);
    refuse_replaced_files(name, &given, checks_data)
}

/// Refuses the command `name` for the reasons that [`refuse_replaced_inputs`] lists. `given` are the names and values
/// of its options, including those in its configuration file; `checks_data` is the value of `--check-data`.
pub fn refuse_replaced_files(name: &str, given: &[(String, String)], checks_data: bool) -> Result<()> {
    // `plan` accepts `--out` and writes nothing, and `replay` reads the folder OUT.
    let writes_out = |option: &str| option != "out" || !["plan", "replay"].contains(&name);
    let is_output = |option: &str| OUTPUT_FILES.contains(&option) && writes_out(option);
    let mut outputs: Vec<Output> = Vec::new();
    for (option, value) in given {
        let path = PathBuf::from(value);
        let is_list = option == "quarantine" && checks_data;
        if !is_output(option) && !is_list {
            continue;
        }
        refuse_stdout(&spelled(name, option), &path)?;
        let is_folder = option == "out" && (WRITES_FOLDER.contains(&name) || runs_benchmarks(name, given));
        if !is_folder && !is_list {
            refuse_missing_folder(&path)?;
        }
        let inputs = given.iter().filter(|(input, _)| INPUTS.contains(&input.as_str()) || reads_out(name, input));
        for (input, value) in inputs.filter(|(input, _)| !(is_list && input == "quarantine")) {
            // The value of --data may list several files, and name a split of a folder.
            let sources = match &**input {
                "data" | "eval_file" => reel_input::rows::input_paths(Path::new(value)),
                _ => vec![PathBuf::from(file_in_argument(input, value))],
            };
            for source in sources {
                match is_folder {
                    true => {
                        refuse_run_folder_over_input(&spelled(name, option), &path, &spelled(name, input), &source)?
                    }
                    false => {
                        refuse_output_file_over_input(&spelled(name, option), &path, &spelled(name, input), &source)?
                    }
                }
            }
        }
        let output = Output { option: spelled(name, option), path, is_folder };
        if !is_folder {
            refuse_folder(&output.path)?;
            refuse_other_kind(&output, FileKind::of(name, option))?;
        }
        outputs.push(output);
    }
    // The main output is sorted to the front, so that an error about two outputs names it second.
    outputs.sort_by_key(|output| !["--out", "--output"].contains(&output.option.as_str()));
    for (i, output) in outputs.iter().enumerate() {
        outputs[..i].iter().try_for_each(|other| refuse_same_output(output, other))?;
    }
    outputs.retain(|output| !output.is_folder);
    *OUTPUTS.lock().unwrap_or_else(PoisonError::into_inner) = outputs;
    Ok(())
}

/// Refuses an input file that has just become known, such as a video in a messages file, if this command would replace
/// it.
pub fn refuse_input_that_is_output(input: &Path, location: &str) -> Result<()> {
    let outputs = OUTPUTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    outputs.iter().try_for_each(|output| refuse_output_file_over_input(&output.option, &output.path, location, input))
}

/// Returns true if `out` is an input of the command: `reel replay OUT` reads the folder OUT.
fn reads_out(command: &str, option: &str) -> bool {
    command == "replay" && option == "out"
}

/// Returns true if `reel eval` runs a model over benchmarks (`--data`), so that `--out` is a folder. Otherwise
/// `reel eval` scores or compares files.
fn runs_benchmarks(name: &str, given: &[(String, String)]) -> bool {
    name == "eval" && given.iter().any(|(option, _)| option == "data")
}

/// Collects the names and values of all arguments that the user gave, those of nested subcommands included.
fn collect(name: &str, matches: &ArgMatches, given: &mut Vec<(String, String)>) {
    for id in matches.ids().map(|id| id.as_str()) {
        let values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
        let texts = values.map(|value| value.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
        for option in texts.map(|text| (id.to_string(), text)) {
            // Common options of `reel bench prefill` are listed for both `bench` and `prefill`.
            if !given.contains(&option) {
                given.push(option);
            }
        }
    }
    if let Some((inner, matches)) = matches.subcommand() {
        collect(&format!("{name} {inner}"), matches, given);
    }
}

/// Returns the path of the file in a kernel argument such as `buf:f32:4:@x.safetensors#a`; for other options the value
/// itself is the path.
fn file_in_argument<'a>(option: &str, value: &'a str) -> &'a str {
    match value.split_once('@').filter(|_| option == "args") {
        Some((_, file)) => file.rsplit_once('#').map_or(file, |(file, _)| file),
        None => value,
    }
}

/// Returns the spelling of an option of the command `name` in error messages.
fn spelled(name: &str, option: &str) -> String {
    match option {
        "input" if name == "data convert" => "IN".to_string(),
        "output" if name == "data convert" => "OUT".to_string(),
        "run" | "file" => "the input".to_string(),
        "args" => "--arg".to_string(),
        name => format!("--{}", name.replace('_', "-")),
    }
}

/// Refuses an output file that is the input, or that exists in the input folder. Pages in an input folder may be
/// replaced: `reel report` writes its page into the folder of the run.
pub fn refuse_output_file_over_input(option: &str, output: &Path, input_option: &str, input: &Path) -> Result<()> {
    let (Some(written), Some(read)) = (identity(output), identity(input)) else { return Ok(()) };
    let help = "choose another file name";
    if written == read {
        let kind = if output.is_dir() { "folder" } else { "file" };
        let what = format!("is {}, the same {kind} as {input_option}, which would be replaced", output.display());
        return Err(usage_error(option, what, help));
    }
    let is_page = output.extension().is_some_and(|e| e == "html");
    let folder = output.canonicalize().ok().and_then(|file| identity(file.parent()?));
    if input.is_dir() && folder == Some(read) && !is_page {
        let what = format!("is {}, a file in the folder of {input_option}, which would be replaced", output.display());
        return Err(usage_error(option, what, help));
    }
    Ok(())
}

/// Refuses an output folder that is also an input, or that contains an input file which a run in this folder would
/// replace.
pub fn refuse_run_folder_over_input(option: &str, folder: &Path, input_option: &str, input: &Path) -> Result<()> {
    if input_option == "--resume-from-checkpoint" {
        return Ok(());
    }
    let (Some(written), Some(read)) = (identity(folder), identity(input)) else { return Ok(()) };
    if written == read {
        let kind = if folder.is_dir() { "folder" } else { "file" };
        let what = format!("is {}, the same {kind} as {input_option}", folder.display());
        return Err(usage_error(option, what, "choose another folder"));
    }
    let (Ok(folder), Ok(input)) = (folder.canonicalize(), input.canonicalize()) else { return Ok(()) };
    let Some(first) = input.strip_prefix(&folder).ok().and_then(|rest| rest.components().next()) else { return Ok(()) };
    let first = first.as_os_str().to_string_lossy();
    // A run continues with the options of its own record (`--config OUT/run.json`), and writes it again.
    let is_record = input_option == "--config" && first == "run.json";
    if input.is_file() && !is_record && (RUN_FILES.contains(&&*first) || first.starts_with("checkpoint-")) {
        let what =
            format!("is a folder that would be replaced, and with it {}, which {input_option} reads", input.display());
        return Err(usage_error(option, what, "choose another folder"));
    }
    Ok(())
}

/// Kinds of output files. A file of one of these kinds may only replace a file of the same kind.
#[derive(Clone, Copy, Debug)]
enum FileKind {
    Trace,
    Page,
    RowList,
}

impl FileKind {
    fn of(command: &str, option: &str) -> Option<Self> {
        match option {
            "trace" => Some(Self::Trace),
            "html" => Some(Self::Page),
            "out" if command == "report" => Some(Self::Page),
            "quarantine" => Some(Self::RowList),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Trace => "a trace",
            Self::Page => "an HTML page",
            Self::RowList => "a list of unusable rows",
        }
    }

    /// Whether a file that begins with `start` can be of this kind.
    fn begins_with(self, start: &[u8]) -> bool {
        let text = start.trim_ascii_start();
        let begins = |prefix: &[u8]| text.get(..prefix.len()).is_some_and(|own| own.eq_ignore_ascii_case(prefix));
        match self {
            Self::Trace => begins(b"{\"traceEvents\""),
            Self::Page => begins(b"<!doctype html") || begins(b"<html"),
            Self::RowList => begins(b"{\"row\""),
        }
    }
}

/// Refuses an output file that would replace a file of another kind. Empty and unreadable files have no kind.
fn refuse_other_kind(output: &Output, kind: Option<FileKind>) -> Result<()> {
    let (Some(kind), Ok(file)) = (kind, input::open_regular_file(&output.path)) else { return Ok(()) };
    let mut start = Vec::new();
    let read = file.take(256).read_to_end(&mut start);
    if read.is_err() || start.is_empty() || kind.begins_with(&start) {
        return Ok(());
    }
    let what = format!("is {}, an existing file that is not {}", output.path.display(), kind.name());
    Err(usage_error(&output.option, what, "choose another file name, or remove that file"))
}

/// Refuses the output `output` if it is the same file as the output `other`, or a file that the command writes into the
/// folder `other`.
fn refuse_same_output(output: &Output, other: &Output) -> Result<()> {
    let (folder, file) = match (output.is_folder, other.is_folder) {
        (true, false) => (output, other),
        (false, true) => (other, output),
        _ if location(&output.path).is_some_and(|own| Some(own) == location(&other.path)) => {
            let what = format!("is {}, as {} is", output.path.display(), other.option);
            return Err(usage_error(&output.option, what, "give each its own name"));
        }
        _ => return Ok(()),
    };
    let (Some(root), Some(path)) = (location(&folder.path), location(&file.path)) else { return Ok(()) };
    let Some(first) = path.strip_prefix(&root).ok().and_then(|rest| rest.components().next()) else { return Ok(()) };
    let first = first.as_os_str().to_string_lossy();
    let own = RUN_FILES.contains(&&*first) || MODEL_FILES.contains(&&*first) || first.ends_with(".safetensors");
    if own || first.starts_with("checkpoint-") {
        let what = format!("is {}, which the command writes itself ({})", file.path.display(), folder.option);
        return Err(usage_error(&file.option, what, "choose another file name"));
    }
    Ok(())
}

/// Returns the canonical path of a file or folder, which need not exist. Returns `None` for a device or a pipe, and
/// if the parent folder is missing.
fn location(path: &Path) -> Option<PathBuf> {
    if path.exists() {
        return identity(path).and_then(|_| path.canonicalize().ok());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(folder.canonicalize().ok()?.join(path.file_name()?))
}

/// Refuses the path `-`, which means stdout in other programs.
fn refuse_stdout(option: &str, path: &Path) -> Result<()> {
    match path == Path::new("-") {
        false => Ok(()),
        true => {
            let help = "give the name of a file, or ./- for a file whose name is -";
            Err(usage_error(option, "is -, but this command does not write its output to stdout", help))
        }
    }
}

/// Returns an error if the output file is a folder, or has the name of one (`DIR/`), before work is done whose result
/// could not be written.
fn refuse_folder(file: &Path) -> Result<()> {
    match file.is_dir() || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        true => Err(crate::output::cannot_write(file, ErrorKind::IsADirectory.into())),
        false => Ok(()),
    }
}

/// Returns an error if the folder of an output file does not exist, before work is done whose result could not be
/// written.
fn refuse_missing_folder(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(folder) {
        Ok(facts) if facts.is_dir() => Ok(()),
        Ok(_) => {
            let what = format!("cannot be written: {} is a file, not a folder", folder.display());
            Err(failed(file.display(), what, "choose another folder"))
        }
        Err(e) => Err(crate::output::cannot_write(file, e)),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    /// Every option whose value is a path is classified as input, output, or neither.
    #[test]
    fn every_path_option_has_a_class() {
        // Options for folders in which inputs are searched, or in which files with new names are written.
        const NEITHER: [&str; 4] = ["media_root", "eval_media_root", "include", "profile_dir"];
        fn paths(command: &Command, path: &str, found: &mut Vec<(String, String)>) {
            let is_path = |a: &&Arg| a.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
            found.extend(command.get_arguments().filter(is_path).map(|a| (path.to_string(), a.get_id().to_string())));
            command.get_subcommands().for_each(|c| paths(c, &format!("{path} {}", c.get_name()), found));
        }
        let mut found = Vec::new();
        paths(&crate::cli::command(), "reel", &mut found);
        assert!(found.len() > 40, "{}", found.len());
        for (path, option) in found {
            let known = |class: &[&str]| class.contains(&option.as_str());
            assert!(known(&OUTPUT_FILES) || known(&INPUTS) || known(&NEITHER), "{path}: {option}");
        }
    }

    fn check(line: &str) -> Result<(), String> {
        let matches = crate::cli::command().try_get_matches_from(line.split(' ')).map_err(|e| e.to_string())?;
        let (name, matches) = matches.subcommand().ok_or("no subcommand")?;
        refuse_replaced_inputs(name, matches).map_err(|e| e.to_string())
    }

    /// Two outputs never go to one file, and a page, a trace or a list does not replace a file of another kind.
    #[test]
    fn outputs_that_replace_each_other_or_something_else_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all(at("run")).unwrap();
        for (name, text) in [
            ("a.mp4", "\0\0\0 ftyp"),
            ("page.html", "<!DOCTYPE html>"),
            ("trace.json", "{\"traceEvents\":[]}"),
            ("list.jsonl", "{\"row\":3}"),
            ("empty", ""),
        ] {
            fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), at("link")).unwrap();
        let score = "reel score --model m --messages m";
        let sft = format!("reel sft --model m --data d --out {}", at("run"));
        for (line, words) in [
            (format!("{score} --out {} --trace {}", at("new"), at("link/new")), "as --out is"),
            (format!("{score} --out {} --trace {}", at("trace.json"), at("trace.json")), "as --out is"),
            (format!("{score} --out - --trace {}", at("new")), "--out: is -, "),
            (format!("{score} --out {}", at("run")), "run: cannot be written: it is a folder"),
            (format!("{score} --out {} --trace {}", at("new"), at("a.mp4")), "is not a trace"),
            (format!("reel bench prefill --model m --html {}", at("a.mp4")), "is not an HTML page"),
            (format!("reel report {} --out {}", at("run"), at("a.mp4")), "is not an HTML page"),
            (format!("{sft} --check-data --quarantine {}", at("a.mp4")), "is not a list of unusable rows"),
            (format!("{sft} --check-data --quarantine {}", at("run/skipped.jsonl")), "writes itself (--out)"),
            (format!("{sft} --trace {}", at("run/model.safetensors")), "writes itself (--out)"),
            (format!("{sft} --trace {}", at("run/../run/config.json")), "writes itself (--out)"),
        ] {
            let message = check(&line).expect_err(&line);
            assert!(message.contains(words) && message.contains("; "), "{line}: {message}");
        }
        for line in [
            format!("{score} --out {} --trace {}", at("new"), at("new.json")),
            format!("{score} --out /dev/null --trace /dev/null"),
            format!("{score} --out {} --trace {}", at("a.mp4"), at("trace.json")),
            format!("{score} --out {} --trace {}", at("a.mp4"), at("empty")),
            format!("reel report {} --out {}", at("run"), at("page.html")),
            format!("{sft} --trace {} --check-data --quarantine {}", at("run/trace.json"), at("list.jsonl")),
            format!("{sft} --quarantine {}", at("list.jsonl")),
        ] {
            assert_eq!(check(&line), Ok(()), "{line}");
        }
    }

    #[test]
    fn outputs_that_are_inputs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["a.jsonl", "other.jsonl"] {
            fs::write(at(name), "{}").unwrap();
        }
        fs::create_dir_all(at("model")).unwrap();
        fs::create_dir_all(at("run/rollouts")).unwrap();
        fs::write(at("model/model.safetensors"), "x").unwrap();
        fs::write(at("run/rollouts/step.jsonl"), "x").unwrap();
        fs::write(at("run/report.html"), "<!doctype html>").unwrap();
        fs::write(at("run/metrics.jsonl"), "x").unwrap();
        std::os::unix::fs::symlink(at("a.jsonl"), at("soft")).unwrap();
        fs::hard_link(at("a.jsonl"), at("hard")).unwrap();
        let (a, model, run) = (at("a.jsonl"), at("model"), at("run"));
        for same in ["a.jsonl", "soft", "hard", "model/../a.jsonl"].map(at) {
            for line in [
                format!("reel reward --input {a} --output {same}"),
                format!("reel eval --score-only --benchmark mmvu --predictions {a} --out {same}"),
                format!("reel frames --video {a} --out {same}"),
                format!("reel preprocess --model m --messages {a} --out {same}"),
                format!("reel score --model m --inputs {a} --out {same}"),
                format!("reel tokenize --model m --file {a} --trace {same}"),
                format!("reel kernels report --times {a} --out {same}"),
                format!("reel sim run k.ptx --grid 1 --block 1 --arg buf:f32:4:@{a}#x --out {same}"),
                format!("reel sft --model m --data {a} --out new --check-data --quarantine {same}"),
            ] {
                let message = check(&line).expect_err(&line);
                assert!(
                    message.contains("the same file as ") && message.contains("; choose another"),
                    "{line}: {message}"
                );
            }
        }
        for (line, words) in [
            (format!("reel score --model {model} --messages m --out {model}/model.safetensors"), "folder of --model"),
            (format!("reel merge --model {model} --adapter x --out {model}"), "same folder as --model"),
            (format!("reel sft --model {model} --data d --out {model}"), "same folder as --model"),
            (format!("reel grpo --model m --data d --rollouts {run}/rollouts/step.jsonl --out {run}"), "--rollouts"),
            (format!("reel report {run} --out {run}/metrics.jsonl"), "folder of the input"),
            (format!("reel score --model m --messages m --out {run}/none/x"), "does not exist"),
        ] {
            let message = check(&line).expect_err(&line);
            assert!(message.contains(words), "{line}: {message}");
        }
        for line in [
            format!("reel reward --input {a} --output {}", at("other.jsonl")),
            format!("reel reward --input {a} --output {}", at("new.jsonl")),
            format!("reel report {run}"),
            format!("reel report {run} --out {run}/report.html"),
            format!("reel replay {run} --step 1"),
            format!("reel sft --model {model} --data {a} --out {run} --overwrite --resume-from-checkpoint {run}"),
            format!("reel plan sft --model {model} --data {a} --out {model}"),
            "reel plan sft --model m --data d --out no/such/folder".to_string(),
            "reel reward --input /dev/null --output /dev/null".to_string(),
        ] {
            assert_eq!(check(&line), Ok(()), "{line}");
        }
    }
}
