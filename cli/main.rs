//! `reel`: fine-tunes, runs and evaluates Qwen2.5-VL and Qwen3-VL on video, straight from safetensors.
//!
//! Each subcommand is one file here that parses its options, calls a library and prints. [`cli`] lists the subcommands;
//! `common` has the options that all subcommands take.

mod arguments;
mod bench;
mod cli;
mod common;
mod completions;
mod curate;
mod data;
mod demo;
mod demo_clips;
mod dequantize;
mod doctor;
mod endpoint;
mod eval;
mod fail;
mod frames;
mod generate;
mod grpo;
mod help;
mod hub;
mod init;
mod interrupt;
mod kernels;
mod launch;
mod lines;
mod man;
mod media;
mod merge;
mod model;
mod output;
#[cfg(test)]
mod paste_tests;
mod plan;
mod predictor;
mod preprocess;
mod profiler;
mod prompt;
mod quantize;
mod rank_flags;
mod ranks;
mod replaced;
mod replay;
mod report;
mod request;
mod resize;
mod reward;
mod score;
mod search_paths;
mod serve;
mod sft;
mod sim;
mod tensor_parallel;
mod tokenize;
mod training;
mod training_evaluator;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::FromArgMatches;
use reel_device::cpu::simd;
use reel_device::{NVTX_INJECTION_VARIABLE, attach_nvtx_tool};
use reel_input::chat;
use reel_tools::measure::trace;
use reel_train::runs::config_file::ConfigFile;
use reel_train::runs::paste;

fn main() -> ExitCode {
    if let Err(e) = search_paths::leave_out_current_folder() {
        return ExitCode::from(fail::run_and_exit_code(|| Err(e), false));
    }
    interrupt::make_file_size_limit_an_error();
    // SIGUSR1 sets a flag instead of ending the process. Slurm sends this signal to all processes of a job step,
    // including the workers that decode media.
    interrupt::save_flag();
    let kinds = [
        &reel_input::media::worker::VIDEO_WORKER,
        &reel_input::media::worker::GPU_VIDEO_WORKER,
        &chat::TEMPLATE_WORKER,
        &reel_input::rows::worker::WORKER,
        &reel_engine::GRAMMAR_WORKER,
    ];
    if let Some(code) = reel_support::worker::run_if_worker(&kinds) {
        return code;
    }
    reel_support::worker::set_worker_program(reel_support::worker::WorkerProgram::of_current_executable());
    fail::report_panics_in_one_line();
    interrupt::watch_signals();
    let words = arguments::join_negative_numbers(std::env::args_os());
    let parser = cli::command();
    if let Err(e) = arguments::refuse_non_utf8_words(&words, &parser) {
        return ExitCode::from(fail::run_and_exit_code(|| Err(e), false));
    }
    if let Err(e) = arguments::refuse_repeated_common_options(&words, &parser) {
        return ExitCode::from(fail::run_and_exit_code(|| Err(e), false));
    }
    let words = match translated_words(&parser, words) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let parsed = parser.clone().try_get_matches_from(words).and_then(|m| Ok((cli::Cli::from_arg_matches(&m)?, m)));
    let (mut cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return fail::print_usage_error(&e, &cli::command()),
    };
    // A wrong value of the environment variable is an error in every command, so that a test or a script cannot
    // silently run on another instruction set than the variable names.
    if let Err(what) = simd::requested_isa() {
        let names = simd::Isa::ALL.map(simd::Isa::name).join(", ");
        let e = fail::usage_error(simd::ISA_VARIABLE, what, format!("give one of {names}, or unset this variable"));
        return ExitCode::from(fail::run_and_exit_code(|| Err(e), cli.common.verbose));
    }
    let (name, command_matches) = matches.subcommand().unwrap_or(("", &matches));
    cli.common.verbose |= common::rust_log_asks_for_details();
    // The paths become absolute, because `reel replay` changes the working directory.
    let absolute = |to: PathBuf| std::path::absolute(&to).unwrap_or(to);
    cli.common.trace = cli.common.trace.map(absolute);
    let common = cli.common.clone();
    if common.offline {
        reel_input::network::forbid_downloads();
    }
    // A missing profiling tool gives a warning and not an error: the variable may be inherited from a job script or a
    // container, and must not end a run of several days.
    if let Err(reason) = attach_nvtx_tool() {
        let reason = reel_support::diagnostic::escape_controls(&reason).to_string();
        reel_support::diagnostic::note!(
            "warning: {NVTX_INJECTION_VARIABLE}: {reason}; no ranges are reported to a profiling tool"
        );
    }
    common.trace.clone().into_iter().for_each(trace::start_trace);
    let run = || {
        let done = cli::run(cli, name, command_matches);
        if !common.quiet {
            media::print_disk_cache_use();
        }
        done.and_then(|()| Ok(trace::finish_trace()?))
    };
    ExitCode::from(fail::run_and_exit_code(run, common.verbose))
}

/// Translates a command of another program into options of reel (see [`paste`]), and prints the notes. If the
/// command is refused, prints the message and returns the exit code as the error.
fn translated_words(parser: &clap::Command, words: Vec<OsString>) -> Result<Vec<OsString>, ExitCode> {
    let texts: Vec<String> = words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let world = ranks::world_from_environment().ok().flatten();
    let is_child = std::env::var_os("REEL_LAUNCH").is_some();
    let surroundings = paste::CommandEnvironment {
        variable: &|name| std::env::var(name).ok().filter(|value| !value.is_empty()),
        // With `--gpus`, the batch size on the command line is for all processes together, so they count as one.
        processes: world.as_ref().filter(|_| !is_child).map_or(1, |world| world.size),
        read_config_file: &read_config_file,
        usage_error: &fail::usage_error_message,
    };
    let is_first = world.as_ref().is_none_or(|world| world.rank == 0) && !is_child;
    match paste::translate_command(parser, &texts, &surroundings) {
        paste::TranslationOutcome::Unchanged => Ok(words),
        paste::TranslationOutcome::Translated { words: translated, notes } => {
            let is_quiet = texts.iter().any(|word| ["--quiet", "--json"].contains(&word.as_str()));
            for note in notes.iter().filter(|_| is_first && !is_quiet) {
                reel_support::diagnostic::note!("{}", reel_support::diagnostic::escape_controls(note));
            }
            Ok(words.into_iter().take(1).chain(translated.into_iter().map(OsString::from)).collect())
        }
        paste::TranslationOutcome::Refused { message } => {
            if is_first {
                let lines: Vec<String> =
                    message.lines().map(|l| reel_support::diagnostic::escape_controls(l).to_string()).collect();
                reel_support::diagnostic::note!("error: {}", lines.join("\n"));
            }
            Err(ExitCode::from(fail::USAGE_ERROR_EXIT_CODE))
        }
    }
}

/// Reads a configuration file for the translation of a command.
fn read_config_file(path: &Path) -> Result<paste::ConfigEntries, String> {
    let file = ConfigFile::read(path).map_err(|e| e.to_string())?;
    let entries = file.entries().map(|(key, value)| (key.to_string(), value.clone())).collect();
    Ok(paste::ConfigEntries { entries, is_run_record: file.is_run_record() })
}
