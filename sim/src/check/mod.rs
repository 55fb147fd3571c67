//! Checks kernels under several interleavings (orders in which the warps run).
//!
//! Each interleaving runs the same launches on a copy of the same memory, with another seed and another completion
//! timing of asynchronous operations. The report merges the findings of all runs and notes buffers whose results
//! differ between runs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::counters::Counters;
use crate::exec::{self, CompletionTiming, EarlyStop, ExecOptions, LaunchConfig, LaunchError, SimLaunch, SimOutcome};
use crate::finding::{Finding, Findings};
use crate::memory::SimMemory;
use crate::program::{Kernel, Program};
use crate::value::ElementType;

mod estimate;

pub use estimate::{CheckEstimate, estimate_check};

/// The name and element type of a buffer, for messages.
#[derive(Clone, Debug)]
pub struct NamedBuffer {
    /// Address of the first byte, as [`SimMemory::alloc`] returned it.
    pub address: u64,
    /// Name in messages, for example `arg2`.
    pub name: String,
    /// Type of the elements.
    pub dtype: ElementType,
}

/// How to check a kernel.
#[derive(Clone, Debug)]
pub struct CheckPlan {
    /// Number of runs, at least 1.
    pub interleavings: u32,
    /// Number of host threads that share the runs. The report does not depend on this number.
    pub threads: usize,
    /// Options of every run. Each run gets another seed, computed from `options.seed`; the first run uses
    /// `options.completion` and the others go through all completion timings.
    pub options: ExecOptions,
    /// Names of buffers in messages; other buffers are named by number.
    pub buffers: Vec<NamedBuffer>,
}

