//! Embedding on the CPU. Forward tasks are groups of tokens. Backward tasks are ranges of columns, so that one task
//! adds all tokens to an element of dw, in order.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{add_to_sums, prefetch};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Addr, Element, Team, simd_fn};

use super::{BwdParams, FwdParams};

/// Tokens of one forward task.
const TOKENS: usize = 8;

/// Columns of one backward task.
const COLUMNS: usize = 256;

simd_fn! {
    fn widen_row<W: Element, T: Element>(row: &[W], y: &mut [T]) {
        for (x, y) in row.iter().zip(y) {
            *y = T::from_f32(x.to_f32());
        }
    }
}

/// Returns the table row of `id`, or `None` if it is outside the vocabulary.
fn row_of(id: i32, vocab: usize) -> Option<usize> {
    usize::try_from(id).ok().filter(|&id| id < vocab)
}

/// Returns the vision index, or an empty slice if the launch has none (null address).
///
/// # Safety
/// The address is null or covers one i32 per token.
unsafe fn vision_index_of<'a>(vision_index: Addr, tokens: usize) -> &'a [i32] {
    // SAFETY: the address is null (then no elements are read) or covers one i32 per token.
    unsafe { slice_at::<i32>(vision_index, if vision_index.is_null() { 0 } else { tokens }) }
}

/// Returns the index of the vision row that replaces token `t`, or `None` if the token takes its table row.
fn vision_row_of(vision_index: &[i32], t: usize) -> Option<usize> {
    vision_index.get(t).and_then(|&vision_row| usize::try_from(vision_row).ok())
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<W: Element, T: Element>(p: &FwdParams, team: &Team) {
    let (tokens, hidden, vocab) = (p.tokens as usize, p.hidden as usize, p.vocab as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (table, ids) = unsafe { (slice_at::<W>(p.table, vocab * hidden), slice_at::<i32>(p.ids, tokens)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let vision_index = unsafe { vision_index_of(p.vision_index, tokens) };
    let placed = if vision_index.is_empty() { 0 } else { p.placed as usize };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (vision, y) =
        unsafe { (slice_at::<T>(p.vision, placed * hidden), OutputArray::<T>::new(p.y, tokens * hidden)) };
    team.run(tokens.div_ceil(TOKENS), |task| {
        let start = task * TOKENS;
        for (t, &id) in (start..).zip(&ids[start..(start + TOKENS).min(tokens)]) {
            prefetch::write_row_ahead(&y, t, hidden);
            // SAFETY: tokens' rows do not overlap.
            let y = unsafe { y.part(t * hidden, hidden) };
            match (vision_row_of(vision_index, t), row_of(id, vocab)) {
                (Some(vision_row), _) if vision_row < placed => {
                    y.copy_from_slice(&vision[vision_row * hidden..][..hidden])
                }
                (None, Some(row)) => widen_row(&table[row * hidden..][..hidden], y),
                _ => y.fill(T::from_f32(0.0)),
            }
        }
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype, and no vision row occurs twice.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (tokens, hidden, vocab) = (p.tokens as usize, p.hidden as usize, p.vocab as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (ids, dy) = unsafe { (slice_at::<i32>(p.ids, tokens), slice_at::<T>(p.dy, tokens * hidden)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let vision_index = unsafe { vision_index_of(p.vision_index, tokens) };
    if !p.dw.is_null() {
        // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
        let dw = unsafe { OutputArray::<f32>::new(p.dw, vocab * hidden) };
        // The tokens that add to dw, each with its row of dw, sorted by row. The tokens of a row keep their order.
        let text = ids.iter().enumerate().filter(|(t, _)| vision_row_of(vision_index, *t).is_none());
        let mut adding: Vec<(usize, usize)> = text.filter_map(|(t, &id)| Some((row_of(id, vocab)?, t))).collect();
        adding.sort_unstable();
        team.run(hidden.div_ceil(COLUMNS), |task| {
            let (start, len) = (task * COLUMNS, COLUMNS.min(hidden - task * COLUMNS));
            let dy_of = |t: usize| &dy[t * hidden + start..][..len];
            for same_row in adding.chunk_by(|a, b| a.0 == b.0) {
                // SAFETY: the column ranges of two tasks do not overlap.
                let dw = unsafe { dw.part(same_row[0].0 * hidden + start, len) };
                if let [(_, t)] = same_row {
                    add_to_sums(dy_of(*t), dw);
                    continue;
                }
                let mut total = [0.0f32; COLUMNS];
                same_row.iter().for_each(|(_, t)| add_to_sums(dy_of(*t), &mut total[..len]));
                add_to_sums(&total[..len], dw);
            }
        });
    }
    if !p.d_vision.is_null() {
        let placed = p.placed as usize;
        // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
        let d_vision = unsafe { OutputArray::<T>::new(p.d_vision, placed * hidden) };
        team.run(tokens.div_ceil(TOKENS), |task| {
            for t in (task * TOKENS..tokens).take(TOKENS) {
                if let Some(vision_row) = vision_row_of(vision_index, t).filter(|&vision_row| vision_row < placed) {
                    // SAFETY: vision rows are unique, so rows do not overlap.
                    let d_vision = unsafe { d_vision.part(vision_row * hidden, hidden) };
                    d_vision.copy_from_slice(&dy[t * hidden..][..hidden]);
                }
            }
        });
    }
}
