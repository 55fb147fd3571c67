//! Mutation test: changes or removes one synchronisation instruction of a kernel at a time, and expects that the
//! simulator finds a defect in some launch of the kernel's checks. Of the instantiations of a template, one is changed,
//! and if it survives, the others. Instructions that the source marks as redundant are not tried.
//! `tools/benches/src/bin/mutate.rs` tries all instantiations and these instructions too, records all checks, and
//! reports the outcome for each folder.
//!
//! A folder that is unchanged since its mutants were all found is left out (`checks/proof.rs`). The test prints the
//! lines of the folders that it tried, to be recorded once all tests of these folders have passed.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use reel_device::compile;
use reel_kernels::catalogue::{FOLDERS, KernelFolder};
use reel_kernels::checks::mutation::{MutantVerdict, MutationSubject, MutationTarget};
use reel_kernels::checks::proof;

/// The number of launches that must execute each instruction to be changed. Checks beyond that number do not run.
const ENOUGH: usize = 2;
/// Maximum number of launches that are simulated for each changed kernel.
const LAUNCHES: usize = 12;
/// Maximum number of launches for a mutant that survived the first [`LAUNCHES`]: first of the recorded launches, then
/// of the launches of all checks.
const ALL_LAUNCHES: usize = 60;

#[test]
fn every_mutant_is_found() {
    if let Err(e) = compile::check_nvrtc() {
        let ci = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
        assert!(!ci, "{e}");
        println!("skipped: every_mutant_is_found: {e}");
        return;
    }
    let (proved, tried): (Vec<_>, Vec<_>) = FOLDERS.iter().partition(|folder| proof::is_proved(folder));
    println!("left out: mutants of {} of {} kernel folders, which have not changed", proved.len(), FOLDERS.len());
    every_mutant_of_these_is_found(&tried);
    tried.iter().for_each(|folder| {
        println!("to be recorded in {}: {}", proof::RECORD_PATH, proof::record_line_of_folder(folder))
    });
}

fn every_mutant_of_these_is_found(folders: &[&'static KernelFolder]) {
    let subjects = subjects_of(folders, ENOUGH);
    let of_subject = |s| MutationSubject::one_target_per_instruction(s).into_iter().map(move |t| (s, t));
    let all: Vec<_> = subjects.iter().flat_map(of_subject).collect();
    assert!(folders.len() < FOLDERS.len() || all.len() > 300, "{} mutants", all.len());
    // A redundant instruction takes the longest: no launch ends its trial.
    let is_tried =
        |(subject, target): &(&MutationSubject, &MutationTarget)| subject.redundancy_reason(target).is_none();
    let tried: Vec<_> = all.iter().copied().filter(is_tried).collect();
    let redundant = all.len() - tried.len();
    // A single folder may have a larger share.
    let few = folders.len() < FOLDERS.len() || redundant < all.len() / 8;
    assert!(few, "{redundant} of {} instructions are marked as redundant", all.len());
    let survived = survivors(&tried, LAUNCHES);
    let again: Vec<_> = survived.iter().map(|(subject, target, _)| (*subject, *target)).collect();
    let mut survivors = survivors(&again, ALL_LAUNCHES);
    survivors.retain(|(subject, target, _)| {
        let others = subject.instantiations(target).filter(|other| other.function != target.function);
        let others: Vec<_> = others.map(|other| (*subject, other)).collect();
        self::survivors(&others, LAUNCHES).len() == others.len()
    });
    let folders: BTreeSet<&str> = survivors.iter().map(|(subject, ..)| subject.folder()).collect();
    let folders: Vec<_> = FOLDERS.iter().filter(|folder| folders.contains(folder.name)).collect();
    let complete = subjects_of(&folders, usize::MAX);
    let tried: Vec<_> = survivors.iter().map(|(subject, target, _)| same_target(&complete, subject, target)).collect();
    let survivors = self::survivors(&tried, ALL_LAUNCHES);
    let lines = survivors.iter().map(|(_, target, verdict)| {
        format!("{}: {} at {:?}: {verdict:?}", target.function, target.mutant, target.places)
    });
    assert!(survivors.is_empty(), "{}", lines.collect::<Vec<_>>().join("\n"));
}

/// Records launches of these folders' checks, until `enough` launches execute each instruction.
fn subjects_of(folders: &[&'static KernelFolder], enough: usize) -> Vec<MutationSubject> {
    let of_folder = |i: usize| {
        MutationSubject::record_subjects_of_folder(folders[i], enough)
            .unwrap_or_else(|e| panic!("{}: {e}", folders[i].name))
    };
    on_all_threads(folders.len(), of_folder).into_iter().flatten().collect()
}

/// Finds `subject` and `target` in `subjects`, a newer recording: returns the subject with the same kernels, and its
/// target with the same mutant.
fn same_target<'a>(
    subjects: &'a [MutationSubject],
    subject: &MutationSubject,
    target: &MutationTarget,
) -> (&'a MutationSubject, &'a MutationTarget) {
    let same = subjects.iter().filter(|s| (s.folder(), s.gpu().sm) == (subject.folder(), subject.gpu().sm));
    let is_target = |t: &&MutationTarget| (&t.function, &t.mutant) == (&target.function, &target.mutant);
    let mut found = same.filter_map(|s| Some((s, s.targets().iter().find(is_target)?)));
    found
        .next()
        .unwrap_or_else(|| panic!("{}: {} is missing in the recording of all checks", target.function, target.mutant))
}

/// Returns the mutants that no launch finds, with their verdicts.
fn survivors<'a>(
    tried: &[(&'a MutationSubject, &'a MutationTarget)],
    launches: usize,
) -> Vec<(&'a MutationSubject, &'a MutationTarget, MutantVerdict)> {
    let verdicts = on_all_threads(tried.len(), |i| {
        let (subject, target) = tried[i];
        let verdict = subject.run_mutant(target, launches).unwrap_or_else(|e| panic!("{}: {e}", target.mutant));
        (subject, target, verdict)
    });
    let survives = |verdict: &MutantVerdict| matches!(verdict, MutantVerdict::Survived | MutantVerdict::Unreached);
    verdicts.into_iter().filter(|(.., verdict)| survives(verdict)).collect()
}

/// Returns f(0), f(1), … in order, computed on all threads.
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
                    results.lock().expect("no thread panics while it holds the lock").push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panicked while it held the lock");
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}
