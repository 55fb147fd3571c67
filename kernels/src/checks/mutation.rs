//! Mutation tests of synchronisation: remove or change one synchronisation instruction of a kernel's PTX and run the
//! launches of the kernel's checks on the simulator, which must report a finding.

use super::on_sim::COMPLETION_TIMINGS;
use super::{Check, CheckDevice, CheckSetup, RecordedLaunch};
use crate::catalogue::KernelFolder;
use crate::launch::Arch;
use crate::simulate::{self, PtxModule, SimulateError};
use reel_sim::exec::ExecOptions;
use reel_sim::finding::FindingKind;
use reel_sim::mutate::{self, Mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// A recorded launch of a check.
struct RecordedCase {
    recorded: RecordedLaunch,
    /// Number of warp instructions that a simulation of the launch executes.
    cost: u64,
    /// The result of running the unchanged kernel on this launch, once it has run: `Ok` without a finding, else the
    /// finding.
    clean: OnceLock<Result<(), String>>,
}

impl RecordedCase {
    /// Runs the launch with early, late and random completion of asynchronous operations and returns the first
    /// finding with its message.
    fn finding(&self, unit: &PtxModule) -> Result<Option<(FindingKind, String)>, String> {
        for seed in 0..COMPLETION_TIMINGS.len() as u64 {
            let mut memory = self.recorded.memory();
            let staged = unit.run(&self.recorded.launch, &Arch::A100, &mut memory, &options(seed));
            for stage in staged.map_err(|e| e.to_string())? {
                if let Some(finding) = stage.findings.into_iter().next() {
                    return Ok(Some((finding.kind, finding.message)));
                }
            }
        }
        Ok(None)
    }
}

/// The kernels of a folder with the recorded launches of its checks.
pub struct MutationSubject {
    folder: &'static str,
    unit: Arc<PtxModule>,
    cases: Vec<RecordedCase>,
    targets: Vec<MutationTarget>,
}

/// A mutant with the launches that execute the changed instruction.
#[derive(Clone, Debug)]
pub struct MutationTarget {
    /// The mutant.
    pub mutant: Mutant,
    /// Name of the changed function.
    pub function: String,
    /// `file:line` of the instruction. If its function was inlined, also `file:line` of the calls, from the inside
    /// out.
    pub places: Vec<String>,
    /// Indices of the launches that execute the changed instruction, cheapest first.
    reached_by: Vec<usize>,
}

/// The result of running a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MutantVerdict {
    /// The simulator reported a finding.
    Killed(FindingKind),
    /// No finding, and a comment at the source line says why the instruction is redundant.
    Redundant(String),
    /// No finding, and no comment that explains it.
    Survived,
    /// No launch executes the instruction.
    Unreached,
}

impl MutationSubject {
    /// Runs the folder's checks once on the simulator and records their launches. An error is one line.
    pub fn new(folder: &'static KernelFolder) -> Result<MutationSubject, String> {
        let setup = CheckSetup { interleavings: 1, record: true, ..CheckSetup::new(CheckDevice::Sim) };
        let mut recorded = Vec::new();
        for check in folder.checks {
            recorded.extend(record(check, &setup)?);
        }
        // Drops the launches of other folders' kernels, which are tested with their own folder.
        recorded.retain(|r| r.launch.kernel.source.name == folder.name);
        let unit = PtxModule::of_source(folder.source, Arch::A100.sm).map_err(|e| e.to_string())?;
        let mut subject = MutationSubject { folder: folder.name, unit, cases: Vec::new(), targets: Vec::new() };
        subject.find_targets(recorded).map_err(|e| e.to_string())?;
        Ok(subject)
    }

    /// Returns every mutant of the folder's kernels.
    pub fn targets(&self) -> &[MutationTarget] {
        &self.targets
    }

    fn find_targets(&mut self, recorded: Vec<RecordedLaunch>) -> Result<(), SimulateError> {
        // For each function name and instruction index, the launches that execute the instruction.
        let mut executed: BTreeMap<(String, usize), BTreeSet<usize>> = BTreeMap::new();
        for recorded in recorded {
            let (mut cost, number) = (0, self.cases.len());
            for (symbol, counters) in &recorded.stages {
                cost += counters.total().warps;
                let kernel = self.unit.kernel(symbol)?;
                for code in &kernel.functions {
                    for i in 0..code.instrs.len() {
                        if counters.by_instruction[code.first as usize + i].warps > 0 {
                            executed.entry((code.name.clone(), i)).or_default().insert(number);
                        }
                    }
                }
            }
            self.cases.push(RecordedCase { recorded, cost, clean: OnceLock::new() });
        }
        let program = self.unit.program();
        for mutant in mutate::all_mutants(&program.module) {
            let function = &program.module.functions[mutant.function];
            let reached = executed.get(&(function.name.clone(), mutant.instruction));
            let mut reached_by: Vec<usize> = reached.into_iter().flatten().copied().collect();
            reached_by.sort_by_key(|&n| self.cases[n].cost);
            let places = places(&program.module, function.body[mutant.instruction].location);
            self.targets.push(MutationTarget { mutant, function: function.name.clone(), places, reached_by });
        }
        Ok(())
    }

