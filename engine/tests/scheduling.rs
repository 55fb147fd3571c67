//! Completions do not depend on how the scheduler computes them: chunks, prefix cache, preemption, other requests.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use reel_device::{DType, Device, Kernels, compile};
use reel_engine::{Completion, ContinuousBatch, Engine, EngineStats, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::features::FeatureCache;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use reel_support::error::Kind;

use support::{
    SAMPLED, TestRequest, image_prompt, int8_model, model, model_folder, random_model, run, run_until_idle,
    simulated_device, text_prompt, unrelated_requests,
};

/// Bytes of a KV block of the test model in f32: keys and values, 2 layers, 64 tokens, 1 head of dimension 128, 4
/// bytes.
const BLOCK_BYTES: u64 = 2 * 2 * 64 * 128 * 4;

/// A function that opens the test model on a device.
type Model = fn(&Device, DType) -> QwenVl;

/// Adds all requests to one batch, `per_step` at a time. Returns their completions and the engine's counters.
fn together(engine: &Engine, kv_bytes: u64, per_step: usize) -> (Vec<Completion>, EngineStats) {
    let mut batch = engine.continuous_batch(kv_bytes).unwrap();
    let (mut completions, mut requests) = (Vec::new(), unrelated_requests().into_iter().enumerate().peekable());
    while requests.peek().is_some() {
        requests.by_ref().take(per_step).for_each(|(i, request)| batch.add(i, request).unwrap());
        completions.extend(batch.step(&mut |_| {}).unwrap().completions);
    }
    completions.extend(run_until_idle(&mut batch));
    completions.sort_by_key(|c| (c.request, c.index));
    assert_eq!((batch.stats().running, batch.stats().waiting, batch.stats().blocks_in_use), (0, 0, 0));
    (completions, batch.stats())
}

/// Returns the completions of each request when it runs alone.
fn alone(engine: &Engine) -> Vec<Completion> {
    let of_request = |(i, request): (usize, GenerationRequest)| {
        let completions = engine.generate(vec![request], |_| {}).unwrap().0;
        completions.into_iter().map(move |c| Completion { request: i, ..c })
    };
    unrelated_requests().into_iter().enumerate().flat_map(of_request).collect()
}

#[test]
fn completions_have_the_same_bits_in_chunks_and_after_preemption() {
    for (dtype, model) in
        [(DType::F32, model as Model), (DType::BF16, model), (DType::F32, int8_model), (DType::BF16, int8_model)]
    {
        let device = Device::cpu(2);
        let (model, cx) = (model(&device, dtype), Cx::inference(&device, dtype));
        let engine = || Engine::new(&model, &cx).unwrap();
        let (want, mut preempted) = (alone(&engine()), Vec::new());
        for (chunk, slots, blocks, per_step) in
            [(512, 32, 400, 16), (1, 4, 400, 3), (7, 16, 400, 2), (512, 16, 14, 16), (7, 16, 9, 1), (64, 3, 7, 16)]
        {
            let engine = engine().chunk_tokens(chunk).max_slots(slots);
            let (got, stats) =
                together(&engine, blocks * BLOCK_BYTES / if dtype == DType::BF16 { 2 } else { 1 }, per_step);
            assert_eq!(got, want, "{dtype}: chunks of {chunk}, {slots} slots, {blocks} blocks");
            preempted.push(stats.preemptions > 0);
        }
        assert_eq!(preempted, [false, false, false, false, true, true]);
    }
}

#[test]
fn completions_on_the_simulator_do_not_depend_on_the_schedule() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for model in [model as Model, int8_model] {
        independent_of_the_schedule(model);
    }
}

