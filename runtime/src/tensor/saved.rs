//! Tensors that a backward rule needs: kept in memory since the forward pass, or computed again.
//!
//! ```text
//! forward:   normed = rms_norm(x), with a function that computes it again from x
//!            y = linear(normed)           saves normed: the function, not the memory
//!            drop(normed)                 frees the memory
//! backward:  rule of linear               saved.get(): computes normed again; other rules that saved it share the result
//!            drop(rule)                   the last one frees the memory
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use super::{Tensor, TensorMeta};
use crate::error::Result;

/// A function that computes a tensor again from tensors that are kept.
pub(super) struct Recomputation {
    compute: Box<dyn Fn() -> Result<Tensor> + Send + Sync>,
    /// The result of the first call in this backward pass. It is freed with the last [`SavedTensor`].
    result: Mutex<Option<Tensor>>,
}

impl Recomputation {
    pub(super) fn new(compute: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Recomputation {
        Recomputation { compute: Box::new(compute), result: Mutex::new(None) }
    }

    fn result(&self) -> Result<Tensor> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        match &*result {
            Some(t) => Ok(t.clone()),
            None => Ok(result.insert((self.compute)()?).clone()),
        }
    }
}

impl std::fmt::Debug for Recomputation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recomputation")
    }
}

/// A tensor that a backward rule reads. It holds no memory if the tensor can be computed again.
#[derive(Debug)]
pub struct SavedTensor(Source);

#[derive(Debug)]
enum Source {
    Stored(Tensor),
    Recomputed(TensorMeta, Arc<Recomputation>),
}

impl SavedTensor {
    pub(super) fn from_memory(t: &Tensor) -> SavedTensor {
        SavedTensor(Source::Stored(t.clone()))
    }

    pub(super) fn from_recomputation(meta: &TensorMeta, recomputation: &Arc<Recomputation>) -> SavedTensor {
        SavedTensor(Source::Recomputed(meta.clone(), recomputation.clone()))
    }

    /// Returns the tensor; computes it again if its memory was not kept.
    ///
    /// # Errors
    /// Out of memory, or a launch fails.
    pub fn get(&self) -> Result<Tensor> {
        match &self.0 {
            Source::Stored(t) => Ok(t.clone()),
            Source::Recomputed(meta, recomputation) => Ok(recomputation.result()?.with_meta(meta.clone())),
        }
    }
}
