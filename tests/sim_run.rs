//! `reel sim run` as a command: arguments, results, findings and exit codes.

#[path = "support/sim_kernels.rs"]
mod sim_kernels;
mod support;

use std::fs;
use std::path::Path;

use reel_device::compile;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use sim_kernels::{PTX_HEADER, RACY_SHIFT_PTX, SAXPY_PTX, TENSOR_LOAD_PTX, UNPACK_STRUCT_PTX};
use support::{FinishedRun, check_page, run_in};

fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("written");
    }
    dir
}

fn sim(dir: &Path, line: &str) -> FinishedRun {
    run_in(dir, ["sim", "run"].into_iter().chain(line.split_whitespace()))
}

/// Returns the values of a tensor in a safetensors file as f64.
fn stored(dir: &Path, file: &str, name: &str) -> Vec<f64> {
    let bytes = fs::read(dir.join(file)).expect("a file");
    let all = SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = all.tensor(name).expect("a tensor");
    let of = |width: usize, f: &dyn Fn(&[u8]) -> f64| view.data().chunks(width).map(f).collect();
    match view.dtype() {
        Dtype::F32 => of(4, &|b| f32::from_le_bytes(b.try_into().unwrap()).into()),
        Dtype::U32 => of(4, &|b| u32::from_le_bytes(b.try_into().unwrap()).into()),
        Dtype::U64 => of(8, &|b| u64::from_le_bytes(b.try_into().unwrap()) as f64),
        Dtype::U8 => of(1, &|b| b[0].into()),
        other => panic!("{other:?}"),
    }
}

/// Triton passes two scratch buffers after the parameters that the Python source declares.
#[test]
fn too_few_arguments_for_a_triton_kernel_name_its_scratch_buffers() {
    let kernel = ".visible .entry k(.param .u64 .ptr .global .align 1 k_param_0, .param .u32 k_param_1,
        .param .u64 .ptr .global .align 1 k_param_2, .param .u64 .ptr .global .align 1 k_param_3) { ret; }";
    let shared = ".extern .shared .align 16 .b8 global_smem[];";
    let dir = folder(&[
        ("triton.ptx", format!("{PTX_HEADER}{shared}{kernel}")),
        ("python.ptx", format!("{PTX_HEADER}{kernel}\n.file 1 \"softmax.py\"\n")),
        ("cuda.ptx", format!("{PTX_HEADER}{kernel}\n.file 1 \"softmax.cu\"\n")),
    ]);
    let run = |file: &str, more: &str| {
        sim(dir.path(), &format!("{file} --grid 1 --block 1 --arg buf:f32:4:zeros --arg u32:4{more}"))
    };
    for (file, named) in [("triton.ptx", true), ("python.ptx", true), ("cuda.ptx", false)] {
        let got = run(file, "");
        assert_eq!(got.code, Some(2), "{}", got.stderr);
        assert!(got.stderr.contains("got 2 arguments, but kernel k has 4 parameters"), "{}", got.stderr);
        let says =
            got.stderr.contains("the last two pointers of a Triton kernel are its global and its profile scratch");
        assert_eq!(says, named, "{}", got.stderr);
    }
    assert_eq!(run("triton.ptx", &(" --arg buf:u8:4096:zeros".repeat(2) + " --arch sm_100a")).code, Some(0));
}

#[test]
fn correct_kernel_has_results_counts_and_no_findings() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}"))]);
    let args = "--grid 3 --block 128 --arg buf:f32:300:arange --arg buf:f32:300:random --arg f32:-2.5 --arg u32:300";
    let got = sim(dir.path(), &format!("k.ptx --entry saxpy {args} --json --out r.safetensors")).json();
    let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["ok", "source", "kernel", "findings", "remarks", "notes", "counters", "interleavings"]);
    // Only one warp has idle lanes: it computes the last 12 elements, so 20 of its lanes are idle. No remark is made,
    // because most warps are full.
    assert_eq!(got["remarks"], serde_json::json!([]));
    assert_eq!(
        (&got["ok"], &got["findings"], &got["notes"]),
        (&true.into(), &serde_json::json!([]), &serde_json::json!([]))
    );
    assert_eq!(got["interleavings"], 8);
    let counted = &got["counters"]["counted"];
    assert_eq!((&counted["global_bytes_read"], &counted["global_bytes_written"]), (&2400.into(), &1200.into()));
    assert_eq!(counted["blocks"], 3);
    // Ten of the twelve warps have threads below 300, and each of them executes three global-memory instructions. In
    // the last of the ten, only 12 threads are active.
    assert_eq!(counted["by_class"]["global"], serde_json::json!({"warps": 30, "threads": 900}));
    assert_eq!(got["counters"]["modelled"]["H200"]["multiprocessors"], 3);

    let (x, y) = (stored(dir.path(), "r.safetensors", "arg0"), stored(dir.path(), "r.safetensors", "arg1"));
    sim(dir.path(), &format!("k.ptx {} --out 0.safetensors", args.replace("u32:300", "u32:0"))).ok();
    let before = stored(dir.path(), "0.safetensors", "arg1");
    assert_eq!(x[299], 299.0);
    assert!(before.iter().any(|v| *v < -0.5) && before.iter().any(|v| *v > 0.5));
    for i in 0..300 {
        assert_eq!(y[i], f64::from((-2.5f32).mul_add(x[i] as f32, before[i] as f32)), "element {i}");
    }
}

