//! Single instructions, executed by the simulator and by a GPU on the same inputs and compared.
//!
//! [`table`] lists the instructions; [`ptx`] and [`products`] make a module with one kernel of each: its lanes load
//! their sources, execute the instruction and store its results. Source of the forms and of the allowed errors: PTX
//! ISA 9.0, chapter 9.7.

pub mod compare;
pub mod format;
pub mod pattern;
pub mod products;
pub mod ptx;
pub mod run;
pub mod table;
pub mod wgmma;

use format::Format;

/// The kernel of every module.
pub const ENTRY: &str = "t";
/// Threads of a block.
pub const THREADS: usize = 128;

/// An instruction with its kernel and inputs. The kernel's parameters are the addresses of input, output and scratch
/// memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// The instruction, or the statements that contain it.
    pub name: String,
    /// The module.
    pub ptx: String,
    /// Number of lanes, a multiple of [`THREADS`].
    pub lanes: usize,
    /// Formats of the sources that each lane loads: source k of lane i is 8 bytes at `8 · (k · lanes + i)` of the
    /// input.
    pub sources: Vec<Format>,
    /// Formats of the results that each lane stores, laid out like the sources.
    pub results: Vec<Format>,
    /// The input's bytes.
    pub input: Vec<u8>,
    /// For a sum of products: the input without signs, whose results are sums of magnitudes.
    pub magnitudes: Option<Vec<u8>>,
    /// Allowed difference of two sums, relative to the sum of magnitudes.
    pub tolerance: f64,
}

impl Case {
    /// Bytes of the output.
    pub fn output_bytes(&self) -> usize {
        8 * self.lanes * self.results.len().max(1)
    }

    /// Returns the 8 bytes of operand `k` of lane `i` in an input or output.
    pub fn word(&self, bytes: &[u8], k: usize, i: usize) -> u64 {
        let at = 8 * (k * self.lanes + i);
        bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
    }
}

/// Returns all instructions whose name contains `filter`, each on `lanes` inputs (a multiple of [`THREADS`]; eight
/// times as many for one source).
pub fn cases(filter: &str, lanes: usize) -> Vec<Case> {
    let rows = table::rows()
        .flat_map(|(pattern, formats)| pattern::expand(pattern).into_iter().map(move |text| (text, formats)));
    let wanted = rows.filter(|(text, formats)| ptx::name(text, formats).contains(filter));
    let mut all: Vec<Case> = wanted.map(|(text, formats)| ptx::case(&text, formats, lanes)).collect();
    all.extend(products::cases(lanes).into_iter().filter(|case| case.name.contains(filter)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_instruction_runs_on_the_simulator() {
        let all = cases("", THREADS);
        let names: HashSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "each is there once");
        for case in &all {
            if let Err(e) = run::simulate(case, &case.input) {
                panic!("{}: {e}\n{}", case.name, case.ptx);
            }
        }
    }
}
