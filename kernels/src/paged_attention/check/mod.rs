#![allow(unsafe_code)]

mod decode_rows;
mod prefill_wgmma;

use half::bf16;
use reel_device::DType::{self, BF16, F32};
use reel_device::cpu::simd::{Isa, isa};
use reel_device::{Addr, Kernel, KernelLaunch, Launch, Team};

use super::{Params, bytes_of_parts, counters_per_token, fwd};
use crate::attention::check::bits;
use crate::attention::formula::{self, Roundings};
use crate::attention::{self, FwdParams, PackedBatch};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, runs_cuda_code, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use decode_rows::{
    a_token_decoded_on_hopper_has_the_bits_of_the_forward_pass, decode_on_hopper_equals_the_formula,
    padding_rows_get_zeros_on_hopper, tokens_that_share_pages_have_the_bits_of_each_alone_on_hopper,
};
use prefill_wgmma::{
    a_prompt_cut_anyhow_has_the_bits_of_the_forward_pass_on_hopper, padding_gets_zeros_in_prefill_on_hopper,
    prefill_on_hopper_equals_the_formula,
};

checks!(
    equals_the_formula,
    a_prompt_cut_anyhow_gives_the_same_bits,
    a_decoded_token_gives_the_same_bits_with_parts_and_without,
    padding_rows_get_zeros_and_change_no_other_row,
    tokens_that_share_pages_have_the_bits_of_each_alone,
    blocks_of_threads_that_take_several_items_give_the_same_bits;
    cuda: decode_on_hopper_equals_the_formula,
    a_token_decoded_on_hopper_has_the_bits_of_the_forward_pass,
    padding_rows_get_zeros_on_hopper,
    tokens_that_share_pages_have_the_bits_of_each_alone_on_hopper,
    prefill_on_hopper_equals_the_formula,
    a_prompt_cut_anyhow_has_the_bits_of_the_forward_pass_on_hopper,
    padding_gets_zeros_in_prefill_on_hopper,
);

/// A model: the shape and element type of its attention, and the instruction set that computes it on device `cpu`.
#[derive(Clone, Copy, Debug)]
struct Model {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    isa: Isa,
}

impl Model {
    fn row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }
}

/// The queries, keys and values of one sequence.
#[derive(Clone)]
struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    len: usize,
}

impl Tokens {
    fn new(model: &Model, len: usize, seed: u64) -> Tokens {
        let numbers = |width, salt| normal_numbers(len * width, seed ^ salt, 1.5);
        Tokens { q: numbers(model.row(), 1), k: numbers(model.kv_row(), 2), v: numbers(model.kv_row(), 3), len }
    }
}

fn starts(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let mut starts = vec![0];
    for len in lengths {
        starts.push(starts[starts.len() - 1] + len as i32);
    }
    starts
}

/// Returns the launch, with its kernel replaced by `variant` if one is given.
fn by(variant: Option<&'static Kernel>, launch: Launch) -> Launch {
    match (variant, launch) {
        (Some(kernel), Launch::Kernel(launch)) => Launch::Kernel(KernelLaunch { kernel, ..launch }),
        (_, launch) => launch,
    }
}

/// Returns the output bits of the packed causal forward pass ([`attention`]) over `sequences`.
fn packed(model: &Model, sequences: &[&Tokens], threads: usize) -> Vec<u32> {
    packed_by(None, model, sequences, threads)
}

