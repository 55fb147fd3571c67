//! The command line: what commands there are.

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgMatches, Parser, Subcommand};

use crate::common::Common;
use crate::{
    bench, demo, doctor, eval, frames, generate, grpo, init, kernels, merge, plan, preprocess, replay, report, resize,
    reward, score, sft, sim, tokenize,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Runs, fine-tunes and measures Qwen2.5-VL on video, straight from safetensors.
#[derive(Parser, Debug)]
#[command(name = "reel", version, styles = STYLES, max_term_width = 110, subcommand_required = true)]
#[command(arg_required_else_help = true, args_override_self = true, disable_help_subcommand = true)]
#[command(after_help = "`reel COMMAND --help` has every option and an example.")]
pub struct Cli {
    /// Options common to every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Measure how fast a model reads, makes tokens or learns, and compare such results
    Bench(bench::Bench),
    /// Teach a tiny model to answer questions about films, and show it
    Demo(demo::Demo),
    /// Say what this machine has, and what to install for what it has not
    Doctor(doctor::Doctor),
    /// Score a model's answers to a benchmark
    Eval(eval::Eval),
    /// Say which frames of a film are taken, and decode them
    Frames(frames::Frames),
    /// Answer a question, about a film, a picture or neither
    Generate(generate::Generate),
    /// Train a model by what its own answers are worth
    Grpo(Box<grpo::Grpo>),
    /// Make a model folder with random weights
    Init(init::Init),
    /// List the kernels, show what one does and needs, check their machine code
    Kernels(kernels::Kernels),
    /// Add a LoRA adapter to its model's weights
    Merge(merge::Merge),
    /// Say what a command would need, in memory and time, without running it
    Plan(plan::Plan),
    /// Turn messages and their media into what the model reads
    Preprocess(preprocess::Preprocess),
    /// Do one training step again and compare the weights that it leaves with those that were recorded
    Replay(replay::Replay),
    /// Write the page of a training run: its curves, and what it drew over time
    Report(report::Report),
    /// Say to which size a picture is resized
    Resize(resize::Resize),
    /// Say what given completions are worth in reinforcement learning
    Reward(reward::Reward),
    /// Run the model once and write what it says of every token
    Score(score::Score),
    /// Fine-tune a model on conversations about films, pictures or neither
    Sft(Box<sft::Sft>),
    /// Run CUDA kernels on the simulator and find their bugs
    Sim(sim::Sim),
    /// Turn texts into token ids
    Tokenize(tokenize::Tokenize),
}

/// Runs the command that was given; `matches` are those of the command.
pub fn run(cli: Cli, matches: &ArgMatches) -> Result<()> {
    let common = &cli.common;
    match cli.command {
        Command::Bench(c) => c.run(common),
        Command::Demo(c) => c.run(common),
        Command::Doctor(c) => c.run(common),
        Command::Eval(c) => c.run(common),
        Command::Frames(c) => c.run(common),
        Command::Generate(c) => c.run(common),
        Command::Grpo(c) => c.run(common, matches),
        Command::Init(c) => c.run(common),
        Command::Kernels(c) => c.run(common),
        Command::Merge(c) => c.run(common),
        Command::Plan(c) => c.run(common, matches),
        Command::Preprocess(c) => c.run(common),
        Command::Replay(c) => c.run(common),
        Command::Report(c) => c.run(common),
        Command::Resize(c) => c.run(common),
        Command::Reward(c) => c.run(common),
        Command::Score(c) => c.run(common),
        Command::Sft(c) => c.run(common, matches),
        Command::Sim(c) => c.run(common),
        Command::Tokenize(c) => c.run(common),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for c in super::Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = c.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n  "), "{} has no example", c.get_name());
            // Longer lines would be broken on a terminal, and no longer run as printed.
            assert!(help.lines().all(|line| line.len() < 79), "{}: {help}", c.get_name());
        }
    }
}
