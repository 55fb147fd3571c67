use proptest::prelude::*;
use reel_device::Arch;

use super::*;
use crate::paged_attention::{
    BLOCK_TOKENS, FWD_BF16_DECODE_ROWS, FWD_BF16_PREFILL_WGMMA, plan_bf16_mma, query_key_pair_and_key_counts,
    workspace_bytes,
};

fn models() -> impl Strategy<Value = Model> {
    let heads = prop::sample::select(vec![(6, 3), (4, 1), (14, 2), (2, 2), (1, 1)]);
    let head_dim = prop::sample::select(vec![8, 12, 24, 64, 80, 128]);
    let supported_instruction_sets: Vec<Isa> = crate::attention::check::tests::supported_instruction_sets().collect();
    (heads, head_dim, prop::sample::select(vec![F32, BF16]), prop::sample::select(supported_instruction_sets))
        .prop_map(|((heads, kv_heads), head_dim, dtype, isa)| Model { heads, kv_heads, head_dim, dtype, isa })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// Packed prefill, chunked prefill and decode give a sequence's outputs the same bits as a packed forward pass over
    /// this sequence alone, on one thread.
    #[test]
    fn packed_prefill_chunks_and_decode_agree_bit_for_bit(
        model in models(),
        // Sequences of more than 512 keys have a second segment.
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
        let paged = |batch: &[(&Tokens, usize, usize)]| paged_with_shared_pages(&model, batch, threads, seed, |n, _| n);

    // Computes the sequence in a packed batch, after other sequences.
        let mut all: Vec<&Tokens> = others.iter().collect();
        all.push(&me);
        let got = packed(&model, &all, threads);
        prop_assert!(got[got.len() - want.len()..] == want, "packed");

        // Computes the sequence by a prefill of the whole prompt, before other prompts.
        let mut prompts = vec![(&me, len, len)];
        prompts.extend(others.iter().map(|t| (t, t.len, t.len)));
        let got = paged(&prompts);
        prop_assert!(got[..want.len()] == want, "prefill");

        // Computes the sequence by chunked prefill while other sequences decode.
        let mut end = 0;
        while end < len {
            let new = chunk.min(len - end);
            end += new;
            let mut batch = vec![(&me, end, new)];
            batch.extend(others.iter().map(|t| (t, t.len, 1)));
            let got = paged(&batch);
            prop_assert!(got[..new * row] == want[(end - new) * row..end * row], "chunk up to {end}");
        }

        // Decodes token by token. In a long sequence it decodes only the tokens at the ends of blocks of 64 keys and of
        // segments of 512 keys.
        for keys in (1..=len).filter(|k| len < 70 || *k == len || (k + 1) % BLOCK_TOKENS <= 2) {
            let got = paged(&[(&me, keys, 1)]);
            prop_assert!(got == want[(keys - 1) * row..keys * row], "decode with {keys} keys");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// The outputs of sequences that share pages equal, bit for bit, the outputs of each sequence alone, for any choice
    /// of shared pages and any number of threads.
    #[test]
    fn sequences_that_share_pages_have_the_bits_of_each_alone_on_a_cpu(
        model in models(),
        prompt in prop::sample::select(vec![63usize, 64, 100, 128, 191, 520, 1030]),
        // For each sequence: keys after the prompt, new tokens, and the part of the prompt's pages that it shares.
        sequences in prop::collection::vec((1usize..80, 1usize..3, 0usize..4), 2..12),
        threads in 1usize..5,
        seed in 0usize..1000,
    ) {
        let start = Tokens::new(&model, prompt, seed as u64);
        let all: Vec<Tokens> = sequences.iter().enumerate().map(|(n, &(own, ..))| {
            let mut tokens = Tokens::new(&model, prompt + own, 3 + n as u64);
            tokens.k[..start.k.len()].copy_from_slice(&start.k);
            tokens.v[..start.v.len()].copy_from_slice(&start.v);
            tokens
        }).collect();
        let batch: Vec<_> = all.iter().zip(&sequences).map(|(t, &(own, new, _))| (t, t.len, new.min(own))).collect();
        let page = 16 << (seed % 5);
        let owner = |n: usize, i: usize| {
            let (.., part) = sequences[n];
            let shared = [0, 64.min(prompt), prompt, prompt][part];
            if (i + 1) * page <= shared { 0 } else { n }
        };
        let got = paged_with_shared_pages(&model, &batch, threads, seed, owner);
        let alone = |sequence| paged_with_shared_pages(&model, &[sequence], 1, seed, |n, _| n);
        let want: Vec<u32> = batch.iter().flat_map(|&sequence| alone(sequence)).collect();
        prop_assert!(got == want);
    }
}

/// A paged launch of a prompt and a packed launch give the same bits. Other checks compare the packed launch with the
/// formula.
#[test]
fn the_launch_equals_the_packed_one() {
    for dtype in [F32, BF16] {
        for case in attention::test_shapes() {
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
    assert_eq!(query_key_pair_and_key_counts([(1, 10), (3, 3), (2, 5)]), (10.0 + 6.0 + 4.0 + 5.0, 18.0));
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

/// Simulates decode at the heads of the 7B model, on an A100 or by the kernel for Hopper on an H100 with two
/// multiprocessors. Returns the bytes that the launches move, divided by the bytes of their cost. Asserts that shared
/// memory has no bank conflicts. With `shared`, every sequence has the pages of the first sequence, except for its
/// last page.
fn traffic_ratio(hopper: bool, seqs: usize, keys: usize, kv_heads: usize, shared: bool, with_workspace: bool) -> f64 {
    let (heads, head_dim, page) = (7 * kv_heads, 128, 64);
    let width = kv_heads * head_dim;
    let pages = keys.div_ceil(page);
    let kv = TestArray::new(BF16, &normal_numbers(seqs * pages * page * width, 1, 1.0));
    let q = TestArray::new(BF16, &normal_numbers(seqs * heads * head_dim, 2, 1.0));
    let o = TestArray::output(BF16, seqs * heads * head_dim);
    let cu_seqlens: Vec<i32> = (0..=seqs as i32).collect();
    let kv_lens = vec![keys as i32; seqs];
    let owner = |n: usize, i: usize| if shared && i + 1 < pages { 0 } else { n };
    let page_of = |n: usize| (n, n % pages);
    let tables: Vec<i32> =
        (0..seqs * pages).map(page_of).map(|(n, i)| (owner(n / pages, i) * pages + i) as i32).collect();
    let mut counters = vec![0u32; seqs * kv_heads];
    let params = Params {
        q: q.addr(),
        k_cache: kv.addr(),
        v_cache: kv.addr(),
        o: o.addr(),
        cu_seqlens: addr(&cu_seqlens),
        kv_lens: addr(&kv_lens),
        block_tables: addr(&tables),
        tokens: seqs as u32,
        seqs: seqs as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        max_blocks: pages as u32,
        scale: 0.1,
        max_kv_len: keys as u32,
        page_tokens: page as u32,
        ..bytemuck::Zeroable::zeroed()
    };
    let parts = TestArray::output(F32, bytes_of_parts(&params) / 4);
    let workspace = if with_workspace { parts.addr() } else { Addr::NULL };
    let counters = addr_mut(&mut counters);
    let launch = fwd(BF16, &Params { workspace, counters, ..params }, (seqs * keys) as f64, (seqs * keys) as f64);
    let launch = by(hopper.then_some(&FWD_BF16_DECODE_ROWS), launch);
    let arch = if hopper { decode_rows::SMALL_HOPPER } else { Arch::A100 };
    let (count, cost) = (crate::checks::simulated_counts_on(&launch, &arch), launch.cost());
    let bytes = (count.global_read + count.global_written) as f64;
    println!("{seqs} x {keys} keys, shared {shared}: {bytes} of {}; {count:?}", cost.bytes);
    assert_eq!(count.wavefronts, count.wavefronts_least, "bank conflicts");
    bytes / cost.bytes
}

#[test]
fn decode_is_one_launch_with_a_limited_number_of_blocks() {
    let decode = Params {
        tokens: 64,
        seqs: 64,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        max_kv_len: 4096,
        workspace: Addr(1 << 20),
        counters: Addr(1 << 30),
        ..bytemuck::Zeroable::zeroed()
    };
    let blocks = |p: &Params| {
        let stages = plan_bf16_mma(p, &Arch::H100);
        assert!(stages.len() == 1 && stages[0].symbol == "paged_attention_fwd_bf16_decode_128", "{stages:?}");
        stages[0].grid[0]
    };
    // 64 tokens with 8 segments of 512 keys and 4 key heads give 2048 items of work, more than the maximum number of
    // blocks.
    assert_eq!(blocks(&decode), 132 * 8);
    assert_eq!(blocks(&Params { tokens: 1, seqs: 1, ..decode }), 8 * 4);
    assert_eq!(blocks(&Params { workspace: Addr::NULL, ..decode }), 64 * 4);
    let without_counters = Params { counters: Addr::NULL, ..decode };
    assert_eq!(plan_bf16_mma(&without_counters, &Arch::H100).len(), 2);
    // 7 query heads per key head need one counter per key head, 20 query heads need two.
    assert_eq!((counters_per_token(28, 4), counters_per_token(40, 2)), (4, 4));

    let bytes = 64 * 28 * 8 * (128 * 4 + 8);
    assert_eq!(workspace_bytes(BF16, &decode), bytes);
    assert_eq!(workspace_bytes(BF16, &without_counters), bytes);
    assert_eq!(workspace_bytes(BF16, &Params { max_kv_len: 512, ..decode }), 0);
    assert_eq!(workspace_bytes(BF16, &Params { max_kv_len: 1 << 17, ..decode }), 0);
    assert_eq!(workspace_bytes(F32, &decode), bytes);
    let large = Params { tokens: 128, seqs: 128, max_kv_len: 16384, ..decode };
    assert_eq!((workspace_bytes(F32, &large), workspace_bytes(BF16, &large)), (0, 2 * 4 * bytes));
}

#[test]
fn decode_on_hopper_is_one_block_per_multiprocessor_and_a_merge_of_segments() {
    let decode = Params {
        tokens: 64,
        seqs: 64,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        max_kv_len: 4096,
        page_tokens: 64,
        workspace: Addr(1 << 20),
        counters: Addr(1 << 30),
        ..Params::EMPTY
    };
    let stages = |p: &Params, arch: &Arch| -> Vec<(&str, u32)> {
        let stages = (FWD_BF16_DECODE_ROWS.plan)(bytemuck::bytes_of(p), arch);
        stages.iter().map(|s| (s.symbol, s.grid[0])).collect()
    };
    let rows = "paged_attention_fwd_bf16_decode_rows_128";
    let combine = ("paged_attention_fwd_bf16_combine_rows", 64 * 28 / 4);
    assert_eq!(stages(&decode, &Arch::H100), [(rows, 132), combine]);
    let one = Params { tokens: 1, seqs: 1, ..decode };
    assert_eq!(stages(&one, &Arch::H100), [(rows, 8 * 4), (combine.0, 7)]);
    assert_eq!(stages(&Params { workspace: Addr::NULL, ..one }, &Arch::H100), [(rows, 4)]);
    // All other calls are planned by `plan_bf16_mma`, which launches the mma.sync kernels for all GPUs.
    for (p, arch) in [
        (decode, Arch::A100),
        (Params { head_dim: 96, ..decode }, Arch::H100),
        (Params { counters: Addr::NULL, ..decode }, Arch::H100),
        (Params { tokens: 65, ..decode }, Arch::H100),
    ] {
        let want: Vec<_> = plan_bf16_mma(&p, &arch).iter().map(|s| (s.symbol, s.grid[0])).collect();
        assert_eq!(stages(&p, &arch), want);
    }
}

#[test]
fn keys_are_read_once_and_without_bank_conflicts() {
    crate::checks::run_test_on_sim(|| {
        for (seqs, keys, kv_heads, with_workspace) in [(1, 4096, 1, true), (3, 1024, 2, true), (1, 1024, 1, false)] {
            for hopper in [false, true] {
                let ratio = traffic_ratio(hopper, seqs, keys, kv_heads, false, with_workspace);
                assert!(
                    ratio <= 1.05,
                    "{seqs} x {keys} keys, workspace {with_workspace}: the launch moves {ratio} times the bytes of its cost"
                );
            }
        }
    });
}

/// The 1536 shared keys of 8 completions with 64 keys of their own are read once: (1536 + 8 * 64) / (8 * 1600) = 0.16
/// of the keys. The workspace adds 0.035, the queries of each segment and the block tables less than 0.025.
#[test]
fn shared_pages_are_read_once() {
    crate::checks::run_test_on_sim(|| {
        for hopper in [false, true] {
            let ratio = traffic_ratio(hopper, 8, 1600, 1, true, true);
            assert!(ratio <= 0.16 + 0.035 + 0.025, "{ratio} times the bytes that all completions would read alone");
        }
    });
}

#[test]
fn prefill_on_hopper_is_one_launch_of_persistent_blocks() {
    let prefill = Params {
        tokens: 4096,
        seqs: 1,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        max_kv_len: 4096,
        page_tokens: 64,
        ..Params::EMPTY
    };
    let stages = |p: &Params, arch: &Arch| -> Vec<(&str, u32)> {
        let stages = (FWD_BF16_PREFILL_WGMMA.plan)(bytemuck::bytes_of(p), arch);
        stages.iter().map(|s| (s.symbol, s.grid[0])).collect()
    };
    let symbol = "paged_attention_fwd_bf16_wgmma_128";
    assert_eq!(stages(&prefill, &Arch::H100), [(symbol, 132)]);
    // 60 tokens may begin in one tile of 128 positions and end in the next, so the plan has two tiles per head.
    assert_eq!(stages(&Params { tokens: 60, ..prefill }, &Arch::H100), [(symbol, 2 * 28)]);
    assert_eq!(stages(&Params { tokens: 0, ..prefill }, &Arch::H100), []);
    // All other calls are planned by `plan_bf16_mma`, which launches the mma.sync kernels for all GPUs.
    let decode = Params { tokens: 1, counters: Addr(1 << 30), ..prefill };
    for (p, arch) in [(prefill, Arch::A100), (Params { head_dim: 96, ..prefill }, Arch::H100), (decode, Arch::H100)] {
        let want: Vec<_> = plan_bf16_mma(&p, &arch).iter().map(|s| (s.symbol, s.grid[0])).collect();
        assert_eq!(stages(&p, &arch), want);
    }
}

/// Simulates a chunk that ends at the end of a page. For each query head, the kernel copies the queries of its tiles,
/// and the keys and values of the blocks that these queries see, once.
#[test]
fn prefill_on_hopper_copies_each_block_once_and_without_bank_conflicts() {
    crate::checks::run_test_on_sim(|| {
        for (head_dim, page) in [(64usize, 64usize), (80, 16), (128, 64), (128, 128)] {
            let (heads, keys, new) = (2, 384, 200);
            let data = |n: usize, seed| TestArray::new(BF16, &normal_numbers(n * head_dim, seed, 1.0));
            let (q, k, v) = (data(new * heads, 1), data(keys, 2), data(keys, 3));
            let o = TestArray::output(BF16, new * heads * head_dim);
            let tables: Vec<i32> = (0..(keys / page) as i32).collect();
            let (cu_seqlens, kv_lens) = ([0, new as i32], [keys as i32]);
            let params = Params {
                q: q.addr(),
                k_cache: k.addr(),
                v_cache: v.addr(),
                o: o.addr(),
                cu_seqlens: addr(&cu_seqlens),
                kv_lens: addr(&kv_lens),
                block_tables: addr(&tables),
                tokens: new as u32,
                seqs: 1,
                heads: heads as u32,
                kv_heads: 1,
                head_dim: head_dim as u32,
                max_blocks: tables.len() as u32,
                scale: 0.1,
                max_kv_len: keys as u32,
                page_tokens: page as u32,
                ..Params::EMPTY
            };
            let launch = by(Some(&FWD_BF16_PREFILL_WGMMA), fwd(BF16, &params, 0.0, 0.0));
            let count = crate::checks::simulated_counts_on(&launch, &decode_rows::SMALL_HOPPER);
            assert_eq!(count.wavefronts, count.wavefronts_least, "bank conflicts, head_dim {head_dim}");
            // The tile of positions 128 .. 256 sees two blocks of 128 keys, the tile of positions 256 .. 384 three.
            let copied = heads * (new + 2 * (2 + 3) * 128) * head_dim * 2;
            let bytes = (count.global_read + count.global_written) as f64;
            let want = (copied + heads * new * head_dim * 2) as f64;
            println!("head_dim {head_dim}, pages of {page}: {bytes} bytes, expected {want}");
            assert!((want..=1.02 * want).contains(&bytes), "{bytes} bytes of memory traffic, expected {want}");
        }
    });
}