/// Does what [`packed`] does, with the kernel replaced by `variant` if one is given.
fn packed_by(variant: Option<&'static Kernel>, model: &Model, sequences: &[&Tokens], threads: usize) -> Vec<u32> {
    let data = |f: fn(&Tokens) -> &Vec<f32>| {
        TestArray::new(model.dtype, &sequences.iter().flat_map(|s| f(s).iter().copied()).collect::<Vec<_>>())
    };
    let (q, k, v) = (data(|s| &s.q), data(|s| &s.k), data(|s| &s.v));
    let cu_seqlens = starts(sequences.iter().map(|s| s.len));
    let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
    let o = TestArray::output(model.dtype, tokens * model.row());
    let params = FwdParams {
        q: q.addr(),
        k: k.addr(),
        v: v.addr(),
        o: o.addr(),
        lse: Addr::NULL,
        cu_seqlens: addr(&cu_seqlens),
        prefix: Addr::NULL,
        tokens: tokens as u32,
        seqs: sequences.len() as u32,
        heads: model.heads as u32,
        kv_heads: model.kv_heads as u32,
        head_dim: model.head_dim as u32,
        causal: 1,
        scale: model.scale(),
        max_seqlen: sequences.iter().map(|s| s.len).max().unwrap_or(0) as u32,
        ..FwdParams::EMPTY
    };
    if runs_cuda_code() {
        run(&by(variant, attention::fwd(model.dtype, &params, 0.0)), threads);
        return bits(&o);
    }
    let team = Team::new(threads);
    // SAFETY: the addresses belong to live arrays of the documented sizes; the machine has the instruction set.
    unsafe {
        match model.dtype {
            F32 => attention::cpu::fwd_on::<f32>(model.isa, &params, &team),
            _ => attention::cpu::fwd_on::<bf16>(model.isa, &params, &team),
        }
    }
    bits(&o)
}

/// Returns the output bits of one paged launch. A sequence is (its tokens, number of keys in the cache, how many of
/// these keys are new). The pages of the cache are in shuffled order, slots without a key hold NaN, and the entries of
/// the block table beyond a sequence's keys name a page that does not exist.
fn paged(model: &Model, sequences: &[(&Tokens, usize, usize)], threads: usize, seed: usize) -> Vec<u32> {
    paged_with_shared_pages(model, sequences, threads, seed, |n, _| n)
}

/// Returns the output bits of [`paged`] with shared pages: page `i` of sequence `n` is page `i` of the sequence
/// `owner(n, i)`, which has the same keys and values there.
fn paged_with_shared_pages(
    model: &Model,
    sequences: &[(&Tokens, usize, usize)],
    threads: usize,
    seed: usize,
    owner: impl Fn(usize, usize) -> usize,
) -> Vec<u32> {
    paged_by(None, model, sequences, threads, seed, owner)
}

/// Does what [`paged_with_shared_pages`] does, with the kernel replaced by `variant` if one is given.
fn paged_by(
    variant: Option<&'static Kernel>,
    model: &Model,
    sequences: &[(&Tokens, usize, usize)],
    threads: usize,
    seed: usize,
    owner: impl Fn(usize, usize) -> usize,
) -> Vec<u32> {
    let (row, kv_row, page) = (model.row(), model.kv_row(), 16 << (seed % 5));
    let max_blocks = sequences.iter().map(|s| s.1.div_ceil(page)).max().unwrap_or(0) + seed % 2;
    let blocks = (sequences.len() * max_blocks + 3) | 1;
    let mut tables = vec![i32::MAX; sequences.len() * max_blocks];
    let (mut k, mut v) = (vec![f32::NAN; blocks * page * kv_row], vec![f32::NAN; blocks * page * kv_row]);
    let mut q = Vec::new();
    for (n, &(tokens, keys, new)) in sequences.iter().enumerate() {
        for j in 0..keys {
            // Shuffles the pages: twice the index (plus the seed), modulo the number of blocks. The number of blocks
            // is odd, so every index gets a different block.
            let block = (2 * (owner(n, j / page) * max_blocks + j / page) + seed) % blocks;
            tables[n * max_blocks + j / page] = block as i32;
            let at = (block * page + j % page) * kv_row;
            k[at..at + kv_row].copy_from_slice(&tokens.k[j * kv_row..(j + 1) * kv_row]);
            v[at..at + kv_row].copy_from_slice(&tokens.v[j * kv_row..(j + 1) * kv_row]);
        }
        // A sequence without keys is padding, but its row has a query, too.
        let first = keys.saturating_sub(new);
        q.extend_from_slice(&tokens.q[first * row..(first + new) * row]);
    }
    let (q, k, v) = (TestArray::new(model.dtype, &q), TestArray::new(model.dtype, &k), TestArray::new(model.dtype, &v));
    let cu_seqlens = starts(sequences.iter().map(|s| s.2));
    let kv_lens: Vec<i32> = sequences.iter().map(|s| s.1 as i32).collect();
    let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
    let o = TestArray::output(model.dtype, tokens * row);
    let mut counters = vec![0u32; tokens * counters_per_token(model.heads as u32, model.kv_heads as u32) as usize];
    let mut tile_counter = [0u32];
    let params = Params {
        q: q.addr(),
        k_cache: k.addr(),
        v_cache: v.addr(),
        o: o.addr(),
        cu_seqlens: addr(&cu_seqlens),
        kv_lens: addr(&kv_lens),
        block_tables: addr(&tables),
        tokens: tokens as u32,
        seqs: sequences.len() as u32,
        heads: model.heads as u32,
        kv_heads: model.kv_heads as u32,
        head_dim: model.head_dim as u32,
        max_blocks: max_blocks as u32,
        scale: model.scale(),
        max_kv_len: sequences.iter().map(|s| s.1).max().unwrap_or(0) as u32,
        workspace: Addr::NULL,
        // Without counters the kernel for prefill computes decode, too.
        counters: if seed % 7 == 2 { Addr::NULL } else { addr_mut(&mut counters) },
        tile_counter: if seed % 7 == 2 { Addr::NULL } else { addr_mut(&mut tile_counter) },
        page_tokens: page as u32,
        ..Params::EMPTY
    };
    if runs_cuda_code() {
        let parts = TestArray::output(F32, bytes_of_parts(&params) / 4);
        let workspace = if seed.is_multiple_of(3) { Addr::NULL } else { parts.addr() };
        run(&by(variant, fwd(model.dtype, &Params { workspace, ..params }, 0.0, 0.0)), threads);
        assert!(counters.iter().all(|&n| n == 0), "{model:?}: counters are not 0 after the launch: {counters:?}");
        assert_eq!(tile_counter, [0], "{model:?}: the tile counter after the launch");
        return bits(&o);
    }
    let team = Team::new(threads);
    // SAFETY: the addresses belong to live arrays of the documented sizes; the machine has the instruction set.
    unsafe {
        match model.dtype {
            F32 => super::cpu::fwd_on::<f32>(model.isa, &params, &team),
            _ => super::cpu::fwd_on::<bf16>(model.isa, &params, &team),
        }
    }
    bits(&o)
}

