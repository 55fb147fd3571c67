//! Times steps of full fine-tuning on made-up texts, and computes the operations and the peak memory that such a step
//! should take.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use clap::ValueEnum;
use reel_device::{DType, Device, RangeName, range};
use reel_input::config::ModelConfig;
use reel_input::{ModelInput, TokenId};
use reel_runtime::Checkpointing;
use reel_samples::sample::Sample;
use reel_train::SftOptions;
use reel_train::options::{GradientCheckpointing, Optim, RunOptions};
use reel_train::runs::plan::{self, RowShape};
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::sft::step;
use reel_train::step::trainer::Trainer;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::measure::rounds::{MeasuredRounds, time_rounds};
use crate::measure::{machine, stats, trace};

/// Sizes and options of a measured training step.
#[derive(Clone, Copy, Debug)]
pub struct TrainShape {
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Number of sequences, which are packed into one micro-batch.
    pub batch: usize,
    /// What the backward pass recomputes.
    pub gradient_checkpointing: GradientCheckpointing,
    /// How the optimizer stores its state.
    pub optim: Optim,
}

/// Times `count` training steps of the model in `folder`. The returned JSON object has the values that only the
/// benchmark of training has (`mfu`, planned memory, …).
///
/// # Errors
/// The model cannot be opened, a step fails, or the loss is not finite.
pub fn measure_training(
    device: &Device,
    dtype: DType,
    folder: &Path,
    config: &ModelConfig,
    shape: TrainShape,
    count: usize,
) -> Result<(MeasuredRounds, Map<String, Value>)> {
    let TrainShape { tokens, batch, gradient_checkpointing, optim } = shape;
    let options = RunOptions {
        gradient_accumulation_steps: 1,
        per_device_train_batch_size: batch,
        optim,
        gradient_checkpointing,
        ..RunOptions::default()
    };
    // The run has two steps more than `count`: the warm-up round and the profiled round.
    let hyperparameters = Hyperparameters::new(&options, count as u64 + 2);
    let (mut trainer, _files) = trace::span("load", || Trainer::open(device, config, folder, dtype, hyperparameters))?;
    trace::start_recording_launches(device, dtype);
    let samples = vec![sample(tokens); batch];
    let (mut n, mut flops) = (0, 0.0);
    let measured = time_rounds(device, dtype, count, || {
        n += 1;
        let _step = range(RangeName::Step(n));
        let begun = Instant::now();
        let result = step(&mut trainer, n, || Ok::<_, Error>(Some(samples.clone())))?;
        device.synchronize()?;
        match result {
            Some(result) if result.is_finite() => {
                flops = result.model_flops;
                Ok(begun.elapsed().as_secs_f64())
            }
            _ => {
                let help = "use a model whose weights are finite";
                Err(Error::failed(folder.display().to_string(), "the loss is not finite", help))
            }
        }
    })?;
    let used = match trainer.last_checkpointing() {
        Some(Checkpointing::None) => GradientCheckpointing::None,
        Some(Checkpointing::Selective) => GradientCheckpointing::Selective,
        Some(Checkpointing::Full) | None => GradientCheckpointing::Full,
    };
    // Plans the peak memory by running the same step on device `dry`, which allocates but computes nothing.
    let planned = plan::plan_rows_of_one_size(
        &SftOptions { run: RunOptions { gradient_checkpointing: used, ..options }, ..SftOptions::default() },
        config,
        plan::stored_weights(folder, config),
        dtype,
        &RowShape::new(tokens, 0, config)?,
        &device.dry_like(),
    )?
    .memory;
    let weights = multiplied_weights(&trainer, config);
    let median = stats::median(&measured.samples);
    let peak = machine::peak_flops_per_second(device, dtype);
    let figures = json!({
        "model_flops": flops,
        "model_flops_per_second": flops / median,
        "parameters_multiplied": weights,
        "mfu": peak.map(|peak| flops / median / peak),
        "mfu_of": peak,
        "busy": measured.device_busy_share(),
        "planned_peak_bytes": planned.peak,
        "planned_memory": planned.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
        "gradient_checkpointing": used.to_string(),
        "recompute": match used {
            GradientCheckpointing::None => "nothing",
            GradientCheckpointing::Selective => "the outputs of norms and of SwiGLU",
            _ => "every layer, from its input",
        },
        "optim": optim.to_possible_value().map(|v| v.get_name().to_string()),
    });
    match figures {
        Value::Object(figures) => Ok((measured, figures)),
        _ => Ok((measured, Map::new())),
    }
}

/// A text sample of `tokens` tokens; every token except the first is a target of the loss.
fn sample(tokens: usize) -> Sample {
    let ids: Vec<TokenId> = (0..tokens as u32).map(|i| (i * 37) % 97).collect();
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let targets = ids.iter().skip(1).map(|&id| id as i32).chain([-1]).collect();
    let position_ids = [positions.clone(), positions.clone(), positions];
    Sample { tokens: ModelInput { input_ids: ids, position_ids, ..ModelInput::default() }, targets }
}

/// The number of weights in all matrices that multiply every token. The embedding table counts only if it is also the
/// output layer: an embedding is a lookup, not a product.
fn multiplied_weights(trainer: &Trainer, config: &ModelConfig) -> usize {
    let counts = |name: &str| {
        let table = name.ends_with("embed_tokens.weight") && !config.tie_word_embeddings;
        !(name.starts_with("visual.") || table)
    };
    let matrices =
        trainer.model.parameters().filter(|t| t.shape().len() == 2 && t.parameter_name().is_some_and(counts));
    matrices.map(|t| t.shape().iter().product::<usize>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_a_target() {
        let sample = sample(5);
        assert_eq!(sample.tokens.input_ids, [0, 37, 74, 14, 51]);
        assert_eq!(sample.targets, [37, 74, 14, 51, -1]);
    }
}
