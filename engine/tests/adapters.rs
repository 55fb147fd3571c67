//! Requests with different LoRA adapters in one batch: each request gets the same bits as alone in the engine.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::{Arch, DType, Device, compile};
use reel_engine::{AdapterId, Completion, ContinuousBatch, Engine, GenerationRequest};
use reel_model::features::FeatureCache;
use reel_model::lora;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;

use support::{
    TestAdapter, image_prompt, model, random_model, run_until_idle, simulated_device, unrelated_requests, with_adapter,
};

/// Bytes of a KV block of the test model in f32: keys and values, 2 layers, 64 tokens, 1 head of dimension 128, 4
/// bytes.
const BLOCK_BYTES: u64 = 2 * 2 * 64 * 128 * 4;

/// Adapters of different ranks, on different layers.
const ADAPTERS: [TestAdapter; 3] = [
    TestAdapter { rank: 3, targets: &["q_proj", "v_proj"], seed: 7 },
    TestAdapter { rank: 9, targets: &[lora::ALL_LINEAR], seed: 8 },
    TestAdapter { rank: 1, targets: &["down_proj", "gate_proj"], seed: 9 },
];

/// The base model, and the model with each adapter.
fn models(device: &Device, dtype: DType) -> Vec<QwenVl> {
    let base = model(device, dtype);
    let adapted = ADAPTERS.iter().map(|adapter| with_adapter(&base, device, dtype, adapter));
    let adapted: Vec<QwenVl> = adapted.collect();
    [vec![base], adapted].concat()
}

/// Returns the completions of those [`unrelated_requests`] for which `is_wanted` is true, each generated alone with a
/// model.
fn alone(model: &QwenVl, cx: &Cx, is_wanted: impl Fn(usize) -> bool) -> Vec<Completion> {
    let engine = Engine::new(model, cx).unwrap();
    let of_request = |(i, request): (usize, GenerationRequest)| {
        let completions = engine.generate(vec![request], |_| {}).unwrap().0;
        completions.into_iter().map(move |c| Completion { request: i, ..c })
    };
    unrelated_requests().into_iter().enumerate().filter(|(i, _)| is_wanted(*i)).flat_map(of_request).collect()
}

fn load(batch: &mut ContinuousBatch, models: &[QwenVl]) -> Vec<Option<AdapterId>> {
    let adapters = models[1..].iter().map(|model| Some(batch.load_adapter(model.clone(), &mut |_| {}).unwrap()));
    std::iter::once(None).chain(adapters.collect::<Vec<_>>()).collect()
}

/// The expected completions of [`unrelated_requests`]: request i is generated alone with model `i % 4`.
fn wanted(models: &[QwenVl], cx: &Cx) -> Vec<Completion> {
    let mut want: Vec<Completion> = (0..4).flat_map(|m| alone(&models[m], cx, |i| i % 4 == m)).collect();
    want.sort_by_key(|c| (c.request, c.index));
    want
}

#[test]
fn requests_with_different_adapters_have_the_bits_of_each_alone() {
    for dtype in [DType::F32, DType::BF16] {
        let device = Device::cpu(2);
        let (models, cx) = (models(&device, dtype), Cx::inference(&device, dtype));
        let want = wanted(&models, &cx);
        for adapter in 1..4 {
            let base = alone(&models[0], &cx, |i| i % 4 == adapter);
            let of_adapter: Vec<_> = want.iter().filter(|c| c.request % 4 == adapter).cloned().collect();
            assert_ne!(base, of_adapter, "adapter {adapter} has no effect");
        }
        let block = BLOCK_BYTES / if dtype == DType::BF16 { 2 } else { 1 };
        for (chunk, slots, blocks) in [(512, 32, 400), (1, 4, 400), (7, 16, 400), (7, 16, 9), (512, 16, 14)] {
            let engine = Engine::new(&models[0], &cx).unwrap().chunk_tokens(chunk).max_slots(slots);
            let mut batch = engine.continuous_batch(blocks * block).unwrap();
            let ids = load(&mut batch, &models);
            // The second iteration finds the blocks of the first iteration in the prefix cache.
            for round in 0..2 {
                for (i, request) in unrelated_requests().into_iter().enumerate() {
                    batch.add(i, GenerationRequest { adapter: ids[i % 4], ..request }).unwrap();
                }
                assert_eq!(
                    run_until_idle(&mut batch),
                    want,
                    "{dtype}: chunks of {chunk}, {blocks} blocks, round {round}"
                );
            }
            assert_eq!(batch.stats().preemptions > 0, blocks < 14, "{:?}", batch.stats());
        }
    }
}

