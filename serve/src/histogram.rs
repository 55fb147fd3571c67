//! A histogram in the form that Prometheus reads.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// Counts of values by upper bound, with their sum.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: Vec<f64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// For each bound, the number of values up to this bound and above the previous bound. The last element counts the
    /// values above all bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// A histogram without values. `bounds` are ascending upper bounds.
    pub(crate) fn new(bounds: &[f64]) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self { bounds: bounds.to_vec(), state: Mutex::new(State { counts, sum: 0.0 }) }
    }

    /// A histogram with the bounds 1, 2, 5, 10, 20, 50, … up to `max`.
    pub(crate) fn with_bounds_up_to(max: usize) -> Self {
        let bounds = (0..).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        Self::new(&bounds.take_while(|&bound| bound <= max as f64).collect::<Vec<_>>())
    }

    /// Adds a value.
    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts[bucket] += 1;
        state.sum += value;
    }

    /// Writes the lines of the histogram in Prometheus' text format. `labels` are the labels of all its series, without
    /// braces.
    pub(crate) fn write(&self, out: &mut String, name: &str, help: &str, labels: &str) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        let bounds = self.bounds.iter().map(|bound| format!("{bound:?}")).chain(["+Inf".to_string()]);
        for (bound, count) in bounds.zip(&state.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", state.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::with_bounds_up_to(25);
        for value in [0.5, 1.0, 1.5, 20.0, 21.0] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.write(&mut out, "x", "what", "a=\"b\"");
        let wanted = "# HELP x what\n# TYPE x histogram\nx_bucket{a=\"b\",le=\"1.0\"} 2\nx_bucket{a=\"b\",le=\"2.0\"} 3\n\
                      x_bucket{a=\"b\",le=\"5.0\"} 3\nx_bucket{a=\"b\",le=\"10.0\"} 3\nx_bucket{a=\"b\",le=\"20.0\"} 4\n\
                      x_bucket{a=\"b\",le=\"+Inf\"} 5\nx_sum{a=\"b\"} 44\nx_count{a=\"b\"} 5\n";
        assert_eq!(out, wanted);
    }
}
