//! Completions do not depend on captured graphs, the lookahead, the number of slots, the other sequences of the batch,
//! or the device's driver.

mod support;

use std::sync::Arc;

use reel_device::compile::toolkit::Toolkit;
use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::{Arch, DType, Device, compile};
use reel_engine::{Completion, Engine, FinishReason, GenerationRequest, SamplingParams, bench};
use reel_input::config::ModelConfig;
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::lora;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_model::weights::{WeightLoader, WeightSource};
use reel_runtime::Cx;

use support::{
    PENALISED, SAMPLED, TestAdapter, TestRequest, model, model_folder, run, run_continuously, simulated_device,
    with_adapter,
};

/// Returns ids that, used as end tokens, make some of these completions end early: the middle id of every second
/// completion.
fn early_end_tokens(completions: &[Completion]) -> Vec<u32> {
    completions.iter().skip(1).step_by(2).filter_map(|c| c.ids.get(c.ids.len() / 2).copied()).collect()
}

fn test_requests() -> Vec<TestRequest> {
    vec![
        TestRequest { prompt_tokens: 9, completions: 3, max_new_tokens: 12, min_new_tokens: 8, sampling: SAMPLED },
        TestRequest {
            prompt_tokens: 62,
            completions: 1,
            max_new_tokens: 5,
            min_new_tokens: 0,
            sampling: SamplingParams::default(),
        },
        TestRequest { prompt_tokens: 4, completions: 2, max_new_tokens: 17, min_new_tokens: 3, sampling: PENALISED },
        TestRequest { prompt_tokens: 1, completions: 1, max_new_tokens: 1, min_new_tokens: 0, sampling: SAMPLED },
        TestRequest { prompt_tokens: 30, completions: 1, max_new_tokens: 2, min_new_tokens: 0, sampling: PENALISED },
    ]
}

/// Calls [`compare_runs`] with the model opened on `device`.
fn open_and_compare_runs(
    device: &Device,
    dtype: DType,
    requests: &[TestRequest],
    variants: &[(usize, usize)],
) -> Vec<Completion> {
    compare_runs(&model(device, dtype), device, dtype, requests, variants)
}

/// Generates the completions once without graphs and lookahead, then once per variant (number of slots, lookahead),
/// and checks that all runs give the same completions.
fn compare_runs(
    model: &QwenVl,
    device: &Device,
    dtype: DType,
    requests: &[TestRequest],
    variants: &[(usize, usize)],
) -> Vec<Completion> {
    let cx = Cx::inference(device, dtype);
    let engine = || Engine::new(model, &cx).unwrap();
    let eos = early_end_tokens(&run(&engine(), requests, &[]));
    let want = run(&engine().without_captured_graphs().lookahead(0), requests, &eos);
    assert!(want.iter().any(|c| c.finish_reason == FinishReason::Stop), "no completion ends early");
    assert!(want.iter().any(|c| c.finish_reason == FinishReason::Length), "no completion reaches its limit");
    for c in &want {
        let early = &c.ids[..requests[c.request].min_new_tokens.min(c.ids.len())];
        assert!(
            early.iter().all(|id| !eos.contains(id)),
            "the completion {:?} has an end token among its first {} tokens",
            c.ids,
            early.len()
        );
    }
    for &(rows, ahead) in variants {
        let engine = engine().max_slots(rows).lookahead(ahead);
        assert_eq!(run(&engine, requests, &eos), want, "{device:?} {dtype}: {rows} slots, lookahead {ahead}");
        assert!(engine.graph_capture_count() > 0);
        // A batch size is captured when it occurs for the second time, so at the latest in the second run. Except on
        // a CPU, the third run captures no further graph.
        assert_eq!(run(&engine, requests, &eos), want, "{device:?} {dtype}: the second run with this engine");
        if device.name() != "cpu" {
            let made = engine.graph_capture_count();
            assert_eq!(run(&engine, requests, &eos), want, "{device:?} {dtype}: the third run with this engine");
            assert_eq!(engine.graph_capture_count(), made, "{rows} slots, lookahead {ahead}");
        }
    }
    want
}

#[test]
fn completions_do_not_depend_on_slots_or_lookahead() {
    for dtype in [DType::F32, DType::BF16] {
        let variants = [(256, 0), (256, 1), (256, 3), (1, 0), (2, 2), (3, 1), (5, 0)];
        open_and_compare_runs(&Device::cpu(2), dtype, &test_requests(), &variants);
    }
}

