//! What a run records about itself in `run.json`, and what a later process compares with it.

use serde_json::{Value, json};

use crate::options::TrainingOptions;
use crate::run::RunSetup;
use crate::run_folder::resume::{self, PlannedStepCount, RunState};

/// The content of `run.json`. User names, passwords and queries of URLs are not recorded.
pub(super) fn run_json<O: TrainingOptions>(
    setup: &RunSetup<O>,
    state: &RunState,
    lengths: &[PlannedStepCount],
) -> Value {
    let hardware = setup.device.hardware();
    let products =
        setup.device.matmul_library().map(|p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}));
    let mut run = json!({
        "command": O::COMMAND,
        "version": env!("CARGO_PKG_VERSION"),
        "steps": state.steps,
        "lengths": lengths,
        "seed": setup.seed,
        "dtype": setup.dtype.name(),
        "device": setup.device.name(),
        "instruction_set": setup.device.instruction_set(),
        "machine": {"name": hardware.name, "driver": hardware.driver},
        "products": products,
        "model_hash": state.model_hash,
        "model_files": state.model_files,
        "data_hash": state.data_hash,
        "data_files": state.data_files,
        "working_directory": std::env::current_dir().ok(),
        "options": setup.resolved,
    });
    resume::redact(&mut run);
    run
}

/// How device or instruction set differ from those that `run`, an earlier `run.json`, names: a warning, because the
/// steps of this process may then have other bits.
pub fn difference_in_bits(run: &Value, device: &reel_runtime::Device) -> Option<String> {
    let now = [("device", Some(device.name())), ("instruction_set", device.instruction_set())];
    let then = |key: &str| run.get(key).and_then(Value::as_str);
    let (key, now) = now.into_iter().find(|(key, now)| then(key).is_some_and(|then| Some(then) != *now))?;
    let then = then(key).unwrap_or_default();
    Some(match (key, now) {
        ("instruction_set", Some(now)) => format!(
            "the run used the instruction set {then} and this process uses {now}, so bits may differ; \
             REEL_CPU={then} selects the run's"
        ),
        (_, now) => {
            format!("the run used device {then} and this process uses {}, so bits may differ", now.unwrap_or("another"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_runtime::Device;

    #[test]
    fn other_device_or_instruction_set_is_named() {
        let device = Device::cpu(1);
        let own = device.instruction_set().unwrap();
        assert_eq!(difference_in_bits(&json!({"device": "cpu", "instruction_set": own}), &device), None);
        assert_eq!(difference_in_bits(&json!({}), &device), None, "earlier versions did not record it");
        let said = difference_in_bits(&json!({"device": "cpu", "instruction_set": "neon"}), &device).unwrap();
        assert!(said.contains("neon") && said.contains(own) && said.contains("REEL_CPU=neon"), "{said}");
        let said = difference_in_bits(&json!({"device": "cuda"}), &device).unwrap();
        assert!(said.contains("device cuda") && said.contains("cpu"), "{said}");
    }
}
