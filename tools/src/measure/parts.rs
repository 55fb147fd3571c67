//! Splits the time of a profiled round by part, such as forward, backward and optimizer of a training step.

use std::fmt::Write;
use std::time::Instant;

use reel_device::{Cost, DType, LaunchEvent};
use serde_json::{Value, json};

use crate::measure::ceilings::Ceilings;

/// One part of a round, such as `prefill`. The round can enter a part several times; times and counts are sums over
/// all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartTime {
    /// Name of the part.
    pub name: &'static str,
    /// Seconds in this part. Each stretch of the part lasts from its first launch to the first launch of the next part;
    /// the last stretch of the round lasts to the end of its last launch.
    pub seconds: f64,
    /// Seconds of this part during which a launch ran.
    pub busy: f64,
    /// Number of launches.
    pub launches: u64,
    /// Operations and bytes of the launches.
    pub cost: Cost,
    /// Least seconds on this machine.
    pub floor: f64,
}

/// Computes the time of each part from the launches of a round, sorted by start time. Empty if no launch belongs to a
/// named part.
pub fn part_times(events: &[LaunchEvent], ceilings: &Ceilings, dtype: DType) -> Vec<PartTime> {
    let mut parts: Vec<PartTime> = Vec::new();
    let stretches: Vec<&[LaunchEvent]> = events.chunk_by(|a, b| a.part == b.part).collect();
    for (i, stretch) in stretches.iter().enumerate() {
        let Some((first, last)) = stretch.first().zip(stretch.last()) else { continue };
        let span = |until: Instant| until.saturating_duration_since(first.start).as_secs_f64();
        let seconds = match stretches.get(i + 1).and_then(|next| next.first()) {
            Some(next) => span(next.start),
            None => span(last.start) + last.seconds,
        };
        let one = match parts.iter().position(|p| p.name == first.part) {
            Some(known) => &mut parts[known],
            None => {
                parts.push(PartTime { name: first.part, ..PartTime::default() });
                let last = parts.len() - 1;
                &mut parts[last]
            }
        };
        one.seconds += seconds;
        for event in *stretch {
            one.busy += event.seconds;
            one.launches += 1;
            one.cost += event.cost;
            one.floor += ceilings.roofline_seconds_of_launch(event, dtype);
        }
    }
    if parts.iter().all(|p| p.name.is_empty()) { Vec::new() } else { parts }
}

impl PartTime {
    /// This part as `reel bench --json` prints it; `round_seconds` is the length of the round.
    pub fn json(&self, round_seconds: f64) -> Value {
        json!({
            "part": self.name, "seconds": self.seconds, "share_of_step": self.seconds / round_seconds, "busy_seconds": self.busy,
            "launches": self.launches, "flops": self.cost.flops, "bytes": self.cost.bytes, "floor_seconds": self.floor,
        })
    }
}

/// The parts as a table of text; `round_seconds` is the length of the profiled round. Empty if `parts` is empty.
pub fn part_table(parts: &[PartTime], round_seconds: f64) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n  {:12} {:>11} {:>8} {:>11} {:>8} {:>10}  of roofline\n",
        "part", "ms", "of step", "in launches", "launches", "GFLOP/s"
    );
    for p in parts {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:12} {:>11.3} {:>6.1} % {:>9.1} % {:>8} {:>10.1}  {:>10.1} %",
            p.name,
            p.seconds * 1e3,
            100.0 * p.seconds / round_seconds,
            100.0 * p.busy / p.seconds,
            p.launches,
            p.cost.flops / p.seconds / 1e9,
            (100.0 * p.floor / p.seconds).min(100.0)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reel_device::{HostCall, LaunchOrigin};

    use super::*;

    #[test]
    fn stretches_of_a_part_are_summed() {
        let begun = Instant::now();
        let event = |part, ms, seconds| LaunchEvent {
            name: "matmul_fwd",
            part,
            origin: LaunchOrigin::default(),
            range: None,
            sizes: Vec::new(),
            cost: Cost { flops: 1e6, bytes: 1.0 },
            operand: None,
            host: HostCall { thread: 0, start: begun, seconds: 0.0 },
            start: begun + Duration::from_millis(ms),
            seconds,
            stages: Vec::new(),
            product: None,
        };
        let ceilings = Ceilings { f32: 1e9, bf16: 1e9, bytes: 1e9, cache: None };
        let events = [
            event("forward", 0, 0.001),
            event("forward", 2, 0.002),
            event("backward", 5, 0.004),
            event("forward", 10, 0.001),
            event("backward", 12, 0.003),
            event("optimizer", 20, 0.005),
        ];
        let got = part_times(&events, &ceilings, DType::F32);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let want = [("forward", 0.007, 0.004, 3), ("backward", 0.013, 0.007, 2), ("optimizer", 0.005, 0.005, 1)];
        assert_eq!(got.len(), 3);
        for (p, (name, seconds, busy, launches)) in got.iter().zip(want) {
            assert!(
                p.name == name && near(p.seconds, seconds) && near(p.busy, busy) && p.launches == launches,
                "{p:?}"
            );
            assert!(near(p.floor, launches as f64 * 1e-3) && p.cost.flops == launches as f64 * 1e6);
        }
        assert!(part_times(&[event("", 0, 1.0)], &ceilings, DType::F32).is_empty());
        assert!(part_times(&[], &ceilings, DType::F32).is_empty());
    }
}
