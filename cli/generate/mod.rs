//! `reel generate`: generates completions of a prompt (`prompt.rs`), or of every row of a data file (`rows.rs`).

mod prompt;
mod rows;

use anyhow::Result;
use clap::Args;
use reel_engine::{SamplingParams, resolve_sampling, validate_sampling};
use reel_input::config::GenerationConfig;
use reel_input::request::RequestSettings;
use reel_input::sampling::SamplingOptions;

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::model::QuantizeFlag;
use crate::prompt::{MessageFlags, ModelFlags, QuestionFlags};
use crate::tensor_parallel::TensorParallelFlag;
use rows::DataFileFlags;

/// The options of `reel generate`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel generate --model tiny --max-new-tokens 16 --prompt \"Hello\"
  echo '{\"prompt\": [{\"role\": \"user\", \"content\": \"2 + 2?\"}],
    \"problem_type\": \"numerical\", \"solution\": \"<answer>4</answer>\"}' |
    tr -d '\\n' > rows.jsonl
  reel generate --model tiny --data rows.jsonl --out predictions.jsonl \\
    --max-new-tokens 16")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    quantize: QuantizeFlag,
    #[command(flatten)]
    parallel: TensorParallelFlag,
    #[command(flatten)]
    question: QuestionFlags,
    #[command(flatten)]
    messages: MessageFlags,
    #[command(flatten)]
    rows: DataFileFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Number of completions; with --data, of each row [default: 1]
    #[arg(long, value_name = "N")]
    n: Option<usize>,
}

/// Sampling options; defaults are those of a request body given as --messages, then of the model's
/// generation_config.json.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplingFlags {
    #[command(flatten)]
    options: SamplingOptions,
    /// Stop string: end a completion before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// Returns the sampling parameters that the options of a command set.
///
/// # Errors
/// A parameter is out of its range; the error names its option.
pub fn checked_sampling(options: SamplingOptions) -> Result<SamplingParams> {
    let params = resolve_sampling(options, &GenerationConfig::default());
    validate_sampling(&params).map_err(|e| {
        let d = e.diagnostic;
        usage_error(&format!("--{}", d.location.replace('_', "-")), d.what, d.help)
    })?;
    Ok(params)
}

impl SamplingFlags {
    /// Checks the values of the flags, before a model is opened.
    fn validate(&self) -> Result<()> {
        if self.stop.iter().any(String::is_empty) {
            return Err(usage_error(
                "--stop",
                "is an empty text, which would end every completion at once",
                "give a text, or leave --stop out",
            ));
        }
        checked_sampling(self.options).map(drop)
    }

    /// Returns the settings of a generation. Flags override the fields of a request body. `seed` is the value of
    /// `--seed`.
    fn settings(&self, body: &RequestSettings, seed: Option<u64>) -> RequestSettings {
        RequestSettings {
            sampling: SamplingOptions { seed, ..self.options }.or(body.sampling),
            stop: if self.stop.is_empty() { body.stop.clone() } else { self.stop.clone() },
            ..body.clone()
        }
    }
}

pub use reel_input::request::MAX_COMPLETIONS;

/// Refuses an `--n` outside `1..=MAX_COMPLETIONS`.
pub fn check_completion_count(n: usize) -> Result<()> {
    match n {
        1..=MAX_COMPLETIONS => Ok(()),
        _ => {
            let what = format!("is {n}, which is not a possible number of completions");
            Err(usage_error("--n", what, format!("give 1 to {MAX_COMPLETIONS}")))
        }
    }
}

impl GenerateArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.n.map_or(Ok(()), check_completion_count)?;
        self.sampling.validate()?;
        if self.rows.data.is_none() {
            self.rows.refuse_row_options_without_data()?;
            self.refuse_standard_input_of_several()?;
        }
        self.parallel.run("generate", &self.model, common, |process, common| match &self.rows.data {
            Some(data) => self.run_rows(data, process, common),
            None => self.run_prompt(process, common),
        })
    }

    /// Refuses messages from standard input if several processes compute the model, because each would have to read
    /// it.
    fn refuse_standard_input_of_several(&self) -> Result<()> {
        match self.parallel.uses_several_processes() && self.messages.reads_standard_input() {
            true => {
                Err(usage_error("--messages", "is standard input, which several processes cannot read", "give a file"))
            }
            false => Ok(()),
        }
    }
}
