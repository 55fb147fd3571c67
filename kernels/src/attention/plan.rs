//! Plans the CUDA launches of an attention call: kernel, number of blocks, shared memory.

use std::mem::offset_of;

use reel_device::{Addr, Arch, Stage};
use reel_sim::tensor_map::{DataType, L2Promotion, Swizzle, TensorMap};

use super::choices::plan_choices;
use super::{BwdParams, FwdParams};

/// Number of query rows of a tile.
const ROWS: u64 = 64;
/// Number of keys of a key tile in the backward pass with wgmma. Other key tiles have 64 keys.
pub(super) const KEYS_PER_TILE: u32 = 128;
/// Bytes of a 64 x 64 f32 tile whose rows are padded by four elements.
const FMA_TILE: u32 = 64 * 68 * 4;
/// Number of output columns that a block of threads writes on CUDA cores.
const FMA_COLUMNS: u32 = 128;

/// Returns the bytes of a tile of 64 bf16 rows (`Tile` of tile.cuh). Rows have no gaps if head_dim is a multiple of
/// 64; otherwise they are an odd number of 16-byte chunks apart.
const fn mma_tile(head_dim: u32) -> u32 {
    let chunks = if head_dim.is_multiple_of(64) { head_dim / 8 } else { 2 * head_dim.div_ceil(16) + 1 };
    64 * 16 * chunks
}

/// Returns an upper bound on the number of tiles of all sequences; equals `tile_slots` of sequences.cuh.
fn slots(tokens: u32, seqs: u32, max_seqlen: u32, rows: u64) -> u64 {
    let (tokens, seqs) = (tokens as u64, seqs as u64);
    (seqs * (max_seqlen as u64).div_ceil(rows)).min((tokens + (rows - 1) * seqs) / rows)
}

/// Returns a launch of `blocks` blocks of `threads` threads; `None` for 0 blocks.
fn stage(symbol: &'static str, blocks: u64, threads: u32, shared: u32) -> Option<Stage> {
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    (blocks > 0).then(|| Stage { shared, ..Stage::one_dimensional(symbol, blocks, threads) })
}

/// Plans the launches of kernel `attention_fwd_f32`.
pub fn fwd_f32(p: &FwdParams, _: &Arch) -> Vec<Stage> {
    fwd_fma("attention_fwd_f32", p)
}

/// Plans the launches of kernel `attention_fwd_bf16`.
pub fn fwd_bf16(p: &FwdParams, arch: &Arch) -> Vec<Stage> {
    match plan_choices(arch).by_warpgroups {
        true => fwd_bf16_wgmma(p, arch),
        false => fwd_bf16_mma(p, arch),
    }
}

/// Plans the launches of kernel `attention_fwd_bf16` with mma.sync.
pub fn fwd_bf16_mma(p: &FwdParams, _: &Arch) -> Vec<Stage> {
    // The elements are the symbol, the columns of a tile of queries or keys, the columns of a tile of values, and the
    // number of shared-memory buffers for tiles of keys and values.
    let (symbol, columns, value_columns, stages) = match p.head_dim {
        64 => ("attention_fwd_bf16_64", 64, 64, 2),
        72 => ("attention_fwd_bf16_72", 72, 72, 2),
        80 => ("attention_fwd_bf16_80", 80, 80, 2),
        128 => ("attention_fwd_bf16_128", 128, 128, 2),
        d if d <= 64 => ("attention_fwd_bf16_up_to_64", 64, 64, 2),
        d if d <= 128 => ("attention_fwd_bf16_up_to_128", 128, 128, 2),
        d if d <= 256 => ("attention_fwd_bf16_up_to_256", 256, 64, 1),
        _ => return fwd_fma("attention_fwd_bf16", p),
    };
    let parts = p.head_dim.div_ceil(value_columns) as u64;
    let shared = mma_tile(columns) + stages * (mma_tile(columns) + mma_tile(value_columns));
    let blocks = slots(p.tokens, p.seqs, p.max_seqlen, ROWS) * p.heads as u64 * parts;
    stage(symbol, blocks, 128, shared).into_iter().collect()
}

/// Number of keys of a block in the wgmma kernels for the forward pass and prefill.
pub(crate) const BLOCK_KEYS: u32 = 128;

