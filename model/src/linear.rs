//! A linear layer: weight, optional bias, and optional LoRA adapter.

use std::sync::Arc;

use reel_runtime::ops::{self, Lora};
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
        Ok(Linear { name: name.into(), weight, bias, adapter: None })
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        std::iter::once(&self.weight).chain(&self.bias).chain(adapter)
    }

    /// The forward pass of a decode step for up to 16 rows; adds `residual` to the output if it is given. Has no
    /// backward rule.
    pub(crate) fn forward_skinny(&self, cx: &Cx, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(match &self.adapter {
            Some(lora) => ops::skinny_lora_linear(cx, x, &self.weight, self.bias.as_ref(), lora, residual)?,
            None => ops::skinny_linear(cx, x, &self.weight, self.bias.as_ref(), residual)?,
        })
    }

    /// `silu(gate(x)) · up(x)` of a decode step, for layers without bias. Has no backward rule.
    pub(crate) fn swiglu_skinny(cx: &Cx, x: &Tensor, gate: &Linear, up: &Linear) -> Result<Tensor> {
        Ok(match (&gate.adapter, &up.adapter) {
            (None, None) => ops::skinny_swiglu(cx, x, &gate.weight, &up.weight)?,
            _ => ops::swiglu(cx, &gate.forward_skinny(cx, x, None)?, &up.forward_skinny(cx, x, None)?)?,
        })
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.adapter {
            Some(lora) => ops::lora_linear(cx, x, &self.weight, self.bias.as_ref(), lora)?,
            None => ops::linear(cx, x, &self.weight, self.bias.as_ref())?,
        })
    }
}