#[test]
fn completions_do_not_depend_on_other_requests() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap();
    let together = run(&engine, &test_requests(), &[]);
    for (index, request) in test_requests().into_iter().enumerate() {
        let alone = run(&engine, &[request], &[]);
        let same = together.iter().filter(|c| c.request == index);
        for (a, b) in alone.iter().zip(same) {
            assert_eq!((&a.ids, &a.log_probs), (&b.ids, &b.log_probs), "request {index}");
        }
    }
}

/// Checks that a finished sequence frees its slot for the next request, and that completions do not depend on it.
#[test]
fn continuous_batch_gives_the_completions_of_requests_alone() {
    let device = Device::cpu(2);
    let model = model(&device, DType::F32);
    let cx = Cx::inference(&device, DType::F32);
    let mut requests = [test_requests(), test_requests()].concat();
    requests.push(TestRequest { prompt_tokens: 150, completions: 5, ..test_requests()[0] });
    requests.push(TestRequest { max_new_tokens: 0, ..test_requests()[0] });
    let engine = || Engine::new(&model, &cx).unwrap();
    let eos = early_end_tokens(&run(&engine(), &requests, &[]));
    let want = run(&engine(), &requests, &eos);
    for (slots, kv_bytes, lookahead) in
        [(1, 1 << 30, 0), (2, 1 << 20, 1), (3, 1 << 30, 0), (5, 1 << 20, 2), (64, 1 << 30, 0)]
    {
        let engine = engine().max_slots(slots).lookahead(lookahead);
        assert_eq!(run_continuously(&engine, kv_bytes, &requests, &eos), want, "{slots} slots, {kv_bytes} bytes");
    }
}

/// Requests with few tokens, because the simulator is slow.
fn few_requests() -> Vec<TestRequest> {
    vec![
        TestRequest { prompt_tokens: 3, completions: 2, max_new_tokens: 6, min_new_tokens: 2, sampling: SAMPLED },
        TestRequest { prompt_tokens: 62, completions: 1, max_new_tokens: 4, min_new_tokens: 0, sampling: PENALISED },
    ]
}

/// On a device with CUDA kernels each step of a continuous batch computes all slots.
#[test]
fn continuous_batch_on_the_simulator_equals_requests_alone() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let device = simulated_device();
    let (model, cx) = (model(&device, DType::BF16), Cx::inference(&device, DType::BF16));
    let requests = few_requests();
    let want = run(&Engine::new(&model, &cx).unwrap(), &requests, &[]);
    let engine = Engine::new(&model, &cx).unwrap().max_slots(2).lookahead(1);
    assert_eq!(run_continuously(&engine, 1 << 30, &requests, &[]), want);
}

#[test]
fn simulator_reports_no_finding() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    open_and_compare_runs(&simulated_device(), DType::BF16, &few_requests(), &[(256, 1), (2, 0)]);
}

#[test]
fn cuda_graphs_keep_driver_rules_and_equal_sim() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let fake = FakeDriver::new(Arch::A100, 512 << 20);
        let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
        let got = open_and_compare_runs(&device, dtype, &few_requests(), &[(256, 1)]);
        let sim = simulated_device();
        let (model, cx) = (model(&sim, dtype), Cx::inference(&sim, dtype));
        let engine = Engine::new(&model, &cx).unwrap();
        let eos = early_end_tokens(&run(&engine, &few_requests(), &[]));
        assert_eq!(got, run(&engine, &few_requests(), &eos), "{dtype}");
        drop(device);
        assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
    }
}

