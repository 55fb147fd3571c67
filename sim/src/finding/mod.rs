//! Findings: the defects that a run reports, one for each cause, with source line, thread, and number of occurrences.
//!
//! Occurrences are merged in two steps. During a run, occurrences with the same kind and source lines become one
//! finding. At the end, findings that lack the same barrier or wait between their two instructions become one (see
//! `segments`).

use crate::program::{Kernel, Program};
use crate::ptx::ast::{Function, SourceLocation};
use std::collections::{HashMap, HashSet};

mod segments;

/// The kind of a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// An access outside of every buffer, or beyond a shared variable.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A load of bytes that nothing has written, or an undefined register in an address, a branch or a store.
    Uninitialized,
    /// Two accesses to the same bytes, at least one a write, that no synchronisation orders.
    Race,
    /// An access to bytes that an asynchronous operation uses, by a thread that has not waited for the operation.
    AsyncNotWaited,
    /// An ordinary write and an asynchronous operation on the same bytes without a proxy fence between them.
    AsyncProxy,
    /// A register hazard of wgmma, a wgmma that some warps do not execute, or an invalid descriptor.
    Wgmma,
    /// Wrong use of the tensor core and tensor memory of sm_100: order, allocation, lanes, descriptors.
    Tcgen05,
    /// Wrong use of an mbarrier.
    Mbarrier,
    /// A barrier in divergent code, or with a wrong thread count.
    Barrier,
    /// No thread can continue.
    Deadlock,
    /// Wrong use of `setmaxnreg`.
    Setmaxnreg,
    /// Wrong use of `clusterlaunchcontrol`.
    LaunchControl,
    /// A `trap` instruction or a failed assertion.
    Trap,
    /// The kernel executed an instruction that the simulator does not know.
    Unsupported,
}

impl FindingKind {
    /// All kinds of defects.
    pub const ALL: [FindingKind; 15] = [
        FindingKind::OutOfBounds,
        FindingKind::Misaligned,
        FindingKind::Uninitialized,
        FindingKind::Race,
        FindingKind::AsyncNotWaited,
        FindingKind::AsyncProxy,
        FindingKind::Wgmma,
        FindingKind::Tcgen05,
        FindingKind::Mbarrier,
        FindingKind::Barrier,
        FindingKind::Deadlock,
        FindingKind::Setmaxnreg,
        FindingKind::LaunchControl,
        FindingKind::Trap,
        FindingKind::Unsupported,
    ];

    /// Returns the name of the kind in reports.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::OutOfBounds => "out-of-bounds",
            FindingKind::Misaligned => "misaligned",
            FindingKind::Uninitialized => "uninitialized",
            FindingKind::Race => "race",
            FindingKind::AsyncNotWaited => "async-not-waited",
            FindingKind::AsyncProxy => "async-proxy",
            FindingKind::Wgmma => "wgmma",
            FindingKind::Tcgen05 => "tcgen05",
            FindingKind::Mbarrier => "mbarrier",
            FindingKind::Barrier => "barrier",
            FindingKind::Deadlock => "deadlock",
            FindingKind::Setmaxnreg => "setmaxnreg",
            FindingKind::LaunchControl => "launch-control",
            FindingKind::Trap => "trap",
            FindingKind::Unsupported => "unsupported",
        }
    }

    /// Returns what to do about a defect of this kind, as one sentence without a full stop.
    pub fn help(self) -> &'static str {
        match self {
            FindingKind::OutOfBounds => "test the index against the size before the access, or make the buffer larger",
            FindingKind::Misaligned => "use an address that is a multiple of the access's size",
            FindingKind::Uninitialized => "write the bytes before they are read",
            FindingKind::Race => {
                "separate the two accesses by a barrier of all threads that make them; between blocks, by a release \
                 and an acquire, or make both atomic"
            }
            FindingKind::AsyncNotWaited => {
                "let the issuing thread wait for the operation (its group or its mbarrier), and then synchronise the \
                 other threads by a barrier"
            }
            FindingKind::AsyncProxy => {
                "put fence.proxy.async between the ordinary access and the asynchronous one: after the write and \
                 before the barrier"
            }
            FindingKind::Wgmma => {
                "execute wgmma.fence before the first product and wgmma.wait_group before its registers are used, in \
                 all warps of the warpgroup"
            }
            FindingKind::Mbarrier => {
                "initialise the mbarrier once, before all uses, with the arrivals of a phase, and expect the bytes \
                 that its copies deliver"
            }
            FindingKind::Barrier => "let all threads that the barrier counts reach it",
            FindingKind::Deadlock => "make the arrivals or the stores that the listed warps wait for reachable",
            FindingKind::Setmaxnreg => {
                "change the register count in all warps of a warpgroup, within the block's total"
            }
            FindingKind::Trap => "correct what the kernel tests before it traps",
            FindingKind::Tcgen05 => {
                "wait for the operation that uses the tensor memory (tcgen05.commit and its mbarrier, tcgen05.wait) and put \
                 tcgen05.fence::after_thread_sync after it"
            }
            FindingKind::LaunchControl => {
                "wait for the answer of try_cancel before it is read, and before the next request"
            }
            FindingKind::Unsupported => "compile for an architecture whose instructions are simulated",
        }
    }
}

