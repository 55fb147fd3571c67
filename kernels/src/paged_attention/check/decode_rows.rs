//! Checks of the decode kernel for Hopper (`decode_rows.cuh`), which sums in the same order as the forward pass. The
//! simulated H100 has two multiprocessors, so that a block of threads takes several items of work.

use reel_device::Arch;
use reel_device::DType::BF16;
use reel_device::cpu::simd::isa;

use super::{Model, Tokens, formulas, packed_by, paged_by, values};
use crate::attention;
use crate::checks::{with_one_interleaving, with_only_gpu};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::paged_attention::FWD_BF16_DECODE_ROWS;

/// A simulated H100 with only two multiprocessors.
pub(super) const SMALL_HOPPER: Arch = Arch { multiprocessors: 2, ..Arch::H100 };

fn model((heads, kv_heads): (usize, usize), head_dim: usize) -> Model {
    Model { heads, kv_heads, head_dim, dtype: BF16, isa: isa() }
}

/// Returns the output bits of a decode launch on Hopper. A sequence is given as (its tokens, number of keys, number
/// of new tokens). `seed` selects the page size, 16 << seed % 5 tokens. If `seed` is a multiple of 3, there is no
/// workspace. `seed` modulo 7 must not be 2, because the launch would then run the kernel for prefill.
fn decoded(
    model: &Model,
    sequences: &[(&Tokens, usize, usize)],
    seed: usize,
    owner: impl Fn(usize, usize) -> usize,
) -> Vec<u32> {
    assert_ne!(seed % 7, 2, "this seed gives no counters, so the prefill kernel would run");
    let mut bits = Vec::new();
    with_only_gpu(SMALL_HOPPER, || bits = paged_by(Some(&FWD_BF16_DECODE_ROWS), model, sequences, 1, seed, owner));
    bits
}

/// Compares decode on Hopper with the formula: every head_dim; 1 to 8 query heads per key head (one tile of rows), 9 to
/// 16 (two tiles) and more (several items of work); blocks of up to 64 keys and of more; several segments with and
/// without a workspace; all page sizes.
pub(super) fn decode_on_hopper_equals_the_formula() {
    let cases = [
        // A case: (query heads, key heads), head_dim, number of keys of each sequence, seeds.
        ((7, 1), 128, &[600, 65, 1][..], [1, 3]),
        ((2, 2), 64, &[128, 513, 64], [4, 15]),
        ((10, 1), 80, &[70, 530], [5, 12]),
        ((20, 1), 64, &[17, 192, 540], [8, 18]),
    ];
    for (i, (heads, head_dim, lengths, seeds)) in cases.into_iter().enumerate() {
        let model = model(heads, head_dim);
        let tokens: Vec<Tokens> =
            lengths.iter().enumerate().map(|(n, &len)| Tokens::new(&model, len, (7 * i + n) as u64)).collect();
        let batch: Vec<_> = tokens.iter().map(|t| (t, t.len, 1)).collect();
        for seed in seeds {
            let got = decoded(&model, &batch, seed, |n, _| n);
            for (t, got) in tokens.iter().zip(got.chunks(model.row())) {
                let [with, want] = formulas(&model, t, 1);
                let name = format!("{model:?} {} keys, seed {seed}", t.len);
                assert_rounded(&name, BF16, &values(got), &with, &want, DEFAULT_ROUNDING_FACTOR);
            }
        }
    }
}

