//! `reel generate`: generates completions of a prompt (`prompt.rs`), or of every row of a data file (`rows.rs`).

mod prompt;
mod rows;

use anyhow::Result;
use clap::Args;
use reel_engine::SamplingParams;
use reel_input::request::RequestSettings;
use reel_support::error::Kind;

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
    /// Maximum number of tokens to generate [default: 1024, or as many as the prompt leaves of the model's positions]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy decoding [default: generation_config.json, else greedy]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from the K most likely tokens; 0 and -1 are all [default: generation_config.json, else 0]
    #[arg(long, value_name = "K", value_parser = parse_top_k)]
    top_k: Option<u32>,
    /// Repetition penalty; a value above 1 lowers the probability of tokens that have already occurred [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Stop string: end a completion before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// Parses `--top-k`. -1 stands for all tokens in vLLM, as 0 does.
pub fn parse_top_k(text: &str) -> Result<u32, String> {
    let number = match text.parse::<i128>().map_err(|e| e.to_string())? {
        -1 => 0,
        number => number,
    };
    u32::try_from(number).map_err(|_| format!("{number} is not in 0..={}", u32::MAX))
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
        let given = SamplingParams {
            temperature: self.temperature.unwrap_or(0.0),
            top_p: self.top_p.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            ..SamplingParams::default()
        };
        given.validate().map_err(|e| match e.kind {
            Kind::Request => {
                let d = e.diagnostic;
                usage_error(&format!("--{}", d.location), d.what, d.help)
            }
            _ => e.into(),
        })
    }

    /// Returns the settings of a generation. Flags override the fields of a request body. `seed` is the value of
    /// `--seed`.
    fn settings(&self, body: &RequestSettings, seed: Option<u64>) -> RequestSettings {
        RequestSettings {
            temperature: self.temperature.or(body.temperature),
            top_p: self.top_p.or(body.top_p),
            top_k: self.top_k.or(body.top_k),
            repetition_penalty: self.repetition_penalty.or(body.repetition_penalty),
            seed: seed.or(body.seed),
            max_new_tokens: self.max_new_tokens.or(body.max_new_tokens),
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
