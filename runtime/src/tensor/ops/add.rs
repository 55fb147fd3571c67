//! Elementwise addition of two tensors.

use reel_device::in_op;
use reel_kernels::elementwise;

use super::want_alike;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// `a + b`, elementwise, for tensors of equal shape and dtype (a residual connection).
pub fn add(cx: &Cx, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _op = in_op("add");
    want_alike("add", ("a", "b"), a, b)?;
    let y = cx.empty(a.shape(), a.dtype())?;
    let params = elementwise::AddParams { a: a.addr(), b: b.addr(), y: y.addr(), count: a.count() as u64 };
    cx.launch(&elementwise::add(a.dtype(), &params))?;
    let (to_a, to_b) = (a.meta().clone(), b.meta().clone());
    Ok(cx.record("add", &[a, b], y, move |bw| {
        let dy = bw.take_dy();
        bw.add_grad(&to_a, dy.clone())?;
        bw.add_grad(&to_b, dy)
    }))
}
