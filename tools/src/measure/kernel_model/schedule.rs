//! Models the kernels for Hopper that divide tiles of work among persistent blocks of threads, one block on each
//! multiprocessor: products of matrices, attention, and products of few rows. The time of a launch is that of its
//! busiest multiprocessor:
//!
//! ```text
//! product of matrices   whole waves of the tile that the plan chooses: cycles of its products, and of its epilogue
//! attention, forward    tiles of 128 queries (192 with head_dim 80), longest first, each to the multiprocessor that is
//!                       free first; for windows of at most 64 tokens the bandwidth of memory
//! attention, backward   parts of tiles of 128 keys (`KeyParts`), then tiles of 128 queries, in the same way
//! attention, decode     segments of 512 keys; the latency of dependent loads; bandwidth of memory
//! product of few rows   bandwidth of memory; latency of a norm in the same launch
//! ```
//!
//! No kernel of the project for Hopper has been timed. The constants are those of prototypes on an NVIDIA H200,
//! 2026-11-27. `prototypes.json` has the times of these prototypes, and a test compares the model with them. Where a
//! kernel differs from its prototype, a constant says by how much, computed from the code.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::LazyLock;

use bytemuck::Zeroable;
use reel_device::{Arch, Cost, PlannedStage};
use reel_kernels::attention::KeyParts;
use reel_kernels::matmul::gemm::Params;
use reel_kernels::matmul::plan;
use serde::Deserialize;

/// Operations of the tensor cores of a multiprocessor in a clock cycle.
const FLOPS_PER_CYCLE: f64 = 4096.0;
/// Clock of products within a model, in Hz: power limits it. cuBLASLt computed the products of a 7B model at 729
/// TFLOP/s within a prefill and a training step; in long turns with the prototypes, at 683 TFLOP/s and 1.36 GHz.
const CLOCK: f64 = 1.45e9;
/// Cycles of a launch beyond its tiles: its start, its first copies, and its last stores.
const START_CYCLES: f64 = 5000.0;
/// Cycles in which a multiprocessor reads or writes a byte of C: its share of the memory bandwidth. The products of
/// the next tile do not hide this time, but tiles in halves, which store one half during the other, hide two thirds.
const CYCLES_PER_BYTE_OF_C: f64 = 0.035;
const SHARE_OF_HALVES: f64 = 0.35;
/// Cycles in which a multiprocessor issues the instructions of SwiGLU for an element of C: 21.5 in the machine code of
/// `gemm_swiglu_bf16`, on 128 lanes. The instructions for one half of a tile run beside the products of the other half
/// with STAGE_K k (computed, not measured).
const SWIGLU_CYCLES: f64 = 21.5 / 128.0;
const STAGE_K: f64 = 64.0;
/// Bandwidth that copies into rings of shared memory reached in products of few rows, bytes per second.
const STREAM_BYTES_PER_SECOND: f64 = 4.13e12;

/// Rows of a tile of queries, and keys of a block.
const TILE: u64 = 128;
/// Rows of a tile of queries in the forward pass with head_dim 80, which has three warpgroups that compute; seconds for
/// a block of 192 queries and 128 keys. The prototype `v80w3five` took 1.862 us (679.4 us without the launch for eleven
/// tiles of 32 blocks, mean of two runs).
const TILE_OF_THREE: u64 = 192;
const BLOCK_SECONDS_OF_THREE: f64 = 1.862e-6;
/// Seconds of the forward pass for a block of 128 queries and 128 keys: a part for each column of a head, and the
/// softmax. With 128 columns the prototype `xtqrhfs` took 1.667 us, with 80 and two consumers `v80five` 1.578 us.
const SECONDS_PER_COLUMN: f64 = 1.85e-9;
const SOFTMAX_SECONDS: f64 = 1.43e-6;
/// Time of a tile beyond its blocks, as a number of blocks.
const TILE_BLOCKS: f64 = 1.17;
/// Time of the kernel divided by the time of its prototype: segments of 512 keys cost 14 % more instructions, which
/// the products of the other warpgroup hide for the most part (computed, not measured).
const SEGMENTS: f64 = 1.035;
/// Seconds of a launch of attention beyond its tiles.
const ATTENTION_LAUNCH_SECONDS: f64 = 5e-6;

/// Operations of a multiprocessor in a second in the backward pass, and seconds of each tile beyond them.
const BACKWARD_FLOPS: f64 = 748e12 / 132.0;
const KEY_TILE_SECONDS: f64 = 3e-6;
const QUERY_TILE_SECONDS: f64 = 1.2e-6;

