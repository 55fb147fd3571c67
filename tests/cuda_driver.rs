//! Tests with a stub of NVIDIA's driver library, compiled from C. The stub exports only the calls of CUDA 12.0, and
//! its launches compute nothing. The results with drivers of each version are tested on the fake driver
//! (`cuda_device.rs`).

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::path::Path;
use std::process::Command;

use reel_device::compile::{self, toolkit::Toolkit};
use serde_json::Value;
use sft_rows::training_folder;
use support::{FinishedRun, finished_run, golden, read_metrics, reel_on_gpu};

/// Compiles a stub `libcuda.so.1` of a CUDA version (times 1000) into a folder.
fn stub_driver(version: u32, options: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let version = format!("-DVERSION={version}");
    compile_library(
        "stub_libcuda.c",
        &folder.path().join("libcuda.so.1"),
        &[&["-fvisibility=hidden", &version], options].concat(),
    );
    folder
}

/// Compiles a C file of `tests/support` into a shared library.
fn compile_library(source: &str, library: &Path, options: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-O1"]).args(options).arg("-o").arg(library).arg(source);
    let done = cc.output().expect("cc, which the build needs too");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Runs reel with the stub driver.
fn run(driver: &Path, args: &[&str]) -> FinishedRun {
    finished_run(reel_on_gpu().env("LD_LIBRARY_PATH", driver).args(args).output().expect("the binary starts"))
}

/// Returns the line of `reel doctor` about the driver's CUDA version.
fn doctor(driver: &Path) -> (bool, String) {
    let report = run(driver, &["doctor", "--json"]).json();
    let all = report["findings"].as_array().expect("findings");
    let found = all.iter().find(|finding| finding["name"] == "CUDA of the driver").expect("the driver's line");
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_string();
    (found["found"] == Value::Bool(true), format!("{}; {}", text("what"), text("install")))
}

#[test]
fn doctor_tells_what_each_driver_lacks() {
    let of = |version: u32, options: &[&str]| doctor(stub_driver(version, options).path());
    for (version, has, lacks) in [
        (12_000, "12.0; before CUDA 12.3 the launches of a decode step do not overlap", ""),
        (12_040, "12.4; it needs cuBLASLt 12", "before CUDA 12.3"),
        (12_080, "12.8; it needs cuBLASLt 12", "before CUDA 12.3"),
        (13_000, "13.0; ", "cuBLASLt 12"),
    ] {
        let (found, text) = of(version, &[]);
        assert!(found && text.starts_with(has) && (lacks.is_empty() || !text.contains(lacks)), "{version}: {text}");
    }
    let (found, text) = of(11_080, &[]);
    assert!(!found && text.contains("needs 12.0 or newer: update the driver"), "{text}");
    let (found, text) = of(12_040, &["-DINCOMPLETE"]);
    assert!(!found && text.contains("without the calls cuLaunchKernelEx; reinstall the driver"), "{text}");
}

#[test]
fn a_driver_that_lacks_a_call_is_one_error() {
    let model = golden("model/image_hd128_bf16/model").display().to_string();
    let generate = ["generate", "--device", "cuda", "--model", &model, "--prompt", "x"];
    let driver = stub_driver(12_040, &["-DINCOMPLETE"]);
    run(driver.path(), &generate).assert_refused(1, &["reports CUDA 12.4 but lacks cuLaunchKernelEx", "--device cpu"]);
    let driver = stub_driver(11_080, &[]);
    run(driver.path(), &generate).assert_refused(1, &["supports CUDA 11.8", "12.0 or newer"]);
}

/// All driver calls of the program, from opening the GPU to captured decode steps, exist in CUDA 12.0, and all
/// kernels are compiled to code that each driver loads.
#[test]
fn generation_makes_only_calls_of_cuda_12_0() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let case = golden("model/image_hd128_bf16");
    let (model, inputs) = (case.join("model").display().to_string(), case.join("inputs.safetensors"));
    let has_ptxas_12 = Toolkit::from_environment().ptxas_of_major(12).is_some();
    for version in [12_000, 12_040, 12_080, 13_000] {
        let driver = stub_driver(version, &[]);
        let out = driver.path().join("score.safetensors").display().to_string();
        let inputs = inputs.display().to_string();
        let options = ["--device", "cuda", "--dtype", "bf16", "--model", &model];
        let score = run(driver.path(), &[&["score", "--inputs", &inputs, "--out", &out], &options[..]].concat());
        if version == 12_000 && !has_ptxas_12 {
            score.assert_refused(1, &["ptxas of CUDA 12 not found", "./x setup"]);
            continue;
        }
        score.ok();
        let more = ["--prompt", "x", "--max-new-tokens", "5"];
        run(driver.path(), &[&["generate"], &options[..], &more[..]].concat()).ok();
    }
}

