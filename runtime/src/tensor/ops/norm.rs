//! RMSNorm: alone, fused with the residual connection around it, and fused with the merging of patches.
//!
//! [`rms_norm`] is the plain norm. [`rms_norm_add`] and [`rms_norm_branch`] return the residual together with its
//! norm, so the backward pass adds the gradients of both in one launch. [`patch_merge`] is the norm at the end of the
//! vision tower.

use bytemuck::Zeroable;
use reel_device::{Addr, DType, MemoryCategory, in_op};
use reel_kernels::{patch_merge as merge_kernel, rms_norm as kernel};

use super::{rows_cols, size, want_alike, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::tape::BackwardContext;

/// Where the backward launch writes the gradient of a weight; null if the weight is not trained.
struct WeightGradient {
    /// The address of the gradient buffer.
    dw: Addr,
    /// The workspace for partial sums.
    partial: Addr,
    /// Whether the launch adds to what the buffer holds.
    accumulate: u32,
    /// Keeps the workspace allocated.
    _workspace: Option<Tensor>,
}

/// The checked sizes of a norm: x has `rows` rows of `cols` elements.
#[derive(Clone, Copy)]
struct Sizes {
    n_rows: usize,
    n_cols: usize,
    rows: u32,
    cols: u32,
    eps: f32,
}

impl Sizes {
    fn new(op: &'static str, x: &Tensor, w: &Tensor, eps: f32) -> Result<Sizes> {
        let (n_rows, n_cols) = rows_cols(op, "x", x)?;
        want_shape(op, "weight", w, &[n_cols], "the last dimension of x; check that the right shard was loaded")?;
        want_dtype(op, "weight", w, x.dtype())?;
        Ok(Sizes { n_rows, n_cols, rows: size(op, n_rows)?, cols: size(op, n_cols)?, eps })
    }

    /// Allocates memory for `1 / rms` of each row, f32 `[rows]`, if the backward rule needs it.
    fn rstd(&self, cx: &Cx, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let wants = cx.is_training() && inputs.iter().any(|t| t.needs_grad());
        if wants { cx.empty(&[self.n_rows], DType::F32).map(Some) } else { Ok(None) }
    }

    /// Returns where the backward launch writes the gradient of the weight; null if the weight is not trained.
    fn dw(&self, bw: &mut BackwardContext, w: &Tensor) -> Result<WeightGradient> {
        let Some((dw, adds)) = bw.parameter_grad_over_rows(w, self.n_rows)? else {
            return Ok(WeightGradient { dw: Addr::NULL, partial: Addr::NULL, accumulate: 0, _workspace: None });
        };
        let shape = [kernel::row_block_count(self.n_rows), self.n_cols];
        let workspace = bw.empty(&shape, DType::F32, MemoryCategory::Workspace)?;
        Ok(WeightGradient {
            dw: dw.addr(),
            partial: workspace.addr(),
            accumulate: u32::from(adds),
            _workspace: Some(workspace),
        })
    }

    fn forward(&self, cx: &Cx, x: &Tensor, w: &Tensor, y: &Tensor, rstd: &Option<Tensor>) -> Result<()> {
        let Sizes { rows, cols, eps, .. } = *self;
        let (x_at, w, y, rstd) = (x.addr(), w.addr(), y.addr(), addr(rstd));
        let p = kernel::FwdParams { x: x_at, w, y, rstd, rows, cols, eps, ..Zeroable::zeroed() };
        cx.launch(&kernel::fwd(x.dtype(), &p))
    }

    /// The gradient of the norm's input `x`, from `dy`, the gradient of the norm's output, and `d_x`, the gradient
    /// that x has from other uses. At least one of `dy` and `d_x` is present.
    fn backward(
        &self,
        bw: &mut BackwardContext,
        (x, w, rstd): (&Tensor, &Tensor, &Tensor),
        dy: Option<Tensor>,
        d_x: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let Some(dy) = dy else {
            // No gradient reached the norm's output. This call gives the weight a gradient buffer anyway, so its
            // gradient is 0 instead of missing.
            bw.parameter_grad(w)?;
            return Ok(d_x);
        };
        let Sizes { rows, cols, .. } = *self;
        let own = self.dw(bw, w)?;
        let WeightGradient { dw, partial, accumulate, .. } = own;
        let (x_at, w, rstd, dy) = (x.addr(), w.addr(), rstd.addr(), dy.addr());
        let d_sum = addr(&d_x);
        // `dx` reuses the memory of `d_x` if nothing else uses it.
        let dx = match d_x {
            Some(d_x) if !d_x.is_shared() => d_x,
            _ => bw.empty_like(x)?,
        };
        let p = kernel::BwdParams {
            x: x_at,
            w,
            rstd,
            dy,
            d_sum,
            dx: dx.addr(),
            dw,
            partial,
            rows,
            cols,
            accumulate,
            reserved: 0,
        };
        bw.launch(&kernel::bwd(x.dtype(), &p))?;
        Ok(Some(dx))
    }
}

fn addr(t: &Option<Tensor>) -> Addr {
    t.as_ref().map_or(Addr::NULL, Tensor::addr)
}

/// `x * rsqrt(mean(x²) + eps) * w` over the last dimension: x `[.., H]`, w `[H]` of x's dtype.
pub fn rms_norm(cx: &Cx, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let _op = in_op("rms_norm");
    const OP: &str = "rms_norm";
    let sizes = Sizes::new(OP, x, w, eps)?;
    let y = cx.empty(x.shape(), x.dtype())?;
    let rstd = sizes.rstd(cx, &[x, w])?;
    sizes.forward(cx, x, w, &y, &rstd)?;
    let (kx, kw) = (x.clone(), w.clone());
    let y = cx.record(OP, &[x, w], y, move |bw| {
        let dy = bw.take_dy();
        let Some(rstd) = &rstd else { return Ok(()) };
        match sizes.backward(bw, (&kx, &kw, rstd), Some(dy), None)? {
            Some(dx) => bw.add_grad(&kx, dx),
            None => Ok(()),
        }
    });
    Ok(recompute_norm_if_selective(cx, y, x, w, eps))
}

/// Returns the sum of x and the residual together with its norm: `(s, rms_norm(s, w))` with `s = x + residual`. s and
/// its norm have the shape and dtype of x. s is rounded to this dtype before it is normalised, so [`super::add`]
/// followed by [`rms_norm`] gives the same bits. The gradient of s is rounded once, after the gradients of both
/// results are added.
pub fn rms_norm_add(cx: &Cx, x: &Tensor, residual: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let _op = in_op("rms_norm_add");
    const OP: &str = "rms_norm_add";
    let sizes = Sizes::new(OP, x, w, eps)?;
    want_alike(OP, ("x", "residual"), x, residual)?;
    let (sum, y) = (cx.empty(x.shape(), x.dtype())?, cx.empty(x.shape(), x.dtype())?);
    let rstd = sizes.rstd(cx, &[x, residual, w])?;
    let p = kernel::FwdParams {
        x: x.addr(),
        residual: residual.addr(),
        w: w.addr(),
        sum: sum.addr(),
        y: y.addr(),
        rstd: addr(&rstd),
        rows: sizes.rows,
        cols: sizes.cols,
        eps,
        ..Zeroable::zeroed()
    };
    cx.launch(&kernel::fwd(x.dtype(), &p))?;
    let (to_x, to_residual, kw, ks) = (x.meta().clone(), residual.meta().clone(), w.clone(), sum.clone());
    let (sum, y) = cx.record_pair(OP, &[x, residual, w], (sum, y), move |bw| {
        let (d_sum, dy) = bw.take_dy_pair();
        let Some(rstd) = &rstd else { return Ok(()) };
        let Some(dx) = sizes.backward(bw, (&ks, &kw, rstd), dy, d_sum)? else { return Ok(()) };
        bw.add_grad(&to_x, dx.clone())?;
        bw.add_grad(&to_residual, dx)
    });
    let y = recompute_norm_if_selective(cx, y, &sum, w, eps);
    Ok((sum, y))
}

/// Returns the residual and its norm, `(x, rms_norm(x, w))`. The first result is x in the same memory. Unlike with
/// [`rms_norm`], the backward kernel of the norm also adds the gradients of both results, which saves a launch.
pub fn rms_norm_branch(cx: &Cx, x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let _op = in_op("rms_norm_branch");
    const OP: &str = "rms_norm_branch";
    let sizes = Sizes::new(OP, x, w, eps)?;
    let y = cx.empty(x.shape(), x.dtype())?;
    let rstd = sizes.rstd(cx, &[x, w])?;
    sizes.forward(cx, x, w, &y, &rstd)?;
    let (kx, kw) = (x.clone(), w.clone());
    let (branch, y) = cx.record_pair(OP, &[x, w], (x.detach(), y), move |bw| {
        let (d_x, dy) = bw.take_dy_pair();
        let Some(rstd) = &rstd else { return Ok(()) };
        match sizes.backward(bw, (&kx, &kw, rstd), dy, d_x)? {
            Some(dx) => bw.add_grad(&kx, dx),
            None => Ok(()),
        }
    });
    Ok((branch, recompute_norm_if_selective(cx, y, x, w, eps)))
}

/// Lets backward rules compute `y`, the norm of x, again instead of keeping it. The backward rule of the norm keeps x
/// for this purpose.
fn recompute_norm_if_selective(cx: &Cx, y: Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Tensor {
    let (x, w) = (x.clone(), w.clone());
    cx.recompute_if_selective("rms_norm", y, move |cx| rms_norm(cx, &x, &w, eps))
}

/// Patch merging: undoes the window order of x `[N, C]`, applies [`rms_norm`] to each patch, and concatenates each
/// square of `group_size` neighbouring patches: `[N / group_size, group_size · C]` in processor order. `index` (i32
/// `[N]`, a permutation) gives for each patch in processor order its row in x; the patches of one square are
/// consecutive.
pub fn patch_merge(cx: &Cx, x: &Tensor, index: &Tensor, w: &Tensor, eps: f32, group_size: usize) -> Result<Tensor> {
    let _op = in_op("patch_merge");
    const OP: &str = "patch_merge";
    let sizes = Sizes::new(OP, x, w, eps)?;
    let Sizes { rows, cols, n_rows, n_cols, .. } = sizes;
    want_dtype(OP, "index", index, DType::I32)?;
    want_shape(OP, "index", index, &[n_rows], "one index for each row of x")?;
    if group_size == 0 || !n_rows.is_multiple_of(group_size) {
        return Err(shape_error(
            OP,
            format!("x has {n_rows} rows; expected a multiple of {group_size}, the number of patches per square"),
        ));
    }
    let y = cx.empty(&[n_rows / group_size, group_size * n_cols], x.dtype())?;
    let rstd = sizes.rstd(cx, &[x, w])?;
    let p = merge_kernel::FwdParams {
        x: x.addr(),
        index: index.addr(),
        w: w.addr(),
        y: y.addr(),
        rstd: addr(&rstd),
        rows,
        cols,
        eps,
        reserved: 0,
    };
    cx.launch(&merge_kernel::fwd(x.dtype(), &p))?;
    let (kx, kw, index) = (x.clone(), w.clone(), index.clone());
    Ok(cx.record(OP, &[x, w], y, move |bw| {
        let dy = bw.take_dy();
        let Some(rstd) = &rstd else { return Ok(()) };
        let dx = bw.empty_like(&kx)?;
        let own = sizes.dw(bw, &kw)?;
        let WeightGradient { dw, partial, accumulate, .. } = own;
        let p = merge_kernel::BwdParams {
            x: kx.addr(),
            index: index.addr(),
            w: kw.addr(),
            rstd: rstd.addr(),
            dy: dy.addr(),
            dx: dx.addr(),
            dw,
            partial,
            rows,
            cols,
            accumulate,
            reserved: 0,
        };
        bw.launch(&merge_kernel::bwd(kx.dtype(), &p))?;
        bw.add_grad(&kx, dx)
    }))
}
