//! The main loops of the kernels for Hopper as machine code: which matrix products, asynchronous copies, waits and
//! barriers they have, and in which order.
//!
//! After a change that looks harmless, ptxas may serialise wgmma products, move waits, or keep an operand in other
//! registers. The measured times of these kernels hold for one such loop only, so `machine_code.txt` records each loop,
//! and a kernel whose loop differs fails here. Where the times were measured on a prototype, its loop is the same,
//! unless `machine_code.txt` says why it is not. If a change of a loop is intended, replace its text by what the test
//! prints, and time it.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use reel_device::Arch;
use reel_device::compile::{compile_to_cubin, ptxas::FunctionResources, skip_without_nvrtc, toolkit::Toolkit};
use reel_kernels::catalogue::{FOLDERS, KernelFolder, variants_of};

/// The architecture of H100 and H200.
const HOPPER: &str = "sm_90a";

/// First character of the lines of the expected text that are not compared.
const COMMENT: char = '#';

#[test]
fn main_loops_for_hopper_are_as_recorded() {
    let Some(()) = skip_without_nvrtc() else { return };
    let Some(nvdisasm) = Toolkit::from_environment().program("nvdisasm") else {
        println!("skipped: main_loops_for_hopper_are_as_recorded: no nvdisasm; ./x setup fetches it");
        return;
    };
    let mut found = String::new();
    for folder in FOLDERS.iter().filter(|folder| folder.source.has_hopper_code()) {
        let cubin = compile_to_cubin(folder.source, HOPPER).unwrap_or_else(|e| panic!("{}: {e}", folder.name));
        assert!(cubin.report.warnings.is_empty(), "{}: {:?}", folder.name, cubin.report.warnings);
        let resources: HashMap<&str, &FunctionResources> =
            cubin.report.functions.iter().map(|f| (f.symbol.as_str(), f)).collect();
        check_registers(folder, &resources);
        for (symbol, code) in functions(&disassembled(&nvdisasm, &cubin.image)) {
            // Kernels for earlier GPUs have neither bulk copies nor products of warpgroups.
            if !code.iter().any(|i| i.is_bulk_copy() || i.opcode.starts_with("HGMMA")) {
                continue;
            }
            let loops = main_loops(&code);
            assert!(!code.iter().any(|i| i.is_local_access()), "{symbol} uses local memory");
            let FunctionResources { registers, shared, .. } = resources[symbol.as_str()];
            // Dynamic shared memory begins at a multiple of 1024 bytes, as swizzles need, if nothing lies before it.
            assert_eq!(*shared, 0, "{symbol} has static shared memory");
            writeln!(found, "{symbol}, {registers} registers").expect("a string");
            loops.iter().for_each(|marks| writeln!(found, "  {marks}").expect("a string"));
        }
    }
    let recorded: Vec<&str> = include_str!("machine_code.txt")
        .lines()
        .filter(|line| !line.starts_with(COMMENT) && !line.is_empty())
        .collect();
    let differing = found.lines().zip(recorded.iter().copied().chain(std::iter::repeat(""))).find(|(a, b)| a != b);
    assert!(
        differing.is_none() && found.lines().count() == recorded.len(),
        "the first difference (found, recorded) is {differing:?}; all main loops that were found:\n{found}"
    );
}

/// Checks that registers suffice for the blocks that the plans of the folder's kernels take to run at a time.
fn check_registers(folder: &KernelFolder, resources: &HashMap<&str, &FunctionResources>) {
    for launch in folder.examples().into_iter().map(|example| example.launch) {
        let variants = variants_of(launch.kernel).map(|variant| variant.kernel);
        for stage in variants.chain([launch.kernel]).flat_map(|kernel| (kernel.plan)(&launch.params, &Arch::H100)) {
            let each = stage.resident_blocks.div_ceil(Arch::H100.multiprocessors);
            let threads = stage.block.iter().product::<u32>().next_multiple_of(32);
            let registers = resources[stage.symbol].registers.next_multiple_of(8);
            assert!(each * threads * registers <= 65_536, "{}: {each} blocks of {threads} threads", stage.symbol);
        }
    }
}

