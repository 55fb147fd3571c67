//! Times the output layer with log-probabilities as training runs it, forward and backward.

use reel_device::{Cost, DType, Device, MemoryCategory};
use reel_kernels::bench::{RunTimes, TimedRun};
use reel_kernels::catalogue::{SizeError, Sizes, example_output_layer};
use reel_kernels::elementwise::{self, FillParams};
use reel_runtime::{Cx, Grads, Tensor, ops};

use crate::error::{Error, Result};
use crate::measure::ceilings::pseudorandom_number;
use crate::measure::machine::MachineSpec;
use crate::measure::timing::TimedKernel;

/// Number of bytes that are overwritten before each run to evict the operands from the caches: more than any cache
/// holds.
const FLUSH: usize = 256 << 20;

/// Length of the sequence of random numbers that is repeated to fill a matrix. It is a prime, so that no two rows are
/// equal.
const NOISE_PERIOD: u64 = 1_048_573;

/// Sizes of the output layer.
#[derive(Clone)]
pub struct LmHeadShape {
    rows: usize,
    width: usize,
    vocab: usize,
    size: String,
}

impl LmHeadShape {
    /// The sizes given with `--size`. The defaults are the sizes of a long sequence and of the 7B model.
    ///
    /// # Errors
    /// `--size` names a size that the output layer does not have.
    pub fn from_sizes(sizes: &Sizes) -> std::result::Result<LmHeadShape, SizeError> {
        let ([rows, width, vocab], size) = example_output_layer(sizes)?;
        Ok(LmHeadShape { rows, width, vocab, size })
    }

    /// Operations and bytes of the forward pass. The logits are not counted in the bytes.
    fn forward_cost(&self, dtype: DType) -> Cost {
        let (rows, vocab, width) = (self.rows as f64, self.vocab as f64, self.width as f64);
        Cost { flops: 2.0 * rows * vocab * width, bytes: (rows + vocab) * width * dtype.size() as f64 + 16.0 * rows }
    }
}

impl LmHeadShape {
    /// Returns an error if the operands do not fit into host memory, where they are created. On device `cpu`, the
    /// operands and their gradients stay in host memory.
    fn check_memory(&self, device: &Device) -> Result<()> {
        let (rows, vocab, width) = (self.rows as f64, self.vocab as f64, self.width as f64);
        let kept = if !device.capabilities().own_memory { (rows + vocab) * width * 12.0 } else { 0.0 };
        let need = 4.0 * rows.max(vocab) * width + kept + FLUSH as f64;
        match MachineSpec::host_memory_available().filter(|free| need > *free) {
            None => Ok(()),
            Some(free) => {
                let what = format!("needs {:.1} GB for its operands; {:.1} GB are free", need / 1e9, free / 1e9);
                Err(Error::failed("linear_log_prob", what, "give smaller sizes, or end other programs"))
            }
        }
    }
}

/// Times the forward and the backward pass: `runs` runs of each pass.
///
/// The work of the backward pass is counted as two matrix products of the size of the forward product; the
/// recomputation of the logits is not counted.
///
/// # Errors
/// The operands do not fit into memory, a launch fails, or the result is not finite.
pub fn time_lm_head(device: &Device, shape: &LmHeadShape, dtype: DType, runs: usize) -> Result<Vec<TimedKernel>> {
    let &LmHeadShape { rows, width, vocab, .. } = shape;
    shape.check_memory(device)?;
    let tile: Vec<f32> = (0..NOISE_PERIOD).map(pseudorandom_number).collect();
    let random = |n: usize, m: usize, from: usize| -> Result<Tensor> {
        let numbers: Vec<f32> = tile.iter().cycle().skip(from).take(n * m).copied().collect();
        Ok(Tensor::from_f32(device, &[n, m], dtype, &numbers, MemoryCategory::Weights)?)
    };
    let hidden = random(rows, width, 0)?.detach_requiring_grad();
    let weight = random(vocab, width, 1001)?.into_parameter("head")?;
    let targets: Vec<i32> = (0..rows).map(|i| (i * 7919 % vocab) as i32).collect();
    let targets = Tensor::from_i32(device, &[rows], &targets)?;
    let ones = Tensor::from_f32(device, &[rows], DType::F32, &vec![1.0; rows], MemoryCategory::Inputs)?;
    let flush = Tensor::empty(device, &[FLUSH / 4], DType::F32, MemoryCategory::Workspace)?;
    let (mut grads, mut forward, mut backward) = (Grads::new(), Vec::new(), Vec::new());
    let overwrite = |value: f32| {
        let p = FillParams { dst: flush.addr(), count: (FLUSH / 4) as u64, value, reserved: 0 };
        device.launch(&elementwise::fill(DType::F32, &p))
    };
    // Two warm-up runs come first: the first one loads the kernels, and only the second one can reuse freed memory.
    for run in 0..runs + 2 {
        let cx = Cx::training(device, dtype);
        let mut log_probs = None;
        overwrite(run as f32)?;
        let forward_seconds = device.time_launches(|| {
            log_probs = Some(ops::linear_log_prob(&cx, &hidden, &weight, &targets, 1.0)?);
            Ok::<(), Error>(())
        })?;
        let forward_run = TimedRun::ending_now(forward_seconds);
        let Some(log_probs) = log_probs else { continue };
        let sum = ops::weighted_sum(&cx, &log_probs, &ones)?;
        if !sum.to_f32()?.iter().all(|x| x.is_finite()) {
            return Err(Error::failed("linear_log_prob", "its result is not finite", "run reel kernels check"));
        }
        grads.clear();
        overwrite(run as f32)?;
        let backward_seconds = device.time_launches(|| cx.backward(&sum, 1.0, &mut grads))?;
        if run >= 2 {
            forward.push(forward_run);
            backward.push(TimedRun::ending_now(backward_seconds));
        }
    }
    let Cost { flops, bytes } = shape.forward_cost(dtype);
    // The backward pass does twice the operations of the forward pass. Beyond the forward pass's bytes, it writes the
    // gradient of the hidden states, in their dtype, and the gradient of the weight, in f32.
    let backward_cost = Cost { flops: 2.0 * flops, bytes: bytes + ((rows * dtype.size() + vocab * 4) * width) as f64 };
    let row = |direction: usize, cost, runs: Vec<TimedRun>| TimedKernel {
        kernel: kernel_name(direction, dtype),
        variant: None,
        size: shape.size.clone(),
        dtype,
        cost,
        timed: RunTimes::new(runs),
        clocks: None,
    };
    Ok(vec![row(0, Cost { flops, bytes }, forward), row(1, backward_cost, backward)])
}

/// The name of a timed pass in results; direction 0 is forward, 1 is backward. The names contain `products`, because
/// records of earlier versions also have a fused kernel.
fn kernel_name(direction: usize, dtype: DType) -> &'static str {
    let names = match dtype {
        DType::F32 => ["linear_log_prob_products_fwd_f32", "linear_log_prob_products_bwd_f32"],
        _ => ["linear_log_prob_products_fwd_bf16", "linear_log_prob_products_bwd_bf16"],
    };
    names[direction]
}
