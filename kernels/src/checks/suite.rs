//! Runs of many checks: those of a kernel, a folder, or all.

use super::{Check, Ran, Setup};
use crate::catalogue::{FOLDERS, Folder};

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The folder.
    pub folder: &'static str,
    /// The check's name.
    pub check: &'static str,
    /// What it did, or what did not hold.
    pub result: Result<Ran, String>,
}

/// The checks of the folder of this name, or of the folder that holds the kernel of this name; all without one.
pub fn select(name: Option<&str>) -> Vec<(&'static Folder, &'static Check)> {
    let wanted = |folder: &&Folder| match name {
        None => true,
        Some(name) => folder.name == name || folder.examples().iter().any(|e| e.launch.kernel.name == name),
    };
    FOLDERS.iter().filter(wanted).flat_map(|f| f.checks.iter().map(move |c| (f, c))).collect()
}

/// Runs checks one after the other; `each` sees every outcome as it comes. What is about the cpu alone, or the CUDA code
/// alone, is left out on the other device.
pub fn run_all(
    checks: &[(&'static Folder, &'static Check)],
    setup: &Setup,
    mut each: impl FnMut(&Outcome),
) -> Vec<Outcome> {
    let on_cpu = matches!(setup.device, super::Device::Cpu);
    let mut outcomes = Vec::new();
    for (folder, check) in checks.iter().filter(|(_, c)| !(on_cpu && c.cuda_only)) {
        let outcome = Outcome { folder: folder.name, check: check.name, result: check.run(setup) };
        each(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}
