//! A case under many interleavings: every run with an order of its own and asynchronous operations that end at other moments. What the
//! runs find is put together, and their results must agree.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counters::Counters;
use crate::exec::{self, CompletionTiming, ExecOptions, LaunchConfig, LaunchError, SimLaunch, SimOutcome};
use crate::finding::{Finding, Findings};
use crate::memory::SimMemory;
use crate::program::{Kernel, Program};
use crate::value::ElementType;

/// What a buffer is called and holds, for messages.
#[derive(Clone, Debug)]
pub struct NamedBuffer {
    /// Its first byte's address, as [`SimMemory::alloc`] gave it.
    pub address: u64,
    /// For example `arg2`.
    pub name: String,
    /// Of its elements.
    pub dtype: ElementType,
}

/// How to check.
#[derive(Clone, Debug)]
pub struct CheckPlan {
    /// Runs, at least 1.
    pub interleavings: u32,
    /// Threads of this machine to run them on; the result is the same for any number.
    pub threads: usize,
    /// Of every run; its seed is the seed of all seeds, its completion that of the first run.
    pub options: ExecOptions,
    /// Names for messages; other buffers are called by number.
    pub buffers: Vec<NamedBuffer>,
}

impl Default for CheckPlan {
    /// Eight interleavings on all processors.
    fn default() -> CheckPlan {
        CheckPlan {
            interleavings: 8,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            options: ExecOptions::default(),
            buffers: Vec::new(),
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// Mistakes by stage: those of all runs, the same causes counted together.
    pub findings: Vec<Vec<Finding>>,
    /// What is worth knowing and no mistake, of all runs, and where their results differ.
    pub notes: Vec<String>,
    /// Counts by stage, of the first run.
    pub counters: Vec<Counters>,
    /// What the first run printed.
    pub printed: String,
    /// Memory after the first run.
    pub memory: SimMemory,
    /// Runs.
    pub interleavings: u32,
}

impl CheckReport {
    /// Whether no run found anything.
    pub fn ok(&self) -> bool {
        self.findings.iter().all(Vec::is_empty)
    }
}

/// Runs the stages on clones of `memory`, once an interleaving.
pub fn check(stages: &[SimLaunch], memory: &SimMemory, plan: &CheckPlan) -> Result<CheckReport, LaunchError> {
    check_with(memory, plan, |memory, options| {
        stages.iter().map(|s| exec::run(s.program, s.kernel, s.launch, memory, options)).collect()
    })
}

/// One kernel instead of stages.
pub fn check_kernel(
    program: &Program,
    kernel: &Kernel,
    launch: &LaunchConfig,
    memory: &SimMemory,
    plan: &CheckPlan,
) -> Result<CheckReport, LaunchError> {
    check(&[SimLaunch { program, kernel, launch }], memory, plan)
}

/// Calls `run` on clones of `memory`, once an interleaving. It launches whatever the case needs with the options it is given, the same
/// number of launches each time, and gives an outcome a launch. An error is that of the first run that had one.
pub fn check_with<E: Send>(
    memory: &SimMemory,
    plan: &CheckPlan,
    run: impl Fn(&mut SimMemory, &ExecOptions) -> Result<Vec<SimOutcome>, E> + Sync,
) -> Result<CheckReport, E> {
    let runs = plan.interleavings.max(1) as usize;
    let bases: Vec<u64> = memory.iter().map(|a| a.base).collect();
    let (next, runs_done) = (AtomicUsize::new(0), Mutex::new(Runs::new(runs)));
    std::thread::scope(|scope| {
        let work = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= runs {
                return;
            }
            let mut own = memory.clone();
            let outcome = run(&mut own, &options_of(plan, i));
            runs_done.lock().expect("no run panics while it holds the lock").put(i, outcome, own, &bases, plan);
        };
        (1..plan.threads.min(runs)).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    runs_done.into_inner().expect("no run panics while it holds the lock").report()
}

/// The options of the `i`-th run: seeds that differ in all bits and, one by one, in the low ones; the three completions in turn.
fn options_of(plan: &CheckPlan, i: usize) -> ExecOptions {
    const IN_TURN: [CompletionTiming; 3] =
        [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
    let first = IN_TURN.iter().position(|c| *c == plan.options.completion).unwrap_or(0);
    let seed = plan.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c14).wrapping_add(i as u64);
    ExecOptions { seed, completion: IN_TURN[(first + i) % 3], ..plan.options.clone() }
}

/// The runs that are over.
struct Runs<E> {
    outcomes: Vec<Option<Result<Vec<SimOutcome>, E>>>,
    /// The first run's memory, and memories that wait to be compared with it.
    first: Option<SimMemory>,
    waiting: Vec<(usize, SimMemory)>,
    /// For each differing buffer the first run that differs, and how.
    differences: Vec<Option<(usize, String)>>,
}

impl<E> Runs<E> {
    fn new(runs: usize) -> Runs<E> {
        Runs { outcomes: (0..runs).map(|_| None).collect(), first: None, waiting: Vec::new(), differences: Vec::new() }
    }

    /// Takes the result of the `i`-th run. Its memory is let go as soon as it has been compared.
    fn put(
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

    fn report(self) -> Result<CheckReport, E> {
        let interleavings = self.outcomes.len() as u32;
        let mut findings: Vec<Findings> = Vec::new();
        let (mut counters, mut printed) = (Vec::new(), String::new());
        let mut notes = BTreeSet::new();
        for (i, outcomes) in self.outcomes.into_iter().flatten().enumerate() {
            for (stage, outcome) in outcomes?.into_iter().enumerate() {
                findings.resize(findings.len().max(stage + 1), Findings::default());
                findings[stage].merge(outcome.findings);
                notes.extend(outcome.notes);
                if i == 0 {
                    counters.push(outcome.counters);
                    printed += &outcome.printed;
                }
            }
        }
        let differences = self.differences.into_iter().flatten().map(|(_, text)| text);
        let notes = differences.chain(notes).collect();
        let findings = findings.into_iter().map(Findings::into_list).collect();
        Ok(CheckReport { findings, notes, counters, printed, memory: self.first.unwrap_or_default(), interleavings })
    }
}

/// How the buffer at `base`, the `n`-th, differs between two runs.
fn difference(base: u64, n: usize, first: &SimMemory, other: &SimMemory, plan: &CheckPlan) -> Option<String> {
    let (a, b) = (first.bytes(base)?, other.bytes(base)?);
    let at = a.iter().zip(b).position(|(a, b)| a != b)?;
    let known = plan.buffers.iter().find(|b| b.address == base);
    let name = known.map_or_else(|| format!("buffer {n}"), |b| b.name.clone());
    let dtype = known.map_or(ElementType::U8, |b| b.dtype);
    let size = dtype.bytes();
    let element = |bytes: &[u8]| dtype.show(bytes.chunks(size).nth(at / size).unwrap_or_default());
    let differing = a.chunks(size).zip(b.chunks(size)).filter(|(a, b)| a != b).count();
    Some(format!(
        "results depend on the interleaving: {name}[{}] ({}) is {} in one and {} in another; {differing} of {} elements differ",
        at / size,
        dtype.name(),
        element(a),
        element(b),
        a.len().div_ceil(size),
    ))
}

#[cfg(test)]
mod tests;
