//! Tests over what the loss of a step of SFT is a mean (`--loss-mean`).

use std::sync::Arc;

use proptest::prelude::*;
use reel_device::{DType, Device};
use reel_input::config::ModelConfig;
use reel_samples::sample::Sample;
use reel_support::ranks::Ranks;

use crate::options::{LossMean, RunOptions};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::sft;
use crate::step::testing::{model_folder, run_on_rank_threads, text_sample};
use crate::step::trainer::{StepResult, Trainer};

/// Number of rows of a step. They have 4, 6, 8, … learned tokens.
const ROWS: usize = 6;

/// Does one step on the rows, `rows_of[i]` of which are in micro-batch i.
fn one_step(rows_of: &[usize], loss_mean: LossMean, ranks: Option<Arc<Ranks>>) -> (Trainer, StepResult) {
    let config = ModelConfig::open(&model_folder()).unwrap();
    // The last micro-batches of a step may be missing, as at the end of a run.
    let options = RunOptions { gradient_accumulation_steps: rows_of.len() + 1, ..RunOptions::default() };
    let hyperparameters = Hyperparameters::new(&options, 1).with_loss_mean(loss_mean);
    let device = Device::cpu(1);
    let opened = Trainer::resume(&device, &config, &model_folder(), None, DType::F32, hyperparameters, ranks);
    let (mut t, _files) = opened.unwrap();
    let mut rows = (0..ROWS).map(|row| text_sample(1, row));
    let mut micro_batches = rows_of.iter().map(|&n| rows.by_ref().take(n).collect::<Vec<Sample>>());
    let result = sft::step(&mut t, 1, || Ok(micro_batches.next())).unwrap().unwrap();
    (t, result)
}

/// The gradients of the step by name. While they are added up they have another scale, which the norm of the result
/// does not have.
fn gradients(t: &Trainer, result: &StepResult) -> Vec<(String, Vec<f32>)> {
    let mut all: Vec<_> = t.grads.iter().map(|(name, grad)| (name.to_string(), grad.to_f32().unwrap())).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let norm = all.iter().flat_map(|(_, grad)| grad).map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let scale = (result.grad_norm / norm) as f32;
    all.iter_mut().flat_map(|(_, grad)| grad).for_each(|x| *x *= scale);
    all
}

fn relative_difference(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.1.iter().zip(&b.1));
    let (difference, size) = pairs.fold((0.0, 0.0), |(difference, size), (&a, &b)| {
        (difference + f64::from(a - b).powi(2), size + f64::from(b).powi(2))
    });
    f64::sqrt(difference / size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// With `--loss-mean step` any division of the rows into micro-batches gives the loss and the gradients of one
    /// micro-batch with all rows, up to rounding.
    #[test]
    fn the_mean_over_a_step_does_not_depend_on_its_micro_batches(cuts in prop::collection::vec(any::<bool>(), ROWS - 1)) {
        let mut rows_of = vec![1];
        for cut in cuts {
            match cut {
                true => rows_of.push(1),
                false => *rows_of.last_mut().unwrap() += 1,
            }
        }
        let (t, result) = one_step(&rows_of, LossMean::Step, None);
        let (whole, of_all) = one_step(&[ROWS], LossMean::MicroBatch, None);
        prop_assert!((result.loss - of_all.loss).abs() < 1e-6 * of_all.loss, "{} {}", result.loss, of_all.loss);
        prop_assert!((result.grad_norm - of_all.grad_norm).abs() < 1e-5 * of_all.grad_norm);
        let difference = relative_difference(&gradients(&t, &result), &gradients(&whole, &of_all));
        prop_assert!(difference < 1e-5, "{rows_of:?}: {difference}");
    }
}

/// Of two micro-batches with different numbers of learned tokens, each counts the same by default. With `step` each
/// token does.
#[test]
fn a_micro_batch_counts_as_one_or_as_its_tokens() {
    let (whole, of_all) = one_step(&[ROWS], LossMean::MicroBatch, None);
    let (t, halves) = one_step(&[1, ROWS - 1], LossMean::MicroBatch, None);
    assert!((halves.loss - of_all.loss).abs() > 1e-3 * of_all.loss, "{} {}", halves.loss, of_all.loss);
    assert!(relative_difference(&gradients(&t, &halves), &gradients(&whole, &of_all)) > 1e-2);
    let (_, first) = one_step(&[1], LossMean::Step, None);
    // The first row has 4 of the 54 learned tokens.
    let rest = 2.0 * halves.loss - first.loss;
    let of_tokens = (4.0 * first.loss + 50.0 * rest) / 54.0;
    assert!((of_tokens - of_all.loss).abs() < 1e-6 * of_all.loss, "{of_tokens} {}", of_all.loss);
}

#[test]
fn several_ranks_have_the_same_mean_over_a_step() {
    let rows_of = [1, 2, 1, 2];
    let (one, alone) = one_step(&rows_of, LossMean::Step, None);
    for size in [2, 3] {
        for (hashes, result) in run_on_rank_threads(size, |ranks| {
            let (t, result) = one_step(&rows_of, LossMean::Step, Some(ranks));
            (t.tensor_hashes().unwrap(), result)
        }) {
            assert_eq!((result.loss, result.grad_norm), (alone.loss, alone.grad_norm), "{size} ranks");
            assert_eq!(hashes, one.tensor_hashes().unwrap(), "{size} ranks");
        }
    }
}
