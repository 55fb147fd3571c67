//! Compares two programs by the results of one benchmark. Several processes of each program run in turns.

use std::path::Path;

use serde_json::{Value, json};

use crate::compare::{TimeSamples, milliseconds_text, time_samples};
use crate::error::Result;
use crate::stats::{self, TURN_SIGNIFICANCE_LEVEL, TimeDifference};

/// The times of the processes of both programs; each turn has one process of each program.
#[derive(Clone, Debug, Default)]
pub struct ProgramTurns {
    measured: Vec<Measured>,
    turns: usize,
}

/// One measured time of both programs: for each process of program A and of program B, the median in seconds.
#[derive(Clone, Debug)]
struct Measured {
    name: String,
    seconds: [Vec<f64>; 2],
}

impl ProgramTurns {
    /// Adds a turn: the result of a process of program A and the result of a process of program B, each with the name
    /// of its program.
    ///
    /// # Errors
    /// A result has no round times.
    pub fn add(&mut self, results: [(&Path, &Value); 2]) -> Result<()> {
        for (i, (program, result)) in results.into_iter().enumerate() {
            for TimeSamples { name, seconds } in time_samples(program, result)? {
                let known = self.measured.iter().position(|measured| measured.name == name).unwrap_or_else(|| {
                    self.measured.push(Measured { name, seconds: [Vec::new(), Vec::new()] });
                    self.measured.len() - 1
                });
                self.measured[known].seconds[i].push(stats::median(&seconds));
            }
        }
        self.turns += 1;
        Ok(())
    }

    /// The comparison of each time that all processes measured.
    fn compared(&self) -> impl Iterator<Item = (&Measured, TimeDifference)> {
        let complete = self.measured.iter().filter(|one| one.seconds.iter().all(|times| times.len() == self.turns));
        complete.map(|one| (one, stats::compare_turns(&one.seconds[0], &one.seconds[1])))
    }

    /// Whether there is a time that all processes measured.
    pub fn has_common_times(&self) -> bool {
        self.compared().next().is_some()
    }

    /// The comparison as JSON.
    pub fn json(&self) -> Value {
        let verdict = |(one, d): (&Measured, TimeDifference)| {
            json!({
                "name": one.name, "ratio": d.ratio, "interval": d.interval, "p": d.p, "verdict": d.verdict.name(),
                "too_few_turns": d.too_few, "a": one.seconds[0], "b": one.seconds[1],
            })
        };
        let verdicts: Vec<Value> = self.compared().map(verdict).collect();
        json!({"turns": self.turns, "level": TURN_SIGNIFICANCE_LEVEL, "verdicts": verdicts})
    }

    /// The comparison as text: a line for each measured time.
    pub fn text(&self) -> String {
        let line = |(one, d): (&Measured, TimeDifference)| {
            let few = match d.too_few {
                true => format!("; at least {} turns are needed for a verdict", stats::MIN_TURNS),
                false => String::new(),
            };
            let [a, b] = [0, 1].map(|i| milliseconds_text(stats::median(&one.seconds[i])));
            format!(
                "{}: {} (ratio {:.3}, {:.3} to {:.3}, p {:.4}){few}; medians {a} and {b} of {} processes each",
                one.name,
                d.verdict.name(),
                d.ratio,
                d.interval[0],
                d.interval[1],
                d.p,
                self.turns,
            )
        };
        self.compared().map(line).collect::<Vec<_>>().join("\n")
    }
}
