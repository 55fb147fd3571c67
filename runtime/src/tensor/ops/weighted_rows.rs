//! Weighted sums of rows by lists: the position table of Qwen3-VL's vision tower, resampled for the grid of each image.

use reel_device::{Addr, DType, Device, MemoryCategory, in_op};
use reel_kernels::weighted_rows as kernel;

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

const OP: &str = "weighted_rows";

/// Lists of weighted rows of a tensor with `rows_x` rows, in device memory. With a tape also the transposed lists: for
/// each row of the tensor, the lists that use it, in ascending order.
#[derive(Clone, Debug)]
pub struct RowLists {
    lists: Lists,
    transposed: Option<Lists>,
    rows_x: usize,
}

#[derive(Clone, Debug)]
struct Lists {
    offsets: Tensor, // i32 [rows + 1]
    index: Tensor,   // i32 [E]
    weight: Tensor,  // f32 [E]
}

impl Lists {
    fn new(device: &Device, offsets: &[i32], index: &[i32], weight: &[f32]) -> Result<Lists> {
        let weight = Tensor::from_slice(device, &[weight.len()], DType::F32, weight, MemoryCategory::Inputs)?;
        let [offsets, index] = [offsets, index].map(|ids| Tensor::from_i32(device, &[ids.len()], ids));
        Ok(Lists { offsets: offsets?, index: index?, weight })
    }

    fn transposed(device: &Device, offsets: &[i32], index: &[i32], weight: &[f32], rows_x: usize) -> Result<Lists> {
        let mut starts = vec![0i32; rows_x + 1];
        index.iter().for_each(|&row| starts[row as usize + 1] += 1);
        (0..rows_x).for_each(|row| starts[row + 1] += starts[row]);
        let (mut next, mut lists, mut weights) = (starts.clone(), vec![0; index.len()], vec![0.0; index.len()]);
        for (list, ends) in (0i32..).zip(offsets.windows(2)) {
            for entry in ends[0] as usize..ends[1] as usize {
                let to = &mut next[index[entry] as usize];
                lists[*to as usize] = list;
                weights[*to as usize] = weight[entry];
                *to += 1;
            }
        }
        Lists::new(device, &starts, &lists, &weights)
    }

    /// Launches the sums of the rows of x, which has `rows_x` rows of `cols` elements, plus `add` unless it is null.
    fn sum(&self, x: &Tensor, [rows_x, cols]: [usize; 2], add: Addr, y: &Tensor) -> Result<()> {
        let p = kernel::Params {
            x: x.addr(),
            offsets: self.offsets.addr(),
            index: self.index.addr(),
            weight: self.weight.addr(),
            add,
            y: y.addr(),
            rows: size(OP, self.offsets.count() - 1)?,
            cols: size(OP, cols)?,
            rows_x: size(OP, rows_x)?,
            entries: size(OP, self.index.count())?,
        };
        Ok(x.device().launch(&kernel::weighted_rows(x.dtype(), y.dtype(), &p))?)
    }
}

impl RowLists {
    /// Copies lists to the device. List i has the entries `offsets[i] .. offsets[i + 1]`, each with the index of a row
    /// below `rows_x` and a weight.
    ///
    /// # Errors
    /// Offsets that do not ascend from 0 to the number of entries; an index that is not below `rows_x`; another number
    /// of weights than of indices; out of memory.
    pub fn new(cx: &Cx, offsets: &[i32], index: &[i32], weight: &[f32], rows_x: usize) -> Result<RowLists> {
        let end = offsets.last().copied().unwrap_or(-1);
        if offsets.first() != Some(&0) || !offsets.is_sorted() || end as usize != index.len() {
            let text = format!("the offsets do not ascend from 0 to {}, the number of entries", index.len());
            return Err(shape_error(OP, text));
        }
        if let Some(row) = index.iter().find(|&&row| row < 0 || row as usize >= rows_x) {
            return Err(shape_error(OP, format!("an entry has row {row}, but there are {rows_x} rows")));
        }
        if weight.len() != index.len() {
            return Err(shape_error(OP, format!("{} weights for {} entries", weight.len(), index.len())));
        }
        let transposed = || Lists::transposed(cx.device(), offsets, index, weight, rows_x);
        let transposed = if cx.is_training() { Some(transposed()?) } else { None };
        Ok(RowLists { lists: Lists::new(cx.device(), offsets, index, weight)?, transposed, rows_x })
    }
}

/// Sums the rows of x `[P, C]` by lists: row i of the result `[n, C]` is the sum of `weight · x[index]` over the
/// entries of list i, computed in f32 in the order of the list and rounded once to the dtype of activations. With `to`
/// `[n, C]` the result is `to + sum`, with the bits of [`super::add`]. The gradient of x adds the entries of a row in
/// the order of the lists.
///
/// # Errors
/// Shapes that do not match; a gradient of x is needed, but the lists were made without a tape.
pub fn weighted_rows(cx: &Cx, x: &Tensor, lists: &RowLists, to: Option<&Tensor>) -> Result<Tensor> {
    let _op = in_op(OP);
    let (_, cols) = rows_cols(OP, "x", x)?;
    want_shape(OP, "x", x, &[lists.rows_x, cols], "the number of rows of the lists")?;
    let rows = lists.lists.offsets.count() - 1;
    if (x.dtype(), cx.dtype()) == (DType::F32, DType::BF16) {
        return Err(shape_error(OP, "x is f32, but activations are bf16"));
    }
    let y = cx.empty(&[rows, cols], cx.dtype())?;
    if let Some(to) = to {
        want_shape(OP, "to", to, y.shape(), "a row for each list")?;
        want_dtype(OP, "to", to, y.dtype())?;
    }
    if cx.is_training() && x.needs_grad() && lists.transposed.is_none() {
        return Err(shape_error(OP, "x needs a gradient, but its lists were made without a tape"));
    }
    lists.lists.sum(x, [lists.rows_x, cols], to.map_or(Addr::NULL, Tensor::addr), &y)?;
    let inputs: Vec<&Tensor> = [Some(x), to].into_iter().flatten().collect();
    let (to_x, to, transposed) = (x.meta().clone(), to.map(|to| to.meta().clone()), lists.transposed.clone());
    Ok(cx.record(OP, &inputs, y, move |bw| {
        let dy = bw.take_dy();
        if let Some(transposed) = transposed.filter(|_| to_x.needs_grad()) {
            if let Some((sum, adds)) = bw.parameter_grad_to_write(&to_x)? {
                transposed.sum(&dy, [rows, cols], if adds { sum.addr() } else { Addr::NULL }, &sum)?;
            } else {
                let dx = bw.empty_like(&to_x)?;
                transposed.sum(&dy, [rows, cols], Addr::NULL, &dx)?;
                bw.add_grad(&to_x, dx)?;
            }
        }
        to.map_or(Ok(()), |to| bw.add_grad(&to, dy))
    }))
}
