//! Mean, standard deviation and percentiles of a sample.

/// How the values of a sample are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Arithmetic mean.
    pub mean: f64,
    /// The 50th percentile.
    pub median: f64,
    /// Standard deviation of the sample itself (divided by n, as numpy's default).
    pub std: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// The distribution of these finite values; `None` for an empty list.
    pub fn from_values(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        let percentile = |p| percentile(&values, p);
        Some(Self {
            mean,
            median: percentile(50.0),
            std: variance.sqrt(),
            p90: percentile(90.0),
            p99: percentile(99.0),
        })
    }
}

/// The `p`-th percentile (0 to 100) of `ascending`, a sorted list of at least one value: linear interpolation between
/// the two values around rank p / 100 · (n - 1), as numpy's default.
fn percentile(ascending: &[f64], p: f64) -> f64 {
    let rank = p / 100.0 * (ascending.len() - 1) as f64;
    let (low, high) = (ascending[rank.floor() as usize], ascending[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_equal_those_of_numpy() {
        // Expected values by numpy 2: mean, median, std, and percentiles 90 and 99 of the list.
        let d = Distribution::from_values(vec![7.0, 1.0, 4.0, 4.5, 100.0]).unwrap();
        let wanted = [23.3, 4.5, 38.3973957, 62.8, 96.28];
        for (got, wanted) in [d.mean, d.median, d.std, d.p90, d.p99].into_iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
        }
        let one = Distribution::from_values(vec![3.0]).unwrap();
        assert_eq!(one, Distribution { mean: 3.0, median: 3.0, std: 0.0, p90: 3.0, p99: 3.0 });
        assert_eq!(Distribution::from_values(Vec::new()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn percentiles_are_ordered_and_do_not_depend_on_order(values in prop::collection::vec(0.0f64..1e6, 1..50)) {
            let d = Distribution::from_values(values.clone()).unwrap();
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            prop_assert!(least <= d.median && d.median <= d.p90 && d.p90 <= d.p99 && d.p99 <= most);
            prop_assert!(least - 1e-6 <= d.mean && d.mean <= most + 1e-6 && d.std <= most - least + 1e-6);
            // The percentile is interpolated between two neighbouring values. So at least floor(p · (n - 1)) + 1
            // values, up to the lower of the two, are less than or equal to the percentile.
            for (p, got) in [(0.5, d.median), (0.9, d.p90), (0.99, d.p99)] {
                let below = values.iter().filter(|value| **value <= got).count() as f64;
                prop_assert!(below >= (p * (values.len() - 1) as f64).floor() + 1.0, "{p} {below}");
            }
            let reversed = values.into_iter().rev().collect();
            let again = Distribution::from_values(reversed).unwrap();
            prop_assert_eq!((d.median, d.p90, d.p99), (again.median, again.p90, again.p99));
        }
    }
}
