//! AdamW over named parameters. The moments are f32, or smaller and rounded stochastically; bf16 weights have an exact f32
//! master, held as the weights' own bits plus 16 low bits a weight. A parameter without a gradient in a step is left alone, its own step count too.

use std::collections::BTreeMap;

use reel_kernels::{Addr, DType, adamw as kernel, fingerprint, reduce};

use crate::device::{Category, Device};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::tape::{Grads, zero};

/// The numbers of a step for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub learning_rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// How the moments are held. Small ones are rounded stochastically, so that steps below their spacing count on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moments {
    /// f32: 8 bytes a weight.
    #[default]
    F32,
    /// bf16: 4 bytes a weight.
    Bf16,
    /// 8-bit codes with two f32 scales for every [`kernel::BLOCK`] weights: 2.03 bytes a weight.
    Int8,
}

impl Moments {
    fn dtype(self) -> DType {
        match self {
            Moments::F32 => DType::F32,
            Moments::Bf16 => DType::BF16,
            Moments::Int8 => DType::U8,
        }
    }
}

/// What the optimizer keeps for one parameter.
#[derive(Clone, Debug)]
pub struct ParameterState {
    /// First moment, of the parameter's shape: f32, bf16, or signed 8-bit codes (as U8).
    pub m: Tensor,
    /// Second moment, of the parameter's shape: f32, bf16, or unsigned 8-bit codes.
    pub v: Tensor,
    /// f32 `[ceil(n / BLOCK), 2]`: the scales of m and v in each block of codes; with 8-bit moments.
    pub scales: Option<Tensor>,
    /// Low 16 bits of the master copy (two's complement), where the parameter is bf16.
    pub low: Option<Tensor>,
    /// Steps that this parameter has taken.
    pub steps: u64,
}

/// The optimizer.
#[derive(Debug, Default)]
pub struct AdamW {
    moments: Moments,
    seed: u64,
    parameters: BTreeMap<String, (Tensor, ParameterState)>,
}

impl AdamW {
    /// For these parameters, with moments of 0 and a master copy equal to the weights. Draws for the rounding of small moments
    /// depend on `seed`, the parameter's place in the order of names, its step and the weight's place.
    ///
    /// # Errors
    /// Out of memory; a tensor that is no parameter.
    pub fn new(parameters: &[Tensor], moments: Moments, seed: u64) -> Result<AdamW> {
        let mut all = BTreeMap::new();
        for p in parameters {
            let name = p.parameter().ok_or_else(|| shape_error("adamw", "given a tensor that is no parameter"))?;
            let like = |dtype| Tensor::empty(p.device(), p.shape(), dtype, Category::Optimizer);
            let (m, v) = (like(moments.dtype())?, like(moments.dtype())?);
            let scales = match moments {
                Moments::Int8 => {
                    let shape = [p.count().div_ceil(kernel::BLOCK), 2];
                    Some(Tensor::empty(p.device(), &shape, DType::F32, Category::Optimizer)?)
                }
                Moments::F32 | Moments::Bf16 => None,
            };
            [&m, &v].into_iter().chain(&scales).try_for_each(zero)?;
            let low = if p.dtype() == DType::BF16 { Some(like(DType::U16)?) } else { None };
            if let Some(low) = &low {
                let params = kernel::SplitParams { src: p.addr(), w: p.addr(), low: low.addr(), n: p.count() as u64 };
                p.device().launch(&kernel::split_master(DType::BF16, &params))?;
            }
            all.insert(name.to_string(), (p.clone(), ParameterState { m, v, scales, low, steps: 0 }));
        }
        Ok(AdamW { moments, seed, parameters: all })
    }

    /// Every parameter with its state, in the order of names.
    pub fn states(&self) -> impl Iterator<Item = (&str, &Tensor, &ParameterState)> {
        self.parameters.iter().map(|(name, (p, s))| (name.as_str(), p, s))
    }

