//! Causal attention of new tokens over keys and values in the blocks of a paged cache: prefill, chunks and decode.
//!
//! Sequence `n` has the new tokens `cu_seqlens[n] .. cu_seqlens[n + 1]` and `kv_lens[n]` keys, these tokens' own
//! included (see [`crate::kv_write`]); key `j` lies at place `j % 64` of cache block `block_tables[n, j / 64]`. New token
//! `i` of `m` sees the keys `0 ..= kv_len - m + i`. The maths and its order are those of [`crate::attention`].
//!
//! Shapes: q, o `[tokens, heads, head_dim]`, caches `[blocks, 64, kv_heads, head_dim]`, all f32 or all bf16.
//!
//! Numerics: the same code as the packed kernel, so prefill, any chunking of it, decode and the packed forward agree bit
//! for bit. Parts of the cache that no sequence has reached yet are never read.
//!
//! Bound: decode reads every key and value once (memory); prefill does `4 * head_dim` operations a pair (f32
//! multiply-adds).

mod cpu;
#[cfg(test)]
mod tests;

use crate::{Addr, Cost, DType, Launch, kernel, params};

/// Tokens of a cache block.
pub const BLOCK: usize = 64;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[tokens, heads, head_dim]`
        pub q: Addr,
        /// `[blocks, BLOCK, kv_heads, head_dim]`
        pub k_cache: Addr,
        /// `[blocks, BLOCK, kv_heads, head_dim]`
        pub v_cache: Addr,
        /// `[tokens, heads, head_dim]`, written.
        pub o: Addr,
        /// i32 `[seqs + 1]`: where the new tokens of each sequence begin, not decreasing, from 0 up to at most `tokens`.
        pub cu_seqlens: Addr,
        /// i32 `[seqs]`: keys of each sequence, the new tokens included.
        pub kv_lens: Addr,
        /// i32 `[seqs, max_blocks]`: the cache blocks of each sequence; those beyond its keys are not looked at.
        pub block_tables: Addr,
        /// New tokens of all sequences.
        pub tokens: u32,
        /// Sequences.
        pub seqs: u32,
        /// Query heads, a multiple of `kv_heads`.
        pub heads: u32,
        /// Key and value heads.
        pub kv_heads: u32,
        /// Elements of a head.
        pub head_dim: u32,
        /// Row length of `block_tables`.
        pub max_blocks: u32,
        /// Factor of the scores.
        pub scale: f32,
        /// The largest of `kv_lens`.
        pub max_kv_len: u32,
    }
}

kernel!(pub FWD_F32, "paged_attention_fwd_f32", Params, cpu::fwd::<f32>);
kernel!(pub FWD_BF16, "paged_attention_fwd_bf16", Params, cpu::fwd::<half::bf16>);

/// The launch. `dtype` is that of q, o and the caches, F32 or BF16; `pairs` is the number of (new token, key) pairs of one
/// head and `keys` the sum of `kv_lens`, see [`work`].
pub fn fwd(dtype: DType, params: &Params, pairs: f64, keys: f64) -> Launch {
    let kernel = if dtype == DType::F32 { &FWD_F32 } else { &FWD_BF16 };
    let (heads, kv_heads, d) = (params.heads as f64, params.kv_heads as f64, params.head_dim as f64);
    let bytes = 2.0 * (params.tokens as f64 * heads + keys * kv_heads) * d * dtype.size() as f64;
    Launch::kernel(kernel, params, Cost { flops: 4.0 * d * heads * pairs, bytes })
}

/// The (new token, key) pairs of one head, and the keys, of sequences given as (new tokens, keys with the new tokens).
pub fn work(sequences: impl IntoIterator<Item = (usize, usize)>) -> (f64, f64) {
    let (mut pairs, mut keys) = (0.0, 0.0);
    for (new, kv_len) in sequences {
        let (new, kv_len) = (new as f64, kv_len as f64);
        pairs += new * (kv_len - new) + new * (new + 1.0) / 2.0;
        keys += kv_len;
    }
    (pairs, keys)
}
