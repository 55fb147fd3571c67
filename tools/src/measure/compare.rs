//! Tests whether one result of `reel bench --json` is faster than another, and whether both were measured under the
//! same conditions.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use reel_support::diagnostic::input;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::measure::stats::{self, TimeDifference};

/// Two clock rates count as equal if their ratio differs from 1 by at most this much.
const CLOCK_TOLERANCE: f64 = 0.02;

/// The times of all rounds, in seconds, of a whole measurement or of one kernel in it.
pub(crate) struct TimeSamples {
    pub(crate) name: String,
    /// Seconds of each round.
    pub(crate) seconds: Vec<f64>,
}

/// The comparison of two results of `reel bench`.
pub struct ResultComparison {
    verdicts: Vec<(TimeDifference, TimeSamples, TimeSamples)>,
    /// Conditions that differ between the two results, as text.
    differs: Vec<String>,
    moved: Vec<OpChange>,
    before: Value,
    after: Value,
}

/// Compares the result file `b` with the result file `a`.
///
/// # Errors
/// A file cannot be read or is not a result with round times, or the two files measured different things.
pub fn compare_results(a: &Path, b: &Path) -> Result<ResultComparison> {
    let (before, after) = (read(a)?, read(b)?);
    const HELP: &str = "compare results of the same benchmark with the same sizes";
    for key in ["op", "tokens", "batch", "context", "sizes"] {
        if before[key] != after[key] {
            let what = format!("{key} is {}, but {} in {}", after[key], before[key], a.display());
            return Err(Error::failed(b.display().to_string(), what, HELP));
        }
    }
    let (first, mut second) = (time_samples(a, &before)?, time_samples(b, &after)?);
    let mut differs = differences(&before, &after);
    let mut verdicts = Vec::new();
    for one in first {
        match second.iter().position(|other| other.name == one.name) {
            Some(i) => {
                let other = second.swap_remove(i);
                verdicts.push((stats::compare_times(&one.seconds, &other.seconds), one, other));
            }
            None => differs.push(format!("{} is only in {}", one.name, a.display())),
        }
    }
    differs.extend(second.iter().map(|other| format!("{} is only in {}", other.name, b.display())));
    if verdicts.is_empty() {
        return Err(Error::failed(
            b.display().to_string(),
            format!("has no measurement in common with {}", a.display()),
            HELP,
        ));
    }
    let moved = op_changes(&before, &after);
    Ok(ResultComparison { verdicts, differs, moved, before, after })
}

impl ResultComparison {
    /// This comparison as `reel bench --compare --json` prints it.
    pub fn json(&self) -> Value {
        let verdict = |(d, first, _): &(TimeDifference, TimeSamples, TimeSamples)| {
            json!({
                "name": first.name, "ratio": d.ratio, "interval": d.interval, "p": d.p, "verdict": d.verdict.name(),
                "too_few_rounds": d.too_few,
            })
        };
        let verdicts: Vec<Value> = self.verdicts.iter().map(verdict).collect();
        json!({
            "op": self.before["op"], "processes": 1, "level": stats::SIGNIFICANCE_LEVEL, "verdicts": verdicts, "differs": self.differs,
            "moved": self.moved.iter().map(OpChange::json).collect::<Vec<_>>(), "a": self.before, "b": self.after,
        })
    }

    /// This comparison as lines of text: a verdict for each measured time, differing conditions, and the ops that
    /// changed most.
    pub fn text(&self) -> String {
        let verdicts = self.verdicts.iter().map(|(difference, a, b)| verdict_line(difference, a, b));
        let mut lines: Vec<String> = verdicts.collect();
        lines.extend(self.differs.iter().map(|what| format!("measured under different conditions: {what}")));
        lines.push("each result comes from one process, and processes of one program also differ; use --with to compare programs".to_string());
        for m in self.moved.iter().take(MAX_OP_CHANGES) {
            let [a, b] = m.seconds.map(milliseconds_text);
            let mut line = String::new();
            // Writing to a String cannot fail.
            let _ = write!(line, "  {:34} {a} -> {b} (one profiled round of each result)", m.op);
            lines.push(line);
        }
        lines.join("\n")
    }
}