/// Returns the number of columns of a head in shared memory of the wgmma kernels (`HeadColumns` of head_copy.cuh).
const fn wgmma_columns(head_dim: u32) -> u32 {
    if head_dim == 72 { 80 } else { head_dim }
}

/// Returns the number of warpgroups that compute, 64 query rows each, in the wgmma kernels for the forward pass and
/// prefill (`ForwardShared` of forward_producer.cuh).
const fn forward_consumers(head_dim: u32) -> u32 {
    if wgmma_columns(head_dim) == 80 { 3 } else { 2 }
}

/// Returns the number of query rows of a tile in the wgmma kernels for the forward pass and prefill.
pub(crate) const fn positions_per_tile(head_dim: u32) -> u32 {
    64 * forward_consumers(head_dim)
}

/// The queries that a launch with wgmma divides into tiles.
pub(crate) struct QueryCounts {
    /// Number of queries of all sequences.
    pub tokens: u32,
    /// Sequences.
    pub seqs: u32,
    /// Query heads.
    pub heads: u32,
    /// No sequence has more queries.
    pub max_queries: u32,
    /// Whether sequences may have keys before the position of their first query (a prefix, or cached keys).
    pub has_earlier: bool,
}

impl QueryCounts {
    /// Returns how many tile numbers all heads together have, as `PositionTiles` of position_tiles.cuh numbers tiles of
    /// `positions` query rows. Some numbers have no tile.
    pub(crate) fn tile_count(&self, positions: u32) -> u64 {
        let (tokens, seqs, positions) = (u64::from(self.tokens), u64::from(self.seqs), u64::from(positions));
        let earlier = u64::from(self.has_earlier);
        let padding = (1 + earlier) * (positions - 1);
        let even = seqs * (u64::from(self.max_queries).div_ceil(positions) + earlier);
        let packed = (tokens + padding * seqs) / positions;
        u64::from(self.heads) * even.min(packed)
    }

    /// Plans the launch of a kernel whose persistent blocks of threads share the tiles. Returns `None` if there are
    /// no tiles.
    pub(crate) fn plan_stage(&self, symbol: &'static str, head_dim: u32, arch: &Arch) -> Option<Stage> {
        let blocks = self.tile_count(positions_per_tile(head_dim)).min(u64::from(arch.multiprocessors));
        let threads = 128 * (1 + forward_consumers(head_dim));
        stage(symbol, blocks, threads, forward_shared(head_dim)).filter(|_| self.tokens > 0)
    }
}

/// Returns the number of query heads of a section. The order of tiles (`PositionTiles`) takes the heads in sections: as
/// many as share keys and values of at most 20 MB of bf16, which stay in L2. `keys` is the number of keys of a head, of
/// all sequences together.
pub(crate) fn section_heads(keys: u64, heads: u32, kv_heads: u32, head_dim: u32) -> u32 {
    const MAX_BYTES: u64 = 20_000_000;
    let bytes = 2 * 2 * keys * u64::from(head_dim);
    let fits = |n: &u32| kv_heads.is_multiple_of(*n) && u64::from(*n) * bytes <= MAX_BYTES;
    (1..=kv_heads).rev().find(fits).unwrap_or(1) * (heads / kv_heads.max(1))
}

/// Returns the queries of packed sequences.
fn packed_queries(p: &FwdParams) -> QueryCounts {
    let &FwdParams { tokens, seqs, heads, max_seqlen: max_queries, .. } = p;
    QueryCounts { tokens, seqs, heads, max_queries, has_earlier: !p.prefix.is_null() }
}

/// Describes a tensor of packed sequences with `heads` heads for tensor maps.
fn packed_heads(p: &FwdParams, tensor: Addr, heads: u32) -> HeadsTensor {
    HeadsTensor { tensor, tokens: p.tokens.into(), heads, head_dim: p.head_dim }
}

/// Returns the bytes of shared memory of a block: `ForwardShared` of forward_producer.cuh.
const fn forward_shared(head_dim: u32) -> u32 {
    let (tiles, consumers) = (4, forward_consumers(head_dim));
    let head_dim = wgmma_columns(head_dim);
    let slots = if head_dim == 128 { 5 } else { 6 };
    let queries = if consumers == 3 { consumers * (64 * head_dim * 2 + 16) } else { 0 };
    slots * BLOCK_KEYS * head_dim * 2
        + consumers * (64 * head_dim * 4 + 1024)
        + queries
        + 16 * slots
        + (16 + 32) * tiles
}

