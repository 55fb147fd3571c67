//! Runs a small kernel under several interleavings, unchanged and with lines removed.

use reel_sim::check::{CheckPlan, CheckReport, check_kernel};
use reel_sim::exec::{ExecOptions, LaunchConfig};
use reel_sim::finding::FindingKind;
use reel_sim::memory::SimMemory;
use reel_sim::mutate::{reached_mutants, run_mutants};
use reel_sim::program::{Program, ProgramError};

/// A kernel `k` and its launch. All parameters of the kernel are pointers to buffers.
#[derive(Clone)]
pub struct Case {
    pub ptx: String,
    pub blocks: u32,
    pub threads: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// The contents of the buffers before the launch.
    pub buffers: Vec<Vec<u8>>,
    /// True if the buffers are unwritten at the launch. Only the sizes of `buffers` then matter, not their contents.
    pub unwritten: bool,
    pub options: ExecOptions,
}

impl Case {
    /// A case with one block of `threads` threads and one zeroed buffer of 1 KiB. `body` is the kernel's body.
    pub fn new(target: &str, threads: u32, body: &str) -> Case {
        let ptx = format!(
            ".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k(.param .u64 p) {{\n{body}\n}}\n"
        );
        let options = ExecOptions { patience: 200_000, ..ExecOptions::default() };
        Case { ptx, blocks: 1, threads, cluster: 1, buffers: vec![vec![0; 1024]], unwritten: false, options }
    }

    /// Returns the case without the lines that end in `// mark`.
    pub fn without_lines_marked(&self, mark: &str) -> Case {
        let end = format!("// {mark}");
        let kept: Vec<&str> = self.ptx.lines().filter(|line| !line.trim_end().ends_with(&end)).collect();
        assert!(kept.len() < self.ptx.lines().count(), "no line is marked {mark}");
        Case { ptx: kept.join("\n"), ..self.clone() }
    }

    /// Returns the case with `from` replaced by `to` in the PTX.
    pub fn replace(&self, from: &str, to: &str) -> Case {
        assert!(self.ptx.contains(from), "{from}");
        Case { ptx: self.ptx.replace(from, to), ..self.clone() }
    }

    pub fn run(&self) -> CheckReport {
        self.run_program(&Program::parse(&self.ptx).unwrap(), 9)
    }

    /// Returns the kinds of the findings.
    pub fn finding_kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<_> = self.run().findings.iter().flatten().map(|f| f.kind.name()).collect();
        kinds.dedup();
        kinds
    }

    fn run_program(&self, program: &Program, interleavings: u32) -> CheckReport {
        let kernel = program.kernel("k").unwrap();
        let mut memory = SimMemory::new();
        let mut allocate = |bytes: &Vec<u8>| match self.unwritten {
            true => memory.alloc_uninitialized(bytes.len()),
            false => memory.alloc(bytes.clone()),
        };
        let addresses: Vec<u64> = self.buffers.iter().map(&mut allocate).collect();
        let launch = LaunchConfig {
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            cluster: [self.cluster, 1, 1],
            dynamic_shared: 0,
            params: addresses.iter().flat_map(|a| a.to_le_bytes()).collect(),
        };
        let plan = CheckPlan { interleavings, threads: 1, options: self.options.clone(), buffers: Vec::new() };
        check_kernel(program, &kernel, &launch, &memory, &plan).unwrap()
    }

    /// Checks that the kernel has no finding, and runs every mutant (a barrier, fence, wait, phase or count removed or
    /// changed). Returns the mutants without a finding.
    pub fn surviving_mutants(&self) -> Vec<String> {
        let program = Program::parse(&self.ptx).unwrap();
        let whole = self.run_program(&program, 9);
        assert_eq!(whole.findings.concat(), [], "{}", self.ptx);
        let counters = &whole.counters[0].by_instruction;
        let kernel = program.kernel("k").unwrap();
        let mutants = reached_mutants(&program, &kernel, |pc| counters[pc as usize].warps > 0);
        assert!(!mutants.is_empty());
        let options = ExecOptions { until_finding: true, ..self.options.clone() };
        let case = Case { options, ..self.clone() };
        let judged = run_mutants::<ProgramError>(&program, &mutants, |mutant| {
            let report = case.run_program(mutant, 9);
            let kind: Option<FindingKind> = report.findings.iter().flatten().next().map(|f| f.kind);
            Ok(kind)
        });
        judged.unwrap().iter().filter(|v| v.killed_by.is_none()).map(|v| v.mutant.to_string()).collect()
    }
}

/// Returns the bytes of 32-bit words.
pub fn bytes_of_words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
