use super::{Params, write};
use crate::DType::{BF16, F32};
use crate::paged_attention::BLOCK;
use crate::testing::{Data, addr, numbers, run};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn writes_its_slots_and_nothing_else(
        tokens in 0usize..300, kv_heads in 1usize..4, head_dim in 1usize..40, threads in 1usize..4, seed: u64
    ) {
        let (row, blocks) = (kv_heads * head_dim, 6);
        // A permutation of all places of the cache by a multiplier that has no factor in common with their number.
        let slots: Vec<i32> =
            (0..tokens).map(|t| ((t * 257 + (seed % 1000) as usize) % (blocks * BLOCK)) as i32).collect();
        for dtype in [F32, BF16] {
            let data = |seed, count| Data::new(dtype, &numbers(count, seed, 1.0));
            let (k, v) = (data(seed, tokens * row), data(seed ^ 1, tokens * row));
            let (kc, vc) = (data(seed ^ 2, blocks * BLOCK * row), data(seed ^ 3, blocks * BLOCK * row));
            let (mut want_k, mut want_v) = (kc.values(), vc.values());
            for (t, &slot) in slots.iter().enumerate() {
                let to = slot as usize * row;
                want_k[to..to + row].copy_from_slice(&k.values()[t * row..(t + 1) * row]);
                want_v[to..to + row].copy_from_slice(&v.values()[t * row..(t + 1) * row]);
            }
            let params = Params {
                k: k.addr(),
                v: v.addr(),
                k_cache: kc.addr(),
                v_cache: vc.addr(),
                slots: addr(&slots),
                tokens: tokens as u32,
                kv_heads: kv_heads as u32,
                head_dim: head_dim as u32,
                blocks: blocks as u32,
            };
            run(&write(dtype, &params), threads);
            prop_assert_eq!(kc.values(), want_k);
            prop_assert_eq!(vc.values(), want_v);
        }
    }
}