fn values(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&b| f32::from_bits(b)).collect()
}

/// Tolerance in f32, as a multiple of the error of one rounding. The multiple is large because outputs are sums over
/// head_dim and over the keys, and because scores are large.
const ROUNDING_FACTOR_F32: f64 = 60.0;

/// Returns the outputs of a sequence's last `new` tokens: [by the formula with a kernel's roundings, by the exact
/// formula]. The earlier tokens are passed as a shared prefix, so that only outputs of the new tokens are computed.
fn formulas(model: &Model, tokens: &Tokens, new: usize) -> [Vec<f64>; 2] {
    let earlier = tokens.len - new;
    let case = PackedBatch {
        lengths: vec![new],
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        causal: true,
        spread: 1.5,
        prefix: vec![(new, earlier)],
    };
    let arrays = [(&tokens.q, model.row()), (&tokens.k, model.kv_row()), (&tokens.v, model.kv_row())];
    let [q, k, v] = arrays.map(|(x, width)| {
        let mut values = TestArray::new(model.dtype, x).to_f64();
        values.rotate_left(earlier * width);
        values
    });
    let scale = model.scale() as f64;
    let roundings = if runs_cuda_code() && model.dtype == BF16 { Roundings::BF16 } else { Roundings::F32 };
    let with = formula::fwd_rounded(&case, &q, &k, &v, scale, roundings);
    let (want, _) = formula::fwd(&case, &q, &k, &v, scale);
    [with, want]
}

