//! The data that all parts of the engine share: the model, the device, the limits, and the device memory that one call
//! keeps for the next call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reel_model::qwen_vl::QwenVl;
use reel_runtime::{Cx, Tensor};

use crate::error::{Error, Result};
use crate::running_batch::{BatchCapacity, RunningBatch};

/// The model, the device and the limits of an engine.
#[derive(Debug)]
pub(crate) struct EngineContext<'a> {
    /// A clone of the caller's model, which shares its weights until they are replaced by
    /// [`ContinuousBatch::replace_weights`](crate::ContinuousBatch::replace_weights).
    pub(crate) model: Mutex<Arc<QwenVl>>,
    /// The model with packed copies of the weights that are trained. The copies exist from the first call of
    /// [`Engine::generate`](crate::Engine::generate) until [`EngineContext::release_memory`].
    pub(crate) packed_model: Mutex<Option<Arc<QwenVl>>>,
    pub(crate) cx: Cx,
    pub(crate) suppressed: Tensor, // i32 [n]: ids that are never sampled
    pub(crate) interrupt: Option<&'a AtomicBool>,
    pub(crate) max_slots: usize,
    pub(crate) lookahead: usize,
    pub(crate) chunk_tokens: usize,
    /// Whether decode steps are captured as graphs.
    pub(crate) capture: bool,
    /// KV cache, slots and captured graphs of the last call. The next call reuses them if they are large enough.
    pub(crate) batch: Mutex<Option<RunningBatch>>,
}

impl EngineContext<'_> {
    /// Frees the device memory that is kept for the next call: KV cache, slots, captured graphs and packed weights.
    pub(crate) fn release_memory(&self) {
        *self.cached_batch() = None;
        *lock(&self.packed_model) = None;
    }

    /// The model with the present weights.
    pub(crate) fn model(&self) -> Arc<QwenVl> {
        let packed = lock(&self.packed_model).clone();
        packed.unwrap_or_else(|| lock(&self.model).clone())
    }

    /// Replaces the weights for all later steps, and empties the model's cache of vision tokens. Frees the memory
    /// that [`Engine::generate`](crate::Engine::generate) keeps, because its captured graphs use the old weights.
    pub(crate) fn set_model(&self, model: QwenVl) {
        self.release_memory();
        model.features.iter().for_each(|features| features.clear());
        *lock(&self.model) = Arc::new(model);
    }

    /// Returns the KV cache, slots and captured graphs that the last call has left.
    pub(crate) fn cached_batch(&self) -> MutexGuard<'_, Option<RunningBatch>> {
        lock(&self.batch)
    }

    /// Returns an empty running batch with at least the capacity `needed`. Reuses `earlier` if it is large enough.
    pub(crate) fn reuse_or_create_batch(
        &self,
        needed: BatchCapacity,
        earlier: Option<RunningBatch>,
    ) -> Result<RunningBatch> {
        let batch = match earlier {
            Some(batch) if batch.has_capacity_for(&needed) => batch,
            earlier => {
                // Frees the earlier batch before the new one is allocated.
                drop(earlier);
                RunningBatch::new(&self.model(), &self.cx, &self.suppressed, needed, self.capture)?
            }
        };
        batch.clear_slots(0, batch.capacity().slots)?;
        Ok(batch)
    }

    /// The bytes of the keys and values of one KV block in all layers.
    pub(crate) fn kv_block_bytes(&self) -> u64 {
        self.model().text.kv_block_bytes(self.cx.dtype()) as u64
    }

    /// Whether one forward pass may compute several prompts. On a GPU the bits of a matrix product depend on its number
    /// of rows, so the results of a prompt would depend on the other prompts of the pass.
    pub(crate) fn can_pack_prompts(&self) -> bool {
        self.cx.device().capabilities().batch_invariant_products
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        match self.interrupt {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::generation_interrupted()),
            _ => Ok(()),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
