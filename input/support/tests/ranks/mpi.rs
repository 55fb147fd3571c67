//! Tests of jobs that mpirun starts: data go through MPI, and a job fails in the same way as with sockets.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::calls::{Step, run_step};
use crate::common::{all_to_all, short_timeouts};
use reel_support::ranks::{RankError, Ranks, Timeouts, Transport, World};
use rustix::process::{Pid, Signal, kill_process};

/// The exit codes of rank processes: `FAILED` if a call returned an error, `CALLED_BACK` if the callback was called.
const FAILED: i32 = 7;
const CALLED_BACK: i32 = 9;

/// The time limit for the end of all ranks. It is much longer than they need, for slow machines.
const SOON: Duration = Duration::from_secs(20);

/// The option with which mpirun lets the other ranks end by themselves after one rank has ended. By default mpirun
/// kills them at once, so some may not report the cause. With the option, mpirun's own exit code is 0.
const RECOVERY: &str = "--enable-recovery";

/// Returns the command of Open MPI's mpirun with these arguments, for ranks that do this work. `None` if it is not
/// installed.
fn mpirun(arguments: &[&str], work: &str, folder: &Path) -> Option<Command> {
    let is_installed = Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_installed {
        println!("skipped: jobs by MPI: there is no mpirun; install Debian's package openmpi-bin");
        return None;
    }
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--mca", "plm", "isolated"]).args(arguments);
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "mpi::rank_process", "--nocapture"]);
    command.env("RANKS_MPI_TEST", format!("{work} {}", folder.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// This is not a real test. If the environment variable `RANKS_MPI_TEST` is set, the process runs as a rank.
#[test]
fn rank_process() {
    let Ok(text) = std::env::var("RANKS_MPI_TEST") else { return };
    let (work, folder) = text.split_once(' ').expect("a work and a folder");
    let folder = Path::new(folder);
    let world = World::from_variables(|name| std::env::var(name).ok()).expect("variables").expect("a launcher");
    let rank = world.rank;
    if let Err(error) = run_rank(world, work, folder) {
        fs::write(folder.join(format!("error-{rank}")), error.to_string()).expect("a file");
        std::process::exit(FAILED);
    }
}

fn run_rank(world: World, work: &str, folder: &Path) -> Result<(), RankError> {
    let file = folder.join(format!("error-{}", world.rank));
    let on_failure = move |error: &RankError| {
        fs::write(&file, error.to_string()).expect("a file");
        std::process::exit(CALLED_BACK);
    };
    let timeouts = if work == "stop" { short_timeouts() } else { Timeouts::default() };
    let ranks = Ranks::join(world, folder, timeouts, Box::new(on_failure))?;
    assert_eq!(ranks.transport(), Transport::Mpi);
    match work {
        "calls" => calls(&ranks)?,
        "kinds" if ranks.rank() == 1 => drop(ranks.all_gather("metrics", &[1])?),
        "kinds" => ranks.barrier("step 5")?,
        "lengths" => lengths(&ranks)?,
        "long" => long(&ranks)?,
        "fail" if ranks.rank() == 1 => ranks.fail_job("data.jsonl:7: video: cannot be read; check the path"),
        "leave" if ranks.rank() == 1 => {}
        "fail" | "leave" => ranks.barrier("step 1")?,
        _ => endless(&ranks, folder)?,
    }
    ranks.leave()
}

/// Makes all kinds of calls with messages of up to some MB, and compares contents and numbers of bytes.
fn calls(ranks: &Ranks) -> Result<(), RankError> {
    let mut random = 0x5eed_u64;
    for round in 0..4 {
        let steps = [Step::Barrier, Step::Broadcast(round), Step::AllGather, Step::AllToAllInto];
        for step in steps {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let before = ranks.traffic().total();
            let [sent, received] = run_step(ranks, step, random, 2 << 20)?;
            let after = ranks.traffic().total();
            let counted = [after.sent - before.sent, after.received - before.received];
            assert_eq!(counted, [sent as u64, received as u64], "{step:?}");
        }
    }
    // All ranks send at once.
    let here = ranks.rank();
    let all = all_to_all(ranks, "all", &vec![here as u8; 24 << 20])?;
    assert!(all.iter().enumerate().all(|(rank, part)| part.iter().all(|byte| *byte == rank as u8)));
    // Calls of several threads run one after the other.
    std::thread::scope(|scope| {
        let thread = || (0..50).try_for_each(|_| ranks.all_gather("turn", &[here as u8]).map(drop));
        let threads = [(); 3].map(|()| scope.spawn(thread));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn lengths(ranks: &Ranks) -> Result<(), RankError> {
    let (mut a, mut b) = (vec![0; 3 << 20], vec![0; 3 << 20]);
    let room = if ranks.rank() == 0 { (3 << 20) - 1 } else { 3 << 20 };
    let mine = vec![0; 3 << 20];
    ranks.all_to_all_into("parts", &[&mine, &mine], &mut [&mut a, &mut b[..room]])?;
    ranks.barrier("end")
}

/// Sends a message whose length exceeds the counts of MPI.
fn long(ranks: &Ranks) -> Result<(), RankError> {
    const LENGTH: usize = (1 << 31) + 12_345;
    if ranks.rank() == 0 {
        let mut bytes = vec![7; LENGTH];
        bytes[LENGTH - 1] = 8;
        return ranks.broadcast("weights", 0, Some(bytes)).map(drop);
    }
    let bytes = ranks.broadcast("weights", 0, None)?;
    assert_eq!((bytes.len(), bytes[0], bytes[1 << 31], bytes[LENGTH - 1]), (LENGTH, 7, 7, 8));
    Ok(())
}

/// Makes calls on all ranks until the job fails. Writes the process id to a file.
fn endless(ranks: &Ranks, folder: &Path) -> Result<(), RankError> {
    let (here, size) = (ranks.rank(), ranks.size());
    ranks.barrier("start")?;
    fs::write(folder.join(format!(".process-{here}")), std::process::id().to_string()).expect("a file");
    fs::rename(folder.join(format!(".process-{here}")), folder.join(format!("process-{here}"))).expect("renamed");
    let part = vec![here as u8; 3_000_000];
    for step in 0.. {
        ranks.barrier(&format!("step {step}"))?;
        all_to_all(ranks, "gradients", &part)?;
        ranks.broadcast("weights", step % size, (here == step % size).then(|| vec![1; 1000]))?;
    }
    Ok(())
}

/// Runs ranks until mpirun ends.
fn finished(arguments: &[&str], work: &str) -> Option<(Output, Vec<Option<String>>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let output = mpirun(arguments, work, folder.path())?.output().expect("mpirun starts");
    Some((output, errors(folder.path())))
}

/// Returns the errors of the ranks, by rank.
fn errors(folder: &Path) -> Vec<Option<String>> {
    (0..4).map(|rank| fs::read_to_string(folder.join(format!("error-{rank}"))).ok()).collect()
}

#[test]
fn calls_return_what_a_model_in_one_thread_says() {
    // Within one machine, Open MPI uses shared memory between processes. Between machines it can use TCP.
    let cases: [&[&str]; 4] = [&["-n", "2"], &["-n", "3"], &["-n", "4"], &["--mca", "btl", "self,tcp", "-n", "3"]];
    for arguments in cases {
        let Some((output, errors)) = finished(arguments, "calls") else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.iter().all(Option::is_none), "{arguments:?}: {errors:?}\n{said}");
    }
}

#[test]
fn ranks_that_do_not_agree_are_named() {
    let cases = [
        ("kinds", "3", "rank 1: is in all_gather 'metrics', but rank 0 is in barrier 'step 5'; all ranks must"),
        ("lengths", "2", "rank 1: sends 3145728 bytes to rank 0, which expects 3145727 in all_to_all 'parts'"),
        ("fail", "3", "rank 1: data.jsonl:7: video: cannot be read; check the path"),
        ("leave", "3", "rank 1 ("),
    ];
    for (work, size, wanted) in cases {
        let Some((output, errors)) = finished(&[RECOVERY, "-n", size], work) else { return };
        let count = size.parse().expect("a number");
        let said = String::from_utf8_lossy(&output.stderr);
        for (rank, error) in errors[..count].iter().enumerate() {
            let error = error.as_deref().unwrap_or_default();
            assert!(error.starts_with(wanted), "{work}, rank {rank}: {error}\n{said}");
            assert!(work != "leave" || error.contains("has left, but rank"), "{error}");
        }
    }
}

#[test]
#[ignore = "needs 5 GB of memory"]
fn messages_longer_than_a_count_of_mpi_arrive() {
    let Some((output, errors)) = finished(&["-n", "2"], "long") else { return };
    assert!(output.status.success(), "{errors:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// MPICH's mpiexec sets its own variables for a program that is linked with Open MPI. The Open MPI library then
/// assumes a single process.
#[test]
fn a_launcher_of_another_library_is_named_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "mpi::rank_process"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("RANKS_MPI_TEST", format!("calls {}", folder.path().display()));
        let numbers = [("PMI_RANK", rank), ("MPI_LOCALRANKID", rank), ("PMI_SIZE", 2), ("MPI_LOCALNRANKS", 2)];
        command.env("PMI_FD", "99").envs(numbers.map(|(name, value)| (name, value.to_string())));
        command.spawn().expect("it starts")
    };
    for mut process in [0, 1].map(start) {
        assert_eq!(process.wait().expect("it ends").code(), Some(FAILED));
    }
    for error in &errors(folder.path())[..2] {
        let error = error.as_deref().unwrap_or_default();
        let words = ["MPI: ", " counts this process as rank 0 of 1, but by the variables of Hydra", "of this library"];
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    }
}

/// Starts an endless job, sends a signal to one rank, and waits for the end of the job. Returns the time from the
/// signal to the end of all other ranks.
fn after_signal(size: usize, victim: usize, signal: Signal) -> Option<Duration> {
    let folder = tempfile::tempdir().expect("a folder");
    let work = if signal == Signal::STOP { "stop" } else { "kill" };
    let count = size.to_string();
    let mut job = mpirun(&[RECOVERY, "-n", &count], work, folder.path())?.spawn().expect("mpirun starts");
    let process = |rank: usize| {
        let text = fs::read_to_string(folder.path().join(format!("process-{rank}"))).ok()?;
        Pid::from_raw(text.parse().ok()?)
    };
    let deadline = Instant::now() + SOON;
    let processes: Vec<Pid> = loop {
        match (0..size).map(process).collect() {
            Some(processes) => break processes,
            None if Instant::now() > deadline => {
                let _ = job.kill();
                panic!("not all ranks have joined: {:?}", errors(folder.path()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    std::thread::sleep(Duration::from_millis(30));
    let start = Instant::now();
    kill_process(processes[victim], signal).expect("a signal");
    let others = || errors(folder.path()).into_iter().take(size).enumerate().filter(|(rank, _)| *rank != victim);
    while others().any(|(_, error)| error.is_none()) && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    if signal == Signal::STOP {
        let _ = kill_process(processes[victim], Signal::CONT);
    }
    let output = job.wait_with_output().expect("mpirun ends");
    let said = String::from_utf8_lossy(&output.stderr);
    let what = if signal == Signal::STOP { "has sent no heartbeat" } else { "ended" };
    let (name, id) = (format!("rank {victim} ("), processes[victim].as_raw_nonzero());
    for (rank, error) in others() {
        let error = error.unwrap_or_default();
        assert!(
            error.starts_with(&name) && error.contains(&format!("process {id}): {what}")),
            "{rank}: {error}\n{said}"
        );
    }
    Some(took)
}

#[test]
fn a_killed_rank_ends_the_others_which_name_it() {
    for (size, victim) in [(2, 1), (3, 0), (4, 2)] {
        let Some(took) = after_signal(size, victim, Signal::KILL) else { return };
        println!("{size} ranks, of which {victim} is killed: all have ended after {took:?}");
    }
}

#[test]
fn a_stopped_rank_ends_the_others_which_name_it() {
    for victim in [0, 2] {
        after_signal(3, victim, Signal::STOP);
    }
}