fn independent_of_the_schedule(model: Model) {
    let device = simulated_device();
    let (model, cx) = (model(&device, DType::BF16), Cx::inference(&device, DType::BF16));
    let request = |i: usize| TestRequest {
        prompt_tokens: [3, 70, 66][i],
        completions: 1,
        max_new_tokens: [4, 3, 62][i].min(4),
        min_new_tokens: 0,
        sampling: [SamplingParams::GREEDY, SAMPLED, SamplingParams::GREEDY][i],
    };
    let requests: Vec<TestRequest> = (0..3).map(request).collect();
    let want = run(&Engine::new(&model, &cx).unwrap(), &requests, &[]);
    let ids = |completions: &[Completion]| completions.iter().map(|c| c.ids.clone()).collect::<Vec<_>>();
    for (chunk, blocks) in [(7, 100), (512, 4)] {
        let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(chunk).max_slots(4);
        let mut batch = engine.continuous_batch(blocks * BLOCK_BYTES / 2).unwrap();
        for round in 0..2 {
            (0..3).for_each(|i| batch.add(i, requests[i].request(&[])).unwrap());
            assert_eq!(ids(&run_until_idle(&mut batch)), ids(&want), "chunks of {chunk}, round {round}");
        }
        assert!(batch.stats().prefix_tokens_found > 0, "{:?}", batch.stats());
    }
}

#[test]
fn a_known_prompt_is_not_computed_again() {
    let device = Device::cpu(2);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap();
    let mut batch = engine.continuous_batch(400 * BLOCK_BYTES).unwrap();
    let ask = |batch: &mut ContinuousBatch| {
        unrelated_requests().into_iter().enumerate().for_each(|(i, request)| batch.add(i, request).unwrap());
        run_until_idle(batch)
    };
    let cold = ask(&mut batch);
    assert_eq!(cold, alone(&engine));
    let before = batch.stats();
    assert_eq!(before.prefix_tokens_found, 0);
    assert_eq!(ask(&mut batch), cold);
    let (found, computed) = (
        batch.stats().prefix_tokens_found - before.prefix_tokens_found,
        batch.stats().prefill_tokens - before.prefill_tokens,
    );
    // All full blocks are found, except a block that ends with the last token of a prompt.
    let blocks = |tokens: usize| (tokens - 1) / 64 * 64;
    let want: usize = unrelated_requests().iter().map(|request| blocks(request.prompt.input_ids.len())).sum();
    let all: usize = unrelated_requests().iter().map(|request| request.prompt.input_ids.len()).sum();
    assert_eq!((found as usize, computed as usize), (want, all - want));
    // Replaced weights empty the prefix cache.
    batch.replace_weights(model.clone(), &mut |_| {}).unwrap();
    let before = batch.stats().prefix_tokens_found;
    assert_eq!(ask(&mut batch), cold);
    assert_eq!(batch.stats().prefix_tokens_found, before);
}

/// Requests that run while the weights are replaced continue as if their tokens so far were part of a prompt for the
/// new model. Later requests get the completions of the new model. The old weights are freed.
#[test]
fn replaced_weights_continue_running_requests() {
    let device = Device::cpu(1);
    let (old, new) = (random_model(&device, 1), random_model(&device, 2));
    let cx = Cx::inference(&device, DType::F32);
    let engine_of = |model: &QwenVl| Engine::new(model, &cx).unwrap().max_slots(4);
    let request = |i: u32, ids: &[u32], tokens: usize| {
        let prompt: Vec<u32> = (0..80).map(|t| (t * 7 + i * 31) % 250).chain(ids.iter().copied()).collect();
        GenerationRequest { max_new_tokens: tokens, ..GenerationRequest::new(text_prompt(prompt)) }
    };
    let engine = engine_of(&old);
    drop(old);
    let generated = |i| engine.generate(vec![request(i, &[], 30)], |_| {}).unwrap().0.remove(0).ids;
    let before_all = generated(0);
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    // Six requests for four slots: some wait while the weights are replaced.
    (0..6).for_each(|i| batch.add(i as usize, request(i, &[], 30)).unwrap());
    let mut so_far: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for _ in 0..12 {
        let output = batch.step(&mut |token| so_far.entry(token.request).or_default().push(token.id)).unwrap();
        assert!(output.completions.is_empty());
    }
    assert_eq!(so_far.len(), 4);
    let other = model(&device, DType::F32);
    let refused = batch.replace_weights(other, &mut |_| {}).unwrap_err().to_string();
    assert!(refused.starts_with("vocab_size: is ") && refused.contains("; use weights"), "{refused}");
    assert_eq!(batch.replace_weights(new.clone(), &mut |_| {}).unwrap(), 4);
    let completions = run_until_idle(&mut batch);
    let fresh = engine_of(&new);
    let alone =
        |ids: &[u32], i: u32, tokens| fresh.generate(vec![request(i, ids, tokens)], |_| {}).unwrap().0.remove(0);
    for completion in &completions {
        let before = so_far.get(&completion.request).cloned().unwrap_or_default();
        let after = alone(&before, completion.request as u32, 30 - before.len());
        assert_eq!(completion.ids, [&before[..], &after.ids].concat(), "request {}", completion.request);
    }
    // The old weights would have given other tokens.
    let restarted = alone(&[], 0, 30);
    assert_ne!(completions[0].ids, restarted.ids);
    batch.add(0, request(0, &[], 30)).unwrap();
    assert_eq!(run_until_idle(&mut batch).remove(0).ids, restarted.ids);
    // `Engine::generate` also uses the new weights, although it reuses the batch of an earlier call.
    assert!(generated(0) == restarted.ids && before_all != restarted.ids);
}