fn equals_the_formula() {
    let sizes = [
        // A model: (query heads, key heads), head_dim, and (keys, new tokens) of each sequence.
        ((4, 1), 128, vec![(130, 130), (65, 1), (0, 0), (64, 3)]),
        ((8, 1), 64, vec![(513, 1), (1, 1), (600, 5)]),
        ((14, 2), 80, vec![(70, 2), (17, 17)]),
        ((3, 3), 72, vec![(66, 66)]),
        ((2, 1), 256, vec![(80, 20)]),
        ((6, 3), 5, vec![(67, 9), (3, 1)]),
        ((20, 1), 7, vec![(130, 1), (0, 0), (3, 2), (0, 0)]),
        ((7, 1), 128, vec![(600, 1), (65, 1)]),
    ];
    for dtype in [F32, BF16] {
        for (i, ((heads, kv_heads), head_dim, lengths)) in sizes.iter().enumerate() {
            let model = Model { heads: *heads, kv_heads: *kv_heads, head_dim: *head_dim, dtype, isa: isa() };
            let tokens: Vec<Tokens> =
                lengths.iter().enumerate().map(|(n, l)| Tokens::new(&model, l.0, (7 * i + n) as u64)).collect();
            let batch: Vec<(&Tokens, usize, usize)> = tokens.iter().zip(lengths).map(|(t, l)| (t, l.0, l.1)).collect();
            let formulas: Vec<_> = tokens.iter().zip(lengths).map(|(t, (_, new))| formulas(&model, t, *new)).collect();
            for seed in [3 * i, 3 * i + 1] {
                let got = paged(&model, &batch, 2, seed);
                let mut first = 0;
                for ([with, want], (keys, _)) in formulas.iter().zip(lengths) {
                    let got = values(&got[first..first + want.len()]);
                    let rounding_factor = if dtype == F32 { ROUNDING_FACTOR_F32 } else { DEFAULT_ROUNDING_FACTOR };
                    assert_rounded(
                        &format!("{model:?} {keys} keys, seed {seed}"),
                        dtype,
                        &got,
                        with,
                        want,
                        rounding_factor,
                    );
                    first += want.len();
                }
            }
        }
    }
}

/// However a prompt is divided into chunks, its outputs have the same bits. Runs under one interleaving of warps
/// only, because `equals_the_formula` runs these kernels under several.
fn a_prompt_cut_anyhow_gives_the_same_bits() {
    with_one_interleaving(|| {
        let short = [((4, 1), 128, 70), ((7, 1), 80, 66), ((3, 1), 20, 65), ((2, 1), 200, 66)];
        // More than a segment of keys.
        let long = ((1, 1), 64, 520);
        for dtype in [F32, BF16] {
            for ((heads, kv_heads), head_dim, len) in short.into_iter().chain((dtype == BF16).then_some(long)) {
                let model = Model { heads, kv_heads, head_dim, dtype, isa: isa() };
                let (me, other) = (Tokens::new(&model, len, 1), Tokens::new(&model, 40, 2));
                let row = model.row();
                let want = packed(&model, &[&me], 1);
                let prefill = paged(&model, &[(&other, 40, 1), (&me, len, len)], 1, 3);
                assert!(prefill[row..] == want, "{model:?}: prefill differs from packed attention");
                // Computes the second part of the prompt as a separate chunk, with and without a workspace, in other
                // pages of the cache.
                let cut = len / 2 + 3;
                for seed in [4, 6] {
                    let chunk = paged(&model, &[(&me, len, len - cut), (&other, 9, 9)], 1, seed);
                    assert!(
                        chunk[..(len - cut) * row] == want[cut * row..],
                        "{model:?}: the second chunk differs from packed attention, seed {seed}"
                    );
                }
                for (keys, seed) in [(len, 0), (len, 1), (64, 7), (63, 9), (1, 10)] {
                    let got = paged(&model, &[(&other, 30, 1), (&me, keys, 1)], 1, seed);
                    assert!(got[row..] == want[(keys - 1) * row..keys * row], "{model:?}: {keys} keys, seed {seed}");
                }
            }
        }
    });
}

/// A decoded token has the same bits with a workspace and without one. Runs under one interleaving of warps only,
/// because `equals_the_formula` runs these kernels under several.
fn a_decoded_token_gives_the_same_bits_with_parts_and_without() {
    with_one_interleaving(|| {
        for dtype in [F32, BF16] {
            for (heads, head_dim, len) in [(7, 128, 1090), (2, 64, 513), (8, 80, 1024)] {
                let model = Model { heads, kv_heads: 1, head_dim, dtype, isa: isa() };
                let (me, row) = (Tokens::new(&model, len, 1), model.row());
                let want = paged(&model, &[(&me, len, 3)], 1, 0);
                for seed in [1, 2, 3, 4] {
                    let got = paged(&model, &[(&me, len - 1, 1), (&me, len, 1)], 1, seed);
                    assert!(got == want[row..], "{model:?}, {len} keys, seed {seed}");
                }
            }
        }
    });
}

