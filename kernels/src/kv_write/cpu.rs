//! Writes to the KV cache on the CPU: each task writes a few tokens.
#![allow(unsafe_code)]

use super::Params;
use crate::view::{OutputArray, slice_at};
use crate::{Element, Team};

/// Approximate number of elements that one task writes.
const PER_TASK: usize = 1 << 14;

/// Writes the keys and values of all tokens to their slots of the caches.
///
/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents, and no two tokens have the
/// same slot, except negative ones.
pub unsafe fn write<T: Element>(p: &Params, team: &Team) {
    let (tokens, row) = (p.tokens as usize, p.kv_heads as usize * p.head_dim as usize);
    let page = p.page as usize;
    assert!(page.is_power_of_two() && (16..=256).contains(&page), "a page of {page} tokens");
    let cached = p.pages as usize * page * row;
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (k, v, slots) = unsafe {
        (slice_at::<T>(p.k, tokens * row), slice_at::<T>(p.v, tokens * row), slice_at::<i32>(p.slots, tokens))
    };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (k_cache, v_cache) =
        unsafe { (OutputArray::<T>::new(p.k_cache, cached), OutputArray::<T>::new(p.v_cache, cached)) };
    let per_task = (PER_TASK / row.max(1)).max(1);
    team.run(tokens.div_ceil(per_task), |task| {
        for (t, &slot) in slots.iter().enumerate().skip(task * per_task).take(per_task) {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let (from, to) = (t * row, slot * row);
            // SAFETY: slots are all different, so rows do not overlap.
            let (k_to, v_to) = unsafe { (k_cache.part(to, row), v_cache.part(to, row)) };
            k_to.copy_from_slice(&k[from..from + row]);
            v_to.copy_from_slice(&v[from..from + row]);
        }
    });
}
