//! `advance` on the CPU. One thread updates all rows, because a row has only a few numbers.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Addr, Team};

use super::Params;

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn advance(p: &Params, _: &Team) {
    let (rows, max_blocks, page_tokens, cols) =
        (p.rows as usize, p.max_blocks as usize, p.page_tokens as usize, p.history_cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let read = |addr: Addr, len: usize| unsafe { slice_at::<i32>(addr, len) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let written = |addr: Addr, len: usize| unsafe { OutputArray::<i32>::new(addr, len) };
    let (chosen, kv_limits, tables) =
        (read(p.chosen, rows), read(p.kv_limits, rows), read(p.block_tables, rows * max_blocks));
    let arrays = [p.ids, p.positions, p.kv_lens, p.slots, p.draws].map(|addr| written(addr, rows));
    // SAFETY: the arrays do not overlap, and this task has all of them.
    let [ids, positions, kv_lens, slots, draws] = arrays.each_ref().map(|a| unsafe { a.part(0, rows) });
    let of_history = [(p.history, rows * cols), (p.history_lens, if cols == 0 { 0 } else { rows })];
    let arrays = of_history.map(|(addr, len)| (written(addr, len), len));
    // SAFETY: as above.
    let [history, lens] = arrays.each_ref().map(|(a, len)| unsafe { a.part(0, *len) });
    for r in 0..rows {
        let (id, keys) = (chosen[r], kv_lens[r]);
        if keys <= 0 {
            continue;
        }
        if let Some(len) = lens.get_mut(r)
            && (0..cols as i32).contains(len)
        {
            history[r * cols + *len as usize] = id;
            *len += 1;
        }
        if id < 0 || keys >= kv_limits[r] {
            (kv_lens[r], slots[r]) = (0, -1);
            continue;
        }
        let key = keys as usize;
        assert!(
            key < max_blocks * page_tokens,
            "row {r} has {key} keys, which exceed {max_blocks} cache blocks of {page_tokens} tokens"
        );
        ids[r] = id;
        positions[r] += 1;
        draws[r] += 1;
        kv_lens[r] = keys + 1;
        slots[r] = tables[r * max_blocks + key / page_tokens] * page_tokens as i32 + (key % page_tokens) as i32;
    }
}
