//! A sample of what `benches/src/bin/mutate.rs` does in full: kernels with one synchronisation instruction changed are found out by
//! what the checks launch. The only test of its program: running checks replaces the panic hook.

use reel_kernels::catalogue::FOLDERS;
use reel_kernels::checks::mutation::{Subject, Verdict};
use reel_kernels::compile;

/// Mutants tried.
const SAMPLE: usize = 50;
/// Launches that each is tried on.
const LAUNCHES: usize = 6;

#[test]
fn a_sample_of_mutants_is_found_out() {
    if let Err(e) = compile::available() {
        let ci = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
        assert!(!ci, "{e}");
        println!("skipped: a_sample_of_mutants_is_found_out: {e}");
        return;
    }
    let subjects: Vec<Subject> =
        FOLDERS.iter().filter_map(|f| Subject::of(f).unwrap_or_else(|e| panic!("{}: {e}", f.name))).collect();
    let all: Vec<_> = subjects.iter().flat_map(|s| s.targets().iter().map(move |t| (s, t))).collect();
    assert!(all.len() > 400, "{} mutants", all.len());
    // A step without a factor in common with the number of mutants visits each once.
    let step = (all.len() / 3..).find(|s| gcd(*s, all.len()) == 1).expect("some number is");
    let mut survivors = Vec::new();
    for (subject, target) in (0..SAMPLE).map(|i| all[(17 + i * step) % all.len()]) {
        let verdict = subject.judge(target, LAUNCHES).unwrap_or_else(|e| panic!("{}: {e}", target.mutant));
        if matches!(verdict, Verdict::Survived | Verdict::Unreached) {
            survivors.push(format!("{}: {} at {:?}: {verdict:?}", target.function, target.mutant, target.places));
        }
    }
    assert!(survivors.len() * 20 <= SAMPLE, "{}", survivors.join("\n"));
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
