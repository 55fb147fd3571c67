//! The transformer layers of both SigLIP towers: pre-norm attention and MLP, each added to the residual.
//!
//! `S` is the number of tokens of all packed sequences, `C` the width of the tower.

use reel_device::in_layer;
use reel_runtime::ops::{self, CuSeqlens};
use reel_runtime::{Cx, Tensor};

use super::config::EncoderConfig;
use crate::error::Result;
use crate::linear::Linear;
use crate::weights::WeightLoader;

/// LayerNorm: `(x − mean) · rsqrt(var + eps) · weight + bias`.
#[derive(Clone, Debug)]
pub(super) struct LayerNorm {
    weight: Tensor, // [C]
    bias: Tensor,   // [C]
    eps: f32,
}

impl LayerNorm {
    pub(super) fn load(from: &WeightLoader, name: &str, config: &EncoderConfig) -> Result<LayerNorm> {
        let vector = |part: &str| {
            let c = [config.hidden_size];
            from.load(&format!("{name}.{part}"), &c, &c)
        };
        Ok(LayerNorm { weight: vector("weight")?, bias: vector("bias")?, eps: config.eps })
    }

    /// Normalises each row of x `[rows, C]`.
    pub(super) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(cx, x, &self.weight, &self.bias, self.eps)?)
    }
}

/// The MLP: `fc2(gelu_tanh(fc1(x)))`.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    pub(super) fn load(from: &WeightLoader, name: &str, config: &EncoderConfig) -> Result<Mlp> {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            fc1: Linear::load(from, &format!("{name}.fc1"), inner, c, true)?,
            fc2: Linear::load(from, &format!("{name}.fc2"), c, inner, true)?,
        })
    }

    /// Applies the MLP to x `[rows, C]`. The result has the same shape.
    pub(super) fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        let wide = self.fc1.forward(cx, x)?;
        self.fc2.forward(cx, &ops::gelu_tanh(cx, &wide)?)
    }
}

#[derive(Clone, Debug)]
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
}

/// The layers of a tower.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
    heads: usize,
    head_dim: usize,
}

impl Encoder {
    /// Loads the tensors `TOWER.encoder.layers.*`.
    pub(super) fn load(from: &WeightLoader, tower: &str, config: &EncoderConfig) -> Result<Encoder> {
        let layer = |i: usize| {
            let name = |part: &str| format!("{tower}.encoder.layers.{i}.{part}");
            let c = config.hidden_size;
            let square = |part: &str| Linear::load(from, &name(&format!("self_attn.{part}")), c, c, true);
            Ok(Layer {
                norm1: LayerNorm::load(from, &name("layer_norm1"), config)?,
                q: square("q_proj")?,
                k: square("k_proj")?,
                v: square("v_proj")?,
                out: square("out_proj")?,
                norm2: LayerNorm::load(from, &name("layer_norm2"), config)?,
                mlp: Mlp::load(from, &name("mlp"), config)?,
            })
        };
        Ok(Encoder {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            heads: config.heads,
            head_dim: config.head_dim(),
        })
    }

    /// Runs all layers on x `[S, C]`. Every token attends to all tokens of its sequence, including padding.
    pub(super) fn forward(&self, cx: &Cx, mut x: Tensor, seqs: &CuSeqlens) -> Result<Tensor> {
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = in_layer("siglip", i);
            x = ops::add(cx, &x, &self.attend(cx, layer, &x, seqs)?)?;
            x = ops::add(cx, &x, &layer.mlp.forward(cx, &layer.norm2.forward(cx, &x)?)?)?;
        }
        Ok(x)
    }

    fn attend(&self, cx: &Cx, layer: &Layer, x: &Tensor, seqs: &CuSeqlens) -> Result<Tensor> {
        let (s, c) = (x.shape()[0], self.heads * self.head_dim);
        let normed = layer.norm1.forward(cx, x)?;
        let split = |linear: &Linear| -> Result<Tensor> {
            Ok(linear.forward(cx, &normed)?.reshape(&[s, self.heads, self.head_dim])?)
        };
        let (q, k, v) = (split(&layer.q)?, split(&layer.k)?, split(&layer.v)?);
        drop(normed);
        let o = ops::attention(cx, &q, &k, &v, seqs, false)?;
        layer.out.forward(cx, &o.reshape(&[s, c])?)
    }
}