/// A decoded token has the same bits as in a forward pass over its whole sequence.
pub(super) fn a_token_decoded_on_hopper_has_the_bits_of_the_forward_pass() {
    let lengths = [
        1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192, 193, 256, 300, 384, 385, 511, 512, 513, 576, 577, 639, 640,
        641, 768, 1000, 1023, 1024, 1025, 1100,
    ];
    for (heads, head_dim, len) in [((7, 1), 128, 641), ((1, 1), 128, 1100), ((4, 1), 80, 641), ((1, 1), 64, 1100)] {
        let model = model(heads, head_dim);
        let (me, row) = (Tokens::new(&model, len, 1), model.row());
        let mut want = Vec::new();
        with_one_interleaving(|| {
            with_only_gpu(SMALL_HOPPER, || want = packed_by(Some(&attention::FWD_BF16_WGMMA), &model, &[&me], 1));
        });
        let lengths: Vec<usize> = lengths.into_iter().filter(|&keys| keys <= len).collect();
        let batch: Vec<_> = lengths.iter().map(|&keys| (&me, keys, 1)).collect();
        // Runs with and without a workspace. The sequences have separate pages, or share all pages.
        for (seed, shared) in [(17, false), (10, true), (3, true)] {
            let mut got = Vec::new();
            let owner = |n, _| if shared { 0 } else { n };
            with_one_interleaving(|| got = decoded(&model, &batch, seed, owner));
            for (&keys, got) in lengths.iter().zip(got.chunks(row)) {
                let want = &want[(keys - 1) * row..keys * row];
                let different = got.iter().zip(want).filter(|(a, b)| a != b).count();
                assert!(different == 0, "{model:?}, {keys} keys, seed {seed}: {different} of {row} elements differ");
            }
        }
    }
}

/// Padding rows get zeros and change no other row. A sequence may have several new tokens.
pub(super) fn padding_rows_get_zeros_on_hopper() {
    for (heads, head_dim, len) in [((4, 2), 64, 65), ((7, 1), 128, 520), ((10, 1), 80, 70)] {
        let model = model(heads, head_dim);
        let (me, other, row) = (Tokens::new(&model, len, 1), Tokens::new(&model, 9, 2), model.row());
        for seed in [3, 4] {
            let want = decoded(&model, &[(&me, len, 1), (&other, 9, 1)], seed, |n, _| n);
            let before = decoded(&model, &[(&me, len - 1, 1)], seed, |n, _| n);
            let padding = (&other, 0, 1);
            let got = decoded(&model, &[padding, (&me, len, 1), padding, (&other, 9, 1), padding], seed, |n, _| n);
            assert!(got[row..2 * row] == want[..row] && got[3 * row..4 * row] == want[row..], "{model:?}");
            for at in [0, 2, 4] {
                assert!(got[at * row..(at + 1) * row].iter().all(|&b| b == 0), "{model:?}: row {at}, seed {seed}");
            }
            let two = decoded(&model, &[(&me, len, 2), (&other, 0, 0)], seed, |n, _| n);
            assert!(two[..row] == before && two[row..] == want[..row], "{model:?}: two new tokens, seed {seed}");
        }
    }
}

/// The outputs of completions of one prompt do not depend on which completions share pages, nor on their position in
/// the batch. A row is a (token, query head); the completions that share pages have fewer than 16 rows, a few full
/// tiles, or 64 rows (the last 8 of 15 completions).
pub(super) fn tokens_that_share_pages_have_the_bits_of_each_alone_on_hopper() {
    let cases = [((7, 1), 128, 10, 530), ((1, 1), 64, 9, 1030), ((6, 2), 80, 4, 520), ((8, 1), 64, 15, 515)];
    for (i, (heads, head_dim, completions, prompt)) in cases.into_iter().enumerate() {
        let model = model(heads, head_dim);
        let (start, other) = (Tokens::new(&model, prompt, 40 + i as u64), Tokens::new(&model, 600, 3));
        let all: Vec<Tokens> = (0..completions)
            .map(|n| {
                let mut tokens = Tokens::new(&model, prompt + n + 1, 50 + n as u64);
                tokens.k[..start.k.len()].copy_from_slice(&start.k);
                tokens.v[..start.v.len()].copy_from_slice(&start.v);
                tokens
            })
            .collect();
        let mut batch = vec![(&other, 600, 1)];
        batch.extend(all.iter().map(|t| (t, t.len, 1)));
        let mut want = Vec::new();
        with_one_interleaving(|| want = decoded(&model, &batch, 0, |n, _| n));
        for seed in [1, 4] {
            let page = 16 << (seed % 5);
            // Shares only pages with no keys but those of the prompt. The last page of a prompt also has keys of the
            // completion. Completion 3 shares no pages.
            let owner = |n: usize, i: usize| if n > 1 && n != 3 && (i + 1) * page <= prompt { 1 } else { n };
            let got = decoded(&model, &batch, seed, owner);
            assert!(got == want, "{model:?}: pages of {page} tokens");
        }
    }
}
