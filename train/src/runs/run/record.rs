//! Writes `run.json`, in which a run records its options, data and device. Compares `run.json` with the settings of a
//! later process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::Result;
use crate::options::TrainingOptions;
use crate::setup::RunSetup;
use reel_device::MatmulLibrary;
use reel_support::files::fingerprint::bytes_fingerprint;
use reel_support::files::json::redact_urls_in_json;
use serde_json::{Value, json};

use crate::runs::folder::output;
use crate::runs::folder::resume::{PlannedStepCount, RunState};

/// The data in `run.json` that come neither from the run's options nor from its state.
pub(super) struct RunJsonExtras {
    /// The total numbers of steps that the run has planned so far.
    lengths: Vec<PlannedStepCount>,
    /// The matrix-product library and its chosen algorithms.
    products: Option<MatmulLibrary>,
}

impl RunJsonExtras {
    /// Writes `run.json` at the start of a run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write<O: TrainingOptions>(
        setup: &RunSetup<O>,
        state: &RunState,
        lengths: Vec<PlannedStepCount>,
    ) -> Result<Self> {
        let recorded = Self { lengths, products: setup.trainer.device.matmul_library() };
        output::write_run_json(&setup.options.out, &recorded.run_json(setup, state))?;
        Ok(recorded)
    }

    /// Whether the device has a library of matrix products whose algorithms are recorded.
    pub(super) fn records_matmul_algorithms(&self) -> bool {
        self.products.is_some()
    }

    /// Updates `run.json` if the device has chosen new matrix-product algorithms. The device chooses an algorithm for
    /// each new shape.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn update_matmul_algorithms<O: TrainingOptions>(
        &mut self,
        setup: &RunSetup<O>,
        state: &RunState,
    ) -> Result<()> {
        let now = setup.trainer.device.matmul_library();
        if now != self.products {
            self.products = now;
            output::write_run_json(&setup.options.out, &self.run_json(setup, state))?;
        }
        Ok(())
    }

    /// Makes the content of `run.json`. User names, passwords and query strings of URLs are not recorded.
    pub(super) fn run_json<O: TrainingOptions>(&self, setup: &RunSetup<O>, state: &RunState) -> Value {
        let hardware = setup.trainer.device.hardware();
        let products = self.products.as_ref();
        let products = products.map(|p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}));
        let mut run = json!({
            "command": O::COMMAND,
            "version": env!("CARGO_PKG_VERSION"),
            "steps": state.steps,
            "lengths": self.lengths,
            "seed": setup.data.seed,
            "dtype": setup.trainer.dtype.name(),
            "device": setup.trainer.device.name(),
            "instruction_set": setup.trainer.device.instruction_set(),
            "machine": {"name": hardware.name, "driver": hardware.driver},
            "products": products,
            "model_hash": state.model_hash,
            "model_files": state.model_files,
            "data_hash": state.data_hash,
            "data_files": state.data_files,
            "working_directory": std::env::current_dir().ok(),
            "options": setup.reports.resolved,
        });
        let code = code_fingerprints(setup.options);
        if !code.is_empty() {
            run["code_files"] = json!(code);
        }
        redact_urls_in_json(&mut run);
        run
    }
}

/// Returns the fingerprint of each file with program code that the run uses ([`TrainingOptions::code_files`]), by
/// path.
pub(super) fn code_fingerprints(options: &impl TrainingOptions) -> BTreeMap<String, String> {
    let files = options.code_files().into_iter();
    let fingerprint =
        |path: PathBuf| Some((path.display().to_string(), bytes_fingerprint(&std::fs::read(&path).ok()?)));
    files.filter_map(fingerprint).collect()
}

/// Returns a warning if a file with program code has changed since `run`, an earlier `run.json`. A run may continue
/// with changed code, because a failed reward function has to be corrected.
pub(super) fn code_change_warning(run: &Value, options: &impl TrainingOptions) -> Option<String> {
    let then: BTreeMap<String, String> = serde_json::from_value(run.get("code_files")?.clone()).ok()?;
    let now = code_fingerprints(options);
    let (path, _) = now.iter().find(|(path, hash)| then.get(*path).is_some_and(|then| then != *hash))?;
    Some(format!("{path} has changed since the run began, so rewards and answers of tools may differ"))
}

/// Returns a warning if the device or its instruction set differs from that in `run`, an earlier `run.json`. The
/// steps of this process may then give other bits than the earlier process would.
pub fn device_change_warning(run: &Value, device: &reel_device::Device) -> Option<String> {
    let now = [("device", Some(device.name())), ("instruction_set", device.instruction_set())];
    let then = |key: &str| run.get(key).and_then(Value::as_str);
    let (key, now) = now.into_iter().find(|(key, now)| then(key).is_some_and(|then| Some(then) != *now))?;
    let then = then(key).unwrap_or_default();
    Some(match (key, now) {
        ("instruction_set", Some(now)) => format!(
            "the run used the instruction set {then} and this process uses {now}, so results may differ in bits; \
             REEL_CPU={then} selects that of the run"
        ),
        (_, now) => {
            format!(
                "the run used device {then} and this process uses {}, so results may differ in bits",
                now.unwrap_or("another")
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use reel_device::Device;

    use super::*;

    #[test]
    fn other_device_or_instruction_set_is_named() {
        let device = Device::cpu(1);
        let own = device.instruction_set().unwrap();
        assert_eq!(device_change_warning(&json!({"device": "cpu", "instruction_set": own}), &device), None);
        assert_eq!(device_change_warning(&json!({}), &device), None, "earlier versions did not record the device");
        let said = device_change_warning(&json!({"device": "cpu", "instruction_set": "neon"}), &device).unwrap();
        assert!(said.contains("neon") && said.contains(own) && said.contains("REEL_CPU=neon"), "{said}");
        let said = device_change_warning(&json!({"device": "cuda"}), &device).unwrap();
        assert!(said.contains("device cuda") && said.contains("cpu"), "{said}");
    }
}
