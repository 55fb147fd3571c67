//! Checks of the prefill kernel for Hopper, which uses wgmma (`prefill_wgmma.cuh`). The simulated H100 has two
//! multiprocessors, so that a block of threads takes several tiles.

use reel_device::DType::BF16;
use reel_device::cpu::simd::isa;

use super::decode_rows::SMALL_HOPPER;
use super::{Model, Tokens, formulas, packed_by, paged_by, values};
use crate::attention::FWD_BF16_WGMMA;
use crate::checks::{with_one_interleaving, with_only_gpu};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::paged_attention::FWD_BF16_PREFILL_WGMMA;

fn model((heads, kv_heads): (usize, usize), head_dim: usize) -> Model {
    Model { heads, kv_heads, head_dim, dtype: BF16, isa: isa() }
}

/// Returns the output bits of a prefill launch on Hopper. A sequence is given as (its tokens, number of keys, number
/// of new tokens). `seed` selects the page size, 16 << seed % 5 tokens.
fn prefilled(
    model: &Model,
    sequences: &[(&Tokens, usize, usize)],
    seed: usize,
    owner: impl Fn(usize, usize) -> usize,
) -> Vec<u32> {
    let new: usize = sequences.iter().map(|s| s.2).sum();
    assert!(new > sequences.len() || seed % 7 == 2, "a launch of decode");
    let mut bits = Vec::new();
    with_only_gpu(SMALL_HOPPER, || bits = paged_by(Some(&FWD_BF16_PREFILL_WGMMA), model, sequences, 1, seed, owner));
    bits
}

/// Compares prefill on Hopper with the formula: every head_dim and page size, sequences of several tiles, chunks that
/// begin within a tile, and a sequence without new tokens.
pub(super) fn prefill_on_hopper_equals_the_formula() {
    let cases = [
        // A case: (query heads, key heads), head_dim, (keys, new tokens) of each sequence, seed.
        ((2, 1), 128, &[(20, 20)][..], 0),
        ((1, 1), 64, &[(70, 3)], 4),
        ((1, 1), 80, &[(34, 9)], 1),
        ((2, 2), 128, &[(130, 130), (70, 0), (65, 4)], 7),
        ((3, 1), 64, &[(200, 90), (1, 1), (129, 2)], 3),
        ((7, 1), 80, &[(140, 30), (17, 17)], 0),
    ];
    for (i, (heads, head_dim, lengths, seed)) in cases.into_iter().enumerate() {
        let model = model(heads, head_dim);
        let tokens: Vec<Tokens> =
            lengths.iter().enumerate().map(|(n, l)| Tokens::new(&model, l.0, (7 * i + n) as u64)).collect();
        let batch: Vec<_> = tokens.iter().zip(lengths).map(|(t, l)| (t, l.0, l.1)).collect();
        let got = prefilled(&model, &batch, seed, |n, _| n);
        let mut first = 0;
        for (t, keys, new) in batch {
            let [with, want] = formulas(&model, t, new);
            let (name, got) = (format!("{model:?} {keys} keys, seed {seed}"), &got[first..first + want.len()]);
            assert_rounded(&name, BF16, &values(got), &with, &want, DEFAULT_ROUNDING_FACTOR);
            first += want.len();
        }
    }
}

/// The output of each chunk of a prompt is bit-identical to a forward pass over the whole prompt. The chunks begin
/// and end near multiples of 128 keys (a block) and of 512 (a segment), and have pages of their own or share pages.
pub(super) fn a_prompt_cut_anyhow_has_the_bits_of_the_forward_pass_on_hopper() {
    let cuts = [1, 3, 63, 64, 126, 127, 128, 129, 200, 256, 300, 510, 511, 512, 513, 640, 700, 1023, 1025];
    let cases = [
        ((7, 1), 128, 140),
        ((1, 1), 128, 650),
        ((7, 1), 80, 135),
        ((1, 1), 80, 530),
        ((7, 1), 64, 135),
        ((1, 1), 64, 1050),
    ];
    for (heads, head_dim, len) in cases {
        let model = model(heads, head_dim);
        let (me, row) = (Tokens::new(&model, len, 1), model.row());
        let mut want = Vec::new();
        with_one_interleaving(|| {
            with_only_gpu(SMALL_HOPPER, || want = packed_by(Some(&FWD_BF16_WGMMA), &model, &[&me], 1));
        });
        let ends: Vec<usize> = cuts.into_iter().filter(|&cut| cut < len).chain([len]).collect();
        let few = [len / 2 + 3, len];
        // The seeds give pages of 16, 64 and 256 tokens.
        for (seed, ends, shared) in [(0, &ends[..], true), (12, &few[..], false), (4, &few[..], false)] {
            let starts = [0].into_iter().chain(ends.iter().copied());
            let batch: Vec<_> = starts.zip(ends).map(|(start, &end)| (&me, end, end - start)).collect();
            let mut got = Vec::new();
            let owner = |n, _| if shared { batch.len() - 1 } else { n };
            with_one_interleaving(|| got = prefilled(&model, &batch, seed, owner));
            for (_, end, new) in batch {
                let tokens = (end - new) * row..end * row;
                let different = got[tokens.clone()].iter().zip(&want[tokens]).filter(|(a, b)| a != b).count();
                assert!(
                    different == 0,
                    "{model:?}, {new} tokens up to {end}, seed {seed}: {different} elements differ"
                );
            }
        }
    }
}

/// Sequences without keys get zeros and change no other row.
pub(super) fn padding_gets_zeros_in_prefill_on_hopper() {
    for (heads, head_dim, len) in [((4, 2), 64, 65), ((1, 1), 128, 30)] {
        let model = model(heads, head_dim);
        let (me, other, row) = (Tokens::new(&model, len, 1), Tokens::new(&model, 9, 2), model.row());
        let want = prefilled(&model, &[(&me, len, 5), (&other, 9, 9)], 3, |n, _| n);
        let padding = (&other, 0, 1);
        let got = prefilled(&model, &[padding, (&me, len, 5), padding, (&other, 9, 9), padding], 3, |n, _| n);
        assert!(got[row..6 * row] == want[..5 * row] && got[7 * row..16 * row] == want[5 * row..], "{model:?}");
        for at in [0, 6, 16] {
            assert!(got[at * row..(at + 1) * row].iter().all(|&b| b == 0), "{model:?}: row {at}");
        }
        let only_padding = prefilled(&model, &[padding], 2, |n, _| n);
        assert!(only_padding.iter().all(|&b| b == 0), "{model:?}: only padding");
    }
}
