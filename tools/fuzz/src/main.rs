//! `reel-fuzz`: gives mutated inputs to every parser that reads data from outside the program (files of models, runs
//! and media, rows, requests, kernels). An input fails if the parser panics, aborts, takes more than 2 seconds or
//! 512 MiB of heap, or returns an error message that is not one line without control characters.
//!
//! `mutate` makes the inputs: the same target, seed and index always give the same input. `targets` has a file per
//! group of parsers. `worker` runs the inputs of one target in a process of its own; `supervisor` starts this process,
//! and starts a new one after an input that ended the process or did not end.

mod memory;
mod mutate;
mod random;
mod supervisor;
mod targets;
mod verdict;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use reel_input::chat;

use crate::supervisor::Campaign;

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

/// Give mutated inputs to reel's parsers, and report panics, aborts, hangs, and inputs beyond 2 seconds or 512 MiB.
#[derive(Debug, Parser)]
#[command(name = "fuzz")]
struct Arguments {
    /// Targets to run [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "inputs")]
    seconds: Option<u64>,
    /// Inputs for each target, in place of a time
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
    /// Seed of the inputs
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Run one input again, from the file that a failure named
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print the names of the targets
    #[arg(long)]
    list: bool,
    /// Accept inputs that take more than 2 seconds of processor time
    #[arg(long)]
    any_time: bool,
    /// Run the inputs from this one on in this process, and write the status to this folder (the supervisor's call)
    #[arg(long, hide = true, num_args = 2, value_names = ["FOLDER", "FIRST"])]
    worker: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let kinds = [
        &reel_media::worker::VIDEO_WORKER,
        &chat::TEMPLATE_WORKER,
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
        targets::ALL_TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(true);
    }
    let limit = match (arguments.inputs, arguments.seconds) {
        (Some(inputs), _) => worker::CampaignLimit::Inputs(inputs),
        (None, seconds) => worker::CampaignLimit::Time(Duration::from_secs(seconds.unwrap_or(20))),
    };
    let max_time = (!arguments.any_time).then_some(worker::MAX_INPUT_TIME);
    let plan = worker::CampaignPlan { seed: arguments.seed, first: 0, limit, max_time };
    if let Some(worker) = &arguments.worker {
        let [folder, first] = &worker[..] else { bail!("--worker: needs a folder and a number") };
        let plan = worker::CampaignPlan { first: first.parse().context("--worker")?, ..plan };
        worker::run(find(arguments.targets.first())?, plan, folder.as_ref())?;
        return Ok(true);
    }
    if let Some(file) = &arguments.input {
        let input = std::fs::read(file).with_context(|| file.display().to_string())?;
        return worker::run_one_input(find(arguments.targets.first())?, input, max_time);
    }
    let chosen = match arguments.targets.is_empty() {
        true => targets::ALL_TARGETS.iter().collect(),
        false => arguments.targets.iter().map(|name| find(Some(name))).collect::<Result<Vec<_>>>()?,
    };
    let mut all_held = true;
    println!("{}", supervisor::TABLE_HEADER);
    for target in chosen {
        let campaign = Campaign { target, plan };
        let report = campaign.run()?;
        println!("{}", report.table_row(target.name));
        report.failures.iter().for_each(|failure| println!("{failure}"));
        all_held &= report.failures.is_empty();
    }
    Ok(all_held)
}

fn find(name: Option<&String>) -> Result<&'static targets::FuzzTarget> {
    let Some(name) = name else { bail!("TARGET: is missing; give one of {}", targets::target_names()) };
    let found = targets::ALL_TARGETS.iter().find(|target| target.name == name);
    found.with_context(|| format!("{name}: is not a target; give one of {}", targets::target_names()))
}
