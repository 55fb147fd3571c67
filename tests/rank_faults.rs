//! `reel sft` as several processes (ranks), one of which is killed or gets a signal.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rank_runs::{assert_same_results, run_sft, sft_command, wait_for_steps};
use sft_rows::{copy_test_media, media_question_row, training_folder};
use support::{file_names_in, finished_run, let_children_receive_sigint, metrics_without_times, reel, send_signal};

/// A randomly chosen fault of a rank.
#[derive(Debug)]
struct Fault {
    ranks: usize,
    killed: usize,
    /// The rank is killed after this step and a further pause.
    step: usize,
    pause: Duration,
    /// The number of ranks with which the run is resumed.
    resumed: usize,
}

impl Fault {
    fn random(index: usize) -> Self {
        let random = RandomState::new();
        let below = |n: u64, what: &str| (random.hash_one((index, what)) % n) as usize;
        let ranks = 2 + below(3, "ranks");
        Self {
            ranks,
            killed: below(ranks as u64, "killed"),
            step: 3 + below(4, "step"),
            pause: Duration::from_micros(below(30_000, "pause") as u64),
            resumed: 1 + below(4, "resumed"),
        }
    }
}

/// Options for a run with short steps and a checkpoint after each step.
const SHORT_STEPS: [&str; 6] =
    ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "4", "--save-steps", "1"];

/// Kills a rank at a random time, in several runs. The environment variable `REEL_TEST_KILLS` sets the number of
/// runs.
#[test]
fn a_killed_process_ends_the_others_and_the_run_resumes_to_the_same_bits() {
    let kills = std::env::var("REEL_TEST_KILLS").map_or(4, |text| text.parse().expect("a number of kills"));
    let w = training_folder(9);
    let options = |more: &[&'static str]| [&SHORT_STEPS[..], more].concat();
    run_sft(w.path(), "straight", &options(&["--max-steps", "16"])).ok();
    let mut longest = Duration::ZERO;
    for index in 0..kills {
        let fault = Fault::random(index);
        println!("{index}: {fault:?}");
        let out = format!("killed{index}");
        let size = ["1", "2", "3", "4"].map(|size| ["--gpus", size]);
        let (before, after) = (size[fault.ranks - 1], size[fault.resumed - 1]);
        let mut command = sft_command(w.path(), &out, &[&options(&["--max-steps", "400"])[..], &before].concat());
        let temporary = w.path().join(format!("temporary{index}"));
        std::fs::create_dir(&temporary).expect("a folder");
        let child = command
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        wait_for_steps(&w.path().join(&out), fault.step);
        std::thread::sleep(fault.pause);
        send_signal(support::child_processes(&child)[fault.killed], "-KILL");
        let killed = Instant::now();
        let done = finished_run(child.wait_with_output().expect("it ends"));
        longest = longest.max(killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(60), "{fault:?}");
        assert_eq!(done.code, Some(1), "{fault:?}: {}", done.stderr);
        let left: Vec<String> = file_names_in(&temporary);
        assert!(!left.iter().any(|name| name.starts_with(".reel-rank")), "{fault:?}: {left:?}");
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("error: rank {}: ended with signal: 9", fault.killed)), "{}", done.stderr);
        for survivor in (0..fault.ranks).filter(|survivor| *survivor != fault.killed) {
            let line = done.stderr.lines().find(|line| line.starts_with(&format!("[rank {survivor}] error: ")));
            let names = line.is_some_and(|line| line.contains(&format!("rank {}", fault.killed)));
            assert!(names, "{fault:?}: {}", done.stderr);
        }
        let resumed = options(&["--max-steps", "16", "--resume-from-checkpoint", "last"]);
        run_sft(w.path(), &out, &[&resumed[..], &after].concat()).ok();
        assert_same_results(&w.path().join("straight"), &w.path().join(&out), "checkpoint-16");
    }
    println!("{kills} kills: the other ranks ended after {longest:?} at most");
}

