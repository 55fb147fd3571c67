//! Runs single instructions on the simulator and on a GPU with the same inputs, and compares the results.
//!
//! [`table`] lists the instructions; [`ptx`] and [`products`] make a PTX module with one kernel for each instruction.
//! Each lane of the kernel loads its sources, executes the instruction and stores the results. The instructions' forms
//! and the allowed errors are taken from PTX ISA 9.0, chapter 9.7.

pub mod compare;
pub mod format;
pub mod pattern;
pub mod products;
pub mod ptx;
pub mod run;
pub mod table;
pub mod wgmma;

use format::OperandFormat;
use reel_sim::finding::FindingKind;

/// The name of the only kernel in every generated PTX module.
pub const KERNEL_NAME: &str = "t";
/// Number of threads per block.
pub const THREADS_PER_BLOCK: usize = 128;

/// An instruction with its kernel and inputs. The kernel's parameters are the addresses of input, output and scratch
/// memory.
#[derive(Clone, Debug)]
pub struct InstructionCase {
    /// The name in the output: the opcode, or the PTX statements that contain it, followed by the operands' formats.
    pub name: String,
    /// The PTX text of the module.
    pub ptx: String,
    /// Number of lanes, a multiple of [`THREADS_PER_BLOCK`].
    pub lanes: usize,
    /// Formats of the sources that each lane loads: source k of lane i is 8 bytes at `8 · (k · lanes + i)` of the
    /// input.
    pub sources: Vec<OperandFormat>,
    /// Formats of the results that each lane stores; the output has the layout of the input.
    pub results: Vec<OperandFormat>,
    /// The contents of the input buffer.
    pub input: Vec<u8>,
    /// For a sum of products: the input with all sign bits cleared. With this input, the results are the sums of the
    /// products' magnitudes.
    pub magnitudes: Option<Vec<u8>>,
    /// Allowed difference between the simulator's and the GPU's sums, relative to the sum of the products' magnitudes.
    pub tolerance: f64,
    /// The kind of finding that the simulator must report, for a case that executes a defect. The results are compared
    /// in either case.
    pub finding: Option<FindingKind>,
}

impl InstructionCase {
    /// Size of the output buffer in bytes.
    pub fn output_bytes(&self) -> usize {
        8 * self.lanes * self.results.len().max(1)
    }

    /// Returns the 8 bytes of one operand of a lane. `bytes` is an input or output buffer.
    pub fn operand_word(&self, bytes: &[u8], operand: usize, lane: usize) -> u64 {
        let at = 8 * (operand * self.lanes + lane);
        bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
    }
}

/// Returns the cases of all instructions with `filter` in their names. Each case has `lanes` inputs (a multiple of
/// [`THREADS_PER_BLOCK`]), or eight times as many if the instruction has one source.
pub fn instruction_cases(filter: &str, lanes: usize) -> Vec<InstructionCase> {
    let rows = table::instruction_patterns()
        .flat_map(|(pattern, formats)| pattern::expand_pattern(pattern).into_iter().map(move |text| (text, formats)));
    let wanted = rows.filter(|(text, formats)| ptx::case_name(text, formats).contains(filter));
    let mut all: Vec<InstructionCase> =
        wanted.map(|(text, formats)| ptx::case_from_expanded_pattern(&text, formats, lanes)).collect();
    let products = products::mma_cases(lanes).into_iter().chain(wgmma::wgmma_cases(lanes));
    all.extend(products.filter(|case| case.name.contains(filter)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_instruction_runs_on_the_simulator() {
        let all = instruction_cases("", THREADS_PER_BLOCK);
        let names: HashSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "each is there once");
        for case in &all {
            if let Err(e) = run::run_on_simulator(case, &case.input) {
                panic!("{}: {e}\n{}", case.name, case.ptx);
            }
        }
    }
}
