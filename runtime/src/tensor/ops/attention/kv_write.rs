//! Writes to the KV cache: keys and values of new tokens, and copies of whole cache blocks.

use bytemuck::Zeroable;
use reel_device::{Addr, DType, Device, MemoryCategory, in_op};
use reel_kernels::paged_attention::BLOCK_TOKENS;
use reel_kernels::skinny::{self, Params, QkvParams, WeightFormat};
use reel_kernels::{block_copy, rope_kv_write, rope_kv_write_norm};

use super::{KvPages, heads};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::ops::{RotaryTable, rows_cols, size, want_alike, want_dtype, want_shape};

/// Where the keys and values of new tokens go, and the angles by which queries and keys are rotated first.
#[derive(Clone, Copy, Debug)]
pub struct KvDestination<'a> {
    /// The angles of the new tokens `[S, D / 2]`.
    pub rotary: &'a RotaryTable,
    /// The caches of keys and of values, `[blocks, BLOCK_TOKENS, Hkv, D]` each.
    pub caches: (&'a Tensor, &'a Tensor),
    /// The block tables, with the cache slot of each new token.
    pub pages: &'a KvPages,
    /// The norms of queries and keys before the rotation, if the model has them.
    pub head_norms: Option<HeadNorms<'a>>,
}

/// RMS norms over each head of queries and keys, with the bits of `rms_norm` over rows of D elements.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// The weight of the queries' norm `[D]`.
    pub q: &'a Tensor,
    /// The weight of the keys' norm `[D]`.
    pub k: &'a Tensor,
    /// eps of both norms.
    pub eps: f32,
    /// For the launch that computes q, k and v of a decode step; without it each of them has a launch of its own.
    pub unrotated: Option<&'a UnrotatedRows>,
}

/// Angles of 0 for each row of a decode step, and consecutive slots. With them the kernel that computes q, k and v
/// leaves queries and keys as they are, and writes keys and values to arrays `[R, Hkv, D]` instead of the caches: a
/// block has only a part of a head, so it cannot normalise heads.
#[derive(Clone, Debug)]
pub struct UnrotatedRows {
    cos: Tensor,   // f32 [R, D / 2]
    sin: Tensor,   // f32 [R, D / 2]
    slots: Tensor, // i32 [R]
}

impl UnrotatedRows {
    /// The arrays for `rows` rows with heads of `head_dim` elements.
    pub fn new(device: &Device, rows: usize, head_dim: usize) -> Result<UnrotatedRows> {
        let table = |value: f32| {
            let values = vec![value; rows * (head_dim / 2)];
            Tensor::from_slice(device, &[rows, head_dim / 2], DType::F32, &values, MemoryCategory::Inputs)
        };
        let slots: Vec<i32> = (0..rows as i32).collect();
        Ok(UnrotatedRows { cos: table(1.0)?, sin: table(0.0)?, slots: Tensor::from_i32(device, &[rows], &slots)? })
    }

    /// The arrays for `rows` rows, in the same memory.
    pub fn first_rows(&self, rows: usize) -> Result<UnrotatedRows> {
        let first = |t: &Tensor| t.rows(0, rows);
        Ok(UnrotatedRows { cos: first(&self.cos)?, sin: first(&self.sin)?, slots: first(&self.slots)? })
    }
}

