use super::{Params, write};
use crate::DType::{BF16, F32};
use crate::testing::{Data, addr, numbers, on_sim, run};
use proptest::prelude::*;

/// Tokens, heads, elements of a head, threads, tokens of a page, seed.
type Case = (usize, usize, usize, usize, usize, u64);

fn any_case() -> impl Strategy<Value = Case> {
    let page = prop::sample::select(vec![16usize, 32, 64, 128, 256]);
    (0usize..300, 1usize..4, 1usize..40, 1usize..4, page, any::<u64>())
}

fn writes_its_slots_and_nothing_else((tokens, kv_heads, head_dim, threads, page, seed): Case) {
    let (row, pages) = (kv_heads * head_dim, 512usize.div_ceil(page));
    // A permutation of all places of the cache by a multiplier that has no factor in common with their number.
    let slots: Vec<i32> = (0..tokens).map(|t| ((t * 257 + (seed % 1000) as usize) % (pages * page)) as i32).collect();
    for dtype in [F32, BF16] {
        let data = |seed, count| Data::new(dtype, &numbers(count, seed, 1.0));
        let (k, v) = (data(seed, tokens * row), data(seed ^ 1, tokens * row));
        let (kc, vc) = (data(seed ^ 2, pages * page * row), data(seed ^ 3, pages * page * row));
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
            pages: pages as u32,
            page: page as u32,
            reserved: 0,
        };
        run(&write(dtype, &params), threads);
        assert_eq!(kc.values(), want_k);
        assert_eq!(vc.values(), want_v);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn slots_on_cpu(case in any_case()) {
        writes_its_slots_and_nothing_else(case);
    }

    #[test]
    fn slots_on_sim(case in any_case()) {
        on_sim(|| writes_its_slots_and_nothing_else(case));
    }
}

#[test]
fn each_element_moves_once() {
    on_sim(|| {
        let (tokens, kv_heads, head_dim, page) = (100u32, 4u32, 128u32, 16u32);
        for dtype in [F32, BF16] {
            let data = |tokens: u32| Data::new(dtype, &numbers((tokens * kv_heads * head_dim) as usize, 1, 1.0));
            let arrays = [tokens, tokens, 128, 128].map(data);
            let [k, v, k_cache, v_cache] = arrays.each_ref().map(Data::addr);
            let places: Vec<i32> = (0..tokens as i32).rev().collect();
            let slots = addr(&places);
            let params =
                Params { k, v, k_cache, v_cache, slots, tokens, kv_heads, head_dim, pages: 8, page, reserved: 0 };
            let launch = write(dtype, &params);
            let (count, cost) = (crate::testing::counted(&launch), launch.cost());
            let bytes = (count.global_read + count.global_written) as f64;
            assert!(bytes <= 1.1 * cost.bytes, "{}: {bytes} bytes, {} at least", launch.name(), cost.bytes);
        }
    });
}
