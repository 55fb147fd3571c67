//! What a run shows while it works: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet. All of
//! it on stderr; stdout belongs to results.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::metrics::StepMetrics;

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
    },
    /// A bar that moves.
    Bar(ProgressBar),
}

impl Progress {
    /// A display of a run of `steps` that starts after step `done`.
    pub fn new(quiet: bool, steps: u64, done: u64, every: u64) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { steps, every };
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
            Self::Lines { steps, every } => {
                if m.step.is_multiple_of(*every) || m.step == *steps {
                    eprintln!("step {}/{steps}  {}", m.step, summary(m));
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

fn summary(m: &StepMetrics) -> String {
    format!(
        "loss {:.4}  grad {:.3}  lr {:.2e}  {:.0} tok/s  {}",
        m.loss,
        m.grad_norm,
        m.learning_rate,
        m.tokens_per_second,
        bytes(m.peak_bytes)
    )
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
}
