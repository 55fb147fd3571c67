//! `reel bench --compare A.json B.json`: is B faster, and were both measured alike?

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::stats::{self, Difference};
use crate::common::Common;
use crate::fail::failed;
use crate::output;

/// Clocks that are closer than this are alike.
const CLOCKS: f64 = 0.02;

/// One of the things that a result has times of.
struct Timed {
    name: String,
    samples: Vec<f64>,
}

/// Prints the verdicts, after making sure that both measured the same.
pub fn run(common: &Common, a: &Path, b: &Path) -> Result<()> {
    let (before, after) = (read(a)?, read(b)?);
    for key in ["op", "tokens", "batch", "context", "sizes"] {
        if before[key] != after[key] {
            let what = format!("{key} is {}, but {} in {}", after[key], before[key], a.display());
            return Err(failed(b.display(), what, "compare results of the same measurement"));
        }
    }
    let (first, mut second) = (timed(a, &before)?, timed(b, &after)?);
    let mut differs = differences(&before, &after);
    let mut verdicts = Vec::new();
    for one in first {
        match second.iter().position(|other| other.name == one.name) {
            Some(i) => {
                let other = second.swap_remove(i);
                verdicts.push((stats::compare(&one.samples, &other.samples), one, other));
            }
            None => differs.push(format!("{} is only in {}", one.name, a.display())),
        }
    }
    differs.extend(second.iter().map(|other| format!("{} is only in {}", other.name, b.display())));
    if verdicts.is_empty() {
        return Err(failed(
            b.display(),
            "has nothing that the other has too",
            "compare results of the same measurement",
        ));
    }
    if common.json {
        let one = |(d, first, _): &(Difference, Timed, Timed)| {
            json!({
                "name": first.name, "ratio": d.ratio, "interval": d.interval, "p": d.p, "verdict": d.verdict.name(),
                "too_few_rounds": d.too_few,
            })
        };
        let verdicts: Vec<Value> = verdicts.iter().map(one).collect();
        return output::json(&json!({
            "op": before["op"], "level": stats::LEVEL, "verdicts": verdicts, "differs": differs,
            "moved": moved(&before, &after).iter().map(Moved::json).collect::<Vec<_>>(), "a": before, "b": after,
        }));
    }
    for (difference, first, second) in &verdicts {
        say(difference, first, second)?;
    }
    differs.iter().try_for_each(|what| output::line(format!("not measured alike: {what}")))?;
    for m in moved(&before, &after).iter().take(MOST_MOVED) {
        let (a, b) = (milliseconds(m.seconds[0]), milliseconds(m.seconds[1]));
        output::line(format!("  {:34} {a} -> {b}, in the one round that was profiled of each", m.op))?;
    }
    Ok(())
}

/// Ops whose times are told in words: those that changed most.
const MOST_MOVED: usize = 5;

/// An op's seconds in the profiled round of each.
struct Moved {
    op: String,
    seconds: [f64; 2],
}

impl Moved {
    fn by(&self) -> f64 {
        (self.seconds[1] - self.seconds[0]).abs()
    }

    fn json(&self) -> Value {
        json!({"op": self.op, "a": self.seconds[0], "b": self.seconds[1]})
    }
}

/// The ops of both, those that changed most first; one that a result has not took no time there. One round each says where to look,
/// not whether a change is more than chance.
fn moved(a: &Value, b: &Value) -> Vec<Moved> {
    let mut all: Vec<Moved> = Vec::new();
    for (i, result) in [a, b].into_iter().enumerate() {
        for op in result["ops"].as_array().into_iter().flatten() {
            let (Some(name), Some(seconds)) = (op["op"].as_str(), op["seconds"].as_f64()) else { continue };
            match all.iter_mut().find(|m| m.op == name) {
                Some(known) => known.seconds[i] = seconds,
                None => {
                    let mut one = Moved { op: name.into(), seconds: [0.0; 2] };
                    one.seconds[i] = seconds;
                    all.push(one);
                }
            }
        }
    }
    all.retain(|m| m.by() > 0.0);
    all.sort_by(|x, y| y.by().total_cmp(&x.by()));
    all
}

fn say(d: &Difference, a: &Timed, b: &Timed) -> Result<()> {
    let few = if d.too_few { "; too few rounds to tell" } else { "" };
    output::line(format!(
        "{}: {} (ratio {:.3}, {:.3} to {:.3}, p {:.4}){few}; medians {} and {} of {} and {} rounds",
        a.name,
        d.verdict.name(),
        d.ratio,
        d.interval[0],
        d.interval[1],
        d.p,
        milliseconds(stats::median(&a.samples)),
        milliseconds(stats::median(&b.samples)),
        a.samples.len(),
        b.samples.len(),
    ))
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| output::not_read(path, e))?;
    serde_json::from_str(&text).map_err(|e| not_ours(path, &format!("not JSON: {e}")))
}

