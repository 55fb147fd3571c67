//! The packed kernel's rows over keys that lie in the blocks of a cache.
#![allow(unsafe_code)]
use super::{BLOCK, Params};
use crate::attention::cpu::row;
use crate::view::{Out, slice};
use crate::{Element, Team};

/// # Safety
/// The addresses cover what [`Params`] says.
pub unsafe fn fwd<T: Element>(p: &Params, team: &Team) {
    let (tokens, heads, kv_heads, d) = (p.tokens as usize, p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
    let (seqs, max_blocks) = (p.seqs as usize, p.max_blocks as usize);
    // SAFETY: the caller's promise.
    let (q, cu, lens, tables) = unsafe {
        (
            slice::<T>(p.q, tokens * heads * d),
            slice::<i32>(p.cu_seqlens, seqs + 1),
            slice::<i32>(p.kv_lens, seqs),
            slice::<i32>(p.block_tables, seqs * max_blocks),
        )
    };
    let blocks = tables.iter().max().map_or(0, |&b| b as usize + 1);
    // SAFETY: the caller's promise.
    let (k, v) = unsafe {
        (slice::<T>(p.k_cache, blocks * BLOCK * kv_heads * d), slice::<T>(p.v_cache, blocks * BLOCK * kv_heads * d))
    };
    // SAFETY: the caller's promise.
    let o = unsafe { Out::<T>::new(p.o, tokens * heads * d) };
    team.run(seqs * heads, |task| {
        let (seq, h) = (task / heads, task % heads);
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        for i in first..end {
            let r = i * heads + h;
            // SAFETY: rows do not overlap.
            let o = unsafe { o.part(r * d, d) };
            let keys = lens[seq] as usize + i + 1 - end;
            let at = |j| {
                let block = tables[seq * max_blocks + j / BLOCK] as usize;
                ((block * BLOCK + j % BLOCK) * kv_heads + h / (heads / kv_heads)) * d
            };
            row(&q[r * d..(r + 1) * d], k, v, at, keys, p.scale, o);
        }
    });
}
