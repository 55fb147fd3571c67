//! Measures thread instructions per second of a scalar kernel with all checks, on one thread: 4096 blocks of 256
//! threads; one instruction in four accesses global or shared memory. `cargo bench -p reel-sim --bench scalar`.

mod common;

use common::run_timed;
use reel_sim::exec::{self, ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;

const BLOCKS: u32 = 4096;
const WORDS: u32 = 1 << 20;

fn run(program: &Program, dynamic_shared: u32) -> (u64, f64) {
    let kernel = program.kernel("scalar").expect("scalar.ptx must contain the kernel `scalar`");
    let mut memory = SimMemory::new();
    let x = memory.alloc((0..WORDS).flat_map(|i| (i as f32 * 1e-6).to_le_bytes()).collect());
    let y = memory.alloc_uninitialized(4 * 256 * BLOCKS as usize);
    let mut params = [x.to_le_bytes(), y.to_le_bytes()].concat();
    params.extend((WORDS - 1).to_le_bytes());
    let launch = LaunchConfig { grid: [BLOCKS, 1, 1], block: [256, 1, 1], cluster: [1, 1, 1], dynamic_shared, params };
    let (outcome, seconds) = run_timed(|| exec::run(program, &kernel, &launch, &mut memory, &ExecOptions::default()));
    let outcome = outcome.expect("the launch is valid");
    assert!(outcome.findings.is_empty(), "{:?}", outcome.findings.into_list());
    (outcome.counters.total().threads, seconds)
}

fn main() {
    let program = Program::parse(include_str!("scalar.ptx")).expect("scalar.ptx parses");
    for (what, dynamic_shared) in [("scalar kernel", 0), ("scalar kernel, 128 KiB shared memory", 128 << 10)] {
        let rounds = (0..5).map(|_| run(&program, dynamic_shared));
        let (threads, seconds) = rounds.min_by(|a, b| a.1.total_cmp(&b.1)).expect("five rounds");
        println!("{what:<40} {:8.1} million thread instructions/s", threads as f64 / seconds / 1e6);
    }
}
