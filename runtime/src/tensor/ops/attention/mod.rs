//! Attention over packed sequences (training, scoring, the vision tower) and over the KV cache (generation).
//!
//! [`CuSeqlens`] says where each sequence of a packed row begins, and which prefix it shares. Example: a GRPO group
//! whose prompt has 4 tokens p0..p3 and whose completions have 2 and 3 tokens. The prompt is stored once, except for
//! its last token, which stands in front of each completion, because it predicts the first completion token:
//!
//! ```text
//! row:         p0 p1 p2 | p3 a0 | p3 b0 b1         cu_seqlens = [0, 3, 5, 8]
//! prefixes:    none     | (0,3) | (0,3)            (first token, number of tokens)
//! a0 attends:  p0 p1 p2   p3 a0
//! b1 attends:  p0 p1 p2           p3 b0 b1
//! ```
//!
//! The keys of a prefix come before the sequence's own keys, so the bits are the same as for the unshared row `p0 p1
//! p2 p3 a0`. For the KV cache, [`KvPages`] has the same role: block tables, lengths, and the cache slots of the new
//! tokens.

use std::sync::Arc;

use reel_device::launch::RowKeyCounts;
use reel_device::{Addr, DType, Device, Kernels, MemoryCategory, in_op};
use reel_kernels::paged_attention::BLOCK_TOKENS;
use reel_kernels::{attention as packed, paged_attention as paged};

