//! Mutation test of the kernels' checks: removes or changes one synchronisation instruction at a time, and reports
//! whether a check notices the change.
//!
//! `cargo run --release -p reel-benches --bin mutate [-- --kernel FOLDER] [--launches N] [--survivors]`
//!
//! Prints one line of JSON per kernel folder and one for all folders together; with `--survivors`, also one line for
//! each mutant that no check noticed. Progress goes to stderr once a minute.

use clap::Parser;
use reel_kernels::catalogue::FOLDERS;
use reel_kernels::checks::mutation::{MutantVerdict, MutationSubject, MutationTarget};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// Mutate only the kernels of this folder
    #[arg(long)]
    kernel: Option<String>,
    /// Maximum number of launches that each mutant runs on
    #[arg(long, default_value_t = 12)]
    launches: usize,
    /// Print mutants that no check noticed
    #[arg(long)]
    survivors: bool,
    /// Number of threads [default: one per CPU]
    #[arg(long)]
    threads: Option<usize>,
}

/// The number of mutants with each outcome of the kernels' checks.
#[derive(Clone, Copy, Default)]
struct Tally {
    killed: usize,
    redundant: usize,
    survived: usize,
    unreached: usize,
}

impl Tally {
    fn all(&self) -> usize {
        self.killed + self.redundant + self.survived + self.unreached
    }

    fn add(&mut self, other: &Tally) {
        self.killed += other.killed;
        self.redundant += other.redundant;
        self.survived += other.survived;
        self.unreached += other.unreached;
    }

    fn json(&self, name: &str, seconds: f64) -> serde_json::Value {
        let all = self.all();
        let judged = (all - self.redundant).max(1);
        json!({
            "folder": name, "mutants": all, "killed": self.killed, "redundant": self.redundant, "survived": self.survived,
            "unreached": self.unreached, "kill_rate": self.killed as f64 / judged as f64, "seconds": seconds,
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.kernel.as_deref().is_some_and(|k| FOLDERS.iter().all(|f| f.name != k)) {
        eprintln!("error: --kernel: no kernel folder has this name; `reel kernels list` prints the names");
        return ExitCode::from(2);
    }
    let mut total = Tally::default();
    let start = Instant::now();
    for folder in FOLDERS.iter().filter(|f| arguments.kernel.as_deref().is_none_or(|k| k == f.name)) {
        let start = Instant::now();
        let judged = MutationSubject::record_subjects_of_folder(folder, usize::MAX)
            .and_then(|all| all.iter().map(|subject| judge(folder.name, subject, &arguments)).collect());
        let tallies: Vec<Tally> = match judged {
            Ok(tallies) => tallies,
            Err(e) => {
                eprintln!("error: {}: {e}", folder.name);
                return ExitCode::FAILURE;
            }
        };
        let mut of_folder = Tally::default();
        tallies.iter().for_each(|tally| of_folder.add(tally));
        println!("{}", of_folder.json(folder.name, start.elapsed().as_secs_f64()));
        total.add(&of_folder);
    }
    println!("{}", total.json("all", start.elapsed().as_secs_f64()));
    ExitCode::SUCCESS
}

/// Runs every mutant of a kernel folder on all threads and counts the outcomes.
fn judge(name: &str, subject: &MutationSubject, arguments: &Arguments) -> Result<Tally, String> {
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let said = Mutex::new(Instant::now());
    let failed = Mutex::new(None);
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let work = || {
        while let Some(target) = subject.targets().get(next.fetch_add(1, Ordering::Relaxed)) {
            match subject.run_mutant(target, arguments.launches) {
                Ok(verdict) => count(target, &verdict, arguments.survivors, &mut tally.lock().expect("no panics")),
                Err(e) => *failed.lock().expect("no panics") = Some(format!("{}: {e}", target.mutant)),
            }
            let mut said = said.lock().expect("no panics");
            if said.elapsed() >= Duration::from_secs(60) {
                *said = Instant::now();
                eprintln!("{name}: {} of {}", tally.lock().expect("no panics").all(), subject.targets().len());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.unwrap_or(available) {
            scope.spawn(work);
        }
    });
    match failed.into_inner().expect("no panics") {
        Some(e) => Err(e),
        None => Ok(tally.into_inner().expect("no panics")),
    }
}

fn count(target: &MutationTarget, verdict: &MutantVerdict, print: bool, tally: &mut Tally) {
    let (place, what) = match verdict {
        MutantVerdict::Killed(_) => (&mut tally.killed, None),
        MutantVerdict::Redundant(why) => (&mut tally.redundant, Some(format!("redundant: {why}"))),
        MutantVerdict::Survived => (&mut tally.survived, Some("survived".to_string())),
        MutantVerdict::Unreached => (&mut tally.unreached, Some("unreached".to_string())),
    };
    *place += 1;
    if let Some(what) = what.filter(|_| print) {
        let mutant = &target.mutant;
        println!(
            "{}",
            json!({
                "function": target.function, "mutant": format!("{} {}", mutant.opcode, mutant.change),
                "places": target.places, "ptx_line": mutant.line, "verdict": what,
            })
        );
    }
}