#[test]
fn results_depend_on_the_seed_but_not_on_threads() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{RACY_SHIFT_PTX}"))]);
    let of = |more: &str| sim(dir.path(), &format!("k.ptx --grid 1 --block 64 --arg buf:u32:64 --json {more}")).stdout;
    let one = of("--threads 1");
    assert!(one.starts_with("{\"ok\":false"), "{one}");
    assert_eq!(of("--threads 2"), one);
    assert_eq!(of("--threads 7"), one);
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}"))]);
    let y = |seed: u32| {
        let args = "--grid 1 --block 64 --arg buf:f32:64 --arg buf:f32:64:random --arg f32:1 --arg u32:64";
        sim(dir.path(), &format!("k.ptx {args} --seed {seed} --out r.safetensors")).ok();
        stored(dir.path(), "r.safetensors", "arg1")
    };
    assert_eq!(y(1), y(1));
    assert_ne!(y(1), y(2));
}

#[test]
fn race_is_reported_with_its_line_and_fails() {
    let text = format!("{PTX_HEADER}{RACY_SHIFT_PTX}");
    let line = |what: &str| text.lines().position(|l| l.contains(what)).unwrap() + 1;
    let dir = folder(&[("k.ptx", text.clone())]);
    let args = "k.ptx --entry shift --grid 1 --block 64 --arg buf:u32:64 --out r.safetensors";
    let got = sim(dir.path(), &format!("{args} --json"));
    got.assert_refused(1, &["k.ptx", &format!("race at line {}", line("ld.shared"))]);
    let result: Value = serde_json::from_str(&got.stdout).expect("one line of JSON");
    assert_eq!(result["findings"].as_array().map(Vec::len), Some(1), "{result}");
    let finding = &result["findings"][0];
    assert_eq!((&finding["kind"], &finding["space"]), (&"race".into(), &"shared".into()));
    assert_eq!(finding["line"], line("ld.shared"));
    assert!(finding["message"].as_str().unwrap().contains(&format!("line {}", line("st.shared"))), "{finding}");
    assert!(finding["count"].as_u64() > Some(8) && finding["address"].is_u64());
    assert_eq!(finding["block"], serde_json::json!([0, 0, 0]));
    assert_eq!(stored(dir.path(), "r.safetensors", "arg0").len(), 64);
    let text = sim(dir.path(), args);
    assert!(
        text.stdout.contains(&format!("race: k.ptx:{}: block (0,0,0) thread (", line("ld.shared"))),
        "{}",
        text.stdout
    );
    assert!(text.stdout.contains(&format!("{} | ld.shared.u32 %r5, [%r4];", line("ld.shared"))), "{}", text.stdout);
    // The findings and the verdict are the last lines. The counts come before them, only with -v.
    let last = "k.ptx: shift: 1 finding in 8 interleavings";
    assert_eq!(text.stdout.lines().last(), Some(last));
    assert!(text.stdout.lines().count() < 8 && !text.stdout.contains("counted in"), "{}", text.stdout);
    let verbose = sim(dir.path(), &format!("{args} -v")).stdout;
    let at = |part: &str| verbose.find(part).unwrap_or_else(|| panic!("no {part:?} in {verbose}"));
    assert!(at("counted in the first run:\n") < at("\nmodelled, ") && at("\nmodelled, ") < at("race: k.ptx:"));
    assert_eq!(verbose.lines().last(), Some(last));
    assert_eq!(
        sim(dir.path(), &format!("{args} --quiet")).stdout.lines().count(),
        3 + result["notes"].as_array().unwrap().len()
    );
}

/// PTX of a kernel that wastes time in three ways. Each thread reads a word of a matrix column in shared memory and
/// one in global memory, both with rows of 128 bytes; then only lane 0 works.
const WASTEFUL: &str = "
.visible .entry wasteful(.param .u64 px) {
    .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    .shared .align 4 .b8 tile[4096];
    ld.param.u64 %rd1, [px];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 7;
    mov.u32 %r3, tile;
    add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    ld.shared.u32 %r5, [%r4];
    cvt.u64.u32 %rd2, %r2;
    add.u64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r5;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    add.u32 %r6, %r5, 1;
DONE:
    ret;
}";