/// A defect of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The kind of the defect.
    pub kind: FindingKind,
    /// One sentence that describes the defect, and the chain of inlined calls that leads to the instruction.
    pub message: String,
    /// Line in the main CUDA file, or in the PTX text if the PTX has no line information.
    pub line: u32,
    /// The source position of the instruction.
    pub position: SourcePosition,
    /// The other instruction that the defect is about, and who executed it; `None` if there is only one.
    pub other: Option<OtherEnd>,
    /// Block of the first occurrence.
    pub block: [u32; 3],
    /// Coordinates of the thread of the first occurrence in its block.
    pub thread: [u32; 3],
    /// The state space of the address: `global`, `const`, `shared`, `local` or `param`.
    pub space: Option<&'static str>,
    /// The address that the first occurrence accessed, in its state space.
    pub address: Option<u64>,
    /// Number of occurrences of the defect.
    pub count: u64,
}

/// A thread at an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FindingSite {
    /// Index of the instruction in the kernel.
    pub pc: u32,
    /// Coordinates of the block.
    pub block: [u32; 3],
    /// Coordinates of the thread in its block.
    pub thread: [u32; 3],
}

/// The position of an instruction in source files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    /// The path of the CUDA or Python file as the PTX records it; `None` if only the line of the PTX text is known.
    pub file: Option<String>,
    /// Line in `file` from 1, or in the PTX text; 0 if unknown.
    pub line: u32,
    /// Line in the PTX text from 1; 0 if unknown.
    pub ptx_line: u32,
}

/// The other instruction of a finding, as it is reported.
#[derive(Clone, Debug, PartialEq)]
pub struct OtherEnd {
    /// The source position of the instruction.
    pub position: SourcePosition,
    /// Coordinates of the block and of the thread that executed the instruction; `None` if unknown.
    pub thread: Option<([u32; 3], [u32; 3])>,
}

/// The other instruction of a defect.
#[derive(Clone, Copy, Debug)]
pub struct OtherInstruction {
    /// Index of the instruction in the kernel.
    pub pc: u32,
    /// Coordinates of the block and of the thread that executed the instruction; `None` if unknown.
    pub thread: Option<([u32; 3], [u32; 3])>,
}

impl From<u32> for OtherInstruction {
    /// An instruction whose thread is unknown.
    fn from(pc: u32) -> OtherInstruction {
        OtherInstruction { pc, thread: None }
    }
}

/// The properties that occurrences of one defect share: the kind, and the lines of the two instructions in ascending
/// order (`u32::MAX` if there is only one).
type Cause = (FindingKind, u32, u32);

