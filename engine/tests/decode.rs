//! What must not change a completion: recordings, how far the host is ahead, how many rows there are, who shares them, and the driver that
//! replays them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_engine::{Completion, Engine, FinishReason, GenerationRequest, SamplingParams, StopCondition, bench};
use reel_kernels::cuda::Gpu;
use reel_kernels::cuda::fake::Fake;
use reel_kernels::{Arch, compile};
use reel_model::batch::Sequence;
use reel_model::checkpoint::{Checkpoint, Naming, StoredDType};
use reel_model::config::ModelConfig;
use reel_model::lora::{self, Adapter, AdapterFolder, AdapterSource, LinearLayer, LoraSpec};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::save::TensorSpec;
use reel_runtime::{Cx, DType, Device, SimOptions};

/// A model whose weights are bf16, as decode's own products want them.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/image_hd128_bf16/model")
}

fn model(device: &Device, dtype: DType) -> Qwen25Vl {
    let (folder, config) = (folder(), ModelConfig::open(&folder()).unwrap());
    Qwen25Vl::open(device, &Checkpoint::open(&folder).unwrap(), &config, dtype).unwrap()
}

/// What is asked of the engine: how many tokens of prompt, how many completions, of how many tokens, how.
#[derive(Clone, Copy, Debug)]
struct Ask {
    prompt: usize,
    n: usize,
    tokens: usize,
    /// No end before there are this many.
    min: usize,
    sampling: SamplingParams,
}

const SAMPLED: SamplingParams =
    SamplingParams { temperature: 1.0, top_p: 0.95, top_k: 40, repetition_penalty: 1.0, seed: 7 };
const PENALISED: SamplingParams = SamplingParams { repetition_penalty: 1.3, seed: 11, ..SAMPLED };

/// Completions of the requests; any of `eos` ends one.
fn run(engine: &Engine, asks: &[Ask], eos: &[u32]) -> Vec<Completion> {
    let ids: Vec<Vec<u32>> = asks.iter().map(|a| (0..a.prompt as u32).map(|i| (i * 37 + 5) % 97).collect()).collect();
    let at: Vec<Vec<i64>> = asks.iter().map(|a| (0..a.prompt as i64).collect()).collect();
    let requests = asks.iter().zip(ids.iter().zip(&at)).map(|(a, (ids, at))| GenerationRequest {
        prompt: Sequence { input_ids: ids, position_ids: [at, at, at], ..Sequence::default() },
        rope_delta: 3,
        sampling: a.sampling,
        max_new_tokens: a.tokens,
        eos_token_ids: eos,
        min_new_tokens: a.min,
        stop_conditions: (0..a.n).map(|_| StopCondition::none()).collect(),
    });
    engine.generate(requests.collect(), |_| {}).unwrap().0
}

/// Ids that end some of the completions early, each at a token of its own making.
fn ends(completions: &[Completion]) -> Vec<u32> {
    completions.iter().skip(1).step_by(2).filter_map(|c| c.ids.get(c.ids.len() / 2).copied()).collect()
}

fn asks() -> Vec<Ask> {
    vec![
        Ask { prompt: 9, n: 3, tokens: 12, min: 8, sampling: SAMPLED },
        Ask { prompt: 62, n: 1, tokens: 5, min: 0, sampling: SamplingParams::default() },
        Ask { prompt: 4, n: 2, tokens: 17, min: 3, sampling: PENALISED },
        Ask { prompt: 1, n: 1, tokens: 1, min: 0, sampling: SAMPLED },
        Ask { prompt: 30, n: 1, tokens: 2, min: 0, sampling: PENALISED },
    ]
}

/// Every way of running the same requests on a device.
fn ways_agree(device: &Device, dtype: DType, asks: &[Ask], ways: &[(usize, usize)]) -> Vec<Completion> {
    ways_of(&model(device, dtype), device, dtype, asks, ways)
}

