//! Runs the checks of a kernel, of a folder, or of all folders.

use super::{Check, CheckSetup, CheckStatistics};
use crate::catalogue::{FOLDERS, KernelFolder};

/// The result of a check.
#[derive(Clone, Debug)]
pub struct CheckOutcome {
    /// The name of the folder.
    pub folder: &'static str,
    /// The name of the check.
    pub check: &'static str,
    /// Statistics of the check, or what is wrong.
    pub result: Result<CheckStatistics, String>,
}

/// Returns the checks of the folder with this name, or of the folder that has a kernel of this name. Without a name,
/// returns all checks.
pub fn select_checks(name: Option<&str>) -> Vec<(&'static KernelFolder, &'static Check)> {
    let wanted = |folder: &&KernelFolder| match name {
        None => true,
        Some(name) => folder.name == name || folder.examples().iter().any(|e| e.launch.kernel.name == name),
    };
    FOLDERS.iter().filter(wanted).flat_map(|f| f.checks.iter().map(move |c| (f, c))).collect()
}

/// Runs checks one after the other and calls `each` with every outcome. Device `cpu` skips checks of the CUDA code.
pub fn run_checks(
    checks: &[(&'static KernelFolder, &'static Check)],
    setup: &CheckSetup,
    mut each: impl FnMut(&CheckOutcome),
) -> Vec<CheckOutcome> {
    let on_cpu = matches!(setup.device, super::CheckDevice::Cpu);
    let mut outcomes = Vec::new();
    for (folder, check) in checks.iter().filter(|(_, c)| !(on_cpu && c.cuda_only)) {
        let outcome = CheckOutcome { folder: folder.name, check: check.name, result: check.run(setup) };
        each(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}
