//! Refuses a command whose output would replace one of its inputs.
//!
//! Paths are compared by the file that they lead to, so links of both kinds and different spellings of a path are
//! noticed. Options are classified by their name in the parser; a test checks that every path option has a class.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;
use clap::ArgMatches;

use crate::fail::{bad_usage, failed};

/// Options that name a file to write.
const OUTPUT_FILES: [&str; 4] = ["out", "output", "html", "trace"];

/// Commands whose `--out` is a folder.
const WRITES_FOLDER: [&str; 6] = ["demo", "grpo", "init", "man", "merge", "sft"];

/// Options and arguments that name files or folders to read.
const INPUTS: [&str; 19] = [
    "model",
    "adapter",
    "messages",
    "inputs",
    "data",
    "config",
    "rollouts",
    "siglip",
    "quarantine",
    "input",
    "predictions",
    "video",
    "image",
    "file",
    "times",
    "run",
    "compare",
    "args",
    "resume_from_checkpoint",
];

/// Files and folders that a training command writes into its output folder, beside weights and checkpoints.
const RUN_FILES: [&str; 6] =
    ["metrics.jsonl", "skipped.jsonl", "run.json", "trainer_state.json", "hashes.bin", "rollouts"];

/// A file that the command is going to replace, with the option that names it.
#[derive(Debug)]
struct Output {
    option: String,
    path: PathBuf,
}

/// The outputs of this command that exist already, for inputs that are only known later.
static OUTPUTS: OnceLock<Vec<Output>> = OnceLock::new();

/// A file or folder on disk, whatever path leads to it.
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

/// Refuses the command `name` if one of its outputs is one of its inputs, or if the folder of an output file is
/// missing. `matches` are its parsed arguments.
pub fn refuse_replaced_inputs(name: &str, matches: &ArgMatches) -> Result<()> {
    let mut given = Vec::new();
    collect(name, matches, &mut given);
    // `reel plan` takes the options of a command, but writes nothing.
    let writes_out = |option: &str| option != "out" || !["plan", "replay"].contains(&name);
    let is_output = |option: &str| OUTPUT_FILES.contains(&option) && writes_out(option);
    let checks_data = matches.try_get_one::<bool>("check_data").ok().flatten() == Some(&true);
    let mut outputs = Vec::new();
    for (option, value) in &given {
        let path = PathBuf::from(value);
        let is_list = option == "quarantine" && checks_data;
        if !is_output(option) && !is_list {
            continue;
        }
        let is_folder = option == "out" && WRITES_FOLDER.contains(&name);
        if !is_folder && !is_list {
            refuse_missing_folder(&path)?;
        }
        let inputs = given.iter().filter(|(input, _)| INPUTS.contains(&input.as_str()) || reads_out(name, input));
        for (input, value) in inputs.filter(|(input, _)| !(is_list && input == "quarantine")) {
            let source = PathBuf::from(file_in_argument(input, value));
            match is_folder {
                true => refuse_run_folder(&spelled(option), &path, &spelled(input), &source)?,
                false => refuse_file(&spelled(option), &path, &spelled(input), &source)?,
            }
        }
        if !is_folder {
            outputs.push(Output { option: spelled(option), path });
        }
    }
    // Empty before: a process runs one command.
    let _ = OUTPUTS.set(outputs);
    Ok(())
}

/// Refuses an input file that is known only now, such as a video in a messages file, if this command would replace it.
pub fn refuse_if_output(input: &Path, location: &str) -> Result<()> {
    OUTPUTS
        .get()
        .into_iter()
        .flatten()
        .try_for_each(|output| refuse_file(&output.option, &output.path, location, input))
}

/// Returns true if the command reads what its argument `out` names: `reel replay OUT`.
fn reads_out(command: &str, option: &str) -> bool {
    command == "replay" && option == "out"
}

/// Collects the names and values of all arguments that the user gave, those of nested subcommands included.
fn collect(name: &str, matches: &ArgMatches, given: &mut Vec<(String, String)>) {
    for id in matches.ids().map(|id| id.as_str()) {
        let values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
        let texts = values.map(|value| value.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
        given.extend(texts.map(|text| (id.to_string(), text)));
    }
    if let Some((inner, matches)) = matches.subcommand() {
        collect(&format!("{name} {inner}"), matches, given);
    }
}

/// Returns the file in a kernel argument such as `buf:f32:4:@x.safetensors#a`; other values are paths themselves.
fn file_in_argument<'a>(option: &str, value: &'a str) -> &'a str {
    match value.split_once('@').filter(|_| option == "args") {
        Some((_, file)) => file.rsplit_once('#').map_or(file, |(file, _)| file),
        None => value,
    }
}

fn spelled(option: &str) -> String {
    match option {
        "run" | "file" => "the input".to_string(),
        "args" => "--arg".to_string(),
        name => format!("--{}", name.replace('_', "-")),
    }
}

/// Refuses an output file that is the input, or that exists in the input folder. Pages in an input folder may be
/// replaced: `reel report` writes its page into the folder of the run.
pub fn refuse_file(option: &str, output: &Path, input_option: &str, input: &Path) -> Result<()> {
    let (Some(written), Some(read)) = (identity(output), identity(input)) else { return Ok(()) };
    let help = "choose another file name";
    if written == read {
        let kind = if output.is_dir() { "folder" } else { "file" };
        let what = format!("is {}, the same {kind} as {input_option}, which would be replaced", output.display());
        return Err(bad_usage(option, what, help));
    }
    let is_page = output.extension().is_some_and(|e| e == "html");
    let folder = output.canonicalize().ok().and_then(|file| identity(file.parent()?));
    if input.is_dir() && folder == Some(read) && !is_page {
        let what = format!("is {}, a file in the folder of {input_option}, which would be replaced", output.display());
        return Err(bad_usage(option, what, help));
    }
    Ok(())
}

/// Refuses an output folder that is an input, or an input file of the kind that a run in this folder replaces.
pub fn refuse_run_folder(option: &str, folder: &Path, input_option: &str, input: &Path) -> Result<()> {
    if input_option == "--resume-from-checkpoint" {
        return Ok(());
    }
    let (Some(written), Some(read)) = (identity(folder), identity(input)) else { return Ok(()) };
    if written == read {
        let what = format!("is {}, the same folder as {input_option}", folder.display());
        return Err(bad_usage(option, what, "choose another folder"));
    }
    let (Ok(folder), Ok(input)) = (folder.canonicalize(), input.canonicalize()) else { return Ok(()) };
    let Some(first) = input.strip_prefix(&folder).ok().and_then(|rest| rest.components().next()) else { return Ok(()) };
    let first = first.as_os_str().to_string_lossy();
    if input.is_file() && (RUN_FILES.contains(&&*first) || first.starts_with("checkpoint-")) {
        let what = format!("is the folder of {}, the file of {input_option}, which would be replaced", input.display());
        return Err(bad_usage(option, what, "choose another folder"));
    }
    Ok(())
}

/// Refuses an output file whose folder does not exist, before the work that would be lost.
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

    /// Every option whose value is a path is an input, an output, or known to be neither.
    #[test]
    fn every_path_option_has_a_class() {
        // Folders below which inputs are looked up.
        const NEITHER: [&str; 2] = ["media_root", "include"];
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
        fs::write(at("run/report.html"), "x").unwrap();
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
