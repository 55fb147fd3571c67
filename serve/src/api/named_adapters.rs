//! The LoRA adapters that requests can name as their model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use reel_engine::AdapterId;

/// An adapter that requests can name.
#[derive(Clone, Debug)]
pub(crate) struct NamedAdapter {
    pub(crate) id: AdapterId,
    /// The folder from which the adapter was loaded.
    pub(crate) folder: PathBuf,
    /// The time at which the adapter was loaded, in seconds since 1970.
    pub(crate) created: u64,
}

/// The adapters by their names.
#[derive(Debug, Default)]
pub(crate) struct AdapterNames(RwLock<BTreeMap<String, NamedAdapter>>);

impl AdapterNames {
    pub(crate) fn get(&self, name: &str) -> Option<NamedAdapter> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All adapters, in the order of their names.
    pub(crate) fn all(&self) -> Vec<(String, NamedAdapter)> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().map(|(name, adapter)| (name.clone(), adapter.clone())).collect()
    }

    pub(crate) fn insert(&self, name: String, adapter: NamedAdapter) -> Option<NamedAdapter> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, adapter)
    }

    pub(crate) fn remove(&self, name: &str) -> Option<NamedAdapter> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}
