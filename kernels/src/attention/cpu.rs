//! Tiles of rows and blocks of keys as tasks.
#![allow(unsafe_code)]

mod backward;
mod forward;
mod product;
mod vector;

use super::{BwdParams, FwdParams};
use crate::simd::{Isa, isa};
use crate::view::slice;
use crate::{Element, Team};
use backward::{Deltas, Gradient, Keys, Queries};
pub(crate) use forward::Sequence;
use forward::{Combine, KEYS, Part, State, TILE, Tile, Whole};
use std::cell::RefCell;
use std::ptr::null_mut;
use vector::{LANES, dispatch};

// The paged cache hands out its keys in blocks of the size that rows take them in.
const _: () = assert!(KEYS == crate::paged_attention::BLOCK);

/// A cache line, so that vectors do not straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

thread_local! {
    /// Working memory that a thread keeps from task to task.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with at least `len` elements of this thread's working memory.
fn with_scratch(len: usize, f: impl FnOnce(*mut f32)) {
    SCRATCH.with_borrow_mut(|lines| {
        if lines.len() * LANES < len {
            lines.resize(len.div_ceil(LANES), Line([0.0; LANES]));
        }
        f(lines.as_mut_ptr().cast());
    });
}

/// An address that tasks write through, each at places of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every task adds an offset of its own before it writes.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// `offset` elements further on.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Runs the rows of `seqs` sequences as `sequence(index, key head)` describes them.
///
/// # Safety
/// The machine has `isa`; the pointers of every sequence cover it, and no two sequences' outputs overlap.
pub(crate) unsafe fn rows<'a, T: Element>(
    isa: Isa,
    team: &Team,
    seqs: usize,
    kv_heads: usize,
    sequence: impl Fn(usize, usize) -> Sequence<'a, T> + Sync,
) {
    let rows: Vec<usize> = (0..seqs).map(|seq| sequence(seq, 0).rows()).collect();
    // A tile loads its keys for itself, so large ones are better, as long as every thread has some.
    let (mut height, all) = (TILE, rows.iter().sum::<usize>() * kv_heads);
    while height > TILE / 8 && all / height < 4 * team.threads() {
        height /= 2;
    }
    let mut tiles = Vec::new();
    for (seq, rows) in rows.into_iter().enumerate() {
        tiles.extend((0..rows).step_by(height).map(|first| (seq, first, height.min(rows - first))));
    }
    // The last tiles of a causal sequence are the longest: they go first.
    tiles.reverse();
    let tasks = tiles.len() * kv_heads;
    let mut parts = Vec::new();
    if team.threads() > 1 && tasks < 2 * team.threads() {
        // Few tiles, as in decoding: their segments become tasks.
        let mut offset = 0;
        for task in 0..tasks {
            let (seq, first, rows) = tiles[task / kv_heads];
            let s = sequence(seq, task % kv_heads);
            for index in 0..(Tile { sequence: &s, first, rows }).segments() {
                parts.push((task, index, offset));
                offset += State::len(rows, s.head_dim);
            }
        }
    }
    if parts.len() <= tasks {
        team.run(tasks, |task| {
            let (seq, first, rows) = tiles[task / kv_heads];
            let s = sequence(seq, task % kv_heads);
            with_scratch(forward::scratch_len(rows, s.head_dim), |scratch| {
                let tile = Tile { sequence: &s, first, rows };
                // SAFETY: the caller's promise; tiles do not overlap.
                unsafe { dispatch(isa, Whole(&tile, scratch)) }
            });
        });
        return;
    }
    let len = parts
        .last()
        .map_or(0, |&(task, _, offset)| offset + State::len(tiles[task / kv_heads].2, sequence(0, 0).head_dim));
    let mut memory = vec![Line([0.0; LANES]); len.div_ceil(LANES)];
    let states = Shared(memory.as_mut_ptr().cast());
    team.run(parts.len(), |part| {
        let (task, index, offset) = parts[part];
        let (seq, first, rows) = tiles[task / kv_heads];
        let s = sequence(seq, task % kv_heads);
        with_scratch(forward::scratch_len(rows, s.head_dim), |scratch| {
            let tile = Tile { sequence: &s, first, rows };
            // SAFETY: the caller's promise; every part has a state of its own.
            unsafe { dispatch(isa, Part { tile: &tile, index, state: states.at(offset), scratch }) }
        });
    });
    let firsts: Vec<(usize, usize)> =
        parts.iter().filter(|(_, index, _)| *index == 0).map(|&(task, _, offset)| (task, offset)).collect();
    team.run(firsts.len(), |i| {
        let (task, offset) = firsts[i];
        let (seq, first, rows) = tiles[task / kv_heads];
        let s = sequence(seq, task % kv_heads);
        let tile = Tile { sequence: &s, first, rows };
        // SAFETY: the caller's promise; the parts of a tile lie one after the other from `offset` on.
        unsafe { dispatch(isa, Combine(&tile, states.at(offset))) }
    });
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    // SAFETY: the caller's promise.
    unsafe { fwd_on::<T>(isa(), p, team) }
}

