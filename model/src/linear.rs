//! A linear layer: weight, optional bias, and optional LoRA adapters.

use std::sync::Arc;

use reel_runtime::ops::{self, Lora, LoraStack, RowAdapters};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;
use crate::weights::WeightLoader;

/// `y = x · weightᵀ + bias`, with weight `[out, in]`. An adapter adds `scale · up · down · x`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// The classic name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) name: Arc<str>,
    weight: Tensor,       // [out, in]
    bias: Option<Tensor>, // [out]
    pub(crate) adapter: Option<Lora>,
    /// The adapters that rows of a decode step may have instead.
    pub(crate) row_adapters: Option<LoraStack>,
}

impl Linear {
    pub(crate) fn load(
        from: &WeightLoader,
        name: &str,
        out_features: usize,
        in_features: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let weight =
            from.load(&format!("{name}.weight"), &[out_features, in_features], &[out_features, in_features])?;
        let bias =
            if has_bias { Some(from.load(&format!("{name}.bias"), &[out_features], &[out_features])?) } else { None };
        Ok(Linear { name: name.into(), weight, bias, adapter: None, row_adapters: None })
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        std::iter::once(&self.weight).chain(&self.bias).chain(adapter)
    }

    /// The forward pass of a decode step, for few rows; adds `residual` to the output if it is given. `rows` i32 `[R]` has
    /// the number of each row's adapter, if the rows may have different ones. Has no backward rule.
    pub(crate) fn forward_skinny(
        &self,
        cx: &Cx,
        x: &Tensor,
        rows: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        Ok(match (&self.adapter, self.row_adapters(rows)) {
            (_, Some(adapters)) => ops::skinny_linear_with_row_adapters(cx, x, weight, bias, adapters, residual)?,
            (Some(lora), None) => ops::skinny_lora_linear(cx, x, weight, bias, lora, residual)?,
            (None, None) => ops::skinny_linear(cx, x, weight, bias, residual)?,
        })
    }

    /// The adapters of the rows of a decode step, if this layer has any.
    fn row_adapters<'a>(&'a self, rows: Option<&'a Tensor>) -> Option<RowAdapters<'a>> {
        Some(RowAdapters { stack: self.row_adapters.as_ref()?, numbers: rows? })
    }

    /// `silu(gate(x)) · up(x)` of a decode step, for layers without bias. Has no backward rule.
    pub(crate) fn swiglu_skinny(
        cx: &Cx,
        x: &Tensor,
        rows: Option<&Tensor>,
        gate: &Linear,
        up: &Linear,
    ) -> Result<Tensor> {
        let is_adapted = |layer: &Linear| layer.adapter.is_some() || layer.row_adapters(rows).is_some();
        Ok(match is_adapted(gate) || is_adapted(up) {
            false => ops::skinny_swiglu(cx, x, &gate.weight, &up.weight)?,
            true => ops::swiglu(cx, &gate.forward_skinny(cx, x, rows, None)?, &up.forward_skinny(cx, x, rows, None)?)?,
        })
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.adapter {
            Some(lora) => ops::lora_linear(cx, x, &self.weight, self.bias.as_ref(), lora)?,
            None => ops::linear(cx, x, &self.weight, self.bias.as_ref())?,
        })
    }
}