/// Lines that waste time are reported, with the memory transactions that they take and that they need.
#[test]
fn slow_lines_are_remarked() {
    let text = format!("{PTX_HEADER}{WASTEFUL}");
    let line = |what: &str| text.lines().position(|l| l.contains(what)).unwrap() + 1;
    let dir = folder(&[("k.ptx", text.clone())]);
    let args = "k.ptx --grid 1 --block 32 --arg buf:u32:1024";
    let got = sim(dir.path(), &format!("{args} --json")).json();
    let remarks: Vec<(&str, u64)> = got["remarks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["kind"].as_str().unwrap(), r["line"].as_u64().unwrap()))
        .collect();
    let wanted = [
        ("bank-conflicts", line("st.shared")),
        ("bank-conflicts", line("ld.shared")),
        ("uncoalesced", line("st.global")),
        ("idle-lanes", line("add.u32 %r6")),
    ];
    assert_eq!(remarks, wanted.map(|(kind, line)| (kind, line as u64)));
    let shown = sim(dir.path(), args);
    for part in [
        format!(
            "bank-conflicts: k.ptx:{}: 32 passes through the banks of shared memory, where 1 would do\n",
            wanted[0].1
        ),
        format!("uncoalesced: k.ptx:{}: 32 sectors of 32 bytes of global memory, where 4 would do\n", wanted[2].1),
        format!("idle-lanes: k.ptx:{}: 1 of 32 lanes work on average, in 1 warp instructions\n", wanted[3].1),
        format!("{} | st.global.u32 [%rd3], %r5;\n", wanted[2].1),
        "\nk.ptx: wasteful: no defects found in 8 interleavings\n".to_string(),
    ] {
        assert!(shown.ok().contains(&part), "no {part:?} in {}", shown.stdout);
    }
}

/// The report of a mutant names the line of the CUDA file if the PTX has line information, else the PTX line.
#[test]
fn mutants_name_the_source_line() {
    let dir =
        folder(&[("k.ptx", format!("{PTX_HEADER}{RACY_SHIFT_PTX}").replace("xor.b32", "bar.sync 0;\n    xor.b32"))]);
    let mutants = |line: &str| run_in(dir.path(), ["sim", "mutants"].into_iter().chain(line.split_whitespace()));
    let got = mutants("k.ptx --grid 1 --block 64 --arg buf:u32:64");
    let barrier = fs::read_to_string(dir.path().join("k.ptx")).unwrap();
    let at = barrier.lines().position(|l| l.contains("bar.sync")).unwrap() + 1;
    assert!(
        got.ok().contains(&format!("killed by race               k.ptx:{at}: bar.sync deleted | bar.sync 0;")),
        "{}",
        got.stdout
    );
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let text = "__global__ void k(int* x) {\n  __shared__ int s[64];\n  s[threadIdx.x] = 1;\n  __syncthreads();\n  \
                x[threadIdx.x] = s[63 - threadIdx.x];\n}\n";
    fs::write(dir.path().join("k.cu"), text).unwrap();
    let line = "k.cu --grid 1 --block 64 --arg buf:i32:64";
    let shown = mutants(line);
    assert!(shown.ok().contains("k.cu:4: bar.sync deleted | __syncthreads();\n"), "{}", shown.stdout);
    let json = mutants(&format!("{line} --json")).json();
    assert_eq!((&json["verdicts"][0]["line"], &json["verdicts"][0]["of"]), (&4.into(), &"cuda".into()));
}

#[test]
fn structs_have_c_layout() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{UNPACK_STRUCT_PTX}"))]);
    let run = |s: &str| {
        sim(dir.path(), &format!("k.ptx --grid 1 --block 1 --arg struct:{s} --arg buf:u64:4 --out r.safetensors"))
    };
    run("u8=7,i32=-2,f64=1.5,buf=u64:1:arange,u16=65535").ok();
    let out = stored(dir.path(), "r.safetensors", "arg1");
    // The struct in C layout: u8 7, three bytes of padding, i32 −2; f64 1.5; a pointer, for which the kernel stores the
    // value that it points to; u16 65535, six bytes of padding.
    assert_eq!(out[0], (0xffff_fffe_0000_0007u64) as f64);
    assert_eq!(out[1], 1.5f64.to_bits() as f64);
    assert_eq!((out[2], out[3]), (0.0, 65535.0));
    assert_eq!(stored(dir.path(), "r.safetensors", "arg0.3"), [0.0]);
    run("u8=7").assert_refused(2, &["struct:u8=7", "1 bytes", "32"]);
    run("00").assert_refused(2, &["struct:00"]);
}

