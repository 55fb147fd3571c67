//! What a run found wrong: one finding a cause, with the place, the thread and how often.

use crate::program::{Kernel, Program};
use crate::ptx::ast::{Function, SourceLocation};
use std::collections::{HashMap, HashSet};

mod segments;

/// What kind of mistake it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// An access outside every allocation.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A load of bytes that nobody wrote, or an undefined register in an address, a branch or a store.
    Uninitialized,
    /// Two accesses, one a write, without order between them.
    Race,
    /// An access to bytes of an asynchronous operation whose completion the thread has not observed.
    AsyncNotWaited,
    /// A generic write reaches the async proxy without a proxy fence.
    AsyncProxy,
    /// Register or ordering hazard of wgmma, or a bad descriptor.
    Wgmma,
    /// Misuse of an mbarrier.
    Mbarrier,
    /// A divergent barrier or one with a wrong count.
    Barrier,
    /// Nobody can go on.
    Deadlock,
    /// Misuse of `setmaxnreg`.
    Setmaxnreg,
    /// `trap`, a failed assertion.
    Trap,
    /// An instruction that the simulator does not know was executed.
    Unsupported,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [FindingKind; 13] = [
        FindingKind::OutOfBounds,
        FindingKind::Misaligned,
        FindingKind::Uninitialized,
        FindingKind::Race,
        FindingKind::AsyncNotWaited,
        FindingKind::AsyncProxy,
        FindingKind::Wgmma,
        FindingKind::Mbarrier,
        FindingKind::Barrier,
        FindingKind::Deadlock,
        FindingKind::Setmaxnreg,
        FindingKind::Trap,
        FindingKind::Unsupported,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::OutOfBounds => "out-of-bounds",
            FindingKind::Misaligned => "misaligned",
            FindingKind::Uninitialized => "uninitialized",
            FindingKind::Race => "race",
            FindingKind::AsyncNotWaited => "async-not-waited",
            FindingKind::AsyncProxy => "async-proxy",
            FindingKind::Wgmma => "wgmma",
            FindingKind::Mbarrier => "mbarrier",
            FindingKind::Barrier => "barrier",
            FindingKind::Deadlock => "deadlock",
            FindingKind::Setmaxnreg => "setmaxnreg",
            FindingKind::Trap => "trap",
            FindingKind::Unsupported => "unsupported",
        }
    }
}

/// A mistake.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// One sentence, with the chain of inlined calls.
    pub message: String,
    /// Line of the CUDA source in the main file where there is line information, else of the PTX text.
    pub line: u32,
    /// The block of the first occurrence.
    pub block: [u32; 3],
    /// Its thread.
    pub thread: [u32; 3],
    /// `global`, `shared`, … where memory is concerned.
    pub space: Option<&'static str>,
    /// The address, within its space.
    pub address: Option<u64>,
    /// Occurrences.
    pub count: u64,
}

/// Where something happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// The instruction, kernel-wide.
    pub pc: u32,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block.
    pub thread: [u32; 3],
}

/// What tells causes apart: kind, instruction, the other instruction.
type Cause = (FindingKind, u32, u32);

/// Findings of a run, by cause.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    places: HashMap<Cause, usize>,
    /// Where the findings of pairs of instructions went: their lines need not be looked up again.
    known: HashMap<(FindingKind, u32, Option<u32>), usize>,
    /// For each of the list: what it lacks a barrier or a wait between, and the two lines.
    gaps: Vec<Option<Gap>>,
    /// The segments of the kernel that was last asked for.
    segments: Option<Box<(String, Vec<u32>)>>,
}

/// Findings whose gaps have a segment in common, of the same kind and space, have one cause: the barrier, fence or wait that
/// is missing where it ends.
#[derive(Clone, Debug, PartialEq)]
struct Gap {
    kind: FindingKind,
    space: Option<&'static str>,
    kernel: String,
    /// The segments of the two instructions.
    segments: [u32; 2],
    /// Their lines.
    lines: [u32; 2],
}

