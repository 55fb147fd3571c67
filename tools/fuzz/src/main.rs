//! `reel-fuzz`: gives mutated inputs to every parser that reads data from outside the program (files of models, runs
//! and media, rows, requests, kernels). An input fails if the parser panics, aborts, takes more than 2 seconds or
//! 512 MiB of heap, or returns an error message that is not one line without control characters.
//!
//! libFuzzer makes the inputs: it mutates seeds and keeps the inputs that reach new code, if the program is built with
//! coverage counters (`./x fuzz`). `targets` has a file per group of parsers. `session` runs libFuzzer in a child
//! process per target, which ends at its first failure; this file starts the children and prints their results.

mod session;
mod targets;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tempfile::TempDir;

use crate::targets::{ALL_TARGETS, BROKEN, FuzzTarget};

/// Give mutated inputs to reel's parsers, and report panics, aborts, hangs, and inputs beyond 2 seconds or 512 MiB.
#[derive(Debug, Parser)]
#[command(name = "fuzz")]
struct Arguments {
    /// Targets to run [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "inputs")]
    seconds: Option<u32>,
    /// Inputs for each target, in place of a time
    #[arg(long, value_name = "N")]
    inputs: Option<u32>,
    /// Seed of the inputs
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u32,
    /// Run one input again, from the file that a failure named
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print the names of the targets
    #[arg(long)]
    list: bool,
    /// Accept inputs that take more than 2 seconds, up to 60 seconds
    #[arg(long)]
    any_time: bool,
    /// Run libFuzzer in this process, with this folder for the files of inputs (for the program's own calls)
    #[arg(long, hide = true, value_name = "FOLDER")]
    worker: Option<PathBuf>,
}

fn main() -> ExitCode {
    let kinds = [
        &reel_input::media::worker::VIDEO_WORKER,
        &reel_input::chat::TEMPLATE_WORKER,
        &reel_input::rows::worker::WORKER,
        &reel_engine::GRAMMAR_WORKER,
    ];
    if let Some(code) = reel_support::worker::run_if_worker(&kinds) {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command. Returns false if an input failed.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        ALL_TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(true);
    }
    let timeout = format!("-timeout={}", if arguments.any_time { 60 } else { 2 });
    if let (Some(folder), Some(file)) = (&arguments.worker, &arguments.input) {
        return session::run_file(find(arguments.targets.first())?, folder, timeout, file);
    }
    if let Some(folder) = &arguments.worker {
        let limit = match (arguments.inputs, arguments.seconds) {
            (Some(inputs), _) => format!("-runs={inputs}"),
            (None, seconds) => format!("-max_total_time={}", seconds.unwrap_or(20)),
        };
        // libFuzzer draws a random seed in place of 0.
        let seed = format!("-seed={}", u64::from(arguments.seed) + 1);
        return session::fuzz(find(arguments.targets.first())?, folder, vec![timeout, limit, seed]);
    }
    if arguments.input.is_some() {
        let folder = scratch_folder()?;
        return Ok(worker(find(arguments.targets.first())?, folder.path())?.status()?.success());
    }
    let chosen = match arguments.targets.is_empty() {
        true => ALL_TARGETS.iter().collect(),
        false => arguments.targets.iter().map(|name| find(Some(name))).collect::<Result<Vec<_>>>()?,
    };
    println!("target             inputs  inputs/s  coverage  peak MiB  slowest s");
    let mut all_passed = true;
    for target in chosen {
        all_passed &= start_worker(target, arguments.seed)?;
    }
    Ok(all_passed)
}

fn find(name: Option<&String>) -> Result<&'static FuzzTarget> {
    let all = || ALL_TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let Some(name) = name else { bail!("TARGET: is missing; give one of {}", all()) };
    let found = ALL_TARGETS.iter().chain([&BROKEN]).find(|target| target.name == name);
    found.with_context(|| format!("{name}: is not a target; give one of {}", all()))
}

/// Makes a temporary folder, in memory where that is possible: on a disk, each file of an input would wait for it.
fn scratch_folder() -> Result<TempDir> {
    Ok(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?)
}

/// The command of a child process for a target, with the arguments of this process. A failing input ends the child, so
/// this process deletes the temporary files.
fn worker(target: &FuzzTarget, folder: &Path) -> Result<Command> {
    let options = std::env::args_os().skip(1).filter(|argument| ALL_TARGETS.iter().all(|t| argument != t.name));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(target.name).args(options.filter(|argument| argument != BROKEN.name));
    command.arg("--worker").arg(folder).stdin(Stdio::null()).env("TMPDIR", folder);
    Ok(command)
}

/// Fuzzes a target in a child process with the arguments of this process, and prints the result. Returns false if an
/// input failed; the input is then kept in `target/fuzz`.
fn start_worker(target: &FuzzTarget, seed: u32) -> Result<bool> {
    let (folder, begun) = (scratch_folder()?, Instant::now());
    let log = folder.path().join("log");
    let status = worker(target, folder.path())?.stderr(File::create(&log)?).status()?;
    let seconds = begun.elapsed().as_secs_f64();
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    // libFuzzer writes `cov: 12` for the counters that inputs have reached and, at its end, `stat::peak_rss_mb: 12`.
    let last = |name: &str| log.rsplit_once(name).and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("-");
    let inputs = last("stat::number_of_executed_units:");
    println!(
        "{:<16} {inputs:>8} {:>9.0} {:>9} {:>9} {:>10}",
        target.name,
        inputs.parse().unwrap_or(0.0) / seconds,
        last(" cov: "),
        last("stat::peak_rss_mb:"),
        last("stat::slowest_unit_time_sec:"),
    );
    if !status.success() {
        println!("FAILED: target {}, seed {seed}: {}", target.name, problem(&log));
        let file = format!("target/fuzz/{}-{seed}", target.name);
        if let Ok(input) = fs::read(folder.path().join(session::INPUT_FILE)) {
            let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&file);
            fs::create_dir_all(kept.with_file_name(""))?;
            fs::write(&kept, input).with_context(|| file.clone())?;
            println!("  to repeat it: ./x fuzz {} --input {file}", target.name);
        }
    }
    Ok(status.success())
}

/// Returns what ended a worker, from its log.
fn problem(log: &str) -> String {
    let signs = ["panicked at", "memory allocation of", "overflowed its stack", "error: ", "ERROR: libFuzzer: "];
    let lines = log.lines().skip_while(|line| !signs.iter().any(|sign| line.contains(sign)));
    let lines: Vec<&str> = lines.take_while(|line| !line.contains("backtrace")).take(3).collect();
    if lines.is_empty() { "the process ended".to_string() } else { lines.join(" ") }
}