/// Runs 16 decode steps on a Hopper GPU of the fake driver, in captured graphs with programmatic dependent launches.
/// The sequences grow from the first KV block (64 tokens) into the second. Each sequence alone has the same bits.
/// Device `sim` sums matrix products in another order, so its log-probabilities are only close.
#[test]
fn sixteen_steps_in_graphs_on_hopper_equal_sequences_alone() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    // The prefill samples the first token, each decode step samples one more.
    let requests = |steps: usize| TestRequest {
        prompt_tokens: 56,
        completions: 2,
        max_new_tokens: 1 + steps,
        min_new_tokens: 1 + steps,
        sampling: SAMPLED,
    };
    let fake = FakeDriver::new(Arch::H100, 512 << 20);
    let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
    let on_gpu = model(&device, DType::BF16);
    let cx = Cx::inference(&device, DType::BF16);
    let engine = Engine::new(&on_gpu, &cx).unwrap();
    let counted = |steps: usize| {
        let before = [fake.launch_count(), fake.programmatic_launch_count()];
        let got = run(&engine, &[requests(steps)], &[]);
        (got, fake.launch_count() - before[0], fake.programmatic_launch_count() - before[1])
    };
    let (few, launches_of_few, early_of_few) = counted(2);
    let (got, launches, early) = counted(16);
    assert_eq!(got, run(&Engine::new(&on_gpu, &cx).unwrap().max_slots(1), &[requests(16)], &[]));
    let sim = simulated_device();
    let (on_sim, sim_cx) = (model(&sim, DType::BF16), Cx::inference(&sim, DType::BF16));
    let near = run(&Engine::new(&on_sim, &sim_cx).unwrap(), &[requests(8)], &[]);
    for (got, near) in got.iter().zip(&near) {
        let same = got.ids.iter().zip(&near.ids).take_while(|(a, b)| a == b).count();
        assert!(same >= 3, "{:?}, {:?}", got.ids, near.ids);
        for (a, b) in got.log_probs.iter().zip(&near.log_probs).take(same) {
            assert!((a - b).abs() < 0.15, "{:?}, {:?}", got.log_probs, near.log_probs);
        }
    }
    assert!(got.iter().all(|c| c.ids.len() == 17));
    assert!(few.iter().zip(&got).all(|(few, got)| few.ids[..] == got.ids[..3]));
    assert!(engine.graph_capture_count() > 0);
    // Launches of a step. Before the layers: the rotary table and the embeddings. Per layer: 5, because attention
    // needs no second launch without a workspace. After the layers: norm, logits, sample and advance. All launches
    // are programmatic except the first two, the first launch of the first layer, which must wait for the embeddings,
    // and the norm.
    let layers = on_gpu.config.text.num_hidden_layers as u64;
    assert_eq!((launches - launches_of_few, early - early_of_few), (14 * (5 * layers + 6), 14 * (5 * layers + 2)));
    drop((engine, on_gpu, cx, device));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

/// On Hopper the launch of the product of gate and up computes SwiGLU in prefill, if its tiles fill the GPU, as one tile
/// fills two multiprocessors here. The bits are those of small chunks, which have launches of their own, and of training.
#[test]
fn prefill_with_swiglu_in_its_product_has_the_bits_of_small_chunks_and_of_training() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let fake = FakeDriver::new(Arch::H100.with_two_multiprocessors(), 512 << 20);
    let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
    let folder = model_folder().join("../../text_multiturn/model");
    let config = ModelConfig::open(&folder).unwrap();
    let files = Checkpoint::open(&folder).unwrap();
    let loader = WeightLoader {
        device: &device,
        source: WeightSource::Files(&files),
        dtype: DType::BF16,
        quantization: Quantization::None,
        may_pad: true,
        trainable: &|_| true,
        deferred: None,
    };
    let model = QwenVl::load(&loader, &config).unwrap();
    let cx = Cx::inference(&device, DType::BF16);
    device.profiler().collect_totals(true);
    let launches = |name: &str| device.profiler().totals().unwrap().get(name).map_or(0, |total| total.launches);
    let prompt = TestRequest {
        prompt_tokens: 512,
        completions: 1,
        max_new_tokens: 1,
        min_new_tokens: 1,
        sampling: SamplingParams::GREEDY,
    };
    let request = || GenerationRequest { prompt_log_probs: Some(0), ..prompt.request(&[]) };
    let prefill = |chunk| {
        let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(chunk);
        engine.generate(vec![request()], |_| {}).unwrap().0.remove(0)
    };
    let whole = prefill(512);
    let layers = config.text.num_hidden_layers as u64;
    assert_eq!((launches("gemm_swiglu_bf16"), launches("swiglu_fwd_bf16")), (layers, 0));
    let in_chunks = prefill(200);
    assert_eq!((launches("gemm_swiglu_bf16"), launches("swiglu_fwd_bf16")), (layers, 3 * layers));
    assert_eq!(whole, in_chunks);
    let prompt = request().prompt;
    let batch = Batch::new(&device, &config, &[prompt.sequence()], "prompt").unwrap();
    let [scored, trained] = [&cx, &Cx::training(&device, DType::BF16)].map(|cx| {
        let hidden = model.forward(cx, &batch, ForwardOptions::default()).unwrap();
        model.logits(cx, &hidden).unwrap().to_f32().unwrap()
    });
    assert_eq!((launches("gemm_swiglu_bf16"), launches("swiglu_fwd_bf16")), (2 * layers, 4 * layers));
    assert!(scored == trained);
    let log_probs = whole.prompt_log_probs.iter().zip(trained.chunks(config.text.vocab_size));
    for (i, (got, logits)) in log_probs.enumerate() {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let want = logits[prompt.input_ids[i + 1] as usize] - max - sum.ln();
        assert!((got.log_prob - want).abs() < 1e-4, "{i}: {} {want}", got.log_prob);
    }
    drop((batch, model, cx, loader));
    drop(device);
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

