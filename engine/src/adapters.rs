//! The LoRA adapters that the requests of a batch can name. The prefill of a prompt uses a model with the prompt's
//! adapter; a decode step computes all rows together, each with its own adapter.

use std::collections::BTreeSet;
use std::sync::Arc;

use reel_model::qwen_vl::QwenVl;
use reel_model::text::TextDecoder;
use reel_runtime::Cx;

use crate::error::Result;

/// The id of a loaded adapter. An id is never used again, so the prefix cache does not mix up two adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub(crate) u64);

impl AdapterId {
    /// Returns the id as a number. Engines that load the same adapters in the same order give them the same numbers.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// Makes the id from a number that [`AdapterId::as_u64`] has returned.
    pub fn from_u64(number: u64) -> AdapterId {
        AdapterId(number)
    }
}

#[derive(Clone, Debug)]
struct LoadedAdapter {
    id: AdapterId,
    /// The engine's base model with this adapter attached.
    model: Arc<QwenVl>,
    /// Whether new requests can name the adapter. An unavailable adapter stays loaded until no sequence uses it.
    is_available: bool,
}

/// The adapters that are loaded in an engine. A decode step identifies an adapter by its index in this list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adapters {
    loaded: Vec<LoadedAdapter>,
    last_id: u64,
}

impl Adapters {
    /// Whether new requests can name the adapter.
    pub(crate) fn is_available(&self, id: AdapterId) -> bool {
        self.loaded.iter().any(|adapter| adapter.id == id && adapter.is_available)
    }

    /// The model that computes prompts with this adapter.
    pub(crate) fn model(&self, id: AdapterId) -> Option<Arc<QwenVl>> {
        self.loaded.iter().find(|adapter| adapter.id == id).map(|adapter| adapter.model.clone())
    }

    /// The adapter's index in the list of loaded adapters, by which decode steps identify it; -1 without an adapter.
    pub(crate) fn index_or_minus_one(&self, id: Option<AdapterId>) -> i32 {
        let position = |id| self.loaded.iter().position(|adapter| adapter.id == id);
        id.and_then(position).map_or(-1, |number| number as i32)
    }

    /// Returns a new list that also has an adapter whose model is `model`, and the new adapter's id. Adapters that
    /// are neither available nor in use are left out of the list.
    pub(crate) fn with_new_adapter(&self, model: QwenVl, in_use: &BTreeSet<AdapterId>) -> (Adapters, AdapterId) {
        let mut adapters = self.without_unused(in_use);
        adapters.last_id += 1;
        let id = AdapterId(adapters.last_id);
        adapters.loaded.push(LoadedAdapter { id, model: Arc::new(model), is_available: true });
        (adapters, id)
    }

    /// Makes an adapter unavailable for new requests.
    pub(crate) fn make_unavailable(&mut self, id: AdapterId) {
        for adapter in self.loaded.iter_mut().filter(|adapter| adapter.id == id) {
            adapter.is_available = false;
        }
    }

    /// Returns the list without the adapters that are neither available nor in use.
    pub(crate) fn without_unused(&self, in_use: &BTreeSet<AdapterId>) -> Adapters {
        let mut adapters = self.clone();
        adapters.loaded.retain(|adapter| adapter.is_available || in_use.contains(&adapter.id));
        adapters
    }

    pub(crate) fn len(&self) -> usize {
        self.loaded.len()
    }

    /// Returns the same adapters attached to `base`, a model with other weights of the same architecture.
    pub(crate) fn attached_to(&self, base: &QwenVl) -> Adapters {
        let mut adapters = self.clone();
        for adapter in &mut adapters.loaded {
            adapter.model = Arc::new(base.with_adapter_of(&adapter.model));
        }
        adapters
    }

    /// Returns the decoder for decode steps, with all adapters attached. Without adapters, this is the decoder of
    /// `base`.
    pub(crate) fn decoder(&self, base: &QwenVl, cx: &Cx) -> Result<TextDecoder> {
        let models: Vec<&QwenVl> = self.loaded.iter().map(|adapter| &*adapter.model).collect();
        match models[..] {
            [] => Ok(base.text.clone()),
            _ => Ok(base.with_row_adapters(cx.device(), cx.dtype(), &models)?.text),
        }
    }
}
