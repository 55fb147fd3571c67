//! Runs launches of checks on the simulator.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use reel_device::launch::{Arch, KernelLaunch};
use reel_device::simulate::{self, SimulatedStage};
use reel_sim::counters::Counters;
use reel_sim::exec::{CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;

use super::RUNNING;
use super::arrays::{CheckArray, arrays_of_launch, simulator_memory};

/// A recorded launch with the contents of its arrays before the launch.
#[derive(Clone, Debug)]
pub struct RecordedLaunch {
    /// The launch.
    pub launch: KernelLaunch,
    /// For each array: its address, its bytes before the launch, and whether a kernel may read it.
    pub arrays: Vec<(u64, Vec<u8>, bool)>,
    /// Symbol and counters of each stage under the first interleaving, on the GPU that the check's setup names.
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
    let gpu = RUNNING.with_borrow(|r| r.only_gpu).unwrap_or_else(|| gpu_of_interleaving(seed));
    staged_results(launch, arrays, seed, gpu).1
}

/// Returns the GPU that the interleaving with this seed simulates, if all GPUs run the same kernels.
fn gpu_of_interleaving(seed: u64) -> Arch {
    if seed % 8 == 1 { Arch::H100 } else { Arch::A100 }
}

/// Whether an H100 runs other kernels for this launch than an A100.
fn has_kernels_for_h100(launch: &KernelLaunch) -> bool {
    let symbols = |arch| (launch.kernel.plan)(&launch.params, &arch).into_iter().map(|stage| stage.symbol);
    !symbols(Arch::A100).eq(symbols(Arch::H100))
}

/// Runs a launch under one interleaving. Returns its stages and the contents of each array after the launch.
fn staged_results(
    launch: &KernelLaunch,
    arrays: &[CheckArray],
    seed: u64,
    arch: Arch,
) -> (Vec<SimulatedStage>, Vec<Vec<u8>>) {
    let mut memory = simulator_memory(arrays);
    let completion = COMPLETION_TIMINGS[seed as usize % 3];
    let options =
        ExecOptions { gpu: simulate::gpu_spec(&arch), seed, completion, strict_proxy: true, ..ExecOptions::default() };
    let sm = if launch.kernel.source.has_hopper_code() { arch.sm } else { 80 };
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
const LARGE_LAUNCH: u64 = 1 << 14;
/// A launch that executes more warp instructions than this is very large, see [`run_interleavings`].
const VERY_LARGE_LAUNCH: u64 = 1 << 17;

/// Runs a launch on the simulator under several interleavings, on all processors; the results must agree bit for bit.
/// If an H100 runs other kernels for this launch than an A100, results on the two GPUs may differ in bits. All
/// interleavings then simulate the setup's GPU, and every second interleaving simulates it with only two
/// multiprocessors ([`Arch::with_two_multiprocessors`]).
///
/// Tests run each kernel on many shapes. In tests a large launch gets one interleaving per element of
/// [`COMPLETION_TIMINGS`], and a very large one two; launches with small shapes get all interleavings.
pub fn run_interleavings(launch: &KernelLaunch) {
    let arrays = arrays_of_launch(launch);
    let (seed, interleavings, in_test, record, first_gpu, only_gpu, again) = RUNNING.with_borrow(|r| {
        let (setup, gpu) = (&r.setup, r.only_gpu.unwrap_or(r.setup.first_gpu));
        let (record, again) = (setup.record && gpu == setup.first_gpu, setup.first_gpu != Arch::A100);
        (setup.seed, setup.interleavings.max(1), setup.in_test, record, gpu, r.only_gpu, again)
    });
    let first_seed = seed.wrapping_mul(8);
    let (staged, first) = staged_results(launch, &arrays, first_seed, first_gpu);
    let warps: u64 = staged.iter().map(|s| s.counters.total().warps).sum();
    let most = match warps {
        _ if !in_test => u64::MAX,
        VERY_LARGE_LAUNCH.. => 2,
        LARGE_LAUNCH.. => COMPLETION_TIMINGS.len() as u64,
        _ => u64::MAX,
    };
    let interleavings = interleavings.min(most);
    if record {
        let arrays = arrays.iter().map(|a| (a.at, a.read(), a.written)).collect();
        let stages = staged.into_iter().map(|s| (s.stage.symbol, s.counters)).collect();
        RUNNING.with_borrow_mut(|r| r.ran.recorded.push(RecordedLaunch { launch: launch.clone(), arrays, stages }));
    }
    let seeds = (0..interleavings).map(|n| first_seed.wrapping_add(n));
    let others = only_gpu.is_none() && has_kernels_for_h100(launch);
    RUNNING.with_borrow_mut(|r| r.ran.has_kernels_for_h100 |= others);
    let gpu_of = |seed| match only_gpu {
        None if !others => gpu_of_interleaving(seed),
        _ if seed % 2 == 1 => first_gpu.with_two_multiprocessors(),
        _ => first_gpu,
    };
    let mut runs: Vec<(u64, Arch)> = seeds.skip(1).map(|seed| (seed, gpu_of(seed))).collect();
    // This is the check's second run (on an H100). Its first run, on an A100, has already tried the other interleavings
    // of launches that have the same kernels on both GPUs.
    if !others && in_test && again {
        runs.clear();
    }
    let next = AtomicUsize::new(0);
    let compare_the_rest = || {
        while let Some(&(seed, gpu)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            assert!(
                first == staged_results(launch, &arrays, seed, gpu).1,
                "{}: results of the interleaving of seed {seed} on sm_{} differ from those of the first interleaving",
                launch.kernel.name,
                gpu.sm
            );
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(runs.len());
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

/// Runs a launch on a given GPU under one interleaving and writes its results back. Asserts that there are no findings.
/// Returns the instruction counts, summed over the launch's stages.
#[cfg(test)]
pub fn run_and_count_on(launch: &reel_device::Launch, arch: &Arch, seed: u64) -> reel_sim::counters::InstructionCounts {
    let mut sum = reel_sim::counters::InstructionCounts::default();
    let reel_device::Launch::Kernel(launch) = launch else { return sum };
    let arrays = arrays_of_launch(launch);
    let (staged, results) = staged_results(launch, &arrays, seed, *arch);
    staged.iter().for_each(|s| sum.add(&s.counters.total()));
    arrays.iter().zip(&results).for_each(|(array, result)| array.write(result));
    sum
}

/// Runs a launch on a given GPU under one interleaving of each of [`COMPLETION_TIMINGS`]; the results must agree.
#[cfg(test)]
pub fn run_with_every_timing_on(launch: &reel_device::Launch, arch: Arch) {
    let reel_device::Launch::Kernel(launch) = launch else { panic!("no kernel") };
    let arrays = arrays_of_launch(launch);
    let results = |seed| staged_results(launch, &arrays, seed, arch).1;
    let first = results(0);
    for seed in 1..COMPLETION_TIMINGS.len() as u64 {
        assert!(first == results(seed), "{}: results of the interleaving of seed {seed}", launch.kernel.name);
    }
    for (array, result) in arrays.iter().zip(&first) {
        array.write(result);
    }
}

/// Simulates a launch on an A100 and returns its stages. Asserts that there are no findings; writes no results back.
#[cfg(test)]
pub fn simulated_stages(launch: &reel_device::Launch) -> Vec<SimulatedStage> {
    simulated_stages_on(launch, &Arch::A100)
}

/// Simulates a launch on a given GPU and returns its stages, as [`simulated_stages`] does on an A100.
#[cfg(test)]
pub fn simulated_stages_on(launch: &reel_device::Launch, arch: &Arch) -> Vec<SimulatedStage> {
    let reel_device::Launch::Kernel(launch) = launch else { return Vec::new() };
    let mut memory = simulator_memory(&arrays_of_launch(launch));
    let options = ExecOptions { gpu: simulate::gpu_spec(arch), ..ExecOptions::default() };
    let staged = simulate::run(launch, arch, &mut memory, &options).expect("it runs");
    nothing_found(launch, &staged, options.seed);
    staged
}

/// Returns the instruction counts of a launch on an A100, summed over its stages.
#[cfg(test)]
pub fn simulated_counts(launch: &reel_device::Launch) -> reel_sim::counters::InstructionCounts {
    simulated_counts_on(launch, &Arch::A100)
}

/// Returns the instruction counts of a launch on a given GPU, summed over its stages.
#[cfg(test)]
pub fn simulated_counts_on(launch: &reel_device::Launch, arch: &Arch) -> reel_sim::counters::InstructionCounts {
    let mut sum = reel_sim::counters::InstructionCounts::default();
    simulated_stages_on(launch, arch).iter().for_each(|s| sum.add(&s.counters.total()));
    sum
}