/// The findings of a run, one for each cause.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    /// Index in `list` of the finding of each cause.
    by_cause: HashMap<Cause, usize>,
    /// Index in `list` of the finding of each kind and pair of instructions. With it, a repeated occurrence needs no
    /// search for the source lines of the instructions.
    known: HashMap<(FindingKind, u32, Option<u32>), usize>,
    /// For each finding in `list`, the two instructions between which synchronisation is missing; `None` if the
    /// finding is about one instruction only.
    gaps: Vec<Option<Gap>>,
    /// Cache: name and segments of the kernel for which a gap was computed last.
    segments: Option<Box<(String, Vec<u32>)>>,
}

/// Two instructions between which a barrier, fence or wait is missing. Gaps of the same kind and state space that share
/// a segment have one cause: the synchronisation that is missing at the end of that segment.
#[derive(Clone, Debug, PartialEq)]
struct Gap {
    kind: FindingKind,
    space: Option<&'static str>,
    kernel: String,
    /// Numbers of the segments (see `segments`) of the two instructions.
    segments: [u32; 2],
    /// Source lines of the two instructions.
    lines: [u32; 2],
}

impl Findings {
    /// Adds the finding of a defect of the kernel at `site`, or counts it if it is known. `other` is the other
    /// instruction of a race, `memory` the state space and address of the access. `message` is called only for the
    /// first occurrence of the defect.
    #[expect(clippy::too_many_arguments, reason = "a finding has this many properties")]
    pub fn add_kernel_defect(
        &mut self,
        program: &Program,
        kernel: &Kernel,
        kind: FindingKind,
        site: FindingSite,
        other: Option<OtherInstruction>,
        memory: Option<(&'static str, u64)>,
        message: impl FnOnce() -> String,
    ) {
        let (of_other, other) = (other, other.map(|other| other.pc));
        let pair = (kind, site.pc, other);
        if self.count_repeated_finding(kind, site.pc, other) {
            return;
        }
        let (line, chain) = line_and_inlining_chain(program, kernel, site.pc);
        let other_line = other.map_or(u32::MAX, |pc| line_and_inlining_chain(program, kernel, pc).0);
        let cause = (kind, line.min(other_line), line.max(other_line));
        if let Some(&at) = self.by_cause.get(&cause) {
            self.known.insert(pair, at);
            self.list[at].count += 1;
            return;
        }
        self.known.insert(pair, self.list.len());
        self.by_cause.insert(cause, self.list.len());
        let gap =
            other.and_then(|other| self.gap(kernel, kind, [site.pc, other], [line, other_line], memory.map(|m| m.0)));
        self.gaps.push(gap);
        let (space, address) = memory.map_or((None, None), |(s, a)| (Some(s), Some(a)));
        let message = format!("{}{chain}", message());
        self.list.push(Finding {
            kind,
            message,
            line,
            position: source_position(program, kernel, site.pc),
            other: of_other.map(|o| OtherEnd { position: source_position(program, kernel, o.pc), thread: o.thread }),
            block: site.block,
            thread: site.thread,
            space,
            address,
            count: 1,
        });
    }

    /// Counts another occurrence of a defect if it was reported before for the same instructions. Returns true if it
    /// was.
    pub fn count_repeated_finding(&mut self, kind: FindingKind, pc: u32, other: Option<u32>) -> bool {
        let Some(&at) = self.known.get(&(kind, pc, other)) else { return false };
        self.list[at].count += 1;
        true
    }

    /// Returns the gap of a finding about two instructions. Races in global memory have no gap: no barrier separates
    /// the blocks of a grid, so gaps would merge all these races into one defect.
    fn gap(
        &mut self,
        kernel: &Kernel,
        kind: FindingKind,
        pcs: [u32; 2],
        lines: [u32; 2],
        space: Option<&'static str>,
    ) -> Option<Gap> {
        match kind {
            FindingKind::Race if space != Some("shared") => return None,
            FindingKind::Race
            | FindingKind::AsyncProxy
            | FindingKind::AsyncNotWaited
            | FindingKind::Wgmma
            | FindingKind::Tcgen05 => {}
            _ => return None,
        }
        if self.segments.as_ref().is_none_or(|of| of.0 != kernel.name) {
            self.segments = Some(Box::new((kernel.name.clone(), segments::segment_of_each_instruction(kernel))));
        }
        let segments = &self.segments.as_ref()?.1;
        let [here, there] = pcs.map(|pc| segments.get(pc as usize).copied());
        // A missing wait counts as one defect of the asynchronous operation, whichever instruction accesses the bytes.
        // So both ends of the gap get the segment of the operation's instruction.
        let here = if matches!(kind, FindingKind::AsyncNotWaited | FindingKind::Wgmma | FindingKind::Tcgen05) {
            there
        } else {
            here
        };
        Some(Gap { kind, space, kernel: kernel.name.clone(), segments: [here?, there?], lines })
    }

    /// Returns whether there are no findings.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns whether there is a finding of this kind.
    pub fn contains_kind(&self, kind: FindingKind) -> bool {
        self.list.iter().any(|f| f.kind == kind)
    }

    /// Returns the findings in the order of their lines, one for each cause. An access that is not ordered may come
    /// too early in some interleavings and cause a second finding; two kinds of such findings are dropped. The first
    /// is a load of unwritten bytes at a line that also has a race. The second is the use of an mbarrier that does not
    /// exist (such a finding names the use itself as its other instruction), if another finding at this line says that
    /// the use is not ordered after the initialisation.
    pub fn into_list(self) -> Vec<Finding> {
        let races = self.by_cause.keys().filter(|(kind, ..)| *kind == FindingKind::Race);
        let raced: HashSet<u32> = races.flat_map(|&(_, a, b)| [a, b]).collect();
        let of_mbarrier = || self.by_cause.iter().filter(|((kind, ..), _)| *kind == FindingKind::Mbarrier);
        let unordered = of_mbarrier().filter(|((_, a, b), _)| a != b && *b != u32::MAX);
        let unordered: HashSet<u32> = unordered.map(|(_, &at)| self.list[at].line).collect();
        let early: HashSet<usize> =
            of_mbarrier().filter(|((_, a, b), _)| a == b && unordered.contains(a)).map(|(_, &at)| at).collect();
        let kept = self.list.into_iter().zip(self.gaps).enumerate().filter(|(at, _)| !early.contains(at));
        let (list, gaps): (Vec<Finding>, Vec<Option<Gap>>) = kept.map(|(_, finding)| finding).unzip();
        let mut list = merge_by_gap(list, &gaps);
        list.retain(|f| f.kind != FindingKind::Uninitialized || f.address.is_none() || !raced.contains(&f.line));
        list.sort_by_key(|f| (f.line, f.kind));
        list
    }

    /// Adds the findings of another run of the same kernel and adds up the occurrences of the same defect.
    pub fn merge(&mut self, other: Findings) {
        let mut causes: Vec<(Cause, usize)> = other.by_cause.into_iter().collect();
        causes.sort_by_key(|c| c.1);
        for (cause, at) in causes {
            let finding = other.list[at].clone();
            match self.by_cause.get(&cause) {
                Some(&mine) => self.list[mine].count += finding.count,
                None => {
                    self.by_cause.insert(cause, self.list.len());
                    self.list.push(finding);
                    self.gaps.push(other.gaps[at].clone());
                }
            }
        }
    }
}

/// Merges findings that lack synchronisation in the same segment into the first such finding; its message then names
/// the lines of the other findings.
fn merge_by_gap(list: Vec<Finding>, gaps: &[Option<Gap>]) -> Vec<Finding> {
    // Each entry is one group of merged findings: the group's first gap, all of its segments, and the index of its
    // finding in `out`.
    let mut groups: Vec<(Gap, HashSet<u32>, usize)> = Vec::new();
    let mut out: Vec<(Finding, Vec<[u32; 2]>)> = Vec::new();
    for (finding, gap) in list.into_iter().zip(gaps) {
        let Some(gap) = gap else {
            out.push((finding, Vec::new()));
            continue;
        };
        let same = |other: &Gap| other.kind == gap.kind && other.space == gap.space && other.kernel == gap.kernel;
        let mut joined: Vec<usize> = (0..groups.len())
            .filter(|&n| same(&groups[n].0) && gap.segments.iter().any(|s| groups[n].1.contains(s)))
            .collect();
        if joined.is_empty() {
            groups.push((gap.clone(), gap.segments.into(), out.len()));
            out.push((finding, Vec::new()));
            continue;
        }
        let first = joined.remove(0);
        groups[first].1.extend(gap.segments);
        let at = groups[first].2;
        out[at].0.count += finding.count;
        out[at].1.push(gap.lines);
        // A finding whose two segments belong to different groups merges these groups.
        for n in joined.into_iter().rev() {
            let (of, segments, from) = groups.remove(n);
            groups[first].1.extend(segments);
            let (count, lines) = (out[from].0.count, std::mem::take(&mut out[from].1));
            out[from].0.count = 0;
            out[at].0.count += count;
            out[at].1.push(of.lines);
            out[at].1.extend(lines);
        }
    }
    out.retain(|(finding, _)| finding.count > 0);
    out.into_iter()
        .map(|(mut finding, mut lines)| {
            lines.sort_unstable();
            lines.dedup();
            let named: Vec<String> = lines.iter().take(8).map(|[a, b]| format!("{a} and {b}")).collect();
            if !named.is_empty() {
                let more = if lines.len() > 8 { format!(" and {} more pairs", lines.len() - 8) } else { String::new() };
                finding.message += &format!("; the same cause at lines {}{more}", named.join(", "));
            }
            finding
        })
        .collect()
}

/// The source line under which an instruction is counted and reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceLine {
    /// Name of the CUDA file without folders; `None` for the main file.
    pub file: Option<String>,
    /// Line number from 1; 0 if unknown.
    pub line: u32,
    /// Whether this is a line of CUDA source; if not, it is a line of the PTX text.
    pub cuda: bool,
}

