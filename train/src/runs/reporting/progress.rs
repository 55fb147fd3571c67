//! Shows the progress of a run on stderr: a progress bar on a terminal, plain lines elsewhere, nothing with `--quiet`.
//! stdout is reserved for results.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::metrics::StepMetrics;
use indicatif::{ProgressBar, ProgressStyle};
use reel_device::format_bytes;
use reel_support::diagnostic::escape_controls;

/// The progress display of a run on stderr. It counts finished steps or finished rows.
#[derive(Debug)]
pub enum Progress {
    /// Nothing is shown (`--quiet`).
    Quiet,
    /// stderr is not a terminal: a line is printed every few steps or seconds.
    Lines {
        /// Number of steps or rows of the whole run.
        total: u64,
        /// Determines when a progress line is printed.
        cadence: PrintInterval,
        /// Estimates the remaining time.
        pace: TimeEstimate,
    },
    /// stderr is a terminal: a progress bar is shown.
    Bar(ProgressBar),
}

/// Determines when progress lines are printed.
#[derive(Clone, Debug)]
pub enum PrintInterval {
    /// A line is printed after every multiple of this number of steps.
    Steps(u64),
    /// A line is printed if [`ROW_INTERVAL`] has passed since the last line. Holds the time of the last line.
    Since(Cell<Instant>),
}

/// Time between two progress lines about rows.
const ROW_INTERVAL: Duration = Duration::from_secs(10);

/// Estimates the remaining time from the mean seconds per step since this process began.
#[derive(Clone, Copy, Debug)]
pub struct TimeEstimate {
    since: Instant,
    done: u64,
}

impl TimeEstimate {
    /// Returns the estimated remaining time after step `step` of `steps`. `elapsed` is the time since the start of
    /// this process.
    fn left(&self, elapsed: Duration, step: u64, steps: u64) -> Duration {
        let made = step.saturating_sub(self.done).max(1) as f64;
        Duration::from_secs_f64(elapsed.as_secs_f64() / made * steps.saturating_sub(step) as f64)
    }
}

impl Progress {
    /// Starts the display of a run of `steps` steps that continues after the first `finished_steps`.
    pub fn new(quiet: bool, steps: u64, finished_steps: u64, steps_per_line: u64) -> Self {
        Self::with_cadence(quiet, steps, finished_steps, PrintInterval::Steps(steps_per_line))
    }

    /// Starts the display of a run over `rows` rows, the first `finished_rows` of which an earlier process has
    /// finished.
    pub fn for_rows(quiet: bool, rows: u64, finished_rows: u64) -> Self {
        Self::with_cadence(quiet, rows, finished_rows, PrintInterval::Since(Cell::new(Instant::now())))
    }

    fn with_cadence(quiet: bool, total: u64, finished: u64, cadence: PrintInterval) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { total, cadence, pace: TimeEstimate { since: Instant::now(), done: finished } };
        }
        let bar = ProgressBar::new(total).with_position(finished);
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {bar:30} {msg}  {elapsed} (eta {eta})") {
            bar.set_style(style);
        }
        bar.reset_eta();
        Self::Bar(bar)
    }

    /// Displays a finished step.
    pub fn show_step(&self, m: &StepMetrics) {
        match self {
            Self::Quiet => {}
            Self::Lines { total, cadence, pace } => {
                let PrintInterval::Steps(every) = cadence else { return };
                if m.step.is_multiple_of(*every) || m.step == *total {
                    let left = pace.left(pace.since.elapsed(), m.step, *total);
                    reel_support::diagnostic::note!("step {}/{total}  {}  {} left", m.step, summary(m), time(left));
                }
            }
            Self::Bar(bar) => {
                bar.set_message(summary(m));
                bar.set_position(m.step);
            }
        }
    }

    /// Shows that the first `done` rows are written; `errors` of these rows have an error instead of an output.
    pub fn show_rows(&self, done: u64, tokens_per_second: f64, errors: usize) {
        let text = |rows_per_second: f64| {
            let failed = if errors == 0 { String::new() } else { format!("  {errors} with errors") };
            format!("{rows_per_second:.2} rows/s  {tokens_per_second:.0} tok/s{failed}")
        };
        match self {
            Self::Quiet => {}
            Self::Lines { total, cadence, pace } => {
                let PrintInterval::Since(last) = cadence else { return };
                if last.get().elapsed() < ROW_INTERVAL && done < *total {
                    return;
                }
                last.set(Instant::now());
                let elapsed = pace.since.elapsed();
                let rate = done.saturating_sub(pace.done) as f64 / elapsed.as_secs_f64().max(1e-9);
                reel_support::diagnostic::note!(
                    "row {done}/{total}  {}  {} left",
                    text(rate),
                    time(pace.left(elapsed, done, *total))
                );
            }
            Self::Bar(bar) => {
                bar.set_message(text(bar.per_sec()));
                bar.set_position(done);
            }
        }
    }

    /// Prints a line of text between two updates of the display.
    pub fn print_line(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines { .. } => reel_support::diagnostic::note!("{}", escape_controls(text)),
            Self::Bar(bar) => bar.suspend(|| reel_support::diagnostic::note!("{}", escape_controls(text))),
        }
    }

    /// Stops the progress bar and leaves it on the screen.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.abandon();
        }
    }
}

