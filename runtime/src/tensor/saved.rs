//! Tensors that a backward rule needs: kept in memory since the forward pass, or computed again.
//!
//! ```text
//! forward:   normed = rms_norm(x), with a recipe: how to compute it again from x
//!            y = linear(normed)           saves normed: the recipe, not the memory
//!            drop(normed)                 frees the memory
//! backward:  rule of linear               saved.get(): computes normed again; other rules that saved it share the result
//!            drop(rule)                   the last one frees the memory
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use super::{Tensor, TensorMeta};
use crate::error::Result;

/// How to compute a tensor again from tensors that are kept.
pub(super) struct Recipe {
    compute: Box<dyn Fn() -> Result<Tensor> + Send + Sync>,
    /// The result of the first call in this backward pass. It is freed with the last [`Saved`].
    result: Mutex<Option<Tensor>>,
}

impl Recipe {
    pub(super) fn new(compute: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Recipe {
        Recipe { compute: Box::new(compute), result: Mutex::new(None) }
    }

    fn result(&self) -> Result<Tensor> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        match &*result {
            Some(t) => Ok(t.clone()),
            None => Ok(result.insert((self.compute)()?).clone()),
        }
    }
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

/// A tensor that a backward rule reads. It holds no memory if the tensor has a recipe.
#[derive(Debug)]
pub struct Saved(Source);

#[derive(Debug)]
enum Source {
    Kept(Tensor),
    Again(TensorMeta, Arc<Recipe>),
}

impl Saved {
    pub(super) fn kept(t: &Tensor) -> Saved {
        Saved(Source::Kept(t.clone()))
    }

    pub(super) fn again(meta: &TensorMeta, recipe: &Arc<Recipe>) -> Saved {
        Saved(Source::Again(meta.clone(), recipe.clone()))
    }

    /// Returns the tensor; computes it again if its memory was not kept.
    ///
    /// # Errors
    /// Out of memory, or a launch fails.
    pub fn get(&self) -> Result<Tensor> {
        match &self.0 {
            Source::Kept(t) => Ok(t.clone()),
            Source::Again(meta, recipe) => Ok(recipe.result()?.with_meta(meta.clone())),
        }
    }
}
