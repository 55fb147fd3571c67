//! Tests of clocks and shadow memory: random histories against a reference graph of events, and one test per rule.

mod caches;
mod graph;
mod history;
mod lists;
mod rows;
mod rules;

use super::{VectorClock, WarpClocks};

/// Executes a barrier. Each participant is a warp, a mask of its arriving lanes and a mask of its waiting lanes. The
/// waiting lanes acquire the clocks that all arriving lanes release.
fn barrier(participants: &mut [(&mut WarpClocks, u32, u32)]) {
    let mut released: Option<VectorClock> = None;
    for (warp, lanes, _) in participants.iter_mut() {
        let clock = warp.release(*lanes);
        match &mut released {
            Some(all) => all.join(&clock),
            none => *none = Some(clock),
        }
    }
    for (warp, _, waiting) in participants.iter_mut() {
        if let Some(all) = released.as_ref().filter(|_| *waiting != 0) {
            warp.acquire(*waiting, all);
        }
    }
}

/// Advances a xorshift64 generator and returns its new state.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