#[test]
fn reads_buffers_from_safetensors_files() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}"))]);
    let values: Vec<u8> = (0..8).flat_map(|i| (i as f32 * 0.25).to_le_bytes()).collect();
    let half = [0u8; 16];
    let views = [
        ("w", TensorView::new(Dtype::F32, vec![2, 4], &values).unwrap()),
        ("h", TensorView::new(Dtype::BF16, vec![8], &half).unwrap()),
    ];
    fs::write(dir.path().join("w.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let run = |x: &str| {
        sim(
            dir.path(),
            &format!("k.ptx --grid 1 --block 32 --arg {x} --arg buf:f32:8 --arg f32:2 --arg u32:8 --out r.safetensors"),
        )
    };
    run("buf:f32:8:@w.safetensors#w").ok();
    assert_eq!(stored(dir.path(), "r.safetensors", "arg1"), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    // The buffer's type may differ from the type of the stored tensor if the width is the same; the bits are then
    // read unchanged.
    run("buf:u32:8:@w.safetensors#w").ok();
    run("buf:f32:8:@w.safetensors#h").assert_refused(2, &["w.safetensors#h", "BF16", "f32"]);
    run("buf:f32:9:@w.safetensors#w").assert_refused(2, &["w.safetensors#w", "8 elements", "9"]);
    run("buf:f32:8:@w.safetensors#v").assert_refused(2, &["w.safetensors#v", "no such tensor"]);
    run("buf:f32:8:@v.safetensors#w").assert_refused(2, &["v.safetensors", "no such file"]);
    run("buf:f32:8:@k.ptx#w").assert_refused(2, &["k.ptx", "not a safetensors file"]);
}

#[test]
fn tensor_maps_load_boxes() {
    let dir = folder(&[("k.ptx", TENSOR_LOAD_PTX.to_string())]);
    let run = |map: &str| {
        sim(
            dir.path(),
            &format!(
                "k.ptx --entry tensor --grid 1 --block 32 --arg {map} --arg buf:u32:192:arange --arg buf:u32:32:uninit --out r.safetensors"
            ),
        )
    };
    // The tensor has 12 rows of 16 words; the box begins in row 2 at word 8.
    run("tmap:1:u32:16,12:64:8,4:none").ok();
    let want: Vec<f64> = (0..32).map(|i| f64::from((2 + i / 8) * 16 + 8 + i % 8)).collect();
    assert_eq!(stored(dir.path(), "r.safetensors", "arg2"), want);
    // The box is the same, but the tensor's rows have only 12 words: the right half of the box is outside of the
    // tensor and is filled with zeros.
    run("tmap:1:u32:12,12:64:8,4:none").ok();
    let want: Vec<f64> = want.iter().enumerate().map(|(i, v)| if i % 8 < 4 { *v } else { 0.0 }).collect();
    assert_eq!(stored(dir.path(), "r.safetensors", "arg2"), want);
    run("tmap:0:u32:16,12:64:8,4:none").assert_refused(2, &["tmap:0", "not a buffer"]);
    run("tmap:1:u32:16,12:60:8,4:none").assert_refused(2, &["tmap:1", "globalStrides"]);
}

#[test]
fn buffer_of_a_tensor_map_need_not_be_a_parameter() {
    let dir = folder(&[("k.ptx", TENSOR_LOAD_PTX.replace(" .param .u64 src,", ""))]);
    let run = |more: &str| {
        let line =
            "k.ptx --entry tensor --grid 1 --block 32 --arg tmap:2:u32:16,12:64:8,4:none --arg buf:u32:32:uninit";
        sim(dir.path(), &format!("{line} --out r.safetensors {more}"))
    };
    run("--arg buf:u32:192:arange").ok();
    let want: Vec<f64> = (0..32).map(|i| f64::from((2 + i / 8) * 16 + 8 + i % 8)).collect();
    assert_eq!(stored(dir.path(), "r.safetensors", "arg1"), want);
    run("").assert_refused(2, &["tmap:2", "not a buffer"]);
    run("--arg buf:u32:192:arange --arg buf:u32:8:zeros").assert_refused(2, &["--arg", "got 4 arguments", "tensor"]);
    run("--arg u32:5").assert_refused(2, &["--arg", "got 3 arguments", "tensor"]);
}

#[test]
fn rejects_wrong_command_lines() {
    let two = format!("{PTX_HEADER}{SAXPY_PTX}{RACY_SHIFT_PTX}");
    let head = PTX_HEADER.trim().replace("sm_90a", "sm_80");
    let later = format!("{head}\n.visible .entry k() {{\nbarrier.cluster.arrive;\nret;\n}}\n");
    let files = [("k.ptx", two), ("bad.ptx", "not PTX".into()), ("empty.ptx", PTX_HEADER.into()), ("later.ptx", later)];
    let dir = folder(&files);
    let run = |line: &str| sim(dir.path(), line);
    let shift = "k.ptx --entry shift --grid 1";
    run("k.ptx --grid 1 --block 1")
        .assert_refused(2, &["--entry", "saxpy(float const*, float*, float, unsigned int)", "shift"]);
    run("k.ptx --entry none --grid 1 --block 1").assert_refused(2, &["--entry", "none"]);
    run(&format!("{shift} --block 64")).assert_refused(2, &["--arg", "got 0 arguments", "shift"]);
    run(&format!("{shift} --block 64 --arg i32:1")).assert_refused(2, &["i32:1", "4 bytes", "8"]);
    run(&format!("{shift} --block 64 --arg buf:f99:1")).assert_refused(2, &["f99"]);
    run(&format!("{shift} --block 2000 --arg buf:u32:64")).assert_refused(2, &["--block", "1024"]);
    run(&format!("{shift} --block 64 --smem 999999 --arg buf:u32:64")).assert_refused(2, &["--smem"]);
    run(&format!("{shift} --block 0 --arg buf:u32:64")).assert_refused(2, &["--block"]);
    run(&format!("{shift} --block 64 --cluster 2 --arg buf:u32:64")).assert_refused(2, &["--cluster"]);
    run(&format!("{shift} --block 64 --arch sm_70 --arg buf:u32:64")).assert_refused(2, &["--arch", "sm_70"]);
    run("k.ptx --grid 1,2,3,4 --block 1").assert_refused(2, &["--grid"]);
    run(&format!("{shift}048577 --block 64 --arg buf:u32:64")).assert_refused(
        2,
        &["--grid: 1048577 blocks are more than the 1048576 that can be simulated; give fewer blocks"],
    );
    run(&format!("{shift} --block 64 --arg buf:u32:64 --max-seconds 0"))
        .assert_refused(2, &["--max-seconds: is 0; give a positive number of seconds"]);
    run("k.ptx --grid 1 --block 1 --interleavings 0").assert_refused(2, &["--interleavings"]);
    run("bad.ptx --grid 1 --block 1").assert_refused(2, &["bad.ptx"]);
    run("later.ptx --grid 1 --block 1")
        .assert_refused(2, &["later.ptx: line 5: barrier.cluster.arrive needs sm_90", "; compile it for sm_90"]);
    for entry in ["", " --entry k"] {
        run(&format!("empty.ptx --grid 1 --block 1{entry}")).assert_refused(2, &["empty.ptx: has no kernel"]);
    }
    run("none.ptx --grid 1 --block 1").assert_refused(2, &["none.ptx", "no such file"]);
    run("/dev/zero --grid 1 --block 1").assert_refused(2, &["/dev/zero", "regular file"]);
}

/// A finding quotes the source file that the PTX names. Only a regular file is read, because a device such as
/// /dev/zero never ends and a pipe blocks.
#[test]
fn a_device_as_source_file_is_not_read() {
    let located = RACY_SHIFT_PTX.replace("    ld.shared", "    .loc 1 1 1\n    ld.shared");
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}.file 1 \"/dev/zero\"\n{located}"))]);
    let got = sim(dir.path(), "k.ptx --grid 1 --block 64 --arg buf:u32:64");
    assert!(got.stdout.contains("race: /dev/zero:1: block (0,0,0)"), "{}", got.stdout);
}

