//! A small model with bf16 weights, and requests of text, for tests of the engine.

// Each test program uses only some of these functions.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_device::{DType, Device, SimOptions};
use reel_engine::{Completion, ContinuousBatch, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_model::checkpoint::Checkpoint;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_model::lora::{self, Adapter, AdapterFolder, AdapterSource, LinearLayer, LoraSpec};
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::QwenVl;
use reel_model::save::{ConfigAndTokenizerFiles, TensorSpec};

/// A model folder with bf16 weights, because the skinny GEMM kernels of decode steps need bf16.
pub fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/image_hd128_bf16/model")
}

pub fn model(device: &Device, dtype: DType) -> QwenVl {
    let (folder, config) = (model_folder(), ModelConfig::open(&model_folder()).unwrap());
    QwenVl::open(device, &Checkpoint::open(&folder).unwrap(), &config, dtype).unwrap()
}

/// Returns the model of [`model`] with int8 weights.
pub fn int8_model(device: &Device, dtype: DType) -> QwenVl {
    let (folder, config) = (model_folder(), ModelConfig::open(&model_folder()).unwrap());
    let files = Checkpoint::open(&folder).unwrap();
    QwenVl::open_quantized(device, &files, &config, dtype, Quantization::Int8, None).unwrap()
}

/// A LoRA adapter with nonzero matrices.
#[derive(Clone, Copy, Debug)]
pub struct TestAdapter {
    pub rank: usize,
    /// The names of the target layers, or [`lora::ALL_LINEAR`].
    pub targets: &'static [&'static str],
    pub seed: u32,
}

