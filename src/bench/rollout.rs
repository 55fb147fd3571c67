//! `reel bench rollout`: the completions of one prompt, as a step of GRPO draws them.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_engine::{Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_model::batch::Sequence;

use super::{Rounds, some};
use crate::common::Common;
use crate::fail::failed;
use crate::model::Model;

/// Draw completions of one prompt, as a step of GRPO does.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  reel bench rollout --model tiny --context 64 --tokens 16 --batch 8",
    mut_arg("batch", |batch| batch.default_value("8").help("Completions of the prompt"))
)]
pub struct Rollout {
    #[command(flatten)]
    rounds: Rounds,
    /// Tokens of each completion
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
}

impl Rollout {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let Rounds { batch, rounds, .. } = self.rounds;
        some(&[("--tokens", self.tokens), ("--context", self.context), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.fits(self.tokens, self.context)?;
        self.rounds.measure(common, "rollout", self.tokens, self.context, |model| Ok(vec![self.draw(model)?]))
    }

    /// Draws once and gives the seconds. The cache, the rows and their recordings are new each time, as they are in training, which needs
    /// their memory between two draws.
    fn draw(&self, model: &Model) -> Result<f64> {
        let (ids, at): (Vec<i64>, Vec<i64>) = (0..self.context as i64).map(|i| ((i * 37) % 97, i)).unzip();
        let engine = Engine::new(&model.weights, &model.cx)?;
        let request = GenerationRequest {
            prompt: Sequence { input_ids: &ids, position_ids: [&at, &at, &at], ..Sequence::default() },
            rope_delta: 0,
            sampling: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
            max_new_tokens: self.tokens,
            min_new_tokens: 0,
            // Nothing ends a completion early: all rounds do the same.
            eos: &[],
            stops: (0..self.rounds.batch).map(|_| StopCondition::none()).collect(),
        };
        let profile = model.cx.device().profiler();
        profile.part("prefill");
        let (begun, mut made) = (Instant::now(), 0);
        let (completions, _) = engine.generate(vec![request], |_| {
            made += 1;
            // The first tokens come of the prompt's own logits.
            if made == self.rounds.batch {
                profile.part("decode");
            }
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        profile.part("");
        match completions.iter().all(|c| c.ids.len() == self.tokens) {
            true => Ok(seconds),
            false => Err(failed("rollout", "a completion ended early", "report this: nothing was to end it")),
        }
    }
}
