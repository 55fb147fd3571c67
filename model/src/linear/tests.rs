//! Compares gated MLPs whose weights are padded with zeros, as on a GPU, with the same MLPs without padding. Runs on
//! the simulator.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use reel_device::{DType, Device, MemoryCategory, SimOptions, compile};
use reel_runtime::Grads;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::quantization::Quantization;
use crate::weights::WeightSource;

/// The number of rows of the input.
const ROWS: usize = 7;
/// The width of input and output.
const WIDTH: usize = 24;
const LAYERS: [&str; 3] = ["gate", "up", "down"];

/// The weights that a test trains.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Training {
    /// No weights are trained; only the input has a gradient.
    Frozen,
    /// All weights are trained; those of gate and up are joined.
    Weights,
    /// An adapter of each layer is trained.
    Adapters,
}

/// Pseudo-random numbers from -0.5 to 0.5, exact in bf16.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let number = |i: u64| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed) >> 57) as f32 / 128.0 - 0.5;
    (0..n as u64).map(number).collect()
}

/// A folder with the weights of an MLP of this intermediate size, in bf16.
fn weight_files(inner: usize) -> tempfile::TempDir {
    let [gate, up, down] = LAYERS;
    let shapes: [(&str, &str, Vec<usize>); 6] = [
        (gate, "weight", vec![inner, WIDTH]),
        (gate, "bias", vec![inner]),
        (up, "weight", vec![inner, WIDTH]),
        (up, "bias", vec![inner]),
        (down, "weight", vec![WIDTH, inner]),
        (down, "bias", vec![WIDTH]),
    ];
    let stored = shapes.into_iter().zip(1u64..).map(|((layer, part, shape), seed)| {
        let values = numbers(shape.iter().product(), seed);
        let bytes: Vec<u8> = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        (format!("{layer}.{part}"), shape, bytes)
    });
    let stored: Vec<_> = stored.collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

/// The unpadded values of a result, and whether all other values are 0.
#[derive(Debug)]
struct Checked {
    unpadded: Vec<f32>,
    padding_is_zero: bool,
}

fn checked(t: &Tensor, parameter: &Tensor) -> Checked {
    let t = t.clone().with_unpadded_shape(parameter.unpadded_shape()).unwrap();
    let (whole, unpadded) = (t.to_f32().unwrap(), t.to_unpadded_f32().unwrap());
    let zeros = |x: &[f32]| x.iter().filter(|x| **x == 0.0).count();
    let padding_is_zero = zeros(&whole) - zeros(&unpadded) == whole.len() - unpadded.len();
    Checked { unpadded, padding_is_zero }
}

/// The output of an MLP and the gradient of each parameter, by name.
fn pass(
    device: &Device,
    files: &Checkpoint,
    dtype: DType,
    inner: usize,
    may_pad: bool,
    training: Training,
) -> BTreeMap<String, Checked> {
    let from = WeightLoader {
        device,
        source: WeightSource::Files(files),
        dtype,
        quantization: Quantization::None,
        may_pad,
        trainable: &|_| training == Training::Weights,
        deferred: None,
    };
    let inner = from.mlp_width(inner);
    let joined = Linear::load_joined(&from, [("gate", inner), ("up", inner)], WIDTH, true).unwrap();
    assert_eq!(joined.is_some(), training == Training::Weights);
    let (mut layers, joined) = match joined {
        Some(([gate, up], joined)) => (vec![gate, up], Some(joined)),
        None => (["gate", "up"].map(|name| Linear::load(&from, name, inner, WIDTH, true).unwrap()).into(), None),
    };
    layers.push(Linear::load(&from, "down", WIDTH, inner, true).unwrap());
    if training == Training::Adapters {
        for (layer, seed) in layers.iter_mut().zip(20u64..) {
            let [out, inner] = layer.weight_widths().unwrap();
            let matrix = |part: &str, rows: PaddedWidth, cols: PaddedWidth, seed: u64| {
                let t = Tensor::empty(device, &[rows.padded, cols.padded], dtype, MemoryCategory::Weights).unwrap();
                let t = t.with_unpadded_shape(&[rows.stored, cols.stored]).unwrap();
                t.write_unpadded_f32(&numbers(rows.stored * cols.stored, seed)).unwrap();
                t.into_parameter(&format!("{}.{part}", layer.name)).unwrap()
            };
            let (down, up) = (matrix("lora_A", 3.into(), inner, seed), matrix("lora_B", out, 3.into(), seed + 9));
            layer.adapter = Some(Lora { down, up, scale: 0.5 });
        }
    }
    let x = Tensor::from_f32(device, &[ROWS, WIDTH], dtype, &numbers(ROWS * WIDTH, 90), MemoryCategory::Inputs);
    let x = x.unwrap().into_parameter("x").unwrap();
    let (cx, mut grads) = (Cx::training(device, dtype), Grads::new());
    let [gate, up, down] = &layers[..] else { panic!("three layers") };
    let y = Linear::gated_mlp(&cx, x.clone(), [gate, up, down], joined.as_ref()).unwrap();
    let (ky, loss) = (y.clone(), Tensor::from_f32(device, &[1], DType::F32, &[0.0], MemoryCategory::Inputs).unwrap());
    let dy = Tensor::from_f32(device, y.shape(), dtype, &numbers(y.count(), 91), MemoryCategory::Inputs).unwrap();
    let loss = cx.record("loss", &[&y], loss, move |bw| bw.add_grad(&ky, dy));
    cx.backward(&loss, 1.0, &mut grads).unwrap();
    let parameters = layers.iter().flat_map(Linear::tensors).chain([&x]).filter(|t| t.parameter_name().is_some());
    let all = parameters.map(|p| {
        let name = p.parameter_name().unwrap();
        (name.to_string(), checked(grads.get(name).unwrap(), p))
    });
    all.chain([("y".to_string(), checked(&y, &y))]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn filled_up_mlp_computes_the_same_and_its_padding_has_no_gradient(odd in prop_oneof![3 => 0usize..40, 1 => Just(427)], aligned: bool) {
        let Some(()) = compile::skip_without_nvrtc() else { return Ok(()) };
        let inner = if aligned { 8 * (odd + 1) } else { 8 * odd + 4 };
        let folder = weight_files(inner);
        let files = Checkpoint::open(folder.path()).unwrap();
        let device = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
        for training in [Training::Frozen, Training::Weights, Training::Adapters] {
            for dtype in [DType::F32, DType::BF16] {
                let [want, got] = [false, true].map(|may_pad| pass(&device, &files, dtype, inner, may_pad, training));
                let names = |of: &BTreeMap<String, Checked>| of.keys().cloned().collect::<BTreeSet<_>>();
                prop_assert_eq!(names(&want), names(&got));
                for (name, got) in &got {
                    let want = &want[name];
                    let at = format!("{training:?} {dtype} {inner}: {name}");
                    prop_assert!(got.padding_is_zero, "{}: padding has a gradient", at);
                    // Products add the zeros of the padding last, so the bits stay the same. Those of bf16 on a
                    // processor with AMX do not for every width (52), but differ by a rounding at most.
                    let largest = want.unpadded.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                    let tolerance = if dtype == DType::BF16 { largest / 128.0 } else { 0.0 };
                    let same = |(got, want): (&f32, &f32)| (got - want).abs() <= tolerance;
                    let mut pairs = got.unpadded.iter().zip(&want.unpadded);
                    prop_assert!(got.unpadded.len() == want.unpadded.len() && pairs.all(same), "{}: padding changes the result", at);
                }
            }
        }
    }
}

/// Only devices with CUDA kernels pad weights, and only if their sizes are not aligned.
#[test]
fn widths_of_mlps() {
    let width = |device: &Device, may_pad: bool, size: usize| {
        let source = WeightSource::Uninitialised(reel_input::tensor_file::StoredDType::Bf16.into());
        let (dtype, quantization) = (DType::BF16, Quantization::None);
        WeightLoader { device, source, dtype, quantization, may_pad, trainable: &|_| false, deferred: None }
            .mlp_width(size)
            .padded
    };
    let [cpu, gpu] = [reel_device::Kernels::Cpu, reel_device::Kernels::Cuda].map(Device::dry);
    let sizes = [3420, 3424, 18_944, 4, 12, 60, 8, 1, 6, 3418];
    assert_eq!(sizes.map(|size| width(&cpu, true, size)), sizes);
    assert_eq!(sizes.map(|size| width(&gpu, false, size)), sizes);
    assert_eq!(sizes.map(|size| width(&gpu, true, size)), [3424, 3424, 18_944, 16, 16, 64, 8, 1, 6, 3418]);
}
