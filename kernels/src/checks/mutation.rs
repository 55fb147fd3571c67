//! Mutation tests of synchronisation: remove or change one synchronisation instruction of a kernel's PTX and run the
//! launches of the kernel's checks on the simulator, which must report a finding.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::sync::{Arc, OnceLock};

use reel_device::launch::Arch;
use reel_device::simulate::{self, PtxModule, SimulateError};
use reel_sim::exec::ExecOptions;
use reel_sim::finding::FindingKind;
use reel_sim::mutate::{self, Mutant};
use reel_sim::ptx::ast::Module;

use super::on_sim::COMPLETION_TIMINGS;
use super::{Check, CheckDevice, CheckSetup, RecordedLaunch};
use crate::catalogue::KernelFolder;

/// A recorded launch of a check.
struct RecordedCase {
    recorded: RecordedLaunch,
    /// Number of warp instructions that a simulation of the launch executes.
    cost: u64,
    /// The result of the unchanged kernel on this launch, set when it has run: `Ok` without a finding, otherwise the
    /// finding.
    clean: OnceLock<Result<(), String>>,
}

impl RecordedCase {
    /// Runs the launch with early, late and random completion of asynchronous operations. Returns the first finding
    /// with its message.
    fn finding(&self, unit: &PtxModule, gpu: &Arch) -> Result<Option<(FindingKind, String)>, String> {
        for seed in 0..COMPLETION_TIMINGS.len() as u64 {
            let mut memory = self.recorded.memory();
            let staged = unit.run(&self.recorded.launch, gpu, &mut memory, &options(seed, gpu));
            for stage in staged.map_err(|e| e.to_string())? {
                if let Some(finding) = stage.findings.into_iter().next() {
                    return Ok(Some((finding.kind, finding.message)));
                }
            }
        }
        Ok(None)
    }
}

/// The kernels of a folder that a GPU runs, with the recorded launches of its checks.
pub struct MutationSubject {
    folder: &'static str,
    gpu: Arch,
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
    /// Number that identifies a change of an instruction of the CUDA source. All instantiations of a template share the
    /// number; if the compiler repeats an instruction, for example in an unrolled loop, each repetition has its own
    /// number.
    instruction: usize,
    /// Indices of the launches that execute the changed instruction, cheapest first.
    reached_by: Vec<usize>,
}

impl MutationTarget {
    fn new(module: &Module, mutant: Mutant) -> MutationTarget {
        let function = &module.functions[mutant.function];
        let places = places(module, function.body[mutant.instruction].location);
        MutationTarget { mutant, function: function.name.clone(), places, instruction: 0, reached_by: Vec::new() }
    }
}

/// The result of running a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MutantVerdict {
    /// The simulator reported a finding.
    Killed(FindingKind),
    /// No finding, and a comment at the source line says why the instruction is redundant.
    Redundant(String),
    /// The simulator reported no finding, and no comment says why the instruction is not needed.
    Survived,
    /// No launch executes the instruction.
    Unreached,
}

impl MutationSubject {
    /// Returns the kernels of a folder that an A100 runs, and those that only an H100 runs, if there are any. The
    /// simulated H100 has only two multiprocessors, so that each block reuses the stages of its ring: only then is a
    /// wait that protects a stage needed.
    ///
    /// Runs the folder's checks once on the simulator for each GPU and records their launches, until `enough` launches
    /// execute each instruction in one of its instantiations or all checks have run. An error is one line.
    pub fn record_subjects_of_folder(
        folder: &'static KernelFolder,
        enough: usize,
    ) -> Result<Vec<MutationSubject>, String> {
        let module = |gpu: &Arch| PtxModule::of_source(folder.source, gpu.sm).map_err(|e| e.to_string());
        let unit = module(&Arch::A100)?;
        let targets: Vec<MutationTarget> = targets_of(&unit.program().module).collect();
        let mut subjects = vec![MutationSubject::new(folder, Arch::A100, unit.clone(), targets, enough)?];
        if folder.source.has_hopper_code() {
            let hopper = module(&Arch::H100)?;
            let on_a100 = &unit.program().module.functions;
            let targets = targets_of(&hopper.program().module)
                .filter(|target| on_a100.iter().all(|function| function.name != target.function))
                // checks/dependent.rs removes the waits for the previous launch.
                .filter(|target| target.mutant.opcode != "griddepcontrol.wait");
            let targets: Vec<MutationTarget> = targets.collect();
            if !targets.is_empty() {
                let gpu = Arch::H100.with_two_multiprocessors();
                subjects.push(MutationSubject::new(folder, gpu, hopper.clone(), targets, enough)?);
            }
        }
        Ok(subjects)
    }

    fn new(
        folder: &'static KernelFolder,
        gpu: Arch,
        unit: Arc<PtxModule>,
        mut targets: Vec<MutationTarget>,
        enough: usize,
    ) -> Result<MutationSubject, String> {
        let setup = CheckSetup { interleavings: 1, record: true, first_gpu: gpu, ..CheckSetup::new(CheckDevice::Sim) };
        let mut cases = Vec::new();
        number_instructions(&mut targets);
        for check in folder.checks {
            let missing = targets.iter().filter(|target| target.reached_by.len() < enough);
            let reached = targets.iter().filter(|target| target.reached_by.len() >= enough);
            let reached: HashSet<usize> = reached.map(|target| target.instruction).collect();
            if missing.map(|target| target.instruction).all(|instruction| reached.contains(&instruction)) {
                break;
            }
            for recorded in record(check, &setup)? {
                // Launches of other folders' kernels are tested with their own folder.
                if recorded.launch.kernel.source.name == folder.name {
                    for target in &mut targets {
                        if executes(&unit, &recorded, target).map_err(|e| e.to_string())? {
                            target.reached_by.push(cases.len());
                        }
                    }
                    let cost = recorded.stages.iter().map(|(_, counters)| counters.total().warps).sum();
                    cases.push(RecordedCase { recorded, cost, clean: OnceLock::new() });
                }
            }
        }
        for target in &mut targets {
            target.reached_by.sort_by_key(|&n| cases[n].cost);
        }
        Ok(MutationSubject { folder: folder.name, gpu, unit, cases, targets })
    }

