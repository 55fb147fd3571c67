//! Top-p: keeps the most likely tokens whose weights together reach a share p of the sum of all weights.
//!
//! ```text
//! low .. high = a range of weights: those from high on add up to less than the bound, those from low on to more
//! while many tokens are in the range: halve it        # a pass, which adds up the weights from the middle on
//! keep the tokens from high on, and the largest ones of the range until the bound is reached
//! ```

use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::simd_fn;

use super::{BLOCK, total};

/// At most this many keys are sorted directly, without halving their range first.
const SORTED: usize = 16;
/// Upper bound of the relative error of [`sum_and_count`].
const ROUNDING: f64 = 1e-5;

simd_fn! {
    /// Returns the sum of the weights that are at least `least`, with a relative error of at most 1e-5, and the number
    /// of these weights.
    fn sum_and_count(weights: &[f32], least: f32) -> (f64, usize) {
        let (mut all, mut count) = (0.0f64, 0.0f64);
        for block in weights.chunks(BLOCK) {
            // Uses four vectors of sums and four of counts, so that no addition waits for the addition before it.
            let (mut sums, mut counts) = ([0.0f32; 4 * LANES], [0.0f32; 4 * LANES]);
            let (whole, rest) = block.as_chunks::<{ 4 * LANES }>();
            for c in whole {
                for i in 0..4 * LANES {
                    sums[i] += if c[i] >= least { c[i] } else { 0.0 };
                    counts[i] += if c[i] >= least { 1.0 } else { 0.0 };
                }
            }
            let (whole, rest) = rest.as_chunks::<LANES>();
            for c in whole {
                for i in 0..LANES {
                    sums[i] += if c[i] >= least { c[i] } else { 0.0 };
                    counts[i] += if c[i] >= least { 1.0 } else { 0.0 };
                }
            }
            // Adds 0 instead of branching: the processor could not predict the branch.
            let (mut sum, mut number) = (sum_of_vectors(&sums), sum_of_vectors(&counts));
            for &w in rest {
                sum += if w >= least { w } else { 0.0 };
                number += if w >= least { 1.0 } else { 0.0 };
            }
            all += sum as f64;
            count += number as f64;
        }
        (all, count as usize)
    }
}

/// Adds four vectors of lanes, in pairs, so that few additions wait for another one.
#[inline(always)]
fn sum_of_vectors(x: &[f32; 4 * LANES]) -> f32 {
    let mut lanes = [0.0; LANES];
    for i in 0..LANES {
        lanes[i] = (x[i] + x[LANES + i]) + (x[2 * LANES + i] + x[3 * LANES + i]);
    }
    sum_lanes(lanes)
}

simd_fn! {
    /// Replaces the weights below `least` by 0 and returns the sum of the others, added in f64.
    fn clear_below(weights: &mut [f32], least: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        for chunk in weights.chunks_mut(LANES) {
            for (w, sum) in chunk.iter_mut().zip(&mut sums) {
                *w = if *w >= least { *w } else { 0.0 };
                *sum += *w as f64;
            }
        }
        sums.iter().sum()
    }
}

simd_fn! {
    /// Writes a key for each token whose weight has bits in `low .. high`. The keys sort by descending weight, then by
    /// ascending id.
    fn keys_between(weights: &[f32], low: u32, high: u32, order: &mut Vec<u64>) {
        order.clear();
        let is_between = |w: f32| w.to_bits().wrapping_sub(low) < high - low;
        for (c, chunk) in weights.chunks(LANES).enumerate() {
            // Skips chunks without a token in the range; most chunks have none.
            if chunk.iter().map(|w| u32::from(is_between(*w))).sum::<u32>() == 0 {
                continue;
            }
            for (i, w) in chunk.iter().enumerate().filter(|(_, w)| is_between(**w)) {
                order.push(((!w.to_bits()) as u64) << 32 | (c * LANES + i) as u64);
            }
        }
    }
}

