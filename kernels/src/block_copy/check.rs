use super::{Params, copy};
use crate::checks::{addr, addr_mut, checks, run};

checks!(copies_its_pairs_and_nothing_else);

fn copies_its_pairs_and_nothing_else() {
    let blocks = 11;
    let cases = [(0, 5, 5, 1), (1, 1, 1, 2), (3, 16, 9, 3), (5, 1024, 1024, 4), (2, 1100, 1025, 5), (4, 2999, 2048, 6)];
    for (count, units, copied, seed) in cases {
        // Block indices in the order of a permutation: the first `count` are sources, the next `count` destinations.
        let place = |i: usize| ((i * 7 + seed) % blocks) as i32;
        let pairs: Vec<[i32; 2]> = (0..count).map(|i| [place(i), place(5 + i)]).collect();
        let cache = |salt: u64| -> Vec<[u64; 2]> {
            (0..(blocks * units) as u64).map(|i| [i ^ salt, i * 3 + seed as u64]).collect()
        };
        let (mut k, mut v) = (cache(1), cache(2));
        let (mut want_k, mut want_v) = (k.clone(), v.clone());
        for &[from, to] in &pairs {
            let (from, to) = (from as usize * units, to as usize * units);
            want_k.copy_within(from..from + copied, to);
            want_v.copy_within(from..from + copied, to);
        }
        let params = Params {
            k_cache: addr_mut(&mut k),
            v_cache: addr_mut(&mut v),
            pairs: addr(&pairs),
            count: count as u32,
            units: units as u32,
            copied: copied as u32,
            reserved: 0,
        };
        run(&copy(&params), 2);
        assert!(
            k == want_k && v == want_v,
            "the caches are wrong after {count} copies of {copied} x 16 bytes of a block of {units}"
        );
    }
}
