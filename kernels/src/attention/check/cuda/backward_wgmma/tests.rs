use super::*;
use crate::checks::{run_test_on_sim, simulated_stages_on};

/// For each pair of a tile of 128 keys and a tile of 128 queries that causality does not hide completely, the kernel
/// computes seven products of 128 x 128 x head_dim. Shared memory has no bank conflicts.
#[test]
fn gradients_by_products_of_warpgroups_multiply_whole_tiles_without_bank_conflicts() {
    run_test_on_sim(|| {
        for (head_dim, causal, lengths, rule) in [
            (128, true, &[256usize][..], KeyParts::OF_TRAINING),
            (80, false, &[256], KeyParts::OF_TRAINING),
            (64, true, &[256], KeyParts::OF_TRAINING),
            (128, true, &[200, 56], KeyParts::OF_TRAINING),
            (128, true, &[256, 56], KeyParts { part_visits: 3, ..OF_SHORT }),
        ] {
            let call = gradients(&batch(lengths, &[], (2, 1), head_dim, causal, 1.0), rule);
            let stages = simulated_stages_on(&call.launch(&call.params()), &small_h100(2));
            let pairs = |tiles: usize| if causal { tiles * (tiles + 1) / 2 } else { tiles * tiles };
            let pairs: usize = lengths.iter().map(|n| pairs(n.div_ceil(128))).sum();
            // Four of the seven products are for dk and dv, and process 64 queries at a time. A sequence of up to 64
            // tokens has only one such half tile of queries.
            let unvisited = 4.0 * 0.5 * lengths.iter().filter(|&&n| n <= 64).count() as f64;
            let product = 2.0 * 128.0 * 128.0 * head_dim as f64;
            let want = 2.0 * (7.0 * pairs as f64 - unvisited) * product;
            let flops = stages[1].counters.total().matrix_flops as f64;
            assert_eq!(flops, want, "{head_dim} {causal} {lengths:?}");
            for stage in &stages {
                let count = stage.counters.total();
                assert_eq!(count.wavefronts, count.wavefronts_least, "{} has bank conflicts", stage.stage.symbol);
            }
        }
    });
}

/// The launch reads q and d_o once for each tile of keys, and once as tiles of queries; k and v once as tiles of keys,
/// once more for each further part, and once for each tile of queries. It writes each gradient once. If tiles have
/// several parts, it writes and reads the f32 sums of dk and dv of each part once.
#[test]
fn bytes_of_gradients_by_products_of_warpgroups_are_those_of_their_tiles() {
    run_test_on_sim(|| {
        let (head_dim, tiles) = (128, 3);
        for (heads, rule) in [(1, KeyParts::OF_TRAINING), (3, OF_SHORT)] {
            let call = gradients(&batch(&[128 * tiles], &[], (heads, 1), head_dim, false, 1.0), rule);
            let stages = simulated_stages_on(&call.launch(&call.params()), &small_h100(2));
            let count = stages[1].counters.total();
            let parts = rule.count(tiles as u32, heads as u32, 1) as usize;
            assert_eq!(parts, if heads == 1 { 1 } else { 2 });
            let (rows, tensor) = (128 * tiles, 2 * 128 * tiles * head_dim);
            let lse_and_delta = heads * (tiles + 1) * rows * 8;
            let of_queries = heads * (2 * tiles + 2 + 2 * tiles + 1) * tensor;
            let sums = if parts > 1 { 2 * 2 * parts * 2 * tensor } else { 0 };
            let want = (of_queries + (2 * parts + 2) * tensor + sums + lse_and_delta) as f64;
            let bytes = (count.global_read + count.global_written) as f64;
            assert!((want..=1.02 * want).contains(&bytes), "{bytes} bytes of memory traffic, expected {want}");
        }
    });
}
