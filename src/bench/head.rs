//! The output layer with the log-probabilities, as training runs it, by either of its ways.

use anyhow::Result;
use reel_kernels::bench::Timed;
use reel_kernels::catalogue::{SizeError, Sizes, folder};
use reel_kernels::elementwise::{self, FillParams};
use reel_kernels::{Cost, DType};
use reel_runtime::ops::{self, LmHeadBackend};
use reel_runtime::{Category, Cx, Device, Grads, Tensor};

use crate::ceilings::noise;
use crate::fail::failed;
use crate::kernels::timing::Row;
use crate::machines::Machine;

/// More than any cache holds.
const FLUSH: usize = 256 << 20;

/// Random numbers that repeat: a prime, so that no two rows of a matrix are alike.
const TILE: u64 = 1_048_573;

/// The way that a name stands for.
pub fn way(name: &str) -> Option<LmHeadBackend> {
    match name {
        "linear_log_prob_fused" => Some(LmHeadBackend::Fused),
        "linear_log_prob_products" => Some(LmHeadBackend::Products),
        _ => None,
    }
}

/// Rows, their width, and the vocabulary.
#[derive(Clone)]
pub struct Shape {
    rows: usize,
    width: usize,
    vocab: usize,
    words: String,
    /// The least that it takes forward, in f32 and in bf16.
    forward: [Cost; 2],
}

impl Shape {
    /// That of the kernels' folder.
    pub fn of(sizes: &Sizes) -> Result<Shape, SizeError> {
        let calls = folder("linear_log_prob").map(|f| f.examples_with_sizes(sizes)).transpose()?.unwrap_or_default();
        let [rows, width, vocab] = ["tokens", "hidden", "vocab"].map(|key| sizes.known(key) as usize);
        let forward = ["f32", "bf16"].map(|t| {
            let name = format!("linear_log_prob_fwd_{t}");
            calls.iter().find(|e| e.launch.kernel.name == name).map_or(Cost::default(), |e| e.launch.cost)
        });
        Ok(Shape { rows, width, vocab, words: format!("tokens={rows} hidden={width} vocab={vocab}"), forward })
    }
}

impl Shape {
    /// Refuses operands that the host has no room for: it makes them, and on cpu keeps them with their gradients.
    fn has_room(&self, device: &Device) -> Result<()> {
        let (rows, vocab, width) = (self.rows as f64, self.vocab as f64, self.width as f64);
        let kept = if device.name() == "cpu" { (rows + vocab) * width * 12.0 } else { 0.0 };
        let need = 4.0 * rows.max(vocab) * width + kept + FLUSH as f64;
        match Machine::memory_free().filter(|has| need > *has) {
            None => Ok(()),
            Some(has) => {
                let what = format!("needs {:.1} GB for its operands, of which {:.1} are free", need / 1e9, has / 1e9);
                Err(failed("linear_log_prob", what, "give smaller sizes, or end other programs"))
            }
        }
    }
}

/// A row for each direction. The floor of the backward pass is that of its two products of the forward one's size; logits that are
/// computed again do not count.
pub fn time(device: &Device, way: LmHeadBackend, shape: &Shape, dtype: DType, runs: usize) -> Result<Vec<Row>> {
    let &Shape { rows, width, vocab, .. } = shape;
    shape.has_room(device)?;
    let tile: Vec<f32> = (0..TILE).map(noise).collect();
    let random = |n: usize, m: usize, from: usize| -> Result<Tensor> {
        let numbers: Vec<f32> = tile.iter().cycle().skip(from).take(n * m).copied().collect();
        Ok(Tensor::from_f32(device, &[n, m], dtype, &numbers, Category::Weights)?)
    };
    let hidden = random(rows, width, 0)?.needing_grad();
    let weight = random(vocab, width, 1001)?.into_parameter("head")?;
    let targets: Vec<i32> = (0..rows).map(|i| (i * 7919 % vocab) as i32).collect();
    let targets = Tensor::from_i32(device, &[rows], &targets)?;
    let ones = Tensor::from_f32(device, &[rows], DType::F32, &vec![1.0; rows], Category::Inputs)?;
    let flush = Tensor::empty(device, &[FLUSH / 4], DType::F32, Category::Workspace)?;
    let (mut grads, mut forward, mut backward) = (Grads::new(), Vec::new(), Vec::new());
    let overwrite = |value: f32| {
        let p = FillParams { dst: flush.addr(), count: (FLUSH / 4) as u64, value, reserved: 0 };
        device.launch(&elementwise::fill(DType::F32, &p))
    };
    // Two that do not count: the first makes kernels ready, the second finds memory as all others do.
    for run in 0..runs + 2 {
        let cx = Cx::training(device, dtype);
        let mut log_probs = None;
        overwrite(run as f32)?;
        let there = device.time_all(|| {
            log_probs = Some(ops::linear_log_prob_by(&cx, &hidden, &weight, &targets, 1.0, [way, way])?);
            Ok::<(), anyhow::Error>(())
        })?;
        let Some(log_probs) = log_probs else { continue };
        let sum = ops::weighted_sum(&cx, &log_probs, &ones)?;
        if !sum.to_f32()?.iter().all(|x| x.is_finite()) {
            return Err(failed("linear_log_prob", "its result is not a number", "run reel kernels check"));
        }
        grads.clear();
        overwrite(run as f32)?;
        let back = device.time_all(|| cx.backward(&sum, 1.0, &mut grads))?;
        if run >= 2 {
            forward.push(there);
            backward.push(back);
        }
    }
    let Cost { flops, bytes } = shape.forward[usize::from(dtype == DType::BF16)];
    // Both operands again, the gradient of the rows in their type and that of the weight in f32.
    let back = Cost { flops: 2.0 * flops, bytes: bytes + ((rows * dtype.size() + vocab * 4) * width) as f64 };
    let row = |direction: usize, cost, mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        Row { kernel: name(way, direction, dtype), size: shape.words.clone(), dtype, cost, timed: Timed { seconds } }
    };
    Ok(vec![row(0, Cost { flops, bytes }, forward), row(1, back, backward)])
}

fn name(way: LmHeadBackend, direction: usize, dtype: DType) -> &'static str {
    let names = match (way, dtype) {
        (LmHeadBackend::Fused, DType::F32) => ["linear_log_prob_fused_fwd_f32", "linear_log_prob_fused_bwd_f32"],
        (LmHeadBackend::Fused, _) => ["linear_log_prob_fused_fwd_bf16", "linear_log_prob_fused_bwd_bf16"],
        (LmHeadBackend::Products, DType::F32) => {
            ["linear_log_prob_products_fwd_f32", "linear_log_prob_products_bwd_f32"]
        }
        (LmHeadBackend::Products, _) => ["linear_log_prob_products_fwd_bf16", "linear_log_prob_products_bwd_bf16"],
    };
    names[direction]
}
