//! Tests of the commands of `reel kernels`: list, show, check, report.

mod support;

use std::collections::BTreeSet;

use reel_device::compile;
use reel_kernels::FOLDERS;

use support::{check_page, run};

#[test]
fn list_has_every_kernel_once() {
    let list = run(["kernels", "list", "--json"]).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|k| k["kernel"].as_str().unwrap()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert!(names.contains(&"rms_norm_fwd_bf16") && names.contains(&"adamw_f32"));
    let folders: BTreeSet<&str> = list.as_array().unwrap().iter().map(|k| k["folder"].as_str().unwrap()).collect();
    assert!(FOLDERS.iter().all(|s| folders.contains(s.name)));
    assert_eq!(run(["kernels"]).ok(), run(["kernels", "list"]).ok());
}

#[test]
fn show_prints_formula_and_least_time() {
    let shown = run(["kernels", "show", "rms_norm_fwd_bf16", "--json"]).json();
    let kernel = &shown[0];
    assert!(kernel["maths"].as_str().unwrap().contains("rstd = 1 / sqrt"));
    assert_eq!(kernel["floors"][0]["bound"], "memory");
    // The kernel reads and writes 8192 x 3584 elements of 2 bytes. An A100 with 2.039 TB/s is assumed to reach 90 %
    // of that bandwidth.
    let floor = 8192.0 * 3584.0 * 4.0 / (0.9 * 2.039e12);
    let shown = kernel["floors"][0]["seconds"].as_f64().unwrap();
    assert!((shown / floor - 1.0).abs() < 1e-3, "{shown} against {floor}");
    let text = run(["kernels", "show", "rms_norm"]);
    assert!(text.ok().contains("rms_norm_bwd_f32, 8192 tokens"), "{}", text.stdout);
    run(["kernels", "show", "nosuch"]).assert_refused(2, &["nosuch", "reel kernels list"]);
    run(["kernels", "check", "--kernel", "nosuch"]).assert_refused(2, &["nosuch"]);
}

#[test]
fn check_of_one_kernel_lists_its_functions() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let checked = run(["kernels", "check", "--kernel", "swiglu", "--arch", "sm_80", "--json"]).json();
    assert_eq!(checked["ok"], true);
    let functions = checked["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 4);
    assert!(functions.iter().all(|f| f["registers"].as_u64().unwrap() > 0 && f["spill_loads"] == 0));
    let one = run(["kernels", "check", "--kernel", "swiglu_fwd_f32", "--arch", "sm_80"]);
    assert!(one.ok().contains("swiglu_fwd_f32") && !one.stdout.contains("swiglu_bwd"), "{}", one.stdout);
    run(["kernels", "check", "--arch", "sm_1"]).assert_refused(2, &["sm_1", "sm_80"]);
}

/// `--source` checks an edited file in place of the one that the program was built with.
#[test]
fn edited_source_is_checked_without_a_build() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/src/swiglu/sm80.cu");
    let text = std::fs::read_to_string(built).unwrap();
    let file = folder.path().join("sm80.cu");
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let fixed = ["kernels", "check", "--kernel", "swiglu_fwd_f32", "--source", file.to_str().unwrap()];
        run([&fixed[..], more].concat())
    };
    let simulated = ["--device", "sim", "--interleavings", "1"];
    check(&format!("{text}// edited\n"), &simulated).ok();
    let swapped = text.replacen("gated(v.gate[j], v.up[j])", "gated(v.up[j], v.gate[j])", 1);
    assert_ne!(text, swapped);
    check(&swapped, &simulated).assert_refused(1, &["swiglu: equals_the_formula"]);
    check(&swapped, &["--arch", "sm_80"]).ok();
    check(&format!("{text}int x = y;"), &["--arch", "sm_80"]).assert_refused(1, &["swiglu/sm80.cu"]);
    check(&text, &["--device", "cpu"]).assert_refused(2, &["--source", "runs no CUDA code"]);
    // A header that all kernels share, and a name that no file of the folder has.
    let header = folder.path().join("map.cuh");
    std::fs::write(&header, "#error edited\n").unwrap();
    let of = |path: &std::path::Path| {
        run(["kernels", "check", "--kernel", "swiglu", "--arch", "sm_80", "--source", path.to_str().unwrap()])
    };
    of(&header).assert_refused(1, &["edited"]);
    let other = folder.path().join("other.cu");
    std::fs::write(&other, &text).unwrap();
    of(&other).assert_refused(2, &["other.cu", "swiglu/sm80.cu"]);
    of(&folder.path().join("gone/sm80.cu")).assert_refused(1, &["gone/sm80.cu"]);
}

