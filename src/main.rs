//! `reel`: trains, serves and evaluates Qwen2.5-VL on video, straight from safetensors. Each subcommand is one thin file
//! here that parses its options, calls a library and prints.

mod bench;
mod ceilings;
mod chart;
mod cli;
mod common;
mod demo;
mod doctor;
mod eval;
mod fail;
mod frames;
mod generate;
mod grpo;
mod html;
mod init;
mod interrupt;
mod kernels;
mod lines;
mod machines;
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
mod trace;
mod training;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    interrupt::survive_file_size_limit();
    if std::env::args_os().nth(1).is_some_and(|a| a == reel_media::worker::WORKER_ARGUMENT) {
        return reel_media::worker::worker_main();
    }
    fail::catch_panics();
    interrupt::watch();
    let parsed = cli::Cli::command().try_get_matches().and_then(|m| Ok((cli::Cli::from_arg_matches(&m)?, m)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return fail::usage(&e),
    };
    let of_command = matches.subcommand().map_or(&matches, |(_, m)| m);
    let common = cli.common.clone();
    trace::start(&common);
    // A panic has been reported by now: it ends the run as any failure does.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cli::run(cli, of_command))) {
        Ok(result) => fail::exit(result.and_then(|()| trace::finish(&common)), common.verbose),
        Err(_) => ExitCode::FAILURE,
    }
}