/// Keys of a segment of decode.
const SEGMENT: f64 = 512.0;
/// Bytes of keys and values that one multiprocessor reads in a second in decode, and all together.
const DECODE_BYTES_OF_ONE: f64 = 85e9;
const DECODE_BYTES: f64 = 3.97e12;
/// Seconds of decode and of the launch that merges segments, without reading keys.
const DECODE_SECONDS: f64 = 5.5e-6;
/// Seconds of the three dependent loads by which a block finds its work, which the prototype had not (computed).
const FIND_WORK_SECONDS: f64 = 0.9e-6;

/// Seconds of a product of few rows beyond its bytes.
const FEW_ROWS_SECONDS: f64 = 0.5e-6;
/// Seconds of a norm in the same launch: x is read when the ring is already full (computed, not measured).
const NORM_SECONDS: f64 = 1.5e-6;

/// The times of the prototypes: a link into `tools/benches/results`.
#[derive(Deserialize)]
struct Prototypes {
    rows: Vec<PrototypeRow>,
}

/// The time of a prototype of the kernel whose symbol is `kernel`.
#[derive(Deserialize)]
struct PrototypeRow {
    #[cfg_attr(not(test), expect(dead_code, reason = "the test groups rows by family"))]
    family: String,
    kernel: String,
    sizes: BTreeMap<String, u64>,
    flops: f64,
    bytes: f64,
    /// Median time, or, if the row has none, clock cycles of a block of threads.
    seconds: Option<f64>,
    cycles: Option<f64>,
    #[cfg_attr(not(test), expect(dead_code, reason = "the test prints the name"))]
    prototype: String,
    /// Whether the kernel has the schedule of the prototype.
    #[serde(default)]
    same_schedule: bool,
}

static PROTOTYPES: LazyLock<Prototypes> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../data/h200/prototypes.json")).expect("the table is part of the source")
});

impl PrototypeRow {
    fn measured_seconds(&self) -> Option<f64> {
        self.seconds.or(self.cycles.map(|cycles| cycles / CLOCK))
    }

    /// Whether the launch has the kernel, the schedule and the sizes of the row.
    fn is_of(&self, main: &PlannedStage, cost: Cost) -> bool {
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        self.same_schedule
            && self.kernel == main.symbol
            && self.sizes.iter().all(|(name, size)| main.size(name) == Some(*size))
            && near(self.flops, cost.flops)
            && near(self.bytes, cost.bytes)
    }
}

/// The time of a launch by the schedule of its kernel.
pub(super) struct ScheduledTime {
    pub seconds: f64,
    /// Whether a prototype with the same schedule was measured at this size. If false, the time is modelled.
    pub is_of_prototype: bool,
}

/// The time of a launch whose work `main` does; `None` if the kernel has no schedule in this file.
pub(super) fn time_of_launch(main: &PlannedStage, cost: Cost) -> Option<ScheduledTime> {
    let modelled = seconds_of_launch(main, cost)?;
    let measured = PROTOTYPES.rows.iter().find(|row| row.is_of(main, cost)).and_then(PrototypeRow::measured_seconds);
    Some(ScheduledTime { seconds: measured.unwrap_or(modelled), is_of_prototype: measured.is_some() })
}

/// The modelled seconds of a launch.
fn seconds_of_launch(main: &PlannedStage, cost: Cost) -> Option<f64> {
    let symbol = main.symbol;
    let is_forward = |prefix: &str| symbol.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("_wgmma_"));
    if let Some(tile) = plan::ALL.iter().find(|tile| tile.symbol == symbol) {
        return product(tile, main, cost);
    }
    if is_forward("attention_fwd_bf16") || is_forward("paged_attention_fwd_bf16") {
        return forward(main, cost);
    }
    if symbol.starts_with("attention_fwd_bf16_windows_") {
        // Each array is read or written once (computed, not measured).
        return Some(ATTENTION_LAUNCH_SECONDS + cost.bytes / STREAM_BYTES_PER_SECOND);
    }
    if symbol.starts_with("attention_bwd_bf16_wgmma_") {
        return backward(main, cost);
    }
    if symbol.starts_with("paged_attention_fwd_bf16_decode_rows_") {
        return decode(main, cost);
    }
    let copies_tiles = ["_x1", "_x2"].iter().any(|rows| symbol.ends_with(rows)) || symbol.contains("_clusters_");
    (symbol.starts_with("skinny_") && !symbol.contains("int8") && copies_tiles).then(|| few_rows(symbol, cost))
}

