//! Runs launches of checks on the simulator.

use super::RUNNING;
use super::arrays::{CheckArray, arrays_of, simulator_memory};
use crate::launch::{Arch, KernelLaunch};
use crate::simulate::{self, SimulatedStage};
use reel_sim::counters::Counters;
use reel_sim::exec::{CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A recorded launch with the contents of its arrays before the launch.
#[derive(Clone, Debug)]
pub struct RecordedLaunch {
    /// The launch.
    pub launch: KernelLaunch,
    /// For each array: its address, its bytes before the launch, and whether a kernel may read it.
    pub arrays: Vec<(u64, Vec<u8>, bool)>,
    /// Symbol and counters of each stage on an A100 under the first interleaving.
    pub stages: Vec<(&'static str, Counters)>,
}

impl RecordedLaunch {
    /// Returns simulator memory with the recorded arrays.
    pub fn memory(&self) -> SimMemory {
        let mut memory = SimMemory::new();
        for (at, bytes, written) in &self.arrays {
            memory.map_buffer(*at, bytes.clone(), *written);
        }
        memory
    }
}

/// When asynchronous copies complete. The interleaving with seed s uses element s modulo 3.
pub const COMPLETION_TIMINGS: [CompletionTiming; 3] =
    [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];

/// Returns the contents of each array after the launch under one interleaving.
pub fn simulated_array_contents(launch: &KernelLaunch, arrays: &[CheckArray], seed: u64) -> Vec<Vec<u8>> {
    staged_results(launch, arrays, seed).1
}

/// Runs a launch under one interleaving; returns its stages and the contents of each array afterwards.
fn staged_results(launch: &KernelLaunch, arrays: &[CheckArray], seed: u64) -> (Vec<SimulatedStage>, Vec<Vec<u8>>) {
    let mut memory = simulator_memory(arrays);
    let completion = COMPLETION_TIMINGS[seed as usize % 3];
    let arch = if seed % 8 == 1 { Arch::H100 } else { Arch::A100 };
    let options = ExecOptions { gpu: simulate::gpu_spec(&arch), seed, completion, ..ExecOptions::default() };
    let sm = if launch.kernel.source.has_dependent_launches() { arch.sm } else { 80 };
    let staged = match simulate::run(launch, &Arch { sm, ..arch }, &mut memory, &options) {
        Ok(staged) => staged,
        Err(e) => panic!("{}: {e}", launch.kernel.name),
    };
    nothing_found(launch, &staged, seed);
    let results = arrays.iter().map(|a| memory.buffer_bytes(a.at).map(<[u8]>::to_vec).unwrap_or_default()).collect();
    (staged, results)
}

fn nothing_found(launch: &KernelLaunch, staged: &[SimulatedStage], seed: u64) {
    for s in staged {
        let list: Vec<String> =
            s.findings.iter().map(|f| format!("line {}: {}: {}", f.line, f.kind.name(), f.message)).collect();
        assert!(list.is_empty(), "{} (seed {seed}) {:?}:\n{}", s.stage.symbol, launch.kernel, list.join("\n"));
    }
}

/// A launch that executes more warp instructions than this is large, see [`run_interleavings`].
const LARGE_LAUNCH: u64 = 1 << 16;

/// Runs a launch on the simulator under several interleavings, on all processors; the results must agree bit for bit.
///
/// Tests run each kernel on many shapes. There a large launch gets one interleaving per element of
/// [`COMPLETION_TIMINGS`]; the small shapes of the same kernel get all of them.
pub fn run_interleavings(launch: &KernelLaunch) {
    let arrays = arrays_of(launch);
    let (seed, interleavings, in_test, record) =
        RUNNING.with_borrow(|r| (r.setup.seed, r.setup.interleavings.max(1), r.setup.in_test, r.setup.record));
    let first_seed = seed.wrapping_mul(8);
    let (staged, first) = staged_results(launch, &arrays, first_seed);
    let warps: u64 = staged.iter().map(|s| s.counters.total().warps).sum();
    let interleavings = if in_test && warps > LARGE_LAUNCH {
        interleavings.min(COMPLETION_TIMINGS.len() as u64)
    } else {
        interleavings
    };
    if record {
        let arrays = arrays.iter().map(|a| (a.at, a.read(), a.written)).collect();
        let stages = staged.into_iter().map(|s| (s.stage.symbol, s.counters)).collect();
        RUNNING.with_borrow_mut(|r| r.ran.recorded.push(RecordedLaunch { launch: launch.clone(), arrays, stages }));
    }
    let next = AtomicU64::new(1);
    let compare_the_rest = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= interleavings {
                return;
            }
            let seed = first_seed.wrapping_add(n);
            assert!(
                first == simulated_array_contents(launch, &arrays, seed),
                "{}: results under the interleaving of seed {seed} differ from those of the first interleaving",
                launch.kernel.name
            );
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(interleavings as usize - 1);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(compare_the_rest)).collect();
        compare_the_rest();
        for other in others {
            other.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        }
    });
    for (array, result) in arrays.iter().zip(&first) {
        array.write(result);
    }
}

/// Simulates a launch on an A100 and returns its stages. Asserts that there are no findings; writes no results back.
#[cfg(test)]
pub fn simulated_stages(launch: &crate::Launch) -> Vec<SimulatedStage> {
    staged_on(launch, &Arch::A100)
}

#[cfg(test)]
fn staged_on(launch: &crate::Launch, arch: &Arch) -> Vec<SimulatedStage> {
    let crate::Launch::Kernel(launch) = launch else { return Vec::new() };
    let mut memory = simulator_memory(&arrays_of(launch));
    let options = ExecOptions { gpu: simulate::gpu_spec(arch), ..ExecOptions::default() };
    let staged = simulate::run(launch, arch, &mut memory, &options).expect("it runs");
    nothing_found(launch, &staged, options.seed);
    staged
}

/// Returns the instruction counts of a launch on an A100, summed over its stages.
#[cfg(test)]
pub fn simulated_counts(launch: &crate::Launch) -> reel_sim::counters::InstructionCounts {
    simulated_counts_on(launch, &Arch::A100)
}

/// Returns the instruction counts of a launch on a given GPU, summed over its stages.
#[cfg(test)]
pub fn simulated_counts_on(launch: &crate::Launch, arch: &Arch) -> reel_sim::counters::InstructionCounts {
    let mut sum = reel_sim::counters::InstructionCounts::default();
    staged_on(launch, arch).iter().for_each(|s| sum.add(&s.counters.total()));
    sum
}