/// Returns the text of `nvdisasm` for a cubin.
fn disassembled(nvdisasm: &Path, cubin: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), cubin).expect("the cubin is written");
    let output = Command::new(nvdisasm).arg("-c").arg(file.path()).output().expect("nvdisasm runs");
    assert!(output.status.success(), "nvdisasm: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("nvdisasm prints text")
}

/// An instruction of a function.
struct Instruction {
    /// The name with its modifiers, such as `HGMMA.64x256x16.F32.BF16`.
    opcode: String,
    /// If the instruction is a branch: the index of the instruction at its label.
    target: Option<usize>,
}

impl Instruction {
    /// Whether the instruction is a matrix product of tensor cores.
    fn is_product(&self) -> bool {
        self.opcode.starts_with("HGMMA") || self.opcode.starts_with("HMMA")
    }

    /// Whether the instruction copies a tile to shared memory in the background.
    fn is_bulk_copy(&self) -> bool {
        self.opcode.starts_with("UTMALDG") || self.opcode.starts_with("UBLKCP")
    }

    /// Whether the recorded text includes this kind of instruction.
    fn is_recorded(&self) -> bool {
        let others = ["SYNCS", "BAR", "WARPGROUP", "UTMASTG", "UTMAREDG", "UTMACMDFLUSH", "STL", "LDL"];
        self.is_product() || self.is_bulk_copy() || others.iter().any(|name| self.opcode.starts_with(name))
    }

    fn is_local_access(&self) -> bool {
        ["STL", "LDL"].contains(&self.opcode.split('.').next().unwrap_or_default())
    }
}

/// Returns the functions in the text of nvdisasm, sorted by name.
fn functions(text: &str) -> Vec<(String, Vec<Instruction>)> {
    let mut all: Vec<(String, Vec<Instruction>)> = Vec::new();
    let sections = text.split("\n.text.").skip(1);
    for section in sections {
        let (name, body) = section.split_once(':').expect("a section has a label");
        let mut labels = HashMap::new();
        let mut code: Vec<(String, Option<&str>)> = Vec::new();
        for line in body.lines().map(str::trim) {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label, code.len());
            } else if let Some((_, instruction)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
                let words = instruction.split_once(';').map_or(instruction, |(words, _)| words);
                let mut words = words.split_whitespace().skip_while(|word| word.starts_with('@'));
                let opcode = words.next().unwrap_or_default().to_string();
                let branches = opcode.starts_with("BRA");
                let target = words.find_map(|word| word.trim_end_matches(',').strip_prefix("`(")?.strip_suffix(')'));
                code.push((opcode, target.filter(|_| branches)));
            }
        }
        let target = |label: Option<&str>| label.and_then(|label| labels.get(label).copied());
        let code = code.into_iter().map(|(opcode, label)| Instruction { opcode, target: target(label) }).collect();
        all.push((name.to_string(), code));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Returns the recorded instructions of the innermost loops that have matrix products or bulk copies, in the order of
/// the code. Of overlapping ranges, the shortest is the loop: the code that repeats an unsuccessful wait lies far
/// behind the loop and branches back into it, which also looks like a loop.
fn main_loops(code: &[Instruction]) -> Vec<String> {
    let backward = |(end, i): (usize, &Instruction)| i.target.filter(|&start| start <= end).map(|start| (start, end));
    let mut ranges: Vec<(usize, usize)> = code.iter().enumerate().filter_map(backward).collect();
    ranges.retain(|&(start, end)| code[start..=end].iter().any(|i| i.is_product() || i.is_bulk_copy()));
    ranges.sort_by_key(|(start, end)| (end - start, *start));
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (start, end) in ranges {
        if loops.iter().all(|&(other, last)| end < other || last < start) {
            loops.push((start, end));
        }
    }
    loops.sort();
    loops.into_iter().map(|(start, end)| recorded_text(&code[start..=end])).collect()
}

/// Returns the recorded instructions in order, repeated instructions with their number: `HGMMA.64x256x16.F32.BF16 x 4`.
fn recorded_text(code: &[Instruction]) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for opcode in code.iter().filter(|i| i.is_recorded()).map(|i| i.opcode.as_str()) {
        match runs.last_mut() {
            Some((last, count)) if *last == opcode => *count += 1,
            _ => runs.push((opcode, 1)),
        }
    }
    let one =
        |(opcode, count): (&str, usize)| if count == 1 { opcode.to_string() } else { format!("{opcode} x {count}") };
    runs.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