#[test]
fn the_prefix_cache_keeps_adapters_apart() {
    let (device, dtype) = (Device::cpu(2), DType::F32);
    let (models, cx) = (models(&device, dtype), Cx::inference(&device, dtype));
    let engine = Engine::new(&models[0], &cx).unwrap();
    let mut batch = engine.continuous_batch(400 * BLOCK_BYTES).unwrap();
    let ids = load(&mut batch, &models);
    // The prompt of the last test request has several blocks.
    for (number, adapter) in ids.iter().enumerate() {
        for found in [0, 1] {
            let before = batch.stats().prefix_tokens_found;
            let request = GenerationRequest { adapter: *adapter, ..unrelated_requests().swap_remove(15) };
            batch.add(15, request).unwrap();
            assert_eq!(run_until_idle(&mut batch), alone(&models[number], &cx, |i| i == 15), "model {number}");
            assert_eq!(batch.stats().prefix_tokens_found > before, found == 1, "model {number}");
        }
    }
}

#[test]
fn an_adapter_of_the_vision_tower_has_vision_tokens_of_its_own() {
    let (device, dtype) = (Device::cpu(2), DType::F32);
    let mut base = model(&device, dtype);
    base.features = Some(Arc::new(FeatureCache::new(1 << 20)));
    let cx = Cx::inference(&device, dtype);
    let adapted = with_adapter(&base, &device, dtype, &ADAPTERS[1]);
    let request = || GenerationRequest { max_new_tokens: 12, ..GenerationRequest::new(image_prompt(&base)) };
    let engine = Engine::new(&base, &cx).unwrap();
    let mut batch = engine.continuous_batch(400 * BLOCK_BYTES).unwrap();
    let id = batch.load_adapter(adapted, &mut |_| {}).unwrap();
    let bare = QwenVl { features: None, ..base.clone() };
    let want = [bare.clone(), with_adapter(&bare, &device, dtype, &ADAPTERS[1])]
        .map(|model| Engine::new(&model, &cx).unwrap().generate(vec![request()], |_| {}).unwrap().0.remove(0));
    assert_ne!(want[0].log_probs, want[1].log_probs);
    for adapter in [None, Some(id), None] {
        batch.add(0, GenerationRequest { adapter, ..request() }).unwrap();
        assert_eq!(run_until_idle(&mut batch)[0], want[usize::from(adapter.is_some())]);
    }
}

#[test]
fn an_unloaded_adapter_serves_its_requests_to_the_end() {
    let (device, dtype) = (Device::cpu(2), DType::F32);
    let (models, cx) = (models(&device, dtype), Cx::inference(&device, dtype));
    let engine = Engine::new(&models[0], &cx).unwrap();
    let mut batch = engine.continuous_batch(400 * BLOCK_BYTES).unwrap();
    let ids = load(&mut batch, &models);
    let request = |i: usize, adapter| GenerationRequest { adapter, ..unrelated_requests().swap_remove(i) };
    batch.add(9, request(9, ids[1])).unwrap();
    batch.step(&mut |_| {}).unwrap();
    batch.unload_adapter(ids[1].unwrap(), &mut |_| {}).unwrap();
    let refused = batch.add(5, request(5, ids[1])).unwrap_err().to_string();
    assert!(refused.starts_with("adapter: is not loaded"), "{refused}");
    // The adapter is loaded again while the request of the unloaded adapter still runs.
    let again = batch.load_adapter(models[1].clone(), &mut |_| {}).unwrap();
    batch.unload_adapter(ids[2].unwrap(), &mut |_| {}).unwrap();
    batch.add(5, request(5, Some(again))).unwrap();
    batch.add(3, request(3, ids[3])).unwrap();
    let want = [(3, 3), (5, 1), (9, 1)].map(|(i, m)| alone(&models[m], &cx, |stranger| stranger == i)).concat();
    assert_eq!(run_until_idle(&mut batch), want);
    assert!(Some(again) != ids[1] && Some(again) != ids[3]);
}