/// A training run records what NVML reports about its GPU, and its MFU by the GPU's data sheet. Without NVML the run is
/// the same without these fields, and `reel doctor` says what is missing.
#[test]
fn training_records_power_clocks_and_utilization() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let at = training_folder(2);
    let driver = stub_driver(13_000, &["-DNAME=\"NVIDIA H100 80GB HBM3\""]);
    let (model, rows) = (at.path().join("tiny"), at.path().join("rows.jsonl"));
    let train = |out: &str| {
        let out = at.path().join(out).display().to_string();
        let (model, rows) = (model.display().to_string(), rows.display().to_string());
        let sft = ["sft", "--device", "cuda", "--model", &model, "--data", &rows, "--out", &out, "--max-steps", "1"];
        run(driver.path(), &[&sft[..], &["--learning-rate", "1e-3", "--report-command", "cat >&2"]].concat()).ok();
        read_metrics(Path::new(&out)).remove(0)
    };
    let nvml = |driver: &Path| {
        let report = run(driver, &["doctor", "--json"]).json();
        let all = report["findings"].as_array().expect("findings").clone();
        all.into_iter().find(|finding| finding["name"] == "NVML").expect("the line of NVML")
    };
    let without = train("without");
    assert!(nvml(driver.path())["install"].as_str().is_some_and(|text| text.contains("are not reported")));
    compile_library("stub_nvml.c", &driver.path().join("libnvidia-ml.so.1"), &[]);
    assert_eq!(nvml(driver.path())["what"], "libnvidia-ml.so.1 of driver 580.00");
    let with = train("with");
    let of_gpu = [
        ("gpu_power_watts", 612.5),
        ("gpu_sm_mhz", 1755.0),
        ("gpu_memory_mhz", 2619.0),
        ("gpu_temperature_celsius", 61.0),
        ("gpu_busy_share", 0.97),
        ("gpu_memory_used_bytes", 3e9),
        ("gpu_throttled/sw_power_cap", 1.0),
        ("gpu_throttled/hw_thermal_slowdown", 1.0),
    ];
    for (name, value) in of_gpu {
        assert!((with[name].as_f64().expect(name) - value).abs() < 1e-9 * value, "{name}: {with}");
        assert!(without.get(name).is_none(), "{name}: {without}");
    }
    for metrics in [&with, &without] {
        assert!(metrics["mfu"].as_f64().is_some_and(|mfu| 0.0 < mfu && mfu < 1e-3), "{metrics}");
        assert!(metrics["host_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{metrics}");
    }
}

/// The driver reports only one GPU, so both processes of a divided model would use the same GPU.
#[test]
fn two_processes_of_a_divided_model_are_refused_one_gpu() {
    let driver = stub_driver(13_000, &[]);
    let model = golden("train/model_a").display().to_string();
    for command in [&["generate", "--prompt", "x"][..], &["serve", "--port", "0"]] {
        let options = ["--device", "cuda", "--model", &model, "--tensor-parallel-size", "2"];
        let done = run(driver.path(), &[command, &options[..]].concat());
        let what = "error: --device: gives ranks 0 and 1 the same GPU, GPU-07070707-0707-0707-0707-070707070707, but ";
        assert!(done.code == Some(2) && done.stderr.contains(what), "{:?}: {}", done.code, done.stderr);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{}", done.stderr);
    }
}
