//! Helpers of tests that run a training command as several processes.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::support::{file_names_in, metrics_without_times};

/// The metrics of a run, without the values that depend on the clock or on the number of processes.
pub fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let mut lines = metrics_without_times(out);
    for line in lines.iter_mut().filter_map(|line| line.as_object_mut()) {
        line.retain(|name, _| name != "peak_bytes" && name != "frames_encoded");
    }
    lines
}

/// Asserts that two runs have the same metrics, and a checkpoint with the same weights and optimizer state.
#[track_caller]
pub fn same_results(a: &Path, b: &Path, checkpoint: &str) {
    assert_eq!(metrics(a), metrics(b));
    for folder in [checkpoint.to_string(), format!("{checkpoint}/training")] {
        let files = file_names_in(&a.join(&folder));
        assert_eq!(files, file_names_in(&b.join(&folder)));
        let tensors: Vec<&String> = files.iter().filter(|name| name.ends_with(".safetensors")).collect();
        assert!(!tensors.is_empty(), "{folder}: {files:?}");
        for name in tensors {
            let bytes = |out: &Path| fs::read(out.join(&folder).join(name)).expect("a file");
            assert!(bytes(a) == bytes(b), "{folder}/{name} differs");
        }
    }
}

/// Waits until `metrics.jsonl` has `steps` lines.
pub fn wait_for_steps(out: &Path, steps: usize) {
    let begun = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count() < steps {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not do {steps} steps in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that `parent` has started, in the order of their ranks.
pub fn children(parent: &Child) -> Vec<u32> {
    let id = parent.id();
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("a list of processes");
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}
