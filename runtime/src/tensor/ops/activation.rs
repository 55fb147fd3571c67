//! Activation functions: SwiGLU (decoder and vision tower), GELU (merger of the vision tower), the tanh approximation
//! of GELU (vision tower of Qwen3-VL, SigLIP).

use reel_device::{Addr, DType, Launch, in_op};
use reel_kernels::{gelu as gelu_kernel, swiglu as swiglu_kernel};

use super::want_alike;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// `silu(gate) * up`, elementwise. The result has the shape and dtype of gate and up, which are equal.
pub fn swiglu(cx: &Cx, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _op = in_op("swiglu");
    want_alike("swiglu", ("gate", "up"), gate, up)?;
    let y = cx.empty(gate.shape(), gate.dtype())?;
    let count = gate.count() as u64;
    let (cols, stride) = (count.max(1), count.max(1));
    let params = swiglu_kernel::FwdParams { gate: gate.addr(), up: up.addr(), y: y.addr(), count, cols, stride };
    cx.launch(&swiglu_kernel::fwd(gate.dtype(), &params))?;
    let (kg, ku) = (gate.clone(), up.clone());
    let y = cx.record("swiglu", &[gate, up], y, move |bw| {
        let dy = bw.take_dy();
        let (d_gate, d_up) = (bw.empty_like(&kg)?, bw.empty_like(&ku)?);
        let params = swiglu_kernel::BwdParams {
            gate: kg.addr(),
            up: ku.addr(),
            dy: dy.addr(),
            d_gate: d_gate.addr(),
            d_up: d_up.addr(),
            y: Addr::NULL,
            count,
            cols,
            stride,
        };
        bw.launch(&swiglu_kernel::bwd(kg.dtype(), &params))?;
        bw.add_grad(&kg, d_gate)?;
        bw.add_grad(&ku, d_up)
    });
    let (gate, up) = (gate.clone(), up.clone());
    Ok(cx.recompute_if_selective("swiglu", y, move |cx| swiglu(cx, &gate, &up)))
}

/// Exact GELU, `x Φ(x)`, computed with the error function; elementwise, for x of any shape.
pub fn gelu(cx: &Cx, x: &Tensor) -> Result<Tensor> {
    let _op = in_op("gelu");
    gelu_form("gelu", cx, x, gelu_kernel::fwd, gelu_kernel::bwd)
}

/// The tanh approximation of GELU, `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`; elementwise, for x of any shape.
pub fn gelu_tanh(cx: &Cx, x: &Tensor) -> Result<Tensor> {
    let _op = in_op("gelu_tanh");
    let y = gelu_form("gelu_tanh", cx, x, gelu_kernel::tanh_fwd, gelu_kernel::tanh_bwd)?;
    let x = x.clone();
    Ok(cx.recompute_if_selective("gelu_tanh", y, move |cx| gelu_tanh(cx, &x)))
}

fn gelu_form(
    op: &'static str,
    cx: &Cx,
    x: &Tensor,
    fwd: fn(DType, &gelu_kernel::FwdParams) -> Launch,
    bwd: fn(DType, &gelu_kernel::BwdParams) -> Launch,
) -> Result<Tensor> {
    let y = cx.empty(x.shape(), x.dtype())?;
    let count = x.count() as u64;
    cx.launch(&fwd(x.dtype(), &gelu_kernel::FwdParams { x: x.addr(), y: y.addr(), count }))?;
    let kx = x.clone();
    Ok(cx.record(op, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        let params = gelu_kernel::BwdParams { x: kx.addr(), dy: dy.addr(), dx: dx.addr(), count };
        bw.launch(&bwd(kx.dtype(), &params))?;
        bw.add_grad(&kx, dx)
    }))
}
