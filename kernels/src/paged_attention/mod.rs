//! Causal attention of new tokens over keys and values in a paged KV cache: prefill, chunked prefill and decode.
//!
//! A page is what the engine calls a block of the KV cache: the keys and values of `page_tokens` consecutive tokens. In
//! this folder a block is a block of threads or 64 keys.
//!
//! Sequence `n` has the new tokens `cu_seqlens[n] .. cu_seqlens[n + 1]` and `kv_lens[n]` keys, including those of the
//! new tokens (which [`crate::rope_kv_write`] has written). Key `j` is in row `j % page_tokens` of page
//! `block_tables[n, j / page_tokens]`. New token `i` of `m` sees the keys `0 ..= kv_len - m + i`. Formula and order of
//! summation are those of [`crate::attention`]. A sequence without keys is padding: it has at most one new token, whose
//! output is zero.
//!
//! Shapes: q, o `[tokens, heads, head_dim]`, caches `[pages, page_tokens, kv_heads, head_dim]`, all f32 or all bf16;
//! head_dim up to 256 in CUDA.
//!
//! # Segments
//! A row's keys are processed in ascending blocks of 64. 8 blocks are a segment of 512 keys with its own maximum, sum
//! and output; segments are merged in ascending order. Example with 1100 keys: segments 0..512, 512..1024,
//! 1024..1100. So a row's segments follow from its own number of keys. Without a workspace one block of threads
//! processes them one after the other. With a workspace each segment has its own block of threads; this keeps a GPU
//! busy when few sequences decode. The bits are the same; [`workspace_bytes`] says when a workspace is faster. In
//! prefill, a second launch merges the segments. In decode (bf16, at most as many new tokens as sequences) the block
//! that finishes the last segment of a row does, so there is one launch; it needs [`Params::counters`].
//!
//! # Hopper
//! On compute capability 9.0, bf16 with head_dim 64, 80 and 128 has the order of sums of `attention/row_state.cuh`:
//! segments, and blocks of 128 keys, in descending order. So the output of every new token is bit-identical to the
//! forward pass of [`crate::attention`] over its whole sequence, whether the token is decoded or part of a prompt,
//! and however the prompt is divided into chunks.
//!
//! Decode (`FWD_BF16_DECODE_ROWS`): a persistent block of threads per multiprocessor takes segments by an atomic
//! counter, the first element of [`Params::counters`], and a second launch merges the segments of rows that have more
//! than one. The page that has a sequence's last key is read up to its end, or for 64 rows; rows beyond the last key
//! change nothing, whatever they hold.
//!
//! Prefill (`FWD_BF16_PREFILL_WGMMA`) is the forward pass with wgmma, with keys in pages. A tile has the 128
//! positions from a multiple of 128 on, of one head; a chunk may begin within a tile. Persistent blocks of threads take
//! tiles by an atomic counter, [`Params::tile_counter`]. It uses no workspace.
//!
//! # Shared pages
//! Completions of one prompt have the same first pages. In decode with a workspace, up to 8 neighbouring tokens whose
//! entries of `block_tables` are equal in a segment, and which see keys beyond it, are computed by one block of
//! threads, which reads the segment's keys and values once. The kernel compares the entries itself, so a captured
//! launch stays valid when sequences come and go. On device `cpu`, neighbouring sequences with the same first 64 keys
//! are computed by one thread, which reads each block of 64 keys that they share once. Rows do not depend on each
//! other, so bits do not change.
//!
//! # Numerics
//! The order of summation depends on the row's own keys only. So prefill, any chunking of it, decode, any batch and
//! any page size agree bit for bit on one device, and on device `cpu` also with the packed forward pass, which is the
//! same code. Device `cpu` computes in f32 between load and store. CUDA does too for f32 (2^x by `ex2.approx`); for
//! bf16 the probabilities are rounded to bf16 for the product with V, while their sum takes the unrounded values.
//! Tolerance as a multiple of one rounding error: f32 60, bf16 2.5. Rows of pages that no sequence has reached are
//! never read, except by decode on Hopper.
//!
//! # Bound
//! Decode: memory, every key and value is read once. Prefill: multiply-adds, `4 * head_dim` operations per pair of
//! token and key. The cost counts the keys of every sequence: which pages are shared is known on the device only. So
//! with shared pages a launch may take less time than its cost divided by the memory bandwidth. The workspace is not
//! counted: 1040 bytes per row and segment at head_dim 128, 3 % of the bytes of decode with 7 query heads per key
//! head.

pub(crate) mod check;
mod cpu;
mod decode_plan;
mod examples;
mod prefill_plan;