/// Returns the source line of an instruction: the innermost inlined line in the main CUDA file, otherwise the
/// innermost line, otherwise the line of the PTX text.
pub fn source_line(program: &Program, kernel: &Kernel, pc: u32) -> SourceLine {
    let main = main_file(program, &kernel.name);
    match nearest_location(program, kernel, pc, main) {
        (_, Some(p)) => {
            let file = (Some(p.file) != main).then(|| file_name(program, p.file).into());
            SourceLine { file, line: p.line, cuda: true }
        }
        (ptx_line, None) => SourceLine { file: None, line: ptx_line, cuda: false },
    }
}

/// Returns the position of the line that [`source_line`] selects, with the path of its file.
pub fn source_position(program: &Program, kernel: &Kernel, pc: u32) -> SourcePosition {
    let (ptx_line, location) = nearest_location(program, kernel, pc, main_file(program, &kernel.name));
    let file = location.and_then(|p| file_path(program, p.file)).map(str::to_string);
    SourcePosition { file, line: location.map_or(ptx_line, |p| p.line), ptx_line }
}

/// Returns an instruction's line of the PTX text, and its location in the source: the innermost inlined one in the file
/// `main`, otherwise the innermost; `None` without line information.
fn nearest_location<'p>(
    program: &'p Program,
    kernel: &Kernel,
    pc: u32,
    main: Option<u32>,
) -> (u32, Option<&'p SourceLocation>) {
    let (code, i) = kernel.function_and_instruction_index(pc);
    let Some(&(ptx_line, location)) = code.lines.get(i) else { return (0, None) };
    let Some(location) = location.map(|p| program.source_location(p)) else { return (ptx_line, None) };
    let in_main = inlining_chain(location).find(|p| Some(p.file) == main && p.line > 0);
    (ptx_line, in_main.or((location.line > 0).then_some(location)))
}