use super::{size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::BackwardContext;
use crate::tensor::{Tensor, format_shape};

mod kv_write;
pub use kv_write::{HeadNorms, KvDestination, UnrotatedRows, copy_kv_blocks, rotate_and_cache};

/// Where each sequence begins if several sequences are packed into one row of tokens: `[0, len_0, len_0 + len_1, …]`,
/// on the host and on the device.
///
/// A sequence may have a shared prefix: earlier tokens of the row whose keys come before its own. Completions share
/// their prompt in this way.
#[derive(Clone, Debug)]
pub struct CuSeqlens {
    host: Arc<[i32]>,
    device: Tensor, // i32 [seqs + 1]
    // u32 [1], 0 between launches: the counter from which the forward kernels for Hopper take tile numbers. All launches
    // with this batch follow one another on the stream of the device, and they share the counter. A launch that is
    // refused does not run, and a kernel that fails ends the use of the GPU by this process: every later call of the
    // driver fails. So no launch finds another value.
    tile_counter: Tensor,
    prefix: Option<Prefixes>,
}

/// The shared prefix of each sequence.
#[derive(Clone, Debug)]
struct Prefixes {
    /// First token and number of tokens of each prefix; (0, 0) for none.
    host: Arc<[(usize, usize)]>,
    device: Tensor, // i32 [seqs, 2]
}

impl CuSeqlens {
    /// Makes the offsets `[0, len_0, len_0 + len_1, …]`, which must start at 0 and not decrease.
    ///
    /// # Errors
    /// Offsets that do not start at 0 or that decrease; out of memory.
    pub fn new(device: &Device, offsets: &[i32]) -> Result<CuSeqlens> {
        if offsets.first() != Some(&0) || offsets.windows(2).any(|w| w[1] < w[0]) {
            return Err(shape_error(
                "cu_seqlens",
                format!("offsets {offsets:?} must start at 0 and must not decrease"),
            ));
        }
        // One copy to the device: the offsets, then the counter.
        let seqs = offsets.len() - 1;
        let words = Tensor::from_i32(device, &[seqs + 2], &[offsets, &[0]].concat())?;
        let (device, tile_counter) = (words.rows(0, seqs + 1)?, words.rows(seqs + 1, 1)?);
        Ok(CuSeqlens { host: offsets.into(), device, tile_counter, prefix: None })
    }

    /// Gives each sequence a shared prefix, as the first token of the prefix and its number of tokens (0: no prefix).
    ///
    /// # Errors
    /// A number of prefixes other than the number of sequences; a prefix that does not end before its sequence; out
    /// of memory.
    pub fn with_prefixes(self, first_token_and_len: &[(usize, usize)]) -> Result<CuSeqlens> {
        let fits = |(n, &(first, tokens)): (usize, &(usize, usize))| first + tokens <= self.host[n] as usize;
        if first_token_and_len.len() != self.sequence_count() || !first_token_and_len.iter().enumerate().all(fits) {
            let what = format!(
                "prefixes (first token, length) {first_token_and_len:?} must end before their sequences, \
                 which have the offsets {:?}",
                self.host
            );
            return Err(shape_error("cu_seqlens", what));
        }
        let words: Vec<i32> =
            first_token_and_len.iter().flat_map(|&(first, tokens)| [first as i32, tokens as i32]).collect();
        let table = Tensor::from_i32(self.device.device(), &[first_token_and_len.len(), 2], &words)?;
        Ok(CuSeqlens { prefix: Some(Prefixes { host: first_token_and_len.into(), device: table }), ..self })
    }

    /// Makes the offsets from the lengths of the sequences.
    ///
    /// # Errors
    /// More than 2^31 tokens; out of memory.
    pub fn from_lengths(device: &Device, lengths: &[usize]) -> Result<CuSeqlens> {
        let mut offsets = vec![0i32];
        for (i, &n) in lengths.iter().enumerate() {
            let next = i32::try_from(n).ok().and_then(|n| offsets[i].checked_add(n));
            offsets.push(next.ok_or_else(|| shape_error("cu_seqlens", "more than 2^31 tokens"))?);
        }
        CuSeqlens::new(device, &offsets)
    }

    /// The total number of tokens in all sequences.
    pub fn token_count(&self) -> usize {
        self.host.last().map_or(0, |&n| n as usize)
    }

    /// The number of sequences.
    pub fn sequence_count(&self) -> usize {
        self.host.len() - 1
    }

    /// The length of each sequence.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.host.windows(2).map(|w| (w[1] - w[0]) as usize)
    }

    /// The number of pairs of a token and a token that it attends to: itself, the earlier tokens of its sequence, and
    /// the shared prefix.
    pub fn attention_pairs(&self) -> f64 {
        let prefix = |i: usize| self.prefix.as_ref().map_or(0, |p| p.host[i].1) as f64;
        let pairs = |(i, n): (usize, usize)| n as f64 * ((n as f64 + 1.0) / 2.0 + prefix(i));
        self.lengths().enumerate().map(pairs).sum()
    }

    /// The device address of the offsets.
    pub(super) fn addr(&self) -> Addr {
        self.device.addr()
    }

    /// The offsets of the first `seqs` sequences, which share the device memory of `self`.
    pub(super) fn first_sequences(&self, seqs: usize) -> Result<CuSeqlens> {
        let device = self.device.rows(0, seqs + 1)?;
        let prefix = match &self.prefix {
            Some(p) => Some(Prefixes { host: p.host[..seqs].into(), device: p.device.rows(0, seqs)? }),
            None => None,
        };
        Ok(CuSeqlens { host: self.host[..=seqs].into(), device, tile_counter: self.tile_counter.clone(), prefix })
    }

    /// The device address of the prefixes; null if there are none.
    fn prefix_addr(&self) -> Addr {
        self.prefix.as_ref().map_or(Addr::NULL, |p| p.device.addr())
    }

    /// The number of (query, key) pairs that attention computes, for the cost estimate of a launch.
    fn pairs(&self, causal: bool) -> f64 {
        let prefixed = self.prefix.iter().flat_map(|p| p.host.iter());
        let extra: f64 = self.lengths().zip(prefixed).map(|(n, p)| n as f64 * p.1 as f64).sum();
        packed::query_key_pair_count(self.lengths(), causal) + extra
    }

    fn max_len(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }
}

/// Checks the shapes of q, k and v. Returns `(tokens, query heads, key-value heads, head_dim)`.
fn heads(op: &'static str, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(usize, usize, usize, usize)> {
    let (&[tokens, heads, d], &[kv_tokens, kv_heads, kd]) = (q.shape(), k.shape()) else {
        return Err(shape_error(
            op,
            format!(
                "q has shape {}, k {}; expected [tokens, heads, head_dim]",
                format_shape(q.shape()),
                format_shape(k.shape())
            ),
        ));
    };
    if kv_tokens != tokens || kd != d || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(shape_error(
            op,
            format!(
                "q has shape {}, k {}; expected equal tokens and head_dim, and q heads a multiple of k heads",
                format_shape(q.shape()),
                format_shape(k.shape())
            ),
        ));
    }
    want_shape(op, "v", v, k.shape(), "the shape of k")?;
    want_dtype(op, "k", k, q.dtype())?;
    want_dtype(op, "v", v, q.dtype())?;
    Ok((tokens, heads, kv_heads, d))
}