#[test]
fn a_signal_stops_all_processes_after_the_same_step() {
    let w = training_folder(9);
    let_children_receive_sigint();
    for (name, signal, code) in [("interrupted", "-INT", 130), ("terminated", "-TERM", 143)] {
        let mut command = sft_command(w.path(), name, &["--max-steps", "400", "--gpus", "2", "--save-steps", "100"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        wait_for_steps(&w.path().join(name), 3);
        send_signal(child.id(), signal);
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(code), "{}", done.stderr);
        for rank in 0..2 {
            let line = done.stderr.lines().find(|line| line.starts_with(&format!("[rank {rank}] error: ")));
            assert!(line.is_some_and(|line| line.contains("stopped after step")), "{}", done.stderr);
        }
        let steps = metrics_without_times(&w.path().join(name)).len();
        assert!(w.path().join(name).join(format!("checkpoint-{steps}")).is_dir(), "{steps}");
    }
}

/// A signal to one rank during a data check ends all ranks with the exit code of the signal. The journal has the rows
/// that were checked.
#[test]
fn a_signal_to_one_process_stops_a_check_of_data() {
    let w = training_folder(2);
    copy_test_media(w.path());
    let rows = media_question_row("video", "good.mp4").repeat(6000);
    std::fs::write(w.path().join("many.jsonl"), rows).expect("written");
    let_children_receive_sigint();
    let check = ["sft", "--model", "tiny", "--data", "many.jsonl", "--device", "cpu", "--check-data"];
    let mut command = reel();
    command.current_dir(w.path()).args(check).args(["--quarantine", "q.jsonl", "--gpus", "2"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let journal = || std::fs::read_to_string(w.path().join("q.jsonl.journal")).unwrap_or_default();
    let begun = Instant::now();
    while journal().lines().count() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no row was checked in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    send_signal(support::child_processes(&child)[1], "-TERM");
    let done = finished_run(child.wait_with_output().expect("it ends"));
    assert_eq!(done.code, Some(143), "{}", done.stderr);
    for rank in 0..2 {
        let line = done.stderr.lines().find(|line| line.starts_with(&format!("[rank {rank}] error: ")));
        assert!(line.is_some_and(|line| line.contains("stopped before the first step")), "{}", done.stderr);
    }
    let journal = journal();
    let is_of_rank = |rank: u64| {
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["row"].as_u64();
        journal.lines().filter_map(row).any(|row| row % 2 == rank)
    };
    assert!(is_of_rank(0) && is_of_rank(1), "{journal}");
}

/// Waits until OUT has a checkpoint, and returns the checkpoint's step.
fn wait_for_checkpoint(out: &Path) -> usize {
    let begun = Instant::now();
    loop {
        let step = file_names_in(out).iter().find_map(|name| name.strip_prefix("checkpoint-")?.parse().ok());
        if let Some(step) = step {
            return step;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Slurm sends SIGUSR1 before a job's time limit. The test sends it to a single process, to the process that has
/// started two ranks, and to one of two ranks.
#[test]
fn sigusr1_writes_a_checkpoint_and_the_run_goes_on() {
    let w = training_folder(9);
    let_children_receive_sigint();
    type Target = fn(&Child) -> u32;
    let cases: [(&str, &str, Target); 3] = [
        ("one", "1", Child::id),
        ("starter", "2", Child::id),
        ("rank", "2", |child| support::child_processes(child)[1]),
    ];
    for (name, gpus, target) in cases {
        let out = w.path().join(name);
        let mut command = sft_command(w.path(), name, &["--max-steps", "4000", "--gpus", gpus, "--save-steps", "4000"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        wait_for_steps(&out, 3);
        send_signal(target(&child), "-USR1");
        let saved = wait_for_checkpoint(&out);
        wait_for_steps(&out, saved + 3);
        send_signal(child.id(), "-TERM");
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(143), "{}", done.stderr);
        assert!(done.stderr.contains(&format!("SIGUSR1: saving a checkpoint of step {saved}")), "{}", done.stderr);
        let last = metrics_without_times(&out).len();
        assert!(saved >= 3 && last >= saved + 3 && out.join(format!("checkpoint-{last}")).is_dir(), "{saved} {last}");
    }
}

/// Slurm sends SIGTERM, SIGCONT and SIGTERM within 15 ms to every process of a step, and the process that has started
/// the ranks passes its own on. The checkpoint of the first SIGTERM is written.
#[test]
fn a_repeated_sigterm_leaves_the_checkpoint() {
    let w = training_folder(9);
    for (name, gpus) in [("one", "1"), ("two", "2")] {
        let out = w.path().join(name);
        let options = ["--max-steps", "4000", "--save-steps", "4000", "--gradient-accumulation-steps", "16"];
        let mut command = sft_command(w.path(), name, &[&options[..], &["--gpus", gpus]].concat());
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        wait_for_steps(&out, 3);
        let processes = if gpus == "1" { Vec::new() } else { support::child_processes(&child) };
        for signal in ["-TERM", "-CONT", "-TERM"] {
            [&[child.id()][..], &processes].concat().into_iter().for_each(|process| send_signal(process, signal));
        }
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(143), "{}", done.stderr);
        let last = metrics_without_times(&out).len();
        assert!(out.join(format!("checkpoint-{last}")).is_dir(), "{name}: {last}: {}", done.stderr);
        // Each rank names the output folder of the command, not its own temporary one.
        let stopped = done.stderr.lines().filter(|line| line.contains(&format!("error: --out {name}: stopped after")));
        assert_eq!(stopped.count().to_string(), gpus, "{}", done.stderr);
    }
}

/// A stopped process (SIGSTOP) cannot be ended by SIGTERM. It is named as the cause, and the other ranks name it too.
#[test]
fn a_stopped_process_is_named_and_ended() {
    let w = training_folder(9);
    for victim in [0, 1] {
        let name = ["stopped0", "stopped1"][victim];
        let options = ["--max-steps", "4000", "--gpus", "2", "--heartbeat-timeout", "8"];
        let mut command = sft_command(w.path(), name, &options);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        wait_for_steps(&w.path().join(name), 3);
        send_signal(support::child_processes(&child)[victim], "-STOP");
        let stopped = Instant::now();
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert!(stopped.elapsed() < Duration::from_secs(40), "{:?}", stopped.elapsed());
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("error: rank {victim}: was stopped (SIGSTOP)")), "{}", done.stderr);
        let start = format!("[rank {}] error: rank {victim} (", 1 - victim);
        let line = done.stderr.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
        assert!(line.contains("has sent no heartbeat for 8 s; "), "{}", done.stderr);
    }
}

/// Rank 1 may write no file as large as the weights. Its part of checkpoint 2 fails, and checkpoint 1 is complete.
#[test]
fn a_rank_that_cannot_write_advises_to_resume() {
    let w = training_folder(9);
    run_sft(w.path(), "out", &["--save-steps", "1", "--max-steps", "1"]).ok();
    let largest = std::fs::metadata(w.path().join("out/model.safetensors")).expect("weights").len();
    let start = |rank: usize| {
        let options = ["--save-steps", "1", "--max-steps", "6", "--resume-from-checkpoint", "last"];
        let train = sft_command(w.path(), "out", &options);
        let mut shell = std::process::Command::new("sh");
        // The unit of `ulimit -f` is 512 bytes.
        let limit = if rank == 1 { (largest / 1024).to_string() } else { "unlimited".into() };
        shell.args(["-c", &format!("ulimit -f {limit}; exec \"$0\" \"$@\"")]).arg(train.get_program());
        shell.args(train.get_args()).current_dir(w.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)];
        shell.envs(numbers.map(|(name, value)| (name, value.to_string()))).spawn().expect("sh starts")
    };
    for child in [0, 1].map(start) {
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("then resume with --resume-from-checkpoint last"), "{last}");
        assert!(!last.contains("--overwrite") && !last.contains(".part"), "{last}");
    }
    assert!(w.path().join("out/checkpoint-1").is_dir());
}
