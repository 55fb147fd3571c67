//! What a vision tower that does not change made of pictures and films, kept by their content: the same film costs one pass of the tower,
//! however often it is asked about.
//!
//! Features are kept in the host's memory, so that those of earlier steps take none of the device's: what a step has on the device does not
//! depend on what came before it. The one that was used longest ago goes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reel_runtime::{Category, DType, Device, Tensor};

use crate::error::Result;

/// Vision tokens `[M, H]` on the host.
#[derive(Debug)]
pub(crate) struct VisionFeatures {
    bytes: Vec<u8>,
    shape: [usize; 2],
    dtype: DType,
}

impl VisionFeatures {
    /// `tokens`: `[M, H]`.
    pub(crate) fn of(tokens: &Tensor) -> Result<VisionFeatures> {
        let rows = tokens.shape().first().copied().unwrap_or(0);
        let shape = [rows, tokens.count() / rows.max(1)];
        Ok(VisionFeatures { bytes: tokens.read_bytes()?, shape, dtype: tokens.dtype() })
    }

    /// Those of several media one after the other, `[ΣM, H]` on a device; none where there are none.
    pub(crate) fn join(device: &Device, all: &[Arc<VisionFeatures>]) -> Result<Option<Tensor>> {
        let Some(first) = all.first() else { return Ok(None) };
        let rows = all.iter().map(|kept| kept.shape[0]).sum();
        let put = |bytes: &[u8]| {
            Tensor::from_slice(device, &[rows, first.shape[1]], first.dtype, bytes, Category::Activations)
        };
        Ok(Some(match all {
            [one] => put(&one.bytes)?,
            all => put(&all.iter().flat_map(|kept| &kept.bytes).copied().collect::<Vec<u8>>())?,
        }))
    }
}

/// The store, of one tower.
#[derive(Debug)]
pub struct FeatureCache {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the moment of their last use.
    entries: HashMap<u128, (Arc<VisionFeatures>, u64)>,
    bytes: usize,
    now: u64,
}

impl FeatureCache {
    /// A store of at most so many bytes.
    pub fn new(most: usize) -> FeatureCache {
        FeatureCache { most, state: Mutex::default() }
    }

    pub(crate) fn get(&self, key: u128) -> Option<Arc<VisionFeatures>> {
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        let (kept, used) = state.entries.get_mut(&key)?;
        *used = now;
        Some(kept.clone())
    }

    /// Keeps what fits at all.
    pub(crate) fn put(&self, key: u128, kept: &Arc<VisionFeatures>) {
        let mut state = self.lock();
        if kept.bytes.len() > self.most {
            return;
        }
        state.now += 1;
        let now = state.now;
        let before = state.entries.insert(key, (kept.clone(), now)).map_or(0, |(old, _)| old.bytes.len());
        state.bytes = state.bytes + kept.bytes.len() - before;
        while state.bytes > self.most {
            let Some(oldest) = state.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key) else {
                break;
            };
            state.bytes -= state.entries.remove(&oldest).map_or(0, |(old, _)| old.bytes.len());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never more bytes than allowed; what is there is what was put, and what was used last is there.
        #[test]
        fn the_longest_unused_goes_first(uses in prop::collection::vec((0u128..8, 1usize..6), 1..60), most in 1usize..16) {
            let cache = FeatureCache::new(most);
            let kept = |n: usize| Arc::new(VisionFeatures { bytes: vec![n as u8; n], shape: [n, 1], dtype: DType::U8 });
            // By key, its size; the last used last.
            let mut model: Vec<(u128, usize)> = Vec::new();
            for (key, n) in uses {
                let known = model.iter().position(|entry| entry.0 == key).map(|at| model.remove(at));
                let got = cache.get(key);
                prop_assert_eq!(got.as_ref().map(|kept| kept.bytes.len()), known.map(|entry| entry.1));
                if let Some(entry) = known {
                    model.push(entry);
                    continue;
                }
                cache.put(key, &kept(n));
                if n <= most {
                    model.push((key, n));
                }
                while model.iter().map(|entry| entry.1).sum::<usize>() > most {
                    model.remove(0);
                }
                let state = cache.lock();
                prop_assert_eq!(state.bytes, state.entries.values().map(|(kept, _)| kept.bytes.len()).sum::<usize>());
                prop_assert!(state.bytes <= most && state.entries.len() == model.len());
            }
        }
    }
}
