//! A linear layer: weight, optional bias, and optional LoRA adapters.

use std::sync::Arc;

use reel_runtime::ops::{self, InputNorm, KvDestination, Lora, LoraStack, RowAdapters};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;
use crate::linear_inputs::InputMoments;
use crate::linear_weight::{LayerAdapter, Weight};
use crate::tensor_parallel::RowShare;
use crate::weights::{PaddedWidth, WeightLoader};

/// A linear layer `y = x · weightᵀ + bias`, with weight `[out, in]`. An adapter adds `scale · up · down · x`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// The classic name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) name: Arc<str>,
    weight: Weight,       // [out, in]
    bias: Option<Tensor>, // [out]
    /// Which of the layer's output columns this process computes; `out` is their number.
    pub(crate) share: RowShare,
    pub(crate) adapter: Option<Lora>,
    /// The adapters of a decode step. Each row may have one of these adapters instead of `adapter`.
    pub(crate) row_adapters: Option<LoraStack>,
    /// Records the inputs of forward passes other than decode steps, for calibration.
    pub(crate) inputs: Option<Arc<InputMoments>>,
}

/// Joined weights: the weights of several linear layers with the same input, one after the other in memory, so that
/// one product computes all outputs. Only trained layers have joined weights.
#[derive(Clone, Debug)]
pub(crate) struct JoinedWeights {
    weight: Tensor,       // [sum of out, in]
    bias: Option<Tensor>, // [sum of out]
}

impl JoinedWeights {
    /// The outputs of `layers` side by side, `[S, sum of out]`, by one product with the `joined` weights of these
    /// layers. `None` if there are no joined weights or a layer has an adapter.
    pub(crate) fn forward(joined: Option<&Self>, layers: &[&Linear], cx: &Cx, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(JoinedWeights { weight, bias }) = joined else { return Ok(None) };
        if layers.iter().any(|layer| layer.adapter.is_some()) {
            return Ok(None);
        }
        Ok(Some(ops::linear(cx, x, weight, bias.as_ref())?))
    }
}

impl Linear {
    /// Loads layers with joined weights. All layers have the same input; each is given by its name and its number of
    /// outputs. `None` if a weight or bias is not trained.
    pub(crate) fn load_joined<const N: usize>(
        from: &WeightLoader,
        layers: [(&str, impl Into<PaddedWidth>); N],
        in_features: usize,
        has_bias: bool,
    ) -> Result<Option<([Linear; N], JoinedWeights)>> {
        let layers = layers.map(|(name, rows)| (name, rows.into()));
        let named = |part: &str| layers.map(|(name, rows)| (format!("{name}.{part}"), rows));
        let (weights, biases) = (named("weight"), named("bias"));
        let trained = |named: &[(String, PaddedWidth)]| named.iter().all(|(name, _)| (from.trainable)(name));
        if !trained(&weights) || (has_bias && !trained(&biases)) {
            return Ok(None);
        }
        let load = |named: &[(String, PaddedWidth); N], row: &[usize]| {
            from.load_joined(named.each_ref().map(|(name, rows)| (name.as_str(), *rows)), row)
        };
        let (weight, weights) = load(&weights, &[in_features])?;
        let (bias, biases) = if has_bias { Some(load(&biases, &[])?) } else { None }.unzip();
        let linears = std::array::from_fn(|i| Linear {
            name: layers[i].0.into(),
            weight: Weight::Dense(weights[i].clone()),
            bias: biases.as_ref().map(|biases| biases[i].clone()),
            share: RowShare::ALL_ROWS,
            adapter: None,
            row_adapters: None,
            inputs: None,
        });
        Ok(Some((linears, JoinedWeights { weight, bias })))
    }

    pub(crate) fn load(
        from: &WeightLoader,
        name: &str,
        out_features: impl Into<PaddedWidth>,
        in_features: impl Into<PaddedWidth>,
        has_bias: bool,
    ) -> Result<Linear> {
        let (rows, cols) = (out_features.into(), in_features.into());
        let weight = Weight::load_unquantized(from, &format!("{name}.weight"), [rows, cols])?;
        let bias = if has_bias { Some(from.load_padded(&format!("{name}.bias"), &[rows])?) } else { None };
        let (name, share) = (name.into(), RowShare::ALL_ROWS);
        Ok(Linear { name, weight, bias, share, adapter: None, row_adapters: None, inputs: None })
    }

    /// Like [`Linear::load`], but loads a share of the outputs of a decoder layer, which may be quantised. `shape` is
    /// `[out, in]` of the whole layer.
    pub(crate) fn load_decoder(
        from: &WeightLoader,
        name: &str,
        shape: [usize; 2],
        has_bias: bool,
        share: RowShare,
    ) -> Result<Linear> {
        let weight = Weight::load(from, &format!("{name}.weight"), shape, share)?;
        let bias = || from.load_share(&format!("{name}.bias"), [shape[0]], share);
        let bias = if has_bias { Some(bias()?) } else { None };
        Ok(Linear { name: name.into(), weight, bias, share, adapter: None, row_adapters: None, inputs: None })
    }

    /// Returns the weight if it is trained and the device reads packed weights faster ([`Weight::tensor_to_pack`]);
    /// otherwise `None`.
    pub(crate) fn tensor_to_pack(&self) -> Option<&Tensor> {
        self.weight.tensor_to_pack()
    }