impl KvDestination<'_> {
    /// Checks the shapes for `tokens` new tokens with `kv_heads` heads of `head_dim` elements of `dtype`. Returns the
    /// number of cache blocks.
    fn check(&self, op: &'static str, [tokens, kv_heads, head_dim]: [usize; 3], dtype: DType) -> Result<usize> {
        let blocks = self.caches.0.shape().first().copied().unwrap_or(0);
        for cache in [self.caches.0, self.caches.1] {
            want_shape(
                op,
                "cache",
                cache,
                &[blocks, BLOCK_TOKENS, kv_heads, head_dim],
                "[blocks, BLOCK_TOKENS, kv_heads, head_dim]",
            )?;
            want_dtype(op, "cache", cache, dtype)?;
        }
        want_shape(op, "slots", &self.pages.slots, &[tokens], "one slot for each new token")?;
        let [cos, _] = self.rotary.cos_and_sin();
        want_shape(op, "table", cos, &[tokens, head_dim / 2], "[tokens, head_dim / 2]")?;
        for w in self.head_norms.iter().flat_map(|norms| [norms.q, norms.k]) {
            want_shape(op, "head norm", w, &[head_dim], "[head_dim]")?;
            want_dtype(op, "head norm", w, dtype)?;
        }
        let most = rope_kv_write_norm::MAX_HEAD_DIM;
        if self.head_norms.is_some() && head_dim > most as usize {
            return Err(shape_error(
                op,
                format!("normalised heads have {head_dim} elements; at most {most} are supported"),
            ));
        }
        Ok(blocks)
    }

    /// The number of key-value heads of the caches, and the number of elements of a head.
    ///
    /// # Errors
    /// The cache of keys does not have four dimensions.
    fn kv_heads_and_head_dim(&self, op: &'static str) -> Result<[usize; 2]> {
        match *self.caches.0.shape() {
            [_, _, kv_heads, head_dim] => Ok([kv_heads, head_dim]),
            _ => Err(shape_error(op, "the cache does not have the shape [blocks, BLOCK_TOKENS, kv_heads, head_dim]")),
        }
    }

    /// Checks that keys and values have `heads × head size` columns, with the heads of the caches.
    fn check_columns(&self, op: &'static str, [keys, values]: [usize; 2]) -> Result<()> {
        let [kv_heads, head_dim] = self.kv_heads_and_head_dim(op)?;
        if [keys, values] == [kv_heads * head_dim; 2] {
            return Ok(());
        }
        let text = format!(
            "keys and values have {keys} and {values} columns, but the cache has {kv_heads} heads of {head_dim} elements"
        );
        Err(shape_error(op, text))
    }

    /// The shape `[S, H, D]` of the queries of `tokens` new tokens with `columns` columns.
    ///
    /// # Errors
    /// The columns are not whole heads, or a head has an odd number of elements.
    pub(in crate::tensor::ops) fn query_shape(
        &self,
        op: &'static str,
        tokens: usize,
        columns: usize,
    ) -> Result<[usize; 3]> {
        let [_, head_dim] = self.kv_heads_and_head_dim(op)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !columns.is_multiple_of(head_dim) {
            let text = format!(
                "the queries have {columns} columns, which are not heads of {head_dim} elements; expected whole heads of an even number of elements"
            );
            return Err(shape_error(op, text));
        }
        Ok([tokens, columns / head_dim, head_dim])
    }

    /// Launches the kernel that computes q, k and v, and for heads with norms the one that normalises and rotates them.
    /// `q`, whose shape is [`KvDestination::query_shape`], and the caches have the results. The three products have the
    /// same x and norm; the addresses of their results are ignored.
    ///
    /// # Errors
    /// Shapes that do not match.
    pub(in crate::tensor::ops) fn launch_qkv(
        &self,
        cx: &Cx,
        op: &'static str,
        format: WeightFormat,
        products: [Params; 3],
        q: Tensor,
    ) -> Result<Tensor> {
        let params = self.qkv_params(op, products, &q)?;
        let Some(unrotated) = self.head_norms.and_then(|norms| norms.unrotated) else {
            cx.launch(&skinny::qkv(q.dtype(), format, &params))?;
            return Ok(q);
        };
        let tokens = q.shape()[0];
        let [kv_heads, head_dim] = self.kv_heads_and_head_dim(op)?;
        want_shape(op, "unrotated rows", &unrotated.cos, &[tokens, head_dim / 2], "[tokens, head_dim / 2]")?;
        let [k, v] = [(); 2].map(|()| cx.empty(&[tokens, kv_heads, head_dim], q.dtype()));
        let (k, v) = (k?, v?);
        let apart = QkvParams {
            cos: unrotated.cos.addr(),
            sin: unrotated.sin.addr(),
            slots: unrotated.slots.addr(),
            k_cache: k.addr(),
            v_cache: v.addr(),
            pages: params.m,
            page_tokens: 1,
            ..params
        };
        cx.launch(&skinny::qkv(q.dtype(), format, &apart))?;
        rotate_and_cache(cx, q, (&k, &v), *self)
    }

    /// The parameters of the kernel that computes q, k and v, rotates them and writes them to the tensor `q`, whose
    /// shape is [`KvDestination::query_shape`], and to the caches.
    ///
    /// # Errors
    /// Shapes that do not match.
    fn qkv_params(&self, op: &'static str, [of_q, of_k, of_v]: [Params; 3], q: &Tensor) -> Result<QkvParams> {
        let [kv_heads, head_dim] = self.kv_heads_and_head_dim(op)?;
        let blocks = self.check(op, [of_q.m as usize, kv_heads, head_dim], q.dtype())?;
        self.check_columns(op, [of_k.n as usize, of_v.n as usize])?;
        let [cos, sin] = self.rotary.cos_and_sin();
        Ok(QkvParams {
            x: of_q.x,
            norm: of_q.norm,
            w_q: of_q.w,
            w_k: of_k.w,
            w_v: of_v.w,
            scale_q: of_q.scale,
            scale_k: of_k.scale,
            scale_v: of_v.scale,
            bias_q: of_q.bias,
            bias_k: of_k.bias,
            bias_v: of_v.bias,
            cos: cos.addr(),
            sin: sin.addr(),
            slots: self.pages.slots.addr(),
            q: q.addr(),
            k_cache: self.caches.0.addr(),
            v_cache: self.caches.1.addr(),
            m: of_q.m,
            k: of_q.k,
            heads: of_q.n / size(op, head_dim)?,
            kv_heads: size(op, kv_heads)?,
            head_dim: size(op, head_dim)?,
            pages: size(op, blocks)?,
            page_tokens: BLOCK_TOKENS as u32,
            eps: of_q.eps,
            ..Zeroable::zeroed()
        })
    }

    /// Rotates queries and keys and writes keys and values into the caches, given the rows of q `[S, H · D]`, k and v
    /// `[S, Hkv · D]`. Returns the rotated queries `[S, H, D]`. Has no backward rule.
    ///
    /// # Errors
    /// Shapes that do not match.
    pub fn rotate_and_cache_rows(&self, cx: &Cx, [q, k, v]: [Tensor; 3]) -> Result<Tensor> {
        const OP: &str = "rotate_and_cache";
        let (tokens, columns) = rows_cols(OP, "q", &q)?;
        let [kv_heads, head_dim] = self.kv_heads_and_head_dim(OP)?;
        let q = q.reshape(&self.query_shape(OP, tokens, columns)?)?;
        self.check_columns(OP, [rows_cols(OP, "k", &k)?.1, rows_cols(OP, "v", &v)?.1])?;
        let [k, v] = [k.reshape(&[tokens, kv_heads, head_dim])?, v.reshape(&[tokens, kv_heads, head_dim])?];
        rotate_and_cache(cx, q, (&k, &v), *self)
    }
}

