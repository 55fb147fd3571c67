//! Runs the kernels of `corpus_scalar`: reads their PTX and their launches (`//@` lines) and simulates them.

use reel_sim::exec::{self, CompletionTiming, ExecOptions, LaunchConfig, SimOutcome};
use reel_sim::finding::Finding;
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The seeds with which every kernel is run.
pub const SEEDS: std::ops::Range<u64> = 0..8;
/// The architectures for which the PTX files were compiled. A file `NAME.ptx` serves all architectures: only its
/// `.target` line, which names the first one, is replaced.
pub const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];
/// The completion timings of asynchronous operations.
pub const COMPLETION_TIMINGS: [CompletionTiming; 3] =
    [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus_scalar").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the CUDA text of a corpus file.
pub fn cuda_source(file: &str) -> String {
    read(&format!("{file}.cu"))
}

/// Returns the PTX text of a corpus file.
pub fn ptx_source(file: &str, architecture: &str) -> String {
    let [first, _] = ARCHITECTURES;
    match file {
        "families" => read(&format!("{file}.{architecture}.ptx")),
        _ => read(&format!("{file}.ptx")).replace(&format!(".target {first}\n"), &format!(".target {architecture}\n")),
    }
}

/// Replaces the `.loc` and `.file` lines of PTX text by empty lines, so that all other lines keep their numbers.
pub fn without_line_info(ptx: &str) -> String {
    let kept = |line: &str| !matches!(line.split_whitespace().next(), Some(".loc" | ".file"));
    ptx.lines().map(|line| if kept(line) { line } else { "" }).fold(String::new(), |text, line| text + line + "\n")
}

/// Returns the lines of the CUDA file from which PTX line `line` was compiled, as the `.loc` before it names them:
/// its own line and, for inlined code, the line of the call.
pub fn cuda_lines_of_ptx_line(ptx: &str, line: u32) -> BTreeSet<u32> {
    let before: Vec<&str> = ptx.lines().take(line as usize).collect();
    let mut found = BTreeSet::new();
    for text in before.iter().rev().take_while(|t| !t.contains(".entry") && !t.contains(".func")) {
        let words: Vec<&str> = text.split([' ', '\t', ',']).filter(|w| !w.is_empty()).collect();
        if words.first() == Some(&".loc") {
            if words[1] == "1" {
                found.extend(words[2].parse::<u32>());
            }
            if let Some(at) = words.iter().position(|w| *w == "inlined_at")
                && words.get(at + 1) == Some(&"1")
            {
                found.extend(words[at + 2].parse::<u32>());
            }
            // Header code that is inlined into header code has a `.loc` without a line of this file; keep looking for
            // an earlier `.loc`, which names the call in this file.
            if !found.is_empty() {
                break;
            }
        }
    }
    found
}

/// A kernel of the corpus, its launch and its expected findings.
#[derive(Clone, Debug, Default)]
pub struct KernelCase {
    /// The kernel's symbol.
    pub name: String,
    /// Blocks along x.
    pub grid: u32,
    /// Threads along x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The kernel's arguments, each as `buf:COUNT:FILL` or `TYPE=VALUE`.
    pub args: Vec<String>,
    /// The kinds of findings that the kernel may have; empty for correct kernels.
    pub kinds: Vec<String>,
    /// Text that one of the run's notes must contain.
    pub note: Option<String>,
    /// True if the outputs may differ between seeds.
    pub varies: bool,
    /// True if it is enough that one seed gives a finding; otherwise every seed must give one.
    pub some: bool,
    /// The architecture on which the case runs; `None` for all.
    pub only: Option<String>,
    /// The lines of the CUDA file at which findings are expected.
    pub lines: BTreeSet<u32>,
}

/// Returns the test cases in a CUDA file, one per `//@ launch:` line. A line that ends in `//!` may have findings: of
/// the kernel that contains it, or of every kernel if it is outside of kernels.
pub fn kernel_cases(cuda: &str) -> Vec<KernelCase> {
    let mut cases: Vec<KernelCase> = Vec::new();
    let mut outside = BTreeSet::new();
    let mut inside = false;
    for (i, text) in cuda.lines().enumerate() {
        let line = i as u32 + 1;
        if let Some(words) = text.strip_prefix("//@ launch: ") {
            cases.push(parse(words));
        }
        if text.contains("__global__")
            && let Some(case) = cases.last_mut()
        {
            let name = text.split("void ").nth(1).and_then(|t| t.split('(').next());
            case.name = name.expect("the kernel's name follows `void`").to_string();
            inside = true;
        }
        if text.ends_with("//!") {
            match cases.last_mut().filter(|_| inside) {
                Some(case) => case.lines.insert(line),
                None => outside.insert(line),
            };
        }
        if text == "}" || text.starts_with("extern") && text.contains('}') {
            inside = false;
        }
    }
    cases.iter_mut().for_each(|case| case.lines.extend(&outside));
    cases
}

fn parse(words: &str) -> KernelCase {
    let mut case = KernelCase { grid: 1, block: 32, ..KernelCase::default() };
    for word in words.split(' ') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let list = || value.split(',').map(str::to_string).collect();
        match key {
            "grid" => case.grid = value.parse().unwrap(),
            "block" => case.block = value.parse().unwrap(),
            "dynamic_shared" => case.shared = value.parse().unwrap(),
            "args" => case.args = list(),
            "finding" => case.kinds = list(),
            "note" => case.note = Some(value.into()),
            "architecture" => case.only = Some(value.into()),
            "varies" => case.varies = true,
            "some" => case.some = true,
            other => panic!("unknown key {other} in a launch"),
        }
    }
    case
}

