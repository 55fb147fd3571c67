//! AdamW on named parameters (Loshchilov and Hutter, "Decoupled Weight Decay Regularization").
//!
//! Moments are f32, or bf16 or 8-bit with stochastic rounding. A bf16 weight has an exact f32 master weight: its own 16
//! bits and 16 low bits that the optimizer keeps. A parameter without a gradient in a step does not change, and neither
//! does its step count.

use std::collections::BTreeMap;

use reel_kernels::{Addr, DType, adamw as kernel, fingerprint, reduce};

use crate::device::{Device, MemoryCategory};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::tape::{Grads, fill_zero};

/// The AdamW hyperparameters of one parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWParams {
    /// Learning rate.
    pub learning_rate: f64,
    /// β₁, the decay rate of the first moment.
    pub beta1: f64,
    /// β₂, the decay rate of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// The coefficient of the decoupled weight decay.
    pub weight_decay: f64,
}

/// The storage type of the moments. Bf16 and 8-bit moments are rounded stochastically, so updates smaller than the
/// spacing of representable values still count on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// f32: 8 bytes for both moments of a weight.
    #[default]
    F32,
    /// bf16: 4 bytes for both moments of a weight.
    Bf16,
    /// 8-bit codes with two f32 scales for each block of [`kernel::WEIGHTS_PER_SCALE`] weights: 2.03 bytes for both
    /// moments of a weight.
    Int8,
}

impl MomentFormat {
    fn dtype(self) -> DType {
        match self {
            MomentFormat::F32 => DType::F32,
            MomentFormat::Bf16 => DType::BF16,
            MomentFormat::Int8 => DType::U8,
        }
    }
}

/// The optimizer state of one parameter.
#[derive(Clone, Debug)]
pub struct ParameterState {
    /// First moment, of the parameter's shape: f32, bf16, or signed 8-bit codes (as U8).
    pub m: Tensor,
    /// Second moment, of the parameter's shape: f32, bf16, or unsigned 8-bit codes.
    pub v: Tensor,
    /// f32 `[ceil(n / WEIGHTS_PER_SCALE), 2]`: for 8-bit moments, the scales of m and v in each block of codes.
    pub scales: Option<Tensor>,
    /// For a bf16 parameter, the low 16 bits of the f32 master weights (two's complement).
    pub low: Option<Tensor>,
    /// The number of steps in which this parameter had a gradient.
    pub steps: u64,
}

/// The AdamW optimizer with the state of all parameters.
#[derive(Debug, Default)]
pub struct AdamW {
    moments: MomentFormat,
    seed: u64,
    parameters: BTreeMap<String, (Tensor, ParameterState)>,
}

impl AdamW {
    /// An optimizer of these parameters, with zero moments and master weights equal to the weights. The random numbers
    /// of stochastic rounding depend on `seed`, the parameter's index in the order of names, its step count, and the
    /// weight's index.
    ///
    /// # Errors
    /// The device is out of memory, or a tensor is not a parameter.
    pub fn new(parameters: &[Tensor], moments: MomentFormat, seed: u64) -> Result<AdamW> {
        let mut all = BTreeMap::new();
        for p in parameters {
            let name = p.parameter_name().ok_or_else(|| {
                shape_error("adamw", "got a tensor that is not a parameter; make it one with into_parameter")
            })?;
            let like = |dtype| Tensor::empty(p.device(), p.shape(), dtype, MemoryCategory::Optimizer);
            let (m, v) = (like(moments.dtype())?, like(moments.dtype())?);
            let scales = match moments {
                MomentFormat::Int8 => {
                    let shape = [p.count().div_ceil(kernel::WEIGHTS_PER_SCALE), 2];
                    Some(Tensor::empty(p.device(), &shape, DType::F32, MemoryCategory::Optimizer)?)
                }
                MomentFormat::F32 | MomentFormat::Bf16 => None,
            };
            [&m, &v].into_iter().chain(&scales).try_for_each(fill_zero)?;
            let low = if p.dtype() == DType::BF16 { Some(like(DType::U16)?) } else { None };
            if let Some(low) = &low {
                let params = kernel::SplitParams { src: p.addr(), w: p.addr(), low: low.addr(), n: p.count() as u64 };
                p.device().launch(&kernel::split_master(DType::BF16, &params))?;
            }
            all.insert(name.to_string(), (p.clone(), ParameterState { m, v, scales, low, steps: 0 }));
        }
        Ok(AdamW { moments, seed, parameters: all })
    }

    /// All parameters with their optimizer states, in the order of their names.
    pub fn parameter_states(&self) -> impl Iterator<Item = (&str, &Tensor, &ParameterState)> {
        self.parameters.iter().map(|(name, (p, s))| (name.as_str(), p, s))
    }

    /// All parameters with their mutable optimizer states, to set the step counts of a resumed run. Moments are
    /// written with [`Tensor::write`].
    pub fn parameter_states_mut(&mut self) -> impl Iterator<Item = (&str, &Tensor, &mut ParameterState)> {
        self.parameters.iter_mut().map(|(name, (p, s))| (name.as_str(), &*p, s))
    }