/// The golden model with changed signs of its weights.
fn changed_model(device: &Device, dtype: DType) -> QwenVl {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model_folder()).unwrap() {
        let entry = entry.unwrap();
        let mut bytes = std::fs::read(entry.path()).unwrap();
        if entry.path().extension().is_some_and(|end| end == "safetensors") {
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[header..].iter_mut().skip(3).step_by(12).for_each(|byte| *byte ^= 0x80);
        }
        std::fs::write(copy.path().join(entry.file_name()), bytes).unwrap();
    }
    let config = ModelConfig::open(copy.path()).unwrap();
    QwenVl::open(device, &Checkpoint::open(copy.path()).unwrap(), &config, dtype).unwrap()
}

/// On the simulator, as on a GPU, decode steps are captured graphs that hold addresses of the old weights; they must
/// not be replayed with new weights.
#[test]
fn replaced_weights_are_those_of_captured_steps() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let device = simulated_device();
    let cx = Cx::inference(&device, DType::BF16);
    let request = |ids: &[u32], tokens: usize| {
        let prompt: Vec<u32> = (0..20).map(|t| t * 3 % 97).chain(ids.iter().copied()).collect();
        GenerationRequest { max_new_tokens: tokens, ..GenerationRequest::new(text_prompt(prompt)) }
    };
    let engine = Engine::new(&model(&device, DType::BF16), &cx).unwrap().max_slots(2);
    let mut batch = engine.continuous_batch(8 * BLOCK_BYTES).unwrap();
    let weights = |device: &Device| device.memory().now.iter().find(|(name, _)| *name == "weights").copied();
    let before = weights(&device);
    batch.add(0, request(&[], 6)).unwrap();
    let mut so_far = Vec::new();
    while so_far.len() < 3 {
        batch.step(&mut |token| so_far.push(token.id)).unwrap();
    }
    assert_eq!(
        batch.replace_weights(changed_model(&device, DType::BF16), &mut |token| so_far.push(token.id)).unwrap(),
        1
    );
    assert_eq!(weights(&device), before, "the old weights are not freed");
    let got = run_until_idle(&mut batch).remove(0).ids;
    let fresh = Engine::new(&changed_model(&device, DType::BF16), &cx).unwrap().max_slots(2);
    let alone = |ids: &[u32], tokens| fresh.generate(vec![request(ids, tokens)], |_| {}).unwrap().0.remove(0).ids;
    assert_eq!(got, [&so_far[..], &alone(&so_far, 6 - so_far.len())].concat());
    assert_ne!(got, alone(&[], 6), "both weights give the same tokens");
}

/// Device `dry` counts the same memory as the CPU device uses; `reel plan serve` relies on it.
#[test]
fn a_batch_takes_the_same_memory_on_device_dry() {
    let use_of = |device: &Device| {
        let (model, cx) = (model(device, DType::F32), Cx::inference(device, DType::F32));
        let engine = Engine::new(&model, &cx).unwrap().max_slots(5).chunk_tokens(100);
        let mut batch = engine.continuous_batch(40 * BLOCK_BYTES + 1).unwrap();
        for i in 0..7 {
            let prompt = text_prompt((0..150).map(|t| (t * 7 + i * 3) % 97).collect());
            batch.add(i as usize, GenerationRequest { max_new_tokens: 70, ..GenerationRequest::new(prompt) }).unwrap();
        }
        run_until_idle(&mut batch);
        let memory = device.memory();
        assert!(memory.now.contains(&("kv_cache", 40 * BLOCK_BYTES as usize)), "{memory:?}");
        (batch.stats().blocks, memory)
    };
    assert_eq!(use_of(&Device::cpu(1)), use_of(&Device::dry(Kernels::Cpu)));
}

