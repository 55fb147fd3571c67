//! [`crate::rope_kv_write`] with RMS norms: normalises each head of the queries and keys of new tokens, rotates them,
//! and writes keys and values to a paged KV cache, in one launch, as a decode step of Qwen3-VL needs it.
//!
//! - `q[t, h] = rotate(rms_norm(q[t, h], q_norm), angles[t])`, in place
//! - `k_cache[slots[t]] = rotate(rms_norm(k[t], k_norm), angles[t])`, `v_cache[slots[t]] = v[t]`
//!
//! The norm is [`crate::rms_norm`] over rows of head_dim elements and the rotation [`crate::rope`], bit for bit. Slots
//! and pages are those of [`crate::rope_kv_write`].
//!
//! Shapes: those of [`crate::rope_kv_write`], and q_norm, k_norm `[head_dim]` of the dtype of q; head_dim up to
//! [`MAX_HEAD_DIM`]. Numerics: the norm rounds as [`crate::rms_norm`] documents, the rotation of its results in f32 is
//! rounded once; bits of v are copied. Memory-bound: each element is read and written once. This needs heads of 2 V, 4
//! V, … 32 V elements and aligned addresses, V elements being 16 bytes; other heads are read twice, element by element.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::folder::kernel_folder;
use crate::rope_kv_write::{self, plan_write};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// The queries, `[tokens, heads, head_dim]`, which the kernel normalises and rotates in place.
        pub q: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// `[head_dim]`, the weights of the norm of each head of q.
        pub q_norm: Addr,
        /// `[head_dim]`, the weights of the norm of each head of k.
        pub k_norm: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub cos: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub sin: Addr,
        /// The cache of keys, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the tokens' slots.
        pub k_cache: Addr,
        /// The cache of values, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the tokens'
        /// slots.
        pub v_cache: Addr,
        /// i32 `[tokens]`: the slot of each token, `page * page_tokens + row of the page`. Slots are different and
        /// within the cache. The key and value of a token with a negative slot are not written.
        pub slots: Addr,
        /// Number of new tokens.
        pub tokens: u32,
        /// Query heads.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head; even, and at most [`MAX_HEAD_DIM`].
        pub head_dim: u32,
        /// Pages of the cache.
        pub pages: u32,
        /// Number of tokens per page of the caches: 16, 32, 64, 128 or 256.
        pub page_tokens: u32,
        /// eps of the norms: is added to the mean square before the square root.
        pub eps: f32,
        /// 0
        pub reserved: u32,
    }
}

impl Params {
    /// Returns the parameters of the launch without norms.
    pub fn without_norms(&self) -> rope_kv_write::Params {
        rope_kv_write::Params {
            q: self.q,
            k: self.k,
            v: self.v,
            cos: self.cos,
            sin: self.sin,
            k_cache: self.k_cache,
            v_cache: self.v_cache,
            slots: self.slots,
            tokens: self.tokens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            pages: self.pages,
            page_tokens: self.page_tokens,
        }
    }
}

kernel_folder! {
    name: "rope_kv_write_norm",
    params: [Params],
    headers_of: [rms_norm],
    traffic: traffic_launches,
}

kernel!(pub WRITE_F32, "rope_kv_write_norm_f32", Params, cpu::write::<f32>, &SOURCE, |p, arch| {
    plan_write("rope_kv_write_norm_f32", &p.without_norms(), arch, 4)
});
kernel!(pub WRITE_BF16, "rope_kv_write_norm_bf16", Params, cpu::write::<half::bf16>, &SOURCE, |p, arch| {
    plan_write("rope_kv_write_norm_bf16", &p.without_norms(), arch, 8)
});

/// Maximum head_dim. One warp of [`crate::rms_norm`] sums the squares of such a row; longer rows have another order of
/// summation.
pub const MAX_HEAD_DIM: u32 = 512;

/// Returns the launch; `dtype` is that of q, k, v, norms and caches, F32 or BF16.
pub fn write(dtype: DType, params: &Params) -> Launch {
    let Cost { flops, bytes } = rope_kv_write::write(dtype, &params.without_norms()).cost();
    let heads = params.tokens as f64 * (params.heads + params.kv_heads) as f64;
    let cost = Cost { flops: flops + 4.0 * heads * params.head_dim as f64, bytes };
    Launch::kernel(kernel_for_dtype(dtype, &WRITE_F32, &WRITE_BF16), params, cost)
}