/// The same of a model that is there.
fn ways_of(model: &Qwen25Vl, device: &Device, dtype: DType, asks: &[Ask], ways: &[(usize, usize)]) -> Vec<Completion> {
    let cx = Cx::inference(device, dtype);
    let engine = || Engine::new(model, &cx).unwrap();
    let eos = ends(&run(&engine(), asks, &[]));
    let want = run(&engine().without_captured_graphs().lookahead(0), asks, &eos);
    assert!(want.iter().any(|c| c.finish_reason == FinishReason::Stop), "none ends early");
    assert!(want.iter().any(|c| c.finish_reason == FinishReason::Length), "none ends late");
    for c in &want {
        let early = &c.ids[..asks[c.request].min.min(c.ids.len())];
        assert!(early.iter().all(|id| !eos.contains(id)), "{:?} has an end among its first {}", c.ids, early.len());
    }
    for &(rows, ahead) in ways {
        let engine = engine().max_slots(rows).lookahead(ahead);
        assert_eq!(run(&engine, asks, &eos), want, "{device:?} {dtype}: {rows} rows, {ahead} steps ahead");
        assert!(engine.captures() > 0);
        // A number of rows that came once only is recorded when it comes again; then everything is there.
        assert_eq!(run(&engine, asks, &eos), want, "{device:?} {dtype}: the same again");
        let made = engine.captures();
        assert_eq!(run(&engine, asks, &eos), want, "{device:?} {dtype}: and again");
        if device.name() != "cpu" {
            assert_eq!(engine.captures(), made, "{rows} rows, {ahead} steps ahead");
        }
    }
    want
}

#[test]
fn nothing_about_the_steps_changes_a_completion() {
    for dtype in [DType::F32, DType::BF16] {
        let ways = [(256, 0), (256, 1), (256, 3), (1, 0), (2, 2), (3, 1), (5, 0)];
        ways_agree(&Device::cpu(2), dtype, &asks(), &ways);
    }
}

#[test]
fn alone_or_with_others_a_completion_is_the_same() {
    let device = Device::cpu(1);
    let (model, cx) = (model(&device, DType::F32), Cx::inference(&device, DType::F32));
    let engine = Engine::new(&model, &cx).unwrap();
    let together = run(&engine, &asks(), &[]);
    for (request, ask) in asks().into_iter().enumerate() {
        let alone = run(&engine, &[ask], &[]);
        let same = together.iter().filter(|c| c.request == request);
        for (a, b) in alone.iter().zip(same) {
            assert_eq!((&a.ids, &a.log_probs), (&b.ids, &b.log_probs), "request {request}");
        }
    }
}

fn simulated() -> Device {
    Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap()
}

/// Few tokens: each is simulated, several times over.
fn few() -> Vec<Ask> {
    vec![
        Ask { prompt: 3, n: 2, tokens: 6, min: 2, sampling: SAMPLED },
        Ask { prompt: 62, n: 1, tokens: 4, min: 0, sampling: PENALISED },
    ]
}

#[test]
fn the_simulator_finds_nothing_and_sees_no_difference() {
    let Some(()) = compile::for_test() else { return };
    ways_agree(&simulated(), DType::BF16, &few(), &[(256, 1), (2, 0)]);
}

#[test]
fn graphs_keep_the_drivers_rules_and_give_the_bits_of_sim() {
    let Some(()) = compile::for_test() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let fake = Fake::new(Arch::A100, 512 << 20);
        let device = Device::on_gpu(Gpu::with(Arc::new(fake.clone())).unwrap()).unwrap();
        let got = ways_agree(&device, dtype, &few(), &[(256, 1)]);
        let sim = simulated();
        let (model, cx) = (model(&sim, dtype), Cx::inference(&sim, dtype));
        let engine = Engine::new(&model, &cx).unwrap();
        let eos = ends(&run(&engine, &few(), &[]));
        assert_eq!(got, run(&engine, &few(), &eos), "{dtype}");
        drop(device);
        assert_eq!((fake.left_open(), fake.violations()), (0, Vec::new()));
    }
}

