//! AdamW over named parameters. The moments are f32; bf16 weights have an exact f32 master, held as the weights' own bits plus
//! 16 low bits a weight. A parameter without a gradient in a step is left alone, its own step count too.

use std::collections::BTreeMap;

use reel_kernels::{Addr, DType, adamw as kernel, reduce};

use super::super::tensor::tape::zero;
use crate::device::{Category, Device};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::tape::Grads;

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

/// What the optimizer keeps for one parameter.
#[derive(Clone, Debug)]
pub struct ParameterState {
    /// First moment, f32 of the parameter's shape.
    pub m: Tensor,
    /// Second moment, f32 of the parameter's shape.
    pub v: Tensor,
    /// Low 16 bits of the master copy (two's complement), where the parameter is bf16.
    pub low: Option<Tensor>,
    /// Steps that this parameter has taken.
    pub steps: u64,
}

/// The optimizer.
#[derive(Debug, Default)]
pub struct AdamW {
    parameters: BTreeMap<String, (Tensor, ParameterState)>,
}

impl AdamW {
    /// For these parameters, with moments of 0 and a master copy equal to the weights.
    ///
    /// # Errors
    /// Out of memory; a tensor that is no parameter.
    pub fn new(parameters: &[Tensor]) -> Result<AdamW> {
        let mut all = BTreeMap::new();
        for p in parameters {
            let name = p.parameter().ok_or_else(|| shape_error("adamw", "given a tensor that is no parameter"))?;
            let like = |dtype| {
                let t = Tensor::empty(p.device(), p.shape(), dtype, Category::Optimizer)?;
                Ok(t)
            };
            let (m, v) = (like(DType::F32)?, like(DType::F32)?);
            zero(&m)?;
            zero(&v)?;
            let low = if p.dtype() == DType::BF16 { Some(like(DType::U16)?) } else { None };
            if let Some(low) = &low {
                let params = kernel::SplitParams { src: p.addr(), w: p.addr(), low: low.addr(), n: p.count() as u64 };
                p.device().launch(&kernel::split_master(DType::BF16, &params))?;
            }
            all.insert(name.to_string(), (p.clone(), ParameterState { m, v, low, steps: 0 }));
        }
        Ok(AdamW { parameters: all })
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
        for (name, (p, state)) in &mut self.parameters {
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
            let params = kernel::Params {
                w: p.addr(),
                low: state.low.as_ref().map_or(Addr::NULL, Tensor::addr),
                m: state.m.addr(),
                v: state.v.addr(),
                g: g.addr(),
                clip: clip.addr(),
                n: p.count() as u64,
                ..scalars.params()
            };
            p.device().launch(&kernel::step(p.dtype(), &params))?;
        }
        Ok(())
    }
}