    /// The L2 norm of all gradients, and the factor `min(1, max_norm / (norm + 1e-6))` that clips them: f32 `[2]` on
    /// the device.
    pub fn norm_and_clip_factor(&self, device: &Device, grads: &Grads, max_norm: f32) -> Result<Tensor> {
        let counts: Vec<usize> = grads.iter().map(|(_, g)| reduce::partial_sum_count(g.count())).collect();
        let total: usize = counts.iter().sum();
        // Each f64 partial sum takes two f32 elements.
        let partials = Tensor::empty(device, &[total, 2], DType::F32, MemoryCategory::Workspace)?;
        let mut at = 0;
        for ((_, g), n) in grads.iter().zip(&counts) {
            let partial = partials.addr().offset(8 * at);
            let params = reduce::SumSquaresParams { x: g.addr(), partial, n: g.count() as u64 };
            device.launch(&reduce::sum_squares(g.dtype(), &params))?;
            at += n;
        }
        let out = Tensor::empty(device, &[2], DType::F32, MemoryCategory::Workspace)?;
        let params = reduce::ClipParams {
            partials: partials.addr(),
            out: out.addr(),
            count: total as u64,
            max_norm,
            reserved: 0,
        };
        device.launch(&reduce::clip(&params))?;
        Ok(out)
    }

    /// Updates all parameters once. Each gradient is multiplied by the clipping factor in `clip` (see
    /// [`Self::norm_and_clip_factor`]). `hyper` returns the hyperparameters of a parameter by its name.
    ///
    /// # Errors
    /// A launch fails.
    pub fn step(&mut self, grads: &Grads, clip: &Tensor, hyper: impl Fn(&str) -> AdamWParams) -> Result<()> {
        for (index, (name, (p, state))) in (0u64..).zip(&mut self.parameters) {
            let Some(g) = grads.get(name) else { continue };
            state.steps += 1;
            let h = hyper(name);
            let scalars = kernel::StepHyperparameters {
                lr: h.learning_rate,
                beta1: h.beta1,
                beta2: h.beta2,
                eps: h.epsilon,
                weight_decay: h.weight_decay,
                step: state.steps,
            };
            let numbers = scalars.numbers();
            let at = |t: &Option<Tensor>| t.as_ref().map_or(Addr::NULL, Tensor::addr);
            let (w, m, v, g, clip) = (p.addr(), state.m.addr(), state.v.addr(), g.addr(), clip.addr());
            let (low, n) = (at(&state.low), p.count() as u64);
            let small = kernel::SmallMomentParams {
                w,
                low,
                m,
                v,
                scales: at(&state.scales),
                g,
                clip,
                n,
                seed: self.seed,
                stream: rounding_stream(state.steps, index),
                numbers,
            };
            p.device().launch(&match self.moments {
                MomentFormat::F32 => kernel::step(p.dtype(), &kernel::Params { w, low, m, v, g, clip, n, numbers }),
                MomentFormat::Bf16 => kernel::step_bf16_moments(p.dtype(), &small),
                MomentFormat::Int8 => kernel::step_8bit(p.dtype(), &small),
            })?;
        }
        Ok(())
    }
}

impl AdamW {
    /// A 64-bit hash of the bits of each parameter, by name, in the order of the names. It is computed on the device,
    /// so weights are not downloaded.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn parameter_hashes(&self) -> Result<Vec<(&str, u64)>> {
        let Some((_, (first, _))) = self.parameters.first_key_value() else { return Ok(Vec::new()) };
        let device = first.device();
        let counts: Vec<usize> =
            self.parameters.values().map(|(p, _)| fingerprint::partial_sum_count(p.bytes())).collect();
        // Each u64 sum takes two i32 elements.
        let sums = Tensor::empty(device, &[counts.iter().sum(), 2], DType::I32, MemoryCategory::Workspace)?;
        let mut at = 0;
        for ((p, _), count) in self.parameters.values().zip(&counts) {
            let (x, bytes) = (p.addr(), p.bytes() as u64);
            let params = fingerprint::Params { x, sums: sums.addr().offset(8 * at), bytes };
            device.launch(&fingerprint::fingerprint(&params))?;
            at += count;
        }
        let words = sums.read_bytes()?;
        let mut rest = words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let sum = |count: &usize| rest.by_ref().take(*count).fold(0, u64::wrapping_add);
        Ok(self.parameters.keys().map(String::as_str).zip(counts.iter().map(sum).collect::<Vec<_>>()).collect())
    }
}

/// The number of the Philox stream from which one parameter gets its random numbers for stochastic rounding in one
/// step. Its highest bit separates it from the streams that sampling uses with the same seed.
fn rounding_stream(step: u64, parameter: u64) -> u64 {
    (1 << 63) | (step << 24) | parameter
}

#[cfg(test)]
mod tests;