/// The model with an adapter on every layer whose B is not 0.
fn adapted(device: &Device, dtype: DType) -> Qwen25Vl {
    let base = model(device, dtype);
    let spec = LoraSpec { r: 3, alpha: 2.0, targets: vec![lora::ALL_LINEAR.into()], vision: true };
    let spec_of = |layer: &LinearLayer| {
        let of = |part: &str, shape: Vec<usize>| TensorSpec {
            name: format!("{}.{part}.weight", layer.name),
            dtype: StoredDType::Bf16,
            shape,
        };
        [of("lora_A", vec![3, layer.inner]), of("lora_B", vec![layer.out, 3])]
    };
    let tensors: Vec<TensorSpec> = lora::linear_layers(&base.config).iter().flat_map(spec_of).collect();
    let dir = tempfile::tempdir().unwrap();
    let (source, naming) = (folder(), Naming::Classic);
    lora::save(
        dir.path(),
        AdapterFolder { spec: &spec, base: "base", source: &source, naming },
        &tensors,
        |spec, to| {
            let salt = spec.name.bytes().fold(7u32, |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
            let number = |i: u32| ((i ^ salt).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let n = spec.shape.iter().product::<usize>() as u32;
            // The upper half of an f32 is a bf16.
            (0..n).try_for_each(|i| to.write_all(&(0.3 * number(i)).to_le_bytes()[2..]))
        },
    )
    .unwrap();
    let adapter = Adapter::open(dir.path()).unwrap();
    adapter.check(&base.config).unwrap();
    base.with_adapter(device, dtype, AdapterSource::Files(&adapter), false).unwrap()
}

#[test]
fn an_adapter_acts_in_every_way_of_decoding() {
    for dtype in [DType::F32, DType::BF16] {
        let cpu = Device::cpu(2);
        let (bare, with) = (model(&cpu, dtype), adapted(&cpu, dtype));
        let got = ways_of(&with, &cpu, dtype, &asks(), &[(256, 1), (2, 0)]);
        assert_ne!(got, ways_of(&bare, &cpu, dtype, &asks(), &[(256, 1)]), "it acts");
        assert_eq!(
            ways_of(&with.without_adapter(), &cpu, dtype, &asks(), &[(2, 0)]),
            ways_of(&bare, &cpu, dtype, &asks(), &[(2, 0)])
        );
        let Some(()) = compile::for_test() else { continue };
        let fake = Fake::new(Arch::A100, 512 << 20);
        let device = Device::on_gpu(Gpu::with(Arc::new(fake.clone())).unwrap()).unwrap();
        let got = ways_of(&adapted(&device, dtype), &device, dtype, &few(), &[(256, 1)]);
        let sim = simulated();
        let (model, cx) = (adapted(&sim, dtype), Cx::inference(&sim, dtype));
        let engine = Engine::new(&model, &cx).unwrap();
        let eos = ends(&run(&engine, &few(), &[]));
        assert_eq!(got, run(&engine, &few(), &eos), "{dtype}");
        drop(device);
        assert_eq!((fake.left_open(), fake.violations()), (0, Vec::new()));
    }
}

#[test]
fn decode_is_measured_as_it_is_done() {
    for (device, batch) in [(Device::cpu(1), 3), (Device::dry(reel_runtime::Kernels::Cuda), 2)] {
        let (model, cx) = (model(&device, DType::BF16), Cx::inference(&device, DType::BF16));
        device.profiler().count(true);
        let seconds = bench::decode(&model, &cx, 70, batch, 4).unwrap();
        assert_eq!(seconds.len(), 4);
        let totals = device.profiler().totals().unwrap();
        assert_eq!((totals["sample"].launches, totals["advance"].launches), (4, 4), "{device:?}");
    }
}