/// Returns the weight encoded in a key of [`keys_between`].
fn weight_of(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

/// Reorders the keys so that the smallest keys (of the largest weights) come first, until their weights plus
/// `before`, the sum of all larger weights, reach `bound`. Returns the number of these keys: at least one if `before`
/// is 0.
fn kept_first(order: &mut [u64], bound: f64, mut before: f64) -> usize {
    let (mut from, mut to) = (0, order.len());
    // Halves the range that contains the last kept key, until it is short enough to be sorted.
    while to - from > SORTED {
        let half = (to - from) / 2;
        order[from..to].select_nth_unstable(half);
        let sum: f64 = order[from..from + half].iter().map(|&key| weight_of(key) as f64).sum();
        if before + sum >= bound {
            to = from + half;
        } else {
            (before, from) = (before + sum, from + half);
        }
    }
    order[from..to].sort_unstable();
    let mut kept = from;
    while kept < order.len() && (before == 0.0 || before < bound) {
        before += weight_of(order[kept]) as f64;
        kept += 1;
    }
    kept
}

/// Returns the bits of two weights `low` and `high`: top-p keeps the tokens with weights of at least `high`, and
/// excludes the tokens with weights below `low`. Few tokens are between the two, unless their weights are equal or
/// their sums are within a rounding error of `bound`. `all` is the sum of all weights.
///
/// Positive floats are ordered like their bits, so the search halves a range of bits.
fn last_kept_range(weights: &[f32], bound: f64, all: f64) -> (u32, u32) {
    // All weights below `floor` add up to less than the weight that top-p excludes, so top-p excludes each of them; the
    // factor 0.5 is a margin for rounding. Unless the distribution is flat, few tokens then remain.
    let floor = (0.5 * (all - bound) / weights.len() as f64) as f32;
    // No weight is greater than 1, except for rounding. The floor is NaN if a logit is infinite; then no token is kept.
    let mut high = 2.0f32.to_bits();
    let mut low = floor.to_bits().clamp(1, high);
    let (mut from_low, mut from_high) = (sum_and_count(weights, f32::from_bits(low)).1, 0);
    // Another pass over all weights pays off while more than `few` tokens are between low and high.
    let few = SORTED + weights.len() / 128;
    while high - low > 1 && from_low - from_high > few {
        let middle = low + (high - low) / 2;
        let (sum, count) = sum_and_count(weights, f32::from_bits(middle));
        if sum <= bound - ROUNDING * all {
            (high, from_high) = (middle, count);
        } else if sum >= bound + ROUNDING * all {
            (low, from_low) = (middle, count);
        } else {
            break;
        }
    }
    (low, high)
}

/// Replaces the weights of the tokens that top-p excludes by 0.
pub(super) fn keep_top_p(weights: &mut [f32], p: f32, order: &mut Vec<u64>) {
    let all = total(weights);
    let bound = p.max(0.0) as f64 * all;
    let (low, high) = last_kept_range(weights, bound, all);
    keys_between(weights, low, high, order);
    let high = f32::from_bits(high);
    let kept = kept_first(order, bound, clear_below(weights, high));
    for &key in &order[..kept] {
        weights[key as u32 as usize] = weight_of(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the weights after top-p by definition: in a list sorted by weight, a token is kept if the weights before
    /// it add up to less than `p` times the sum of all.
    fn sorted_top_p(weights: &[f32], p: f32) -> Vec<f32> {
        let mut ids: Vec<usize> = (0..weights.len()).filter(|&id| weights[id] > 0.0).collect();
        ids.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let (mut kept, mut before) = (vec![0.0; weights.len()], 0.0f64);
        let bound = p.max(0.0) as f64 * total(weights);
        for id in ids {
            if before > 0.0 && before >= bound {
                break;
            }
            before += weights[id] as f64;
            kept[id] = weights[id];
        }
        kept
    }

    #[test]
    fn top_p_keeps_no_token_if_a_weight_is_nan() {
        let mut weights = vec![0.0, f32::NAN, 0.0, 1.0];
        keep_top_p(&mut weights, 0.5, &mut Vec::new());
        assert_eq!(weights, [0.0; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Compares `keep_top_p` with a sorted list. Weights are multiples of 2^-14, so that all sums are exact in any
        /// order, and many weights are equal.
        #[test]
        fn top_p_keeps_the_tokens_of_a_sorted_list(
            steps in prop::collection::vec(1u32..=1 << 14, 1..3000),
            shift in 0u32..15,
            hidden in any::<bool>(),
            p in prop_oneof![Just(0.0f32), Just(1e-6), Just(0.5), Just(0.95), Just(1.0), 0.0f32..1.0],
        ) {
            let step = |x: u32| ((x >> shift) + 1).min(1 << 14) as f32 / (1 << 14) as f32;
            let mut weights: Vec<f32> = steps.iter().map(|&x| step(x)).collect();
            if hidden {
                weights.iter_mut().skip(1).step_by(3).for_each(|w| *w = 0.0);
            }
            weights[0] = 1.0;
            let want = sorted_top_p(&weights, p);
            keep_top_p(&mut weights, p, &mut Vec::new());
            prop_assert_eq!(weights, want);
        }
    }
}