    /// Runs a mutant on at most `max_launches` of the launches that execute the changed instruction. They range from
    /// the cheapest to the most expensive, and each runs with early, late and random completion of asynchronous
    /// operations.
    pub fn run_mutant(&self, target: &MutationTarget, max_launches: usize) -> Result<MutantVerdict, String> {
        if target.reached_by.is_empty() {
            return Ok(MutantVerdict::Unreached);
        }
        let program = mutate::apply_mutant(self.unit.program(), &target.mutant).map_err(|e| e.to_string())?;
        let unit = PtxModule::new(program);
        for &number in &spread(&target.reached_by, max_launches) {
            let case = &self.cases[number];
            if let Some((kind, _)) = case.finding(&unit)? {
                case.clean.get_or_init(|| self.check_unchanged(case)).clone()?;
                return Ok(MutantVerdict::Killed(kind));
            }
        }
        Ok(match self.reason(target) {
            Some(reason) => MutantVerdict::Redundant(reason),
            None => MutantVerdict::Survived,
        })
    }

    /// Checks that the unchanged kernels have no finding on a launch, so that a mutant's finding is due to the
    /// mutation. The error is the finding.
    fn check_unchanged(&self, case: &RecordedCase) -> Result<(), String> {
        match case.finding(&self.unit)? {
            None => Ok(()),
            Some((kind, message)) => {
                Err(format!("{}: the unchanged kernel has a finding: {}: {message}", self.folder, kind.name()))
            }
        }
    }

    /// Returns the text of a comment `// redundant: …` on one of the target's source lines or on the line before it.
    fn reason(&self, target: &MutationTarget) -> Option<String> {
        target.places.iter().find_map(|place| {
            let (file, line) = place.rsplit_once(':')?;
            let text = text_of(self.folder, file)?;
            let line: usize = line.parse().ok()?;
            let lines: Vec<&str> = text.lines().collect();
            let says = |n: usize| lines.get(n)?.split_once("// redundant: ").map(|(_, why)| why.trim().to_string());
            says(line.checked_sub(1)?).or_else(|| says(line.checked_sub(2)?))
        })
    }
}

/// Runs a check and returns its recorded launches.
fn record(check: &Check, setup: &CheckSetup) -> Result<Vec<RecordedLaunch>, String> {
    check.run(setup).map(|ran| ran.recorded).map_err(|e| format!("{}: {e}", check.name))
}

fn options(seed: u64) -> ExecOptions {
    // A mutant may wait forever, so its step limit is much lower than the default.
    let completion = COMPLETION_TIMINGS[seed as usize % COMPLETION_TIMINGS.len()];
    let gpu = simulate::gpu_spec(&Arch::A100);
    ExecOptions { gpu, seed, completion, patience: 200_000, until_finding: true, ..ExecOptions::default() }
}

/// Returns at most `count` elements of `all`, evenly spaced, including the first and the last.
fn spread(all: &[usize], count: usize) -> Vec<usize> {
    if all.len() <= count {
        return all.to_vec();
    }
    (0..count).map(|i| all[i * (all.len() - 1) / (count - 1).max(1)]).collect()
}

fn places(module: &reel_sim::ptx::ast::Module, place: Option<u32>) -> Vec<String> {
    let mut out = Vec::new();
    let mut next = place.map(|p| &module.source_locations[p as usize]);
    while let Some(place) = next {
        let file = module.files.iter().find(|f| f.0 == place.file).map_or("?", |f| &f.1);
        out.push(format!("{file}:{}", place.line));
        next = place.inlined_at.as_ref().map(|(outer, _)| &**outer);
    }
    out
}

/// Returns the text of a source file of a folder's translation unit.
fn text_of(folder: &str, file: &str) -> Option<&'static str> {
    let source = crate::catalogue::find_kernel_folder(folder)?.source;
    if file.ends_with("sm80.cu") {
        return Some(source.sm80);
    }
    source.available_header_names_and_texts().into_iter().find(|(name, _)| file.ends_with(name)).map(|(_, text)| text)
}
