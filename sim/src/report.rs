//! Sums the counters of a simulated launch, in total and by source line.

use std::collections::BTreeMap;

use crate::counters::{Counters, InstructionCounts};
use crate::finding::{self, SourceLine};
use crate::program::op::InstructionClass;
use crate::program::{Kernel, Program};

/// How often instructions of one class were executed, counted per warp and per thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutedCounts {
    /// Executions, counted per warp.
    pub warps: u64,
    /// Executions, counted per thread.
    pub threads: u64,
}

/// The counters of a source line or of a whole launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterTotals {
    /// The sum of the counters of all instructions.
    pub count: InstructionCounts,
    /// Executions per instruction class, in the order of [`InstructionClass::ALL`].
    by_class: [ExecutedCounts; InstructionClass::ALL.len()],
}

impl CounterTotals {
    /// Returns each instruction class that was executed, with the number of executions.
    pub fn executed_classes(&self) -> impl Iterator<Item = (InstructionClass, ExecutedCounts)> {
        InstructionClass::ALL.into_iter().zip(self.by_class).filter(|(_, e)| e.warps > 0)
    }

    /// Returns the bytes that threads read from or wrote to global memory, divided by the bytes of the accessed
    /// sectors. At most 1 unless lanes access the same bytes; `None` if there was no access to global memory.
    pub fn sector_efficiency(&self) -> Option<f64> {
        let bytes = self.count.global_read + self.count.global_written;
        (self.count.sectors > 0).then(|| bytes as f64 / (32 * self.count.sectors) as f64)
    }

    /// Returns the number of additional passes through shared memory (wavefronts) that bank conflicts caused.
    pub fn bank_conflict_wavefronts(&self) -> u64 {
        self.count.wavefronts.saturating_sub(self.count.wavefronts_least)
    }

    fn add(&mut self, class: InstructionClass, count: &InstructionCounts) {
        self.count.add(count);
        let of = &mut self.by_class[class_index(class)];
        of.warps += count.warps;
        of.threads += count.threads;
    }
}

fn class_index(class: InstructionClass) -> usize {
    InstructionClass::ALL.iter().position(|c| *c == class).unwrap_or(InstructionClass::ALL.len() - 1)
}

/// The counters of a source line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineCounts {
    /// The source line.
    pub origin: SourceLine,
    /// The counters of the line's instructions.
    pub counted: CounterTotals,
}

/// The counters of a launch, in total and by source line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountReport {
    /// The counters of the whole launch.
    pub total: CounterTotals,
    /// The counters of each executed source line, in ascending order of the lines.
    pub lines: Vec<LineCounts>,
    /// Block and cluster barriers that were completed.
    pub barriers: u64,
    /// Blocks that have started.
    pub blocks: u64,
}

impl CountReport {
    /// Sums the counters of a launch by source line.
    pub fn new(program: &Program, kernel: &Kernel, counters: &Counters) -> CountReport {
        let mut total = CounterTotals::default();
        let mut lines: BTreeMap<SourceLine, CounterTotals> = BTreeMap::new();
        for (pc, count) in counters.by_instruction.iter().enumerate().filter(|(_, c)| c.warps > 0) {
            let (code, i) = kernel.function_and_instruction_index(pc as u32);
            let Some(instr) = code.instrs.get(i) else { continue };
            total.add(instr.class, count);
            lines.entry(finding::source_line(program, kernel, pc as u32)).or_default().add(instr.class, count);
        }
        let lines = lines.into_iter().map(|(origin, counted)| LineCounts { origin, counted }).collect();
        CountReport { total, lines, barriers: counters.barriers, blocks: counters.blocks }
    }

    /// Returns the `count` source lines with the most executed warp instructions, in descending order.
    pub fn busiest_lines(&self, count: usize) -> Vec<&LineCounts> {
        let mut lines: Vec<&LineCounts> = self.lines.iter().collect();
        lines.sort_by_key(|l| std::cmp::Reverse(l.counted.count.warps));
        lines.truncate(count);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{self, ExecOptions, LaunchConfig};
    use crate::memory::SimMemory;

    /// A kernel with lines 1 to 3 of `k.cu`; in line 2, a call of a function of `k.cuh` is inlined.
    const LOCATED: &str = "
.version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x) {
    .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<4>;
    .loc 1 1 0
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd3, %rd1, %rd2;
    .loc 1 2 0
    ld.global.f32 %f1, [%rd3];
    .loc 2 7 0, function_name $name, inlined_at 1 2 0
    add.f32 %f2, %f1, %f1;
    .loc 1 3 0
    st.global.f32 [%rd3], %f2;
    ret;
}
.file 1 \"k.cu\"
.file 2 \"k.cuh\"
.section .debug_str
{
$name:
.b8 102,0
}
";

    fn report(text: &str) -> CountReport {
        let program = Program::parse(text).expect("PTX");
        let kernel = program.kernel("k").expect("a kernel");
        let mut memory = SimMemory::new();
        let x = memory.alloc(vec![0; 8 * 64]);
        let params = x.to_le_bytes().to_vec();
        let launch = LaunchConfig { grid: [1; 3], block: [64, 1, 1], cluster: [1; 3], dynamic_shared: 0, params };
        let outcome = exec::run(&program, &kernel, &launch, &mut memory, &ExecOptions::default()).expect("a launch");
        assert!(outcome.findings.is_empty());
        CountReport::new(&program, &kernel, &outcome.counters)
    }

    #[test]
    fn inlined_instructions_count_for_the_line_of_the_main_file() {
        let r = report(LOCATED);
        let lines: Vec<(u32, u64)> = r.lines.iter().map(|l| (l.origin.line, l.counted.count.warps)).collect();
        assert_eq!(lines, [(1, 8), (2, 4), (3, 4)]);
        assert!(r.lines.iter().all(|l| l.origin.cuda && l.origin.file.is_none()));
        let load = &r.lines[1].counted;
        // The 32 lanes read every other 32-bit word, so they use half of the bytes of each sector.
        assert_eq!((load.count.global_read, load.count.sectors), (2 * 128, 2 * 8));
        assert_eq!(load.sector_efficiency(), Some(0.5));
        assert_eq!(load.by_class[class_index(InstructionClass::Float)], ExecutedCounts { warps: 2, threads: 64 });
        assert_eq!(load.by_class[class_index(InstructionClass::Global)], ExecutedCounts { warps: 2, threads: 64 });
        assert_eq!(r.lines[0].counted.sector_efficiency(), None);
        assert_eq!(r.total.count.threads, 8 * 64);
        assert_eq!(r.total.executed_classes().map(|(_, e)| e.warps).sum::<u64>(), 16);
        assert_eq!(r.busiest_lines(1)[0].origin.line, 1);
    }

    #[test]
    fn ptx_lines_are_used_without_line_information() {
        let bare: String = LOCATED.lines().filter(|l| !l.contains(".loc")).map(|l| format!("{l}\n")).collect();
        let r = report(&bare);
        assert!(r.lines.iter().all(|l| !l.origin.cuda));
        let first = bare.lines().position(|l| l.contains("ld.param")).unwrap() as u32 + 1;
        assert_eq!(r.lines.iter().map(|l| l.origin.line).collect::<Vec<_>>(), (first..first + 8).collect::<Vec<_>>());
    }
}
