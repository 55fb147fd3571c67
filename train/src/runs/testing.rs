//! Helpers for tests of whole runs: golden cases and comparison of output folders.

use std::fs;
use std::path::{Path, PathBuf};

use crate::file_names::{DIGESTS_FILE, METRICS_FILE, RUN_FILE, TRAINER_STATE_FILE};
use crate::hardware_metrics::HardwareMetrics;
use crate::metrics::StepMetrics;
use reel_model::checkpoint::Checkpoint;
use reel_model::widen::widen_to_f32;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// Returns the path of `tests/golden/train/NAME`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train").join(name)
}

/// Asserts that the weights changed from the folder `model` to the folder `out` as a golden case expects
/// (`expected.safetensors`). `limits` gives the allowed relative error of the change by weight name.
pub(crate) fn assert_weight_changes(
    name: &str,
    case: &Path,
    prefix: &str,
    limits: &Map<String, Value>,
    model: &Path,
    out: &Path,
) {
    let bytes = fs::read(case.join("expected.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let (before, after) = (Checkpoint::open(model).unwrap(), Checkpoint::open(out).unwrap());
    assert!(limits.len() >= 12);
    for (weight, limit) in limits {
        let values = |files: &Checkpoint| {
            let view = files.tensor(weight).unwrap();
            widen_to_f32(view.dtype, view.bytes).unwrap()
        };
        let (old, new, shape) = (values(&before), values(&after), before.tensor(weight).unwrap().shape.to_vec());
        let row = shape[1..].iter().product::<usize>();
        let rows = stored.tensor(&format!("{prefix}rows/{weight}")).unwrap();
        let rows = rows.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize);
        let delta = f32s(stored.tensor(&format!("{prefix}delta/{weight}")).unwrap().data());
        let got: Vec<f64> =
            rows.flat_map(|r| r * row..(r + 1) * row).map(|i| f64::from(new[i]) - f64::from(old[i])).collect();
        assert_eq!(got.len(), delta.len(), "{weight}");
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&delta).map(|(g, d)| g - f64::from(*d)))
            / norm(&mut delta.iter().map(|&d| f64::from(d)));
        assert!(error <= limit.as_f64().unwrap(), "{name}: the change of {weight} has a relative error of {error:.2e}");
    }
}

/// Returns the changes of all weights from the folder `model` to the folder `out`, concatenated.
pub(crate) fn weight_changes(model: &Path, out: &Path) -> Vec<f64> {
    let (before, after) = (Checkpoint::open(model).unwrap(), Checkpoint::open(out).unwrap());
    let config = reel_input::config::ModelConfig::open(model).unwrap();
    let values = |files: &Checkpoint, name: &str| {
        let view = files.tensor(name).unwrap();
        widen_to_f32(view.dtype, view.bytes).unwrap()
    };
    let change = |(name, _): (String, Vec<usize>)| {
        let (old, new) = (values(&before, &name), values(&after, &name));
        new.into_iter().zip(old).map(|(n, o)| f64::from(n) - f64::from(o)).collect::<Vec<_>>()
    };
    reel_model::checkpoint::expected_tensors(&config).into_iter().flat_map(change).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Returns the parsed lines of metrics.jsonl.
pub(crate) fn read_metrics(out: &Path) -> Vec<StepMetrics> {
    let text = fs::read_to_string(out.join(METRICS_FILE)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the parsed lines of metrics.jsonl, without the values that depend on the clock.
pub(crate) fn metrics_without_times(out: &Path) -> Vec<StepMetrics> {
    let without_times = |mut m: StepMetrics| {
        (m.grpo.rollout_seconds, m.grpo.train_seconds) = (None, None);
        StepMetrics { tokens_per_second: 0.0, step_seconds: 0.0, hardware: HardwareMetrics::default(), ..m }
    };
    read_metrics(out).into_iter().map(without_times).collect()
}

/// Returns the names and bytes of all files below a folder, except files that differ between equal runs: metrics (they
/// contain times), the lists of digests (they cover the metrics), event files, and run.json and trainer_state.json
/// (they contain paths).
pub(crate) fn read_output_files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if ![METRICS_FILE, RUN_FILE, TRAINER_STATE_FILE].contains(&name.as_str())
                && !name.starts_with("events.")
                && !name.ends_with(DIGESTS_FILE)
            {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Asserts that two folders have equal files. The message names the first file that differs.
pub(crate) fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (read_output_files(a), read_output_files(b));
    let names = |f: &[(String, Vec<u8>)]| f.iter().map(|x| x.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (x, y) in a.iter().zip(&b) {
        assert!(x.1 == y.1, "{} differs", x.0);
    }
}