impl Findings {
    /// Reports a mistake at `site`; `other` is the other instruction of a race. The message is made once a cause.
    #[expect(clippy::too_many_arguments, reason = "a finding has this many properties")]
    pub fn report(
        &mut self,
        program: &Program,
        kernel: &Kernel,
        kind: FindingKind,
        site: Site,
        other: Option<u32>,
        memory: Option<(&'static str, u64)>,
        message: impl FnOnce() -> String,
    ) {
        let pair = (kind, site.pc, other);
        if self.again(kind, site.pc, other) {
            return;
        }
        let (line, chain) = source(program, kernel, site.pc);
        let other_line = other.map_or(u32::MAX, |pc| source(program, kernel, pc).0);
        let cause = (kind, line.min(other_line), line.max(other_line));
        if let Some(&at) = self.places.get(&cause) {
            self.known.insert(pair, at);
            self.list[at].count += 1;
            return;
        }
        self.known.insert(pair, self.list.len());
        self.places.insert(cause, self.list.len());
        let gap =
            other.and_then(|other| self.gap(kernel, kind, [site.pc, other], [line, other_line], memory.map(|m| m.0)));
        self.gaps.push(gap);
        let (space, address) = memory.map_or((None, None), |(s, a)| (Some(s), Some(a)));
        let message = format!("{}{chain}", message());
        self.list.push(Finding {
            kind,
            message,
            line,
            block: site.block,
            thread: site.thread,
            space,
            address,
            count: 1,
        });
    }

    /// Counts a mistake of these instructions once more, if it was reported before.
    pub fn again(&mut self, kind: FindingKind, pc: u32, other: Option<u32>) -> bool {
        let Some(&at) = self.known.get(&(kind, pc, other)) else { return false };
        self.list[at].count += 1;
        true
    }

    /// What a finding about two instructions lacks. Races in global memory stay apart: between blocks there are no barriers, so
    /// that all would be one.
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
            FindingKind::Race | FindingKind::AsyncProxy | FindingKind::AsyncNotWaited | FindingKind::Wgmma => {}
            _ => return None,
        }
        if self.segments.as_ref().is_none_or(|of| of.0 != kernel.name) {
            self.segments = Some(Box::new((kernel.name.clone(), segments::of(kernel))));
        }
        let segments = &self.segments.as_ref()?.1;
        let [here, there] = pcs.map(|pc| segments.get(pc as usize).copied());
        // An operation that nobody waits for is one cause, whoever comes across it.
        let here = if matches!(kind, FindingKind::AsyncNotWaited | FindingKind::Wgmma) { there } else { here };
        Some(Gap { kind, space, kernel: kernel.name.clone(), segments: [here?, there?], lines })
    }

    /// How many causes were found.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a finding of this kind is there.
    pub fn has(&self, kind: FindingKind) -> bool {
        self.list.iter().any(|f| f.kind == kind)
    }

    /// The findings by line, one a cause: where a store races with a load, another order of the same threads loads what nobody has
    /// written yet, and that is the race once more.
    pub fn into_list(self) -> Vec<Finding> {
        let races = self.places.keys().filter(|(kind, ..)| *kind == FindingKind::Race);
        let raced: HashSet<u32> = races.flat_map(|&(_, a, b)| [a, b]).collect();
        let mut list = grouped(self.list, &self.gaps);
        list.retain(|f| f.kind != FindingKind::Uninitialized || f.address.is_none() || !raced.contains(&f.line));
        list.sort_by_key(|f| (f.line, f.kind));
        list
    }

    /// Adds another run's findings; the same causes count together.
    pub fn merge(&mut self, other: Findings) {
        let mut causes: Vec<(Cause, usize)> = other.places.into_iter().collect();
        causes.sort_by_key(|c| c.1);
        for (cause, at) in causes {
            let finding = other.list[at].clone();
            match self.places.get(&cause) {
                Some(&mine) => self.list[mine].count += finding.count,
                None => {
                    self.places.insert(cause, self.list.len());
                    self.list.push(finding);
                    self.gaps.push(other.gaps[at].clone());
                }
            }
        }
    }
}

