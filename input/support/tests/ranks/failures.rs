//! Tests with one process per rank, of which one is killed or stopped. The others must end soon and name it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{all_to_all, short_timeouts, world};
use reel_support::ranks::{RankError, Ranks, Timeouts};
use rustix::process::{Pid, Signal, kill_process};

/// The exit codes of rank processes: `FAILED` if a call returned an error, `CALLED_BACK` if the callback was called.
const FAILED: i32 = 7;
const CALLED_BACK: i32 = 9;

/// The time limit for the end of all ranks. It is much longer than they need, for slow machines.
const SOON: Duration = Duration::from_secs(10);

/// The work of a rank until the job fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    /// Calls of all ranks, one after the other.
    Calls,
    /// The same as `Calls`, with short time limits.
    CallsWithShortLimits,
    /// A barrier and then no call, like a thread that waits for a GPU.
    Nothing,
}

const WORKS: [Work; 3] = [Work::Calls, Work::CallsWithShortLimits, Work::Nothing];

/// A process that runs one rank. The process runs this program with the name of the test [`rank_process`].
struct Rank {
    rank: usize,
    process: Child,
    stderr: BufReader<ChildStderr>,
}

impl Rank {
    fn start(rank: usize, size: usize, work: Work, folder: &Path) -> Self {
        let work = WORKS.iter().position(|other| *other == work).expect("a work");
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "failures::rank_process", "--nocapture"])
            .env("RANKS_TEST", format!("{rank} {size} {work} {}", folder.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        Self { rank, process, stderr }
    }

    /// Waits until the process prints the line `wanted`.
    fn wait_for_line(&mut self, wanted: &str) {
        let mut lines = self.stderr.by_ref().lines().map(|line| line.expect("text"));
        assert!(lines.any(|line| line == wanted), "rank {} has not printed: {wanted}", self.rank);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("a signal");
    }

    /// Waits until the process ends. Returns its exit code and its output.
    fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + SOON;
        let status = loop {
            match self.process.try_wait().expect("a status") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    let _ = self.process.kill();
                    panic!("rank {} has not ended", self.rank);
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).expect("text");
        (status.code(), text)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts all ranks of a job and waits until all have joined.
fn start(size: usize, work: Work, folder: &Path) -> Vec<Rank> {
    let ranks = (0..size).map(|rank| Rank::start(rank, size, work, folder)).collect();
    let deadline = Instant::now() + SOON;
    while (0..size).any(|rank| !folder.join(format!("joined-{rank}")).exists()) {
        assert!(Instant::now() < deadline, "not all ranks have joined");
        std::thread::sleep(Duration::from_millis(2));
    }
    ranks
}

/// This is not a real test. If the environment variable `RANKS_TEST` is set, the process runs as a rank.
#[test]
fn rank_process() {
    let Ok(text) = std::env::var("RANKS_TEST") else { return };
    let mut parts = text.splitn(4, ' ');
    let mut number = || parts.next().and_then(|n| n.parse::<usize>().ok()).expect("a number");
    let (rank, size, work) = (number(), number(), WORKS[number()]);
    let folder = parts.next().expect("a folder");
    let error = run_rank(rank, size, work, Path::new(folder)).expect_err("the job fails");
    eprintln!("{error}");
    std::process::exit(FAILED);
}

fn run_rank(rank: usize, size: usize, work: Work, folder: &Path) -> Result<(), RankError> {
    let timeouts = match work {
        Work::Calls => Timeouts { note: Duration::from_millis(20), ..Timeouts::default() },
        Work::CallsWithShortLimits => short_timeouts(),
        Work::Nothing => Timeouts { notice: Duration::from_millis(50), ..short_timeouts() },
    };
    let on_failure = |error: &RankError| {
        eprintln!("{error}");
        std::process::exit(CALLED_BACK);
    };
    let ranks = Ranks::join(world(rank, size), folder, timeouts, Box::new(on_failure))?;
    if work == Work::Nothing {
        ranks.barrier("start")?;
    }
    std::fs::write(folder.join(format!("joined-{rank}")), "").expect("a file");
    if work == Work::Nothing {
        loop {
            std::thread::park();
        }
    }
    let part = vec![rank as u8; 200_000];
    for step in 0.. {
        ranks.barrier(&format!("step {step}"))?;
        all_to_all(&ranks, "gradients", &part)?;
        ranks.broadcast("weights", step % size, (rank == step % size).then(|| vec![1; 1000]))?;
        ranks.all_gather("metrics", &[rank as u8])?;
    }
    Ok(())
}

/// Checks that all ranks except the victim end with an error that names the victim.
fn check_survivors(ranks: &mut [Rank], victim: usize, code: i32, words: &str) {
    let name = format!("rank {victim} (");
    let process = format!("process {}): {words}", ranks[victim].process.id());
    for rank in ranks.iter_mut().filter(|rank| rank.rank != victim) {
        let (ended, text) = rank.end();
        assert_eq!(ended, Some(code), "rank {}: {text}", rank.rank);
        let line = text.lines().find(|line| line.starts_with(&name));
        assert!(line.is_some_and(|line| line.contains(&process)), "rank {} of {name}: {text}", rank.rank);
    }
}

#[test]
fn a_killed_rank_ends_the_others_which_name_it() {
    let mut seed = 0x5eed_u64;
    let mut random = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    let mut longest = Duration::ZERO;
    for round in 0..16 {
        let folder = tempfile::tempdir().expect("a folder");
        let size = 2 + random(4) as usize;
        // In every fourth round the victim is rank 0. The other ranks notice the end of rank 0 without its help.
        let victim = if round % 4 == 0 { 0 } else { random(size as u64) as usize };
        let mut ranks = start(size, Work::Calls, folder.path());
        std::thread::sleep(Duration::from_micros(random(40_000)));
        let killed = Instant::now();
        ranks[victim].signal(Signal::KILL);
        check_survivors(&mut ranks, victim, FAILED, "ended;");
        longest = longest.max(killed.elapsed());
        // The folder contains one file `joined-RANK` per rank, and no rendezvous file.
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), size);
    }
    println!("the longest time from the signal to the end of all ranks: {longest:?}");
}

#[test]
fn a_stopped_rank_ends_the_others_which_name_it() {
    for victim in [0, 2] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ranks = start(3, Work::CallsWithShortLimits, folder.path());
        ranks[victim].signal(Signal::STOP);
        check_survivors(&mut ranks, victim, FAILED, "has sent no heartbeat for 1.5 s;");
        // When the stopped process continues, it finds that the other ranks have ended.
        ranks[victim].signal(Signal::CONT);
        assert_eq!(ranks[victim].end().0, Some(FAILED));
    }
}

#[test]
fn a_rank_that_waits_for_something_else_is_called_back() {
    for victim in [0, 1] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ranks = start(3, Work::Nothing, folder.path());
        ranks[victim].signal(Signal::KILL);
        check_survivors(&mut ranks, victim, CALLED_BACK, "ended;");
    }
}

#[test]
fn a_rank_that_is_killed_while_others_are_missing_ends_those_that_are_there() {
    for victim in [0, 1] {
        let folder = tempfile::tempdir().expect("a folder");
        // Rank 2 is never started.
        let mut ranks: Vec<Rank> = (0..2).map(|rank| Rank::start(rank, 3, Work::Calls, folder.path())).collect();
        ranks[0].wait_for_line("waiting for rank 2 of 3");
        ranks[victim].signal(Signal::KILL);
        check_survivors(&mut ranks, victim, FAILED, "ended before all ranks had joined;");
    }
}
