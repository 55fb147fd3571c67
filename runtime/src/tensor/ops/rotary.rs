//! Rotary position embedding (RoPE, M-RoPE): a table of cosines and sines for each forward pass, and the rotation of
//! queries and keys by this table.

use reel_kernels::{DType, rope};

use super::{size, want_dtype, want_shape};
use crate::device::{Device, MemoryCategory, in_op};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// The cosines and sines of each token's rotation angles.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    cos: Tensor, // f32 [S, D / 2]
    sin: Tensor, // f32 [S, D / 2]
}

/// Rotary frequencies in device memory, from which each decode step computes its table without a copy from the host.
#[derive(Clone, Debug)]
pub struct RotaryFrequencies {
    inv_freq: Tensor, // f32 [D / 2]
    axis: Tensor,     // i32 [D / 2]
    axes: usize,
}

impl RotaryTable {
    /// Cosines and sines, f32 `[S, D / 2]` each.
    pub(super) fn cos_and_sin(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }
}

impl RotaryFrequencies {
    /// The frequencies of the angles `positions[axis[j], t] * inv_freq[j]` of token t: frequency j multiplies the
    /// position on axis `axis[j]`, one of `axes` axes.
    ///
    /// # Errors
    /// An axis that is not below `axes`; a number of axes other than the number of frequencies; out of memory.
    pub fn new(device: &Device, inv_freq: &[f32], axis: &[i32], axes: usize) -> Result<RotaryFrequencies> {
        let half = inv_freq.len();
        if axis.len() != half || axis.iter().any(|&a| a < 0 || a as usize >= axes) {
            return Err(shape_error(
                "rotary_table",
                format!("axis is {axis:?}; expected an axis from 0 to {axes} - 1 for each of {half} frequencies"),
            ));
        }
        let inv_freq = Tensor::from_slice(device, &[half], DType::F32, inv_freq, MemoryCategory::Inputs)?;
        Ok(RotaryFrequencies { inv_freq, axis: Tensor::from_i32(device, &[half], axis)?, axes })
    }

    /// The table of cosines and sines for `positions`, i32 `[axes, S]`.
    pub fn cos_sin_table(&self, cx: &Cx, positions: &Tensor) -> Result<RotaryTable> {
        let _op = in_op("rotary_table");
        const OP: &str = "rotary_table";
        let &[_, tokens] = positions.shape() else {
            return Err(shape_error(
                OP,
                format!("positions have shape {}, expected [axes, tokens]", format_shape(positions.shape())),
            ));
        };
        want_shape(OP, "positions", positions, &[self.axes, tokens], "a row for each axis")?;
        want_dtype(OP, "positions", positions, DType::I32)?;
        let half = self.inv_freq.count();
        let table =
            RotaryTable { cos: cx.empty(&[tokens, half], DType::F32)?, sin: cx.empty(&[tokens, half], DType::F32)? };
        let p = rope::TableParams {
            positions: positions.addr(),
            inv_freq: self.inv_freq.addr(),
            axis: self.axis.addr(),
            cos: table.cos.addr(),
            sin: table.sin.addr(),
            tokens: size(OP, tokens)?,
            half: size(OP, half)?,
        };
        cx.launch(&rope::cos_sin_table(&p))?;
        Ok(table)
    }
}

/// The table of cosines and sines of the angles `positions[axis[j], t] * inv_freq[j]`: `positions` is i32 `[axes,
/// S]`; `inv_freq` and `axis` have `D / 2` elements. The axes are time, height and width in the decoder (M-RoPE), row
/// and column in the vision tower.
pub fn rotary_table(cx: &Cx, positions: &Tensor, inv_freq: &[f32], axis: &[i32]) -> Result<RotaryTable> {
    let _op = in_op("rotary_table");
    let axes = positions.shape().first().copied().unwrap_or(0);
    RotaryFrequencies::new(cx.device(), inv_freq, axis, axes)?.cos_sin_table(cx, positions)
}

/// Rotates x `[S, heads, D]` by the angles of the table. Elements j and `j + D/2` form a pair.
pub fn apply_rotary(cx: &Cx, x: &Tensor, table: &RotaryTable) -> Result<Tensor> {
    let _op = in_op("apply_rotary");
    const OP: &str = "rotary";
    let &[tokens, heads, d] = x.shape() else {
        return Err(shape_error(
            OP,
            format!("x has shape {}, expected [tokens, heads, head_dim]", format_shape(x.shape())),
        ));
    };
    want_shape(OP, "table", &table.cos, &[tokens, d / 2], "[tokens, head_dim / 2]")?;
    let y = cx.empty(x.shape(), x.dtype())?;
    let (tokens, heads, head_dim) = (size(OP, tokens)?, size(OP, heads)?, size(OP, d)?);
    let table = table.clone();
    let params = move |x: &Tensor, y: &Tensor, inverse: u32| rope::ApplyParams {
        x: x.addr(),
        y: y.addr(),
        cos: table.cos.addr(),
        sin: table.sin.addr(),
        tokens,
        heads,
        head_dim,
        inverse,
    };
    cx.launch(&rope::apply(x.dtype(), &params(x, &y, 0)))?;
    let kx = x.clone();
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        // The gradient of the output is multiplied by the transposed rotation matrix, which is the inverse rotation.
        bw.launch(&rope::apply(dy.dtype(), &params(&dy, &dx, 1)))?;
        bw.add(&kx, dx)
    }))
}