pub use decode_plan::counters_per_token;
use reel_device::launch::{CostOfKeys, Padding, RowKeyCounts, TensorMapSlot, kernel_for_dtype};
use reel_device::{Addr, Arch, Cost, DType, Launch, Stage, kernel, params};

use crate::attention;
use crate::folder::kernel_folder;
use crate::tuning::Variant;
use decode_plan::is_decode;

/// Tokens per page of the KV caches that the engine allocates; also the number of keys that the CUDA and CPU kernels
/// process at a time.
pub const BLOCK_TOKENS: usize = 64;

/// Number of keys of a segment.
const SEGMENT: u32 = 512;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// Tensor map of `k_cache`; only launches whose kernel uses tensor copies fill it in.
        pub k_map: TensorMapSlot,
        /// Tensor map of `v_cache`.
        pub v_map: TensorMapSlot,
        /// Tensor map of q.
        pub q_map: TensorMapSlot,
        /// `[tokens, heads, head_dim]`
        pub q: Addr,
        /// Cache of keys: `[pages, page_tokens, kv_heads, head_dim]`.
        pub k_cache: Addr,
        /// Cache of values: `[pages, page_tokens, kv_heads, head_dim]`.
        pub v_cache: Addr,
        /// The output, `[tokens, heads, head_dim]`; the kernel writes it.
        pub o: Addr,
        /// Null: the code that prefill has in common with [`crate::attention`] writes the log-sum-exps here if it is not.
        pub lse: Addr,
        /// i32 `[seqs + 1]`: index of the first new token of each sequence, then the end of the last sequence. The
        /// values do not decrease and lie between 0 and `tokens`.
        pub cu_seqlens: Addr,
        /// i32 `[seqs]`: number of keys of each sequence, including the new tokens.
        pub kv_lens: Addr,
        /// i32 `[seqs, max_blocks]`: the pages of each sequence in order. Page numbers beyond a sequence's keys are
        /// not read.
        pub block_tables: Addr,
        /// A workspace of [`workspace_bytes`] bytes for each segment's output, maximum and sum. Null: one block of
        /// threads processes all segments of its rows, one after the other.
        pub workspace: Addr,
        /// u32 `[tokens, `[`counters_per_token`]`]`, all 0 before and after the launch: the number of segments that
        /// are stored in the workspace; on Hopper, the number of items of work that blocks have taken. Only decode in
        /// bf16 uses the counters. Null: the kernel for prefill computes decode, too.
        pub counters: Addr,
        /// u32, 0 before and after the launch: the atomic counter from which the blocks of prefill on Hopper take tile
        /// numbers, as in [`attention::FwdParams`].
        pub tile_counter: Addr,
        /// Number of new tokens of all sequences together.
        pub tokens: u32,
        /// Sequences.
        pub seqs: u32,
        /// Number of query heads, a multiple of `kv_heads`.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head.
        pub head_dim: u32,
        /// Row length of `block_tables`.
        pub max_blocks: u32,
        /// Softmax scale: the positive factor by which scores (q · k) are multiplied.
        pub scale: f32,
        /// The largest of `kv_lens`.
        pub max_kv_len: u32,
        /// Tokens per page: 16, 32, 64, 128 or 256.
        pub page_tokens: u32,
        /// `scale * log2(e)`, which [`fwd`] fills in. Kernels read this number from the parameters where they use it,
        /// so it needs no register.
        pub score_factor: f32,
        /// Number of query heads of a section of the order of tiles of prefill on Hopper; [`fwd`] fills it in.
        pub section_heads: u32,
        /// Zeros.
        pub reserved: Padding<15>,
    }
}

kernel_folder! {
    name: "paged_attention",
    params: [Params],
    headers: [
        "decode_mma.cuh", "decode_producer.cuh", "decode_rows.cuh", "decode_work.cuh", "forward_fma.cuh", "prefill_mma.cuh",
        "prefill_wgmma.cuh", "tile.cuh"
    ],
    headers_of: [attention],
    variants: VARIANTS,
}

kernel!(pub FWD_F32, "paged_attention_fwd_f32", Params, cpu::fwd::<f32>, &SOURCE, plan_f32);
kernel!(pub FWD_BF16, "paged_attention_fwd_bf16", Params, cpu::fwd::<half::bf16>, &SOURCE, plan_bf16);
kernel!(pub FWD_BF16_MMA, "paged_attention_fwd_bf16", Params, cpu::fwd::<half::bf16>, &SOURCE, plan_bf16_mma);
kernel!(
    pub FWD_BF16_DECODE_ROWS,
    "paged_attention_fwd_bf16",
    Params,
    cpu::fwd::<half::bf16>,
    &SOURCE,
    decode_plan::plan_bf16_decode_rows
);