/// `softmax(q kᵀ / sqrt(D)) v` within each sequence: q `[S, Hq, D]`, k and v `[S, Hkv, D]` give `[S, Hq, D]`.
/// With `causal`, a token attends to itself and to earlier tokens.
pub fn attention(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, seqs: &CuSeqlens, causal: bool) -> Result<Tensor> {
    let _op = in_op("attention");
    const OP: &str = "attention";
    let (tokens, n_heads, kv_heads, d) = heads(OP, q, k, v)?;
    if seqs.token_count() != tokens {
        return Err(shape_error(
            OP,
            format!("the last offset of cu_seqlens is {}, but q has {tokens} tokens", seqs.token_count()),
        ));
    }
    let dtype = q.dtype();
    let wants_lse = cx.is_training() && [q, k, v].iter().any(|t| t.needs_grad());
    let lse = if wants_lse { Some(cx.empty(&[tokens, n_heads], DType::F32)?) } else { None };
    let o = cx.empty(q.shape(), dtype)?;
    let p = packed::FwdParams {
        q: q.addr(),
        k: k.addr(),
        v: v.addr(),
        o: o.addr(),
        lse: lse.as_ref().map_or(Addr::NULL, Tensor::addr),
        cu_seqlens: seqs.device.addr(),
        prefix: seqs.prefix_addr(),
        tile_counter: seqs.tile_counter.addr(),
        tokens: size(OP, tokens)?,
        seqs: size(OP, seqs.sequence_count())?,
        heads: size(OP, n_heads)?,
        kv_heads: size(OP, kv_heads)?,
        head_dim: size(OP, d)?,
        causal: causal as u32,
        scale: 1.0 / (d as f32).sqrt(),
        max_seqlen: size(OP, seqs.max_len())?,
        ..packed::FwdParams::EMPTY
    };
    cx.launch(&packed::fwd(dtype, &p, seqs.pairs(causal)))?;
    let kept = KeptInputs { q: q.clone(), k: k.clone(), v: v.clone(), o: o.clone(), seqs: seqs.clone(), forward: p };
    Ok(cx.record(OP, &[q, k, v], o, move |bw| {
        let d_o = bw.take_dy();
        lse.as_ref().map_or(Ok(()), |lse| kept.backward(bw, &d_o, lse))
    }))
}

/// What the backward rule of [`attention`] reads besides the gradient of o and the log-sum-exp.
struct KeptInputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    seqs: CuSeqlens,
    /// The parameters of the forward launch.
    forward: packed::FwdParams,
}

impl KeptInputs {
    /// Adds the gradients of q, k and v.
    fn backward(&self, bw: &mut BackwardContext, d_o: &Tensor, lse: &Tensor) -> Result<()> {
        let (dtype, forward) = (self.q.dtype(), &self.forward);
        let (dq, dk, dv) = (bw.empty_like(&self.q)?, bw.empty_like(&self.k)?, bw.empty_like(&self.v)?);
        let delta = bw.empty(lse.shape(), DType::F32, MemoryCategory::Workspace)?;
        let p = packed::BwdParams {
            q: self.q.addr(),
            k: self.k.addr(),
            v: self.v.addr(),
            o: self.o.addr(),
            lse: lse.addr(),
            d_o: d_o.addr(),
            dq: dq.addr(),
            dk: dk.addr(),
            dv: dv.addr(),
            delta: delta.addr(),
            workspace: Addr::NULL,
            cu_seqlens: self.seqs.device.addr(),
            prefix: self.seqs.prefix_addr(),
            tokens: forward.tokens,
            seqs: forward.seqs,
            heads: forward.heads,
            kv_heads: forward.kv_heads,
            head_dim: forward.head_dim,
            causal: forward.causal,
            scale: forward.scale,
            max_seqlen: forward.max_seqlen,
            ..packed::BwdParams::EMPTY
        };
        let workspace = match packed::workspace_bytes(dtype, &p, bw.device().compute_capability()) {
            0 => None,
            bytes => Some(bw.empty(&[bytes / 4], DType::F32, MemoryCategory::Workspace)?),
        };
        let p = packed::BwdParams { workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr), ..p };
        bw.launch(&packed::bwd(dtype, &p, self.seqs.pairs(forward.causal == 1)))?;
        bw.add_grad(&self.q, dq)?;
        bw.add_grad(&self.k, dk)?;
        bw.add_grad(&self.v, dv)
    }
}

