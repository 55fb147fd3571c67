//! Runs kernels that the compilers of Python languages made (Triton, TileLang, CuTe DSL) in the program reel-sim. The
//! folder of a language has the kernels, the script that compiled them, and `cases.txt` with one launch per line: the
//! exit code, for a wrong kernel the kind and the line of its finding, the PTX file, and the options of `reel-sim run`.

use half::f16;
use safetensors::{SafeTensors, tensor::TensorView};
use std::path::PathBuf;
use std::process::Command;

struct Case {
    exit_code: i32,
    /// `KIND@LINE` of the finding of a wrong kernel.
    finding: Option<String>,
    file: String,
    options: Vec<String>,
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/languages"))
}

fn cases(language: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join(language).join("cases.txt")).unwrap();
    let case = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_string).peekable();
        let exit_code = words.next().unwrap().parse().unwrap();
        let finding = words.next_if(|word| word.contains('@'));
        Case { exit_code, finding, file: words.next().unwrap(), options: words.collect() }
    };
    text.lines().map(case).collect()
}

/// Runs a case. Returns its exit code, and `KIND@LINE` of its findings that do not follow from others.
fn run(case: &Case, more: &[&str]) -> (Option<i32>, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel-sim"));
    command.arg("run").arg(folder().join(&case.file)).args(&case.options).arg("--json").args(more);
    let output = command.output().unwrap();
    let Ok(report) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        panic!("{}: {}", case.file, String::from_utf8_lossy(&output.stderr));
    };
    let findings = report["findings"].as_array().unwrap();
    let causes = findings.iter().filter(|finding| finding["may_follow"] != true);
    let name = |f: &serde_json::Value| format!("{}@{}", f["kind"].as_str().unwrap(), f["line"]);
    (output.status.code(), causes.map(name).collect())
}

