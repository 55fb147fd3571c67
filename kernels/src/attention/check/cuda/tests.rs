use super::*;
use crate::attention::{BwdParams, FwdParams};
use crate::checks::{numbers, on_sim, staged};

/// The last tile of a causal sequence of 8192, as a prefix of 8128 tokens and 64 of its own, and the first one.
#[test]
fn matrix_products_at_8k_are_the_useful_ones() {
    on_sim(|| {
        let (head_dim, len, tile) = (128usize, 8192usize, 64usize);
        let data = |n: usize, seed| Data::new(BF16, &numbers(n * head_dim, seed, 1.0));
        let (q, k, v, o) = (data(tile, 1), data(len, 2), data(len, 3), Data::output(BF16, tile * head_dim));
        let flops = |prefix: usize| -> f64 {
            let (cu_seqlens, prefix) = ([0, tile as i32], [tile as i32, prefix as i32]);
            let p = FwdParams {
                q: q.addr(),
                k: k.addr(),
                v: v.addr(),
                o: o.addr(),
                lse: Addr::NULL,
                cu_seqlens: addr(&cu_seqlens),
                prefix: addr(&prefix),
                tokens: tile as u32,
                seqs: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: head_dim as u32,
                causal: 1,
                scale: 0.1,
                max_seqlen: tile as u32,
            };
            let stages = staged(&fwd(BF16, &p, 0.0));
            let count = stages[0].counters.total();
            assert_eq!(count.wavefronts, count.wavefronts_least, "bank conflicts");
            count.matrix_flops as f64
        };
        let (first, last) = (flops(0), flops(len - tile));
        let tiles = (len / tile) as f64;
        // Tile t takes t whole blocks of keys more than the first.
        let total = tiles * first + (last - first) / (tiles - 1.0) * tiles * (tiles - 1.0) / 2.0;
        let useful = 4.0 * head_dim as f64 * len as f64 * (len as f64 + 1.0) / 2.0;
        assert!(total >= useful && total <= 1.03 * useful, "{total} operations, {useful} of use");
    });
}

#[test]
fn shared_memory_has_no_bank_conflicts() {
    on_sim(|| {
        let mut list = String::new();
        for head_dim in [64usize, 72, 80, 128, 200] {
            for dtype in [BF16, F32] {
                let case = Case {
                    lengths: vec![130],
                    heads: 1,
                    kv_heads: 1,
                    head_dim,
                    causal: true,
                    spread: 1.0,
                    prefix: vec![],
                };
                let given = Given::new(&case, dtype);
                let rows = given.tokens();
                let (o, lse) = (Data::new(dtype, &vec![0.5; rows * head_dim]), Data::new(F32, &vec![1.0; rows]));
                let (scratch, grads) = (given.scratch(dtype), [(); 3].map(|_| Data::output(dtype, rows * head_dim)));
                let p: FwdParams = given.fwd(o.addr(), lse.addr());
                let b: BwdParams = given.bwd(&o, &lse, &scratch, grads.each_ref());
                for launch in [fwd(dtype, &p, 0.0), bwd(dtype, &b, 0.0)] {
                    for stage in staged(&launch) {
                        let count = stage.counters.total();
                        if count.wavefronts != count.wavefronts_least {
                            list += &format!(
                                "{} {head_dim}: {} of {}\n",
                                stage.stage.symbol, count.wavefronts, count.wavefronts_least
                            );
                        }
                    }
                }
            }
        }
        assert!(list.is_empty(), "{list}");
    });
}

/// Tiles of 64: on the diagonal, and below it. What sequences of one and of two tiles do gives both; one of four is as long as
/// those say.
#[test]
fn the_gradient_does_seven_products_for_five_at_8k() {
    on_sim(|| {
        let (head_dim, len) = (128, 8192);
        let flops = |tiles: usize| -> f64 {
            let case = Case {
                lengths: vec![64 * tiles],
                heads: 1,
                kv_heads: 1,
                head_dim,
                causal: true,
                spread: 1.0,
                prefix: vec![],
            };
            let given = Given::new(&case, BF16);
            let rows = given.tokens();
            let (o, lse) = (Data::new(BF16, &vec![0.5; rows * head_dim]), Data::new(F32, &vec![1.0; rows]));
            let (scratch, grads) = (given.scratch(BF16), [(); 3].map(|_| Data::output(BF16, rows * head_dim)));
            let stages = staged(&bwd(BF16, &given.bwd(&o, &lse, &scratch, grads.each_ref()), 0.0));
            stages.iter().map(|s| s.counters.total().matrix_flops as f64).sum()
        };
        let diagonal = flops(1);
        let below = flops(2) - 2.0 * diagonal;
        assert_eq!(flops(4), 4.0 * diagonal + 6.0 * below);
        let tiles = (len / 64) as f64;
        let total = tiles * diagonal + tiles * (tiles - 1.0) / 2.0 * below;
        let useful = 10.0 * head_dim as f64 * len as f64 * (len as f64 + 1.0) / 2.0;
        let products = total / useful * 5.0;
        assert!((7.0..=7.0 * 1.03).contains(&products), "{products} products, 5 of use");
    });
}
