//! Every planted bug is reported with its kind and line, and its correct twin has no finding. This holds for several
//! seeds, all completion timings, both architectures, with and without line information.

use crate::harness::{
    ARCHITECTURES, COMPLETION_TIMINGS, KernelCase, SEEDS, cuda_lines_of_ptx_line, cuda_source, kernel_cases,
    ptx_source, run, without_line_info,
};
use reel_sim::finding::Finding;
use reel_sim::program::Program;
use std::fmt::Write;

/// Compares the findings of a run with the expected ones and returns the first difference. If the program was parsed
/// without line information, its findings name PTX lines; `text` is then the PTX with line information, which maps
/// them to CUDA lines.
fn judge(case: &KernelCase, found: &[Finding], text: Option<&str>) -> Option<String> {
    for f in found {
        let lines = match text {
            None => [f.line].into(),
            Some(ptx) => cuda_lines_of_ptx_line(ptx, f.line),
        };
        let expected = case.kinds.iter().any(|k| k == f.kind.name()) && !lines.is_disjoint(&case.lines);
        if !expected {
            return Some(format!("unexpected finding: {f:?} (lines {lines:?})"));
        }
    }
    let first = case.kinds.first()?;
    (!case.some && found.is_empty()).then(|| format!("{first} not found"))
}

/// Runs one case under all seeds and completion timings; returns one line of text per problem. If the program was
/// parsed without line information, `lined` is its PTX with line information.
fn check_case(program: &Program, case: &KernelCase, lined: Option<&str>) -> String {
    let (mut first_output, mut found_once) = (None, false);
    let (mut wrong, mut count) = (String::new(), 0);
    for (seed, completion) in SEEDS.flat_map(|s| COMPLETION_TIMINGS.map(|c| (s, c))) {
        let ran = run(program, case, seed, completion);
        let found = ran.findings();
        found_once |= !found.is_empty();
        let mut problem = judge(case, &found, lined);
        if let Some(note) = &case.note
            && !ran.outcome.notes.iter().any(|n| n.contains(note))
        {
            problem = Some(format!("no note has {note}: {:?}", ran.outcome.notes));
        }
        let comparable = case.kinds.is_empty() && !case.varies;
        if comparable && first_output.get_or_insert_with(|| ran.buffers.clone()) != &ran.buffers {
            problem = Some("outputs differ from seed 0's".into());
        }
        if let Some(problem) = problem {
            count += 1;
            if count == 1 {
                let _ = writeln!(wrong, "seed {seed} {completion:?}: {problem}");
            }
        }
    }
    let [once, again] = [0, 1].map(|_| run(program, case, 3, COMPLETION_TIMINGS[2]));
    if once.findings() != again.findings() || once.outcome.counters != again.outcome.counters {
        let _ = writeln!(wrong, "two runs of one seed differ");
    }
    if !case.kinds.is_empty() && !found_once {
        let _ = writeln!(wrong, "{} never found", case.kinds[0]);
    }
    if count > 1 {
        let _ = writeln!(wrong, "    … in {count} runs");
    }
    wrong
}

fn check(file: &str) {
    let cases = kernel_cases(&cuda_source(file));
    assert!(!cases.is_empty());
    let mut all = String::new();
    for architecture in ARCHITECTURES {
        let text = ptx_source(file, architecture);
        let bare = Program::parse(&without_line_info(&text)).unwrap();
        let lined = Program::parse(&text).unwrap();
        for case in &cases {
            for (program, text) in [(&lined, None), (&bare, Some(text.as_str()))] {
                let wrong = check_case(program, case, text);
                if !wrong.is_empty() {
                    let how = if text.is_none() { "with" } else { "without" };
                    let _ = write!(all, "{} {architecture} {how} line information: {wrong}", case.name);
                }
            }
        }
    }
    assert!(all.is_empty(), "{all}");
}

#[test]
fn bounds_corpus() {
    check("bounds");
}

#[test]
fn uninitialized_corpus() {
    check("uninitialized");
}

#[test]
fn trap_corpus() {
    check("trap");
}

#[test]
fn race_shared_corpus() {
    check("race_shared");
}

#[test]
fn race_global_corpus() {
    check("race_global");
}

#[test]
fn barrier_corpus() {
    check("barrier");
}

#[test]
fn deadlock_corpus() {
    check("deadlock");
}