impl Default for CheckPlan {
    /// The default plan: eight interleavings, on as many host threads as the processor offers.
    fn default() -> CheckPlan {
        CheckPlan {
            interleavings: 8,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            options: ExecOptions::default(),
            buffers: Vec::new(),
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// Defects that any run found: one list per launch. Findings with the same cause are merged.
    pub findings: Vec<Vec<Finding>>,
    /// Remarks that are not defects, from all runs; among them the buffers whose results differ between runs.
    pub notes: Vec<String>,
    /// Counters of the first run, one entry per launch.
    pub counters: Vec<Counters>,
    /// Text that the first run printed.
    pub printed: String,
    /// Memory after the first run.
    pub memory: SimMemory,
    /// Number of runs, one per interleaving.
    pub interleavings: u32,
    /// The reason why a limit stopped a run before its kernel ended; no further runs follow. `None` if every kernel
    /// ended.
    pub stopped: Option<EarlyStop>,
}

impl CheckReport {
    /// Returns whether no run has found a defect.
    pub fn has_no_findings(&self) -> bool {
        self.findings.iter().all(Vec::is_empty)
    }
}

/// Checks launches that run one after the other, on a clone of `memory` for each interleaving.
///
/// # Errors
/// Returns an error if a launch is outside of the limits of its kernel or of the GPU.
pub fn check(launches: &[SimLaunch], memory: &SimMemory, plan: &CheckPlan) -> Result<CheckReport, LaunchError> {
    check_interleavings(memory, plan, |memory, options| {
        launches.iter().map(|s| exec::run(s.program, s.kernel, s.launch, memory, options)).collect()
    })
}

/// Checks a single launch.
///
/// # Errors
/// Returns an error if the launch is outside of the limits of the kernel or of the GPU.
pub fn check_kernel(
    program: &Program,
    kernel: &Kernel,
    launch: &LaunchConfig,
    memory: &SimMemory,
    plan: &CheckPlan,
) -> Result<CheckReport, LaunchError> {
    check(&[SimLaunch { program, kernel, launch }], memory, plan)
}

/// Calls `run` once for each interleaving, with a clone of `memory` and the interleaving's options. `run` returns one
/// outcome per launch that it makes, always the same number. Once a limit has stopped a run, no further run starts; the
/// report covers the runs up to the first stopped run.
///
/// # Errors
/// Returns the error of the first interleaving for which `run` fails.
pub fn check_interleavings<E: Send>(
    memory: &SimMemory,
    plan: &CheckPlan,
    run: impl Fn(&mut SimMemory, &ExecOptions) -> Result<Vec<SimOutcome>, E> + Sync,
) -> Result<CheckReport, E> {
    let runs = plan.interleavings.max(1) as usize;
    let products = plan.options.products.clone().or_else(|| (runs > 1).then(Arc::default));
    let bases: Vec<u64> = memory.iter().map(|a| a.base).collect();
    // Run numbers: `next` is the next run to start, `last` the first run that a limit has stopped.
    let (next, last) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let runs_done = Mutex::new(Runs::new(runs));
    std::thread::scope(|scope| {
        let work = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= runs || i > last.load(Ordering::Relaxed) {
                return;
            }
            let mut own = memory.clone();
            plan.buffers.iter().for_each(|buffer| own.name_buffer(buffer.address, &buffer.name));
            let options = ExecOptions { products: products.clone(), ..options_of(plan, i) };
            let outcome = run(&mut own, &options);
            if outcome.as_ref().is_ok_and(|launches| launches.iter().any(|launch| launch.stopped.is_some())) {
                last.fetch_min(i, Ordering::Relaxed);
            }
            runs_done.lock().expect("no run panics while it holds the lock").add_run(i, outcome, own, &bases, plan);
        };
        (1..plan.threads.min(runs)).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let last = last.into_inner();
    runs_done.into_inner().expect("no run panics while it holds the lock").report(last)
}

/// Returns the options of run `i`. The run's seed depends on all bits of the plan's seed; its low bits, which select
/// how many instructions a warp executes per turn, increase by one from run to run. The runs take the three
/// completion timings in rotation.
fn options_of(plan: &CheckPlan, i: usize) -> ExecOptions {
    const IN_TURN: [CompletionTiming; 3] =
        [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
    let first = IN_TURN.iter().position(|c| *c == plan.options.completion).unwrap_or(0);
    let seed = plan.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c14).wrapping_add(i as u64);
    ExecOptions { seed, completion: IN_TURN[(first + i) % 3], ..plan.options.clone() }
}

/// The results of the runs so far.
struct Runs<E> {
    outcomes: Vec<Option<Result<Vec<SimOutcome>, E>>>,
    /// Memory after run 0.
    first: Option<SimMemory>,
    /// Index and memory of the runs that ended before run 0; their memory is compared with the memory of run 0 when run
    /// 0 ends.
    waiting: Vec<(usize, SimMemory)>,
    /// For each buffer, the first run whose bytes differ from those of run 0, and a description of the difference.
    differences: Vec<Option<(usize, String)>>,
}

impl<E> Runs<E> {
    fn new(runs: usize) -> Runs<E> {
        Runs { outcomes: (0..runs).map(|_| None).collect(), first: None, waiting: Vec::new(), differences: Vec::new() }
    }

    /// Adds the result of run `i`. The memory of a run is dropped as soon as it has been compared.
    fn add_run(
        &mut self,
        i: usize,
        outcome: Result<Vec<SimOutcome>, E>,
        memory: SimMemory,
        bases: &[u64],
        plan: &CheckPlan,
    ) {
        self.outcomes[i] = Some(outcome);
        if i == 0 {
            self.first = Some(memory);
        } else {
            self.waiting.push((i, memory));
        }
        let Some(first) = &self.first else { return };
        self.differences.resize(bases.len(), None);
        for (i, memory) in self.waiting.drain(..) {
            for ((n, &base), known) in bases.iter().enumerate().zip(&mut self.differences) {
                if known.as_ref().is_none_or(|(run, _)| i < *run)
                    && let Some(text) = difference(base, n, first, &memory, plan)
                {
                    *known = Some((i, text));
                }
            }
        }
    }

    /// Reports the runs up to run `last`, which a limit has stopped.
    fn report(self, last: usize) -> Result<CheckReport, E> {
        let interleavings = self.outcomes.len().min(last.saturating_add(1));
        let mut findings: Vec<Findings> = Vec::new();
        let (mut counters, mut printed) = (Vec::new(), String::new());
        let mut notes = BTreeSet::new();
        let mut stopped = None;
        for (i, outcomes) in self.outcomes.into_iter().take(interleavings).flatten().enumerate() {
            for (launch, outcome) in outcomes?.into_iter().enumerate() {
                findings.resize(findings.len().max(launch + 1), Findings::default());
                findings[launch].merge(outcome.findings);
                notes.extend(outcome.notes);
                stopped = stopped.or(outcome.stopped);
                if i == 0 {
                    counters.push(outcome.counters);
                    printed += &outcome.printed;
                }
            }
        }
        // The stopped run is not compared: its buffers differ because its kernel has not ended.
        let complete = if stopped.is_some() { interleavings - 1 } else { interleavings };
        let differences =
            self.differences.into_iter().flatten().filter(|(run, _)| *run < complete).map(|(_, text)| text);
        let notes = differences.chain(notes).collect();
        let findings = findings.into_iter().map(Findings::into_list).collect();
        let (memory, interleavings) = (self.first.unwrap_or_default(), interleavings as u32);
        Ok(CheckReport { findings, notes, counters, printed, memory, interleavings, stopped })
    }
}

/// Describes how buffer number `n`, at address `base`, differs between two runs; `None` if it does not.
fn difference(base: u64, n: usize, first: &SimMemory, other: &SimMemory, plan: &CheckPlan) -> Option<String> {
    let (a, b) = (first.buffer_bytes(base)?, other.buffer_bytes(base)?);
    if a == b {
        return None;
    }
    let at = a.iter().zip(b).position(|(a, b)| a != b)?;
    let known = plan.buffers.iter().find(|b| b.address == base);
    let name = known.map_or_else(|| format!("buffer {n}"), |b| b.name.clone());
    let dtype = known.map_or(ElementType::U8, |b| b.dtype);
    let size = dtype.bytes();
    let element = |bytes: &[u8]| dtype.format_element(bytes.chunks(size).nth(at / size).unwrap_or_default());
    let differing = a.chunks(size).zip(b.chunks(size)).filter(|(a, b)| a != b).count();
    Some(format!(
        "results depend on the interleaving: {name}[{}] ({}) is {} in one run and {} in another; \
         {differing} of {} elements differ",
        at / size,
        dtype.name(),
        element(a),
        element(b),
        a.len().div_ceil(size),
    ))
}

#[cfg(test)]
mod tests;
