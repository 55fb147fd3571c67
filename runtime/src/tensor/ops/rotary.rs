//! Rotary position embedding (RoPE, M-RoPE): a table of cosines and sines for each forward pass, and the rotation of
//! queries and keys by this table.

use reel_device::{DType, Device, Launch, MemoryCategory, in_op};
use reel_kernels::rope;

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::fill_zero;
use crate::tensor::{Tensor, format_shape};

const OP: &str = "rotary";

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

impl RotaryTable {
    /// Checks the table's shape. Returns the parameters of a kernel that rotates `tokens` tokens by the angles of
    /// this table.
    fn rotation(&self, tokens: usize, head_dim: usize) -> Result<rope::Rotation> {
        want_shape(OP, "table", &self.cos, &[tokens, head_dim / 2], "[tokens, head_dim / 2]")?;
        let (tokens, head_dim) = (size(OP, tokens)?, size(OP, head_dim)?);
        Ok(rope::Rotation { cos: self.cos.addr(), sin: self.sin.addr(), tokens, head_dim, inverse: false })
    }
}

/// The launch that rotates the first `rotated` of `parts` and copies the remaining parts.
fn launch(dtype: DType, rotation: &rope::Rotation, parts: &[rope::RopeTensor], rotated: usize) -> Launch {
    rope::apply(dtype, &rope::ApplyParams::new(rotation, parts, rotated as u32))
}

/// Rotates queries q `[S, heads, D]` and keys k `[S, kv_heads, D]` by the angles of the table, in one launch. Elements
/// j and `j + D/2` form a pair.
pub fn apply_rotary(cx: &Cx, q: &Tensor, k: &Tensor, table: &RotaryTable) -> Result<(Tensor, Tensor)> {
    let _op = in_op("apply_rotary");
    let (&[tokens, q_heads, d], &[_, k_heads, _]) = (q.shape(), k.shape()) else {
        let (q, k) = (format_shape(q.shape()), format_shape(k.shape()));
        return Err(shape_error(OP, format!("q has shape {q}, k {k}; expected [tokens, heads, head_dim] for both")));
    };
    want_shape(OP, "k", k, &[tokens, k_heads, d], "tokens and head_dim of q")?;
    want_dtype(OP, "k", k, q.dtype())?;
    let (rotation, dtype) = (table.rotation(tokens, d)?, q.dtype());
    let heads = [size(OP, q_heads)?, size(OP, k_heads)?];
    let part = move |x: &Tensor, y: &Tensor, heads: u32| {
        let stride = heads * rotation.head_dim;
        rope::RopeTensor { x: x.addr(), x_stride: stride, y: y.addr(), y_stride: stride, heads }
    };
    let (q_rotated, k_rotated) = (cx.empty(q.shape(), dtype)?, cx.empty(k.shape(), dtype)?);
    cx.launch(&launch(dtype, &rotation, &[part(q, &q_rotated, heads[0]), part(k, &k_rotated, heads[1])], 2))?;
    let (inputs, table) = ([q.meta().clone(), k.meta().clone()], table.clone());
    Ok(cx.record_pair(OP, &[q, k], (q_rotated, k_rotated), move |bw| {
        let (dq, dk) = bw.take_dy_pair();
        // The gradient is multiplied by the transposed rotation matrix, which is the inverse rotation.
        let mut gradients = Vec::new();
        for ((x, dy), heads) in inputs.iter().zip([dq, dk]).zip(heads) {
            let Some(dy) = dy else { continue };
            gradients.push((x, bw.empty_like(x)?, dy, heads));
        }
        let parts: Vec<rope::RopeTensor> = gradients.iter().map(|(_, dx, dy, heads)| part(dy, dx, *heads)).collect();
        let inverse = rope::Rotation { inverse: true, ..table.rotation(tokens, d)? };
        bw.launch(&launch(dtype, &inverse, &parts, parts.len()))?;
        gradients.into_iter().try_for_each(|(x, dx, ..)| bw.add_grad(x, dx))
    }))
}

/// Splits x `[S, (heads + 2 · kv_heads) · D]`, a fused product, into queries `[S, heads, D]`, keys and values `[S,
/// kv_heads, D]`, and rotates queries and keys as [`apply_rotary`] does, in one launch.
///
/// # Errors
/// The number of columns is not a multiple of `heads + 2 · kv_heads`; the table has another shape; out of memory.
pub fn split_and_rotate(
    cx: &Cx,
    x: &Tensor,
    [heads, kv_heads]: [usize; 2],
    table: &RotaryTable,
) -> Result<[Tensor; 3]> {
    let _op = in_op("split_and_rotate");
    const OP: &str = "split_and_rotate";
    let (tokens, cols) = rows_cols(OP, "x", x)?;
    let all_heads = heads + 2 * kv_heads;
    let d = cols / all_heads.max(1);
    if all_heads * d != cols {
        let shape = format_shape(x.shape());
        return Err(shape_error(
            OP,
            format!("x has shape {shape}, whose columns are not a multiple of {all_heads} heads"),
        ));
    }
    let (rotation, dtype, all) = (table.rotation(tokens, d)?, x.dtype(), size(OP, cols)?);
    // The first head of each part, and its number of heads.
    let places = [(0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads)];
    size(OP, all_heads)?;
    let part = move |fused: &Tensor, i: usize| {
        let (first, heads) = places[i];
        (fused.addr().offset(first * d * dtype.size()), (heads * d) as u32, heads as u32)
    };
    let empty = |heads: usize| cx.empty(&[tokens, heads, d], dtype);
    let outputs = [empty(heads)?, empty(kv_heads)?, empty(kv_heads)?];
    let parts = outputs.iter().enumerate().map(|(i, y)| {
        let (columns, width, heads) = part(x, i);
        rope::RopeTensor { x: columns, x_stride: all, y: y.addr(), y_stride: width, heads }
    });
    cx.launch(&launch(dtype, &rotation, &parts.collect::<Vec<_>>(), 2))?;
    let (to_x, table) = (x.meta().clone(), table.clone());
    Ok(cx.record_all(OP, &[x], outputs, move |bw| {
        let (dys, dx) = (bw.take_dys(), bw.empty_like(&to_x)?);
        // A part of the output that no op used has no gradient.
        if dys.iter().any(Option::is_none) {
            fill_zero(&dx)?;
        }
        let given = dys.iter().enumerate().filter_map(|(i, dy)| Some((i, dy.as_ref()?)));
        let parts = given.map(|(i, dy)| {
            let (columns, width, heads) = part(&dx, i);
            rope::RopeTensor { x: dy.addr(), x_stride: width, y: columns, y_stride: all, heads }
        });
        let parts: Vec<rope::RopeTensor> = parts.collect();
        let rotated = dys.iter().take(2).flatten().count();
        let inverse = rope::Rotation { inverse: true, ..table.rotation(tokens, d)? };
        bw.launch(&launch(dtype, &inverse, &parts, rotated))?;
        bw.add_grad(&to_x, dx)
    }))
}