/// [`fwd`] on a given instruction set.
///
/// # Safety
/// The machine has `isa`; the addresses cover what [`FwdParams`] says.
pub unsafe fn fwd_on<T: Element>(isa: Isa, p: &FwdParams, team: &Team) {
    let (tokens, heads, kv_heads) = (p.tokens as usize, p.heads as usize, p.kv_heads as usize);
    let (d, seqs) = (p.head_dim as usize, p.seqs as usize);
    // SAFETY: the caller's promise.
    let cu = unsafe { slice::<i32>(p.cu_seqlens, seqs + 1) };
    let sequence = |seq: usize, kv_head: usize| {
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        assert!(first <= end && end <= tokens, "cu_seqlens[{seq}] {first}..{end} of {tokens} tokens");
        let head = first * heads + kv_head * (heads / kv_heads);
        let key = (first * kv_heads + kv_head) * d;
        Sequence {
            q: (p.q.0 as *const T).wrapping_add(head * d),
            o: (p.o.0 as *mut T).wrapping_add(head * d),
            lse: if p.lse.is_null() { null_mut() } else { (p.lse.0 as *mut f32).wrapping_add(head) },
            k: (p.k.0 as *const T).wrapping_add(key),
            v: (p.v.0 as *const T).wrapping_add(key),
            table: None,
            queries: end - first,
            keys: end - first,
            causal: p.causal != 0,
            heads,
            kv_heads,
            head_dim: d,
            scale: p.scale,
        }
    };
    // SAFETY: the caller's promise, and the assertion above.
    unsafe { rows(isa, team, seqs, kv_heads, sequence) }
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    // SAFETY: the caller's promise.
    unsafe { bwd_on::<T>(isa(), p, team) }
}

/// [`bwd`] on a given instruction set.
///
/// # Safety
/// The machine has `isa`; the addresses cover what [`BwdParams`] says.
pub unsafe fn bwd_on<T: Element>(isa: Isa, p: &BwdParams, team: &Team) {
    let (tokens, seqs, kv_heads) = (p.tokens as usize, p.seqs as usize, p.kv_heads as usize);
    // SAFETY: the caller's promise.
    let cu = unsafe { slice::<i32>(p.cu_seqlens, seqs + 1) };
    let range = |seq: usize| {
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        assert!(first <= end && end <= tokens, "cu_seqlens[{seq}] {first}..{end} of {tokens} tokens");
        (first, end - first)
    };
    let rows = tokens * p.heads as usize;
    team.run(rows.div_ceil(backward::DELTA_ROWS), |task| {
        let first = task * backward::DELTA_ROWS;
        let rows = backward::DELTA_ROWS.min(rows - first);
        // SAFETY: the caller's promise; the rows of tasks do not overlap.
        unsafe { dispatch(isa, Deltas::<T>::new(p, first, rows)) }
    });
    // Both halves of the gradient in one go: (sequence, first key or row, whether queries).
    let group = p.heads as usize / kv_heads;
    let mut items = Vec::new();
    for seq in 0..seqs {
        let (_, len) = range(seq);
        items.extend((0..len).step_by(KEYS).map(|key| (seq, key, false)));
        items.extend((0..len * group).step_by(backward::ROWS).map(|row| (seq, row, true)));
    }
    team.run(items.len() * kv_heads, |task| {
        let (seq, at, queries) = items[task / kv_heads];
        let (first, len) = range(seq);
        with_scratch(backward::scratch_len(p.head_dim as usize), |scratch| {
            // SAFETY: the caller's promise; tasks write different keys or rows.
            unsafe {
                let gradient = Gradient::<T>::new(p, first, len, task % kv_heads, scratch);
                if queries { dispatch(isa, Queries(&gradient, at)) } else { dispatch(isa, Keys(&gradient, at)) }
            }
        });
    });
}