/// Plans the launch of kernel `attention_fwd_bf16` with wgmma. GPUs before Hopper, and head_dims other than 64, 72
/// (if not causal), 80 and 128, get the kernel with mma.sync. With head_dim 80, sequences of at most 64 tokens (the windows of a vision
/// tower) have a block of threads for each sequence and head.
pub fn fwd_bf16_wgmma(p: &FwdParams, arch: &Arch) -> Vec<Stage> {
    let symbol = match p.head_dim {
        64 => "attention_fwd_bf16_wgmma_64",
        // A decoder's rollouts with head_dim 72 are by mma.sync, and its training must have the same bits.
        72 if p.causal == 0 => "attention_fwd_bf16_wgmma_72",
        80 => "attention_fwd_bf16_wgmma_80",
        128 => "attention_fwd_bf16_wgmma_128",
        _ => return fwd_bf16_mma(p, arch),
    };
    if arch.sm < 90 {
        return fwd_bf16_mma(p, arch);
    }
    if p.head_dim == 80 && p.max_seqlen <= 64 && p.prefix.is_null() {
        let blocks = if p.tokens == 0 { 0 } else { u64::from(p.seqs) * u64::from(p.heads) };
        return stage("attention_fwd_bf16_windows_80", blocks, 128, 3 * 64 * 80 * 2).into_iter().collect();
    }
    let Some(stage) = packed_queries(p).plan_stage(symbol, p.head_dim, arch) else { return Vec::new() };
    let map = |tensor, heads, rows| packed_heads(p, tensor, heads).tensor_map_of_whole_heads(rows);
    let tensor_maps = vec![
        (offset_of!(FwdParams, q_map), map(p.q, p.heads, 64)),
        (offset_of!(FwdParams, k_map), map(p.k, p.kv_heads, BLOCK_KEYS)),
        (offset_of!(FwdParams, v_map), map(p.v, p.kv_heads, BLOCK_KEYS)),
    ];
    vec![Stage { tensor_maps, ..stage }]
}

/// Plans the launch of kernel `attention_fwd_bf16` with wgmma without the hint that keys and values stay in L2.
pub fn fwd_bf16_wgmma_evict_normal(p: &FwdParams, arch: &Arch) -> Vec<Stage> {
    let mut stages = fwd_bf16_wgmma(p, arch);
    for stage in &mut stages {
        stage.symbol = match stage.symbol {
            "attention_fwd_bf16_wgmma_80" => "attention_fwd_bf16_wgmma_80_evict_normal",
            "attention_fwd_bf16_wgmma_128" => "attention_fwd_bf16_wgmma_128_evict_normal",
            other => other,
        };
    }
    stages
}

/// A tensor `[tokens, heads, head_dim]`. Tensor copies (TMA) move boxes of one head. In shared memory, the columns of
/// a box lie in groups of 64, or of 16 (head_copy.cuh).
pub(crate) struct HeadsTensor {
    /// The tensor.
    pub tensor: Addr,
    /// Number of tokens; not 0.
    pub tokens: u64,
    /// Number of heads.
    pub heads: u32,
    /// Number of elements of a head.
    pub head_dim: u32,
}

impl HeadsTensor {
    /// Returns the tensor map whose box has `rows` tokens and all columns of a head.
    pub(crate) fn tensor_map_of_whole_heads(&self, rows: u32) -> TensorMap {
        self.map(rows, self.head_dim / self.columns())
    }

    /// Returns the tensor map whose box has `rows` tokens and one group of columns.
    pub(crate) fn tensor_map_of_column_group(&self, rows: u32) -> TensorMap {
        self.map(rows, 1)
    }

    /// Columns of a group.
    const fn columns(&self) -> u32 {
        if self.head_dim.is_multiple_of(64) { 64 } else { 16 }
    }