/// A product of matrices, by whole waves of its tile. A multiprocessor reads and writes at most four bytes of each
/// element of C: sums in f32 are added by L2.
fn product(tile: &plan::GemmTile, main: &PlannedStage, cost: Cost) -> Option<f64> {
    let size = |name| main.size(name)?.try_into().ok();
    let sizes = Params { m: size("m")?, n: size("n")?, k: size("k")?, ..Params::zeroed() };
    let [m, n, k, elements] = [sizes.m, sizes.n, sizes.k, tile.rows * tile.columns].map(f64::from);
    let bytes_of_c = ((cost.bytes - 2.0 * k * (m + n)) / (m * n)).min(4.0) * elements;
    let shown = if tile.symbol.ends_with("_halves") { SHARE_OF_HALVES } else { 1.0 };
    let product_cycles = |k| 2.0 * elements * k / FLOPS_PER_CYCLE;
    // C has an element for a sum of gate and a sum of up.
    let swiglu = (SWIGLU_CYCLES * elements / 2.0 - product_cycles(STAGE_K)).max(0.0);
    let swiglu = if tile.symbol.starts_with("gemm_swiglu_") { swiglu } else { 0.0 };
    let of_tile = product_cycles(k) + CYCLES_PER_BYTE_OF_C * bytes_of_c * shown + swiglu;
    let waves = f64::from(tile.count(&sizes).div_ceil(tile.resident(&Arch::H100)));
    let by_memory = cost.bytes / STREAM_BYTES_PER_SECOND;
    Some(START_CYCLES / CLOCK + (waves * of_tile / CLOCK).max(by_memory))
}

/// The lengths of the sequences of a launch of attention. The plan knows their number, the longest one and the tokens
/// of all, so the others are assumed to be equally long. Then the factor by which the launch has more pairs of query
/// and key than these sequences.
fn sequences(main: &PlannedStage, flops: f64, flops_of_pair: f64) -> Option<(Vec<u64>, f64)> {
    let (tokens, seqs) = (main.size("tokens")?, main.size("seqs")?.max(1));
    let longest = main.size("max_seqlen").unwrap_or(tokens.div_ceil(seqs)).min(tokens);
    let others = (tokens - longest).checked_div(seqs - 1).unwrap_or(0);
    let lengths: Vec<u64> = std::iter::once(longest).chain((1..seqs).map(|_| others)).collect();
    let pairs = |l: u64| if is_causal(main) { (l * (l + 1)) as f64 / 2.0 } else { (l * l) as f64 };
    let of_lengths: f64 = lengths.iter().map(|l| pairs(*l)).sum();
    (of_lengths > 0.0).then(|| {
        let scale = flops / (flops_of_pair * main.size("heads").unwrap_or(1) as f64) / of_lengths;
        (lengths, scale)
    })
}

/// Whether queries see the keys up to their own position only, as always in paged attention.
fn is_causal(main: &PlannedStage) -> bool {
    main.size("causal") != Some(0)
}

/// The numbers of blocks of keys of all tiles of `rows` queries of a sequence, for one head.
fn query_tiles(main: &PlannedStage, tokens: u64, rows: u64) -> impl Iterator<Item = f64> {
    let causal = is_causal(main);
    let keys = move |tile| if causal { tokens.min((tile + 1) * rows) } else { tokens };
    (0..tokens.div_ceil(rows)).map(move |tile| keys(tile).div_ceil(TILE) as f64)
}

fn forward(main: &PlannedStage, cost: Cost) -> Option<f64> {
    let (heads, head_dim) = (main.size("heads")?, main.size("head_dim")? as f64);
    let (lengths, scale) = sequences(main, cost.flops, 4.0 * head_dim)?;
    let (rows, block) = match head_dim == 80.0 {
        true => (TILE_OF_THREE, BLOCK_SECONDS_OF_THREE * SEGMENTS),
        false => (TILE, (SOFTMAX_SECONDS + SECONDS_PER_COLUMN * head_dim) * SEGMENTS),
    };
    let tiles = lengths.iter().flat_map(|l| query_tiles(main, *l, rows));
    let tiles = tiles.map(|blocks| (blocks * scale + TILE_BLOCKS) * block);
    let tiles = tiles.flat_map(|seconds| std::iter::repeat_n(seconds, heads as usize));
    Some(ATTENTION_LAUNCH_SECONDS + longest_first(tiles.collect()))
}