/// Returns the line that a finding names for an instruction, and the chain of inlined calls and other files as text.
pub fn line_and_inlining_chain(program: &Program, kernel: &Kernel, pc: u32) -> (u32, String) {
    let (code, i) = kernel.function_and_instruction_index(pc);
    let mut origin = source_line(program, kernel, pc);
    if origin.file.is_some() {
        // An instruction from a header is reported at its line of the PTX text. Findings name no file, so the header's
        // line would be mistaken for a line of the main file.
        origin.line = code.lines.get(i).map_or(0, |l| l.0);
    }
    let Some(place) = code.lines.get(i).and_then(|l| l.1).map(|p| program.source_location(p)) else {
        return (origin.line, String::new());
    };
    let main = main_file(program, &kernel.name);
    let mut chain = String::new();
    let mut named = false;
    for p in inlining_chain(place) {
        if !named && Some(p.file) == main && p.line > 0 {
            named = true;
        } else {
            chain += &format!("; {}:{}", file_name(program, p.file), p.line);
        }
        if let Some((_, function)) = p.inlined_at.as_ref().filter(|(_, f)| !f.is_empty()) {
            chain += &format!(" (in {function})");
        }
    }
    (origin.line, chain)
}

/// A call that is inlined at an instruction, or the line of the instruction itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlinedCall {
    /// The function that contains the line; empty for the kernel or if unknown.
    pub function: String,
    /// The path of the file as the PTX records it; `None` for a line of the PTX text.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: u32,
}

