//! Runs launches of checks on the simulator.

use super::RUNNING;
use super::arrays::{Array, arrays_of, memory_of};
use crate::launch::{Arch, KernelLaunch};
use crate::simulate::{self, SimulatedStage};
use reel_sim::counters::Counters;
use reel_sim::exec::{CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;

/// A recorded launch with the contents of its arrays before it.
#[derive(Clone, Debug)]
pub struct RecordedLaunch {
    /// The call.
    pub launch: KernelLaunch,
    /// Its arrays: address, bytes, and whether a kernel may read them.
    pub arrays: Vec<(u64, Vec<u8>, bool)>,
    /// Symbol and counters of its stages on an A100 under the first interleaving.
    pub stages: Vec<(&'static str, Counters)>,
}

impl RecordedLaunch {
    /// Simulator memory with the recorded arrays.
    pub fn memory(&self) -> SimMemory {
        let mut memory = SimMemory::new();
        for (at, bytes, written) in &self.arrays {
            memory.map(*at, bytes.clone(), *written);
        }
        memory
    }
}

/// The completion times of asynchronous copies, in the order in which interleavings try them.
pub const MOMENTS: [CompletionTiming; 3] =
    [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];

/// The contents of each array after the launch under one interleaving.
pub fn results(launch: &KernelLaunch, arrays: &[Array], seed: u64) -> Vec<Vec<u8>> {
    staged_results(launch, arrays, seed).1
}

/// The stages of a launch under one interleaving, and the contents of each array afterwards.
fn staged_results(launch: &KernelLaunch, arrays: &[Array], seed: u64) -> (Vec<SimulatedStage>, Vec<Vec<u8>>) {
    let mut memory = memory_of(arrays);
    let completion = MOMENTS[seed as usize % 3];
    let arch = if seed % 8 == 1 { Arch::H100 } else { Arch::A100 };
    let options = ExecOptions { gpu: simulate::gpu(&arch), seed, completion, ..ExecOptions::default() };
    let staged = match simulate::run(launch, &Arch { sm: 80, ..arch }, &mut memory, &options) {
        Ok(staged) => staged,
        Err(e) => panic!("{}: {e}", launch.kernel.name),
    };
    nothing_found(launch, &staged, seed);
    let results = arrays.iter().map(|a| memory.bytes(a.at).map(<[u8]>::to_vec).unwrap_or_default()).collect();
    (staged, results)
}

fn nothing_found(launch: &KernelLaunch, staged: &[SimulatedStage], seed: u64) {
    for s in staged {
        let list: Vec<String> =
            s.findings.iter().map(|f| format!("line {}: {}: {}", f.line, f.kind.name(), f.message)).collect();
        assert!(list.is_empty(), "{} (seed {seed}) {:?}:\n{}", s.stage.symbol, launch.kernel, list.join("\n"));
    }
}

/// Runs a launch on the simulator under several interleavings, whose results must agree bit for bit.
pub fn run(launch: &KernelLaunch) {
    let arrays = arrays_of(launch);
    let (seed, interleavings, record) =
        RUNNING.with_borrow(|r| (r.setup.seed, r.setup.interleavings.max(1), r.setup.record));
    let seeds = (0..interleavings).map(|i| seed.wrapping_mul(8).wrapping_add(i));
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in seeds {
        let (staged, results) = staged_results(launch, &arrays, seed);
        if record && first.is_none() {
            let arrays = arrays.iter().map(|a| (a.at, a.read(), a.written)).collect();
            let stages = staged.into_iter().map(|s| (s.stage.symbol, s.counters)).collect();
            RUNNING.with_borrow_mut(|r| r.ran.recorded.push(RecordedLaunch { launch: launch.clone(), arrays, stages }));
        }
        match &first {
            None => first = Some(results),
            Some(first) => assert!(
                *first == results,
                "{}: results under the interleaving of seed {seed} differ from those of the first",
                launch.kernel.name
            ),
        }
    }
    for (array, result) in arrays.iter().zip(first.iter().flatten()) {
        array.write(result);
    }
}

/// The simulated stages of a launch on an A100; asserts that there are no findings and writes no results back.
#[cfg(test)]
pub fn staged(launch: &crate::Launch) -> Vec<SimulatedStage> {
    staged_on(launch, &Arch::A100)
}

#[cfg(test)]
fn staged_on(launch: &crate::Launch, arch: &Arch) -> Vec<SimulatedStage> {
    let crate::Launch::Kernel(launch) = launch else { return Vec::new() };
    let mut memory = memory_of(&arrays_of(launch));
    let options = ExecOptions { gpu: simulate::gpu(arch), ..ExecOptions::default() };
    let staged = simulate::run(launch, arch, &mut memory, &options).expect("it runs");
    nothing_found(launch, &staged, options.seed);
    staged
}

/// The counters of a launch on an A100, summed over its stages.
#[cfg(test)]
pub fn counted(launch: &crate::Launch) -> reel_sim::counters::InstructionCounts {
    counted_on(launch, &Arch::A100)
}

/// The counters of a launch on a given GPU, summed over its stages.
#[cfg(test)]
pub fn counted_on(launch: &crate::Launch, arch: &Arch) -> reel_sim::counters::InstructionCounts {
    let mut sum = reel_sim::counters::InstructionCounts::default();
    staged_on(launch, arch).iter().for_each(|s| sum.add(&s.counters.total()));
    sum
}