kernel!(
    pub FWD_BF16_PREFILL_WGMMA,
    "paged_attention_fwd_bf16",
    Params,
    cpu::fwd::<half::bf16>,
    &SOURCE,
    prefill_plan::plan_bf16_wgmma
);

const VARIANTS: &[Variant] = &[
    Variant { of: &FWD_BF16, name: "products of warps", kernel: &FWD_BF16_MMA },
    Variant { of: &FWD_BF16, name: "decode in the order of the forward pass", kernel: &FWD_BF16_DECODE_ROWS },
    Variant { of: &FWD_BF16, name: "prefill by products of warpgroups", kernel: &FWD_BF16_PREFILL_WGMMA },
];

/// A compiled variant: (largest head_dim, kernel names, bytes of dynamic shared memory).
type Shape<S> = (u32, S, u32);

/// The kernel names of a variant: [without a workspace, with a workspace].
type Symbols = [&'static str; 2];

fn plan_bf16(p: &Params, arch: &Arch) -> Vec<Stage> {
    match attention::choices::plan_choices(arch).by_warpgroups {
        true if is_decode(DType::BF16, p) => decode_plan::plan_bf16_decode_rows(p, arch),
        true => prefill_plan::plan_bf16_wgmma(p, arch),
        false => plan_bf16_mma(p, arch),
    }
}

/// Plans the launches of the mma.sync kernels, which run on every GPU (prefill_mma.cuh, decode_mma.cuh).
fn plan_bf16_mma(p: &Params, arch: &Arch) -> Vec<Stage> {
    if is_decode(DType::BF16, p) {
        return decode_plan::plan_decode(p, arch);
    }
    // Shared memory holds two buffers, each for 64 keys and 64 values. The buffers' rows start an odd number of 16-byte
    // chunks apart, which avoids bank conflicts. For head_dim 256 there is one buffer, with only 64 columns of V. From
    // head_dim 128 on, shared memory also holds the queries.
    const SHAPES: [Shape<Symbols>; 4] = [
        (64, ["paged_attention_fwd_bf16_64", "paged_attention_fwd_bf16_64_split"], 2 * 64 * 2 * 9 * 16),
        (80, ["paged_attention_fwd_bf16_80", "paged_attention_fwd_bf16_80_split"], 2 * 64 * 2 * 11 * 16),
        (
            128,
            ["paged_attention_fwd_bf16_128", "paged_attention_fwd_bf16_128_split"],
            2 * 64 * 2 * 17 * 16 + 64 * 128 * 2,
        ),
        (
            256,
            ["paged_attention_fwd_bf16_256", "paged_attention_fwd_bf16_256_split"],
            64 * (33 + 9) * 16 + 64 * 256 * 2,
        ),
    ];
    plan(p, 64, &SHAPES, "paged_attention_fwd_bf16_combine", if p.head_dim > 128 { 4 } else { 1 })
}

fn plan_f32(p: &Params, _: &Arch) -> Vec<Stage> {
    // Shared memory holds 16 queries, their probabilities, 64 keys and 64 values. For head_dim 256, one buffer holds
    // first the keys, then the values.
    const fn bytes(d: u32, buffers: u32) -> u32 {
        4 * ((16 + buffers * 64) * (d + 4) + 16 * 72)
    }
    const SHAPES: [Shape<Symbols>; 3] = [
        (64, ["paged_attention_fwd_f32_64", "paged_attention_fwd_f32_64_split"], bytes(64, 2)),
        (128, ["paged_attention_fwd_f32_128", "paged_attention_fwd_f32_128_split"], bytes(128, 2)),
        (256, ["paged_attention_fwd_f32_256", "paged_attention_fwd_f32_256_split"], bytes(256, 1)),
    ];
    plan(p, 16, &SHAPES, "paged_attention_fwd_f32_combine", 1)
}

/// Returns the first variant that supports the head_dim of the launch.
///
/// # Panics
/// If head_dim is larger than that of the last variant, which is an error of the caller: an empty plan would leave the
/// output unwritten.
fn smallest_shape<'a, S>(p: &Params, variants: &'a [Shape<S>]) -> &'a Shape<S> {
    let found = variants.iter().find(|v| p.head_dim <= v.0);
    found.unwrap_or_else(|| panic!("paged_attention: head_dim is {}; CUDA kernels support up to 256", p.head_dim))
}

