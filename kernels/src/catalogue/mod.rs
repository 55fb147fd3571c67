//! Every kernel folder with its maths and a call of each of its kernels at a size that matters: what `reel kernels` lists and shows.
//!
//! Sizes are those of Qwen2.5-VL-7B reading 8192 tokens, or decoding for 16 sequences of 8192 keys.

mod products;
mod sizes;

use std::borrow::Cow;

use bytemuck::Zeroable;

use crate::checks::Check;
use crate::dtype::DType::{self, BF16, F32};
use crate::launch::KernelLaunch;
use crate::{
    Addr, Launch, adamw, advance, attention, block_copy, column_sum, columns, elementwise, embedding, fingerprint,
    gelu, grpo_loss, kv_write, layer_norm, linear_log_prob, log_prob, merger_norm, normalise, paged_attention,
    patch_embedding, patches, pool_attention, position_add, reduce, rms_norm, rope, rows, sample, skinny, swiglu,
};

pub use products::{Product, products};
pub use sizes::{SizeError, Sizes};

/// A kernel folder.
pub struct Folder {
    /// Its name.
    pub name: &'static str,
    /// The text of its `mod.rs`.
    pub module: &'static str,
    /// What its kernels are held to.
    pub checks: &'static [Check],
    examples: fn(&Sizes) -> Vec<(&'static str, Launch)>,
}

/// A call of a kernel: no address in it is real, so it can be planned and counted but not run.
#[derive(Clone, Debug)]
pub struct Example {
    /// The size in words.
    pub size: Cow<'static, str>,
    /// The call.
    pub launch: KernelLaunch,
}

impl Folder {
    /// What the kernels compute: the text at the head of `mod.rs`.
    pub fn maths(&self) -> String {
        let lines = self.module.lines().map_while(|l| l.strip_prefix("//!"));
        lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect::<Vec<_>>().join("\n")
    }

    /// A call of each kernel of the folder.
    pub fn examples(&self) -> Vec<Example> {
        kernels((self.examples)(&Sizes::default()), |size| size.into())
    }

    /// The same calls at sizes of one's own; what is not given is the catalogue's.
    ///
    /// # Errors
    /// A size that the folder's calls do not have, or that they cannot be made with.
    pub fn examples_of(&self, sizes: &Sizes) -> Result<Vec<Example>, SizeError> {
        // Which sizes there are shows when calls are made: first at the catalogue's, which are thrown away.
        let usual = Sizes::default();
        (self.examples)(&usual);
        sizes.check(self.name, &usual)?;
        Ok(kernels((self.examples)(sizes), |size| if sizes.any() { sizes.words().into() } else { size.into() }))
    }
}

fn kernels(calls: Vec<(&'static str, Launch)>, size: impl Fn(&'static str) -> Cow<'static, str>) -> Vec<Example> {
    let kernel = |(words, launch)| match launch {
        Launch::Kernel(launch) => Some(Example { size: size(words), launch }),
        Launch::Matmul(_) => None,
    };
    calls.into_iter().filter_map(kernel).collect()
}

/// The folder of this name.
pub fn folder(name: &str) -> Option<&'static Folder> {
    FOLDERS.iter().find(|f| f.name == name)
}

macro_rules! folders {
    ($($name:ident)*) => {
        &[$(Folder {
            name: stringify!($name),
            module: include_str!(concat!("../", stringify!($name), "/mod.rs")),
            checks: $name::check::CHECKS,
            examples: examples::$name,
        }),*]
    };
}

/// Every folder, in alphabetical order.
pub const FOLDERS: &[Folder] = folders!(
    adamw advance attention block_copy column_sum columns elementwise embedding fingerprint gelu grpo_loss kv_write layer_norm
    linear_log_prob log_prob merger_norm normalise paged_attention patch_embedding patches pool_attention position_add reduce rms_norm rope rows sample skinny swiglu
);