/// Rotates queries `[S, H, D]` and keys `[S, Hkv, D]` of the new tokens, after their norms if there are any, and writes
/// keys and values into the caches. Returns the rotated queries, in the memory of `q`. Has no backward rule.
///
/// # Errors
/// Shapes that do not match.
pub fn rotate_and_cache(cx: &Cx, q: Tensor, (k, v): (&Tensor, &Tensor), to: KvDestination) -> Result<Tensor> {
    let _op = in_op("rotate_and_cache");
    const OP: &str = "rotate_and_cache";
    let (tokens, query_heads, kv_heads, d) = heads(OP, &q, k, v)?;
    let blocks = to.check(OP, [tokens, kv_heads, d], k.dtype())?;
    let [cos, sin] = to.rotary.cos_and_sin();
    let (q_norm, k_norm, eps) =
        to.head_norms.map_or((Addr::NULL, Addr::NULL, 0.0), |norms| (norms.q.addr(), norms.k.addr(), norms.eps));
    let p = rope_kv_write_norm::Params {
        q: q.addr(),
        k: k.addr(),
        v: v.addr(),
        q_norm,
        k_norm,
        cos: cos.addr(),
        sin: sin.addr(),
        k_cache: to.caches.0.addr(),
        v_cache: to.caches.1.addr(),
        slots: to.pages.slots.addr(),
        tokens: size(OP, tokens)?,
        heads: size(OP, query_heads)?,
        kv_heads: size(OP, kv_heads)?,
        head_dim: size(OP, d)?,
        pages: size(OP, blocks)?,
        page_tokens: BLOCK_TOKENS as u32,
        eps,
        reserved: 0,
    };
    cx.launch(&match to.head_norms {
        Some(_) => rope_kv_write_norm::write(k.dtype(), &p),
        None => rope_kv_write::write(k.dtype(), &p.without_norms()),
    })?;
    Ok(q)
}

/// Copies the keys and values of the first `tokens` tokens of cache blocks. Each row of `pairs` i32 `[N, 2]` has the
/// numbers of the block to read and of the block to write. No block may be written twice, or both read and written. The
/// numbers of blocks are not checked.
pub fn copy_kv_blocks(cx: &Cx, caches: (&Tensor, &Tensor), pairs: &Tensor, tokens: usize) -> Result<()> {
    const UNIT: usize = 16;
    let _op = in_op("copy_kv_blocks");
    const OP: &str = "copy_kv_blocks";
    let blocks = caches.0.shape().first().copied().unwrap_or(0);
    want_alike(OP, ("key cache", "value cache"), caches.0, caches.1)?;
    let count = pairs.shape().first().copied().unwrap_or(0);
    want_shape(OP, "pairs", pairs, &[count, 2], "source and destination of each copy")?;
    want_dtype(OP, "pairs", pairs, DType::I32)?;
    if tokens > BLOCK_TOKENS {
        return Err(shape_error(
            OP,
            format!("cannot copy {tokens} tokens of each cache block; a block has {BLOCK_TOKENS}"),
        ));
    }
    let block_bytes = caches.0.bytes() / blocks.max(1);
    let p = block_copy::Params {
        k_cache: caches.0.addr(),
        v_cache: caches.1.addr(),
        pairs: pairs.addr(),
        count: size(OP, count)?,
        units: size(OP, block_bytes / UNIT)?,
        copied: size(OP, (block_bytes / BLOCK_TOKENS * tokens).div_ceil(UNIT))?,
        reserved: 0,
    };
    cx.launch(&block_copy::copy(&p))
}
