//! The residual stream between the halves of a layer: what is added to it waits for the norm that reads the sum, so that both
//! are one pass over memory.

use reel_runtime::{Cx, Tensor, ops};

use crate::error::Result;

/// `x`, or `x + delta` with the sum still to be made; `[S, H]`.
#[derive(Debug)]
pub(crate) struct Residual {
    x: Tensor,
    delta: Option<Tensor>,
}

impl Residual {
    pub(crate) fn new(x: &Tensor) -> Residual {
        Residual { x: x.clone(), delta: None }
    }

    /// `x + delta`, added up when the next norm comes.
    pub(crate) fn sum_of(x: Tensor, delta: Tensor) -> Residual {
        Residual { x, delta: Some(delta) }
    }

    /// S.
    pub(crate) fn rows(&self) -> usize {
        self.x.shape()[0]
    }

    /// The sum as it goes on, and its norm.
    pub(crate) fn norm(self, cx: &Cx, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        Ok(match &self.delta {
            Some(delta) => ops::rms_norm_add(cx, &self.x, delta, weight, eps)?,
            None => ops::rms_norm_branch(cx, &self.x, weight, eps)?,
        })
    }

    /// The norm of a stream that ends here.
    pub(crate) fn last_norm(self, cx: &Cx, weight: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(match &self.delta {
            Some(delta) => ops::rms_norm_add(cx, &self.x, delta, weight, eps)?.1,
            None => ops::rms_norm(cx, &self.x, weight, eps)?,
        })
    }

    /// The sum.
    pub(crate) fn sum(self, cx: &Cx) -> Result<Tensor> {
        Ok(match &self.delta {
            Some(delta) => ops::add(cx, &self.x, delta)?,
            None => self.x,
        })
    }
}
