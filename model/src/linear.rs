//! A weight matrix with its bias, loaded by name.

use reel_runtime::{Cx, Tensor, ops};

use crate::error::Result;
use crate::weights::Loader;

/// `y = x · weightᵀ + bias`
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Tensor,       // [out, in]
    bias: Option<Tensor>, // [out]
}

impl Linear {
    pub(crate) fn load(from: &Loader, name: &str, out: usize, inner: usize, bias: bool) -> Result<Linear> {
        let weight = from.load(&format!("{name}.weight"), &[out, inner], &[out, inner])?;
        let bias = if bias { Some(from.load(&format!("{name}.bias"), &[out], &[out])?) } else { None };
        Ok(Linear { weight, bias })
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    /// The product for a few rows, plus `residual` where there is one. No gradient passes.
    pub(crate) fn thin(&self, cx: &Cx, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(ops::thin_linear(cx, x, &self.weight, self.bias.as_ref(), residual)?)
    }

    /// `silu(gate(x)) · up(x)` for a few rows; neither has a bias. No gradient passes.
    pub(crate) fn thin_gated(cx: &Cx, x: &Tensor, gate: &Linear, up: &Linear) -> Result<Tensor> {
        Ok(ops::thin_swiglu(cx, x, &gate.weight, &up.weight)?)
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(cx, x, &self.weight, self.bias.as_ref())?)
    }
}
