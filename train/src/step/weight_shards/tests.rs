//! Tests training steps of ranks that keep only a part of the weights. The ranks are threads of the test.

use std::sync::Arc;

use reel_device::MemoryCategory::Weights;
use reel_input::config::ModelConfig;
use reel_model::units;
use reel_support::ranks::Ranks;

use super::*;
use crate::options::{GradientCheckpointing, Optim, RunOptions};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::sft;
use crate::step::testing::{bytes_of_category, model_folder, run_on_rank_threads, text_sample};
use crate::step::trainer::Trainer;

/// Number of micro-batches of a step. With 2, 3 and 4 ranks, the last round has fewer micro-batches than the other
/// rounds.
const MICRO_BATCHES: usize = 5;
const STEPS: u64 = 2;

/// The results of a rank after its steps.
#[derive(Debug)]
struct Trained {
    hashes: Vec<(String, u64)>,
    results: Vec<(f64, f64, usize)>,
    /// Number of bytes of weights that are allocated between steps.
    weight_bytes: usize,
    /// Number of bytes of weights at the moment of the highest memory use.
    weight_bytes_at_peak: usize,
    /// Number of bytes of all allocated memory after each step.
    current: Vec<usize>,
    /// Number of bytes of two units, from [`WeightShards::max_gathered_bytes`].
    max_gathered_bytes: usize,
    /// Number of bytes of tensors that the rank has sent in its steps.
    sent: u64,
}

fn train(ranks: Option<Arc<Ranks>>, dtype: DType, options: RunOptions) -> Trained {
    let device = Device::cpu(1);
    let config = ModelConfig::open(&model_folder()).unwrap();
    let options = RunOptions { gradient_accumulation_steps: MICRO_BATCHES, learning_rate: 1e-3, ..options };
    let hyperparameters = Hyperparameters::new(&options, STEPS);
    let opened = Trainer::resume(&device, &config, &model_folder(), None, dtype, hyperparameters, ranks.clone());
    let (mut t, _files) = opened.unwrap();
    let sent = |ranks: &Option<Arc<Ranks>>| ranks.as_ref().map_or(0, |ranks| ranks.traffic().all_to_all.sent);
    let before = sent(&ranks);
    device.reset_peak();
    let (mut results, mut current) = (Vec::new(), Vec::new());
    for step in 1..=STEPS {
        let mut micro_batches = 0..MICRO_BATCHES;
        let next = || Ok(micro_batches.next().map(|i| vec![text_sample(step, i)]));
        let result = sft::step(&mut t, step, next).unwrap().unwrap();
        results.push((result.loss, result.grad_norm, result.tokens));
        current.push(device.memory().current);
    }
    Trained {
        hashes: t.tensor_hashes().unwrap(),
        results,
        weight_bytes: bytes_of_category(Weights, &device.memory().now),
        weight_bytes_at_peak: bytes_of_category(Weights, &device.memory().at_peak),
        current,
        max_gathered_bytes: t.weight_shards.as_ref().map_or(0, |shards| shards.max_gathered_bytes() as usize),
        sent: sent(&ranks) - before,
    }
}

fn options(zero_stage: u8) -> RunOptions {
    RunOptions { zero_stage, ..RunOptions::default() }
}

/// Checks that ranks that keep only a part of the weights get the same trained weights as a single process.
fn check(dtype: DType, options: RunOptions, sizes: &[usize]) {
    let one = train(None, dtype, options.clone());
    for &size in sizes {
        let of_rank = |ranks| train(Some(ranks), dtype, RunOptions { zero_stage: 3, ..options.clone() });
        for rank in run_on_rank_threads(size, of_rank) {
            assert_eq!(rank.hashes, one.hashes, "{size} ranks, {options:?}");
            assert_eq!(rank.results, one.results, "{size} ranks, {options:?}");
            assert!(rank.max_gathered_bytes > 0, "{size} ranks, {options:?}");
        }
    }
}

#[test]
fn any_number_of_ranks_trains_the_same_weights() {
    for gradient_checkpointing in
        [GradientCheckpointing::None, GradientCheckpointing::Selective, GradientCheckpointing::Full]
    {
        check(DType::F32, RunOptions { gradient_checkpointing, ..options(2) }, &[2, 3, 4, 8]);
    }
    check(DType::BF16, RunOptions { optim: Optim::Adamw8bit, ..options(2) }, &[3]);
    check(DType::F32, RunOptions { freeze_vision: true, ..options(2) }, &[2]);
}

