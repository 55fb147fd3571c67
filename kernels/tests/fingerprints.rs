//! Tests the fingerprint (hash) of the algorithms that computed a run's matrix products.

use proptest::prelude::*;
use reel_device::cuda::{AlgorithmFingerprint, ProductShape};
use reel_kernels::catalogue::{Sizes, example_products};

fn shape(m: u64, n: u64, k: u64, which: usize) -> ProductShape {
    let sizes = [("m", m), ("n", n), ("k", k)].map(|(key, value)| (key.to_string(), value));
    ProductShape::new(&example_products(&Sizes::new(sizes).unwrap()).unwrap()[which].product)
}

proptest! {
    /// The order of the shapes does not change the hash; any other size, dtype, epilogue or algorithm does.
    #[test]
    fn a_fingerprint_is_of_the_set(
        sizes in prop::collection::vec((1u64..50, 1u64..50, 1u64..50, 0usize..6, any::<u64>()), 1..8),
        changed in any::<prop::sample::Index>(), word in 0usize..8, bit in 0u32..64,
    ) {
        let all: Vec<_> = sizes.iter().map(|&(m, n, k, which, a)| (shape(m, n, k, which), [a; 8])).collect();
        let same = AlgorithmFingerprint::new(all.iter().rev().copied());
        prop_assert_eq!(AlgorithmFingerprint::new(all.iter().copied()), same.clone());
        let i = changed.index(all.len());
        let mut other = all.clone();
        other[i].1[word] ^= 1 << bit;
        prop_assert_ne!(AlgorithmFingerprint::new(other).hash, same.hash);
        let (m, n, k, which, _) = sizes[i];
        for moved in [shape(m + 50, n, k, which), shape(m, n, k, (which + 1) % 6)] {
            let mut other = all.clone();
            other[i].0 = moved;
            prop_assert_ne!(AlgorithmFingerprint::new(other).hash, same.hash);
        }
    }
}