fn not_ours(path: &Path, what: &str) -> anyhow::Error {
    failed(path.display(), what, "give a file that reel bench --json printed")
}

/// The times of a result: one set, or one a kernel.
fn timed(path: &Path, result: &Value) -> Result<Vec<Timed>> {
    let one = |name: &Value, value: &Value| {
        let samples: Option<Vec<f64>> = value["samples"].as_array().and_then(|s| s.iter().map(Value::as_f64).collect());
        let samples = samples.filter(|s| !s.is_empty() && s.iter().all(|&x| x > 0.0 && x.is_finite()));
        let name = name.as_str().ok_or_else(|| not_ours(path, "a measurement has no name"))?.to_string();
        let samples =
            samples.ok_or_else(|| not_ours(path, &format!("{name} has no samples, the seconds of its rounds")))?;
        Ok(Timed { name, samples })
    };
    match result["kernels"].as_array() {
        Some(kernels) => kernels.iter().map(|k| one(&k["kernel"], k)).collect(),
        None => Ok(vec![one(&result["op"], result)?]),
    }
}

/// What else is not the same: machine, type, model, clocks.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    let places = [
        ("machine", "/machine/name"),
        ("driver", "/machine/driver"),
        ("device", "/device"),
        ("dtype", "/dtype"),
        ("model", "/model"),
        ("threads", "/threads"),
        ("gradient checkpointing", "/gradient_checkpointing"),
        ("optim", "/optim"),
        ("library of products", "/products/library"),
        ("version of reel", "/version"),
    ];
    let at = |v: &Value, place: &str| v.pointer(place).cloned().unwrap_or(Value::Null);
    let mut all: Vec<String> = places
        .iter()
        .map(|(name, place)| (name, at(a, place), at(b, place)))
        .filter(|(_, before, after)| before != after)
        .map(|(name, before, after)| format!("{name}: {} and {}", plain(&before), plain(&after)))
        .collect();
    for (name, place) in [("SM clock", "/clocks/sm_mhz/median"), ("memory clock", "/clocks/memory_mhz/median")] {
        match (at(a, place).as_f64(), at(b, place).as_f64()) {
            (Some(before), Some(after)) if (after / before - 1.0).abs() > CLOCKS => {
                all.push(format!("{name}: {before:.0} and {after:.0} MHz"));
            }
            (Some(_), None) | (None, Some(_)) => all.push(format!("{name}: known of one only")),
            _ => {}
        }
    }
    let reasons = |v: &Value| -> BTreeSet<String> {
        let throttled = at(v, "/clocks/throttled");
        // An idle moment before the first launch is not what a round is about.
        throttled.as_object().map(|o| o.keys().filter(|k| *k != "gpu_idle").cloned().collect()).unwrap_or_default()
    };
    let (before, after) = (reasons(a), reasons(b));
    if before != after {
        let words = |s: BTreeSet<String>| {
            if s.is_empty() { "not".into() } else { s.into_iter().collect::<Vec<_>>().join(", ") }
        };
        all.push(format!("throttled: {} and {}", words(before), words(after)));
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
    fn what_was_not_alike_is_said() {
        let a = result(1980.0, &["gpu_idle"]);
        assert!(differences(&a, &a).is_empty());
        assert!(differences(&a, &result(1960.0, &[])).is_empty());
        assert_eq!(
            differences(&a, &result(1500.0, &["sw_power_cap"])),
            ["SM clock: 1980 and 1500 MHz", "throttled: not and sw_power_cap"]
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
                "SM clock: known of one only"
            ]
        );
    }

    #[test]
    fn ops_are_told_by_how_much_they_changed() {
        let ops = |list: &[(&str, f64)]| json!({"ops": list.iter().map(|(op, s)| json!({"op": op, "seconds": s})).collect::<Vec<_>>()});
        let a = ops(&[("matmul_fwd", 3.0), ("rope", 1.0), ("swiglu", 0.5)]);
        let b = ops(&[("matmul_fwd", 3.25), ("rope", 1.0), ("fused", 0.125)]);
        let told: Vec<(String, [f64; 2])> = moved(&a, &b).into_iter().map(|m| (m.op, m.seconds)).collect();
        let want = [("swiglu", [0.5, 0.0]), ("matmul_fwd", [3.0, 3.25]), ("fused", [0.0, 0.125])];
        assert_eq!(told, want.map(|(op, seconds)| (op.to_string(), seconds)));
        assert!(moved(&a, &a).is_empty() && moved(&json!({}), &json!({})).is_empty());
    }
}
