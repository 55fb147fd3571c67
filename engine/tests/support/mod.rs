//! A small model with bf16 weights, and requests of text, for tests of the engine.

// Each test program uses its own part.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use reel_engine::{Completion, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_model::checkpoint::Checkpoint;
use reel_model::config::ModelConfig;
use reel_model::input::ModelInput;
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{DType, Device, SimOptions};

/// A model folder with bf16 weights, which the skinny GEMM kernels of decode steps need.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/image_hd128_bf16/model")
}

pub fn model(device: &Device, dtype: DType) -> Qwen25Vl {
    let (folder, config) = (folder(), ModelConfig::open(&folder()).unwrap());
    Qwen25Vl::open(device, &Checkpoint::open(&folder).unwrap(), &config, dtype).unwrap()
}

/// A request: the length of its prompt, and how its completions are generated.
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
    /// The engine's request, with `eos` as end tokens.
    pub fn request(&self, eos: &[u32]) -> GenerationRequest<'static> {
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

/// The completions of requests that are added to a continuous batch one after the other, whenever a slot is free.
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

pub fn simulated() -> Device {
    Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap()
}