/// Findings with one cause as one: the first, which names the others' lines.
fn grouped(list: Vec<Finding>, gaps: &[Option<Gap>]) -> Vec<Finding> {
    // Of each group its segments, and where in `out` its finding is.
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
        // A finding between two groups makes them one.
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
                finding.message += &format!("; likewise lines {}{more}", named.join(", "));
            }
            finding
        })
        .collect()
}

/// The line that an instruction is counted and reported for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceLine {
    /// The name of the CUDA file, without folders, where that is not the main one.
    pub file: Option<String>,
    /// From 1; 0 where nothing is known.
    pub line: u32,
    /// A line of CUDA, else of the PTX text.
    pub cuda: bool,
}

/// The line of an instruction: the innermost one in the main CUDA file, else the innermost, else that of the PTX text.
pub fn origin(program: &Program, kernel: &Kernel, pc: u32) -> SourceLine {
    let (code, i) = kernel.locate(pc);
    let Some(&(ptx_line, place)) = code.lines.get(i) else { return SourceLine { file: None, line: 0, cuda: false } };
    let Some(place) = place.map(|p| program.source_location(p)) else {
        return SourceLine { file: None, line: ptx_line, cuda: false };
    };
    let main = main_file(program, &kernel.name);
    match chain_of(place).find(|p| Some(p.file) == main && p.line > 0) {
        Some(p) => SourceLine { file: None, line: p.line, cuda: true },
        None if place.line > 0 => {
            SourceLine { file: Some(file_name(program, place.file).into()), line: place.line, cuda: true }
        }
        None => SourceLine { file: None, line: ptx_line, cuda: false },
    }
}

/// The line to name for an instruction, and the chain of inlined calls and other files as text.
pub fn source(program: &Program, kernel: &Kernel, pc: u32) -> (u32, String) {
    let (code, i) = kernel.locate(pc);
    let mut origin = origin(program, kernel, pc);
    if origin.file.is_some() {
        // A line of a header says nothing beside the main file's name: that of the PTX text then.
        origin.line = code.lines.get(i).map_or(0, |l| l.0);
    }
    let Some(place) = code.lines.get(i).and_then(|l| l.1).map(|p| program.source_location(p)) else {
        return (origin.line, String::new());
    };
    let main = main_file(program, &kernel.name);
    let mut chain = String::new();
    let mut named = false;
    for p in chain_of(place) {
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

/// A place and those it was inlined at, innermost first.
fn chain_of(place: &SourceLocation) -> impl Iterator<Item = &SourceLocation> {
    std::iter::successors(Some(place), |p| p.inlined_at.as_ref().map(|(outer, _)| outer.as_ref()))
}

/// The name of the main CUDA file of a kernel as the PTX has it; `None` without line information.
pub fn main_file_name<'p>(program: &'p Program, kernel: &str) -> Option<&'p str> {
    let main = main_file(program, kernel)?;
    program.module.files.iter().find(|f| f.0 == main).map(|f| f.1.as_str())
}

/// The file that was compiled, which PTX does not say: a kernel's own lines name it, unless the kernel stands in a header. So
/// it is this kernel's file, or else that of another kernel, the first that is no header.
fn main_file(program: &Program, kernel: &str) -> Option<u32> {
    let defined = || program.module.functions.iter().filter(|f| f.kernel && !f.declaration);
    let own = defined().find(|f| f.name == kernel).and_then(|f| own_file(program, f));
    let compiled = |&file: &u32| file_name(program, file).ends_with(".cu");
    own.filter(compiled).or_else(|| defined().filter_map(|f| own_file(program, f)).find(compiled)).or(own)
}

/// The file of a kernel's first line that is not inlined from elsewhere.
fn own_file(program: &Program, kernel: &Function) -> Option<u32> {
    kernel.body.iter().find_map(|i| {
        let mut place = program.module.source_locations.get(i.location? as usize)?;
        while let Some((outer, _)) = &place.inlined_at {
            place = outer;
        }
        Some(place.file)
    })
}

fn file_name(program: &Program, file: u32) -> &str {
    let name = program.module.files.iter().find(|f| f.0 == file).map_or("?", |f| f.1.as_str());
    name.rsplit('/').next().unwrap_or(name)
}
