//! `reel bench prefill` and `reel bench decode`.

use anyhow::Result;
use clap::Args;
use reel_engine::bench;
use reel_model::config::ModelConfig;
use serde_json::{Map, Value};

use super::measure::{self, Measured, Subject};
use super::{Rounds, ops, page, parts, some};
use crate::common::Common;
use crate::fail::bad_usage;
use crate::generate::MOST_ANSWERS;
use crate::model::Model;
use crate::{output, prompt};

/// Read prompts, up to the logits of each one's last token.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel bench prefill --model tiny --tokens 128 --html prefill.html")]
pub struct Prefill {
    #[command(flatten)]
    rounds: Rounds,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
}

/// Make tokens, one after the other.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel bench decode --model tiny --context 64 --tokens 16")]
pub struct Decode {
    #[command(flatten)]
    rounds: Rounds,
    /// Tokens that each sequence makes
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Tokens that are there before decoding begins
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
}

impl Prefill {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let Rounds { batch, rounds, .. } = self.rounds;
        some(&[("--tokens", self.tokens), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.fits(self.tokens, 0)?;
        if batch.saturating_mul(self.tokens) > MOST_AT_ONCE {
            let what = format!("{batch} prompts of {} tokens are more than a pass has", self.tokens);
            return Err(bad_usage("--batch", what, format!("give at most {MOST_AT_ONCE} tokens in all")));
        }
        self.rounds.measure(common, "prefill", self.tokens, 0, |model| {
            Ok(bench::prefill(&model.weights, &model.cx, self.tokens, batch, 1)?)
        })
    }
}

impl Decode {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let Rounds { batch, rounds, .. } = self.rounds;
        some(&[("--tokens", self.tokens), ("--context", self.context), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.fits(self.tokens, self.context)?;
        self.rounds.measure(common, "decode", self.tokens, self.context, |model| {
            Ok(bench::decode(&model.weights, &model.cx, self.context, batch, self.tokens)?)
        })
    }
}

/// Tokens of a pass over prompts: their ids and positions lie in the host's memory before a device is asked for any.
const MOST_AT_ONCE: usize = 1 << 22;

impl Rounds {
    /// Refuses more sequences than are made at once, and sequences of more tokens than the model has positions.
    pub fn fits(&self, tokens: usize, context: usize) -> Result<()> {
        if self.batch > MOST_ANSWERS {
            let what = format!("{} sequences cannot be had at once", self.batch);
            return Err(bad_usage("--batch", what, format!("give 1 to {MOST_ANSWERS}")));
        }
        let most = ModelConfig::open(&prompt::folder(&self.model)?)?.text.max_position_embeddings;
        if context.saturating_add(tokens) > most {
            let (after, cure) = match context {
                0 => (String::new(), "give fewer"),
                n => (format!(" after a prompt of {n}"), "give fewer, or a smaller --context"),
            };
            return Err(bad_usage(
                "--tokens",
                format!("{tokens}{after} are more than the model's {most} positions"),
                cure,
            ));
        }
        Ok(())
    }

    /// Rounds of passes of a model; `pass` gives the seconds of each of its parts.
    pub fn measure(
        &self,
        common: &Common,
        op: &'static str,
        tokens: usize,
        context: usize,
        pass: impl Fn(&Model) -> Result<Vec<f64>>,
    ) -> Result<()> {
        let folder = prompt::folder(&self.model)?;
        let config = ModelConfig::open(&folder)?;
        let model = Model::open(&folder, &config, common)?;
        let (device, dtype) = (model.cx.device(), model.cx.dtype());
        let measured = measure::rounds(device, dtype, self.rounds, || Ok(pass(&model)?.iter().sum()))?;
        let model = folder.display().to_string();
        let subject = Subject { op, model, device, dtype, tokens, batch: self.batch, context };
        self.tell(common, &measured, &measured.json(&subject, Map::new()))
    }

    /// Prints a result and writes its page.
    pub fn tell(&self, common: &Common, measured: &Measured, result: &Value) -> Result<()> {
        if let Some(to) = &self.html {
            output::file(to, page::page(measured, result).as_bytes())?;
        }
        if common.json { output::json(result) } else { say(measured, result) }
    }
}

fn say(measured: &Measured, result: &Value) -> Result<()> {
    output::line(headline(result))?;
    if let Some(planned) = result["planned_peak_bytes"].as_f64() {
        let highest = measured.peak as f64;
        output::line(format!("  memory at the highest: {:.3} GB, {:.3} GB planned", highest / 1e9, planned / 1e9))?;
        let again = result["recompute"].as_str().unwrap_or_default();
        let optim = result["optim"].as_str().unwrap_or_default();
        output::line(format!("  computed again in the backward pass: {again}; --optim {optim}"))?;
    }
    if let Some(clocks) = &measured.clocks {
        output::line(clocks.line())?;
    }
    parts::print(&measured.parts, measured.profiled)?;
    ops::print(&measured.ops)
}

/// The result in a line.
pub fn headline(result: &Value) -> String {
    let number = |key: &str| result.pointer(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mfu = match result["mfu"].as_f64() {
        Some(mfu) => format!(", {:.1} % MFU", 100.0 * mfu),
        None => String::new(),
    };
    let busy = match result["busy"].as_f64() {
        Some(busy) => format!(", busy {:.1} % of the step", 100.0 * busy),
        None => String::new(),
    };
    format!(
        "{}: {:.1} tokens/s ({:.1} to {:.1} over {} rounds){mfu}{busy}, {:.0} % of what {:.0} GFLOP/s ({}) and {:.1} GB/s allow",
        result["op"].as_str().unwrap_or_default(),
        number("/tokens_per_second"),
        number("/min"),
        number("/max"),
        result["n"],
        100.0 * number("/roofline/share"),
        number(if result["dtype"] == "bf16" { "/roofline/gflops_bf16" } else { "/roofline/gflops_f32" }),
        result["dtype"].as_str().unwrap_or_default(),
        number("/roofline/gigabytes_per_second"),
    )
}
