//! Checks of the backward pass with wgmma, which is compiled for Hopper. The simulated GPU has two multiprocessors,
//! so that each block of threads takes several tiles.

use reel_device::DType::{BF16, F32};
use reel_device::{Addr, Arch, Kernel, KernelLaunch, Launch};

use super::super::{Given, bits};
use super::wgmma::batch;
use crate::attention::formula::Roundings;
use crate::attention::{BWD_BF16_EARLY, BWD_BF16_WGMMA, BwdParams, KeyParts, PackedBatch, bwd_in_parts, formula};
use crate::checks::{TestArray, run, run_once, with_only_gpu};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

/// Describes an H100 with this many multiprocessors.
pub(super) fn small_h100(multiprocessors: u32) -> Arch {
    Arch { multiprocessors, ..Arch::H100 }
}

/// The operands of a backward launch with wgmma, its scratch arrays and its gradients.
pub(super) struct WarpgroupGradients {
    given: Given,
    parts: KeyParts,
    o: TestArray,
    lse: TestArray,
    scratch: [TestArray; 2],
    grads: [TestArray; 3],
}

impl WarpgroupGradients {
    /// Makes the launch's operands; its output and log-sum-exps come from the formula.
    pub(super) fn new(given: Given, parts: KeyParts) -> WarpgroupGradients {
        let (q, k, v) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64());
        let (o, lse) = formula::fwd(&given.case, &q, &k, &v, given.scale.into());
        let to_f32 = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        Self::with_output(given, parts, &to_f32(o), &to_f32(lse))
    }

    fn with_output(given: Given, parts: KeyParts, o: &[f32], lse: &[f32]) -> WarpgroupGradients {
        let kv = given.tokens() * given.case.kv_heads * given.case.head_dim;
        let grads = [o.len(), kv, kv].map(|n| TestArray::output(BF16, n));
        let scratch = given.scratch_in_parts(BF16, parts);
        let (o, lse) = (TestArray::new(BF16, o), TestArray::new(F32, lse));
        WarpgroupGradients { given, parts, o, lse, scratch, grads }
    }

    fn params(&self) -> BwdParams {
        self.given.bwd(&self.o, &self.lse, &self.scratch, self.grads.each_ref())
    }

    pub(super) fn launch(&self, params: &BwdParams) -> Launch {
        self.launch_of(&BWD_BF16_WGMMA, params)
    }

    fn launch_of(&self, kernel: &'static Kernel, params: &BwdParams) -> Launch {
        let Launch::Kernel(launch) = bwd_in_parts(BF16, params, self.given.query_key_pair_count(), self.parts) else {
            unreachable!("attention is not a matrix product")
        };
        Launch::Kernel(KernelLaunch { kernel, ..launch })
    }

    /// Returns the bits of dq, dk and dv under one interleaving.
    fn bits(&self) -> [Vec<u32>; 3] {
        run_once(&self.launch(&self.params()));
        self.grads.each_ref().map(bits)
    }
}

fn gradients(case: &PackedBatch, parts: KeyParts) -> WarpgroupGradients {
    WarpgroupGradients::new(Given::new(case, BF16), parts)
}

/// A rule that divides the tiles of short sequences: groups of 3 heads and two or three tiles into parts of 2 and 1
/// heads, groups of 7 and two tiles into parts of 3, 2 and 2. It does not divide sequences of one tile of 3 heads.
const OF_SHORT: KeyParts = KeyParts { undivided_tiles: 5, part_visits: 4 };

/// Batches whose tiles of keys have several parts: one sequence; sequences with and without parts; a prompt with
/// parts, of which another sequence's prefix is a piece; sequences without causal attention that end inside a tile.
fn batches_in_parts() -> [PackedBatch; 5] {
    [
        batch(&[140], &[], (7, 1), 64, true, 1.0),
        batch(&[3, 140, 0, 70, 129], &[], (3, 1), 128, true, 1.0),
        batch(&[140, 9, 66], &[(0, 0), (0, 139), (0, 128)], (3, 1), 128, true, 1.0),
        batch(&[150, 200], &[], (6, 2), 80, false, 1.0),
        batch(&[140, 30], &[], (6, 2), 72, false, 1.0),
    ]
}