/// A kernel's arguments, placed in simulated memory.
pub struct PlacedArguments {
    pub memory: SimMemory,
    pub param_bytes: Vec<u8>,
    pub buffer_addresses: Vec<u64>,
}

/// Allocates the buffers of `args` and lays out the kernel's parameters.
pub fn allocate_arguments(args: &[String]) -> PlacedArguments {
    let mut memory = SimMemory::new();
    let mut params: Vec<u8> = Vec::new();
    let mut buffers = Vec::new();
    let align = |params: &mut Vec<u8>, to: usize| params.resize(params.len().next_multiple_of(to), 0);
    for arg in args {
        if let Some(rest) = arg.strip_prefix("buf:") {
            let (count, fill) = rest.split_once(':').expect("buf:COUNT:FILL");
            let count: u32 = count.parse().unwrap();
            let address = match fill {
                "zeros" => memory.alloc(vec![0; 4 * count as usize]),
                "arange" => memory.alloc((0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()),
                "uninit" => memory.alloc_uninitialized(4 * count as usize),
                other => panic!("fill {other}"),
            };
            align(&mut params, 8);
            params.extend(address.to_le_bytes());
            buffers.push(address);
        } else {
            let (ty, value) = arg.split_once('=').expect("TYPE=VALUE");
            match ty {
                "i32" => params.extend(value.parse::<i32>().unwrap().to_le_bytes()),
                "u32" => params.extend(value.parse::<u32>().unwrap().to_le_bytes()),
                "f32" => params.extend(value.parse::<f32>().unwrap().to_le_bytes()),
                "u64" => {
                    align(&mut params, 8);
                    params.extend(value.parse::<u64>().unwrap().to_le_bytes());
                }
                other => panic!("argument type {other}"),
            }
        }
    }
    PlacedArguments { memory, param_bytes: params, buffer_addresses: buffers }
}

/// The outcome of a simulated run, and the contents of its buffers afterwards.
pub struct RunResult {
    /// Findings, notes and counters of the run.
    pub outcome: SimOutcome,
    /// The bytes of the buffers, in the order of the arguments.
    pub buffers: Vec<Vec<u8>>,
}

impl RunResult {
    /// Returns the findings.
    pub fn findings(&self) -> Vec<Finding> {
        self.outcome.findings.clone().into_list()
    }

    /// Returns buffer `n` as 32-bit words.
    pub fn buffer_words(&self, n: usize) -> Vec<u32> {
        self.buffers[n].chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }
}

/// Runs a kernel with the launch and the arguments of its case.
pub fn run(program: &Program, case: &KernelCase, seed: u64, completion: CompletionTiming) -> RunResult {
    let kernel = program.kernel(&case.name).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let PlacedArguments { mut memory, param_bytes: mut params, buffer_addresses } = allocate_arguments(&case.args);
    params.resize(kernel.param_bytes as usize, 0);
    let launch = LaunchConfig {
        grid: [case.grid, 1, 1],
        block: [case.block, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: case.shared,
        params,
    };
    let gpu = exec::GpuSpec::for_sm(kernel.target);
    let options = ExecOptions { gpu, seed, completion, patience: 3_000_000, ..ExecOptions::default() };
    let outcome =
        exec::run(program, &kernel, &launch, &mut memory, &options).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let buffers = buffer_addresses.iter().map(|&a| memory.buffer_bytes(a).unwrap().to_vec()).collect();
    RunResult { outcome, buffers }
}

/// Runs a correct kernel of `file` with all seeds, on all architectures, and passes each run to `check`. Equal seeds
/// must give equal counters and buffers.
pub fn check_every_run(file: &str, name: &str, check: impl Fn(&RunResult)) {
    let cases = kernel_cases(&cuda_source(file));
    let case = cases.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no kernel {name} in {file}.cu"));
    for architecture in ARCHITECTURES {
        if case.only.as_ref().is_some_and(|o| o != architecture) {
            continue;
        }
        let program = Program::parse(&ptx_source(file, architecture)).unwrap();
        for seed in SEEDS {
            let ran = run(&program, case, seed, CompletionTiming::Latest);
            assert_eq!(ran.findings(), [], "{name} {architecture} seed {seed}");
            check(&ran);
        }
        let [first, again] = [0, 1].map(|_| run(&program, case, 5, CompletionTiming::Random));
        assert_eq!(first.outcome.counters, again.outcome.counters, "{name} {architecture}: counters of one seed");
        assert_eq!(first.buffers, again.buffers, "{name} {architecture}: buffers of one seed");
    }
}
