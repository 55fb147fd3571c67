//! `reel kernels check --device …`: runs the kernels and compares their results with their f64 formulas.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use reel_device::compile;
use reel_kernels::checks::suite::{CheckOutcome, run_checks, select_checks};
use reel_kernels::checks::{CheckDevice, CheckSetup, GpuComparison};
use reel_tools::measure::catalogue::find_example_calls;
use serde_json::{Value, json};

use super::open_gpu;
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::output;

/// Number of interleavings to simulate without `--interleavings`; the unit tests use the same number.
const INTERLEAVINGS: u32 = 8;

/// Runs the checks of one kernel, of a folder, or of all kernels.
pub fn run(common: &CommonOptions, kernel: Option<&str>, compare_with_simulator: bool) -> Result<()> {
    if let Some(name) = kernel {
        find_example_calls(name)?;
    }
    let device = match common.device.as_deref() {
        Some("cpu") => CheckDevice::Cpu,
        Some("sim") => {
            compile::check_nvrtc()?;
            CheckDevice::Sim
        }
        Some(name) if name == "cuda" || name.starts_with("cuda:") => {
            let alternative = match compare_with_simulator {
                true => "give --device sim, and leave out --compare",
                false => "choose --device cpu or --device sim",
            };
            CheckDevice::Gpu(Rc::new(open_gpu(name, alternative)?))
        }
        other => {
            let name = other.unwrap_or_default();
            return Err(usage_error(
                "--device",
                format!("{name}: kernels cannot be checked on this device"),
                "use cpu, sim or cuda",
            ));
        }
    };
    if compare_with_simulator && !matches!(device, CheckDevice::Gpu(_)) {
        return Err(usage_error(
            "--compare",
            "compares a GPU with the simulator, so it needs a GPU",
            "use --device cuda",
        ));
    }
    let checks = select_checks(kernel);
    let only = kernel.filter(|name| checks.iter().all(|(f, _)| f.name != *name)).map(str::to_string);
    let interleavings = common.interleavings.unwrap_or(INTERLEAVINGS).into();
    let setup = CheckSetup {
        seed: common.seed(),
        interleavings,
        compare: compare_with_simulator,
        only,
        ..CheckSetup::new(device)
    };
    let mut print_error = None;
    let outcomes = run_checks(&checks, &setup, |o| {
        if !common.json && print_error.is_none() {
            print_error = output::print_line(line(o)).err();
        }
    });
    if let Some(e) = print_error {
        return Err(e);
    }
    let compared = compared(&outcomes);
    let bad: Vec<&CheckOutcome> = outcomes.iter().filter(|o| o.result.is_err()).collect();
    if common.json {
        let checks: Vec<Value> = outcomes.iter().map(to_json).collect();
        let compared: Vec<Value> = compared.iter().map(|(k, c)| comparison(k, c)).collect();
        output::print_json(&json!({"ok": bad.is_empty(), "seed": setup.seed, "checks": checks, "compared": compared}))?;
    } else {
        for (kernel, all) in &compared {
            output::print_line(comparison(kernel, all))?;
        }
    }
    let launches: usize = outcomes.iter().filter_map(|o| o.result.as_ref().ok()).map(|ran| ran.launches).sum();
    match bad.first() {
        None if launches == 0 && setup.only.is_some() => Err(failed(
            kernel.unwrap_or("kernels"),
            "there is no check of this kernel for this device",
            "check its whole folder",
        )),
        None => Ok(()),
        Some(first) => {
            let what = first.result.as_ref().err().cloned().unwrap_or_default();
            let location = format!("{}: {}", first.folder, first.check);
            let help = format!(
                "{} of {} checks passed; repeat the failed check with --kernel {}",
                outcomes.len() - bad.len(),
                outcomes.len(),
                first.folder
            );
            Err(failed(location, what, help))
        }
    }
}

fn line(o: &CheckOutcome) -> String {
    match &o.result {
        Ok(ran) => format!(
            "{:16} {:70} {:5} launches {:8.2} s",
            o.folder,
            o.check.replace('_', " "),
            ran.launches,
            ran.time.as_secs_f64()
        ),
        Err(_) => format!("{:16} {:70} failed", o.folder, o.check.replace('_', " ")),
    }
}

fn to_json(o: &CheckOutcome) -> Value {
    match &o.result {
        Ok(ran) => json!({
            "folder": o.folder, "check": o.check, "ok": true, "launches": ran.launches, "seconds": ran.time.as_secs_f64(),
        }),
        Err(e) => json!({"folder": o.folder, "check": o.check, "ok": false, "error": e}),
    }
}

/// Groups the comparisons between GPU and simulator by the kernel's name.
fn compared(outcomes: &[CheckOutcome]) -> BTreeMap<&'static str, Vec<&GpuComparison>> {
    let mut by_kernel: BTreeMap<&str, Vec<&GpuComparison>> = BTreeMap::new();
    for c in outcomes.iter().filter_map(|o| o.result.as_ref().ok()).flat_map(|r| &r.compared) {
        by_kernel.entry(c.kernel).or_default().push(c);
    }
    by_kernel
}

fn comparison(kernel: &str, all: &[&GpuComparison]) -> Value {
    let sum = |of: fn(&GpuComparison) -> usize| all.iter().map(|c| of(c)).sum::<usize>();
    json!({
        "kernel": kernel, "launches": all.len(), "elements": sum(|c| c.elements), "different": sum(|c| c.different),
        "relative_l2_at_most": all.iter().map(|c| c.distance).fold(0.0, f64::max),
    })
}