    fn map(&self, rows: u32, box_groups: u32) -> TensorMap {
        let columns = self.columns();
        let swizzle = if columns == 64 { Swizzle::B128 } else { Swizzle::B32 };
        let head_bytes = 2 * u64::from(self.head_dim);
        // If the last group is not full (head_dim 72), a box is one group, and copies fill the last one with zeros.
        let is_whole = self.head_dim.is_multiple_of(columns);
        let (inner, groups) = if is_whole { (columns, self.head_dim / columns) } else { (self.head_dim, 1) };
        let dims = [u64::from(inner), self.tokens, u64::from(groups), u64::from(self.heads)];
        let strides = [head_bytes * u64::from(self.heads), 2 * u64::from(columns), head_bytes];
        let of_box = [columns, rows, box_groups.min(groups), 1];
        let map = TensorMap::tiled(DataType::Bf16, 0, &dims, &strides, &of_box, swizzle);
        let map = map.expect("a valid tensor map: strides are multiples of 16 bytes, and there are tokens");
        TensorMap { address: self.tensor.0, l2_promotion: L2Promotion::B256, ..map }
    }
}

fn fwd_fma(symbol: &'static str, p: &FwdParams) -> Vec<Stage> {
    let parts = p.head_dim.div_ceil(FMA_COLUMNS) as u64;
    let blocks = slots(p.tokens, p.seqs, p.max_seqlen, ROWS) * p.heads as u64 * parts;
    stage(symbol, blocks, 256, 4 * FMA_TILE).into_iter().collect()
}

/// Plans the launches of kernel `attention_bwd_f32`.
pub fn bwd_f32(p: &BwdParams, _: &Arch) -> Vec<Stage> {
    bwd_fma(["attention_bwd_f32", "attention_bwd_f32_dkv", "attention_bwd_f32_dq"], p)
}

/// Returns the bytes of shared memory of a block that computes dk and dv: keys, values, two tiles of queries, one tile
/// of d_o, ds, and two buffers of lse and delta for 64 queries (`KeyTiles` of backward_keys.cuh).
const fn key_tiles(head_dim: u32) -> u32 {
    5 * mma_tile(head_dim) + 2 * 64 * 64 + 2 * (2 * 64 * 4)
}

/// Tells whether there is a tensor-core kernel for the gradients of this head_dim.
pub const fn has_tensor_core_backward(head_dim: u32) -> bool {
    matches!(head_dim, 64 | 72 | 80 | 128)
}

/// Tells whether there is a wgmma kernel for the gradients of this head_dim.
pub(super) const fn has_wgmma_backward(head_dim: u32) -> bool {
    matches!(head_dim, 64 | 72 | 80 | 128)
}

/// Plans the launches of kernel `attention_bwd_bf16`.
pub fn bwd_bf16(p: &BwdParams, arch: &Arch) -> Vec<Stage> {
    let choices = plan_choices(arch);
    let by_warpgroups = choices.bwd_wgmma_head_dims.contains(&p.head_dim);
    if by_warpgroups && p.max_seqlen >= choices.bwd_wgmma_min_seqlen {
        return bwd_bf16_wgmma(p, arch);
    }
    bwd_bf16_mma(p, arch)
}

/// Plans the launches of kernel `attention_bwd_bf16` with mma.sync: tiles of 64 keys for dk and dv, then tiles of 64
/// queries for dq.
pub fn bwd_bf16_mma(p: &BwdParams, _: &Arch) -> Vec<Stage> {
    let [dkv, dq] = match p.head_dim {
        64 => ["attention_bwd_bf16_dkv_64", "attention_bwd_bf16_dq_64"],
        72 => ["attention_bwd_bf16_dkv_72", "attention_bwd_bf16_dq_72"],
        80 => ["attention_bwd_bf16_dkv_80", "attention_bwd_bf16_dq_80"],
        128 => ["attention_bwd_bf16_dkv_128", "attention_bwd_bf16_dq_128"],
        _ => return bwd_fma(["attention_bwd_bf16", "attention_bwd_bf16_dkv", "attention_bwd_bf16_dq"], p),
    };
    let blocks = |heads: u32| slots(p.tokens, p.seqs, p.max_seqlen, ROWS) * u64::from(heads);
    let stages = [
        deltas("attention_bwd_bf16", p),
        stage(dkv, blocks(p.kv_heads), 128, key_tiles(p.head_dim)),
        stage(dq, blocks(p.heads), 128, 6 * mma_tile(p.head_dim)),
    ];
    stages.into_iter().flatten().collect()
}

