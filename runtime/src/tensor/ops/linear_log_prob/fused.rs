//! The fused backend: the kernels of `reel_kernels::linear_log_prob`. The forward kernel stores no logits. The
//! backward kernel writes the gradient of the logits for one chunk of vocabulary columns at a time, and two matrix
//! products turn it into the gradients of h and w.

use reel_kernels::{Addr, DType, linear_log_prob as kernel};

use super::super::linear::weight_gradient_launch;
use super::{Head, narrow, parts};
use crate::device::{Kernels, MemoryCategory};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::tape::BackwardContext;

/// Maximum number of rows in one fused launch. With more, even the narrowest chunk of the vocabulary would need more
/// than 64 MiB.
const MAX_ROWS: usize = 1 << 16;

impl Head {
    pub(super) fn fused_forward(&self, cx: &Cx, lp: &Tensor, entropy: Option<&Tensor>, lse: &Tensor) -> Result<()> {
        let dtype = self.h.dtype();
        // The CPU kernel needs no workspace on the device.
        let bytes = match cx.device().kernels() {
            Kernels::Cpu => 0,
            Kernels::Cuda => kernel::workspace_bytes(self.rows.min(MAX_ROWS), self.vocab),
        };
        let workspace = match bytes {
            0 => None,
            bytes => Some(Tensor::empty(cx.device(), &[bytes / 4], DType::F32, MemoryCategory::Workspace)?),
        };
        for (start, n) in parts(self.rows, MAX_ROWS) {
            let p = kernel::FwdParams {
                hidden: self.h.rows(start, n)?.addr(),
                weight: self.w.addr(),
                targets: self.targets.rows(start, n)?.addr(),
                log_prob: lp.rows(start, n)?.addr(),
                entropy: entropy.map_or(Ok(Addr::NULL), |e| e.rows(start, n).map(|e| e.addr()))?,
                lse: lse.rows(start, n)?.addr(),
                workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr),
                rows: n as u32,
                vocab: self.vocab_u,
                width: self.hidden_u,
                inv_temperature: self.inv_temperature,
            };
            cx.launch(&kernel::fwd(dtype, &p))?;
        }
        Ok(())
    }

    pub(super) fn fused_backward(&self, bw: &mut BackwardContext, lse: &Tensor, d_lp: &Tensor) -> Result<()> {
        let dtype = self.h.dtype();
        let dw = self.weight_gradient(bw)?;
        // Chunks are summed in f32: a sum rounded to bf16 after each chunk would lose the small terms of later chunks.
        let dh = match self.h.needs_grad() {
            true => Some(bw.empty(&[self.rows, self.hidden], DType::F32, MemoryCategory::Activations)?),
            false => None,
        };
        let columns = kernel::max_chunk_columns(dtype, self.rows.min(MAX_ROWS), self.vocab);
        let d_logits = bw.empty(&[self.rows.min(MAX_ROWS) * columns], dtype, MemoryCategory::Workspace)?;
        for (start, n) in parts(self.rows, MAX_ROWS) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            for (first, count) in parts(self.vocab, columns) {
                let p = kernel::BwdParams {
                    hidden: at(&self.h)?,
                    weight: self.w.addr(),
                    targets: at(&self.targets)?,
                    lse: at(lse)?,
                    entropy: Addr::NULL,
                    d_log_prob: at(d_lp)?,
                    d_entropy: Addr::NULL,
                    d_logits: d_logits.addr(),
                    rows: n as u32,
                    vocab: self.vocab_u,
                    width: self.hidden_u,
                    first: first as u32,
                    columns: count as u32,
                    inv_temperature: self.inv_temperature,
                };
                bw.launch(&kernel::bwd(dtype, &p))?;
                if let Some(dh) = &dh {
                    let w = self.w.rows(first, count)?;
                    bw.launch(&self.row_gradient(&d_logits, &w, (n, count), &dh.rows(start, n)?, first > 0))?;
                }
                if let Some((dw, adds)) = &dw {
                    let (h, dw, adds) = (self.h.rows(start, n)?, dw.rows(first, count)?, *adds || start > 0);
                    bw.launch(&weight_gradient_launch(&d_logits, &h, [n, count, self.hidden], &dw, adds))?;
                }
            }
        }
        drop(d_logits);
        let Some(dh) = dh else { return Ok(()) };
        if dtype == DType::F32 {
            return bw.add(&self.h, dh);
        }
        let narrowed = bw.empty_like(&self.h)?;
        bw.launch(&narrow(&dh, &narrowed))?;
        bw.add(&self.h, narrowed)
    }
}
