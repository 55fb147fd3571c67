//! `reel`: fine-tunes, runs and evaluates Qwen2.5-VL on video, straight from safetensors.
//!
//! Each subcommand is one file here that parses its options, calls a library and prints. [`cli`] lists them; `common`
//! has the options that all of them take.

mod bench;
mod cli;
mod common;
mod demo;
mod doctor;
mod eval;
mod fail;
mod frames;
mod generate;
mod grpo;
mod init;
mod interrupt;
mod kernels;
mod lines;
mod media;
mod merge;
mod model;
mod output;
mod plan;
mod preprocess;
mod prompt;
mod replay;
mod report;
mod resize;
mod reward;
mod score;
mod sft;
mod sim;
mod tokenize;
mod training;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use reel_kernels::simd;
use reel_measure::trace;
use reel_model::input::chat;

fn main() -> ExitCode {
    interrupt::make_file_size_limit_an_error();
    if std::env::args_os().nth(1).is_some_and(|a| a == reel_media::worker::WORKER_ARGUMENT) {
        return reel_media::worker::worker_main();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == chat::TEMPLATE_WORKER_ARGUMENT) {
        return chat::worker_main();
    }
    // This path names the running program even if its file was replaced or deleted after the start.
    chat::render_in_worker_process("/proc/self/exe".into());
    fail::report_panics_in_one_line();
    interrupt::watch_signals();
    let parsed = cli::Cli::command().try_get_matches().and_then(|m| Ok((cli::Cli::from_arg_matches(&m)?, m)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return fail::print_usage_error(&e),
    };
    // A wrong value is an error of every command, so that a test or a script cannot run on another instruction set
    // than it names.
    if let Err(what) = simd::requested_isa() {
        let names = simd::Isa::ALL.map(simd::Isa::name).join(", ");
        let e = fail::bad_usage(simd::ISA_VARIABLE, what, format!("give one of {names}, or unset it"));
        return fail::print_error_and_exit_code(Err(e), cli.common.verbose);
    }
    let command_matches = matches.subcommand().map_or(&matches, |(_, m)| m);
    let common = cli.common.clone();
    if common.offline {
        reel_model::network::forbid_downloads();
    }
    if let Some(to) = &common.trace {
        trace::start_trace(to);
    }
    // After a panic, whose message the panic hook has printed, exit with code 1, as after any failure.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cli::run(cli, command_matches))) {
        Ok(result) => fail::print_error_and_exit_code(result.and_then(|()| Ok(trace::finish_trace()?)), common.verbose),
        Err(_) => ExitCode::FAILURE,
    }
}
