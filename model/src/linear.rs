//! A weight matrix with its bias, loaded by name, and the adapter beside it if there is one.

use std::sync::Arc;

use reel_runtime::ops::{self, Lora};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;
use crate::weights::WeightLoader;

/// `y = x · weightᵀ + bias`, plus what the adapter adds.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Classic name, without `.weight`.
    pub(crate) name: Arc<str>,
    weight: Tensor,       // [out, in]
    bias: Option<Tensor>, // [out]
    pub(crate) adapter: Option<Lora>,
}

impl Linear {
    pub(crate) fn load(from: &WeightLoader, name: &str, out: usize, inner: usize, bias: bool) -> Result<Linear> {
        let weight = from.load(&format!("{name}.weight"), &[out, inner], &[out, inner])?;
        let bias = if bias { Some(from.load(&format!("{name}.bias"), &[out], &[out])?) } else { None };
        Ok(Linear { name: name.into(), weight, bias, adapter: None })
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        std::iter::once(&self.weight).chain(&self.bias).chain(adapter)
    }

    /// The product for a few rows, plus `residual` where there is one. No gradient passes.
    pub(crate) fn thin(&self, cx: &Cx, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(match &self.adapter {
            Some(lora) => ops::skinny_lora_linear(cx, x, &self.weight, self.bias.as_ref(), lora, residual)?,
            None => ops::skinny_linear(cx, x, &self.weight, self.bias.as_ref(), residual)?,
        })
    }

    /// `silu(gate(x)) · up(x)` for a few rows; neither has a bias. No gradient passes.
    pub(crate) fn thin_gated(cx: &Cx, x: &Tensor, gate: &Linear, up: &Linear) -> Result<Tensor> {
        Ok(match (&gate.adapter, &up.adapter) {
            (None, None) => ops::skinny_swiglu(cx, x, &gate.weight, &up.weight)?,
            _ => ops::swiglu(cx, &gate.thin(cx, x, None)?, &up.thin(cx, x, None)?)?,
        })
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.adapter {
            Some(lora) => ops::lora_linear(cx, x, &self.weight, self.bias.as_ref(), lora)?,
            None => ops::linear(cx, x, &self.weight, self.bias.as_ref())?,
        })
    }
}