/// Returns the bytes of shared memory of a block: `BackwardShared` of backward_producer.cuh.
const fn backward_shared(head_dim: u32) -> u32 {
    let (visits, key_slots, value_slots, tiles) = (4, 3, 2, 2);
    let key_tiles = (2 + key_slots + value_slots) * 128 * wgmma_columns(head_dim) * 2;
    key_tiles + visits * (512 + 16 + 3 * 8) + tiles * (32 + 2 * 8) + 4 * 8 + (key_slots + value_slots) * 3 * 8
}

/// Plans the launches of kernel `attention_bwd_bf16` with wgmma. GPUs before Hopper and other head_dims get mma.sync.
/// With a workspace every multiprocessor has one block, and the blocks take tile numbers from an atomic counter.
/// Without a workspace every tile has a block.
pub fn bwd_bf16_wgmma(p: &BwdParams, arch: &Arch) -> Vec<Stage> {
    bwd_bf16_wgmma_of_128("attention_bwd_bf16_wgmma_128", p, arch)
}

/// Plans the launches of [`bwd_bf16_wgmma`] with another kernel for head_dim 128, which computes the exponentials of dq
/// while dp is computed (`QueryConsumer` of backward_wgmma_queries.cuh).
pub fn bwd_bf16_early(p: &BwdParams, arch: &Arch) -> Vec<Stage> {
    bwd_bf16_wgmma_of_128("attention_bwd_bf16_wgmma_128_early", p, arch)
}

fn bwd_bf16_wgmma_of_128(of_128: &'static str, p: &BwdParams, arch: &Arch) -> Vec<Stage> {
    let symbol = match p.head_dim {
        64 => "attention_bwd_bf16_wgmma_64",
        72 => "attention_bwd_bf16_wgmma_72",
        80 => "attention_bwd_bf16_wgmma_80",
        128 => of_128,
        _ => return bwd_bf16_mma(p, arch),
    };
    if arch.sm < 90 {
        return bwd_bf16_mma(p, arch);
    }
    let forward = p.forward_params();
    let key_parts = slots(p.tokens, p.seqs, p.max_seqlen, KEYS_PER_TILE.into()) * u64::from(p.max_parts * p.kv_heads);
    let tiles = key_parts + packed_queries(&forward).tile_count(KEYS_PER_TILE);
    if tiles == 0 || p.tokens == 0 {
        return Vec::new();
    }
    assert!(p.max_parts == 1 || !p.workspace.is_null(), "the parts of a tile of keys need a workspace");
    let blocks = if p.workspace.is_null() { tiles } else { tiles.min(arch.multiprocessors.into()) };
    let map = |tensor, heads, rows| packed_heads(&forward, tensor, heads).tensor_map_of_whole_heads(rows);
    let maps = [
        (offset_of!(BwdParams, q_map), map(p.q, p.heads, ROWS as u32)),
        (offset_of!(BwdParams, d_o_map), map(p.d_o, p.heads, ROWS as u32)),
        (offset_of!(BwdParams, k_map), map(p.k, p.kv_heads, KEYS_PER_TILE)),
        (offset_of!(BwdParams, v_map), map(p.v, p.kv_heads, KEYS_PER_TILE)),
    ];
    let gradients = stage(symbol, blocks, 384, backward_shared(p.head_dim));
    let gradients = gradients.map(|stage| Stage { tensor_maps: maps.to_vec(), ..stage });
    [deltas("attention_bwd_bf16_ticket", p), gradients].into_iter().flatten().collect()
}

/// Plans the launch that computes delta = d_o . o; a block of threads computes sixteen rows.
fn deltas(symbol: &'static str, p: &BwdParams) -> Option<Stage> {
    stage(symbol, (p.tokens as u64 * p.heads as u64).div_ceil(16), 256, 0)
}

fn bwd_fma([delta, dkv, dq]: [&'static str; 3], p: &BwdParams) -> Vec<Stage> {
    let slots = slots(p.tokens, p.seqs, p.max_seqlen, ROWS) * p.head_dim.div_ceil(FMA_COLUMNS) as u64;
    let stages = [
        deltas(delta, p),
        stage(dkv, slots * p.kv_heads as u64, 256, 4 * FMA_TILE),
        stage(dq, slots * p.heads as u64, 256, 4 * FMA_TILE),
    ];
    stages.into_iter().flatten().collect()
}
