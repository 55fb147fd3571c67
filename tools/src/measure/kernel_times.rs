//! Reads the times of a run's kernels from any result that has them:
//!
//! | file | key | times of |
//! |---|---|---|
//! | `reel kernels bench --json` | `kernels` | one launch at the catalogue's size, on a GPU |
//! | `reel bench op --json` | `kernels` | one launch |
//! | `reel bench prefill … --json` | `ops` | all launches of a round together |
//! | `--trace` of any command | `traceEvents` | all launches of the command together |

use std::collections::BTreeMap;
use std::path::Path;

use reel_support::diagnostic::input;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::measure::cache::CacheCeiling;
use crate::measure::ceilings::Ceilings;

/// The measured time of a kernel in a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KernelTime {
    pub kernel: String,
    /// Size of the launch as text; empty if the time is a sum over launches of several sizes.
    pub size: String,
    pub launches: u64,
    /// Seconds of all launches together.
    pub seconds: f64,
    /// Operations and bytes of all launches together; `None` where the file has only times.
    pub cost: Option<(f64, f64)>,
    /// Least possible seconds of all launches together, on the machine that ran the launches.
    pub floor: Option<f64>,
}

/// The contents of a file of times.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KernelTimes {
    /// The GPU or CPU that ran the kernels.
    pub machine: Option<String>,
    /// Whether a CPU ran the kernels.
    pub is_of_cpu: bool,
    /// The ceilings that were measured on that machine.
    pub ceilings: Option<Ceilings>,
    pub kernels: Vec<KernelTime>,
}

impl KernelTimes {
    /// Reads the kernel times from a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not one of the results in the table at the top of this file.
    pub(crate) fn read(path: &Path) -> Result<KernelTimes> {
        let wrong = |what: &str| {
            let help = "give a file that `reel kernels bench --json`, `reel bench … --json` or --trace wrote";
            Error::failed(path.display().to_string(), what, help)
        };
        let text = input::read_text(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
        let list = |key: &str| value[key].as_array();
        let kernels = match (list("traceEvents"), list("kernels"), list("ops")) {
            (Some(events), ..) => traced(events),
            (_, Some(kernels), _) => {
                listed(kernels, "kernel").ok_or_else(|| wrong("`kernels`: an entry lacks `kernel` or `seconds`"))?
            }
            (_, _, Some(ops)) => listed(ops, "op").ok_or_else(|| wrong("`ops`: an entry lacks `op` or `seconds`"))?,
            _ => return Err(wrong("has none of the lists `kernels`, `ops` and `traceEvents`")),
        };
        if kernels.is_empty() {
            return Err(wrong("has no kernel with a time above 0"));
        }
        let names = ["/gpu", "/machine/name", "/otherData/machine"];
        let machine = names.iter().find_map(|key| value.pointer(key)?.as_str());
        let is_of_cpu =
            ["/device", "/otherData/device"].iter().any(|key| value.pointer(key).is_some_and(|d| d == "cpu"));
        Ok(KernelTimes { machine: machine.map(str::to_string), is_of_cpu, ceilings: ceilings(&value), kernels })
    }
}

/// The ceilings in a result, if it has any.
fn ceilings(value: &Value) -> Option<Ceilings> {
    let number = |value: &Value, key: &str| value[key].as_f64().filter(|n| *n > 0.0);
    let read = |from: &Value, keys: [&str; 4], unit: f64| {
        let cache = &from["cache"];
        let of_cache = |capacity: f64| Some(CacheCeiling { capacity, bytes: unit * number(cache, keys[2])? });
        Some(Ceilings {
            f32: unit * number(from, keys[0])?,
            bf16: unit * number(from, keys[1])?,
            bytes: unit * number(from, keys[2])?,
            cache: number(cache, keys[3]).and_then(of_cache),
        })
    };
    let plain = ["f32", "bf16", "bytes", "capacity"];
    let in_giga = ["gflops_f32", "gflops_bf16", "gigabytes_per_second", "bytes"];
    let places = [(&value["ceilings"], plain, 1.0), (&value["otherData"]["ceilings"], plain, 1.0)];
    let found = places.into_iter().find_map(|(from, keys, unit)| read(from, keys, unit));
    found.or_else(|| read(&value["roofline"], in_giga, 1e9))
}

/// Reads the kernels from a list of entries. The key `name` of an entry holds the kernel's name. `None` if an entry
/// has no name or no time.
fn listed(entries: &[Value], name: &str) -> Option<Vec<KernelTime>> {
    let one = |entry: &Value| {
        let number = |key: &str| entry[key].as_f64().filter(|n| *n >= 0.0);
        Some(KernelTime {
            kernel: entry[name].as_str()?.to_string(),
            size: entry["size"].as_str().unwrap_or_default().to_string(),
            launches: entry["launches"].as_u64().unwrap_or(1),
            seconds: number("seconds").filter(|s| *s > 0.0)?,
            cost: number("flops").zip(number("bytes")),
            floor: number("floor_seconds"),
        })
    };
    entries.iter().map(one).collect()
}

/// The kernels of a trace, each with the sums over its launches.
fn traced(events: &[Value]) -> Vec<KernelTime> {
    let mut kernels: BTreeMap<&str, KernelTime> = BTreeMap::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        let number = |key: &str| event.pointer(key).and_then(Value::as_f64).filter(|n| *n >= 0.0);
        let launch = (event["name"].as_str(), number("/dur"), number("/args/flops"), number("/args/bytes"));
        let (Some(name), Some(microseconds), Some(flops), Some(bytes)) = launch else { continue };
        let seconds = microseconds / 1e6;
        let sum = kernels.entry(name).or_insert_with(|| KernelTime {
            kernel: name.to_string(),
            size: String::new(),
            launches: 0,
            seconds: 0.0,
            cost: Some((0.0, 0.0)),
            floor: Some(0.0),
        });
        sum.launches += 1;
        sum.seconds += seconds;
        sum.cost = sum.cost.map(|(f, b)| (f + flops, b + bytes));
        sum.floor = sum.floor.zip(number("/args/share_of_ceiling")).map(|(floor, share)| floor + share * seconds);
    }
    kernels.into_values().filter(|k| k.seconds > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<KernelTimes> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("times.json");
        std::fs::write(&path, value.to_string()).unwrap();
        KernelTimes::read(&path)
    }