/// Tokens of a long clip with its questions.
const TOKENS: u32 = 8192;
/// Width of the decoder.
const HIDDEN: u32 = 3584;
/// Width of its feed-forward layers.
const INTERMEDIATE: u32 = 18944;
const HEADS: u32 = 28;
const KV_HEADS: u32 = 4;
const HEAD_DIM: u32 = 128;
const VOCAB: u32 = 152_064;
/// Sequences of a decode step.
const BATCH: u32 = 16;
/// Stands where a call has an operand.
const SOME: Addr = Addr(1 << 40);

const BOTH: [DType; 2] = [F32, BF16];

// A call names what its size depends on; the rest, and what a struct may gain, is 0.
#[allow(clippy::needless_update)]
mod examples {
    use super::*;

    type Examples = Vec<(&'static str, Launch)>;

    const WEIGHTS: &str = "one feed-forward matrix of 18944 x 3584 weights";
    const ACTIVATIONS: &str = "8192 tokens of 3584";
    const GATED: &str = "8192 tokens of 18944";

    pub fn adamw(s: &Sizes) -> Examples {
        let n = s.count("count", INTERMEDIATE as u64 * HIDDEN as u64);
        let step = adamw::Params { w: SOME, m: SOME, v: SOME, g: SOME, clip: SOME, n, ..Zeroable::zeroed() };
        let split = adamw::SplitParams { src: SOME, w: SOME, low: SOME, n };
        let mut all = vec![
            (WEIGHTS, adamw::step(F32, &step)),
            (WEIGHTS, adamw::step(BF16, &adamw::Params { low: SOME, ..step })),
            (WEIGHTS, adamw::join_master(&adamw::JoinParams { w: SOME, low: SOME, dst: SOME, n })),
        ];
        let small = adamw::SmallParams { w: SOME, m: SOME, v: SOME, g: SOME, clip: SOME, n, ..Zeroable::zeroed() };
        let blocks = adamw::SmallParams { scales: SOME, ..small };
        for (t, low) in [(F32, Addr::NULL), (BF16, SOME)] {
            all.push((WEIGHTS, adamw::step_bf16_moments(t, &adamw::SmallParams { low, ..small })));
            all.push((WEIGHTS, adamw::step_8bit(t, &adamw::SmallParams { low, ..blocks })));
        }
        all.extend(BOTH.map(|t| (WEIGHTS, adamw::split_master(t, &split))));
        all
    }

    pub fn advance(_: &Sizes) -> Examples {
        let p = advance::Params {
            chosen: SOME,
            ids: SOME,
            positions: SOME,
            kv_lens: SOME,
            kv_limits: SOME,
            block_tables: SOME,
            slots: SOME,
            draws: SOME,
            history: SOME,
            history_lens: SOME,
            rows: BATCH,
            max_blocks: TOKENS / 64,
            page: 64,
            history_cols: TOKENS,
        };
        vec![("16 rows of 8192 keys", advance::advance(&p))]
    }

    pub fn attention(s: &Sizes) -> Examples {
        let (tokens, heads, kv_heads) = (s.get("tokens", TOKENS), s.get("heads", HEADS), s.get("kv_heads", KV_HEADS));
        let (head_dim, causal) = (s.get("head_dim", HEAD_DIM), s.get("causal", 1));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let pairs = attention::pairs([tokens as usize], causal == 1);
        let fwd = attention::FwdParams {
            q: SOME,
            k: SOME,
            v: SOME,
            o: SOME,
            lse: SOME,
            cu_seqlens: SOME,
            tokens,
            seqs: 1,
            heads,
            kv_heads,
            head_dim,
            causal,
            scale,
            max_seqlen: tokens,
            ..Zeroable::zeroed()
        };
        let bwd = attention::BwdParams {
            q: SOME,
            k: SOME,
            v: SOME,
            o: SOME,
            lse: SOME,
            d_o: SOME,
            dq: SOME,
            dk: SOME,
            dv: SOME,
            delta: SOME,
            cu_seqlens: SOME,
            tokens,
            seqs: 1,
            heads,
            kv_heads,
            head_dim,
            causal,
            scale,
            max_seqlen: tokens,
            ..Zeroable::zeroed()
        };
        let size = "one sequence of 8192 tokens, 28 heads on 4 of 128, causal";
        let workspace = |t| if attention::workspace(t, &bwd) > 0 { SOME } else { Addr::NULL };
        let bwd = |t| attention::bwd(t, &attention::BwdParams { workspace: workspace(t), ..bwd }, pairs);
        let calls = BOTH.map(|t| [attention::fwd(t, &fwd, pairs), bwd(t)]);
        calls.into_iter().flatten().map(|launch| (size, launch)).collect()
    }

    pub fn block_copy(_: &Sizes) -> Examples {
        // A block of 64 tokens, 4 heads of 128 in bf16, in units of 16 bytes.
        let units = 64 * KV_HEADS * HEAD_DIM * 2 / 16;
        let p =
            block_copy::Params { k_cache: SOME, v_cache: SOME, pairs: SOME, count: 64, units, ..Zeroable::zeroed() };
        vec![("64 blocks of 64 tokens, 4 heads of 128 in bf16", block_copy::copy(&p))]
    }

    pub fn column_sum(_: &Sizes) -> Examples {
        let p =
            column_sum::Params { x: SOME, sum: SOME, rows: TOKENS as u64, cols: HIDDEN as u64, ..Zeroable::zeroed() };
        BOTH.map(|t| (ACTIVATIONS, column_sum::add(t, &p))).into()
    }

    pub fn columns(_: &Sizes) -> Examples {
        let (width, all) = (HEADS * HEAD_DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM);
        let p = columns::CopyParams {
            src: SOME,
            dst: SOME,
            rows: TOKENS,
            width,
            src_cols: all,
            dst_cols: width,
            ..Zeroable::zeroed()
        };
        BOTH.map(|t| ("the queries of 8192 tokens out of a fused qkv", columns::copy(t, &p))).into()
    }

    pub fn elementwise(_: &Sizes) -> Examples {
        let count = TOKENS as u64 * HIDDEN as u64;
        let (src, dst) = (SOME, SOME);
        let accumulate = elementwise::AccumulateParams { src, dst, count };
        let cast = elementwise::CastParams { src, dst, count };
        let fill = elementwise::FillParams { dst, count, ..Zeroable::zeroed() };
        let mut calls = vec![
            elementwise::accumulate(F32, F32, &accumulate),
            elementwise::accumulate(BF16, BF16, &accumulate),
            elementwise::accumulate(BF16, F32, &accumulate),
            elementwise::cast(F32, BF16, &cast),
            elementwise::cast(BF16, F32, &cast),
            elementwise::mul_scalar(&elementwise::MulScalarParams { x: SOME, scalar: SOME, y: SOME, count }),
            elementwise::copy(&elementwise::CopyParams { src, dst, bytes: 2 * count }),
        ];
        for t in BOTH {
            calls.push(elementwise::add(t, &elementwise::AddParams { a: SOME, b: SOME, y: SOME, count }));
            calls.push(elementwise::cast_f16(t, &cast));
            calls.push(elementwise::fill(t, &fill));
        }
        calls.into_iter().map(|launch| (ACTIVATIONS, launch)).collect()
    }

    pub fn embedding(_: &Sizes) -> Examples {
        let fwd = embedding::FwdParams {
            table: SOME,
            ids: SOME,
            y: SOME,
            tokens: TOKENS,
            hidden: HIDDEN,
            vocab: VOCAB,
            ..Zeroable::zeroed()
        };
        let bwd = embedding::BwdParams {
            ids: SOME,
            dy: SOME,
            dw: SOME,
            tokens: TOKENS,
            hidden: HIDDEN,
            vocab: VOCAB,
            ..Zeroable::zeroed()
        };
        let fwd = BOTH.map(|table| BOTH.map(|out| embedding::fwd(table, out, &fwd)));
        let bwd = BOTH.map(|t| embedding::bwd(t, &bwd));
        fwd.into_iter().flatten().chain(bwd).map(|launch| (ACTIVATIONS, launch)).collect()
    }

    pub fn fingerprint(_: &Sizes) -> Examples {
        let bytes = 2 * HIDDEN as u64 * INTERMEDIATE as u64;
        let p = fingerprint::Params { x: SOME, sums: SOME, bytes };
        vec![("a matrix of 3584 by 18944 in bf16", fingerprint::fingerprint(&p))]
    }

    pub fn gelu(_: &Sizes) -> Examples {
        let count = TOKENS as u64 * 5120;
        let fwd = gelu::FwdParams { x: SOME, y: SOME, count };
        let bwd = gelu::BwdParams { x: SOME, dy: SOME, dx: SOME, count };
        let tanh = BOTH.map(|t| [gelu::tanh_fwd(t, &fwd), gelu::tanh_bwd(t, &bwd)]);
        let erf = BOTH.map(|t| [gelu::fwd(t, &fwd), gelu::bwd(t, &bwd)]);
        let calls = erf.into_iter().chain(tanh);
        calls.flatten().map(|launch| ("the merger's 8192 rows of 5120", launch)).collect()
    }

    pub fn kv_write(_: &Sizes) -> Examples {
        let p = kv_write::Params {
            k: SOME,
            v: SOME,
            k_cache: SOME,
            v_cache: SOME,
            slots: SOME,
            tokens: TOKENS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            pages: TOKENS / 64,
            page: 64,
            ..Zeroable::zeroed()
        };
        BOTH.map(|t| ("8192 tokens, 4 heads of 128", kv_write::write(t, &p))).into()
    }

    pub fn layer_norm(_: &Sizes) -> Examples {
        let (rows, cols) = (TOKENS, 1152);
        let fwd = layer_norm::FwdParams {
            x: SOME,
            w: SOME,
            b: SOME,
            y: SOME,
            mean: SOME,
            rstd: SOME,
            rows,
            cols,
            eps: 1e-6,
            ..Zeroable::zeroed()
        };
        let bwd = layer_norm::BwdParams {
            x: SOME,
            w: SOME,
            mean: SOME,
            rstd: SOME,
            dy: SOME,
            dx: SOME,
            dw: SOME,
            db: SOME,
            partial: SOME,
            rows,
            cols,
            ..Zeroable::zeroed()
        };
        let calls = BOTH.map(|t| [layer_norm::fwd(t, &fwd), layer_norm::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| ("SigLIP's 8192 patches of 1152", launch)).collect()
    }

    pub fn linear_log_prob(s: &Sizes) -> Examples {
        let (rows, width, vocab) = (s.get("tokens", TOKENS), s.get("hidden", HIDDEN), s.get("vocab", VOCAB));
        let inv_temperature = 1.0;
        let fwd = linear_log_prob::FwdParams {
            hidden: SOME,
            weight: SOME,
            targets: SOME,
            log_prob: SOME,
            entropy: SOME,
            lse: SOME,
            workspace: SOME,
            rows,
            vocab,
            width,
            inv_temperature,
            ..Zeroable::zeroed()
        };
        let bwd = |t| linear_log_prob::BwdParams {
            hidden: SOME,
            weight: SOME,
            targets: SOME,
            lse: SOME,
            entropy: SOME,
            d_log_prob: SOME,
            d_entropy: SOME,
            d_logits: SOME,
            rows,
            vocab,
            width,
            columns: linear_log_prob::chunk(t, rows as usize, vocab as usize) as u32,
            inv_temperature,
            ..Zeroable::zeroed()
        };
        let size = "8192 tokens of 3584, 152064 words";
        let chunk = "8192 tokens of 3584, a chunk of the vocabulary";
        let calls = BOTH.map(|t| [(size, linear_log_prob::fwd(t, &fwd)), (chunk, linear_log_prob::bwd(t, &bwd(t)))]);
        calls.into_iter().flatten().collect()
    }

    pub fn grpo_loss(_: &Sizes) -> Examples {
        let params = grpo_loss::Params {
            log_prob: SOME,
            old: SOME,
            reference: SOME,
            cu_seqlens: SOME,
            counted: SOME,
            advantage: SOME,
            weight: SOME,
            d_log_prob: SOME,
            stats: SOME,
            completions: 8,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            beta: 0.04,
            kl_limit: 10.0,
            ..Zeroable::zeroed()
        };
        vec![("8 completions of 1024 tokens", grpo_loss::loss(8 * 1024, &params))]
    }

    pub fn patch_embedding(_: &Sizes) -> Examples {
        let pixels = patch_embedding::Pixels {
            rescale: (1.0f64 / 255.0).to_bits(),
            count: 16,
            height: 224,
            width: 420,
            patch: 14,
            temporal: 2,
            merge: 2,
            mean0: 0.5,
            mean1: 0.5,
            mean2: 0.5,
            std0: 0.25,
            std1: 0.25,
            std2: 0.25,
        };
        let fwd = patch_embedding::FwdParams {
            frames: SOME,
            weight: SOME,
            y: SOME,
            pixels,
            embed: 1280,
            ..Zeroable::zeroed()
        };
        let dw =
            patch_embedding::DwParams { frames: SOME, dy: SOME, dw: SOME, pixels, embed: 1280, ..Zeroable::zeroed() };
        let calls = BOTH.map(|t| [patch_embedding::fwd(t, &fwd), patch_embedding::dw(t, &dw)]);
        calls.into_iter().flatten().map(|launch| ("16 frames of 224 x 420, 1280 columns", launch)).collect()
    }

    pub fn patches(_: &Sizes) -> Examples {
        let params = patches::Params {
            frames: SOME,
            patches: SOME,
            rescale: (1.0f64 / 255.0).to_bits(),
            count: 16,
            height: 224,
            width: 420,
            patch: 14,
            temporal: 2,
            merge: 2,
            mean0: 0.5,
            mean1: 0.5,
            mean2: 0.5,
            std0: 0.25,
            std1: 0.25,
            std2: 0.25,
            ..Zeroable::zeroed()
        };
        BOTH.map(|t| ("16 frames of 224 x 420", patches::cut(t, &params))).into()
    }

    pub fn merger_norm(_: &Sizes) -> Examples {
        let (rows, cols) = (4 * TOKENS, 1280);
        let fwd = merger_norm::FwdParams {
            x: SOME,
            index: SOME,
            w: SOME,
            y: SOME,
            rstd: SOME,
            rows,
            cols,
            eps: 1e-6,
            ..Zeroable::zeroed()
        };
        let bwd = merger_norm::BwdParams {
            x: SOME,
            index: SOME,
            w: SOME,
            rstd: SOME,
            dy: SOME,
            dx: SOME,
            dw: SOME,
            partial: SOME,
            rows,
            cols,
            ..Zeroable::zeroed()
        };
        let calls = BOTH.map(|t| [merger_norm::fwd(t, &fwd), merger_norm::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| ("32768 patches of 1280", launch)).collect()
    }

    pub fn log_prob(s: &Sizes) -> Examples {
        // Chunks of 64 MiB of logits.
        let vocab = s.get("vocab", VOCAB);
        let (rows, inv_temperature) = (s.get("rows", (64 << 20) / (4 * VOCAB)), 1.0);
        let fwd = log_prob::FwdParams {
            logits: SOME,
            targets: SOME,
            log_prob: SOME,
            lse: SOME,
            rows,
            vocab,
            columns: vocab,
            inv_temperature,
            ..Zeroable::zeroed()
        };
        let bwd = log_prob::BwdParams {
            logits: SOME,
            targets: SOME,
            lse: SOME,
            grad: SOME,
            d_logits: SOME,
            rows,
            vocab,
            columns: vocab,
            inv_temperature,
            ..Zeroable::zeroed()
        };
        let size = "110 rows of 152064 logits";
        let bwd = BOTH.map(|t| (size, log_prob::bwd(t, &bwd)));
        [(size, log_prob::fwd(&fwd))].into_iter().chain(bwd).collect()
    }

    pub fn normalise(_: &Sizes) -> Examples {
        let (rows, cols) = (TOKENS, 1152);
        let fwd = normalise::FwdParams { x: SOME, y: SOME, norm: SOME, rows, cols };
        let bwd = normalise::BwdParams { x: SOME, norm: SOME, dy: SOME, dx: SOME, rows, cols };
        let calls = BOTH.map(|t| [normalise::fwd(t, &fwd), normalise::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| ("8192 of SigLIP's embeddings", launch)).collect()
    }

    pub fn paged_attention(s: &Sizes) -> Examples {
        let (batch, context) = (s.get("batch", BATCH), s.get("context", TOKENS));
        let (heads, kv_heads, head_dim) =
            (s.get("heads", HEADS), s.get("kv_heads", KV_HEADS), s.get("head_dim", HEAD_DIM));
        let p = paged_attention::Params {
            q: SOME,
            k_cache: SOME,
            v_cache: SOME,
            o: SOME,
            cu_seqlens: SOME,
            kv_lens: SOME,
            block_tables: SOME,
            tokens: batch,
            seqs: batch,
            heads,
            kv_heads,
            head_dim,
            max_blocks: context.div_ceil(64),
            scale: 1.0 / (head_dim as f32).sqrt(),
            max_kv_len: context,
            page: 64,
            ..Zeroable::zeroed()
        };
        let workspace = if paged_attention::workspace(&p) > 0 { SOME } else { Addr::NULL };
        let p = paged_attention::Params { workspace, ..p };
        let (pairs, keys) = paged_attention::work((0..batch).map(|_| (1, context as usize)));
        let size = "a token each of 16 sequences of 8192 keys, 28 heads on 4 of 128";
        BOTH.map(|t| (size, paged_attention::fwd(t, &p, pairs, keys))).into()
    }

    pub fn pool_attention(_: &Sizes) -> Examples {
        let (tokens, pictures, heads, head_dim, scale) = (16 * 729, 16, 16, 72, 1.0);
        let fwd = pool_attention::FwdParams {
            q: SOME,
            k: SOME,
            v: SOME,
            cu_seqlens: SOME,
            o: SOME,
            lse: SOME,
            tokens,
            pictures,
            heads,
            head_dim,
            scale,
            ..Zeroable::zeroed()
        };
        let bwd = pool_attention::BwdParams {
            q: SOME,
            k: SOME,
            v: SOME,
            cu_seqlens: SOME,
            o: SOME,
            lse: SOME,
            d_o: SOME,
            dq: SOME,
            dk: SOME,
            dv: SOME,
            partial: SOME,
            tokens,
            pictures,
            heads,
            head_dim,
            scale,
            ..Zeroable::zeroed()
        };
        let calls = BOTH.map(|t| [pool_attention::fwd(t, &fwd), pool_attention::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| ("SigLIP's head over 16 pictures of 729 patches", launch)).collect()
    }

    pub fn position_add(_: &Sizes) -> Examples {
        let (rows, cols, positions) = (16 * 729, 1152, 729);
        let fwd = position_add::FwdParams { x: SOME, pos: SOME, y: SOME, rows, cols, positions, ..Zeroable::zeroed() };
        let bwd = position_add::BwdParams { dy: SOME, d_pos: SOME, rows, cols, positions, ..Zeroable::zeroed() };
        let calls = BOTH.map(|t| [position_add::fwd(t, &fwd), position_add::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| ("SigLIP's 729 positions, 16 pictures", launch)).collect()
    }

    pub fn reduce(_: &Sizes) -> Examples {
        let n = INTERMEDIATE as u64 * HIDDEN as u64;
        let rows = reduce::WeightedSumParams { x: SOME, w: SOME, out: SOME, n: TOKENS as u64, ..Zeroable::zeroed() };
        let squares = reduce::SumSquaresParams { x: SOME, partial: SOME, n, ..Zeroable::zeroed() };
        let clip =
            reduce::ClipParams { partials: SOME, out: SOME, count: 1 << 17, max_norm: 1.0, ..Zeroable::zeroed() };
        let mut all = vec![
            ("the losses of 8192 tokens", reduce::weighted_sum(&rows)),
            ("the partial sums of 8 G weights", reduce::clip(&clip)),
        ];
        all.extend(BOTH.map(|t| (WEIGHTS, reduce::sum_squares(t, &squares))));
        all
    }

    pub fn rms_norm(s: &Sizes) -> Examples {
        let (rows, cols) = (s.get("tokens", TOKENS), s.get("hidden", HIDDEN));
        let fwd =
            rms_norm::FwdParams { x: SOME, w: SOME, y: SOME, rstd: SOME, rows, cols, eps: 1e-6, ..Zeroable::zeroed() };
        let bwd = rms_norm::BwdParams {
            x: SOME,
            w: SOME,
            rstd: SOME,
            dy: SOME,
            dx: SOME,
            dw: SOME,
            partial: SOME,
            rows,
            cols,
            ..Zeroable::zeroed()
        };
        let rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps, reserved } = fwd;
        let add_fwd = rms_norm::AddFwdParams { x, residual: SOME, w, sum: SOME, y, rstd, rows, cols, eps, reserved };
        let rms_norm::BwdParams { dy, dx, dw, partial, .. } = bwd;
        let add_bwd = rms_norm::AddBwdParams { x, w, rstd, dy, d_sum: SOME, dx, dw, partial, rows, cols };
        let calls = BOTH.map(|t| {
            [
                rms_norm::fwd(t, &fwd),
                rms_norm::bwd(t, &bwd),
                rms_norm::add_fwd(t, &add_fwd),
                rms_norm::add_bwd(t, &add_bwd),
            ]
        });
        calls.into_iter().flatten().map(|launch| (ACTIVATIONS, launch)).collect()
    }

    pub fn rope(_: &Sizes) -> Examples {
        let table = rope::TableParams {
            positions: SOME,
            inv_freq: SOME,
            axis: SOME,
            cos: SOME,
            sin: SOME,
            tokens: TOKENS,
            half: HEAD_DIM / 2,
            ..Zeroable::zeroed()
        };
        let apply = rope::ApplyParams {
            x: SOME,
            y: SOME,
            cos: SOME,
            sin: SOME,
            tokens: TOKENS,
            heads: HEADS,
            head_dim: HEAD_DIM,
            ..Zeroable::zeroed()
        };
        let size = "8192 tokens, 28 heads of 128";
        let apply = BOTH.map(|t| (size, rope::apply(t, &apply)));
        [(size, rope::table(&table))].into_iter().chain(apply).collect()
    }

    pub fn rows(_: &Sizes) -> Examples {
        let gather = rows::GatherParams {
            x: SOME,
            index: SOME,
            y: SOME,
            m: TOKENS,
            cols: HIDDEN,
            n: TOKENS,
            ..Zeroable::zeroed()
        };
        let scatter = rows::ScatterParams {
            src: SOME,
            index: SOME,
            dst: SOME,
            m: TOKENS,
            cols: HIDDEN,
            n: TOKENS,
            ..Zeroable::zeroed()
        };
        let calls = BOTH.map(|t| [rows::gather(t, &gather), rows::scatter(t, &scatter)]);
        calls.into_iter().flatten().map(|launch| (ACTIVATIONS, launch)).collect()
    }

    pub fn sample(_: &Sizes) -> Examples {
        let p = sample::Params {
            logits: SOME,
            temperature: SOME,
            top_p: SOME,
            top_k: SOME,
            penalty: SOME,
            seed: SOME,
            position: SOME,
            history: SOME,
            history_len: SOME,
            suppressed: SOME,
            workspace: SOME,
            ids: SOME,
            log_prob: SOME,
            rows: BATCH,
            vocab: VOCAB,
            history_cols: TOKENS,
            suppressed_count: 22,
            ..Zeroable::zeroed()
        };
        vec![("16 rows of 152064 logits", sample::sample(&p))]
    }

    pub fn skinny(s: &Sizes) -> Examples {
        use skinny::Weight;
        let (m, n, k) = (s.get("batch", BATCH), s.get("n", INTERMEDIATE), s.get("k", HIDDEN));
        let size = "16 rows against a feed-forward matrix of 18944 x 3584";
        let call = |t, weight: Weight, gated: bool| {
            let scale = if matches!(weight, Weight::Int8) { SOME } else { Addr::NULL };
            let p = skinny::Params {
                x: SOME,
                w: SOME,
                w2: if gated { SOME } else { Addr::NULL },
                scale,
                scale2: if gated { scale } else { Addr::NULL },
                y: SOME,
                m,
                n,
                k,
                ..Zeroable::zeroed()
            };
            if gated { skinny::swiglu(t, weight, &p) } else { skinny::linear(t, weight, &p) }
        };
        let calls = BOTH.map(|t| [false, true].map(|g| [call(t, Weight::Bf16, g), call(t, Weight::Int8, g)]));
        calls.into_iter().flatten().flatten().map(|launch| (size, launch)).collect()
    }

    pub fn swiglu(s: &Sizes) -> Examples {
        let count = s.get("tokens", TOKENS) as u64 * s.get("intermediate", INTERMEDIATE) as u64;
        let fwd = swiglu::FwdParams { gate: SOME, up: SOME, y: SOME, count };
        let bwd = swiglu::BwdParams { gate: SOME, up: SOME, dy: SOME, d_gate: SOME, d_up: SOME, count };
        let calls = BOTH.map(|t| [swiglu::fwd(t, &fwd), swiglu::bwd(t, &bwd)]);
        calls.into_iter().flatten().map(|launch| (GATED, launch)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, SOURCES};
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// The names that `kernel!(pub X, "name", …)` declares in a module's text; none where a macro of the module's own does.
    fn declared(module: &str) -> BTreeSet<&str> {
        let calls = module.split("kernel!(").skip(1).filter(|rest| !rest.starts_with("pub $"));
        calls.filter_map(|rest| rest.split('"').nth(1)).collect()
    }

    #[test]
    fn every_kernel_has_an_example() {
        for folder in FOLDERS {
            let examples = folder.examples();
            let shown: BTreeSet<&str> = examples.iter().map(|e| e.launch.kernel.name).collect();
            let declared = declared(folder.module);
            assert!(declared.is_empty() || shown == declared, "{}: {shown:?}, not {declared:?}", folder.name);
            assert_eq!(shown.len(), examples.len(), "{}: one example a kernel", folder.name);
            assert!(folder.maths().len() > 50, "{}", folder.name);
        }
    }

    #[test]
    fn every_folder_is_listed() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut with_kernels = BTreeSet::new();
        for entry in fs::read_dir(src).unwrap() {
            let entry = entry.unwrap();
            let module = fs::read_to_string(entry.path().join("mod.rs")).unwrap_or_default();
            if module.contains("kernel!(pub ") {
                with_kernels.insert(entry.file_name().into_string().unwrap());
            }
        }
        assert_eq!(FOLDERS.iter().map(|f| f.name.to_string()).collect::<BTreeSet<_>>(), with_kernels);
        for source in SOURCES {
            assert!(folder(source.name).is_some(), "{}", source.name);
        }
    }

    #[test]
    fn every_plan_is_one_that_a_gpu_takes() {
        for example in FOLDERS.iter().flat_map(Folder::examples) {
            let KernelLaunch { kernel, params, cost } = &example.launch;
            assert!(cost.bytes > 0.0 && cost.bytes.is_finite() && cost.flops.is_finite(), "{}", kernel.name);
            let Some(cuda) = &kernel.cuda else { continue };
            for arch in [Arch::A100, Arch::SM86, Arch::SM89, Arch::H100] {
                let stages = (cuda.plan)(params, &arch);
                // A plan may choose among variants, whose names begin with the kernel's, and end with launches that kernels share.
                assert!(
                    stages.first().is_some_and(|s| s.symbol.starts_with(kernel.name)),
                    "{}: {stages:?}",
                    kernel.name
                );
                for s in stages {
                    let threads: u32 = s.block.iter().product();
                    assert!((1..=1024).contains(&threads), "{}: {threads} threads", s.symbol);
                    assert!(s.grid.iter().all(|&n| n > 0) && s.grid[1].max(s.grid[2]) < 65536, "{}", s.symbol);
                    assert!(s.shared <= arch.shared_per_block, "{} on sm_{}: {} bytes", s.symbol, arch.sm, s.shared);
                }
            }
        }
    }
}