fn padding_rows_get_zeros_and_change_no_other_row() {
    for dtype in [F32, BF16] {
        for ((heads, kv_heads), head_dim, len) in [((4, 2), 64, 65), ((7, 1), 128, 520), ((2, 1), 256, 70)] {
            let model = Model { heads, kv_heads, head_dim, dtype, isa: isa() };
            let (me, other, row) = (Tokens::new(&model, len, 1), Tokens::new(&model, 9, 2), model.row());
            for seed in [3, 4] {
                let want = paged(&model, &[(&me, len, 1), (&other, 9, 1)], 2, seed);
                let padding = (&other, 0, 1);
                let got = paged(&model, &[padding, (&me, len, 1), padding, (&other, 9, 1), padding], 2, seed);
                assert!(got[row..2 * row] == want[..row] && got[3 * row..4 * row] == want[row..], "{model:?}");
                for at in [0, 2, 4] {
                    assert!(got[at * row..(at + 1) * row].iter().all(|&b| b == 0), "{model:?}: row {at}, seed {seed}");
                }
            }
        }
    }
}

/// The outputs of completions of one prompt do not depend on which completions share pages, nor on their position in
/// the batch.
fn tokens_that_share_pages_have_the_bits_of_each_alone() {
    let cases = [
        // A case: (query heads, key heads), head_dim, number of completions, number of keys of the prompt.
        ((7, 1), 128, 9, 1030),
        ((14, 2), 64, 4, 520),
        ((2, 2), 21, 3, 520),
        ((14, 2), 80, 4, 540),
        ((6, 1), 256, 3, 515),
        ((20, 1), 16, 2, 530),
    ];
    for (i, ((heads, kv_heads), head_dim, completions, prompt)) in cases.into_iter().enumerate() {
        let model = Model { heads, kv_heads, head_dim, dtype: BF16, isa: isa() };
        let row = model.row();
        let start = Tokens::new(&model, prompt, 40 + i as u64);
        let other = Tokens::new(&model, 600, 3);
        // Completion n has n + 1 generated tokens. The second segment of completion 2 differs from the other
        // completions and has separate pages.
        let all: Vec<Tokens> = (0..completions)
            .map(|n| {
                let mut tokens = Tokens::new(&model, prompt + n + 1, 50 + n as u64);
                let same = if n == 2 { 512.min(prompt) } else { prompt };
                let copy = |to: &mut Vec<f32>, from: &[f32], width: usize| {
                    to[..same * width].copy_from_slice(&from[..same * width]);
                };
                copy(&mut tokens.k, &start.k, model.kv_row());
                copy(&mut tokens.v, &start.v, model.kv_row());
                tokens
            })
            .collect();
        let mut batch = vec![(&other, 600, 1)];
        batch.extend(all.iter().map(|t| (t, t.len, 1)));
        let mut want = Vec::new();
        with_one_interleaving(|| want.extend(batch.iter().map(|s| paged(&model, &[*s], 1, 0))));
        for seed in [1, 4] {
            let page = 16 << (seed % 5);
            // Shares only pages with no keys but those of the prompt. The last page of a prompt also has keys of the
            // completion.
            let owner = |n: usize, i: usize| {
                let shared = if n == 3 { 512 } else { prompt };
                if n > 1 && (i + 1) * page <= shared { 1 } else { n }
            };
            let got = paged_with_shared_pages(&model, &batch, 2, seed, owner);
            for (n, want) in want.iter().enumerate() {
                assert!(got[n * row..][..row] == want[..], "{model:?}: row {n}, pages of {page} tokens");
            }
        }
    }
}

/// A launch with more items of work than blocks of threads gives the same bits as a smaller launch.
fn blocks_of_threads_that_take_several_items_give_the_same_bits() {
    let model = Model { heads: 10, kv_heads: 10, head_dim: 8, dtype: BF16, isa: isa() };
    let tokens = [2, 70, 1].map(|len| Tokens::new(&model, len, len as u64));
    let three: Vec<(&Tokens, usize, usize)> = tokens.iter().map(|t| (t, t.len, 1)).collect();
    let want = paged(&model, &three, 1, 0);
    // 108 tokens give 1080 items of work. A GPU with 132 multiprocessors gets 1056 blocks of threads.
    let batch: Vec<_> = (0..108).map(|n| three[n % 3]).collect();
    let got = paged(&model, &batch, 2, 3);
    assert!(got.chunks(want.len()).all(|part| part == want), "{model:?}");
}

#[cfg(test)]
mod tests;