/// Maximum number of ops in the text, which lists the ops with the largest change of time.
const MAX_OP_CHANGES: usize = 5;

/// An op with different times in the profiled rounds of the two results.
struct OpChange {
    op: String,
    seconds: [f64; 2],
}

impl OpChange {
    /// The change of the op's time in seconds.
    fn change(&self) -> f64 {
        (self.seconds[1] - self.seconds[0]).abs()
    }

    fn json(&self) -> Value {
        json!({"op": self.op, "a": self.seconds[0], "b": self.seconds[1]})
    }
}

/// The ops with different times in the two results, largest change first. An op that is missing in one result counts
/// as 0 s in that result.
///
/// The times are those of a single round. They show which ops may have changed, but not whether a change is
/// statistically significant.
fn op_changes(a: &Value, b: &Value) -> Vec<OpChange> {
    let mut all: Vec<OpChange> = Vec::new();
    for (i, result) in [a, b].into_iter().enumerate() {
        for op in result["ops"].as_array().into_iter().flatten() {
            let (Some(name), Some(seconds)) = (op["op"].as_str(), op["seconds"].as_f64()) else { continue };
            match all.iter_mut().find(|m| m.op == name) {
                Some(known) => known.seconds[i] = seconds,
                None => {
                    let mut one = OpChange { op: name.into(), seconds: [0.0; 2] };
                    one.seconds[i] = seconds;
                    all.push(one);
                }
            }
        }
    }
    all.retain(|m| m.change() > 0.0);
    all.sort_by(|x, y| y.change().total_cmp(&x.change()));
    all
}

fn verdict_line(d: &TimeDifference, a: &TimeSamples, b: &TimeSamples) -> String {
    let few = if d.too_few { "; too few rounds to tell" } else { "" };
    format!(
        "{}: {} (ratio {:.3}, {:.3} to {:.3}, p {:.4}){few}; medians {} and {} of {} and {} rounds",
        a.name,
        d.verdict.name(),
        d.ratio,
        d.interval[0],
        d.interval[1],
        d.p,
        milliseconds_text(stats::median(&a.seconds)),
        milliseconds_text(stats::median(&b.seconds)),
        a.seconds.len(),
        b.seconds.len(),
    )
}