/// Returns the model with a random adapter, which is written to a folder and read back.
pub fn with_adapter(base: &QwenVl, device: &Device, dtype: DType, adapter: &TestAdapter) -> QwenVl {
    let TestAdapter { rank, targets, seed } = *adapter;
    let targets = targets.iter().map(|target| target.to_string()).collect();
    let spec = LoraSpec { r: rank, alpha: 2.0, targets, vision: true };
    let spec_of = |layer: &LinearLayer| {
        let of = |part: &str, shape: Vec<usize>| TensorSpec {
            name: format!("{}.{part}.weight", layer.name),
            dtype: StoredDType::Bf16,
            shape,
        };
        [of("lora_A", vec![rank, layer.inner]), of("lora_B", vec![layer.out, rank])]
    };
    let tensors: Vec<TensorSpec> = spec.target_layers(&base.config).unwrap().iter().flat_map(spec_of).collect();
    let dir = tempfile::tempdir().unwrap();
    let small_files = ConfigAndTokenizerFiles::read(&model_folder()).unwrap();
    lora::save_adapter(
        dir.path(),
        AdapterFolder { spec: &spec, family: base.config.family(), base: "base", small_files: &small_files },
        &tensors,
        |spec, to| {
            let salt = spec.name.bytes().fold(seed, |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
            let number = |i: u32| ((i ^ salt).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let n = spec.shape.iter().product::<usize>() as u32;
            // Writes the upper 16 bits of each f32, that is, a bf16 number.
            (0..n).try_for_each(|i| to.write_all(&(0.3 * number(i)).to_le_bytes()[2..]))
        },
    )
    .unwrap();
    let adapter = Adapter::open(dir.path()).unwrap();
    adapter.check(&base.config).unwrap();
    base.clone().with_adapter(device, dtype, AdapterSource::Files(&adapter), false).unwrap()
}

/// A test request: the length of its prompt, and how its completions are generated.
#[derive(Clone, Copy, Debug)]
pub struct TestRequest {
    pub prompt_tokens: usize,
    pub completions: usize,
    pub max_new_tokens: usize,
    pub min_new_tokens: usize,
    pub sampling: SamplingParams,
}

pub const SAMPLED: SamplingParams =
    SamplingParams { temperature: 1.0, top_p: 0.95, top_k: 40, seed: 7, ..SamplingParams::GREEDY };
pub const PENALISED: SamplingParams = SamplingParams { repetition_penalty: 1.3, seed: 11, ..SAMPLED };

impl TestRequest {
    /// Converts to a request for the engine, with `eos` as end tokens.
    pub fn request(&self, eos: &[u32]) -> GenerationRequest {
        let at: Vec<i64> = (0..self.prompt_tokens as i64).collect();
        let prompt = ModelInput {
            input_ids: (0..self.prompt_tokens as u32).map(|i| (i * 37 + 5) % 97).collect(),
            position_ids: [at.clone(), at.clone(), at],
            rope_delta: 3,
            ..ModelInput::default()
        };
        GenerationRequest {
            sampling: self.sampling,
            max_new_tokens: self.max_new_tokens,
            eos_token_ids: eos.to_vec(),
            min_new_tokens: self.min_new_tokens,
            stop_conditions: (0..self.completions).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(prompt)
        }
    }
}

/// Generates the completions of the requests, with `eos` as end tokens.
pub fn run(engine: &Engine, requests: &[TestRequest], eos: &[u32]) -> Vec<Completion> {
    engine.generate(requests.iter().map(|request| request.request(eos)).collect(), |_| {}).unwrap().0
}

/// Returns the completions of requests that are added to a continuous batch one by one, whenever a slot is free.
pub fn run_continuously(engine: &Engine, kv_bytes: u64, requests: &[TestRequest], eos: &[u32]) -> Vec<Completion> {
    let mut batch = engine.continuous_batch(kv_bytes).unwrap();
    let (mut completions, mut next) = (Vec::new(), 0);
    while next < requests.len() || !batch.is_idle() {
        while next < requests.len() && batch.has_free_slot() {
            batch.add(next, requests[next].request(eos)).unwrap();
            next += 1;
        }
        let output = batch.step(&mut |_| {}).unwrap();
        assert!(output.failed.is_empty(), "{:?}", output.failed);
        completions.extend(output.completions);
    }
    completions.sort_by_key(|c| (c.request, c.index));
    completions
}

pub fn simulated_device() -> Device {
    Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap()
}

/// 16 requests of different lengths with unrelated prompts, some greedy and some sampled.
pub fn unrelated_requests() -> Vec<GenerationRequest> {
    let request = |i: usize| {
        let ids: Vec<u32> = (0..(17 + 23 * i) as u32).map(|t| (t * 31 + 7 * i as u32) % 97).collect();
        let sampling = [SamplingParams::GREEDY, SAMPLED, PENALISED, SamplingParams { min_p: 0.05, ..SAMPLED }][i % 4];
        GenerationRequest {
            sampling: SamplingParams { seed: i as u64, ..sampling },
            max_new_tokens: 5 + 9 * (i % 5),
            stop_conditions: (0..1 + usize::from(i % 6 == 1)).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(text_prompt(ids))
        }
    };
    (0..16).map(request).collect()
}

pub fn text_prompt(ids: Vec<u32>) -> ModelInput {
    let at: Vec<i64> = (0..ids.len() as i64).collect();
    ModelInput { input_ids: ids, position_ids: [at.clone(), at.clone(), at], ..ModelInput::default() }
}

/// The prompt of the golden case with an image.
pub fn image_prompt(model: &QwenVl) -> Arc<ModelInput> {
    let file = model_folder().parent().map(|case| case.join("inputs.safetensors")).unwrap();
    Arc::new(ModelInput::read(Path::new(&file), &model.config).unwrap())
}

/// Runs steps until the batch is idle, and returns its completions in the order of requests.
pub fn run_until_idle(batch: &mut ContinuousBatch) -> Vec<Completion> {
    let mut completions = Vec::new();
    while !batch.is_idle() {
        let output = batch.step(&mut |_| {}).unwrap();
        assert!(output.failed.is_empty(), "{:?}", output.failed);
        completions.extend(output.completions);
    }
    completions.sort_by_key(|c| (c.request, c.index));
    completions
}

/// Returns a model of a preset size with random weights.
pub fn random_model(device: &Device, seed: u64) -> QwenVl {
    let folder = tempfile::tempdir().unwrap();
    let options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed };
    init_model_folder(&options, folder.path()).unwrap();
    let config = ModelConfig::open(folder.path()).unwrap();
    QwenVl::open(device, &Checkpoint::open(folder.path()).unwrap(), &config, DType::F32).unwrap()
}
