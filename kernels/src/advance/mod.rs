//! The end of a decode step: each row takes its sampled token, and the state that the next step reads is updated.
//!
//! ```text
//! for each row r with n = kv_lens[r] > 0 (a row in use):
//!     append chosen[r] to the row's history, if it has one with room left
//!     if chosen[r] < 0 (no token) or n == kv_limits[r]:
//!         kv_lens[r] = 0, slots[r] = -1                       // the row ends
//!     else:
//!         ids[r] = chosen[r]; positions[r] += 1; draws[r] += 1; kv_lens[r] += 1
//!         page     = block_tables[r, n / page_tokens]
//!         slots[r] = page * page_tokens + n % page_tokens     // where the next step writes key n
//! ```
//!
//! So the host can enqueue a step before it has read the tokens of the previous step. A row that has ended costs almost
//! nothing: [`crate::rope_kv_write`] skips slot −1, and [`crate::paged_attention`] skips sequences without keys. Rows
//! not in use keep their state. A page is a block of the KV cache. All numbers are exact integers. Bound: latency; a
//! few words per row.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::{Addr, Arch, Cost, Launch, Stage, kernel, params};

use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// i32 `[rows]`: the sampled tokens; negative: none was sampled.
        pub chosen: Addr,
        /// i32 `[rows]`, written: the input tokens of the next step.
        pub ids: Addr,
        /// i32 `[rows]`, updated: rotary positions of the input tokens.
        pub positions: Addr,
        /// i32 `[rows]`, updated: keys that each row attends to in the next step; 0: the row is not in use.
        pub kv_lens: Addr,
        /// i32 `[rows]`: maximum number of keys of each row, at most `max_blocks * page_tokens`.
        pub kv_limits: Addr,
        /// i32 `[rows, max_blocks]`: the cache blocks of each row, enough for its maximum number of keys.
        pub block_tables: Addr,
        /// i32 `[rows]`, written: cache slot of the next step's key and value; −1: none.
        pub slots: Addr,
        /// i32 `[rows]`, updated: counter of each row's random numbers.
        pub draws: Addr,
        /// i32 `[rows, history_cols]`: tokens of each row, appended to; may be null if `history_cols` is 0.
        pub history: Addr,
        /// i32 `[rows]`, updated: length of each row's history; may be null if `history_cols` is 0.
        pub history_lens: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Elements of a row of `block_tables`.
        pub max_blocks: u32,
        /// Tokens per cache block.
        pub page_tokens: u32,
        /// Maximum history length; 0: no history is kept.
        pub history_cols: u32,
    }
}

kernel_folder! {
    name: "advance",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub ADVANCE, "advance", Params, cpu::advance, &SOURCE, geometry);

/// One thread per row.
fn geometry(p: &Params, arch: &Arch) -> Vec<Stage> {
    match p.rows.div_ceil(128) {
        0 => Vec::new(),
        blocks => vec![Stage::one_dimensional("advance", blocks, 128).programmatic_on(arch)],
    }
}

/// Launches the kernel.
pub fn advance(params: &Params) -> Launch {
    // 32-bit words of memory traffic per row. kv_lens, positions and draws are read and written; chosen, kv_limits
    // and an element of the block table are read; ids and slots are written.
    let words = if params.history_cols == 0 { 11.0 } else { 14.0 };
    Launch::kernel(&ADVANCE, params, Cost { flops: 0.0, bytes: 4.0 * words * params.rows as f64 })
}