#[test]
fn adapters_stay_when_the_weights_are_replaced() {
    let (device, dtype) = (Device::cpu(1), DType::F32);
    let cx = Cx::inference(&device, dtype);
    let [old, new] = [1, 2].map(|seed| random_model(&device, seed));
    let engine = Engine::new(&old, &cx).unwrap();
    let mut batch = engine.continuous_batch(400 * BLOCK_BYTES).unwrap();
    let id = batch.load_adapter(with_adapter(&old, &device, dtype, &ADAPTERS[1]), &mut |_| {}).unwrap();
    let add = |batch: &mut ContinuousBatch| {
        for (i, adapter) in [None, Some(id)].into_iter().enumerate() {
            batch.add(i, GenerationRequest { adapter, ..unrelated_requests().swap_remove(9) }).unwrap();
        }
    };
    let want = |base: &QwenVl| -> Vec<Completion> {
        let models = [base.clone(), with_adapter(base, &device, dtype, &ADAPTERS[1])];
        let completions = models.iter().map(|model| alone(model, &cx, |i| i == 9).remove(0));
        completions.enumerate().map(|(request, c)| Completion { request, ..c }).collect()
    };
    add(&mut batch);
    assert_eq!(run_until_idle(&mut batch), want(&old));
    batch.replace_weights(new.clone(), &mut |_| {}).unwrap();
    add(&mut batch);
    assert_eq!(run_until_idle(&mut batch), want(&new));
}

/// Returns the completions of test request `stranger`, generated alone with model `number`, on one thread in f32.
/// They are computed once for all cases of a test.
fn alone_once(models: &[QwenVl], cx: &Cx, number: usize, stranger: usize) -> Vec<Completion> {
    static ALONE: Mutex<BTreeMap<(usize, usize), Vec<Completion>>> = Mutex::new(BTreeMap::new());
    let mut known = ALONE.lock().unwrap();
    let compute = || alone(&models[number], cx, |other| other == stranger);
    known.entry((number, stranger)).or_insert_with(compute).clone()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Requests, adapter loads and unloads come in any order. Each request gets the same completions as alone.
    #[test]
    fn any_order_of_loads_and_requests(
        events in prop::collection::vec((0usize..16, 0usize..4, 0u8..6), 1..30),
        chunk in 1usize..200,
        slots in 1usize..9,
        blocks in 8u64..40,
    ) {
        let (device, dtype) = (Device::cpu(1), DType::F32);
        let (models, cx) = (models(&device, dtype), Cx::inference(&device, dtype));
        let engine = Engine::new(&models[0], &cx).unwrap().chunk_tokens(chunk).max_slots(slots);
        let mut batch = engine.continuous_batch(blocks * BLOCK_BYTES).unwrap();
        let mut ids: BTreeMap<usize, AdapterId> = BTreeMap::new();
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (i, (stranger, number, event)) in events.into_iter().enumerate() {
            match (event, ids.get(&number)) {
                (0, Some(&id)) => {
                    batch.unload_adapter(id, &mut |_| {}).unwrap();
                    ids.remove(&number);
                }
                (_, None) if number > 0 => {
                    let id = batch.load_adapter(models[number].clone(), &mut |_| {}).unwrap();
                    ids.insert(number, id);
                }
                (_, adapter) => {
                    let request = unrelated_requests().swap_remove(stranger);
                    batch.add(i, GenerationRequest { adapter: adapter.copied(), ..request }).unwrap();
                    let completions = alone_once(&models, &cx, number, stranger);
                    want.extend(completions.into_iter().map(|c| Completion { request: i, ..c }));
                }
            }
            got.extend(batch.step(&mut |_| {}).unwrap().completions);
        }
        got.extend(run_until_idle(&mut batch));
        got.sort_by_key(|c| (c.request, c.index));
        prop_assert_eq!(got, want);
    }
}

/// On the simulator and on a fake GPU driver, a request has the same bits with and without other requests with
/// adapters.
#[test]
fn on_a_gpu_other_adapters_change_nothing() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let dtype = DType::BF16;
    let completions = |device: &Device| {
        let (models, cx) = (models(device, dtype), Cx::inference(device, dtype));
        let engine = Engine::new(&models[0], &cx).unwrap().max_slots(4);
        let mut batch = engine.continuous_batch(100 * BLOCK_BYTES / 2).unwrap();
        let ids = load(&mut batch, &models);
        let request = |i: usize| {
            let stranger = unrelated_requests().swap_remove(i);
            GenerationRequest { adapter: ids[i % 4], max_new_tokens: 4, ..stranger }
        };
        let alone: Vec<Completion> = (0..4)
            .flat_map(|i| {
                batch.add(i, request(i)).unwrap();
                run_until_idle(&mut batch)
            })
            .collect();
        // The second run has the same results, although it finds blocks in the prefix cache.
        (0..4).for_each(|i| batch.add(i, request(i)).unwrap());
        assert_eq!(run_until_idle(&mut batch), alone, "{device:?}");
        alone
    };
    let fake = FakeDriver::new(Arch::A100, 512 << 20);
    let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
    assert_eq!(completions(&device), completions(&simulated_device()));
    drop(device);
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}
