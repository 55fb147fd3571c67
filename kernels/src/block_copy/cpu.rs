//! Block copies on device `cpu`: each task copies one block of one cache.
#![allow(unsafe_code)]

use reel_device::Team;
use reel_device::launch::view::{OutputArray, slice_at};

use super::Params;

/// # Safety
/// The addresses cover the shapes that [`Params`] documents. Destination blocks are all different, and none is a
/// source.
pub unsafe fn copy(p: &Params, team: &Team) {
    let [count, units, copied] = [p.count, p.units, p.copied].map(|size| size as usize);
    // SAFETY: `pairs` covers `count` pairs.
    let pairs = unsafe { slice_at::<[i32; 2]>(p.pairs, count) };
    let blocks = pairs.iter().flatten().map(|&b| b as usize + 1).max().unwrap_or(0);
    team.run(2 * count, |task| {
        let cache = if task % 2 == 0 { p.k_cache } else { p.v_cache };
        let [from, to] = pairs[task / 2].map(|b| b as usize * units);
        // SAFETY: both caches cover the copied blocks, and no written block is part of another pair.
        unsafe {
            let cache = OutputArray::<[u64; 2]>::new(cache, blocks * units);
            cache.part(to, copied).copy_from_slice(cache.part(from, copied));
        }
    });
}
