//! A divided model on fake GPUs: each rank is a thread of the test with a fake GPU of its own, and the ranks gather
//! activations by a fake NCCL.

#[path = "support/fake_gpu.rs"]
mod fake_gpu;
mod support;

use std::sync::Arc;
use std::time::Duration;

use reel_device::{DType, Device, MemoryUse, compile};
use reel_engine::{Completion, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::QwenVl;
use reel_model::tensor_parallel::TensorParallel;
use reel_runtime::Cx;
use reel_support::ranks::{Ranks, Timeouts, TrafficVolume, World};
use reel_train::step::shard_exchange;

use fake_gpu::{assert_no_violations_or_leaks, fake_cuda};
use support::golden;

/// Memory of a fake GPU in bytes: enough for the model and the 32 MiB workspace of matrix products.
const GPU_BYTES: u64 = 48 << 20;
const RANKS: usize = 2;

/// Returns a text prompt, and a prompt with an image of 2 x 2 patches, for `train/model_a`.
fn prompts() -> [ModelInput; 2] {
    let text = ModelInput::from_text_tokens((0..19).map(|i| 1 + (i * 7) % 350).collect());
    // The token ids that begin an image, stand for its patches, and end it.
    let mut image = ModelInput::from_text_tokens(vec![409, 412, 410, 8, 15]);
    image.pixel_values = Some((0..4 * 3 * 2 * 14 * 14).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect());
    image.image_grid_thw = vec![[1, 2, 2]];
    [text, image]
}

/// Generates three completions for each prompt, one greedy and two sampled. Returns them, and the device memory in
/// use with the KV cache.
fn generate(device: &Device, dtype: DType, ranks: Option<&Arc<Ranks>>) -> (Vec<Completion>, MemoryUse) {
    let folder = golden("train").join("model_a");
    let config = ModelConfig::open(&folder).expect("a configuration");
    let files = Checkpoint::open(&folder).expect("weights");
    let parallel = ranks.map(|ranks| {
        TensorParallel::new(shard_exchange::connect(ranks, device).expect("NCCL"), &config).expect("a divisible model")
    });
    let model = QwenVl::open_quantized(device, &files, &config, dtype, Quantization::None, parallel.as_ref());
    let model = model.expect("a model");
    let [text, image] = prompts();
    let request = |prompt, temperature: f32, n: usize| GenerationRequest {
        sampling: SamplingParams { temperature, seed: 3, ..SamplingParams::default() },
        max_new_tokens: 4,
        stop_conditions: (0..n).map(|_| StopCondition::none()).collect(),
        top_log_probs: Some(2),
        ..GenerationRequest::new(prompt)
    };
    let engine = Engine::new(&model, &Cx::inference(device, dtype)).expect("an engine");
    let requests = vec![request(text, 0.0, 1), request(image, 1.0, 2)];
    let (completions, _) = engine.generate(requests, |_| {}).expect("completions");
    assert_eq!(engine.graph_capture_count() > 0, ranks.is_none(), "steps with exchanges are not captured");
    (completions, device.memory())
}

/// Returns the bytes in use of a memory category.
fn bytes(memory: &MemoryUse, category: &str) -> usize {
    memory.now.iter().find(|(name, _)| *name == category).expect("a category").1
}

#[test]
fn two_fake_gpus_generate_the_tokens_of_one_with_half_of_its_memory() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let config = ModelConfig::open(&golden("train").join("model_a")).expect("a configuration");
    for dtype in [DType::BF16, DType::F32] {
        let (fake, device) = fake_cuda(GPU_BYTES);
        let (wanted, whole) = generate(&device, dtype, None);
        drop(device);
        assert_no_violations_or_leaks(&fake, "one GPU");
        let folder = tempfile::tempdir().expect("a folder");
        let (fakes, devices): (Vec<_>, Vec<_>) = (0..RANKS).map(|_| fake_cuda(GPU_BYTES)).unzip();
        std::thread::scope(|scope| {
            let start = |(rank, device): (usize, Device)| {
                let job = "tensor_parallel_cuda".to_string();
                let world = World { rank, size: RANKS, local_rank: rank, local_size: RANKS, job, ..World::default() };
                let timeouts = Timeouts { join: Duration::from_secs(60), ..Timeouts::default() };
                let (folder, wanted, whole, config) = (folder.path(), &wanted, &whole, &config);
                scope.spawn(move || {
                    let ranks = Ranks::join(world, folder, timeouts, Box::new(|_| {})).expect("all ranks join");
                    let ranks = Arc::new(ranks);
                    let (completions, memory) = generate(&device, dtype, Some(&ranks));
                    assert_eq!(&completions, wanted, "rank {rank}, {dtype}");
                    assert_eq!(
                        ranks.traffic().all_to_all,
                        TrafficVolume::default(),
                        "activations went through host memory"
                    );
                    assert_eq!(bytes(&memory, "kv_cache") * RANKS, bytes(whole, "kv_cache"));
                    // Counts the weights that are divided: all except those that every rank has whole, which are the
                    // vision tower, the embedding table and the norms.
                    let text = &config.text;
                    let (h, inner) = (text.hidden_size, text.intermediate_size);
                    let kv = text.num_key_value_heads * text.head_dim;
                    let of_layer = 2 * h * h + 2 * h * kv + 3 * h * inner + h + 2 * kv;
                    let divided = (text.num_hidden_layers * of_layer + text.vocab_size * h) * dtype.size();
                    let saved = bytes(whole, "weights") - bytes(&memory, "weights");
                    let least = divided / RANKS * 9 / 10;
                    assert!((least..=divided / RANKS).contains(&saved), "rank {rank} saves {saved} of {divided} bytes");
                    Arc::into_inner(ranks).expect("the engine is gone").leave().expect("all ranks leave");
                })
            };
            // The scope joins the threads at its end.
            devices.into_iter().enumerate().for_each(|device| drop(start(device)));
        });
        fakes.iter().for_each(|fake| assert_no_violations_or_leaks(fake, "two GPUs"));
    }
}
