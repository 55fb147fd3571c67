//! Checks of the forward pass with wgmma, which is compiled for Hopper and sums in the order of `row_state.cuh`.

use reel_device::DType::{BF16, F32};
use reel_device::{Addr, Arch, Kernel, KernelLaunch, Launch};

use super::super::{Given, bits, lse_bounds};
use crate::attention::formula::Roundings;
use crate::attention::{FWD_BF16_WGMMA, FWD_BF16_WGMMA_EVICT_NORMAL, PackedBatch, formula, fwd};
use crate::checks::{TestArray, run, run_once, with_only_gpu};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded};

/// Makes a batch; `prefix` may be empty.
pub(super) fn batch(
    lengths: &[usize],
    prefix: &[(usize, usize)],
    (heads, kv_heads): (usize, usize),
    head_dim: usize,
    causal: bool,
    spread: f32,
) -> PackedBatch {
    PackedBatch { lengths: lengths.to_vec(), heads, kv_heads, head_dim, causal, spread, prefix: prefix.to_vec() }
}

/// Returns `launch` with another kernel.
pub(super) fn by(kernel: &'static Kernel, launch: Launch) -> Launch {
    let Launch::Kernel(launch) = launch else { unreachable!("attention is not a matrix product") };
    Launch::Kernel(KernelLaunch { kernel, ..launch })
}

impl Given {
    /// Returns the forward launch with the wgmma kernel.
    fn by_warpgroups(&self, o: &TestArray, lse: Addr) -> Launch {
        by(&FWD_BF16_WGMMA, fwd(BF16, &self.fwd(o.addr(), lse), self.query_key_pair_count()))
    }

    /// Runs the forward launch with `kernel` under one interleaving and returns the output and its log-sum-exps.
    pub(super) fn output_and_lse_by(&self, kernel: &'static Kernel) -> [TestArray; 2] {
        let rows = self.tokens() * self.case.heads;
        let (o, lse) = (TestArray::output(BF16, rows * self.case.head_dim), TestArray::output(F32, rows));
        run_once(&by(kernel, self.by_warpgroups(&o, lse.addr())));
        assert_eq!(bits(&self.tile_counter), [0], "the tile counter after the launch: {:?}", self.case);
        [o, lse]
    }

    fn output_and_lse_by_warpgroups(&self) -> [TestArray; 2] {
        self.output_and_lse_by(&FWD_BF16_WGMMA)
    }
}

/// Covers lengths around a warpgroup's 64 rows, blocks of 128 and segments of 512 keys; prefixes that end inside a
/// block, at its end, and inside the first block of a tile; more tiles than the grid has blocks; two whole blocks
/// that all queries see. With head_dim 72 and 80: tiles in which one, two or three warpgroups have queries; causal tiles whose
/// warpgroups see different numbers of blocks; windows of 64 tokens and shorter ones, alone and with longer sequences.
pub(in super::super) fn products_of_warpgroups_equal_the_formula() {
    let cases = [
        batch(&[0, 1, 63, 0, 130], &[], (2, 1), 128, true, 1.0),
        batch(&[520], &[], (1, 1), 64, true, 1.0),
        batch(&[640], &[], (1, 1), 128, true, 20.0),
        batch(&[64, 65, 0, 129], &[], (2, 2), 128, false, 20.0),
        batch(&[256], &[], (1, 1), 128, false, 1.0),
        batch(&[300, 40], &[], (3, 1), 80, false, 0.0),
        batch(&[70, 9, 150, 1], &[(0, 0), (0, 70), (0, 70), (0, 70)], (2, 1), 128, true, 1.0),
        batch(&[5, 143, 30], &[(3, 20), (0, 0), (10, 128)], (3, 1), 64, false, 1.0),
        batch(&[20, 580], &[(20, 580), (0, 0)], (1, 1), 80, true, 1.0),
        batch(&[&[0; 60][..], &[150, 3], &[0; 30]].concat(), &[], (1, 1), 64, true, 1.0),
        batch(&[64; 70], &[], (2, 2), 80, false, 1.0),
        batch(&[640], &[], (1, 1), 80, false, 20.0),
        batch(&[1, 400, 0, 65, 192], &[], (2, 1), 80, true, 1.0),
        batch(&[300, 40], &[], (3, 1), 72, false, 0.0),
        batch(&[20, 580], &[(20, 580), (0, 0)], (2, 2), 72, false, 1.0),
        batch(&[640, 17], &[], (1, 1), 72, false, 20.0),
        batch(&[64, 17, 0, 1, 63], &[], (4, 2), 80, false, 20.0),
        batch(&[33, 64, 5], &[], (2, 1), 80, true, 1.0),
        batch(&[64, 30, 200, 64], &[], (2, 2), 80, false, 1.0),
    ];
    for case in cases {
        let (given, name) = (Given::new(&case, BF16), format!("{case:?}"));
        let (q, k, v, scale) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64(), given.scale as f64);
        let (want, want_lse) = formula::fwd(&case, &q, &k, &v, scale);
        let (o, lse) = (TestArray::output(BF16, want.len()), TestArray::output(F32, want_lse.len()));
        with_only_gpu(Arch::H100, || run(&given.by_warpgroups(&o, lse.addr()), 1));
        assert_eq!(bits(&given.tile_counter), [0], "the tile counter after the launch: {name}");
        let bounds = lse_bounds(&case, [&q, &k], scale, &want_lse);
        assert_close(&format!("lse {name}"), &lse.values(), &want_lse, 1e-6, |i| bounds[i]);
        let with = formula::fwd_rounded(&case, &q, &k, &v, scale, Roundings::BF16);
        assert_rounded(&format!("o {name}"), BF16, &o.values(), &with, &want, DEFAULT_ROUNDING_FACTOR);
        let without = TestArray::output(BF16, want.len());
        with_only_gpu(Arch::H100, || run_once(&given.by_warpgroups(&without, Addr::NULL)));
        assert!(bits(&o) == bits(&without), "the launch without log-sum-exps differs: {name}");
    }
}

