//! Tests that shared prefixes (`--shared-prefix`) give the same loss and gradients with fewer tokens.

use crate::rollout::prompts::EndTokens;
use crate::rollout::{CompletionTokens, Prompt, Rollout};
use crate::step::packing::PackedGroups;
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_samples::rewards::EmaMoments;

use super::*;
use crate::runs::testing::weight_changes;

#[test]
fn shared_prefix_keeps_loss_gradient_norm_and_weight_changes() {
    for name in GIVEN {
        let dir = tempfile::tempdir().unwrap();
        let outs = [true, false].map(|shared| {
            let out = dir.path().join(format!("{shared}"));
            given(name, &out).0.with(|o| o.shared_prefix = shared).run().unwrap();
            out
        });
        let [shared, plain] = outs.each_ref().map(|out| read_metrics(out));
        for (s, p) in shared.iter().zip(&plain) {
            assert!((s.loss - p.loss).abs() <= 1e-5 * p.loss.abs().max(1e-2), "{name}: loss {} and {}", s.loss, p.loss);
            assert!((s.grad_norm / p.grad_norm - 1.0).abs() <= 1e-5, "{name}: {} and {}", s.grad_norm, p.grad_norm);
            assert!(s.tokens < p.tokens, "{name}: {} and {} tokens", s.tokens, p.tokens);
        }
        // Weight changes are compared as one vector over all weights. Adam normalises every gradient, so a single
        // weight with a tiny gradient may differ much by rounding.
        let model = PathBuf::from(&given(name, dir.path()).0.options.model);
        let [shared, plain] = outs.each_ref().map(|out| weight_changes(&model, out));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let off = norm(&mut shared.iter().zip(&plain).map(|(s, p)| s - p)) / norm(&mut plain.iter().copied());
        assert!(off <= 1e-3, "{name}: changes of weights differ by {off:.1e}");
    }
}

/// Computes the gradients of the first step of a golden case, sorted by name.
fn gradients(name: &str, shared: bool) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let case = given(name, dir.path()).0.with(|o| o.shared_prefix = shared);
    let (options, model) = (&case.options, PathBuf::from(&case.options.model));
    let media = MediaOptions { profile: reel_input::media::profile::MediaProfile::VideorftTrain, ..Default::default() };
    let prompts = PromptSource::open(options, &DataSetup { model: &model, media: &media, seed: 0 }).unwrap();
    let samples = (0..options.groups_per_step())
        .map(|line| reel_samples::feed::SampleSource::sample(&prompts, line).unwrap().into())
        .collect();
    let mut set = RolloutSet::new(
        group::rollouts_from_file(options, samples, &prompts.end_tokens()),
        &options.advantage_rules().unwrap(),
        &mut EmaMoments::default(),
    );
    let config = ModelConfig::open(&model).unwrap();
    let hyperparameters = crate::step::hyperparameters::Hyperparameters::new(options, 1);
    let (mut trainer, _files) = Trainer::open(&case.device, &config, &model, DType::F32, hyperparameters).unwrap();
    let reference = (options.beta > 0.0).then(|| first_weights(&model, &trainer).unwrap());
    step::step(&mut trainer, options, reference.as_ref(), &mut set, 1).unwrap();
    trainer.grads.iter().flat_map(|(_, g)| g.to_f32().unwrap()).collect()
}

#[test]
fn shared_prefix_keeps_every_gradient() {
    for name in GIVEN {
        let (shared, plain) = (gradients(name, true), gradients(name, false));
        assert_eq!(shared.len(), plain.len());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let off = norm(&mut shared.iter().zip(&plain).map(|(&s, &p)| f64::from(s) - f64::from(p)))
            / norm(&mut plain.iter().map(|&p| f64::from(p)));
        assert!(off <= 1e-5, "{name}: {off:.1e}");
    }
}

/// Returns the number of tokens in a packed batch of one group, which has a prompt of `prompt` tokens and completions
/// of the lengths `completions`.
fn tokens(prompt: usize, completions: &[usize], shared: bool) -> usize {
    let config = ModelConfig::open(&golden("model_a")).unwrap();
    let positions: Vec<i64> = (0..prompt as i64).collect();
    let tokens = ModelInput {
        input_ids: vec![1; prompt],
        position_ids: [positions.clone(), positions.clone(), positions],
        ..ModelInput::default()
    };
    let prompt = Prompt {
        row: 0,
        location: String::new(),
        tokens: Arc::new(tokens),
        content: Value::Null,
        columns: serde_json::Map::new(),
        given: None,
    };
    let completion = |&n: &usize| CompletionTokens::new(vec![2; n], Vec::new(), &EndTokens::default(), false);
    let completions = completions.iter().map(completion).collect();
    let group = Rollout::with_rewards(Arc::new(prompt), completions, Vec::new());
    PackedGroups::new(&Device::cpu(1), &config, &[group], shared).unwrap().batch.token_count()
}

#[test]
fn shared_prefix_packs_a_group_of_eight_in_a_quarter_of_the_tokens() {
    let (shared, plain) = (tokens(2400, &[300; 8], true), tokens(2400, &[300; 8], false));
    // The last token of each completion predicts nothing, so it is not an input.
    assert_eq!((shared, plain), (2399 + 8 * 300, 8 * (2400 + 299)));
    assert!(shared as f64 <= 0.223 * f64::from(8 * (2400 + 300)), "{shared}");
}

#[test]
fn packs_one_token_prompts_and_empty_completions() {
    assert_eq!((tokens(1, &[3, 1], true), tokens(1, &[3, 1], false)), (4, 4));
    assert_eq!((tokens(5, &[0, 2], true), tokens(5, &[0, 2], false)), (4 + 2, 6));
}
