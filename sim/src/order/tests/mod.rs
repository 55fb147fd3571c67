//! Tests of clocks and shadow memory: random histories against a reference graph of events, and one test per rule.

mod block_barrier;
mod caches;
mod graph;
mod history;
mod lists;
mod rows;
mod rules;

use super::{VectorClock, WarpVectorClocks};
use block_barrier::barrier;

/// Advances a xorshift64 generator and returns its new state.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