/// An output row has the same bits if its sequence is alone, and if its prefix is given as the sequence's own first
/// tokens.
pub(in super::super) fn other_sequences_and_prefixes_change_no_bit_of_products_of_warpgroups() {
    let cases = [
        batch(&[3, 200, 0, 17], &[], (2, 1), 128, true, 1.0),
        batch(&[65, 140], &[], (1, 1), 64, false, 1.0),
        batch(&[70, 5, 66], &[(0, 0), (0, 70), (1, 64)], (2, 1), 64, true, 3.0),
        batch(&[530, 9, 130], &[(0, 0), (0, 529), (0, 256)], (1, 1), 128, true, 3.0),
        batch(&[140, 30], &[(0, 0), (2, 137)], (1, 1), 80, false, 1.0),
        batch(&[140, 30, 65], &[(0, 0), (2, 137), (0, 0)], (2, 1), 72, false, 1.0),
        batch(&[64, 64, 17], &[], (2, 1), 80, false, 1.0),
        // Alone, the sequences of at most 64 tokens take the kernel for windows.
        batch(&[64, 600, 30], &[], (2, 2), 80, false, 1.0),
        batch(&[64, 300, 30], &[], (2, 1), 80, true, 3.0),
    ];
    with_only_gpu(Arch::H100, || {
        for case in &cases {
            let given = Given::new(case, BF16);
            let all = given.output_and_lse_by_warpgroups().each_ref().map(bits);
            let again = given.output_and_lse_by(&FWD_BF16_WGMMA_EVICT_NORMAL).each_ref().map(bits);
            assert!(all == again, "a second launch, without the hint for L2, differs: {case:?}");
            for n in (0..case.lengths.len()).filter(|&n| case.lengths[n] > 0) {
                let alone = given.alone(n, BF16).output_and_lse_by_warpgroups().each_ref().map(bits);
                let (from, to) = (given.cu_seqlens[n] as usize, given.cu_seqlens[n + 1] as usize);
                let skip = case.visible_tokens(n).len() - (to - from);
                for (i, width) in [case.heads * case.head_dim, case.heads].into_iter().enumerate() {
                    assert!(
                        all[i][from * width..to * width] == alone[i][skip * width..],
                        "sequence {n} alone differs in output {i} (o, lse): {case:?}"
                    );
                }
            }
        }
    });
}

/// Keys and values of other sequences do not affect an output row, even if they are NaN or infinite. Finite keys and
/// values of later tokens do not affect it either. (Departure 2 in `sm80.cu` describes the effect of values that are
/// not finite.)
pub(in super::super) fn keys_and_values_of_no_query_change_nothing() {
    with_only_gpu(Arch::H100, || {
        for (causal, head_dim) in [(true, 128), (false, 64), (false, 72), (false, 80)] {
            let case = batch(&[150, 70, 20], &[], (2, 1), head_dim, causal, 1.0);
            let (row, kv_row) = (case.heads * head_dim, case.kv_heads * head_dim);
            let given = Given::new(&case, BF16);
            let before = bits(&given.output_and_lse_by_warpgroups()[0]);
            // A case has the tokens whose keys and values are replaced, the new value, and the tokens whose outputs
            // must not change.
            let finite = [1, 63, 64, 65, 127, 128, 149].map(|cut| (cut..150, 1e18, 0..cut));
            let others =
                [(150..220, f32::NAN, 0..150), (150..220, f32::INFINITY, 220..240), (0..150, f32::NAN, 150..240)];
            for (changed, value, kept) in others.into_iter().chain(finite.into_iter().filter(|_| causal)) {
                let with = |data: &TestArray| {
                    let mut values = data.values();
                    values[changed.start * kv_row..changed.end * kv_row].fill(value);
                    TestArray::new(BF16, &values)
                };
                let given = Given { k: with(&given.k), v: with(&given.v), ..Given::new(&case, BF16) };
                let after = bits(&given.output_and_lse_by_warpgroups()[0]);
                assert!(
                    after[kept.start * row..kept.end * row] == before[kept.start * row..kept.end * row],
                    "keys and values of tokens {changed:?} set to {value} change outputs of tokens {kept:?}"
                );
            }
        }
    });
}

/// The same for windows, whose keys and values end inside a tile of 64.
pub(in super::super) fn keys_and_values_of_other_windows_change_nothing() {
    with_only_gpu(Arch::H100, || {
        let case = batch(&[50, 64, 9], &[], (2, 1), 80, false, 1.0);
        let given = Given::new(&case, BF16);
        let before = bits(&given.output_and_lse_by_warpgroups()[0]);
        for n in 0..case.lengths.len() {
            let tokens = case.first_token(n)..case.first_token(n) + case.lengths[n];
            let only = |data: &TestArray| {
                let kept = |i: usize| tokens.contains(&(i / (case.kv_heads * case.head_dim)));
                let values = data.values().into_iter().enumerate();
                TestArray::new(BF16, &values.map(|(i, x)| if kept(i) { x } else { f32::NAN }).collect::<Vec<_>>())
            };
            let given = Given { k: only(&given.k), v: only(&given.v), ..Given::new(&case, BF16) };
            let after = bits(&given.output_and_lse_by_warpgroups()[0]);
            let row = case.heads * case.head_dim;
            let of_window = tokens.start * row..tokens.end * row;
            assert!(after[of_window.clone()] == before[of_window], "window {n} depends on the others");
        }
    });
}