/// The next turn of a conversation finds the blocks of the previous answer in the prefix cache.
#[test]
fn generated_tokens_are_found_as_part_of_a_later_prompt() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap();
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    let first = || GenerationRequest {
        max_new_tokens: 100,
        ..GenerationRequest::new(text_prompt((0..50).map(|i| i % 90).collect()))
    };
    batch.add(0, first()).unwrap();
    let answer = run_until_idle(&mut batch).remove(0).ids;
    let longer: Vec<u32> = (0..50).map(|i| i % 90).chain(answer.iter().copied()).chain([5, 6, 7]).collect();
    let second = || GenerationRequest { max_new_tokens: 20, ..GenerationRequest::new(text_prompt(longer.clone())) };
    batch.add(1, second()).unwrap();
    let got = run_until_idle(&mut batch).remove(0);
    assert_eq!(batch.stats().prefix_tokens_found, 128, "blocks 0 and 1 of 153 tokens");
    assert_eq!(got.ids, engine.generate(vec![second()], |_| {}).unwrap().0[0].ids);
}

/// Two prompts that differ only in the pixels of their image share no blocks from the image on. With the same image,
/// the blocks are found and the vision tower does not run.
#[test]
fn media_count_in_the_prefix_cache() {
    let device = Device::cpu(2);
    let (mut model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let prompt = image_prompt(&model);
    let mut other = ModelInput::clone(&prompt);
    other
        .frames
        .images
        .iter_mut()
        .for_each(|image| Arc::make_mut(&mut image.data).iter_mut().for_each(|byte| *byte = 255 - *byte));
    if let Some(values) = &mut other.pixel_values {
        values.iter_mut().for_each(|value| *value = -*value);
    }
    let other = Arc::new(other);
    model.features = Some(Arc::new(FeatureCache::new(1 << 20)));
    let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(10);
    // More text after the prompt, so that blocks after the image are full.
    let request = |prompt: &Arc<ModelInput>| {
        let mut long = ModelInput::clone(prompt);
        for i in 0..130u32 {
            long.input_ids.push(i % 90);
            let next = long.position_ids[0].len() as i64 + long.rope_delta;
            long.position_ids.iter_mut().for_each(|axis| axis.push(next));
        }
        GenerationRequest { max_new_tokens: 12, ..GenerationRequest::new(long) }
    };
    let alone = |prompt| engine.generate(vec![request(prompt)], |_| {}).unwrap().0.remove(0);
    let (want, want_other) = (alone(&prompt), alone(&other));
    assert_ne!(want.log_probs, want_other.log_probs, "the image has no effect");
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    let mut ask = |prompt| {
        batch.add(0, request(prompt)).unwrap();
        let found = batch.stats().prefix_tokens_found;
        let completion = run_until_idle(&mut batch).remove(0);
        (completion, batch.stats().prefix_tokens_found - found)
    };
    assert_eq!(ask(&prompt), (want.clone(), 0));
    let first_pad = prompt.input_ids.iter().position(|&id| id == model.config.tokens.image).unwrap();
    assert_eq!(ask(&other), (want_other, first_pad as u64 / 64 * 64));
    device.profiler().collect_totals(true);
    let (again, found) = ask(&prompt);
    assert_eq!((again, found > first_pad as u64), (want, true));
    let totals = device.profiler().totals().unwrap();
    assert!(!totals.contains_key("patch_embedding"), "the vision tower ran again: {:?}", totals.keys());
}

#[test]
fn requests_start_by_priority_and_arrival() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap().max_slots(1);
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    for (i, priority) in [0, 5, 0, -1, 5, -1].into_iter().enumerate() {
        let prompt = text_prompt((0..70).map(|t| (t + i as u32) % 90).collect());
        batch.add(i, GenerationRequest { priority, max_new_tokens: 3, ..GenerationRequest::new(prompt) }).unwrap();
    }
    let mut order = Vec::new();
    while !batch.is_idle() {
        order.extend(batch.step(&mut |_| {}).unwrap().completions.iter().map(|c| c.request));
    }
    assert_eq!(order, [3, 5, 0, 2, 1, 4]);
}