/// Plans one block of threads for each combination of a tile of `rows` packed rows, a key head and one of `slices`
/// ranges of columns. With a workspace each segment of keys has its own block of threads, and a second launch
/// combines the segments.
fn plan(p: &Params, rows: u32, variants: &[Shape<Symbols>], combine: &'static str, slices: u32) -> Vec<Stage> {
    if p.tokens == 0 || p.seqs == 0 {
        return Vec::new();
    }
    let (_, symbols, shared) = smallest_shape(p, variants);
    let split = !p.workspace.is_null();
    let blocks = tiles(p, rows) * p.kv_heads * slices;
    let main = |symbol, blocks| Stage { shared: *shared, ..Stage::one_dimensional(symbol, blocks, 128) };
    if split {
        let merge = Stage::one_dimensional(combine, (p.tokens * p.heads).div_ceil(4), 128);
        vec![main(symbols[1], blocks * segments(p)), merge]
    } else {
        vec![main(symbols[0], blocks)]
    }
}

/// Returns an upper bound on the number of tiles of `rows` packed rows: the last tile of each sequence may be
/// incomplete.
fn tiles(p: &Params, rows: u32) -> u32 {
    (p.tokens as u64 * (p.heads / p.kv_heads) as u64 / rows as u64) as u32 + p.seqs
}

fn segments(p: &Params) -> u32 {
    p.max_kv_len.div_ceil(SEGMENT)
}

/// Returns the size in bytes of the workspace that lets blocks of threads share a sequence's segments of keys: an f32
/// output, maximum and sum for each segment of each row. `dtype` is that of q. Returns 0 if there is only one segment.
/// Decode in bf16 also gets 0 if the workspace would be large (more than 130 MiB at head_dim 128). Prefill, f32 and
/// launches without counters get 0 if there are enough blocks without it.
pub fn workspace_bytes(dtype: DType, p: &Params) -> usize {
    let parts = u64::from(p.tokens) * u64::from(p.heads) * u64::from(segments(p));
    let is_faster = match is_decode(dtype, p) {
        true => parts <= 1 << 18,
        false => parts <= 1 << 16 && tiles(p, 64) * p.kv_heads <= 512,
    };
    if segments(p) >= 2 && is_faster { bytes_of_parts(p) } else { 0 }
}

fn bytes_of_parts(p: &Params) -> usize {
    let parts = p.tokens as usize * p.heads as usize * segments(p) as usize;
    parts * (p.head_dim as usize).next_multiple_of(4) * 4 + parts * 8
}

/// Makes the launch. `dtype` is the type of q, o and the caches, F32 or BF16. `pairs` is the number of (new token,
/// key) pairs that one head computes, and `keys` the sum of `kv_lens`; [`query_key_pair_and_key_counts`] returns both.
pub fn fwd(dtype: DType, params: &Params, pairs: f64, keys: f64) -> Launch {
    let kernel = kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16);
    let section_heads = attention::plan::section_heads(keys as u64, params.heads, params.kv_heads, params.head_dim);
    let params = &Params { score_factor: params.scale * std::f32::consts::LOG2_E, section_heads, ..*params };
    let (heads, kv_heads, d) = (params.heads as f64, params.kv_heads as f64, params.head_dim as f64);
    let bytes = 2.0 * (params.tokens as f64 * heads + keys * kv_heads) * d * dtype.size() as f64;
    Launch::kernel(kernel, params, Cost { flops: 4.0 * d * heads * pairs, bytes })
}

/// Makes the launch of a decode step, in which each sequence has one new token. `rows` holds the number of keys of each
/// sequence, at most `max_keys`; the cost of a captured launch follows these numbers.
pub fn decode(dtype: DType, params: &Params, max_keys: usize, rows: RowKeyCounts) -> Launch {
    let max_keys = params.seqs as f64 * max_keys as f64;
    let (heads, kv_heads, d) = (params.heads as f64, params.kv_heads as f64, params.head_dim as f64);
    let of_one = Cost { flops: 4.0 * d * heads, bytes: 2.0 * kv_heads * d * dtype.size() as f64 };
    let mut launch = fwd(dtype, params, max_keys, max_keys);
    if let Launch::Kernel(launch) = &mut launch {
        launch.keys = Some(CostOfKeys { rows, max_keys, of_one });
    }
    launch
}

/// Returns two numbers: the (new token, key) pairs that one head computes, and the keys of all sequences. A sequence
/// is given as (number of new tokens, number of keys including the new tokens' keys).
pub fn query_key_pair_and_key_counts(sequences: impl IntoIterator<Item = (usize, usize)>) -> (f64, f64) {
    let (mut pairs, mut keys) = (0.0, 0.0);
    for (new, kv_len) in sequences {
        let (new, kv_len) = (new as f64, kv_len as f64);
        pairs += new * (kv_len - new) + new * (new + 1.0) / 2.0;
        keys += kv_len;
    }
    (pairs, keys)
}
