//! Generates answers to a question with a model folder: tokenizer, chat template, engine. The model is tiny and has
//! random weights.
//!
//!     cargo run --release --example 04_generate

use std::error::Error;

use reel_device::{DType, Device};
use reel_engine::{Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::{Conversation, MediaOptions, ModelFolder, encode};
use reel_model::checkpoint::Checkpoint;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    let options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 0 };
    init_model_folder(&options, &model)?;

    // Opens everything in the folder except the weights, and renders the prompt with the folder's chat template.
    let bundle = ModelFolder::open(&model)?;
    let messages = folder.path().join("messages.json");
    std::fs::write(&messages, r#"[{"role": "user", "content": "What is in this video?"}]"#)?;
    let prompt = encode(&bundle, &Conversation::open(&messages, None)?, &MediaOptions::default())?;

    // Opens the weights, which are memory-mapped from their files.
    let device = Device::cpu(2);
    let weights = QwenVl::open(&device, &Checkpoint::open(&model)?, &bundle.config, DType::F32)?;
    let engine = Engine::new(&weights, &Cx::inference(&device, DType::F32))?;

    // The request asks for three completions of one prompt, which share the prompt's KV cache.
    let request = GenerationRequest {
        sampling: SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() },
        max_new_tokens: 12,
        eos_token_ids: bundle.stop_token_ids().to_vec(),
        stop_conditions: (0..3).map(|_| StopCondition::none()).collect(),
        ..GenerationRequest::new(prompt)
    };
    let (completions, timing) = engine.generate(vec![request], |_| {})?;
    for completion in &completions {
        println!("{:?}", bundle.tokenizer.decode(&completion.ids, true));
    }
    println!("prefill {:.1} ms, decode {:.1} ms", 1e3 * timing.prefill_seconds, 1e3 * timing.decode_seconds);
    assert_eq!(completions.len(), 3);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example runs");
}