/// Runs decode steps on a Hopper GPU with the driver of each CUDA version. Before 12.3, captured launches do not
/// overlap; the bits are the same.
#[test]
fn decode_steps_on_the_drivers_of_cuda_12_and_13_have_the_same_bits() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let request =
        TestRequest { prompt_tokens: 6, completions: 1, max_new_tokens: 3, min_new_tokens: 3, sampling: SAMPLED };
    let has_ptxas_12 = Toolkit::from_environment().ptxas_of_major(12).is_some();
    let mut of_versions = Vec::new();
    for version in [13_000, 12_080, 12_040, 12_000] {
        if version == 12_000 && !has_ptxas_12 {
            println!("skipped: decode steps on a driver of CUDA 12.0: no ptxas of CUDA 12; ./x setup fetches it");
            continue;
        }
        let fake = FakeDriver::with_driver_version(Arch::H100, 512 << 20, version);
        let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
        let (on_gpu, cx) = (model(&device, DType::BF16), Cx::inference(&device, DType::BF16));
        let engine = Engine::new(&on_gpu, &cx).unwrap();
        let got = run(&engine, &[request], &[]);
        assert!(engine.graph_capture_count() > 0);
        of_versions.push((version, got, fake.programmatic_launch_count()));
        drop((engine, on_gpu, cx, device));
        assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()), "{version}");
    }
    let (_, want, overlapping) = of_versions[0].clone();
    for (version, got, programmatic) in of_versions {
        assert_eq!(got, want, "{version}");
        assert_eq!(programmatic < overlapping, version < 12_030, "{version}: {programmatic} of {overlapping}");
    }
}

/// Returns the model with a LoRA adapter on every layer.
fn adapted(device: &Device, dtype: DType) -> QwenVl {
    with_adapter(&model(device, dtype), device, dtype, &TestAdapter { rank: 3, targets: &[lora::ALL_LINEAR], seed: 7 })
}

#[test]
fn adapter_completions_do_not_depend_on_slots_or_lookahead() {
    for dtype in [DType::F32, DType::BF16] {
        let cpu = Device::cpu(2);
        let (bare, with) = (model(&cpu, dtype), adapted(&cpu, dtype));
        let got = compare_runs(&with, &cpu, dtype, &test_requests(), &[(256, 1), (2, 0)]);
        assert_ne!(got, compare_runs(&bare, &cpu, dtype, &test_requests(), &[(256, 1)]), "the adapter has no effect");
        assert_eq!(
            compare_runs(&with.without_adapter(), &cpu, dtype, &test_requests(), &[(2, 0)]),
            compare_runs(&bare, &cpu, dtype, &test_requests(), &[(2, 0)])
        );
        let Some(()) = compile::skip_without_nvrtc() else { continue };
        let fake = FakeDriver::new(Arch::A100, 512 << 20);
        let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
        let got = compare_runs(&adapted(&device, dtype), &device, dtype, &few_requests(), &[(256, 1)]);
        let sim = simulated_device();
        let (model, cx) = (adapted(&sim, dtype), Cx::inference(&sim, dtype));
        let engine = Engine::new(&model, &cx).unwrap();
        let eos = early_end_tokens(&run(&engine, &few_requests(), &[]));
        assert_eq!(got, run(&engine, &few_requests(), &eos), "{dtype}");
        drop(device);
        assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
    }
}

#[test]
fn bench_decode_times_the_engines_steps() {
    for (device, batch) in [(Device::cpu(1), 3), (Device::dry(reel_device::Kernels::Cuda), 2)] {
        let (model, cx) = (model(&device, DType::BF16), Cx::inference(&device, DType::BF16));
        device.profiler().collect_totals(true);
        let seconds = bench::time_decode(&model, &cx, 70, batch, 4).unwrap();
        assert_eq!(seconds.len(), 4);
        let totals = device.profiler().totals().unwrap();
        assert_eq!((totals["sample"].launches, totals["advance"].launches), (4, 4), "{device:?}");
    }
}
