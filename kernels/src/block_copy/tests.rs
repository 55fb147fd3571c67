use super::{Params, copy};
use crate::testing::{addr, run};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn copies_its_pairs_and_nothing_else(count in 0usize..5, units in 1usize..3000, threads in 1usize..4, seed: u64) {
        let blocks = 11;
        // A permutation of the blocks: the first `count` are read, the next written.
        let place = |i: usize| ((i * 7 + (seed % 97) as usize) % blocks) as i32;
        let pairs: Vec<[i32; 2]> = (0..count).map(|i| [place(i), place(5 + i)]).collect();
        let cache = |salt: u64| -> Vec<[u64; 2]> {
            (0..(blocks * units) as u64).map(|i| [i ^ salt, (i * 3).wrapping_add(seed)]).collect()
        };
        let (k, v) = (cache(1), cache(2));
        let (mut want_k, mut want_v) = (k.clone(), v.clone());
        for [from, to] in &pairs {
            for (want, old) in [(&mut want_k, &k), (&mut want_v, &v)] {
                want[*to as usize * units..][..units].copy_from_slice(&old[*from as usize * units..][..units]);
            }
        }
        let params = Params {
            k_cache: addr(&k),
            v_cache: addr(&v),
            pairs: addr(&pairs),
            count: count as u32,
            units: units as u32,
        };
        run(&copy(&params), threads);
        prop_assert!(std::hint::black_box(&k) == &want_k);
        prop_assert!(std::hint::black_box(&v) == &want_v);
    }
}
