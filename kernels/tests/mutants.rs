//! A sample of what `benches/src/bin/mutate.rs` does in full: kernels with one synchronisation instruction changed are found out by
//! what the checks launch.

use reel_kernels::catalogue::FOLDERS;
use reel_kernels::checks::mutation::{Subject, Verdict};
use reel_kernels::compile;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Mutants tried.
const SAMPLE: usize = 50;
/// Launches that each is tried on.
const LAUNCHES: usize = 4;

#[test]
fn a_sample_of_mutants_is_found_out() {
    if let Err(e) = compile::available() {
        let ci = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
        assert!(!ci, "{e}");
        println!("skipped: a_sample_of_mutants_is_found_out: {e}");
        return;
    }
    let subjects: Vec<Subject> = on_all_threads(FOLDERS.len(), |i| {
        Subject::of(&FOLDERS[i]).unwrap_or_else(|e| panic!("{}: {e}", FOLDERS[i].name))
    })
    .into_iter()
    .flatten()
    .collect();
    let all: Vec<_> = subjects.iter().flat_map(|s| s.targets().iter().map(move |t| (s, t))).collect();
    assert!(all.len() > 400, "{} mutants", all.len());
    // A step without a factor in common with the number of mutants visits each once.
    let step = (all.len() / 3..).find(|s| gcd(*s, all.len()) == 1).expect("some number is");
    let survivors: Vec<String> = on_all_threads(SAMPLE, |i| {
        let (subject, target) = all[(17 + i * step) % all.len()];
        let verdict = subject.judge(target, LAUNCHES).unwrap_or_else(|e| panic!("{}: {e}", target.mutant));
        matches!(verdict, Verdict::Survived | Verdict::Unreached)
            .then(|| format!("{}: {} at {:?}: {verdict:?}", target.function, target.mutant, target.places))
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(survivors.len() * 20 <= SAMPLE, "{}", survivors.join("\n"));
}

/// `f` of 0, 1, … in order, computed on all threads.
fn on_all_threads<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    let result = f(i);
                    results.lock().expect("no panic while it is held").push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panic while it was held");
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
