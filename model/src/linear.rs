//! A linear layer: weight, optional bias, and optional LoRA adapters.

use std::sync::Arc;

use reel_runtime::ops::{self, Lora, LoraStack, RowAdapters};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;
use crate::linear_weight::{LayerAdapter, Weight};
use crate::weights::WeightLoader;

/// `y = x · weightᵀ + bias`, with weight `[out, in]`. An adapter adds `scale · up · down · x`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// The classic name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) name: Arc<str>,
    weight: Weight,       // [out, in]
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
        let shape = [out_features, in_features];
        let weight = Weight::Dense(from.load(&format!("{name}.weight"), &shape, &shape)?);
        Self::with_weight(from, name, weight, out_features, has_bias)
    }

    /// [`Linear::load`] for a layer that is quantised if the loader says so.
    pub(crate) fn load_quantized(
        from: &WeightLoader,
        name: &str,
        out_features: usize,
        in_features: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let weight = Weight::load(from, &format!("{name}.weight"), [out_features, in_features])?;
        Self::with_weight(from, name, weight, out_features, has_bias)
    }

    fn with_weight(
        from: &WeightLoader,
        name: &str,
        weight: Weight,
        out_features: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let bias =
            if has_bias { Some(from.load(&format!("{name}.bias"), &[out_features], &[out_features])?) } else { None };
        Ok(Linear { name: name.into(), weight, bias, adapter: None, row_adapters: None })
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        self.weight.tensors().chain(&self.bias).chain(adapter)
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
        self.weight.linear_skinny(cx, x, self.bias.as_ref(), self.adapter_of(rows), residual)
    }

    /// The adapter of a decode step: one for each row, if this layer has such and `rows` has their numbers, else its own.
    fn adapter_of<'a>(&'a self, rows: Option<&'a Tensor>) -> LayerAdapter<'a> {
        match (&self.row_adapters, rows, &self.adapter) {
            (Some(stack), Some(numbers), _) => LayerAdapter::OfRows(RowAdapters { stack, numbers }),
            (_, _, Some(lora)) => LayerAdapter::One(lora),
            _ => LayerAdapter::None,
        }
    }

    /// The outputs of three layers for the same x in a decode step. Has no backward rule.
    pub(crate) fn forward_joined(
        cx: &Cx,
        x: &Tensor,
        rows: Option<&Tensor>,
        layers: [&Linear; 3],
    ) -> Result<[Tensor; 3]> {
        let have_adapters = layers.iter().any(|layer| !matches!(layer.adapter_of(rows), LayerAdapter::None));
        let joined = match have_adapters {
            false => Weight::linear_joined(cx, x, layers.map(|layer| (&layer.weight, layer.bias.as_ref())))?,
            true => None,
        };
        let [q, k, v] = layers.map(|layer| move || layer.forward_skinny(cx, x, rows, None));
        joined.map_or_else(|| Ok([q()?, k()?, v()?]), Ok)
    }

    /// `silu(gate(x)) · up(x)` of a decode step, for layers without bias. Has no backward rule.
    pub(crate) fn swiglu_skinny(
        cx: &Cx,
        x: &Tensor,
        rows: Option<&Tensor>,
        gate: &Linear,
        up: &Linear,
    ) -> Result<Tensor> {
        let fused = match (gate.adapter_of(rows), up.adapter_of(rows)) {
            (LayerAdapter::None, LayerAdapter::None) => Weight::swiglu_skinny(cx, x, &gate.weight, &up.weight)?,
            _ => None,
        };
        let of_x = |layer: &Linear| layer.forward_skinny(cx, x, rows, None);
        fused.map_or_else(|| Ok(ops::swiglu(cx, &of_x(gate)?, &of_x(up)?)?), Ok)
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        self.weight.linear(cx, x, self.bias.as_ref(), self.adapter.as_ref())
    }
}