#[test]
fn count_only_makes_one_run() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{RACY_SHIFT_PTX}"))]);
    let got = sim(dir.path(), "k.ptx --grid 4 --block 64 --arg buf:u32:64 --count-only --json").json();
    assert_eq!(got["interleavings"], 1);
    assert!(got["ok"].is_null(), "a race is not looked for, so the kernel is not certified: {}", got["ok"]);
    assert_eq!(got["notes"].as_array().map(|notes| notes.len()), Some(1));
    let text = sim(dir.path(), "k.ptx --grid 4 --block 64 --arg buf:u32:64 --count-only");
    assert!(text.ok().starts_with("counted in the first run:\n"), "{}", text.stdout);
    assert!(text.stdout.ends_with("(--count-only)\nk.ptx: shift: counted in 1 run\n"), "{}", text.stdout);
    // An access outside of the buffer is a finding also with `--count-only`.
    let outside = sim(dir.path(), "k.ptx --grid 4 --block 64 --arg buf:u32:1 --count-only --json");
    outside.assert_refused(1, &["out-of-bounds"]);
    assert!(outside.stdout.starts_with("{") && outside.stdout.contains("\"ok\":false"), "{}", outside.stdout);
    assert!(outside.stdout.contains("past the end of arg0"), "{}", outside.stdout);
    assert_eq!(got["counters"]["counted"]["by_class"]["shared"], serde_json::json!({"warps": 16, "threads": 512}));
}

#[test]
fn compiles_cuda_and_reports_source_lines() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let text = "#include <cstdint>\n#include <cstdio>\nnamespace mine {\n__global__ void reverse(uint32_t* x, int n) {\n  \
                __shared__ uint32_t tile[64];\n  tile[threadIdx.x] = x[threadIdx.x];\n  WAIT\n  \
                x[threadIdx.x] = tile[n - 1 - threadIdx.x];\n  SAY\n}\n}\n";
    let good =
        text.replace("WAIT", "__syncthreads();").replace("SAY", "if (threadIdx.x == 0) printf(\"%d words\\n\", n);");
    let dir = folder(&[("good.cu", good), ("bad.cu", text.replace("WAIT", "").replace("SAY", ""))]);
    let args = "--entry reverse --grid 1 --block 64 --arg buf:u32:64:arange --arg i32:64 --out r.safetensors";
    for arch in ["sm_80", "sm_90a"] {
        let good = sim(dir.path(), &format!("good.cu {args} --arch {arch}"));
        assert!(good.ok().contains("64 words"), "{}", good.stdout);
        assert_eq!(stored(dir.path(), "r.safetensors", "arg0")[..3], [63.0, 62.0, 61.0]);
    }
    let bad = sim(dir.path(), &format!("bad.cu {args} --json"));
    bad.assert_refused(1, &["bad.cu: race at line "]);
    let result: Value = serde_json::from_str(&bad.stdout).expect("JSON");
    let findings = result["findings"].as_array().expect("a list");
    // In some interleavings, the load runs before the other thread's store. Both orders are one race and are reported
    // once.
    assert!(findings.len() == 1 && findings[0]["kind"] == "race", "{findings:?}");
    let (here, other) = if findings[0]["line"] == 8 { (8, 6) } else { (6, 8) };
    assert_eq!(findings[0]["line"], here);
    assert!(findings[0]["message"].as_str().unwrap().contains(&format!("line {other}")), "{findings:?}");
    let shown = sim(dir.path(), &format!("bad.cu {args}")).stdout;
    assert!(shown.contains(&format!("bad.cu:{here}:")) && shown.contains("threadIdx.x] = "), "{shown}");
    let dir = folder(&[("wrong.cu", "__global__ void k() { y = 1; }\n".into())]);
    sim(dir.path(), "wrong.cu --grid 1 --block 1").assert_refused(2, &["wrong.cu:1"]);
}