    /// Replaces a trained weight by a packed copy, if the device reads packed weights faster.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn pack_trained_weight(&mut self, cx: &Cx) -> Result<()> {
        self.weight.packed_copy(cx)?.into_iter().for_each(|packed| self.weight = packed);
        Ok(())
    }

    /// The rows and columns of the weight; `None` if it is packed.
    pub(crate) fn weight_widths(&self) -> Option<[PaddedWidth; 2]> {
        let Weight::Dense(weight) = &self.weight else { return None };
        let width =
            |i: usize| Some(PaddedWidth { stored: *weight.unpadded_shape().get(i)?, padded: *weight.shape().get(i)? });
        Some([width(0)?, width(1)?])
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        self.weight.tensors().chain(&self.bias).chain(adapter)
    }

    /// The forward pass of a decode step, for few rows; adds `residual` to the output if it is given. `rows` i32 `[R]`
    /// has the number of each row's adapter, if the rows may have different adapters. Has no backward rule.
    pub(crate) fn forward_skinny(
        &self,
        cx: &Cx,
        x: &Tensor,
        rows: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.weight.linear_skinny(cx, x, self.bias.as_ref(), self.adapter_of(rows), residual)
    }

    /// The adapters of a decode step: one per row if this layer has row adapters and `rows` has their numbers,
    /// otherwise the adapter of the layer, if it has one.
    fn adapter_of<'a>(&'a self, rows: Option<&'a Tensor>) -> LayerAdapter<'a> {
        match (&self.row_adapters, rows, &self.adapter) {
            (Some(stack), Some(numbers), _) => LayerAdapter::OfRows(RowAdapters { stack, numbers }),
            (_, _, Some(lora)) => LayerAdapter::One(lora),
            _ => LayerAdapter::None,
        }
    }

    /// Computes the queries `[R, H, D]` of a decode step from the norm of x and the layers of q, k and v, and writes
    /// keys and values into the caches. `rows` has the number of each row's adapter, as in [`Linear::forward_skinny`].
    /// Has no backward rule.
    pub(crate) fn qkv_skinny(
        cx: &Cx,
        x: &Tensor,
        norm: InputNorm,
        rows: Option<&Tensor>,
        layers: [&Linear; 3],
        to: KvDestination,
    ) -> Result<Tensor> {
        let have_adapters = layers.iter().any(|layer| !matches!(layer.adapter_of(rows), LayerAdapter::None));
        if !have_adapters {
            let layers = layers.map(|layer| (layer.weight.for_decode(), layer.bias.as_ref()));
            return Ok(ops::skinny_qkv(cx, x, Some(norm), layers, to)?);
        }
        let x = &ops::rms_norm(cx, x, norm.weight, norm.eps)?;
        let [q, k, v] = layers.map(|layer| move || layer.forward_skinny(cx, x, rows, None));
        Ok(to.rotate_and_cache_rows(cx, [q()?, k()?, v()?])?)
    }

    /// Computes `silu(gate(n)) · up(n)` in a decode step, where n is the RMS norm of x and the layers have no bias. Has
    /// no backward rule.
    pub(crate) fn swiglu_skinny(
        cx: &Cx,
        x: &Tensor,
        norm: InputNorm,
        rows: Option<&Tensor>,
        gate: &Linear,
        up: &Linear,
    ) -> Result<Tensor> {
        if let (LayerAdapter::None, LayerAdapter::None) = (gate.adapter_of(rows), up.adapter_of(rows)) {
            return Ok(ops::skinny_swiglu(cx, x, Some(norm), gate.weight.for_decode(), up.weight.for_decode())?);
        }
        let x = ops::rms_norm(cx, x, norm.weight, norm.eps)?;
        let of_x = |layer: &Linear| layer.forward_skinny(cx, &x, rows, None);
        Ok(ops::swiglu(cx, &of_x(gate)?, &of_x(up)?)?)
    }

    /// Computes a gated MLP, `down(silu(gate(x)) · up(x))`. `joined` has the joined weights of gate and up, if there
    /// are any. Frees x and the intermediate results as soon as possible, unless the tape keeps them.
    pub(crate) fn gated_mlp(
        cx: &Cx,
        x: Tensor,
        [gate, up, down]: [&Linear; 3],
        joined: Option<&JoinedWeights>,
    ) -> Result<Tensor> {
        if let Some(inner) = Linear::fused_swiglu(cx, &x, gate, up)? {
            drop(x);
            return down.forward(cx, &inner);
        }
        if let (Weight::Dense(w), None) = (&down.weight, &down.adapter)
            && let Some(fused) = JoinedWeights::forward(joined, &[gate, up], cx, &x)?
        {
            drop(x);
            return Ok(ops::swiglu_linear(cx, &fused, w, down.bias.as_ref())?);
        }
        let gate = gate.forward(cx, &x)?;
        let up = up.forward(cx, &x)?;
        drop(x);
        let inner = ops::swiglu(cx, &gate, &up)?;
        drop((gate, up));
        down.forward(cx, &inner)
    }

    /// Computes `silu(gate(x)) · up(x)` in one launch, without a backward rule. `None` if the device has no kernel for
    /// it ([`ops::linear_swiglu`]), or if a layer has a packed weight, a bias or an adapter, or records its inputs.
    pub(crate) fn fused_swiglu(cx: &Cx, x: &Tensor, gate: &Linear, up: &Linear) -> Result<Option<Tensor>> {
        let is_plain = |layer: &Linear| layer.bias.is_none() && layer.adapter.is_none() && layer.inputs.is_none();
        Ok(match (&gate.weight, &up.weight) {
            (Weight::Dense(g), Weight::Dense(u)) if is_plain(gate) && is_plain(up) => ops::linear_swiglu(cx, x, g, u)?,
            _ => None,
        })
    }

    pub(crate) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        if let Some(moments) = &self.inputs {
            moments.add(&x.to_f32()?, x.shape()[x.shape().len() - 1]);
        }
        self.weight.linear(cx, x, self.bias.as_ref(), self.adapter.as_ref())
    }
}

#[cfg(test)]
mod tests;