    /// The folder's name.
    pub fn folder(&self) -> &'static str {
        self.folder
    }

    /// The GPU that runs the kernels.
    pub fn gpu(&self) -> &Arch {
        &self.gpu
    }

    /// Returns every mutant of the folder's kernels.
    pub fn targets(&self) -> &[MutationTarget] {
        &self.targets
    }

    /// Returns the mutants that make the same change as `target` to the same instruction of the CUDA code. There is one
    /// for each instantiation of the instruction's template, including `target` itself.
    pub fn instantiations<'a>(&'a self, target: &'a MutationTarget) -> impl Iterator<Item = &'a MutationTarget> {
        self.targets.iter().filter(|other| other.instruction == target.instruction)
    }

    /// Returns a mutant of each instruction of the CUDA code: for a template with several instantiations, the mutant
    /// that the most launches execute.
    pub fn one_target_per_instruction(&self) -> Vec<&MutationTarget> {
        let mut chosen: BTreeMap<usize, &MutationTarget> = BTreeMap::new();
        for target in &self.targets {
            let kept = chosen.entry(target.instruction).or_insert(target);
            if target.reached_by.len() > kept.reached_by.len() {
                *kept = target;
            }
        }
        chosen.into_values().collect()
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
            if let Some((kind, _)) = case.finding(&unit, &self.gpu)? {
                case.clean.get_or_init(|| self.check_unchanged(case)).clone()?;
                return Ok(MutantVerdict::Killed(kind));
            }
        }
        Ok(match self.redundancy_reason(target) {
            Some(reason) => MutantVerdict::Redundant(reason),
            None => MutantVerdict::Survived,
        })
    }

    /// Checks that the unchanged kernels have no finding on a launch, so that a mutant's finding is due to the
    /// mutation. The error is the finding.
    fn check_unchanged(&self, case: &RecordedCase) -> Result<(), String> {
        match case.finding(&self.unit, &self.gpu)? {
            None => Ok(()),
            Some((kind, message)) => {
                Err(format!("{}: the unchanged kernel has a finding: {}: {message}", self.folder, kind.name()))
            }
        }
    }

    /// Returns the text of a comment `// redundant: …` on one of the target's source lines or on the line before it.
    pub fn redundancy_reason(&self, target: &MutationTarget) -> Option<String> {
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

/// Sets [`MutationTarget::instruction`].
fn number_instructions(targets: &mut [MutationTarget]) {
    let (mut repetitions, mut numbers) = (HashMap::new(), HashMap::new());
    for target in targets {
        // Leaves out the outermost location, the kernel, because several kernels may call the same template.
        let places = &target.places[..target.places.len().saturating_sub(1).max(1)];
        let changed = (places.to_vec(), target.mutant.opcode.clone(), mem::discriminant(&target.mutant.change));
        let repetition = repetitions.entry((target.function.clone(), changed.clone())).or_insert(0);
        *repetition += 1;
        let next = numbers.len();
        target.instruction = *numbers.entry((changed, *repetition)).or_insert(next);
    }
}

/// Returns every mutant of a module.
fn targets_of(module: &Module) -> impl Iterator<Item = MutationTarget> {
    mutate::all_mutants(module).into_iter().map(move |mutant| MutationTarget::new(module, mutant))
}

/// Whether a recorded launch executes the instruction that a mutant changes.
fn executes(unit: &PtxModule, recorded: &RecordedLaunch, target: &MutationTarget) -> Result<bool, SimulateError> {
    for (symbol, counters) in &recorded.stages {
        for code in unit.kernel(symbol)?.functions.iter().filter(|code| code.name == target.function) {
            if counters.by_instruction[code.first as usize + target.mutant.instruction].warps > 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Runs a check and returns its recorded launches.
fn record(check: &Check, setup: &CheckSetup) -> Result<Vec<RecordedLaunch>, String> {
    check.run(setup).map(|ran| ran.recorded).map_err(|e| format!("{}: {e}", check.name))
}

fn options(seed: u64, gpu: &Arch) -> ExecOptions {
    // A mutant may wait forever, so its limit of simulated steps is much lower than the default.
    let completion = COMPLETION_TIMINGS[seed as usize % COMPLETION_TIMINGS.len()];
    let gpu = simulate::gpu_spec(gpu);
    ExecOptions {
        gpu,
        seed,
        completion,
        patience: 200_000,
        until_finding: true,
        strict_proxy: true,
        ..ExecOptions::default()
    }
}

/// Returns at most `count` elements of `all`, evenly spaced, including the first and the last.
fn spread(all: &[usize], count: usize) -> Vec<usize> {
    if all.len() <= count {
        return all.to_vec();
    }
    (0..count).map(|i| all[i * (all.len() - 1) / (count - 1).max(1)]).collect()
}

fn places(module: &Module, place: Option<u32>) -> Vec<String> {
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
        return Some(source.main_text());
    }
    source.available_header_names_and_texts().into_iter().find(|(name, _)| file.ends_with(name)).map(|(_, text)| text)
}