/// PTX of a kernel that never ends: it keeps adding 1 to a word.
const ENDLESS: &str = "
.visible .entry endless(.param .u64 px) {
    .reg .b32 %r<2>; .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [px];
AGAIN:
    ld.global.u32 %r1, [%rd1];
    add.u32 %r1, %r1, 1;
    st.global.u32 [%rd1], %r1;
    bra AGAIN;
}";

#[test]
fn kernels_without_an_end_are_stopped_at_their_line() {
    let text = format!("{PTX_HEADER}{ENDLESS}");
    let first = text.lines().position(|l| l.contains("ld.global")).unwrap() + 1;
    let dir = folder(&[("k.ptx", text)]);
    let run = |limit: &str| sim(dir.path(), &format!("k.ptx --grid 1 --block 1 --arg buf:u32:1 {limit}"));
    let stopped = run("--limit-instructions 200000 --json");
    stopped.assert_refused(2, &["k.ptx:", "200000 instructions without progress", "--limit-instructions"]);
    let result: Value = serde_json::from_str(&stopped.stdout).expect("JSON");
    let message = result["findings"][0]["message"].as_str().expect("a message");
    assert!(message.contains(&format!("lines {first}, {}, ", first + 1)), "{message}");
    assert_eq!(result["interleavings"], 1);
    run("--max-seconds 0.05").assert_refused(2, &["k.ptx:", "0.05 s", "block (0,0,0)", "--max-seconds"]);
    run("--max-seconds 0").assert_refused(2, &["--max-seconds"]);
    run("--limit-instructions 0").assert_refused(2, &["--limit-instructions"]);
}

#[test]
fn memory_is_limited() {
    let huge = format!("{PTX_HEADER}.global .b8 table[1099511627776];\n.visible .entry k(.param .u64 p) {{ ret; }}");
    let dir = folder(&[("k.ptx", huge), ("e.ptx", format!("{PTX_HEADER}{ENDLESS}"))]);
    let run = |line: &str| sim(dir.path(), line);
    run("k.ptx --grid 1 --block 1 --arg buf:u8:1")
        .assert_refused(2, &["k.ptx", "table", "1099511627776", "--max-memory"]);
    let two_gib = "e.ptx --grid 1 --block 1 --arg buf:u8:2147483648";
    run(two_gib).assert_refused(2, &["--arg", "2147483648 bytes", "1024 MiB", "--max-memory"]);
    run("e.ptx --grid 1 --block 1 --arg buf:u8:1 --max-memory 0").assert_refused(2, &["--max-memory"]);
}

#[test]
fn structs_have_arrays_and_padding_and_buffers_a_constant() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{UNPACK_STRUCT_PTX}"))]);
    let line = "k.ptx --grid 1 --block 1 --arg struct:u16[4]=1,2,3,4,pad=8,buf=u64:1:fill=77,u8[8]=1";
    sim(dir.path(), &format!("{line} --arg buf:u64:4 --out r.safetensors")).ok();
    let out = stored(dir.path(), "r.safetensors", "arg1");
    assert_eq!(out, [0x0004_0003_0002_0001u64 as f64, 0.0, 77.0, 0x0101_0101_0101_0101u64 as f64]);
    let wrong = line.replace("u16[4]=1,2,3,4", "u16[4]=1,2,3");
    sim(dir.path(), &format!("{wrong} --arg buf:u64:4")).assert_refused(2, &["u16[4]", "3 values"]);
}

#[test]
fn messages_name_what_the_user_knows() {
    let shift = RACY_SHIFT_PTX
        .replace(".shared .align 4 .b8 tile[256];", "")
        .replace(".visible", ".extern .shared .align 4 .b8 tile[];\n.visible");
    let wait = "\n.visible .entry wait(.param .u64 px) { .reg .b32 %r<2>; .reg .pred %p; mov.u32 %r0, %tid.x;
        setp.lt.u32 %p, %r0, 32; @%p bar.sync 1, 256; @!%p bar.sync 2, 256; ret; }";
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}{shift}{wait}"))]);
    let run = |line: &str| sim(dir.path(), &format!("k.ptx --grid 1 {line}"));
    // If dynamic shared memory is missing, the message says so.
    let got = run("--entry shift --block 64 --arg buf:u32:64");
    assert!(got.stdout.contains("--smem is missing"), "{}", got.stdout);
    assert!(!run("--entry shift --block 64 --arg buf:u32:64 --smem 256").stdout.contains("--smem"));
    // A unique part of the demangled name selects the kernel, and reports show that name.
    let got = run("--entry xpy(float --block 32 --arg buf:f32:32 --arg buf:f32:32 --arg f32:1 --arg u32:32");
    assert!(
        got.ok().contains("k.ptx: saxpy(float const*, float*, float, unsigned int): no defects found"),
        "{}",
        got.stdout
    );
    // The report joins warps that wait for the same thing in one line.
    let got = run("--entry wait --block 256 --arg buf:u32:1");
    let waits: Vec<&str> = got.stdout.lines().filter(|l| l.contains("at barrier")).collect();
    assert!(waits.len() == 2 && waits[1].contains("warps 1 to 7 wait"), "{}", got.stdout);
    run("--entry shift --block 64 --arg buf:u32:64 --arch sm_120").assert_refused(2, &["--arch", "sm_80"]);
    run("--entry shift --block 64 --arg buf:u32:64 --arch sm_86").assert_refused(2, &["--arch", "sm_80"]);
}

