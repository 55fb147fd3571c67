//! What TensorBoard and Weights & Biases share in their reports of a rollout preview: its names, and the histogram of
//! its rewards.

/// The TensorBoard and W&B name of the histogram of a step's rewards.
pub const REWARDS_TAG: &str = "rollouts/rewards";
/// The TensorBoard and W&B name of the text of a step's completions.
pub const COMPLETIONS_TAG: &str = "rollouts/completions";
/// The TensorBoard and W&B name of the image of a step's frames.
pub const FRAMES_TAG: &str = "rollouts/frames";

/// A histogram of values with 30 bins of equal width, from the smallest to the largest value.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The smallest value.
    pub low: f64,
    /// The largest value.
    pub high: f64,
    /// Upper limit of each bin; the first bin begins at `low`.
    pub limits: Vec<f64>,
    /// Number of values in each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Makes the histogram of `values`, which must not be empty.
    pub fn new(values: &[f32]) -> Self {
        const BINS: usize = 30;
        let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        let width = (high - low).max(1e-6) / BINS as f64;
        let mut counts = vec![0; BINS];
        for v in &values {
            counts[(((v - low) / width) as usize).min(BINS - 1)] += 1;
        }
        Self { low, high, limits: (1..=BINS).map(|i| low + width * i as f64).collect(), counts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Checks that every value is counted in a bin whose limits contain it, up to rounding.
        #[test]
        fn histogram_counts_every_value(values in prop::collection::vec(-100f32..100.0, 1..60)) {
            let bins = Histogram::new(&values);
            prop_assert_eq!(bins.counts.iter().sum::<u64>(), values.len() as u64);
            let mut below = 0;
            for (limit, n) in bins.limits.iter().zip(&bins.counts) {
                below += n;
                let slack = 1e-9 * (1.0 + limit.abs());
                let at_most = values.iter().filter(|&&v| f64::from(v) <= limit + slack).count() as u64;
                let under = values.iter().filter(|&&v| f64::from(v) < limit - slack).count() as u64;
                prop_assert!(under <= below && below <= at_most, "{limit}: {under} {below} {at_most}");
            }
            prop_assert_eq!(bins.low, f64::from(values.iter().copied().fold(f32::INFINITY, f32::min)));
            prop_assert_eq!(bins.high, f64::from(values.iter().copied().fold(f32::NEG_INFINITY, f32::max)));
        }
    }
}