/// The backward pass by seven products: four for dk and dv, three for dq. The heads of a tile of keys are divided into
/// parts; if there are several, each writes its sums in f32 and the last one reads them, with a multiprocessor's share
/// of the bandwidth.
fn backward(main: &PlannedStage, cost: Cost) -> Option<f64> {
    let (heads, kv_heads, head_dim) = (main.size("heads")?, main.size("kv_heads")?, main.size("head_dim")? as f64);
    let (lengths, scale) = sequences(main, cost.flops, 10.0 * head_dim)?;
    let flops = |queries: f64, products: f64| scale * products * 2.0 * TILE as f64 * queries * head_dim;
    let bytes_of_sums = 2.0 * 2.0 * 4.0 * TILE as f64 * head_dim;
    let seconds_of_sums = bytes_of_sums * f64::from(Arch::H100.multiprocessors) / STREAM_BYTES_PER_SECOND;
    let mut jobs = Vec::new();
    for &l in &lengths {
        let tiles = l.div_ceil(TILE);
        let parts = KeyParts::OF_TRAINING.heads_of_parts(tiles.try_into().ok()?, heads as u32, kv_heads as u32);
        let heads_of_parts: Vec<u32> = parts.collect();
        let sums = if heads_of_parts.len() > 1 { seconds_of_sums } else { 0.0 };
        for tile in 0..tiles {
            let visits = l.div_ceil(64) - if is_causal(main) { 2 * tile } else { 0 };
            for heads in &heads_of_parts {
                let work = flops(64.0 * (visits * u64::from(*heads)) as f64, 4.0) / BACKWARD_FLOPS;
                jobs.extend((0..kv_heads).map(|_| work + KEY_TILE_SECONDS + sums));
            }
        }
        for blocks in query_tiles(main, l, TILE) {
            let work = flops(TILE as f64 * blocks, 3.0) / BACKWARD_FLOPS;
            jobs.extend((0..heads).map(|_| work + QUERY_TILE_SECONDS));
        }
    }
    let delta_bytes = 4.0 * (main.size("tokens")? * heads) as f64 * head_dim;
    Some(ATTENTION_LAUNCH_SECONDS + delta_bytes / STREAM_BYTES_PER_SECOND + longest_first(jobs))
}

/// A step of decode. The bytes of its cost are mostly those of keys and values.
fn decode(main: &PlannedStage, cost: Cost) -> Option<f64> {
    let heads = main.size("tokens")? as f64 * main.size("kv_heads")? as f64;
    let segment = SEGMENT * 4.0 * main.size("head_dim")? as f64;
    let segments = (cost.bytes / segment).max(heads);
    let of_busiest = (segments / f64::from(Arch::H100.multiprocessors)).ceil() * segment.min(cost.bytes / heads);
    let reading = (cost.bytes / DECODE_BYTES).max(of_busiest / DECODE_BYTES_OF_ONE);
    Some(DECODE_SECONDS + FIND_WORK_SECONDS + reading)
}

/// A product of few rows. No prototype had clusters of blocks, which 17 to 64 rows have: they are assumed to read the
/// share of the bandwidth that belongs to the multiprocessors on which clusters fit.
fn few_rows(symbol: &str, cost: Cost) -> f64 {
    let Arch { multiprocessors, clusters_of_8, .. } = Arch::H100;
    let used = if symbol.contains("_clusters_") { 8 * clusters_of_8 } else { multiprocessors };
    let bandwidth = STREAM_BYTES_PER_SECOND * f64::from(used) / f64::from(multiprocessors);
    let has_norm = ["skinny_qkv", "skinny_swiglu"].iter().any(|op| symbol.starts_with(op));
    let norm = if has_norm { NORM_SECONDS } else { 0.0 };
    FEW_ROWS_SECONDS + norm + cost.bytes / bandwidth
}

/// The seconds until the last job ends, if each multiprocessor takes the longest job that is left when it is free.
fn longest_first(mut jobs: Vec<f64>) -> f64 {
    jobs.sort_by(|a, b| b.total_cmp(a));
    let picoseconds = |seconds: f64| (seconds * 1e12) as u64;
    let mut free: BinaryHeap<Reverse<u64>> = (0..Arch::H100.multiprocessors).map(|_| Reverse(0)).collect();
    let mut last = 0;
    for job in jobs {
        let Reverse(start) = free.pop().unwrap_or_default();
        last = last.max(start + picoseconds(job));
        free.push(Reverse(start + picoseconds(job)));
    }
    last as f64 / 1e12
}

#[cfg(test)]
pub(crate) mod tests;
