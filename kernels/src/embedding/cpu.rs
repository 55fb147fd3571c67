//! Forward by tokens; backward by ranges of columns, so that each element of dw has one owner that adds tokens in order.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::view::{Out, slice};
use crate::{Element, Team, simd_fn};

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

simd_fn! {
    fn add_row<T: Element>(dy: &[T], dw: &mut [f32]) {
        for (dy, dw) in dy.iter().zip(dw) {
            *dw += dy.to_f32();
        }
    }
}

/// The row of the table that `id` names.
fn row_of(id: i32, vocab: usize) -> Option<usize> {
    usize::try_from(id).ok().filter(|&id| id < vocab)
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<W: Element, T: Element>(p: &FwdParams, team: &Team) {
    let (tokens, hidden, vocab) = (p.tokens as usize, p.hidden as usize, p.vocab as usize);
    // SAFETY: the caller's promise.
    let (table, ids) = unsafe { (slice::<W>(p.table, vocab * hidden), slice::<i32>(p.ids, tokens)) };
    // SAFETY: the caller's promise.
    let y = unsafe { Out::<T>::new(p.y, tokens * hidden) };
    team.run(tokens.div_ceil(TOKENS), |task| {
        let start = task * TOKENS;
        for (t, &id) in (start..).zip(&ids[start..(start + TOKENS).min(tokens)]) {
            // SAFETY: tokens' rows do not overlap.
            let y = unsafe { y.part(t * hidden, hidden) };
            match row_of(id, vocab) {
                Some(row) => widen_row(&table[row * hidden..][..hidden], y),
                None => y.fill(T::from_f32(0.0)),
            }
        }
    });
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (tokens, hidden, vocab) = (p.tokens as usize, p.hidden as usize, p.vocab as usize);
    // SAFETY: the caller's promise.
    let (ids, dy) = unsafe { (slice::<i32>(p.ids, tokens), slice::<T>(p.dy, tokens * hidden)) };
    // SAFETY: the caller's promise.
    let dw = unsafe { Out::<f32>::new(p.dw, vocab * hidden) };
    team.run(hidden.div_ceil(COLUMNS), |task| {
        let (start, len) = (task * COLUMNS, COLUMNS.min(hidden - task * COLUMNS));
        for (t, &id) in ids.iter().enumerate() {
            if let Some(row) = row_of(id, vocab) {
                // SAFETY: the column ranges of two tasks do not overlap.
                add_row(&dy[t * hidden + start..][..len], unsafe { dw.part(row * hidden + start, len) });
            }
        }
    });
}