    /// The same, to set the step counts of a resumed run (moments are written in place through [`Tensor::write`]).
    pub fn states_mut(&mut self) -> impl Iterator<Item = (&str, &Tensor, &mut ParameterState)> {
        self.parameters.iter_mut().map(|(name, (p, s))| (name.as_str(), &*p, s))
    }

    /// The L2 norm of all gradients, and the factor `min(1, max_norm / (norm + 1e-6))` that clips them: f32 `[2]` on the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn clip(&self, device: &Device, grads: &Grads, max_norm: f32) -> Result<Tensor> {
        let counts: Vec<usize> = grads.iter().map(|(_, g)| reduce::parts(g.count())).collect();
        let total: usize = counts.iter().sum();
        // f64 partial sums, as two f32 places each.
        let partials = Tensor::empty(device, &[total, 2], DType::F32, Category::Workspace)?;
        let mut at = 0;
        for ((_, g), n) in grads.iter().zip(&counts) {
            let partial = partials.addr().offset(8 * at);
            let params = reduce::SumSquaresParams { x: g.addr(), partial, n: g.count() as u64 };
            device.launch(&reduce::sum_squares(g.dtype(), &params))?;
            at += n;
        }
        let out = Tensor::empty(device, &[2], DType::F32, Category::Workspace)?;
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

    /// One step with the gradients of `grads` times the factor in `clip`; `hyper` gives each parameter's numbers.
    ///
    /// # Errors
    /// What the device reports.
    pub fn step(&mut self, grads: &Grads, clip: &Tensor, hyper: impl Fn(&str) -> Hyper) -> Result<()> {
        for (place, (name, (p, state))) in (0u64..).zip(&mut self.parameters) {
            let Some(g) = grads.get(name) else { continue };
            state.steps += 1;
            let h = hyper(name);
            let scalars = kernel::Scalars {
                lr: h.learning_rate,
                beta1: h.beta1,
                beta2: h.beta2,
                eps: h.epsilon,
                weight_decay: h.weight_decay,
                step: state.steps,
            };
            let at = |t: &Option<Tensor>| t.as_ref().map_or(Addr::NULL, Tensor::addr);
            let (w, m, v, g, clip) = (p.addr(), state.m.addr(), state.v.addr(), g.addr(), clip.addr());
            let (low, n) = (at(&state.low), p.count() as u64);
            let small = kernel::SmallParams {
                w,
                low,
                m,
                v,
                scales: at(&state.scales),
                g,
                clip,
                n,
                seed: self.seed,
                stream: stream(state.steps, place),
                ..scalars.small_params()
            };
            p.device().launch(&match self.moments {
                Moments::F32 => {
                    kernel::step(p.dtype(), &kernel::Params { w, low, m, v, g, clip, n, ..scalars.params() })
                }
                Moments::Bf16 => kernel::step_bf16_moments(p.dtype(), &small),
                Moments::Int8 => kernel::step_8bit(p.dtype(), &small),
            })?;
        }
        Ok(())
    }
}

impl AdamW {
    /// A hash of the bits of each parameter, in the order of names; computed where they lie, so that numbers travel and weights do not.
    ///
    /// # Errors
    /// Out of memory; what the device reports.
    pub fn fingerprints(&self) -> Result<Vec<(&str, u64)>> {
        let Some((_, (first, _))) = self.parameters.first_key_value() else { return Ok(Vec::new()) };
        let device = first.device();
        let counts: Vec<usize> = self.parameters.values().map(|(p, _)| fingerprint::sums(p.bytes())).collect();
        // u64 as two i32.
        let sums = Tensor::empty(device, &[counts.iter().sum(), 2], DType::I32, Category::Workspace)?;
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

/// The stream of draws of a parameter's step. The highest bit keeps it from those that sampling uses with the same seed.
fn stream(step: u64, place: u64) -> u64 {
    (1 << 63) | (step << 24) | place
}

#[cfg(test)]
mod tests;