#[test]
fn page_shows_source_counts_findings_and_roofline() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}{RACY_SHIFT_PTX}"))]);
    sim(dir.path(), "k.ptx --entry shift --grid 1 --block 64 --arg buf:u32:64 --html k.html")
        .assert_refused(1, &["race"]);
    let page = fs::read_to_string(dir.path().join("k.html")).expect("a page");
    for part in
        ["<title>shift: 1 finding in 8 interleavings", "st.shared.u32 [%r4], %r1;", ">race<", "H200", "class=\"bad\""]
    {
        assert!(page.contains(part), "no {part:?}");
    }
    check_page(&page);
    let args = "--entry saxpy --grid 1 --block 64 --arg buf:f32:64 --arg buf:f32:64 --arg f32:1 --arg u32:64";
    sim(dir.path(), &format!("k.ptx {args} --html k.html")).ok();
    let page = fs::read_to_string(dir.path().join("k.html")).expect("a page");
    assert_eq!(check_page(&page)[0]["points"].as_array().map(Vec::len), Some(1));
    assert!(page.contains("No findings") && page.contains("saxpy(float const*"), "{page}");
}

#[test]
fn closed_pipes_do_not_abort() {
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{RACY_SHIFT_PTX}"))]);
    let mut command = support::reel();
    command.current_dir(dir.path()).args([
        "sim",
        "run",
        "k.ptx",
        "--grid",
        "1",
        "--block",
        "64",
        "--arg",
        "buf:u32:64",
    ]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn compiler_options_reach_the_compiler() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let text = "#include \"size.h\"\n#if __cplusplus < 202002L\n#error old\n#endif\n\
                __global__ void k(int* x) { x[threadIdx.x] = SIZE + MORE; }\n";
    let dir = folder(&[("k.cu", text.into())]);
    fs::create_dir(dir.path().join("inc")).unwrap();
    fs::write(dir.path().join("inc/size.h"), "#define SIZE 40\n").unwrap();
    let line = "k.cu --grid 1 --block 4 --arg buf:i32:4 -I inc -DMORE=2 -std=c++20 --out r.safetensors";
    sim(dir.path(), line).ok();
    let bytes = fs::read(dir.path().join("r.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(all.tensor("arg0").unwrap().data()[..4], 42i32.to_le_bytes());
    sim(dir.path(), &line.replace("c++20", "c++99")).assert_refused(2, &["c++17"]);
    sim(dir.path(), &line.replace("-DMORE=2", "")).assert_refused(2, &["k.cu:5", "MORE"]);
}

#[test]
fn arguments_of_another_kind_are_refused() {
    // The argument types of SAXPY_PTX are in its C++ symbol, those of `plain` only in the PTX.
    let plain =
        ".visible .entry plain(.param .u64 px, .param .u32 n, .param .f64 a, .param .align 4 .b8 s[12]) { ret; }";
    let dir = folder(&[("k.ptx", format!("{PTX_HEADER}{SAXPY_PTX}\n{plain}"))]);
    let run = |line: &str| sim(dir.path(), &format!("k.ptx --grid 1 --block 32 {line}"));
    let saxpy = |a: &str, n: &str| run(&format!("--entry saxpy --arg buf:f32:32 --arg buf:f32:32 --arg {a} --arg {n}"));
    saxpy("f32:2", "u32:32").ok();
    saxpy("f32:2", "i32:32").ok();
    saxpy("f32:2", "f32:4096").assert_refused(
        2,
        &[
            "--arg f32:4096: is a floating-point number, but parameter 3 (pn: unsigned int, .u32) of kernel saxpy(float \
             const*, float*, float, unsigned int); write i32:4096 or u32:4096",
        ],
    );
    saxpy("f32:2", "f32:0.5").assert_refused(2, &["--arg f32:0.5", "pn", "write i32:VALUE or u32:VALUE"]);
    saxpy("i32:2", "u32:32").assert_refused(2, &["--arg i32:2: is an integer", "pa: float, .f32", "; write f32:2"]);
    saxpy("f64:2", "u32:32").assert_refused(2, &["--arg f64:2", "another type", "; write f32:2"]);
    saxpy("buf:f32:1", "u32:32").assert_refused(2, &["--arg buf:f32:1: is a pointer", "pa", "; write f32:VALUE"]);
    saxpy("f32:2", "u64:32").assert_refused(2, &["--arg u64:32: has 8 bytes", "pn", "has 4; write i32:32 or u32:32"]);
    let plain = |x: &str, n: &str, a: &str| {
        run(&format!("--entry plain --arg {x} --arg {n} --arg {a} --arg struct:u32=1,f32=2,u32=3"))
    };
    plain("buf:f32:4", "u32:1", "f64:1").ok();
    plain("u64:0", "i32:1", "f64:1").ok();
    plain("f64:0", "u32:1", "f64:1")
        .assert_refused(2, &["--arg f64:0", "parameter 0 (px: .u64) of kernel plain", "buf:TYPE"]);
    plain("buf:f32:4", "f32:1", "f64:1")
        .assert_refused(2, &["--arg f32:1", "parameter 1 (n: .u32)", "write i32:1 or u32:1"]);
    plain("buf:f32:4", "u32:1", "u64:1").assert_refused(2, &["--arg u64:1", "parameter 2 (a: .f64)", "write f64:1"]);
}

/// Returns a PTX file whose kernel `k` has a statement of `braces.txt`.
fn with_statement(statement: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 a) {{
        .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<16>; .reg .f32 %f<16>; .reg .f64 %e<8>;
        .reg .v2 .b32 %v; .shared .align 128 .b8 sm[1024];\n{statement}\nret; }}\n"
    )
}

/// Checks the list `braces.txt` of valid and invalid statements against ptxas. The simulator's own test relies on
/// this list.
#[test]
fn the_list_of_operands_in_braces_agrees_with_ptxas() {
    let takes = |statement: &str| compile::registers_of_kernel(&with_statement(statement), "k", &[]).is_some();
    if !takes("mov.u32 %r1, 0;") {
        eprintln!("skipped: ptxas is not installed");
        return;
    }
    for form in include_str!("../sim/tests/foreign/braces.txt").lines() {
        let (verdict, statement) = form.split_once(' ').unwrap();
        if verdict == "unstable" {
            continue;
        }
        assert_eq!(takes(statement), verdict == "accepted", "{statement}");
    }
}

const POLLING: &str = include_str!("../sim/tests/foreign/polling.cu");

#[test]
fn blocks_that_poll_together_are_no_deadlock() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let dir = folder(&[("poll.cu", POLLING.into())]);
    for kernel in ["exchange", "vote"] {
        let buffers = "--arg buf:i32:1:zeros --arg buf:f32:4:zeros --arg buf:f32:4:zeros --arg i32:4";
        let line =
            format!("poll.cu --entry {kernel} --grid 4 --block 64 {buffers} --interleavings 4 --out o.safetensors");
        sim(dir.path(), &line).ok();
        assert_eq!(stored(dir.path(), "o.safetensors", "arg2"), [2.0, 3.0, 4.0, 1.0], "{kernel}");
    }
}

