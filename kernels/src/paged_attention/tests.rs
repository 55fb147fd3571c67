#![allow(unsafe_code)]

use super::{BLOCK, Params, cpu, fwd, work};
use crate::DType::{BF16, F32};
use crate::attention::{self, FwdParams};
use crate::simd::{Isa, isa};
use crate::testing::{Data, addr, numbers};
use crate::{Addr, DType, Team};
use half::bf16;
use proptest::prelude::*;

/// Heads and sizes of a model.
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

/// One sequence: its queries, keys and values as numbers.
#[derive(Clone)]
struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    len: usize,
}

impl Tokens {
    fn new(model: &Model, len: usize, seed: u64) -> Tokens {
        let numbers = |width, salt| numbers(len * width, seed ^ salt, 1.5);
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

fn bits(data: &Data) -> Vec<u32> {
    data.values().iter().map(|x| x.to_bits()).collect()
}

/// The packed causal forward of sequences.
fn packed(model: &Model, sequences: &[&Tokens], threads: usize) -> Vec<u32> {
    let data = |f: fn(&Tokens) -> &Vec<f32>| {
        Data::new(model.dtype, &sequences.iter().flat_map(|s| f(s).iter().copied()).collect::<Vec<_>>())
    };
    let (q, k, v) = (data(|s| &s.q), data(|s| &s.k), data(|s| &s.v));
    let cu_seqlens = starts(sequences.iter().map(|s| s.len));
    let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
    let o = Data::output(model.dtype, tokens * model.row());
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
    };
    let team = Team::new(threads);
    // SAFETY: the addresses are those of live arrays of the documented sizes; the machine has the instruction set.
    unsafe {
        match model.dtype {
            F32 => attention::cpu::fwd_on::<f32>(model.isa, &params, &team),
            _ => attention::cpu::fwd_on::<bf16>(model.isa, &params, &team),
        }
    }
    bits(&o)
}

/// One launch over sequences given as (tokens, keys that are there, how many of those are new), in a cache with pages in
/// a shuffled order and NaN wherever no key lies.
fn paged(model: &Model, sequences: &[(&Tokens, usize, usize)], threads: usize, seed: usize) -> Vec<u32> {
    let (row, kv_row, page) = (model.row(), model.kv_row(), 16 << (seed % 5));
    let max_blocks = sequences.iter().map(|s| s.1.div_ceil(page)).max().unwrap_or(0) + seed % 2;
    let blocks = (sequences.len() * max_blocks + 3) | 1;
    let mut tables = vec![0; sequences.len() * max_blocks];
    let (mut k, mut v) = (vec![f32::NAN; blocks * page * kv_row], vec![f32::NAN; blocks * page * kv_row]);
    let mut q = Vec::new();
    for (n, &(tokens, keys, new)) in sequences.iter().enumerate() {
        for j in 0..keys {
            // An odd number of blocks: twice the index, and something, goes over all of them.
            let block = (2 * (n * max_blocks + j / page) + seed) % blocks;
            tables[n * max_blocks + j / page] = block as i32;
            let at = (block * page + j % page) * kv_row;
            k[at..at + kv_row].copy_from_slice(&tokens.k[j * kv_row..(j + 1) * kv_row]);
            v[at..at + kv_row].copy_from_slice(&tokens.v[j * kv_row..(j + 1) * kv_row]);
        }
        q.extend_from_slice(&tokens.q[(keys - new) * row..keys * row]);
    }
    let (q, k, v) = (Data::new(model.dtype, &q), Data::new(model.dtype, &k), Data::new(model.dtype, &v));
    let cu_seqlens = starts(sequences.iter().map(|s| s.2));
    let kv_lens: Vec<i32> = sequences.iter().map(|s| s.1 as i32).collect();
    let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
    let o = Data::output(model.dtype, tokens * row);
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
        page: page as u32,
        reserved: 0,
    };
    let team = Team::new(threads);
    // SAFETY: the addresses are those of live arrays of the documented sizes; the machine has the instruction set.
    unsafe {
        match model.dtype {
            F32 => cpu::fwd_on::<f32>(model.isa, &params, &team),
            _ => cpu::fwd_on::<bf16>(model.isa, &params, &team),
        }
    }
    bits(&o)
}

