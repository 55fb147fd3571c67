//! `reel bench train`: a step of fine-tuning on rows with nothing in them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use clap::{ArgAction, Args, ValueEnum};
use reel_model::config::{ModelConfig, TextConfig};
use reel_model::input::ModelInput;
use reel_train::data::sample::Sample;
use reel_train::options::{Optim, RunOptions};
use reel_train::plan::{self, RowShape};
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::sft::step;
use reel_train::step::trainer::Trainer;
use reel_train::{SftOptions, TrainError};
use serde_json::{Map, Value, json};

use super::measure::{self, Subject};
use super::{Rounds, some};
use crate::common::Common;
use crate::fail::failed;
use crate::{machines, model, prompt, trace};

/// Steps of full fine-tuning on texts.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel bench train --model tiny --tokens 64 --batch 2")]
pub struct Train {
    #[command(flatten)]
    rounds: Rounds,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// Recompute activations in the backward pass instead of keeping them
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    gradient_checkpointing: bool,
    /// How the optimiser keeps its state
    #[arg(long, value_enum, default_value_t)]
    optim: Optim,
}

impl Train {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let Rounds { batch, rounds, .. } = self.rounds;
        some(&[("--tokens", self.tokens), ("--batch", batch), ("--rounds", rounds)])?;
        if self.tokens == 1 {
            return Err(crate::fail::bad_usage("--tokens", "1 token teaches nothing", "give 2 or more"));
        }
        let folder = prompt::folder(&self.rounds.model)?;
        let config = ModelConfig::open(&folder)?;
        let (device, dtype) = (model::device(common)?, model::dtype(common));
        let options = RunOptions {
            gradient_accumulation_steps: 1,
            per_device_train_batch_size: batch,
            optim: self.optim,
            gradient_checkpointing: self.gradient_checkpointing,
            ..RunOptions::default()
        };
        // The same step on a device that only counts: what the memory is held to.
        let dry = device.dry_like();
        let shape = RowShape::new(self.tokens, 0, &config)?;
        let files = plan::file_dtype(&folder, &config);
        let planned = plan::with_shape(
            &SftOptions { run: options.clone(), ..SftOptions::default() },
            &config,
            files,
            dtype,
            &shape,
            &dry,
        )?
        .memory;
        let steps = rounds as u64 + 2;
        let recipe = Hyperparameters::new(&options, steps);
        let opened = trace::span("load", || Trainer::open(&device, &config, &folder, dtype, recipe))?;
        let (mut trainer, _files) = opened;
        trace::record_launches(&device, dtype);
        let rows = vec![row(self.tokens); batch];
        let mut n = 0;
        let measured = measure::rounds(&device, dtype, rounds, || {
            n += 1;
            let begun = Instant::now();
            let result = step(&mut trainer, n, || Ok::<_, TrainError>(Some(rows.clone())))?;
            device.synchronize()?;
            match result {
                Some(result) if result.is_finite() => Ok(begun.elapsed().as_secs_f64()),
                _ => Err(failed(folder.display(), "the loss is not a number", "measure with weights that are")),
            }
        })?;
        let weights = multiplied(&trainer, &config);
        let flops = model_flops(&config.text, weights, self.tokens, batch);
        let median = super::stats::median(&measured.samples);
        let peak = machines::dense_bf16(&device.hardware().name);
        let more = json!({
            "model_flops": flops,
            "model_flops_per_second": flops / median,
            "parameters_multiplied": weights,
            "mfu": peak.map(|peak| flops / median / peak),
            "mfu_of": peak,
            "busy": measured.busy(),
            "planned_peak_bytes": planned.peak,
            "planned_memory": planned.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
            "gradient_checkpointing": self.gradient_checkpointing,
            "recompute": if self.gradient_checkpointing { "every layer, from its input" } else { "nothing" },
            "optim": self.optim.to_possible_value().map(|v| v.get_name().to_string()),
        });
        let more = match more {
            Value::Object(more) => more,
            _ => Map::new(),
        };
        let (device, model) = (&device, folder.display().to_string());
        let subject = Subject { op: "train", model, device, dtype, tokens: self.tokens, batch, context: 0 };
        self.rounds.tell(common, &measured, &measured.json(&subject, more))
    }
}

/// A text of `tokens` tokens, each of which is learned but the first.
fn row(tokens: usize) -> Sample {
    let ids: Vec<i64> = (0..tokens as i64).map(|i| (i * 37) % 97).collect();
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let targets = ids.iter().skip(1).map(|&id| id as i32).chain([-1]).collect();
    let position_ids = [positions.clone(), positions.clone(), positions];
    Sample { tokens: ModelInput { input_ids: ids, position_ids, ..ModelInput::default() }, targets }
}

/// Weights of the decoder's matrices that a token is multiplied by: the table of embeddings is one where it is the head too.
fn multiplied(trainer: &Trainer, config: &ModelConfig) -> usize {
    let counts = |name: &str| {
        let table = name.ends_with("embed_tokens.weight") && !config.tie_word_embeddings;
        !(name.starts_with("visual.") || table)
    };
    let matrices = trainer.model.parameters().filter(|t| t.shape().len() == 2 && t.parameter().is_some_and(counts));
    matrices.map(|t| t.shape().iter().product::<usize>()).sum()
}

/// Operations of a step without those that are done again. A product's backward pass is two of its size; attention's forward pass is two
/// products of `[S, D]` by `[D, S]` a head, of which causal order leaves half.
fn model_flops(text: &TextConfig, weights: usize, tokens: usize, batch: usize) -> f64 {
    let (tokens, batch) = (tokens as f64, batch as f64);
    let width = (text.num_attention_heads * text.head_dim) as f64;
    let attention = 3.0 * 2.0 * tokens * tokens * width * text.num_hidden_layers as f64;
    batch * (6.0 * weights as f64 * tokens + attention)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen2.5-VL-7B at 8192 tokens, by hand: 6 · 7.07e9 · 8192 and 6 · 8192² · 3584 · 28.
    #[test]
    fn operations_are_those_of_the_model() {
        let text = TextConfig {
            vocab_size: 152_064,
            hidden_size: 3584,
            intermediate_size: 18_944,
            num_hidden_layers: 28,
            num_attention_heads: 28,
            num_key_value_heads: 4,
            head_dim: 128,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            mrope_section: [16, 24, 24],
            max_position_embeddings: 128_000,
        };
        let layer = 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18_944;
        let weights = 28 * layer + 152_064 * 3584;
        let flops = model_flops(&text, weights, 8192, 1);
        assert!((flops / 1e12 - (347.5 + 40.4)).abs() < 0.5, "{} TFLOP", flops / 1e12);
        assert_eq!(model_flops(&text, weights, 8192, 3), 3.0 * flops);
    }

    #[test]
    fn every_token_but_the_first_is_learned() {
        let row = row(5);
        assert_eq!(row.tokens.input_ids, [0, 37, 74, 14, 51]);
        assert_eq!(row.targets, [37, 74, 14, 51, -1]);
    }
}