#[test]
fn the_frozen_weights_of_an_adapter_are_divided_too() {
    let all = || Some(vec!["all-linear".to_string()]);
    for (lora_target_modules, gradient_checkpointing) in
        [(None, GradientCheckpointing::None), (None, GradientCheckpointing::Full), (all(), GradientCheckpointing::None)]
    {
        let lora = RunOptions { lora_r: 4, lora_target_modules, gradient_checkpointing, ..options(2) };
        check(DType::BF16, lora, &[2, 3]);
    }
}

#[test]
fn a_rank_has_its_part_of_the_weights_and_those_of_two_units() {
    let whole = train(None, DType::F32, options(2)).weight_bytes;
    for size in [2, 4] {
        for rank in run_on_rank_threads(size, |ranks| train(Some(ranks), DType::F32, options(3))) {
            // The parts of the ranks differ by at most the largest cell, which is the largest weight of this small
            // model.
            let part = whole / size + whole / 8;
            assert!(rank.weight_bytes <= part, "{size} ranks: {} of {whole} bytes", rank.weight_bytes);
            let most = rank.weight_bytes + rank.max_gathered_bytes;
            assert!(rank.weight_bytes_at_peak <= most, "{size} ranks: {} of {most}", rank.weight_bytes_at_peak);
            assert!(rank.max_gathered_bytes < whole, "{size} ranks: {}", rank.max_gathered_bytes);
            assert!(rank.current.iter().all(|bytes| *bytes == rank.current[0]), "{:?}", rank.current);
        }
        for rank in run_on_rank_threads(size, |ranks| train(Some(ranks), DType::F32, options(2))) {
            assert_eq!(rank.weight_bytes, whole);
        }
    }
}

/// In a round, each rank receives the weights of other ranks once for the forward pass and once for the backward
/// pass. Without ZeRO-3 it receives them once in a step.
#[test]
fn weights_are_gathered_twice_in_a_round() {
    let config = ModelConfig::open(&model_folder()).unwrap();
    let weights = |is_counted: &dyn Fn(WeightUnit, &str) -> bool| -> u64 {
        let all = reel_model::checkpoint::expected_tensors(&config);
        let counted = all.iter().filter(|(name, _)| is_counted(units::unit_of_weight(name, &config), name));
        counted.map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum()
    };
    let last = units::output_layer(config.tie_word_embeddings);
    let forward = weights(&|_, _| true);
    let backward = weights(&|unit, _| units::is_used_in_backward(unit) && unit != last);
    // The samples are text, so only the weights of the decoder change.
    let changed = weights(&|_, name| !name.starts_with("visual."));
    for size in [2, 3] {
        let sent = |zero_stage| -> u64 {
            run_on_rank_threads(size, |ranks| train(Some(ranks), DType::F32, options(zero_stage)))
                .iter()
                .map(|r| r.sent)
                .sum()
        };
        let (two, three, others) = (sent(2), sent(3), size as u64 - 1);
        let gradients = two - STEPS * others * changed;
        let rounds = STEPS * MICRO_BATCHES.div_ceil(size) as u64;
        assert_eq!(three, gradients + rounds * others * (forward + backward), "{size} ranks");
    }
}

#[test]
fn all_weights_can_be_gathered_between_steps() {
    let whole = train(None, DType::F32, options(2)).weight_bytes;
    run_on_rank_threads(2, |ranks| {
        let device = Device::cpu(1);
        let config = ModelConfig::open(&model_folder()).unwrap();
        let hyperparameters = Hyperparameters::new(&options(3), STEPS);
        let opened = Trainer::resume(&device, &config, &model_folder(), None, DType::F32, hyperparameters, Some(ranks));
        let (t, _files) = opened.unwrap();
        let before = bytes_of_category(Weights, &device.memory().now);
        let all = t.gather_all_weights().unwrap();
        assert!(bytes_of_category(Weights, &device.memory().now) >= before + whole);
        let alone =
            Trainer::open(&device, &config, &model_folder(), DType::F32, Hyperparameters::new(&options(2), STEPS));
        let (alone, _files) = alone.unwrap();
        for (a, b) in t.model.parameters().zip(alone.model.parameters()) {
            assert_eq!(a.read_bytes().unwrap(), b.read_bytes().unwrap(), "{:?}", a.parameter_name());
        }
        drop((all, alone));
        assert_eq!(bytes_of_category(Weights, &device.memory().now), before);
        // Requesting a unit out of turn is an error and does not give wrong weights: a round begins with the vision
        // tower or the embedding.
        let shards = t.weight_shards.as_ref().unwrap();
        let unknown = WeightUnit { stage: 9, index: 0 };
        assert!(shards.advance_to(unknown).unwrap_err().to_string().contains("not their turn"));
    });
}