/// Before kernels are compiled for the page, a line says how many and how long it takes. The run is killed then.
#[test]
fn report_says_how_long_it_will_compile() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let cache = tempfile::tempdir().unwrap();
    // NVRTC stays that of the usual cache folder.
    let usual = reel_device::compile::toolkit::cache_folder().unwrap();
    for entry in std::fs::read_dir(&usual).unwrap().map(|entry| entry.unwrap()).filter(|e| e.file_name() != "kernels") {
        std::fs::create_dir_all(cache.path().join("reel")).unwrap();
        std::os::unix::fs::symlink(entry.path(), cache.path().join("reel").join(entry.file_name())).unwrap();
    }
    let mut child = support::reel()
        .env("XDG_CACHE_HOME", cache.path())
        .args(["kernels", "report", "--gpu", "h200", "--out"])
        .arg(cache.path().join("page.html"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        line.starts_with("compiling the CUDA of ") && line.contains(" kernel folders for sm_90a: about "),
        "{line}"
    );
}

/// `reel kernels check` finds no register spills. sm_86 and sm_89 are left out, because their machine code comes from
/// almost the same PTX as that of sm_80, and checking them would double the test's time.
#[test]
fn every_kernel_passes_the_machine_code_check() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let checked = run(["kernels", "check", "--arch", "sm_80", "--arch", "sm_90a", "--quiet"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
}

/// All checks of a folder pass on device `cpu` and, if NVRTC is installed, on `sim`, with random data from `--seed`.
#[test]
fn checks_pass_on_cpu_and_sim() {
    for device in ["cpu", "sim"] {
        if device == "sim" && compile::check_nvrtc().is_err() {
            println!("skipped: checks_pass_on_cpu_and_sim: device sim needs NVRTC, which is not installed");
            continue;
        }
        let arguments = ["kernels", "check", "--device", device, "--kernel", "swiglu", "--seed", "7", "--json"];
        let result = run(arguments).json();
        assert_eq!((&result["ok"], &result["seed"]), (&true.into(), &7.into()), "{result}");
        let checks = result["checks"].as_array().unwrap();
        assert!(checks.len() >= 2 && checks.iter().all(|c| c["folder"] == "swiglu"), "{result}");
        let launches: u64 = checks.iter().map(|c| c["launches"].as_u64().unwrap()).sum();
        assert!(launches > 0, "{result}");
    }
    run(["kernels", "check", "--device", "dry"]).assert_refused(2, &["--device", "dry"]);
    run(["kernels", "check", "--device", "cuda:x"]).assert_refused(2, &["cuda:x"]);
    run(["kernels", "check", "--device", "sim", "--arch", "sm_80"]).assert_refused(2, &["--arch"]);
    run(["kernels", "check", "--device", "cpu", "--compare"]).assert_refused(2, &["--compare", "cuda"]);
    run(["kernels", "check", "--compare"]).assert_refused(2, &["--compare", "cuda"]);
    run(["kernels", "check", "--device", "cpu", "--kernel", "nosuch"]).assert_refused(2, &["nosuch"]);
    run(["kernels", "bench", "--device", "cpu"]).assert_refused(2, &["--device", "cuda"]);
    run(["kernels", "bench", "--kernel", "nosuch", "--device", "cuda:a"]).assert_refused(2, &["cuda:a"]);
}

#[test]
fn report_writes_a_page_with_modelled_or_measured_times() {
    let folder = tempfile::tempdir().unwrap();
    let (page, times) = (folder.path().join("k.html"), folder.path().join("times.json"));
    let (page, times) = (page.to_str().unwrap(), times.to_str().unwrap());
    run(["kernels", "report", "--out", page]).ok();
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("modelled") && html.contains("id=\"attention_fwd_bf16\""));
    std::fs::write(times, r#"{"kernels": [{"kernel": "swiglu_fwd_bf16", "seconds": 2.167e-4}]}"#).unwrap();
    run(["kernels", "report", "--out", page, "--times", times, "--gpu", "h200"]).ok();
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("216.7") && html.contains("measured"));
    // The chart shows only the kernels of the run; the other kernels are in a collapsed list.
    let charts = check_page(&html);
    assert_eq!(charts[0]["points"].as_array().map(Vec::len), Some(1));
    let (shown, others) = html.split_once("<details>").expect("a closed list");
    assert!(shown.contains("id=\"swiglu_fwd_bf16\"") && others.contains("id=\"attention_fwd_bf16\""));
    assert!(!shown.contains("id=\"attention_fwd_bf16\"") && !others.contains("id=\"swiglu_fwd_bf16\""));

    for (bad, what) in [("{", "JSON"), ("{}", "kernels"), (r#"{"kernels": [{"kernel": "a"}]}"#, "seconds")] {
        std::fs::write(times, bad).unwrap();
        run(["kernels", "report", "--out", page, "--times", times, "--quiet"]).assert_refused(1, &["times.json", what]);
    }
    run(["kernels", "report", "--gpu", "abacus"]).assert_refused(2, &["abacus", "h200"]);
}
