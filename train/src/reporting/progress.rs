//! What a run shows while it works: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet. All of
//! it on stderr; stdout belongs to results.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::reporting::metrics::StepMetrics;

/// Shows the steps of a run.
#[derive(Debug)]
pub enum Progress {
    /// Nothing.
    Quiet,
    /// A line every few steps.
    Lines {
        /// Steps of the whole run.
        steps: u64,
        /// A line every so many steps.
        every: u64,
        /// What tells how long the rest will take.
        pace: Pace,
    },
    /// A bar that moves.
    Bar(ProgressBar),
}

/// Since when there are steps, to tell how long those that are left will take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Instant,
    done: u64,
}

impl Pace {
    /// The time that the steps left will take after `elapsed`, at the mean pace so far.
    fn left(&self, elapsed: Duration, step: u64, steps: u64) -> Duration {
        let made = step.saturating_sub(self.done).max(1) as f64;
        Duration::from_secs_f64(elapsed.as_secs_f64() / made * steps.saturating_sub(step) as f64)
    }
}

impl Progress {
    /// A display of a run of `steps` that starts after step `done`.
    pub fn new(quiet: bool, steps: u64, done: u64, every: u64) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { steps, every, pace: Pace { since: Instant::now(), done } };
        }
        let bar = ProgressBar::new(steps).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {bar:30} {msg}  {elapsed} (eta {eta})") {
            bar.set_style(style);
        }
        bar.reset_eta();
        Self::Bar(bar)
    }

    /// Shows a finished step.
    pub fn step(&self, m: &StepMetrics) {
        match self {
            Self::Quiet => {}
            Self::Lines { steps, every, pace } => {
                if m.step.is_multiple_of(*every) || m.step == *steps {
                    let left = pace.left(pace.since.elapsed(), m.step, *steps);
                    eprintln!("step {}/{steps}  {}  {} left", m.step, summary(m), time(left));
                }
            }
            Self::Bar(bar) => {
                bar.set_message(summary(m));
                bar.set_position(m.step);
            }
        }
    }

    /// Says something between steps.
    pub fn note(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines { .. } => eprintln!("{text}"),
            Self::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
        }
    }

    /// Leaves the last state of the bar on the screen.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.abandon();
        }
    }
}

/// What is said of a step. Of one that learns from rewards: first these.
fn summary(m: &StepMetrics) -> String {
    let told = |name: &str| m.more.get(name).and_then(Value::as_f64);
    let mut said = Vec::new();
    said.extend(told("reward").map(|x| format!("reward {x:.3}")));
    said.extend(told("kl").map(|x| format!("kl {x:.2e}")));
    said.extend(told("completion_length").map(|x| format!("length {x:.0}")));
    said.push(format!("loss {:.4}", m.loss));
    said.push(format!("grad {:.3}", m.grad_norm));
    said.push(format!("lr {:.2e}", m.learning_rate));
    said.push(format!("{:.0} tok/s", m.tokens_per_second));
    said.push(bytes(m.peak_bytes));
    said.join("  ")
}

/// A time for people: `1h 02m`, `3m 05s`, `7s`.
fn time(t: Duration) -> String {
    let seconds = t.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

/// A number of bytes for people: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let said: Vec<String> = [0, 1023, 1536, 3 << 30, 5 << 50].into_iter().map(bytes).collect();
        assert_eq!(said, ["0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5120.0 TiB"]);
    }

    #[test]
    fn times_are_readable_and_those_left_follow_the_pace() {
        let said: Vec<String> = [0, 7, 185, 3720, 100_000].map(Duration::from_secs).map(time).into();
        assert_eq!(said, ["0s", "7s", "3m 05s", "1h 02m", "27h 46m"]);
        let pace = Pace { since: Instant::now(), done: 10 };
        // Five steps in ten seconds, since the run went on after ten.
        assert_eq!(pace.left(Duration::from_secs(10), 15, 40), Duration::from_secs(50));
        assert_eq!(pace.left(Duration::from_secs(10), 40, 40), Duration::ZERO);
    }

    #[test]
    fn a_step_that_learns_from_rewards_says_them_first() {
        let line = |more: Value| StepMetrics {
            step: 1,
            loss: 0.5,
            grad_norm: 2.0,
            learning_rate: 1e-6,
            tokens: 10,
            tokens_per_second: 5.0,
            step_seconds: 2.0,
            peak_bytes: 1536,
            hash: String::new(),
            more: more.as_object().cloned().unwrap_or_default(),
        };
        let plain = "loss 0.5000  grad 2.000  lr 1.00e-6  5 tok/s  1.5 KiB";
        assert_eq!(summary(&line(Value::Null)), plain);
        let told = serde_json::json!({"reward": 1.25, "kl": 0.0125, "completion_length": 213.4});
        assert_eq!(summary(&line(told)), format!("reward 1.250  kl 1.25e-2  length 213  {plain}"));
    }
}
