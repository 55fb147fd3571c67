//! `reel sft` as processes (ranks) that mpirun starts and that exchange data by MPI. Needs the feature `mpi`.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rank_runs::{assert_same_results, mpirun, run_sft, sft_command, wait_for_steps};
use sft_rows::training_folder;
use support::{child_processes, finished_run, reel, send_signal};

/// Returns true if data can be exchanged by MPI; otherwise prints the reason.
fn has_mpi() -> bool {
    let why = if !cfg!(feature = "mpi") {
        "the program was built without the feature mpi"
    } else if Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_err() {
        "there is no mpirun; install Debian's package openmpi-bin"
    } else {
        return true;
    };
    println!("skipped: runs by MPI: {why}");
    false
}

/// Returns the number of MPI messages that each rank has sent, as counted by Open MPI. Each rank writes its counts to
/// `PREFIX.RANK.prof` when it finalizes MPI.
fn messages(prefix: &Path, size: usize) -> Vec<u64> {
    let sent = |rank: usize| {
        let file = prefix.with_extension(format!("{rank}.prof"));
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // Format of a line: `E<tab>0<tab>1<tab>29607300 bytes<tab>205 msgs sent<tab>…`
        let to_one = |line: &str| line.split('\t').nth(4)?.strip_suffix(" msgs sent")?.parse::<u64>().ok();
        text.lines().filter(|line| line.starts_with("E\t")).filter_map(to_one).sum()
    };
    (0..size).map(sent).collect()
}

#[test]
fn any_number_of_processes_of_mpirun_gives_the_bits_of_one() {
    if !has_mpi() {
        return;
    }
    let w = training_folder(9);
    let runs: [(&str, &[&str], &[usize]); 3] = [
        ("full", &[], &[1, 2, 3]),
        ("zero3", &["--zero-stage", "3"], &[2]),
        ("lora", &["--lora-r", "4", "--lora-target-modules", "all-linear"], &[2]),
    ];
    for (name, options, sizes) in runs {
        let options = [&["--max-steps", "2"], options].concat();
        let one = format!("{name}-one");
        let printed = run_sft(w.path(), &one, &options);
        for size in sizes {
            let (out, counts) = (format!("{name}{size}"), w.path().join(format!("{name}{size}-messages")));
            let (count, file) = (size.to_string(), counts.display().to_string());
            let monitoring = ["--mca", "pml_monitoring_enable", "1", "--mca", "pml_monitoring_enable_output", "3"];
            let file = ["--mca", "pml_monitoring_filename", &file, "-n", &count];
            let run = sft_command(w.path(), &out, &options);
            let done = mpirun(&[&monitoring[..], &file].concat(), &run).output().expect("mpirun starts");
            assert_eq!(finished_run(done).ok(), printed.ok().replace(&one, &out), "{out}");
            assert_same_results(&w.path().join(&one), &w.path().join(&out), "checkpoint-2");
            if *size == 1 {
                assert!(!counts.with_extension("0.prof").exists(), "a single process needs no MPI");
            } else {
                let sent = messages(&counts, *size);
                println!("{out}: messages by rank: {sent:?}");
                // In each of 2 steps, a rank sends the gradients of 8 micro-batches, and weights.
                assert!(sent.iter().all(|sent| *sent > 20), "{out}: {sent:?}");
            }
        }
    }
    let doctor = mpirun(&["-n", "2"], reel().arg("doctor")).output().expect("mpirun starts");
    let said = finished_run(doctor);
    assert!(said.ok().contains("rank 1 of 2, ") && said.stdout.contains("data between CPUs by MPI"), "{}", said.stdout);
}

/// By default, mpirun ends the other ranks at once. With the option, the ranks detect the failure themselves.
#[test]
fn a_killed_process_ends_the_others_which_name_it() {
    if !has_mpi() {
        return;
    }
    let w = training_folder(9);
    let short = ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "4", "--save-steps", "1"];
    let options = |steps: &'static str| [&short[..], &["--max-steps", steps]].concat();
    run_sft(w.path(), "straight", &options("16")).ok();
    for (out, option, killed) in [("alone", "--enable-recovery", 1), ("by-mpirun", "--oversubscribe", 0)] {
        let run = sft_command(w.path(), out, &options("400"));
        let mut command = mpirun(&[option, "-n", "3"], &run);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mpirun starts");
        wait_for_steps(&w.path().join(out), 2);
        send_signal(child_processes(&child)[killed], "-KILL");
        let start = Instant::now();
        let done = finished_run(child.wait_with_output().expect("mpirun ends"));
        assert!(start.elapsed() < Duration::from_secs(60), "{}", done.stderr);
        println!("{out}: all processes have ended after {:?}", start.elapsed());
        let names = format!("error: rank {killed} (");
        let named = done.stderr.lines().filter(|line| line.starts_with(&names)).count();
        if option == "--enable-recovery" {
            assert_eq!(named, 2, "{}", done.stderr);
        } else {
            assert!(done.code != Some(0) && done.stderr.contains(&format!("rank {killed} ")), "{}", done.stderr);
        }
        run_sft(w.path(), out, &[&options("16")[..], &["--resume-from-checkpoint", "last"]].concat()).ok();
        assert_same_results(&w.path().join("straight"), &w.path().join(out), "checkpoint-16");
    }
}
