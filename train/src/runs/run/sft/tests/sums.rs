//! Tests that the gradient of a step is the f32 sum of the whole gradients of its micro-batches, in their order. So
//! the result does not depend on where each micro-batch is computed.

use std::collections::BTreeMap;

use crate::step::trainer::MicroBatchInput;
use reel_device::SimOptions;
use reel_model::qwen_vl::ForwardOptions;
use reel_runtime::{Cx, ops};
use reel_samples::feed::SampleSource;
use reel_samples::sample::Sample;

use super::*;

type Gradients = BTreeMap<String, Vec<f32>>;

/// Adds the gradients of a micro-batch to those of the step.
fn add_micro_batch(t: &mut Trainer, samples: &[Sample]) {
    let device = t.device.clone();
    let packed = MicroBatchInput::new(&device, &t.model.config, samples).unwrap();
    let cx = Cx::training(&device, t.dtype);
    let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
    let hidden = t.model.forward(&cx, &packed.batch, learned).unwrap();
    let head = t.model.text.lm_head().unwrap();
    let log_probs = ops::linear_log_prob(&cx, &hidden, head, &packed.targets, 1.0).unwrap();
    let loss = ops::weighted_sum(&cx, &log_probs, &packed.weights).unwrap();
    t.backward(&cx, &loss, 0.25).unwrap();
}

fn gradients(t: &Trainer) -> Gradients {
    t.grads.iter().map(|(name, gradient)| (name.to_string(), gradient.to_f32().unwrap())).collect()
}

/// Returns `sum + next`. If a parameter has a gradient in only one of them, this gradient is kept.
fn added(mut sum: Gradients, next: Gradients) -> Gradients {
    for (name, next) in next {
        match sum.get_mut(&name) {
            Some(sum) => sum.iter_mut().zip(next).for_each(|(sum, next)| *sum += next),
            None => drop(sum.insert(name, next)),
        }
    }
    sum
}

fn check(case: &str, model: &str, dtype: DType, lora_r: usize, device: &Device) {
    let out = tempfile::tempdir().unwrap();
    let case = Case::new(case, model, out.path()).with(|o| {
        (o.lora_r, o.media_root) = (lora_r, Some(golden(case)));
        o.lora_target_modules = (lora_r > 0).then(|| vec!["all-linear".to_string()]);
    });
    let mut media = MediaOptions::default();
    media.overrides.max_pixels = Some(12_544);
    let model = PathBuf::from(&case.options.model);
    let samples = open_samples(&case.options, &DataSetup { model: &model, media: &media, seed: 0 }).unwrap();
    let all: Vec<Sample> = (0..samples.row_count()).map(|row| samples.sample(row).unwrap()).collect();
    // The first micro-batch and the last one may have several images or videos.
    let batches = [&all[..2], &all[1..2], &all[all.len() - 1..], &all[..2]];
    let hyperparameters = Hyperparameters::new(&case.options, 10);
    let (mut t, _) = Trainer::open(device, &samples.bundle.config, &model, dtype, hyperparameters).unwrap();
    let of = |t: &mut Trainer, batches: &[&[Sample]]| {
        t.grads.clear();
        batches.iter().for_each(|batch| add_micro_batch(t, batch));
        gradients(t)
    };
    let want = batches.iter().map(|batch| of(&mut t, &[batch])).reduce(added).unwrap();
    let got = of(&mut t, &batches);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, got) in &got {
        assert!(got == &want[name], "{name} in {dtype} on {}, rank {lora_r}", device.name());
    }
}

#[test]
fn the_gradient_of_a_step_is_the_sum_of_its_micro_batches_gradients() {
    let cpu = Device::cpu(2);
    for dtype in [DType::F32, DType::BF16] {
        check("sft_videorft_rows", "model_a", dtype, 0, &cpu);
        // In model b, the output layer shares its weights with the embedding.
        check("sft_all_tokens", "model_b", dtype, 0, &cpu);
        check("sft_videorft_rows", "model_a", dtype, 4, &cpu);
    }
    if reel_device::compile::skip_without_nvrtc().is_some() {
        check("sft_all_tokens", "model_b", DType::BF16, 0, &Device::sim(SimOptions::default()).unwrap());
    }
}
