//! A decode step's end: each row takes the token that was chosen for it, and everything that the next step reads moves on.
//!
//! Row `r` is in use where `kv_lens[r] = n > 0`. Its token is `chosen[r]`. Where there is a history with room left, the token
//! is appended to it. Then, if the token is none (negative) or the row has its `kv_limits[r]` keys, the row ends:
//! `kv_lens[r] = 0`, `slots[r] = −1`. Else the token becomes `ids[r]`; `positions[r]`, `draws[r]` and `kv_lens[r]` grow by one,
//! and `slots[r]` is the place of key `n`: `block_tables[r, n / page] * page + n % page`. Rows that are not in use keep
//! everything as it is.
//!
//! So a step can be asked for before the host has seen the token of the one before, and a row that ended costs nothing more
//! than its place: [`crate::kv_write`] skips slot −1, [`crate::paged_attention`] a sequence without keys. Exact integers.
//! Bound: latency; a few words a row.

pub(crate) mod check;
mod cpu;
mod formula;

use crate::launch::Params as _;
use crate::{Addr, Arch, Cost, Launch, Source, Stage, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// i32 `[rows]`: the tokens that were chosen; negative: none.
        pub chosen: Addr,
        /// i32 `[rows]`, written: the tokens that the next step takes.
        pub ids: Addr,
        /// i32 `[rows]`, updated: their rotary positions.
        pub positions: Addr,
        /// i32 `[rows]`, updated: keys of each row, the next step's included; 0: not in use.
        pub kv_lens: Addr,
        /// i32 `[rows]`: the most keys that a row may have, at most `max_blocks * page`.
        pub kv_limits: Addr,
        /// i32 `[rows, max_blocks]`: the pages of each row, for as many keys as it may have.
        pub block_tables: Addr,
        /// i32 `[rows]`, written: where the next step's keys go, −1: nowhere.
        pub slots: Addr,
        /// i32 `[rows]`, updated: the numbers of the rows' draws.
        pub draws: Addr,
        /// i32 `[rows, history_cols]`, appended to; may be null with `history_cols` 0.
        pub history: Addr,
        /// i32 `[rows]`, updated: how long each history is; may be null with `history_cols` 0.
        pub history_lens: Addr,
        /// Rows.
        pub rows: u32,
        /// Row length of `block_tables`.
        pub max_blocks: u32,
        /// Tokens of a page.
        pub page: u32,
        /// Row length of the history; 0: there is none.
        pub history_cols: u32,
    }
}

/// The CUDA source.
pub static SOURCE: Source = Source { name: "advance", sm80: include_str!("sm80.cu"), params: &[Params::c_declaration] };

kernel!(pub ADVANCE, "advance", Params, cpu::advance, &SOURCE, geometry);

/// A thread a row.
fn geometry(p: &Params, _: &Arch) -> Vec<Stage> {
    match p.rows.div_ceil(128) {
        0 => Vec::new(),
        blocks => vec![Stage::linear("advance", blocks, 128)],
    }
}

/// The launch.
pub fn advance(params: &Params) -> Launch {
    let words = if params.history_cols == 0 { 12.0 } else { 15.0 };
    Launch::kernel(&ADVANCE, params, Cost { flops: 0.0, bytes: 4.0 * words * params.rows as f64 })
}