/// A long prompt does not stop other sequences from decoding: each step computes a chunk of the prompt and one token of
/// each running sequence.
#[test]
fn running_sequences_decode_while_a_long_prompt_is_computed() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(16);
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    let short = GenerationRequest { max_new_tokens: 40, ..GenerationRequest::new(text_prompt(vec![1, 2, 3])) };
    batch.add(0, short).unwrap();
    batch.step(&mut |_| {}).unwrap();
    let long = GenerationRequest { max_new_tokens: 2, ..GenerationRequest::new(text_prompt(vec![4; 320])) };
    batch.add(1, long).unwrap();
    let mut tokens: Vec<usize> = Vec::new();
    while tokens.iter().filter(|&&request| request == 1).count() == 0 {
        batch.step(&mut |token| tokens.push(token.request)).unwrap();
    }
    let before_first = tokens.iter().filter(|&&request| request == 0).count();
    assert!((19..=20).contains(&before_first), "{before_first} tokens during 20 chunks");
}

#[test]
fn cancelled_and_late_requests_free_their_blocks_at_once() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap().max_slots(4).chunk_tokens(64);
    let mut batch = engine.continuous_batch(100 * BLOCK_BYTES).unwrap();
    let request = |tokens: usize, deadline| GenerationRequest {
        max_new_tokens: 1000,
        stop_conditions: (0..3).map(|_| StopCondition::none()).collect(),
        deadline,
        ..GenerationRequest::new(text_prompt(vec![4; tokens]))
    };
    // The batch has three requests: one decodes, one has a prompt that is being computed, one waits.
    for (i, tokens) in [10, 300, 20].into_iter().enumerate() {
        batch.add(i, request(tokens, None)).unwrap();
    }
    batch.step(&mut |_| {}).unwrap();
    assert!(batch.stats().blocks_in_use >= 7 && batch.stats().waiting > 0, "{:?}", batch.stats());
    (0..3).for_each(|i| batch.cancel(i).unwrap());
    assert_eq!((batch.stats().blocks_in_use, batch.is_idle()), (0, true));
    batch.add(3, request(10, Some(Instant::now() + Duration::from_millis(30)))).unwrap();
    let failed = loop {
        let output = batch.step(&mut |_| {}).unwrap();
        if !output.failed.is_empty() {
            break output.failed;
        }
    };
    assert!(matches!(&failed[..], [(3, e)] if e.kind == Kind::DeadlineExceeded), "{failed:?}");
    assert_eq!((batch.stats().blocks_in_use, batch.is_idle()), (0, true));
}

#[test]
fn requests_that_can_never_fit_are_refused() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap();
    let mut batch = engine.continuous_batch(3 * BLOCK_BYTES).unwrap();
    let request =
        |tokens| GenerationRequest { max_new_tokens: tokens, ..GenerationRequest::new(text_prompt(vec![4; 100])) };
    let e = batch.add(0, request(93)).unwrap_err().to_string();
    assert!(e.starts_with("KV cache: has room for 192 tokens, but prompt and completion need 193"), "{e}");
    batch.add(1, request(92)).unwrap();
    assert_eq!(run_until_idle(&mut batch)[0].ids.len(), 92);
}

/// An event between two steps of the batch.
#[derive(Clone, Debug)]
enum Arrival {
    Add { stranger: usize, priority: i32 },
    Cancel(usize),
    Nothing,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    prop_oneof![
        4 => (0usize..16, -1i32..2).prop_map(|(stranger, priority)| Arrival::Add { stranger, priority }),
        1 => (0usize..20).prop_map(Arrival::Cancel),
        3 => Just(Arrival::Nothing),
    ]
}