pub(crate) fn milliseconds_text(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

fn read(path: &Path) -> Result<Value> {
    let text = input::read_text(path, input::MAX_MESSAGES_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
    serde_json::from_str(&text).map_err(|e| not_a_result(path, &format!("not JSON: {e}")))
}

fn not_a_result(path: &Path, what: &str) -> Error {
    Error::failed(path.display().to_string(), what, "give a file that reel bench --json printed")
}

/// Reads the round times from a result: the times of each kernel if the result has kernels, otherwise the times of the
/// whole measurement.
pub(crate) fn time_samples(path: &Path, result: &Value) -> Result<Vec<TimeSamples>> {
    let one = |name: &Value, value: &Value| {
        let seconds: Option<Vec<f64>> = value["samples"].as_array().and_then(|s| s.iter().map(Value::as_f64).collect());
        let seconds = seconds.filter(|s| !s.is_empty() && s.iter().all(|&x| x > 0.0 && x.is_finite()));
        let name = name.as_str().ok_or_else(|| not_a_result(path, "one of its measurements has no name"))?.to_string();
        let seconds =
            seconds.ok_or_else(|| not_a_result(path, &format!("{name} has no `samples` (seconds of each round)")))?;
        Ok(TimeSamples { name, seconds })
    };
    match result["kernels"].as_array() {
        Some(kernels) => kernels.iter().map(|k| one(&k["kernel"], k)).collect(),
        None => Ok(vec![one(&result["op"], result)?]),
    }
}

/// Returns the conditions that differ between two results, each as a line of text: machine, driver, device, dtype,
/// model, threads, options, versions, clocks and reasons for throttling.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    let conditions = [
        ("machine", "/machine/name"),
        ("driver", "/machine/driver"),
        ("device", "/device"),
        ("dtype", "/dtype"),
        ("quantize", "/quantize"),
        ("model", "/model"),
        ("threads", "/threads"),
        ("gradient checkpointing", "/gradient_checkpointing"),
        ("optim", "/optim"),
        ("matrix product library", "/products/library"),
        ("reel version", "/version"),
    ];
    let at = |v: &Value, pointer: &str| v.pointer(pointer).cloned().unwrap_or(Value::Null);
    let mut all: Vec<String> = conditions
        .iter()
        .map(|(name, pointer)| (name, at(a, pointer), at(b, pointer)))
        .filter(|(_, before, after)| before != after)
        .map(|(name, before, after)| format!("{name}: {} and {}", plain(&before), plain(&after)))
        .collect();
    for (name, pointer) in [("SM clock", "/clocks/sm_mhz/median"), ("memory clock", "/clocks/memory_mhz/median")] {
        match (at(a, pointer).as_f64(), at(b, pointer).as_f64()) {
            (Some(before), Some(after)) if (after / before - 1.0).abs() > CLOCK_TOLERANCE => {
                all.push(format!("{name}: {before:.0} and {after:.0} MHz"));
            }
            (Some(_), None) | (None, Some(_)) => all.push(format!("{name}: recorded in only one of the results")),
            _ => {}
        }
    }
    let reasons = |v: &Value| -> BTreeSet<String> {
        let throttled = at(v, "/clocks/throttled");
        // `gpu_idle` does not count: every GPU is idle for a moment before the first launch of a round.
        throttled.as_object().map(|o| o.keys().filter(|k| *k != "gpu_idle").cloned().collect()).unwrap_or_default()
    };
    let (before, after) = (reasons(a), reasons(b));
    if before != after {
        let words = |s: BTreeSet<String>| {
            if s.is_empty() { "none".into() } else { s.into_iter().collect::<Vec<_>>().join(", ") }
        };
        all.push(format!("reasons for throttling: {} and {}", words(before), words(after)));
    }
    all
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(mhz: f64, throttled: &[&str]) -> Value {
        let throttled: serde_json::Map<String, Value> = throttled.iter().map(|r| (r.to_string(), json!(3))).collect();
        json!({
            "op": "train", "device": "cuda", "dtype": "bf16", "model": "7b", "machine": {"name": "NVIDIA H200", "driver": "13.0"},
            "clocks": {"sm_mhz": {"min": 1.0, "median": mhz, "max": 2.0}, "throttled": throttled}, "version": "1",
        })
    }

    #[test]
    fn different_conditions_are_listed() {
        let a = result(1980.0, &["gpu_idle"]);
        assert!(differences(&a, &a).is_empty());
        assert!(differences(&a, &result(1960.0, &[])).is_empty());
        assert_eq!(
            differences(&a, &result(1500.0, &["sw_power_cap"])),
            ["SM clock: 1980 and 1500 MHz", "reasons for throttling: none and sw_power_cap"]
        );
        let mut b = a.clone();
        (b["machine"]["name"], b["dtype"], b["model"]) = (json!("NVIDIA H100"), json!("f32"), json!("3b"));
        b["clocks"] = Value::Null;
        assert_eq!(
            differences(&a, &b),
            [
                "machine: NVIDIA H200 and NVIDIA H100",
                "dtype: bf16 and f32",
                "model: 7b and 3b",
                "SM clock: recorded in only one of the results"
            ]
        );
    }

    #[test]
    fn ops_are_sorted_by_change_of_time() {
        let ops = |list: &[(&str, f64)]| json!({"ops": list.iter().map(|(op, s)| json!({"op": op, "seconds": s})).collect::<Vec<_>>()});
        let a = ops(&[("matmul_fwd", 3.0), ("rope", 1.0), ("swiglu", 0.5)]);
        let b = ops(&[("matmul_fwd", 3.25), ("rope", 1.0), ("fused", 0.125)]);
        let got: Vec<(String, [f64; 2])> = op_changes(&a, &b).into_iter().map(|m| (m.op, m.seconds)).collect();
        let want = [("swiglu", [0.5, 0.0]), ("matmul_fwd", [3.0, 3.25]), ("fused", [0.0, 0.125])];
        assert_eq!(got, want.map(|(op, seconds)| (op.to_string(), seconds)));
        assert!(op_changes(&a, &a).is_empty() && op_changes(&json!({}), &json!({})).is_empty());
    }
}