/// Covers lengths around 64 queries and around tiles of 128 keys; empty sequences; groups of 1, 2, 3, 4 and 7 query
/// heads; prefixes that end inside a block of keys or at its end, that span several sequences, and that come after
/// the tokens that use them; a tile of queries that sees more blocks of keys than their ring has slots.
pub(in super::super) fn gradients_by_products_of_warpgroups_equal_the_formula() {
    let cases = [
        batch(&[0, 1, 63, 0, 130], &[], (2, 1), 128, true, 1.0),
        batch(&[130], &[], (7, 1), 128, true, 1.0),
        batch(&[64, 129, 0, 65], &[], (1, 1), 128, false, 20.0),
        batch(&[140], &[], (4, 1), 64, true, 20.0),
        batch(&[385], &[], (1, 1), 128, true, 1.0),
        batch(&[300, 40], &[], (1, 1), 80, false, 1.0),
        batch(&[70, 9, 80, 1], &[(0, 0), (0, 70), (0, 70), (0, 70)], (2, 1), 128, true, 1.0),
        batch(&[5, 143, 30], &[(3, 20), (0, 0), (10, 128)], (3, 1), 64, false, 1.0),
        batch(&[20, 150], &[(20, 150), (0, 0)], (1, 1), 80, true, 1.0),
        batch(&[&[0; 60][..], &[150, 3], &[0; 30]].concat(), &[], (1, 1), 64, true, 0.0),
        batch(&[64; 8], &[], (2, 2), 80, false, 1.0),
        batch(&[300, 40], &[], (2, 2), 72, false, 1.0),
        batch(&[20, 150], &[(20, 150), (0, 0)], (2, 1), 72, true, 1.0),
    ];
    let whole = cases.into_iter().map(|case| (case, KeyParts::OF_TRAINING));
    for (case, parts) in whole.chain(batches_in_parts().map(|case| (case, OF_SHORT))) {
        let call = gradients(&case, parts);
        with_only_gpu(small_h100(2), || run(&call.launch(&call.params()), 1));
        let (q, k, v, scale) = (call.given.q.to_f64(), call.given.k.to_f64(), call.given.v.to_f64(), call.given.scale);
        let (o, d_o) = (call.o.to_f64(), call.given.d_o.to_f64());
        let want = formula::bwd(&case, [&q, &k, &v], &o, &d_o, scale.into());
        let with = formula::bwd_rounded(&case, [&q, &k, &v], &o, &d_o, scale.into(), Roundings::BF16);
        for (i, which) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let name = format!("{which} {case:?}");
            assert_rounded(&name, BF16, &call.grads[i].values(), &with[i], &want[i], DEFAULT_ROUNDING_FACTOR);
        }
    }
}

