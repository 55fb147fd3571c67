//! Rotary position embedding: one table of cosines and sines a pass, applied to the queries and keys of each layer.

use reel_kernels::{DType, rope};

use super::{size, want_dtype, want_shape};
use crate::device::{Category, Device};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, dims};

/// Cosine and sine of each token's angles.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    cos: Tensor, // f32 [S, D / 2]
    sin: Tensor, // f32 [S, D / 2]
}

/// Frequencies and their axes on a device, for tables that are made again and again without a copy from the host.
#[derive(Clone, Debug)]
pub struct RotaryTurns {
    inv_freq: Tensor, // f32 [D / 2]
    axis: Tensor,     // i32 [D / 2]
    axes: usize,
}

impl RotaryTurns {
    /// Of angles `positions[axis[j], t] * inv_freq[j]` with positions on `axes` axes.
    ///
    /// # Errors
    /// An axis beyond them, or not one for each frequency; out of memory.
    pub fn new(device: &Device, inv_freq: &[f32], axis: &[i32], axes: usize) -> Result<RotaryTurns> {
        let half = inv_freq.len();
        if axis.len() != half || axis.iter().any(|&a| a < 0 || a as usize >= axes) {
            return Err(shape_error(
                "rotary_table",
                format!("axis {axis:?} must name one of {axes} rows for each of {half} frequencies"),
            ));
        }
        let inv_freq = Tensor::from_slice(device, &[half], DType::F32, inv_freq, Category::Inputs)?;
        Ok(RotaryTurns { inv_freq, axis: Tensor::from_i32(device, &[half], axis)?, axes })
    }

    /// The table of angles of `positions`, i32 `[axes, S]`.
    ///
    /// # Errors
    /// Shapes that do not fit; out of memory.
    pub fn table(&self, cx: &Cx, positions: &Tensor) -> Result<RotaryTable> {
        const OP: &str = "rotary_table";
        let &[_, tokens] = positions.shape() else {
            return Err(shape_error(OP, format!("positions are {}, expected [axes, tokens]", dims(positions.shape()))));
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
        cx.launch(&rope::table(&p))?;
        Ok(table)
    }
}

/// The table of angles `positions[axis[j], t] * inv_freq[j]`: `positions` is i32 `[axes, S]`, `inv_freq` and `axis` have
/// `D / 2` entries (text: temporal, height and width axes of M-RoPE; vision: height and width).
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn rotary_table(cx: &Cx, positions: &Tensor, inv_freq: &[f32], axis: &[i32]) -> Result<RotaryTable> {
    let axes = positions.shape().first().copied().unwrap_or(0);
    RotaryTurns::new(cx.device(), inv_freq, axis, axes)?.table(cx, positions)
}

/// Rotates x `[S, heads, D]` by the table: pairs are `(j, j + D/2)`.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn rotary(cx: &Cx, x: &Tensor, table: &RotaryTable) -> Result<Tensor> {
    const OP: &str = "rotary";
    let &[tokens, heads, d] = x.shape() else {
        return Err(shape_error(OP, format!("x is {}, expected [tokens, heads, head_dim]", dims(x.shape()))));
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
        // A rotation's transpose is its inverse.
        bw.launch(&rope::apply(dy.dtype(), &params(&dy, &dx, 1)))?;
        bw.add(&kx, dx)
    }))
}