/// Returns the lines of an instruction from the kernel's own line inwards: each further line is in a function that is
/// inlined at the line before it. Without line information it is the line of the PTX text.
pub fn inlined_calls(program: &Program, kernel: &Kernel, pc: u32) -> Vec<InlinedCall> {
    let (code, i) = kernel.function_and_instruction_index(pc);
    let Some(&(ptx_line, location)) = code.lines.get(i) else { return Vec::new() };
    let Some(location) = location.map(|p| program.source_location(p)) else {
        return vec![InlinedCall { function: String::new(), file: None, line: ptx_line }];
    };
    let call = |p: &SourceLocation| InlinedCall {
        function: p.inlined_at.as_ref().map(|(_, function)| function.clone()).unwrap_or_default(),
        file: file_path(program, p.file).map(str::to_string),
        line: p.line,
    };
    let mut calls: Vec<InlinedCall> = inlining_chain(location).map(call).collect();
    calls.reverse();
    calls
}

/// Iterates over a source location and the locations at which it was inlined, innermost first.
fn inlining_chain(place: &SourceLocation) -> impl Iterator<Item = &SourceLocation> {
    std::iter::successors(Some(place), |p| p.inlined_at.as_ref().map(|(outer, _)| outer.as_ref()))
}

/// Returns the path of a kernel's main CUDA file as the PTX records it; `None` without line information.
pub fn main_file_name<'p>(program: &'p Program, kernel: &str) -> Option<&'p str> {
    file_path(program, main_file(program, kernel)?)
}

/// Returns the index of the CUDA file that was compiled; PTX does not record it. It is the file of the kernel's own
/// lines. If that file is a header, it is the file of the first other kernel outside of headers.
fn main_file(program: &Program, kernel: &str) -> Option<u32> {
    let defined = || program.module.functions.iter().filter(|f| f.kernel && !f.declaration);
    let own = defined().find(|f| f.name == kernel).and_then(|f| own_file(program, f));
    let compiled = |&file: &u32| file_name(program, file).ends_with(".cu");
    own.filter(compiled).or_else(|| defined().filter_map(|f| own_file(program, f)).find(compiled)).or(own)
}

/// Returns the index of the file in which a kernel's own code begins: the file of its first line that is not inlined
/// from another function.
fn own_file(program: &Program, kernel: &Function) -> Option<u32> {
    kernel.body.iter().find_map(|i| {
        let mut place = program.module.source_locations.get(i.location? as usize)?;
        while let Some((outer, _)) = &place.inlined_at {
            place = outer;
        }
        Some(place.file)
    })
}

/// Returns the path of a file as the PTX records it.
fn file_path(program: &Program, file: u32) -> Option<&str> {
    program.module.files.iter().find(|f| f.0 == file).map(|f| f.1.as_str())
}

fn file_name(program: &Program, file: u32) -> &str {
    let name = file_path(program, file).unwrap_or("?");
    name.rsplit('/').next().unwrap_or(name)
}
