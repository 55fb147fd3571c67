//! `reel bench`: how fast a model reads and answers on this machine, and which share of what the machine allows that is.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use reel_engine::bench;
use reel_model::config::ModelConfig;
use serde_json::{Value, json};

use crate::ceilings::Ceilings;
use crate::common::Common;
use crate::fail::{bad_usage, failed};
use crate::model::Model;
use crate::{output, prompt};

/// Measure how fast a model reads a prompt or makes tokens.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench prefill --model tiny --tokens 128")]
pub struct Bench {
    /// What to measure
    #[arg(value_enum, required_unless_present = "compare")]
    op: Option<Op>,
    /// The model folder, or a hub id
    #[arg(long, value_name = "MODEL", required_unless_present = "compare")]
    model: Option<String>,
    /// Tokens of each sequence: those of the prompt (prefill) [default: 512], those made (decode) [default: 32]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Tokens that are there before decoding begins
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
    /// Sequences at a time
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Rounds; one more comes first and does not count
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Instead of measuring: compare two results
    #[arg(long, value_names = ["A.json", "B.json"], num_args = 2, conflicts_with_all = ["op", "model"])]
    compare: Option<Vec<PathBuf>>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    // Reading a prompt, up to the logits of its last token.
    Prefill,
    // Making tokens, one after the other.
    Decode,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl Bench {
    /// Measures and prints, or compares.
    pub fn run(&self, common: &Common) -> Result<()> {
        match (&self.compare, self.op, &self.model) {
            (Some(files), ..) => compare(common, &files[0], &files[1]),
            (None, Some(op), Some(model)) => self.measure(common, op, model),
            _ => Err(bad_usage("bench", "nothing to measure", "give prefill or decode with --model")),
        }
    }

    fn measure(&self, common: &Common, op: Op, model: &str) -> Result<()> {
        if self.batch == 0 || self.rounds == 0 || self.tokens == Some(0) || self.context == 0 {
            return Err(bad_usage("--tokens, --context, --batch, --rounds", "0 measures nothing", "give 1 or more"));
        }
        let folder = prompt::folder(model)?;
        let config = ModelConfig::open(&folder)?;
        let model = Model::open(&folder, &config, common)?;
        let device = model.cx.device();
        let ceilings = Ceilings::of(device)?;
        device.reset_peak();
        // The first round warms up, and its costs are counted.
        device.profile().clear();
        device.profile().count(true);
        self.round(op, &model)?;
        device.profile().count(false);
        let floor = ceilings.floor(&device.profile().totals(), model.cx.dtype());
        let mut seconds: Vec<f64> = (0..self.rounds).map(|_| self.round(op, &model)).collect::<Result<_>>()?;
        seconds.sort_by(f64::total_cmp);
        let made = (self.tokens(op) * self.batch) as f64;
        let median = seconds[seconds.len() / 2];
        let result = json!({
            "op": op.name(),
            "tokens_per_second": made / median,
            "min": made / seconds[seconds.len() - 1],
            "max": made / seconds[0],
            "n": self.rounds,
            "tokens": self.tokens(op),
            "batch": self.batch,
            "context": if op == Op::Decode { self.context } else { 0 },
            "dtype": model.cx.dtype().name(),
            "device": device.name(),
            "threads": device.threads(),
            "model": folder.display().to_string(),
            "seconds": median,
            "peak_bytes": device.memory().peak,
            "flops": floor.flops,
            "bytes": floor.bytes,
            "roofline": {
                "share": floor.seconds / median,
                "seconds": floor.seconds,
                "gflops_f32": ceilings.f32 / 1e9,
                "gflops_bf16": ceilings.bf16 / 1e9,
                "gigabytes_per_second": ceilings.bytes / 1e9,
            },
            "version": env!("CARGO_PKG_VERSION"),
        });
        if common.json { output::json(&result) } else { say(&result) }
    }

    fn tokens(&self, op: Op) -> usize {
        self.tokens.unwrap_or(if op == Op::Prefill { 512 } else { 32 })
    }

    /// Seconds of one round: a pass over the prompts, or a step for each token.
    fn round(&self, op: Op, model: &Model) -> Result<f64> {
        let tokens = self.tokens(op);
        let parts = match op {
            Op::Prefill => bench::prefill(&model.weights, &model.cx, tokens, self.batch, 1)?,
            Op::Decode => bench::decode(&model.weights, &model.cx, self.context, self.batch, tokens)?,
        };
        Ok(parts.iter().sum())
    }
}

fn say(result: &Value) -> Result<()> {
    let number = |key: &str| result.pointer(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    output::line(format!(
        "{}: {:.1} tokens/s ({:.1} to {:.1} over {} rounds), {:.0} % of what {:.0} GFLOP/s ({}) and {:.1} GB/s allow",
        result["op"].as_str().unwrap_or_default(),
        number("/tokens_per_second"),
        number("/min"),
        number("/max"),
        result["n"],
        100.0 * number("/roofline/share"),
        number(if result["dtype"] == "bf16" { "/roofline/gflops_bf16" } else { "/roofline/gflops_f32" }),
        result["dtype"].as_str().unwrap_or_default(),
        number("/roofline/gigabytes_per_second"),
    ))
}

/// Prints how much faster the second result is, after making sure that both measured the same.
fn compare(common: &Common, a: &Path, b: &Path) -> Result<()> {
    let read = |path: &Path| -> Result<Value> {
        let text = std::fs::read_to_string(path).map_err(|e| output::not_read(path, e))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| {
            failed(path.display(), format!("not JSON: {e}"), "give a file that reel bench --json printed")
        })?;
        match value["tokens_per_second"].as_f64() {
            Some(rate) if rate > 0.0 => Ok(value),
            _ => Err(failed(path.display(), "has no tokens_per_second", "give a file that reel bench --json printed")),
        }
    };
    let (before, after) = (read(a)?, read(b)?);
    for key in ["op", "tokens", "batch", "context"] {
        if before[key] != after[key] {
            let what = format!("{key} is {}, but {} in {}", after[key], before[key], a.display());
            return Err(failed(b.display(), what, "compare results of the same measurement"));
        }
    }
    let rate = |v: &Value, key: &str| v[key].as_f64().unwrap_or(f64::NAN);
    let ratio = rate(&after, "tokens_per_second") / rate(&before, "tokens_per_second");
    let apart = rate(&after, "min") > rate(&before, "max") || rate(&after, "max") < rate(&before, "min");
    if common.json {
        return output::json(
            &json!({"op": before["op"], "ratio": ratio, "ranges_apart": apart, "a": before, "b": after}),
        );
    }
    for (path, v) in [(a, &before), (b, &after)] {
        let (rate, low, high) = (rate(v, "tokens_per_second"), rate(v, "min"), rate(v, "max"));
        output::line(format!(
            "{}: {rate:.1} tokens/s ({low:.1} to {high:.1}), {}",
            path.display(),
            v["dtype"].as_str().unwrap_or("?")
        ))?;
    }
    output::line(format!("ratio {ratio:.3}{}", if apart { "" } else { " (the ranges overlap)" }))
}