fn models() -> impl Strategy<Value = Model> {
    let heads = prop::sample::select(vec![(6, 3), (4, 1), (14, 2), (2, 2), (1, 1)]);
    let head_dim = prop::sample::select(vec![8, 12, 24, 64, 80, 128]);
    let isas: Vec<Isa> = crate::attention::tests::isas().chain([isa()]).collect();
    (heads, head_dim, prop::sample::select(vec![F32, BF16]), prop::sample::select(isas))
        .prop_map(|((heads, kv_heads), head_dim, dtype, isa)| Model { heads, kv_heads, head_dim, dtype, isa })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// The packed forward alone on one thread is the measure; everything else must give its bits.
    #[test]
    fn packed_prefill_chunks_and_decode_agree_bit_for_bit(
        model in models(),
        // Beyond 512 keys a second segment begins.
        len in prop::sample::select(vec![1usize, 17, 63, 64, 65, 130, 511, 512, 513, 600, 1090]),
        neighbours in prop::collection::vec(1usize..90, 0..3),
        chunk in 1usize..200,
        threads in 1usize..4,
        seed in 0usize..1000,
    ) {
        let me = Tokens::new(&model, len, seed as u64);
        let others: Vec<Tokens> = neighbours.iter().map(|&n| Tokens::new(&model, n, 7 + n as u64)).collect();
        let row = model.row();
        let want = packed(&model, &[&me], 1);

        // Packed after other sequences.
        let mut all: Vec<&Tokens> = others.iter().collect();
        all.push(&me);
        let got = packed(&model, &all, threads);
        prop_assert!(got[got.len() - want.len()..] == want, "packed");

        // The whole prompt at once, before other prompts.
        let mut prompts = vec![(&me, len, len)];
        prompts.extend(others.iter().map(|t| (t, t.len, t.len)));
        prop_assert!(paged(&model, &prompts, threads, seed)[..want.len()] == want, "prefill");

        // In chunks, while others decode.
        let mut end = 0;
        while end < len {
            let new = chunk.min(len - end);
            end += new;
            let mut batch = vec![(&me, end, new)];
            batch.extend(others.iter().map(|t| (t, t.len, 1)));
            let got = paged(&model, &batch, threads, seed);
            prop_assert!(got[..new * row] == want[(end - new) * row..end * row], "chunk up to {end}");
        }

        // Token by token: all of a short sequence, the ends of blocks and segments of a long one.
        for keys in (1..=len).filter(|k| len < 70 || *k == len || (k + 1) % BLOCK <= 2) {
            let got = paged(&model, &[(&me, keys, 1)], threads, seed);
            prop_assert!(got == want[(keys - 1) * row..keys * row], "decode with {keys} keys");
        }
    }
}

/// The packed kernel is held to the formula; here a prompt of every case goes through the launch that a device runs.
#[test]
fn the_launch_equals_the_packed_one() {
    for dtype in [F32, BF16] {
        for case in attention::cases() {
            let model =
                Model { heads: case.heads, kv_heads: case.kv_heads, head_dim: case.head_dim, dtype, isa: isa() };
            let len = case.lengths.iter().copied().max().unwrap_or(0);
            let me = Tokens::new(&model, len, 5);
            assert_eq!(paged(&model, &[(&me, len, len)], 2, 1), packed(&model, &[&me], 1), "{dtype} {case:?}");
        }
    }
}

#[test]
fn work_counts_what_each_new_token_sees() {
    assert_eq!(work([(1, 10), (3, 3), (2, 5)]), (10.0 + 6.0 + 4.0 + 5.0, 18.0));
    let params = Params {
        tokens: 1,
        seqs: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        max_blocks: 1,
        scale: 1.0,
        max_kv_len: 10,
        ..bytemuck::Zeroable::zeroed()
    };
    let cost = fwd(BF16, &params, 10.0, 10.0).cost();
    assert_eq!((cost.flops, cost.bytes), (4.0 * 8.0 * 4.0 * 10.0, 2.0 * 2.0 * 8.0 * (4.0 + 2.0 * 10.0)));
}
