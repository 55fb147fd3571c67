//! Compares a device in bf16 with the CPU in bf16 and in f32: logits, training steps, and decoding.
//!
//! The tolerances follow from the rounding of bf16. Two devices round the same values, but compute them from sums in
//! other orders, so a value near the middle between two numbers of bf16 becomes another of them. The distance of the
//! CPU in bf16 from the reference in f32 measures the effect of all roundings of a model. The roundings of the other
//! device have at most the same effect and are partly independent, so its distance from either is at most twice as
//! large. A wrong mask, a lost block of keys or a wrong tile of a product has an effect of the size of the values.

use std::path::Path;

use reel_device::{DType, Device};
use reel_engine::{Completion, Engine, GenerationRequest};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_runtime::Cx;

use super::tensors::relative_distance;

/// The largest relative error of one rounding to bf16.
const ROUNDING: f64 = 1.0 / 512.0;

/// Computes the logits `[tokens, vocab]` of all tokens of an input.
pub fn logits(device: &Device, model: &Path, tokens: &ModelInput, dtype: DType) -> Vec<f64> {
    let config = ModelConfig::open(model).expect("a configuration");
    let model = QwenVl::open(device, &Checkpoint::open(model).expect("weights"), &config, dtype).expect("a model");
    let cx = Cx::inference(device, dtype);
    let batch = Batch::new(device, &config, &[tokens.sequence()], "case").expect("a batch");
    let hidden = model.forward(&cx, &batch, ForwardOptions::default()).expect("a forward pass");
    let logits = model.logits(&cx, &hidden).expect("logits").to_f32().expect("numbers");
    logits.into_iter().map(f64::from).collect()
}

/// Checks values of a device in bf16 against those of the CPU in bf16 and in f32.
pub fn check_distances(name: &str, got: &[f64], cpu: &[f64], reference: &[f64]) {
    let of_cpu = relative_distance(name, cpu, reference);
    let allowed = 2.0 * of_cpu + ROUNDING;
    let (of_device, between) = (relative_distance(name, got, reference), relative_distance(name, got, cpu));
    println!(
        "{name}: in bf16, cuda differs from the reference by {of_device:.2e} and from the cpu by {between:.2e}; the \
         cpu from the reference by {of_cpu:.2e}"
    );
    assert!(
        of_device <= allowed && between <= allowed,
        "{name}: {of_device:.2e}, {between:.2e}; allowed {allowed:.2e}"
    );
}

/// Checks the logits of an input.
pub fn check_logits(name: &str, device: &Device, cpu: &Device, model: &Path, tokens: &ModelInput) {
    let [got, of_cpu, reference] = [(device, DType::BF16), (cpu, DType::BF16), (cpu, DType::F32)]
        .map(|(device, dtype)| logits(device, model, tokens, dtype));
    check_distances(&format!("{name}, logits"), &got, &of_cpu, &reference);
}

/// Decodes `new_tokens` tokens greedily in bf16, twice with the same bits, and checks the log-probabilities of the
/// tokens against those of the CPU's forward pass over prompt and completion.
pub fn check_decoding(name: &str, device: &Device, cpu: &Device, model: &Path, prompt: &ModelInput, new_tokens: usize) {
    let completion = decode(device, model, prompt, new_tokens);
    assert_eq!(completion.ids.len(), new_tokens, "{name}");
    let again = decode(device, model, prompt, new_tokens);
    assert_eq!((&completion.ids, bits(&completion)), (&again.ids, bits(&again)), "{name}: two runs differ");
    let ids: Vec<u32> = prompt.input_ids.iter().chain(&completion.ids).copied().collect();
    let whole = ModelInput::from_text_tokens(ids);
    let [of_cpu, reference] = [DType::BF16, DType::F32].map(|dtype| {
        let logits = logits(cpu, model, &whole, dtype);
        log_probs(&logits, &completion.ids, prompt.len())
    });
    let got: Vec<f64> = completion.log_probs.iter().map(|&log_prob| f64::from(log_prob)).collect();
    check_distances(&format!("{name}, {new_tokens} decoded tokens"), &got, &of_cpu, &reference);
}

fn decode(device: &Device, model: &Path, prompt: &ModelInput, max_new_tokens: usize) -> Completion {
    let config = ModelConfig::open(model).expect("a configuration");
    let files = Checkpoint::open(model).expect("weights");
    let model = QwenVl::open(device, &files, &config, DType::BF16).expect("a model");
    let engine = Engine::new(&model, &Cx::inference(device, DType::BF16)).expect("an engine");
    let request = GenerationRequest { max_new_tokens, ..GenerationRequest::new(prompt.clone()) };
    engine.generate(vec![request], |_| {}).expect("a completion").0.remove(0)
}

fn bits(completion: &Completion) -> Vec<u32> {
    completion.log_probs.iter().map(|log_prob| log_prob.to_bits()).collect()
}

/// Returns the log-probabilities of the tokens `ids`, which follow `prompt` tokens, from the logits of all tokens.
fn log_probs(logits: &[f64], ids: &[u32], prompt: usize) -> Vec<f64> {
    let vocab = logits.len() / (prompt + ids.len());
    let rows = logits.chunks(vocab).skip(prompt - 1);
    rows.zip(ids)
        .map(|(row, &id)| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row[id as usize] - largest - row.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln()
        })
        .collect()
}