/// A row's gradients do not depend on the other sequences, on the number of multiprocessors, on the order in which
/// parts of a tile arrive, on the presence of a ticket counter (the atomic counter of tile numbers), or on when the
/// exponentials of dq are computed: their bits are equal. The bits of dq are also equal if the prefix is given as the
/// sequence's own first tokens.
pub(in super::super) fn other_sequences_and_the_grid_change_no_bit_of_gradients_by_products_of_warpgroups() {
    let cases = [
        batch(&[3, 140, 0, 17], &[], (2, 1), 128, true, 1.0),
        batch(&[65, 140], &[], (1, 1), 80, false, 1.0),
        batch(&[65, 140], &[], (1, 1), 72, false, 1.0),
        batch(&[70, 5, 66], &[(0, 0), (0, 70), (1, 64)], (2, 1), 64, true, 3.0),
        batch(&[140, 9, 66], &[(0, 0), (0, 139), (0, 128)], (1, 1), 128, true, 1.0),
    ];
    let whole = cases.into_iter().map(|case| (case, KeyParts::OF_TRAINING));
    for (case, parts) in &whole.chain(batches_in_parts().map(|case| (case, OF_SHORT))).collect::<Vec<_>>() {
        let call = gradients(case, *parts);
        let mut all = None;
        let by_warpgroups = [1, 2, 132].map(|multiprocessors| (&BWD_BF16_WGMMA, multiprocessors, true));
        let early = (case.head_dim == 128).then_some((&BWD_BF16_EARLY, 2, true));
        // Parts need the workspace, which has the ticket counter.
        let without_tickets = (parts.max_count(&call.params()) == 1).then_some((&BWD_BF16_WGMMA, 2, false));
        for (kernel, multiprocessors, tickets) in by_warpgroups.into_iter().chain(early).chain(without_tickets) {
            with_only_gpu(small_h100(multiprocessors), || {
                let workspace = if tickets { call.params().workspace } else { Addr::NULL };
                run_once(&call.launch_of(kernel, &BwdParams { workspace, ..call.params() }));
                let got = call.grads.each_ref().map(bits);
                let want = all.get_or_insert_with(|| got.clone());
                assert!(
                    *want == got,
                    "gradients have other bits with {multiprocessors} multiprocessors, tickets: {tickets}: {case:?}"
                );
            });
        }
        let all = all.unwrap_or_default();
        let (widths, outputs) =
            ([case.heads, case.kv_heads, case.kv_heads], if case.prefix.is_empty() { 3 } else { 1 });
        for n in (0..case.lengths.len()).filter(|&n| case.lengths[n] > 0) {
            let (from, to) = (call.given.cu_seqlens[n] as usize, call.given.cu_seqlens[n + 1] as usize);
            let given = call.given.alone(n, BF16);
            let skip = given.tokens() - (to - from);
            // The prefix has been copied to the sequence's first `skip` tokens. Their o and lse do not affect the
            // compared gradients, so they are set to 0.5.
            let rows = |x: &TestArray, width: usize| {
                [vec![0.5; skip * width], x.values()[from * width..to * width].to_vec()].concat()
            };
            let (o, lse) = (rows(&call.o, case.heads * case.head_dim), rows(&call.lse, case.heads));
            let alone = WarpgroupGradients::with_output(given, *parts, &o, &lse);
            with_only_gpu(small_h100(2), || {
                let alone = alone.bits();
                for (i, heads) in widths.into_iter().enumerate().take(outputs) {
                    let width = heads * case.head_dim;
                    assert!(
                        all[i][from * width..to * width] == alone[i][skip * width..],
                        "sequence {n} alone differs in gradient {i} (q, k, v): {case:?}"
                    );
                }
            });
        }
    }
}

/// Operands of other sequences do not affect a sequence's gradients, even if they are NaN or infinite.
pub(in super::super) fn other_sequences_that_are_not_finite_change_no_gradient_by_products_of_warpgroups() {
    with_only_gpu(small_h100(2), || {
        for (causal, head_dim, prefix, parts) in [
            (true, 128, vec![], KeyParts::OF_TRAINING),
            (false, 80, vec![], OF_SHORT),
            (false, 72, vec![], KeyParts::OF_TRAINING),
            (true, 64, vec![(0, 0), (0, 0), (0, 100)], KeyParts::OF_TRAINING),
        ] {
            let case = batch(&[150, 70, 20], &prefix, (3, 1), head_dim, causal, 1.0);
            let call = gradients(&case, parts);
            let before = call.bits();
            // A case has the tokens whose q, k, v and d_o are replaced, the new value, and the token ranges whose
            // gradients must not change.
            for (changed, value, kept) in
                [(150..220, f32::NAN, [0..150, 220..240]), (150..220, f32::INFINITY, [0..150, 220..240])]
            {
                let with = |data: &TestArray, heads: usize| {
                    let (mut values, row) = (data.values(), heads * head_dim);
                    values[changed.start * row..changed.end * row].fill(value);
                    TestArray::new(BF16, &values)
                };
                let (q, d_o) = (with(&call.given.q, case.heads), with(&call.given.d_o, case.heads));
                let (k, v) = (with(&call.given.k, case.kv_heads), with(&call.given.v, case.kv_heads));
                let given = Given { q, k, v, d_o, ..Given::new(&case, BF16) };
                let after = WarpgroupGradients::with_output(given, parts, &call.o.values(), &call.lse.values()).bits();
                for (i, heads) in [case.heads, case.kv_heads, case.kv_heads].into_iter().enumerate() {
                    for kept in kept.iter().map(|t| t.start * heads * head_dim..t.end * heads * head_dim) {
                        assert!(
                            after[i][kept.clone()] == before[i][kept],
                            "tokens {changed:?} set to {value} change gradient {i} (q, k, v): {case:?}"
                        );
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
