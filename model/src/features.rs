//! A cache of vision tokens, keyed by the content of images and videos: a frozen vision tower runs only once per
//! video, even if several requests or training steps use the video.
//!
//! Entries are kept in host memory, so the device memory of a step does not depend on earlier steps. The least
//! recently used entry is evicted first. [`QwenVl::vision_tokens`](crate::qwen_vl::QwenVl::vision_tokens)
//! reads and fills the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reel_device::{DType, Device, MemoryCategory};
use reel_runtime::Tensor;

use crate::error::Result;
use crate::vision::VisionTokens;

/// The vision tokens of one sequence's images and videos, in host memory.
#[derive(Debug)]
pub(crate) struct VisionFeatures {
    /// The embeddings and the DeepStack features, `[M, H]` each.
    parts: Vec<Vec<u8>>,
    /// M and H.
    shape: [usize; 2],
    dtype: DType,
}

impl VisionFeatures {
    /// Copies vision tokens from the device to host memory.
    pub(crate) fn copy_to_host(tokens: &VisionTokens) -> Result<VisionFeatures> {
        let embeddings = &tokens.embeddings;
        let rows = embeddings.shape().first().copied().unwrap_or(0);
        let shape = [rows, embeddings.count() / rows.max(1)];
        let parts = [embeddings].into_iter().chain(&tokens.deepstack);
        let parts = parts.map(Tensor::read_bytes).collect::<reel_runtime::Result<_>>()?;
        Ok(VisionFeatures { parts, shape, dtype: embeddings.dtype() })
    }

    /// Copies the vision tokens of several sequences, of the same model and dtype, to the device and concatenates them:
    /// each tensor has the shape `[ΣM, H]`.
    pub(crate) fn concatenate_on_device(device: &Device, features: &[Arc<VisionFeatures>]) -> Result<VisionTokens> {
        let (width, dtype) = features.first().map_or((0, DType::F32), |f| (f.shape[1], f.dtype));
        let rows = features.iter().map(|f| f.shape[0]).sum();
        let put = |bytes: &[u8]| Tensor::from_slice(device, &[rows, width], dtype, bytes, MemoryCategory::Activations);
        let part = |i: usize| match features {
            [one] => put(&one.parts[i]),
            all => put(&all.iter().flat_map(|f| &f.parts[i]).copied().collect::<Vec<u8>>()),
        };
        let deepstack = 1..features.first().map_or(1, |f| f.parts.len());
        Ok(VisionTokens { embeddings: part(0)?, deepstack: deepstack.map(part).collect::<reel_runtime::Result<_>>()? })
    }

    fn byte_count(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }
}

/// The cache of one vision tower's tokens.
#[derive(Debug)]
pub struct FeatureCache {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Maps the hash of a sequence's media to its vision tokens and the value of `now` at their last use.
    entries: HashMap<u128, (Arc<VisionFeatures>, u64)>,
    bytes: usize,
    /// Counts the calls of `get` and `insert`; serves as the clock for the last use.
    now: u64,
}

impl FeatureCache {
    /// An empty cache that holds at most `max_bytes` of vision tokens.
    pub fn new(max_bytes: usize) -> FeatureCache {
        FeatureCache { max_bytes, state: Mutex::default() }
    }

    /// Creates an empty cache with the same maximum size.
    pub(crate) fn empty_copy(&self) -> FeatureCache {
        FeatureCache::new(self.max_bytes)
    }

    pub(crate) fn get(&self, key: u128) -> Option<Arc<VisionFeatures>> {
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        let (features, used) = state.entries.get_mut(&key)?;
        *used = now;
        Some(features.clone())
    }

    /// Adds an entry, then evicts the least recently used ones until all fit into `max_bytes`. An entry larger than
    /// `max_bytes` is not added.
    pub(crate) fn insert(&self, key: u128, features: &Arc<VisionFeatures>) {
        let mut state = self.lock();
        if features.byte_count() > self.max_bytes {
            return;
        }
        state.now += 1;
        let now = state.now;
        let replaced = state.entries.insert(key, (features.clone(), now)).map_or(0, |(old, _)| old.byte_count());
        state.bytes = state.bytes + features.byte_count() - replaced;
        while state.bytes > self.max_bytes {
            let Some(oldest) = state.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key) else {
                break;
            };
            state.bytes -= state.entries.remove(&oldest).map_or(0, |(old, _)| old.byte_count());
        }
    }

    /// Removes all entries, because the weights of the vision tower have changed.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.entries.clear();
        state.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After every operation, the cache has the same entries as a reference list sorted by last use, and at most
        /// `max_bytes` bytes.
        #[test]
        fn evicts_the_least_recently_used(uses in prop::collection::vec((0u128..8, 1usize..6), 1..60), max_bytes in 1usize..16) {
            let cache = FeatureCache::new(max_bytes);
            let features = |n: usize| Arc::new(VisionFeatures { parts: vec![vec![n as u8; n]], shape: [n, 1], dtype: DType::U8 });
            // The reference list: pairs of key and size in bytes, the most recently used last.
            let mut model: Vec<(u128, usize)> = Vec::new();
            for (key, n) in uses {
                let known = model.iter().position(|entry| entry.0 == key).map(|at| model.remove(at));
                let got = cache.get(key);
                prop_assert_eq!(got.as_ref().map(|features| features.byte_count()), known.map(|entry| entry.1));
                if let Some(entry) = known {
                    model.push(entry);
                    continue;
                }
                cache.insert(key, &features(n));
                if n <= max_bytes {
                    model.push((key, n));
                }
                while model.iter().map(|entry| entry.1).sum::<usize>() > max_bytes {
                    model.remove(0);
                }
                let state = cache.lock();
                prop_assert_eq!(state.bytes, state.entries.values().map(|(features, _)| features.byte_count()).sum::<usize>());
                prop_assert!(state.bytes <= max_bytes && state.entries.len() == model.len());
            }
        }
    }
}
