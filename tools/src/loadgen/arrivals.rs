//! Computes when requests are sent. The times between requests follow a gamma distribution, as in `vllm bench serve`.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use crate::error::{Error, Result};

/// Number of the random-number stream for the arrival times. The words of each prompt come from other streams.
const ARRIVAL_STREAM: u64 = u64::MAX;
/// Maximum time from the start of the run to a request: ten years.
const MAX_OFFSET_SECONDS: f64 = 10.0 * 365.0 * 86400.0;
/// Accepted values of the request rate and of the burstiness.
const RANGE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// An endless schedule: the time of each request after the start.
#[derive(Debug)]
pub(crate) struct ArrivalTimes {
    /// Seconds from one request to the next; `None` sends all requests at time 0.
    interval: Option<Gamma<f64>>,
    random: ChaCha8Rng,
    next_seconds: f64,
}

impl ArrivalTimes {
    /// A schedule with `rate` requests per second on average, or with all requests at time 0.
    ///
    /// # Errors
    /// The rate or the burstiness is not a number from 1e-6 to 1e6.
    pub(crate) fn new(rate: Option<f64>, burstiness: f64, seed: u64) -> Result<Self> {
        let wrong = |option, value: f64| Error::usage(option, format!("is {value}"), "give a number from 1e-6 to 1e6");
        if !RANGE.contains(&burstiness) {
            return Err(wrong("--burstiness", burstiness));
        }
        let interval = match rate {
            None => None,
            Some(rate) if !RANGE.contains(&rate) => return Err(wrong("--request-rate", rate)),
            // The mean of a gamma distribution is shape · scale, so this scale gives the mean 1 / rate.
            Some(rate) => {
                Some(Gamma::new(burstiness, 1.0 / (rate * burstiness)).map_err(|_| wrong("--burstiness", burstiness))?)
            }
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(ARRIVAL_STREAM);
        Ok(Self { interval, random, next_seconds: 0.0 })
    }
}

impl Iterator for ArrivalTimes {
    type Item = Duration;

    /// The time of the next request after the start of the run. The first request is sent at once.
    fn next(&mut self) -> Option<Duration> {
        let now = Duration::from_secs_f64(self.next_seconds);
        if let Some(interval) = &self.interval {
            let seconds = self.next_seconds + interval.sample(&mut self.random);
            self.next_seconds = seconds.min(MAX_OFFSET_SECONDS);
        }
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Times between `n` requests, in seconds.
    fn intervals(rate: f64, burstiness: f64, seed: u64, n: usize) -> Vec<f64> {
        let offsets: Vec<Duration> = ArrivalTimes::new(Some(rate), burstiness, seed).unwrap().take(n + 1).collect();
        offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// A Poisson process has exponential intervals: mean and standard deviation are 1 / rate, and the share of
    /// intervals above t is exp(-rate t). The bounds are five standard errors of 20 000 samples.
    #[test]
    fn intervals_are_those_of_a_poisson_process() {
        for seed in 0..4 {
            let sample = intervals(8.0, 1.0, seed, 20_000);
            assert!((mean(&sample) * 8.0 - 1.0).abs() < 0.036, "{}", mean(&sample));
            let variance = mean(&sample.iter().map(|x| (x - 0.125f64).powi(2)).collect::<Vec<_>>());
            assert!((variance.sqrt() * 8.0 - 1.0).abs() < 0.06, "{variance}");
            for multiple in [0.5, 1.0, 2.0] {
                let share = sample.iter().filter(|x| **x > multiple / 8.0).count() as f64 / 20_000.0;
                assert!((share - f64::exp(-multiple)).abs() < 0.018, "{multiple} {share}");
            }
        }
    }

    /// The variance of a gamma distribution with mean m and shape k is m² / k.
    #[test]
    fn burstiness_sets_the_spread_but_not_the_rate() {
        for burstiness in [0.25, 4.0] {
            let sample = intervals(2.0, burstiness, 7, 40_000);
            let variance = mean(&sample.iter().map(|x| (x - 0.5f64).powi(2)).collect::<Vec<_>>());
            assert!((mean(&sample) - 0.5).abs() < 0.03, "{}", mean(&sample));
            assert!((variance * burstiness / 0.25 - 1.0).abs() < 0.15, "{burstiness} {variance}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits_and_wrong_numbers_are_refused() {
        assert!(ArrivalTimes::new(None, 1.0, 0).unwrap().take(100).all(|offset| offset.is_zero()));
        for (rate, burstiness, option) in [
            (Some(0.0), 1.0, "--request-rate: is 0;"),
            (Some(-1.0), 1.0, "--request-rate: is -1;"),
            (Some(f64::NAN), 1.0, "--request-rate: is NaN;"),
            (Some(f64::INFINITY), 1.0, "--request-rate: is inf;"),
            (Some(1.0), 0.0, "--burstiness: is 0;"),
            (None, f64::NAN, "--burstiness: is NaN;"),
        ] {
            let message = ArrivalTimes::new(rate, burstiness, 0).unwrap_err().to_string();
            assert!(message.starts_with(option), "{message}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn times_ascend_and_depend_on_the_seed_alone(
            rate in 1e-6f64..1e6, burstiness in 1e-6f64..1e6, seed: u64,
        ) {
            let schedule = |seed| ArrivalTimes::new(Some(rate), burstiness, seed).unwrap().take(50).collect::<Vec<_>>();
            let offsets = schedule(seed);
            prop_assert!(offsets[0].is_zero() && offsets.is_sorted());
            prop_assert_eq!(schedule(seed), offsets);
        }
    }
}