/// The simulator reports a wgmma descriptor whose leading byte offset contains the block's rank in its cluster.
/// Measured on an H200: the block of rank 1 then reads two rows too far in columns 64 to 127.
#[test]
fn a_descriptor_with_a_rank_is_reported() {
    let text = include_str!("../sim/tests/corpus_async/rank_in_shared_address.ptx");
    let dir = folder(&[("rank.ptx", text.into())]);
    let run = |entry: &str| {
        let buffers = "--arg buf:f32:16384:uninit --arg buf:u32:4:zeros --out o.safetensors --interleavings 2";
        sim(dir.path(), &format!("rank.ptx --entry {entry} --grid 2 --block 128 --cluster 2 {buffers}"))
    };
    let wrong = || {
        let got = stored(dir.path(), "o.safetensors", "arg0");
        let bad = |i: &usize| got[*i] != ((i / 128 % 16 * 128 + i % 128) % 251) as f64;
        (0..16384).filter(bad).map(|i| (i / 8192, i % 128 / 64)).collect::<std::collections::BTreeSet<_>>()
    };
    run("right").ok();
    assert!(wrong().is_empty());
    let got = run("wrong");
    assert_eq!(got.code, Some(1));
    assert!(
        got.stdout.contains("encode the address in the wgmma descriptor as (address & 0x3ffff) >> 4"),
        "{}",
        got.stdout
    );
    assert_eq!(wrong(), [(1, 1)].into());
    assert_eq!(stored(dir.path(), "o.safetensors", "arg1"), [1024.0, 0.0, 16778240.0, 1.0]);
}

/// In PTX, barriers with the same number are one barrier; in CUDA, two calls of `__syncthreads()` are two barriers.
#[test]
fn a_barrier_in_divergent_warps_is_a_note_for_cuda() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let text = |condition: &str| {
        format!(
            "__global__ void k(int* x, int n) {{\n  __shared__ int s[64];\n  s[threadIdx.x] = n;\n  if ({condition}) {{\n    \
             __syncthreads();\n    x[threadIdx.x] = s[63 - threadIdx.x];\n  }} else {{\n    __syncthreads();\n    \
             x[threadIdx.x] = s[63 - threadIdx.x] + 1;\n  }}\n}}\n"
        )
    };
    let dir = folder(&[("warp.cu", text("threadIdx.x < 32")), ("all.cu", text("n < 32"))]);
    let notes = |file: &str| {
        let line = format!("{file} --grid 1 --block 64 --arg buf:i32:64 --arg i32:7 --json");
        sim(dir.path(), &line).json()["notes"].to_string()
    };
    let got = notes("warp.cu");
    assert!(got.contains("line 5: warps of one block") && got.contains("(others at line 8)"), "{got}");
    assert_eq!(got.matches("__syncthreads()").count(), 2, "{got}");
    assert_eq!(notes("all.cu"), "[]");
}
