//! Thread instructions per second of a scalar kernel with all checks, on one thread: 256 threads × 4096 blocks, one
//! instruction in four is a global or shared access. `cargo bench -p reel-sim --bench scalar`. Excludes the time of
//! other processes.

use reel_sim::exec::{self, ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use std::time::Instant;

const BLOCKS: u32 = 4096;
const WORDS: u32 = 1 << 20;

/// Returns the CPU seconds of this thread, if the system provides them.
fn on_cpu() -> Option<f64> {
    // The kernel updates the count when the scheduler runs, otherwise only at each tick.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? as f64 * 1e-9)
}

fn run(program: &Program, dynamic_shared: u32) -> (u64, f64) {
    let kernel = program.kernel("scalar").expect("scalar.ptx has the kernel");
    let mut memory = SimMemory::new();
    let x = memory.alloc((0..WORDS).flat_map(|i| (i as f32 * 1e-6).to_le_bytes()).collect());
    let y = memory.alloc_uninitialized(4 * 256 * BLOCKS as usize);
    let mut params = [x.to_le_bytes(), y.to_le_bytes()].concat();
    params.extend((WORDS - 1).to_le_bytes());
    let launch = LaunchConfig { grid: [BLOCKS, 1, 1], block: [256, 1, 1], cluster: [1, 1, 1], dynamic_shared, params };
    let (start, before) = (Instant::now(), on_cpu());
    let outcome =
        exec::run(program, &kernel, &launch, &mut memory, &ExecOptions::default()).expect("a launch that fits");
    let seconds = start.elapsed().as_secs_f64();
    let seconds = on_cpu().zip(before).map_or(seconds, |(after, before)| after - before);
    assert!(outcome.findings.is_empty(), "{:?}", outcome.findings.into_list());
    (outcome.counters.total().threads, seconds)
}

fn main() {
    let program = Program::parse(include_str!("scalar.ptx")).expect("scalar.ptx parses");
    for (what, dynamic_shared) in [("scalar kernel", 0), ("with 128 KiB of dynamic shared memory", 128 << 10)] {
        let rounds = (0..5).map(|_| run(&program, dynamic_shared));
        let (threads, seconds) = rounds.min_by(|a, b| a.1.total_cmp(&b.1)).expect("five rounds");
        println!("{what:<40} {:8.1} million thread instructions a second", threads as f64 / seconds / 1e6);
    }
}