/// The tokens of one sequence in a forward pass, and the cache blocks for its keys and values.
#[derive(Clone, Copy, Debug)]
pub struct SequencePages<'a> {
    /// The number of tokens whose keys and values are already in the cache.
    pub cached_tokens: usize,
    /// The number of tokens that the forward pass computes.
    pub new_tokens: usize,
    /// The indices of the sequence's cache blocks, in the order of its tokens.
    pub blocks: &'a [i32],
}

/// The block tables of a forward pass with the KV cache: the cache blocks ("pages" to the kernels) of each sequence,
/// and the cache slot of each new token.
#[derive(Clone, Debug)]
pub struct KvPages {
    new: CuSeqlens,
    kv_lens: Vec<usize>,
    kv_lens_device: Tensor, // i32 [seqs]
    tables: Tensor,         // i32 [seqs, max_blocks]
    slots: Tensor,          // i32 [new tokens]
    // i32 `[new tokens, counters_per_token]`, all 0 between launches. Several blocks of threads of a decode step
    // compute segments of the keys, and merge their results in the same launch by these counters.
    counters: Option<Tensor>,
    // The current number of keys of each row of a decode step; `kv_lens` has the maximum number of each row.
    row_keys: Option<RowKeyCounts>,
}

impl KvPages {
    /// The number of tokens in a cache block.
    pub const BLOCK_TOKENS: usize = BLOCK_TOKENS;

    /// Makes the block tables of the sequences. The blocks of a sequence must have room for its cached and its new
    /// tokens.
    ///
    /// # Errors
    /// Too few blocks; out of memory.
    pub fn new(device: &Device, sequences: &[SequencePages]) -> Result<KvPages> {
        let kv_lens: Vec<usize> = sequences.iter().map(|s| s.cached_tokens + s.new_tokens).collect();
        let width = kv_lens.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).max().unwrap_or(0).max(1);
        let (mut tables, mut slots) = (Vec::new(), Vec::new());
        for &SequencePages { cached_tokens: past, new_tokens: new, blocks } in sequences {
            let need = (past + new).div_ceil(BLOCK_TOKENS);
            let Some(used) = blocks.get(..need) else {
                return Err(shape_error(
                    "block tables",
                    format!("got {} cache blocks for {} tokens, {need} are needed", blocks.len(), past + new),
                ));
            };
            tables.extend_from_slice(used);
            tables.resize(tables.len() + width - need, 0);
            slots.extend(
                (past..past + new).map(|t| blocks[t / BLOCK_TOKENS] * BLOCK_TOKENS as i32 + (t % BLOCK_TOKENS) as i32),
            );
        }
        let lens: Vec<i32> = kv_lens.iter().map(|&n| n as i32).collect();
        let new: Vec<usize> = sequences.iter().map(|s| s.new_tokens).collect();
        Ok(KvPages {
            new: CuSeqlens::from_lengths(device, &new)?,
            kv_lens_device: Tensor::from_i32(device, &[lens.len()], &lens)?,
            tables: Tensor::from_i32(device, &[sequences.len(), width], &tables)?,
            slots: Tensor::from_i32(device, &[slots.len()], &slots)?,
            counters: None,
            row_keys: None,
            kv_lens,
        })
    }

    /// The block tables of a decode step, in which each of `R` rows (sequences) has one new token. Its three tensors
    /// are already in device memory: `lens` i32 `[R]`, `tables` i32 `[R, width]`, and `slots` i32 `[R]`. `max_keys` is
    /// the maximum number of keys of a row, and `keys` counts the current ones. `counters` come from
    /// [`super::DecodeRows::allocate_attention_counters`].
    pub(super) fn for_decode_rows(
        rows: &CuSeqlens,
        (max_keys, keys): (usize, &RowKeyCounts),
        [lens, tables, slots]: [&Tensor; 3],
        counters: Option<&Tensor>,
    ) -> KvPages {
        KvPages {
            new: rows.clone(),
            kv_lens: vec![max_keys; rows.sequence_count()],
            kv_lens_device: lens.clone(),
            tables: tables.clone(),
            slots: slots.clone(),
            counters: counters.cloned(),
            row_keys: Some(keys.clone()),
        }
    }
}

