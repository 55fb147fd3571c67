//! LoRA adapters for a batch in which each row may have a different adapter, see [`reel_kernels::lora_rows`].

use reel_device::{Addr, DType};
use reel_kernels::lora_rows::{self, Params};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// The LoRA matrices of `A` adapters for one weight `[N, K]`. Adapters of a rank below R are padded with zeros.
#[derive(Clone, Debug)]
pub struct LoraStack {
    /// The A matrices of all adapters, `[A, R, K]`.
    pub down: Tensor,
    /// The B matrices of all adapters, `[A, N, R]`.
    pub up: Tensor,
    /// f32 `[A]`: the factor of each adapter; 0 for an adapter that does not adapt this weight.
    pub scale: Tensor,
}

/// The adapters of the rows of a product.
#[derive(Clone, Copy, Debug)]
pub struct RowAdapters<'a> {
    /// The matrices of all adapters.
    pub stack: &'a LoraStack,
    /// i32 `[M]`: the number of each row's adapter in the stack; -1 for a row without an adapter.
    pub numbers: &'a Tensor,
}

/// Adds the output of each row's adapter to y in place: `y[i] += scale[a] · (x[i] · down[a]ᵀ) · up[a]ᵀ` with x `[M, K]`
/// and y `[M, N]`. y must not be recorded on the tape.
pub(super) fn add_row_adapters(cx: &Cx, x: &Tensor, adapters: RowAdapters, y: &Tensor) -> Result<()> {
    const OP: &str = "row adapters";
    let RowAdapters { stack: LoraStack { down, up, scale }, numbers } = adapters;
    let ((m, k), (_, n)) = (rows_cols(OP, "x", x)?, rows_cols(OP, "y", y)?);
    let &[count, rank, _] = down.shape() else {
        let what = format!("down has shape {}, expected [adapters, rank, {k}]", format_shape(down.shape()));
        return Err(shape_error(OP, what));
    };
    want_shape(OP, "down", down, &[count, rank, k], "the rank by the last dimension of x for each adapter")?;
    want_shape(OP, "up", up, &[count, n, rank], "the last dimension of y by the rank for each adapter")?;
    want_shape(OP, "scale", scale, &[count], "one factor for each adapter")?;
    want_shape(OP, "numbers", numbers, &[m], "one adapter number for each row")?;
    want_dtype(OP, "numbers", numbers, DType::I32)?;
    [down, up].iter().try_for_each(|matrix| want_dtype(OP, "an adapter", matrix, x.dtype()))?;
    let thin = cx.empty(&[m, rank], x.dtype())?;
    let through_down = Params {
        x: x.addr(),
        w: down.addr(),
        adapter: numbers.addr(),
        scale: scale.addr(),
        y: thin.addr(),
        m: size(OP, m)?,
        n: size(OP, rank)?,
        k: size(OP, k)?,
        adapters: size(OP, count)?,
    };
    cx.launch(&lora_rows::down(x.dtype(), &through_down))?;
    let (n, k) = (size(OP, n)?, through_down.n);
    let through_up = Params { x: thin.addr(), w: up.addr(), scale: Addr::NULL, y: y.addr(), n, k, ..through_down };
    cx.launch(&lora_rows::up(x.dtype(), &through_up))
}
