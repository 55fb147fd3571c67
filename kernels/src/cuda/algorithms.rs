//! Which algorithms the products of a run were computed by, in short: what two runs must share to have the same bits.

use super::blas::Shape;
use twox_hash::XxHash3_64;

/// The algorithms that were chosen so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Algorithms {
    /// How many shapes were asked for.
    pub count: usize,
    /// A fingerprint of all shapes with their algorithms, whatever the order in which they came.
    pub hash: u64,
}

impl Algorithms {
    /// Of shapes and their algorithms: the words of `cublasLtMatmulAlgo_t`, which NVIDIA's manual calls fit to be stored and used again
    /// with the same version of the library.
    pub fn of(chosen: impl IntoIterator<Item = (Shape, [u64; 8])>) -> Algorithms {
        let mut lines: Vec<String> =
            chosen.into_iter().map(|(shape, algorithm)| format!("{} {algorithm:016x?}\n", shape.words())).collect();
        lines.sort_unstable();
        Algorithms { count: lines.len(), hash: XxHash3_64::oneshot(lines.concat().as_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Sizes, products};
    use proptest::prelude::*;

    fn shape(m: u64, n: u64, k: u64, which: usize) -> Shape {
        let sizes = [("m", m), ("n", n), ("k", k)].map(|(key, value)| (key.to_string(), value));
        Shape::of(&products(&Sizes::new(sizes).unwrap()).unwrap()[which].product)
    }

    proptest! {
        /// The order does not count; any other shape, type, epilogue or algorithm does.
        #[test]
        fn a_fingerprint_is_of_the_set(
            sizes in prop::collection::vec((1u64..50, 1u64..50, 1u64..50, 0usize..6, any::<u64>()), 1..8),
            changed in any::<prop::sample::Index>(), word in 0usize..8, bit in 0u32..64,
        ) {
            let all: Vec<_> = sizes.iter().map(|&(m, n, k, which, a)| (shape(m, n, k, which), [a; 8])).collect();
            let same = Algorithms::of(all.iter().rev().copied());
            prop_assert_eq!(Algorithms::of(all.iter().copied()), same.clone());
            let i = changed.index(all.len());
            let mut other = all.clone();
            other[i].1[word] ^= 1 << bit;
            prop_assert_ne!(Algorithms::of(other).hash, same.hash);
            let (m, n, k, which, _) = sizes[i];
            for moved in [shape(m + 50, n, k, which), shape(m, n, k, (which + 1) % 6)] {
                let mut other = all.clone();
                other[i].0 = moved;
                prop_assert_ne!(Algorithms::of(other).hash, same.hash);
            }
        }
    }
}