/// Runs all cases of a language, and panics with the list of those that have other findings than they should.
fn check(language: &str) {
    let mut wrong = Vec::new();
    for case in cases(language) {
        let (code, found) = run(&case, &[]);
        let has_finding = case.finding.as_ref().is_none_or(|expected| found.contains(expected));
        if code != Some(case.exit_code) || !has_finding {
            wrong.push(format!("{}: exit code {code:?}, findings {found:?}", case.file));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn triton_kernels_have_the_expected_findings() {
    check("triton");
}

#[test]
fn tilelang_kernels_have_the_expected_findings() {
    check("tilelang");
}

#[test]
fn cute_dsl_kernels_have_the_expected_findings() {
    check("cute");
}

/// Kernels without redundant synchronisation: a run finds each removal and each change of one of them.
#[test]
fn removed_synchronisation_is_found() {
    let kernels = [
        "triton/transpose.sm_90a",
        "triton/quantize_rows.sm_90a",
        "triton/layer_norm.sm_90a",
        "triton/rms_norm_add.sm_90a",
        "triton/scan_rows.sm_90a",
        "triton/argmax_rows.sm_90a",
        "triton/sum_by_last_block.sm_90a",
        "tilelang/transpose.sm_90a",
        "tilelang/cumulative_sum.sm_90a",
        "tilelang/histogram.sm_90a",
        "cute/transpose",
        "cute/row_sum",
        "cute/sum_by_last_block",
        "cute/gemm_mma",
    ];
    for name in kernels {
        let cases = cases(name.split('/').next().unwrap());
        let case = cases.iter().find(|case| case.file == format!("{name}.ptx")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_reel-sim"));
        command.arg("mutants").arg(folder().join(&case.file)).args(&case.options).arg("--json");
        let report: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        assert!(report["mutants"].as_u64() > Some(0), "{name}: {report}");
        assert_eq!(report["survivors"], 0, "{name}: {report}");
    }
}

fn f32s(buffer: &TensorView) -> Vec<f32> {
    let bytes = buffer.data();
    match buffer.dtype() {
        safetensors::Dtype::F16 => {
            bytes.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        safetensors::Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        other => panic!("{other:?}"),
    }
}

/// Runs the cases whose files begin with `name`, and compares the buffer `arg{output}` after the first run with what
/// `reference` computes from all buffers. `tolerance` is relative to 1 or to the value, whichever is larger.
fn compare(name: &str, output: usize, tolerance: f32, reference: impl Fn(&dyn Fn(usize) -> Vec<f32>) -> Vec<f32>) {
    let language = name.split('/').next().unwrap();
    let matching: Vec<Case> = cases(language).into_iter().filter(|c| c.file.starts_with(&format!("{name}."))).collect();
    assert!(!matching.is_empty(), "no case {name}");
    for case in matching {
        let file = tempfile::NamedTempFile::new().unwrap();
        run(&case, &["--interleavings", "1", "--out", file.path().to_str().unwrap()]);
        let bytes = std::fs::read(file.path()).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let buffer = |index: usize| f32s(&tensors.tensor(&format!("arg{index}")).unwrap());
        let (got, expected) = (buffer(output), reference(&buffer));
        assert_eq!(got.len(), expected.len(), "{}", case.file);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let bound = tolerance * expected.abs().max(1.0);
            assert!((got - expected).abs() <= bound, "{}: element {i} is {got}, not {expected}", case.file);
        }
    }
}

/// Returns the product of an `m` × `k` matrix and a `k` × `n` matrix, where `b(row, column)` is the index of an element.
fn product(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), at: impl Fn(usize, usize) -> usize) -> Vec<f32> {
    let element = |i: usize| (0..k).map(|p| a[i / n * k + p] as f64 * b[at(p, i % n)] as f64).sum::<f64>() as f32;
    (0..m * n).map(element).collect()
}

#[test]
fn triton_kernels_compute_what_they_should() {
    compare("triton/vector_add", 2, 0.0, |arg| arg(0).iter().zip(arg(1)).map(|(x, y)| x + y).collect());
    compare("triton/transpose", 1, 0.0, |arg| (0..80 * 48).map(|i| arg(0)[i % 48 * 80 + i / 48]).collect());
    compare("triton/softmax", 0, 1e-6, |arg| {
        let exponentials: Vec<f32> = arg(1).iter().map(|x| x.exp()).collect();
        let normalised = |row: &[f32]| row.iter().map(|e| e / row.iter().sum::<f32>()).collect::<Vec<_>>();
        exponentials.chunks(200).flat_map(normalised).collect()
    });
    compare("triton/sort_rows", 1, 0.0, |arg| {
        let mut rows = arg(0);
        rows.chunks_mut(256).for_each(|row| row.sort_by(f32::total_cmp));
        rows
    });
    compare("triton/scan_with_look_back", 1, 1e-5, |arg| {
        let mut sum = 0.0;
        arg(0).iter().map(|x| (sum += x, sum).1).collect()
    });
    compare("triton/sum_by_last_block", 3, 1e-5, |arg| vec![arg(0).iter().sum()]);
    compare("triton/matmul_f16", 2, 2e-3, |arg| product(&arg(0), &arg(1), (100, 72, 328), |p, j| p * 72 + j));
    compare("triton/matmul_split_k", 2, 1e-4, |arg| product(&arg(0), &arg(1), (40, 32, 400), |p, j| p * 32 + j));
    compare("triton/matmul_descriptors", 2, 2e-3, |arg| product(&arg(0), &arg(1), (96, 64, 320), |p, j| j * 320 + p));
    compare("triton/matmul_warp_specialized", 2, 2e-3, |arg| {
        product(&arg(0), &arg(1), (256, 128, 192), |p, j| j * 192 + p)
    });
}

#[test]
fn tilelang_kernels_compute_what_they_should() {
    compare("tilelang/vector_add", 2, 0.0, |arg| arg(0).iter().zip(arg(1)).map(|(x, y)| x + y).collect());
    compare("tilelang/transpose", 1, 0.0, |arg| (0..96 * 64).map(|i| arg(0)[i % 64 * 96 + i / 64]).collect());
    compare("tilelang/gemm_256_threads.sm_80", 2, 2e-3, |arg| {
        product(&arg(0), &arg(1), (128, 64, 192), |p, j| p * 64 + j)
    });
    compare("tilelang/gemm_256_threads.sm_90a", 2, 2e-3, |arg| {
        product(&arg(3), &arg(4), (128, 64, 192), |p, j| p * 64 + j)
    });
}

#[test]
fn cute_dsl_kernels_compute_what_they_should() {
    compare("cute/tiled_scale", 1, 0.0, |arg| arg(0).iter().map(|x| 2.0 * x).collect());
    compare("cute/tma_scale", 3, 0.0, |arg| arg(2).iter().map(|x| 2.0 * x).collect());
    compare("cute/transpose", 1, 0.0, |arg| (0..96 * 64).map(|i| arg(0)[i % 64 * 96 + i / 64]).collect());
    compare("cute/gemm_mma", 2, 1e-4, |arg| product(&arg(0), &arg(1), (64, 32, 160), |p, j| j * 160 + p));
    compare("cute/gemm_wgmma", 2, 1e-4, |arg| product(&arg(4), &arg(5), (128, 32, 384), |p, j| j * 384 + p));
}
