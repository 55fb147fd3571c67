//! Rotation and writes to the KV cache on the CPU: each task takes a few tokens.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team};

use super::Params;
use crate::rope::cpu::rotate;

/// Approximate number of elements that one task moves.
const PER_TASK: usize = 1 << 13;

/// Rotates all queries in place, and writes the rotated keys and the values of all tokens to their slots of the caches.
///
/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype, and no two tokens have the same slot,
/// except negative ones.
pub unsafe fn write<T: Element>(p: &Params, team: &Team) {
    let (tokens, d, half) = (p.tokens as usize, p.head_dim as usize, p.head_dim as usize / 2);
    let (query, row) = (p.heads as usize * d, p.kv_heads as usize * d);
    let page_tokens = p.page_tokens as usize;
    assert!(
        page_tokens.is_power_of_two() && (16..=256).contains(&page_tokens),
        "a page of the KV cache has {page_tokens} tokens; the number must be a power of two from 16 to 256"
    );
    let cached = p.pages as usize * page_tokens * row;
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (k, v, slots) = unsafe {
        (slice_at::<T>(p.k, tokens * row), slice_at::<T>(p.v, tokens * row), slice_at::<i32>(p.slots, tokens))
    };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (cos, sin) = unsafe { (slice_at::<f32>(p.cos, tokens * half), slice_at::<f32>(p.sin, tokens * half)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (q, k_cache, v_cache) = unsafe {
        (
            OutputArray::<T>::new(p.q, tokens * query),
            OutputArray::<T>::new(p.k_cache, cached),
            OutputArray::<T>::new(p.v_cache, cached),
        )
    };
    if half == 0 {
        return;
    }
    let per_task = (PER_TASK / (query + 2 * row).max(1)).max(1);
    team.run(tokens.div_ceil(per_task), |task| {
        for (t, &slot) in slots.iter().enumerate().skip(task * per_task).take(per_task) {
            let (cos, sin) = (&cos[t * half..(t + 1) * half], &sin[t * half..(t + 1) * half]);
            // SAFETY: tokens do not overlap.
            rotate(unsafe { q.part(t * query, query) }, cos, sin, 1.0);
            let Ok(slot) = usize::try_from(slot) else { continue };
            // SAFETY: slots are all different, so rows do not overlap.
            let (k_to, v_to) = unsafe { (k_cache.part(slot * row, row), v_cache.part(slot * row, row)) };
            k_to.copy_from_slice(&k[t * row..(t + 1) * row]);
            rotate(k_to, cos, sin, 1.0);
            v_to.copy_from_slice(&v[t * row..(t + 1) * row]);
        }
    });
}