/// Causal attention of new tokens q `[S, Hq, D]` to the cached keys of their sequences. Has no backward rule.
pub fn paged_attention(cx: &Cx, q: &Tensor, caches: (&Tensor, &Tensor), pages: &KvPages) -> Result<Tensor> {
    let _op = in_op("paged_attention");
    const OP: &str = "paged_attention";
    let (&[tokens, n_heads, d], &[_, _, kv_heads, kd]) = (q.shape(), caches.0.shape()) else {
        return Err(shape_error(
            OP,
            format!(
                "q has shape {}, the key cache {}; expected 3 and 4 dimensions",
                format_shape(q.shape()),
                format_shape(caches.0.shape())
            ),
        ));
    };
    if kd != d || kv_heads == 0 || !n_heads.is_multiple_of(kv_heads) || pages.new.token_count() != tokens {
        return Err(shape_error(
            OP,
            format!(
                "q is {}, cache {}, with {} new tokens; expected a row of q for each new token, equal head_dim, and \
                 heads a multiple of kv_heads",
                format_shape(q.shape()),
                format_shape(caches.0.shape()),
                pages.new.token_count()
            ),
        ));
    }
    want_shape(OP, "v cache", caches.1, caches.0.shape(), "the shape of the k cache")?;
    want_dtype(OP, "k cache", caches.0, q.dtype())?;
    want_dtype(OP, "v cache", caches.1, q.dtype())?;
    if let Some(counters) = &pages.counters {
        let per_token = paged::counters_per_token(size(OP, n_heads)?, size(OP, kv_heads)?) as usize;
        want_shape(OP, "counters", counters, &[tokens, per_token], "counters of each new token")?;
    }
    let o = cx.empty(q.shape(), q.dtype())?;
    let p = paged::Params {
        q: q.addr(),
        k_cache: caches.0.addr(),
        v_cache: caches.1.addr(),
        o: o.addr(),
        cu_seqlens: pages.new.device.addr(),
        kv_lens: pages.kv_lens_device.addr(),
        block_tables: pages.tables.addr(),
        tokens: size(OP, tokens)?,
        seqs: size(OP, pages.kv_lens.len())?,
        heads: size(OP, n_heads)?,
        kv_heads: size(OP, kv_heads)?,
        head_dim: size(OP, d)?,
        max_blocks: size(OP, pages.tables.shape()[1])?,
        scale: 1.0 / (d as f32).sqrt(),
        max_kv_len: size(OP, pages.kv_lens.iter().copied().max().unwrap_or(0))?,
        workspace: Addr::NULL,
        counters: pages.counters.as_ref().map_or(Addr::NULL, Tensor::addr),
        tile_counter: pages.new.tile_counter.addr(),
        page_tokens: BLOCK_TOKENS as u32,
        ..paged::Params::EMPTY
    };
    // The CPU kernel allocates its own workspace per thread.
    let bytes = if cx.device().kernels() == Kernels::Cpu { 0 } else { paged::workspace_bytes(q.dtype(), &p) };
    let workspace = match bytes {
        0 => None,
        bytes => Some(Tensor::empty(cx.device(), &[bytes / 4], DType::F32, MemoryCategory::Workspace)?),
    };
    let p = paged::Params { workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr), ..p };
    cx.launch(&match &pages.row_keys {
        Some(rows) => paged::decode(q.dtype(), &p, p.max_kv_len as usize, rows.clone()),
        None => {
            let sequences = pages.new.lengths().zip(pages.kv_lens.iter().copied());
            let (pairs, keys) = paged::query_key_pair_and_key_counts(sequences);
            paged::fwd(q.dtype(), &p, pairs, keys)
        }
    })?;
    Ok(o)
}

#[cfg(test)]
mod tests;
