//! The residual stream of a layer, between attention and MLP. The addition `x + delta` is delayed until the next
//! norm, so that one kernel reads both tensors, adds them and normalises the sum.

use reel_runtime::{Cx, Tensor, ops};

use crate::error::Result;

/// The residual `x [S, H]`, or `x + delta` if the sum has not been computed yet.
#[derive(Debug)]
pub(crate) struct Residual {
    x: Tensor,
    delta: Option<Tensor>,
}

impl Residual {
    pub(crate) fn new(x: &Tensor) -> Residual {
        Residual { x: x.clone(), delta: None }
    }

    /// The residual `x + delta`; the next norm computes the sum.
    pub(crate) fn with_delta(x: Tensor, delta: Tensor) -> Residual {
        Residual { x, delta: Some(delta) }
    }

    /// S, the number of rows: one per token or patch.
    pub(crate) fn row_count(&self) -> usize {
        self.x.shape()[0]
    }

    /// Returns the summed residual and its RMSNorm with `weight` `[hidden]`, both `[S, hidden]`.
    pub(crate) fn sum_and_norm(self, cx: &Cx, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        Ok(match &self.delta {
            Some(delta) => ops::rms_norm_add(cx, &self.x, delta, weight, eps)?,
            None => ops::rms_norm_branch(cx, &self.x, weight, eps)?,
        })
    }

    /// Returns only the RMSNorm of the summed residual, `[S, hidden]`: the norm after the last layer.
    pub(crate) fn norm_after_last_layer(self, cx: &Cx, weight: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(match &self.delta {
            Some(delta) => ops::rms_norm_add(cx, &self.x, delta, weight, eps)?.1,
            None => ops::rms_norm(cx, &self.x, weight, eps)?,
        })
    }

    /// Returns the summed residual, `[S, hidden]`.
    pub(crate) fn into_sum(self, cx: &Cx) -> Result<Tensor> {
        Ok(match &self.delta {
            Some(delta) => ops::add(cx, &self.x, delta)?,
            None => self.x,
        })
    }
}