/// Returns a text line about a step. For GRPO, the line begins with reward, KL and completion length.
fn summary(m: &StepMetrics) -> String {
    let mut parts = Vec::new();
    parts.extend(m.grpo.reward.map(|x| format!("reward {x:.3}")));
    parts.extend(m.grpo.kl.map(|x| format!("kl {x:.2e}")));
    parts.extend(m.grpo.completion_length.map(|x| format!("length {x:.0}")));
    parts.push(format!("loss {:.4}", m.loss));
    parts.push(format!("grad {:.3}", m.grad_norm));
    parts.push(format!("lr {:.2e}", m.learning_rate));
    parts.push(format!("{:.0} tok/s", m.tokens_per_second));
    parts.extend(m.hardware.mfu.map(|mfu| format!("mfu {:.1} %", 100.0 * mfu)));
    parts.extend(m.hardware.gpu_power_watts.map(|watts| format!("{watts:.0} W")));
    parts.push(format_bytes(m.peak_bytes));
    parts.join("  ")
}

/// Formats a duration: `1h 02m`, `3m 05s`, `7s`.
fn time(t: Duration) -> String {
    let seconds = t.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use crate::hardware_metrics::HardwareMetrics;
    use crate::metrics::GrpoMetrics;

    use super::*;

    #[test]
    fn formats_bytes_in_binary_units() {
        let message: Vec<String> = [0, 1023, 1536, 3 << 30, 5 << 50].into_iter().map(format_bytes).collect();
        assert_eq!(message, ["0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5120.0 TiB"]);
    }

    #[test]
    fn formats_durations_and_estimates_the_remaining_time() {
        let message: Vec<String> = [0, 7, 185, 3720, 100_000].map(Duration::from_secs).map(time).into();
        assert_eq!(message, ["0s", "7s", "3m 05s", "1h 02m", "27h 46m"]);
        let pace = TimeEstimate { since: Instant::now(), done: 10 };
        // The process resumed after step 10 and did 5 steps in 10 seconds, so the remaining 25 steps take 50 seconds.
        assert_eq!(pace.left(Duration::from_secs(10), 15, 40), Duration::from_secs(50));
        assert_eq!(pace.left(Duration::from_secs(10), 40, 40), Duration::ZERO);
    }

    #[test]
    fn grpo_steps_show_reward_first() {
        let line = |grpo: GrpoMetrics| StepMetrics {
            step: 1,
            loss: 0.5,
            grad_norm: 2.0,
            learning_rate: 1e-6,
            tokens: 10,
            tokens_per_second: 5.0,
            step_seconds: 2.0,
            peak_bytes: 1536,
            hash: String::new(),
            hardware: HardwareMetrics::default(),
            grpo,
            validation: None,
        };
        let plain = "loss 0.5000  grad 2.000  lr 1.00e-6  5 tok/s  1.5 KiB";
        assert_eq!(summary(&line(GrpoMetrics::default())), plain);
        let grpo = GrpoMetrics {
            reward: Some(1.25),
            kl: Some(0.0125),
            completion_length: Some(213.4),
            ..GrpoMetrics::default()
        };
        assert_eq!(summary(&line(grpo)), format!("reward 1.250  kl 1.25e-2  length 213  {plain}"));
        let hardware =
            HardwareMetrics { mfu: Some(0.4512), gpu_power_watts: Some(633.4), ..HardwareMetrics::default() };
        let on_gpu = StepMetrics { hardware, ..line(GrpoMetrics::default()) };
        assert_eq!(summary(&on_gpu), plain.replace("tok/s", "tok/s  mfu 45.1 %  633 W"));
    }
}
