//! Finds chains that have nearly the words of an earlier chain with the same answer.
//!
//! ```text
//! shingles(chain)  = the set of its 3-grams of words, hashed
//! overlap(a, b)    = |a ∩ b| / |a ∪ b|                                 Jaccard similarity
//! MinHash          : for each of 64 hash functions, the smallest hash of the set
//! candidates       : chains that agree in all 4 values of at least one of 16 bands
//! ```
//! Only the overlap of candidates is computed. Two sets of overlap s agree in a band with probability s^4, so a pair of
//! overlap 0.8 is missed with probability (1 - 0.8^4)^16 = 0.0002. Hash functions are fixed, so the result depends on
//! the chains and their order alone.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hasher;

use twox_hash::XxHash3_64;

use super::words::words;

const SHINGLE_WORDS: usize = 3;
const BANDS: usize = 16;
const BAND_ROWS: usize = 4;

/// The chains that were accepted so far. No two of them are duplicates.
#[derive(Debug)]
pub(super) struct EarlierChains {
    max_overlap: f64,
    /// The sorted shingles of each chain, and the location of its row.
    chains: Vec<(Vec<u64>, String)>,
    /// Indices into `chains`, keyed by the hash of a band and the answer.
    bands: HashMap<u64, Vec<usize>>,
}

impl EarlierChains {
    pub(super) fn new(max_overlap: f64) -> Self {
        Self { max_overlap, chains: Vec::new(), bands: HashMap::new() }
    }

    /// Looks for an earlier chain with the same answer and nearly the same words as `chain`, a list of words. Returns a
    /// message that names the earlier chain. Without such a chain, inserts `chain` and returns `None`.
    pub(super) fn find_or_insert(&mut self, answer: &str, chain: &[String], location: &str) -> Option<String> {
        let shingles = shingles(chain);
        let bands = band_hashes(&shingles, &words(answer).join(" "));
        let candidates: BTreeSet<usize> =
            bands.iter().filter_map(|band| self.bands.get(band)).flatten().copied().collect();
        for candidate in candidates {
            let (earlier, at) = &self.chains[candidate];
            let overlap = overlap(earlier, &shingles);
            if overlap > self.max_overlap {
                let percent = 100.0 * overlap;
                return Some(format!("{percent:.0} % of its sequences of three words also occur in the chain of {at}"));
            }
        }
        for band in bands {
            self.bands.entry(band).or_default().push(self.chains.len());
        }
        self.chains.push((shingles, location.into()));
        None
    }
}

/// The hashes of all 3-grams of words, sorted, each once. A chain of fewer than three words is one shingle.
fn shingles(words: &[String]) -> Vec<u64> {
    let hash = |gram: &[String]| {
        let mut hash = XxHash3_64::new();
        for word in gram {
            hash.write(word.as_bytes());
            hash.write(&[0]);
        }
        hash.finish()
    };
    let mut shingles: Vec<u64> = words.windows(SHINGLE_WORDS.min(words.len()).max(1)).map(hash).collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

fn band_hashes(shingles: &[u64], answer: &str) -> [u64; BANDS] {
    std::array::from_fn(|band| {
        let mut hash = XxHash3_64::with_seed(band as u64);
        hash.write(answer.as_bytes());
        for row in 0..BAND_ROWS {
            let seed = (band * BAND_ROWS + row) as u64;
            let smallest =
                shingles.iter().map(|shingle| XxHash3_64::oneshot_with_seed(seed, &shingle.to_le_bytes())).min();
            hash.write(&smallest.unwrap_or_default().to_le_bytes());
        }
        hash.finish()
    })
}

/// The Jaccard similarity of two sorted lists.
fn overlap(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0usize);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        common += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    common as f64 / (a.len() + b.len() - common).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn long_chain(seed: usize) -> Vec<String> {
        (0..120).map(|i| format!("w{}", (i * i + 7 * i * seed + seed) % 997)).collect()
    }

    #[test]
    fn near_copies_with_the_same_answer_are_found() {
        let mut earlier = EarlierChains::new(0.8);
        assert_eq!(earlier.find_or_insert("A", &long_chain(1), "list:1"), None);
        assert_eq!(earlier.find_or_insert("A", &long_chain(2), "list:2"), None);
        assert_eq!(earlier.find_or_insert("B", &long_chain(1), "list:3"), None, "another answer");
        let mut near = long_chain(1);
        near[50] = "other".into();
        let found = earlier.find_or_insert(" a.", &near, "list:4").unwrap();
        assert!(found.contains("95 %") && found.contains("list:1"), "{found}");
        let mut half = long_chain(1);
        half.truncate(60);
        assert_eq!(earlier.find_or_insert("A", &half, "list:5"), None);
        assert!(earlier.find_or_insert("A", &[], "list:6").is_none());
        assert!(earlier.find_or_insert("A", &["x".into()], "list:7").is_none());
        assert!(earlier.find_or_insert("A", &["x".into()], "list:8").is_some());
        // No overlap is above 1, so the setting 1 keeps even exact copies.
        let mut all = EarlierChains::new(1.0);
        for _ in 0..2 {
            assert_eq!(all.find_or_insert("A", &long_chain(1), "list:1"), None);
        }
    }

    proptest! {
        #[test]
        fn overlap_is_that_of_the_sets(a in prop::collection::btree_set(0u64..40, 1..30), b in prop::collection::btree_set(0u64..40, 1..30)) {
            let wanted = a.intersection(&b).count() as f64 / a.union(&b).count() as f64;
            let list = |set: &BTreeSet<u64>| set.iter().copied().collect::<Vec<_>>();
            prop_assert_eq!(overlap(&list(&a), &list(&b)), wanted);
        }

        /// Pairs of chains with any overlap of at least 0.85 are found.
        #[test]
        fn pairs_above_the_threshold_are_found(seed in 1usize..900, changed in prop::collection::btree_set(0usize..120, 0..4)) {
            let chain = long_chain(seed);
            let mut near = chain.clone();
            changed.iter().for_each(|&i| near[i] = format!("changed{i}"));
            prop_assume!(overlap(&shingles(&chain), &shingles(&near)) >= 0.85);
            let mut earlier = EarlierChains::new(0.8);
            prop_assert!(earlier.find_or_insert("A", &chain, "list:1").is_none());
            prop_assert!(earlier.find_or_insert("A", &near, "list:2").is_some());
        }
    }
}