/// The tokens of a greedy completion have the same log-probabilities when they are part of a later prompt. This holds
/// for all chunk sizes, with and without the prefix cache and other requests.
#[test]
fn log_probabilities_of_a_prompt_are_those_of_its_generation() {
    let device = Device::cpu(2);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let ids: Vec<u32> = (0..150).map(|t| (t * 31 + 3) % 97).collect();
    let generated = {
        let prompt = GenerationRequest::new(text_prompt(ids.clone()));
        let request = GenerationRequest { max_new_tokens: 60, top_log_probs: Some(4), ..prompt };
        Engine::new(&model, &cx).unwrap().generate(vec![request], |_| {}).unwrap().0.remove(0)
    };
    let whole = [&ids[..], &generated.ids].concat();
    let mut results = Vec::new();
    for (chunk, strangers_beside) in [(1, 0), (7, 5), (64, 0), (512, 16)] {
        let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(chunk).max_slots(8);
        let mut batch = engine.continuous_batch(60 * BLOCK_BYTES).unwrap();
        for round in 0..2 {
            let request = GenerationRequest {
                prompt_log_probs: Some(4),
                stop_conditions: vec![StopCondition::none(), StopCondition::none()],
                ..GenerationRequest::new(text_prompt(whole.clone()))
            };
            unrelated_requests()
                .into_iter()
                .take(strangers_beside)
                .enumerate()
                .for_each(|(i, r)| batch.add(i + 1, r).unwrap());
            batch.add(0, request).unwrap();
            let completions = run_until_idle(&mut batch);
            assert_eq!(completions[0].prompt_log_probs, completions[1].prompt_log_probs);
            assert!(completions[2..].iter().all(|c| c.prompt_log_probs.is_empty()));
            results.push((format!("chunks of {chunk}, round {round}"), completions[0].prompt_log_probs.clone()));
        }
    }
    for (name, tokens) in &results {
        assert_eq!(tokens, &results[0].1, "{name}");
        assert_eq!(tokens.iter().map(|t| t.id).collect::<Vec<_>>(), whole[1..]);
    }
    for (token, wanted) in results[0].1[ids.len() - 1..].iter().zip(&generated.token_log_probs) {
        assert!((token.log_prob - wanted.log_prob).abs() < 1e-5, "{token:?} {wanted:?}");
        // Media tokens (vision start, pads) may be more likely, but are never sampled, so the rank may be above 1.
        assert_eq!(wanted.top[token.rank - 1].0, token.id, "{token:?} {wanted:?}");
        let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&token.top), ids(&wanted.top));
    }
}

/// The completions of each request alone on one thread in f32, computed once for all cases of a test.
static ALONE: LazyLock<Vec<Completion>> = LazyLock::new(|| {
    let device = Device::cpu(1);
    alone(&Engine::new(&model(&device, DType::F32), &Cx::inference(&device, DType::F32)).unwrap())
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Requests and cancellations arrive in any order, with any limits. Each request that is not cancelled gets the
    /// same bits as when it runs alone, and all blocks are free in the end.
    #[test]
    fn any_order_of_events_gives_the_completions_of_requests_alone(
        arrivals in prop::collection::vec(arrival(), 1..40),
        chunk in 1usize..200,
        slots in 1usize..9,
        blocks in 8u64..40,
    ) {
        let device = Device::cpu(1);
        let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
        let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(chunk).max_slots(slots);
        let mut batch = engine.continuous_batch(blocks * BLOCK_BYTES).unwrap();
        let (mut got, mut added) = (Vec::new(), BTreeMap::new());
        for (i, arrival) in arrivals.into_iter().enumerate() {
            match arrival {
                Arrival::Add { stranger, priority } => {
                    let request = unrelated_requests().swap_remove(stranger);
                    batch.add(i, GenerationRequest { priority, ..request }).unwrap();
                    added.insert(i, stranger);
                }
                Arrival::Cancel(request) => {
                    batch.cancel(request).unwrap();
                    added.remove(&request);
                    got.retain(|c: &Completion| c.request != request);
                }
                Arrival::Nothing => {}
            }
            got.extend(batch.step(&mut |_| {}).unwrap().completions);
        }
        got.extend(run_until_idle(&mut batch));
        got.sort_by_key(|c| (c.request, c.index));
        let of = |(&request, &stranger): (&usize, &usize)| {
            let of_stranger = ALONE.iter().filter(move |c| c.request == stranger);
            of_stranger.map(move |c| Completion { request, ..c.clone() })
        };
        let expected: Vec<Completion> = added.iter().flat_map(of).collect();
        prop_assert_eq!(got, expected);
        prop_assert_eq!((batch.stats().running, batch.stats().waiting, batch.stats().blocks_in_use), (0, 0, 0));
    }
}