    #[test]
    fn results_of_all_kinds_are_read() {
        let bench = json!({
            "machine": {"name": "cpu x"}, "device": "cpu",
            "roofline": {
                "gflops_f32": 2.0, "gflops_bf16": 4.0, "gigabytes_per_second": 8.0,
                "cache": {"bytes": 100.0, "gigabytes_per_second": 9.0},
            },
            "ops": [
                {"op": "add_f32", "launches": 3, "seconds": 0.5, "flops": 7.0, "bytes": 8.0, "floor_seconds": 0.25},
            ],
        });
        let times = read(&bench).unwrap();
        let cache = Some(CacheCeiling { capacity: 100.0, bytes: 9e9 });
        assert!(times.is_of_cpu);
        assert_eq!(times.ceilings, Some(Ceilings { f32: 2e9, bf16: 4e9, bytes: 8e9, cache }));
        let add = &times.kernels[0];
        assert_eq!((times.machine.as_deref(), add.launches, add.cost), (Some("cpu x"), 3, Some((7.0, 8.0))));

        let args = json!({"flops": 1.0, "bytes": 2.0, "share_of_ceiling": 0.5});
        let launch = |us: f64| json!({"ph": "X", "name": "add_f32", "dur": us, "args": args});
        let span = json!({"ph": "X", "name": "decode", "dur": 9.0, "args": {}});
        let ceilings = json!({"f32": 1.0, "bf16": 2.0, "bytes": 3.0, "cache": null});
        let about = json!({"machine": "cpu y", "device": "cpu", "ceilings": ceilings});
        let trace = json!({"traceEvents": [launch(2e6), span, launch(4e6)], "otherData": about});
        let times = read(&trace).unwrap();
        assert!(times.is_of_cpu);
        let sums = KernelTime {
            kernel: "add_f32".into(),
            size: String::new(),
            launches: 2,
            seconds: 6.0,
            cost: Some((2.0, 4.0)),
            floor: Some(3.0),
        };
        assert_eq!((times.kernels, times.ceilings.map(|c| c.bytes)), (vec![sums], Some(3.0)));

        let single = json!({"gpu": "NVIDIA H200", "kernels": [{"kernel": "add_f32", "size": "n=1", "seconds": 1e-3}]});
        let times = read(&single).unwrap();
        let add = &times.kernels[0];
        assert_eq!((times.machine.as_deref(), add.cost, add.launches), (Some("NVIDIA H200"), None, 1));
        assert!(!times.is_of_cpu);
    }

    #[test]
    fn other_files_are_refused() {
        for (value, what) in [
            (json!({}), "has none of the lists"),
            (json!({"kernels": [{"kernel": "a"}]}), "lacks `kernel` or `seconds`"),
            (json!({"ops": [{"op": "a", "seconds": 0.0}]}), "lacks `op` or `seconds`"),
            (json!({"traceEvents": []}), "has no kernel"),
        ] {
            let error = read(&value).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("reel bench"), "{error}");
        }
    }
}
