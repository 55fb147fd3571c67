//! A check in which each multiprocessor of a GPU gets many tiles: the kernels with wgmma against those with mma.sync,
//! which other checks compare with the formula. The simulator gets small batches.

use reel_device::DType::BF16;
use reel_device::{Arch, Kernel};

use super::super::{Given, bits};
use super::wgmma::{batch, by};
use crate::attention::{BWD_BF16_MMA, BWD_BF16_WGMMA, FWD_BF16_MMA, FWD_BF16_WGMMA, PackedBatch, bwd};
use crate::checks::{TestArray, run_once, size_for, with_only_gpu};

/// Returns the batches: a long sequence, sequences of uneven lengths, completions that share a prompt, and the vision
/// tower with and without windows.
fn batches() -> Vec<PackedBatch> {
    let group = |prompt: usize, completion: usize, count: usize| {
        let lengths = [&[prompt][..], &vec![completion; count]].concat();
        let prefix = [&[(0, 0)][..], &vec![(0, prompt); count]].concat();
        (lengths, prefix)
    };
    let (lengths, prefix) = size_for(group(1376, 512, 8), group(140, 20, 2));
    let heads = size_for((28, 4), (2, 1));
    vec![
        batch(size_for(&[8192], &[200]), &[], heads, 128, true, 1.0),
        batch(size_for(&[3000, 1200, 2500, 700, 792], &[150, 30, 70]), &[], heads, 128, true, 1.0),
        batch(&lengths, &prefix, heads, 128, true, 1.0),
        batch(size_for(&[4096, 2000], &[150, 64]), &[], size_for((16, 16), (2, 2)), 80, false, 1.0),
        batch(size_for(&[64; 128], &[64, 40]), &[], size_for((16, 16), (2, 2)), 80, false, 1.0),
    ]
}

impl Given {
    fn gradients_by(&self, kernel: &'static Kernel, [o, lse]: &[TestArray; 2]) -> [TestArray; 3] {
        let (rows, kv_rows) = (self.tokens() * self.case.heads, self.tokens() * self.case.kv_heads);
        let grads = [rows, kv_rows, kv_rows].map(|rows| TestArray::output(BF16, rows * self.case.head_dim));
        let scratch = self.scratch(BF16);
        let params = self.bwd(o, lse, &scratch, grads.each_ref());
        run_once(&by(kernel, bwd(BF16, &params, self.query_key_pair_count())));
        grads
    }
}

/// Checks that each row (of one token and head) differs from the other kernel's by at most 2^-6 of its length and of the
/// mean length: both round the factors of products and the result to bf16, an error of 2^-9 each.
fn assert_rows_agree(name: &str, got: &TestArray, want: &TestArray, head_dim: usize) {
    let (got, want) = (got.to_f64(), want.to_f64());
    let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mean = want.chunks(head_dim).map(length).sum::<f64>() * head_dim as f64 / want.len() as f64;
    for (i, (got, want)) in got.chunks(head_dim).zip(want.chunks(head_dim)).enumerate() {
        let off = length(&got.iter().zip(want).map(|(got, want)| got - want).collect::<Vec<_>>());
        let allowed = (length(want) + mean) / 64.0;
        assert!(off <= allowed, "{name}: row {i} is off by {off:.2e}, allowed {allowed:.2e}");
    }
}

pub(in super::super) fn products_of_warps_and_of_warpgroups_agree_over_many_tiles() {
    with_only_gpu(Arch::H100, || {
        for case in batches() {
            let (given, head_dim) = (Given::new(&case, BF16), case.head_dim);
            let name = |what: &str| format!("{what}, {:?} tokens, head_dim {head_dim}", case.lengths);
            let forward = given.output_and_lse_by(&FWD_BF16_WGMMA);
            assert_rows_agree(&name("o"), &forward[0], &given.output_and_lse_by(&FWD_BF16_MMA)[0], head_dim);
            let [first, again, other] =
                [&BWD_BF16_WGMMA, &BWD_BF16_WGMMA, &BWD_BF16_MMA].map(|kernel| given.gradients_by(kernel, &forward));
            for (i, which) in ["dq", "dk", "dv"].into_iter().enumerate() {
                assert!(bits(&first[i]) == bits(&again[i]), "{}: two launches differ", name(which));
                assert_rows_agree(&name(which), &first[i], &other[i], head_dim);
            }
        }
    });
}
