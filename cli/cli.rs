//! The command line: the list of subcommands, and which code runs each.

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgMatches, CommandFactory, Parser, Subcommand};

use reel_train::runs::paste;

use crate::common::CommonOptions;
use crate::{
    arguments, bench, completions, curate, data, demo, demo_clips, dequantize, doctor, eval, frames, generate, grpo,
    help, init, kernels, man, merge, output, plan, preprocess, quantize, ranks, replaced, replay, report, resize,
    reward, score, serve, sft, sim, tokenize,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Fine-tune (SFT, GRPO), run and evaluate Qwen2.5-VL and Qwen3-VL on video, straight from safetensors.
#[derive(Parser, Debug)]
#[command(name = "reel", version, styles = STYLES, max_term_width = 110, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "\
`reel COMMAND --help` and `reel help COMMAND` list every option.

Environment: RUST_LOG=info (or debug, trace) has the effect of --verbose.
Exit codes: 0 done, 1 failed, 2 bad usage, 130 stopped by Ctrl-C.
Signals: SIGINT and SIGTERM stop training after the current step, with a
  checkpoint. SIGUSR1 writes a checkpoint, and training goes on.

Example:
  reel doctor")]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: CommonOptions,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// All subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Measure throughput of prefill, decode, rollouts, training, single kernels or a server; compare results
    Bench(bench::BenchArgs),
    /// Print a script that completes commands and options in a shell
    Completions(completions::CompletionsArgs),
    /// Build a data set of chains of thought with models behind HTTP endpoints: describe, reason, revise, filter
    Curate(Box<curate::CurateArgs>),
    /// Check, describe and convert data files: JSON, JSONL, Parquet, folders of data sets
    Data(data::DataArgs),
    /// Train a tiny model on synthetic video clips in minutes and write a page with the results
    Demo(demo::DemoArgs),
    /// Write the clips and rows of the recipes in docs/examples whose questions need a tool
    #[command(hide = true)]
    DemoClips(demo_clips::DemoClipsArgs),
    /// Write the model of a folder with quantised weights in one dtype
    Dequantize(dequantize::DequantizeArgs),
    /// Check this machine: CPU, memory, FFmpeg, CUDA, GPU, model cache; say what to install
    Doctor(doctor::DoctorArgs),
    /// Run a model over video benchmarks (VSI-Bench, VideoMMMU, MMVU, MVBench, TempCompass, Video-MME, Video-Holmes),
    /// score and compare
    Eval(Box<eval::EvalArgs>),
    /// Show which frames of a video are selected, and decode them
    Frames(frames::FramesArgs),
    /// Generate an answer to a prompt about a video, an image, or text alone; or to each row of a data file
    ///
    /// On a terminal the text of a single answer appears as it is generated. With --data, each row is written to --out
    /// with its answer in the column output, which reel eval --score-only reads. Rows are generated in batches; a row's
    /// answer does not depend on the other rows, nor on a stop and --resume.
    Generate(generate::GenerateArgs),
    /// Train with reinforcement learning from rewards (GRPO, T-GRPO)
    Grpo(Box<grpo::GrpoArgs>),
    /// Print the help text of a command
    Help(help::HelpArgs),
    /// Create a model folder with random weights
    Init(init::InitArgs),
    /// List, show, check and time the CPU and CUDA kernels
    Kernels(kernels::KernelsArgs),
    /// Write a manual page for each command
    Man(man::ManArgs),
    /// Merge a LoRA adapter into the weights of its base model
    Merge(merge::MergeArgs),
    /// Predict memory and time of a command without running it and without a GPU
    Plan(plan::PlanArgs),
    /// Write the model inputs of chat messages: token ids, M-RoPE positions, patches
    Preprocess(preprocess::PreprocessArgs),
    /// Write a model with weights of 8-bit floats or 4-bit integers (fp8, AWQ)
    Quantize(quantize::QuantizeArgs),
    /// Repeat one step of a training run and check that the resulting weights have the same bits
    Replay(replay::ReplayArgs),
    /// Write an HTML page about a training run: curves and sampled completions
    Report(report::ReportArgs),
    /// Show to which size an image is resized
    Resize(resize::ResizeArgs),
    /// Score given completions with the reward functions
    Reward(reward::RewardArgs),
    /// Run one forward pass and write logits, log-probabilities and vision embeddings
    Score(score::ScoreArgs),
    /// Answer requests over HTTP with OpenAI's API
    Serve(serve::ServeArgs),
    /// Fine-tune on conversations about videos, images or text alone (SFT, LoRA)
    Sft(Box<sft::SftArgs>),
    /// Run CUDA kernels on a simulator that finds races, bad accesses and missing synchronization
    Sim(sim::SimArgs),
    /// Tokenize texts into token ids
    Tokenize(tokenize::TokenizeArgs),
}

/// Returns the parser of the command line.
pub fn command() -> clap::Command {
    arguments::with_additional_spellings(sim::with_own_examples(Cli::command()))
}

/// Runs the subcommand `name`; `matches` are its parsed arguments.
pub fn run(cli: Cli, name: &str, matches: &ArgMatches) -> Result<()> {
    let common = &cli.common;
    common.validate()?;
    if let Some(table) = paste::explain_defaults(&command(), matches) {
        return output::print_text(&table);
    }
    ranks::refuse_several_processes(name)?;
    replaced::refuse_replaced_inputs(name, matches)?;
    match cli.command {
        Command::Bench(c) => c.run(common),
        Command::Completions(c) => c.run(command()),
        Command::Curate(c) => c.run(common),
        Command::Data(c) => c.run(common),
        Command::Demo(c) => c.run(common, &command()),
        Command::DemoClips(c) => c.run(common),
        Command::Dequantize(c) => c.run(common),
        Command::Doctor(c) => c.run(common),
        Command::Eval(c) => c.run(common),
        Command::Frames(c) => c.run(common),
        Command::Generate(c) => c.run(common),
        Command::Grpo(c) => c.run(common, matches),
        Command::Help(c) => c.run(&command()),
        Command::Init(c) => c.run(common),
        Command::Kernels(c) => c.run(common),
        Command::Man(c) => c.run(common, command()),
        Command::Merge(c) => c.run(common),
        Command::Plan(c) => c.run(common, matches),
        Command::Preprocess(c) => c.run(common),
        Command::Quantize(c) => c.run(common),
        Command::Replay(c) => c.run(common),
        Command::Report(c) => c.run(common),
        Command::Resize(c) => c.run(common),
        Command::Reward(c) => c.run(common),
        Command::Score(c) => c.run(common),
        Command::Serve(c) => c.run(common),
        Command::Sft(c) => c.run(common, matches),
        Command::Sim(c) => c.run(common),
        Command::Tokenize(c) => c.run(common),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn argument_definitions_are_consistent() {
        super::command().debug_assert();
    }

    /// Every subcommand at every level has an example whose lines fit a terminal: a line that the terminal wraps could
    /// not be copied and pasted.
    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example:\n  "), "{path} has no example");
            assert!(help.lines().all(|line| line.len() < 79), "{path}: {help}");
            for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        check(&super::command(), "reel");
    }
}
