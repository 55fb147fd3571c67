//! Measures the simulator's speed on whole kernels with matrix instructions, with all checks on, on one thread: single
//! runs, and checks of eight interleavings, whose runs share the products of wgmma.
//!
//! `cargo bench -p reel-sim --bench matrix_kernels [-- mma|wgmma]`

mod common;

use common::run_timed;
use reel_sim::check::{CheckPlan, check_kernel};
use reel_sim::exec::{self, CompletionTiming, ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

const K: usize = 2048;

fn program(file: &str) -> Program {
    let path = format!("{}/tests/corpus_async/{file}.ptx", env!("CARGO_MANIFEST_DIR"));
    Program::parse(&std::fs::read_to_string(path).expect("the corpus has the file")).expect("it parses")
}

fn measure(name: &str, program: &Program, kernel: &str, setup: impl Fn(&mut SimMemory) -> LaunchConfig) {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    if only.is_some_and(|only| !name.starts_with(&only)) {
        return;
    }
    let kernel = program.kernel(kernel).expect("the kernel is there");
    for completion in [CompletionTiming::Latest, CompletionTiming::Earliest] {
        let mut best = f64::INFINITY;
        let mut flops = 0;
        for seed in 0..8 {
            let mut memory = SimMemory::new();
            let launch = setup(&mut memory);
            let options = ExecOptions { seed, completion, ..ExecOptions::default() };
            let (outcome, seconds) = run_timed(|| exec::run(program, &kernel, &launch, &mut memory, &options));
            let outcome = outcome.expect("the launch is valid");
            best = best.min(seconds);
            assert!(outcome.findings.is_empty(), "{:#?}", outcome.findings.into_list());
            flops = outcome.counters.total().matrix_flops;
        }
        println!("{name} {completion:?}: {:.1} ms, {:.1} GFLOP/s", best * 1e3, flops as f64 / best / 1e9);
    }
    let mut best = f64::INFINITY;
    let mut flops = 0;
    for _ in 0..4 {
        let mut memory = SimMemory::new();
        let launch = setup(&mut memory);
        let plan = CheckPlan { threads: 1, ..CheckPlan::default() };
        let (report, seconds) = run_timed(|| check_kernel(program, &kernel, &launch, &memory, &plan));
        let report = report.expect("the launch is valid");
        assert!(report.has_no_findings(), "{:#?}", report.findings);
        best = best.min(seconds);
        flops = report.counters[0].total().matrix_flops * u64::from(report.interleavings);
    }
    println!("{name}, eight interleavings: {:.1} ms, {:.1} GFLOP/s", best * 1e3, flops as f64 / best / 1e9);
}

fn ones(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (0x3f80 + (i % 7) as u16).to_le_bytes()).collect()
}

fn launch(grid: [u32; 3], threads: u32, dynamic_shared: u32, params: Vec<u8>) -> LaunchConfig {
    LaunchConfig { grid, block: [threads, 1, 1], cluster: [1, 1, 1], dynamic_shared, params }
}

fn main() {
    measure("mma.sync, 256×256×2048", &program("mma"), "gemm_0", |memory| {
        let (a, b) = (memory.alloc(ones(256 * K)), memory.alloc(ones(256 * K)));
        let d = memory.alloc_uninitialized(4 * 256 * 256);
        let mut params: Vec<u8> = [a, b, d].into_iter().flat_map(u64::to_le_bytes).collect();
        params.extend([256u32, K as u32].into_iter().flat_map(u32::to_le_bytes));
        launch([2, 2, 1], 256, 0, params)
    });
    measure("wgmma, 256×256×2048", &program("gemm"), "gemm_0", |memory| {
        let (a, b) = (memory.alloc(ones(256 * K)), memory.alloc(ones(256 * K)));
        let d = memory.alloc_uninitialized(4 * 256 * 256);
        let operand = |address, rows| {
            let map = TensorMap::tiled(
                DataType::Bf16,
                address,
                &[K as u64, 256],
                &[2 * K as u64],
                &[64, rows],
                Swizzle::B128,
            );
            map.and_then(|m| m.encode()).expect("a good map")
        };
        let result = TensorMap::tiled(DataType::F32, d, &[256, 256], &[1024], &[32, 64], Swizzle::None);
        let mut params = operand(a, 128).to_vec();
        params.extend(operand(b, 64));
        params.extend(result.and_then(|m| m.encode()).expect("a good map"));
        params.extend((K as u32).to_le_bytes());
        launch([2, 2, 1], 384, 3 * 2 * 16384 + 65536 + 64, params)
    });
}
