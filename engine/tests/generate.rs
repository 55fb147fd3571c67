//! Greedy completions equal the completions of transformers (tests/golden/model), and completions do not depend on the
//! batch or on threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_device::{DType, Device};
use reel_engine::{Completion, Engine, FinishReason, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_model::weights::{WeightLoader, WeightSource};
use reel_runtime::Cx;
use reel_runtime::ops::PackedWeight;
use reel_support::error::Kind;

struct Case {
    config: ModelConfig,
    files: Checkpoint,
    tokens: Arc<ModelInput>,
    greedy: serde_json::Value,
    eos: Vec<u32>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model")
}

fn open(folder: &Path) -> Case {
    let config = ModelConfig::open(&folder.join("model")).unwrap();
    let about: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let greedy = about["greedy"].clone();
    Case {
        files: Checkpoint::open(&folder.join("model")).unwrap(),
        tokens: Arc::new(ModelInput::read(&folder.join("inputs.safetensors"), &config).unwrap()),
        eos: numbers(&greedy["eos_token_ids"]),
        greedy,
        config,
    }
}

fn numbers(list: &serde_json::Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

impl Case {
    fn request(&self, sampling: SamplingParams, max_new_tokens: usize, n: usize) -> GenerationRequest {
        GenerationRequest {
            sampling,
            max_new_tokens,
            eos_token_ids: self.eos.clone(),
            stop_conditions: (0..n).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(self.tokens.clone())
        }
    }

    fn run(&self, device: &Device, requests: Vec<GenerationRequest>) -> Vec<Completion> {
        let model = QwenVl::open(device, &self.files, &self.config, DType::F32).unwrap();
        let engine = Engine::new(&model, &Cx::inference(device, DType::F32)).unwrap();
        engine.generate(requests, |_| {}).unwrap().0
    }
}

const SAMPLED: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_p: 0.95,
    top_k: 50,
    repetition_penalty: 1.1,
    seed: 7,
    ..SamplingParams::GREEDY
};

#[test]
fn greedy_completions_equal_transformers() {
    let mut seen = 0;
    for folder in std::fs::read_dir(golden()).unwrap().map(|e| e.unwrap().path()) {
        let case = open(&folder);
        let max = case.greedy["max_new_tokens"].as_u64().unwrap() as usize;
        let got = case.run(&Device::cpu(2), vec![case.request(SamplingParams::default(), max, 1)]);
        assert_eq!(got[0].ids, numbers(&case.greedy["token_ids"]), "{}", folder.display());
        assert_eq!(got[0].finish_reason.openai_name(), case.greedy["finish_reason"].as_str().unwrap());
        assert!(got[0].log_probs.iter().all(|lp| *lp <= 0.0));
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn completions_do_not_depend_on_batch_or_threads() {
    let case = open(&golden().join("mixed_stop"));
    let other = SamplingParams { seed: 99, ..SAMPLED };
    let alone = case.run(&Device::cpu(1), vec![case.request(SAMPLED, 70, 1)]);
    for threads in [2, 3] {
        let together = case.run(
            &Device::cpu(threads),
            vec![
                case.request(other, 5, 2),
                case.request(SAMPLED, 70, 3),
                case.request(SamplingParams::default(), 20, 1),
            ],
        );
        assert_eq!(together.len(), 6);
        let same = together.iter().find(|c| c.request == 1 && c.index == 0).unwrap();
        assert_eq!((&same.ids, &same.log_probs), (&alone[0].ids, &alone[0].log_probs));
    }
}

/// Checks that an engine with packed copies of trained weights gives the same completions as an engine without
/// copies. The copies hold the weights of the first call; after `release_memory`, new copies hold the changed
/// weights.
#[test]
fn packed_copies_of_trained_weights_change_no_completion() {
    let case = open(&golden().join("mixed_stop"));
    for dtype in [DType::F32, DType::BF16] {
        let device = Device::cpu(2);
        let loader = WeightLoader {
            device: &device,
            source: WeightSource::Files(&case.files),
            dtype,
            quantization: Quantization::None,
            may_pad: true,
            trainable: &|_| true,
            deferred: None,
        };
        let model = QwenVl::load(&loader, &case.config).unwrap();
        let cx = Cx::inference(&device, dtype);
        let plain = Engine::new(&model, &cx).unwrap();
        let packing = Engine::new(&model, &cx).unwrap().with_packed_trained_weights();
        let run = |engine: &Engine| {
            let completions = engine.generate(vec![case.request(SAMPLED, 20, 3)], |_| {}).unwrap().0;
            completions.into_iter().map(|c| (c.ids, c.log_probs)).collect::<Vec<_>>()
        };
        let before = run(&plain);
        let with_plain = device.memory().current;
        plain.release_memory();
        let used = device.memory().current;
        assert_eq!(run(&packing), before, "{dtype}");
        let copies = model.packed_copy_bytes();
        assert_eq!(copies > 0, PackedWeight::is_faster_on(&device), "{dtype}");
        assert!(device.memory().current >= with_plain + copies as usize, "{dtype}: there are no copies");
        let weight = model.parameters().find(|t| t.parameter_name() == Some("model.layers.0.mlp.down_proj.weight"));
        let weight = weight.unwrap();
        weight.write_f32(&weight.to_f32().unwrap().iter().map(|x| -2.0 * x).collect::<Vec<_>>()).unwrap();
        packing.release_memory();
        assert_eq!(device.memory().current, used, "{dtype}: the copies take memory after they were released");
        let after = run(&plain);
        assert_ne!(before, after);
        assert_eq!(run(&packing), after, "{dtype}: after the weights have changed");
    }
}

#[test]
fn completions_of_a_prompt_follow_their_seeds() {
    let case = open(&golden().join("mixed_stop"));
    let make = || case.run(&Device::cpu(2), vec![case.request(SAMPLED, 12, 4)]);
    let first = make();
    assert_eq!(first, make());
    assert!((1..4).any(|i| first[i].ids != first[0].ids));
    // Completion i samples with the seed of the request plus i.
    let second = case.run(&Device::cpu(2), vec![case.request(SamplingParams { seed: 8, ..SAMPLED }, 12, 1)]);
    assert_eq!(second[0].ids, first[1].ids);
    let media = [case.config.tokens.image, case.config.tokens.video, case.config.tokens.vision_start];
    assert!(first.iter().flat_map(|c| &c.ids).all(|id| !media.contains(id)));
}

/// Completions share the KV blocks that the prompt fills; each has its own copy of the last, partly filled block.
#[test]
fn shared_prompt_blocks_do_not_change_completions() {
    let case = open(&golden().join("mixed_stop"));
    let device = Device::cpu(2);
    for length in [63usize, 64, 65, 150] {
        let ids: Vec<u32> = (0..length as u32).map(|i| i * 7 % 60).collect();
        let at: Vec<i64> = (0..length as i64).collect();
        let position_ids = [at.clone(), at.clone(), at];
        let prompt = Arc::new(ModelInput { input_ids: ids, position_ids, ..ModelInput::default() });
        let ask = |sampling, max, n| GenerationRequest { prompt: prompt.clone(), ..case.request(sampling, max, n) };
        let together = case.run(&device, vec![ask(SAMPLED, 70, 3), ask(SAMPLED, 3, 2)]);
        for c in &together[..3] {
            let sampling = SamplingParams { seed: SAMPLED.seed + c.index as u64, ..SAMPLED };
            let alone = case.run(&device, vec![ask(sampling, 70, 1)]);
            assert_eq!((&c.ids, &c.log_probs), (&alone[0].ids, &alone[0].log_probs), "{length} tokens");
        }
    }
}

#[test]
fn log_probs_equal_a_packed_forward_pass() {
    let case = open(&golden().join("mixed_stop"));
    let got = case.run(
        &Device::cpu(2),
        vec![case.request(SamplingParams { temperature: 1.0, ..SamplingParams::default() }, 9, 1)],
    );
    let mut ids = case.tokens.input_ids.clone();
    ids.extend(&got[0].ids);
    let mut whole = ModelInput::clone(&case.tokens);
    let first = case.tokens.len();
    whole.input_ids = ids;
    for axis in &mut whole.position_ids {
        axis.extend((0..got[0].ids.len()).map(|i| (first + i) as i64 + case.tokens.rope_delta));
    }
    let device = Device::cpu(1);
    let model = QwenVl::open(&device, &case.files, &case.config, DType::F32).unwrap();
    let cx = Cx::inference(&device, DType::F32);
    let batch = reel_model::batch::Batch::new(&device, &case.config, &[whole.sequence()], "whole").unwrap();
    let hidden =
        model.forward(&cx, &batch, ForwardOptions::default()).unwrap().rows(first - 1, got[0].ids.len()).unwrap();
    let logits = model.logits(&cx, &hidden).unwrap().to_f32().unwrap();
    for (row, (&id, &lp)) in
        logits.chunks_exact(case.config.text.vocab_size).zip(got[0].ids.iter().zip(&got[0].log_probs))
    {
        let top = row.iter().copied().fold(f32::MIN, f32::max) as f64;
        let lse = row.iter().map(|&x| (x as f64 - top).exp()).sum::<f64>().ln() + top;
        assert!((row[id as usize] as f64 - lse - lp as f64).abs() < 1e-5);
    }
}

#[test]
fn refuses_invalid_parameters_and_stops_when_interrupted() {
    let case = open(&golden().join("text_multiturn"));
    let device = Device::cpu(1);
    let none = case.run(&device, vec![case.request(SamplingParams::default(), 0, 1)]);
    assert!(none[0].ids.is_empty() && none[0].finish_reason == FinishReason::Length);
    let model = QwenVl::open(&device, &case.files, &case.config, DType::F32).unwrap();
    let cx = Cx::inference(&device, DType::F32);
    let engine = Engine::new(&model, &cx).unwrap();
    for bad in [
        SamplingParams { temperature: f32::NAN, ..SAMPLED },
        SamplingParams { temperature: -1.0, ..SAMPLED },
        SamplingParams { top_p: 0.0, ..SAMPLED },
        SamplingParams { top_p: 1.5, ..SAMPLED },
        SamplingParams { repetition_penalty: 0.0, ..SAMPLED },
        SamplingParams { repetition_penalty: 1e-45, ..SAMPLED },
        SamplingParams { repetition_penalty: 1e30, ..SAMPLED },
    ] {
        let e = engine.generate(vec![case.request(bad, 3, 1)], |_| {});
        assert!(matches!(e, Err(e) if e.kind == Kind::Request), "{bad:?}");
    }
    // Sampling parameters at the ends of their ranges cause no overflow.
    let ids = |sampling| engine.generate(vec![case.request(sampling, 3, 1)], |_| {}).unwrap().0.remove(0).ids;
    let greedy = ids(SamplingParams { temperature: 0.0, ..SAMPLED });
    for temperature in [1e-45, 1e-20, 1e-9] {
        assert_eq!(ids(SamplingParams { temperature, ..SAMPLED }), greedy, "{temperature}");
    }
    for (temperature, repetition_penalty) in [(f32::MAX, 1.0), (1e-20, 1e-3), (1e-20, 1e3), (f32::MAX, 1e3)] {
        let extreme = SamplingParams { temperature, repetition_penalty, min_p: 1e-45, top_p: 1e-45, ..SAMPLED };
        assert_eq!(ids(extreme).len(), 3);
    }
    let flag = AtomicBool::new(true);
    let engine = Engine::new(&model, &cx).unwrap().interrupt_flag(&flag);
    assert!(
        matches!(engine.generate(vec![case.request(SAMPLED, 3, 1)], |_| {}), Err(e) if e.kind == Kind::Interrupted)
    );
}
