//! Commands that answer well and ill; plain `sh` and what every system has beside it.

use super::super::CustomReward;
use super::*;
use std::path::Path;

const SHORT: Duration = Duration::from_millis(500);

fn rows(n: usize) -> Vec<Value> {
    (0..n).map(|i| json!({"prompt": "p", "completion": "x".repeat(i), "solution": "é\n\"", "index": i})).collect()
}

fn own(shell: &str) -> CustomReward {
    CustomReward::command(shell, Duration::from_secs(30)).unwrap()
}

/// The error of one batch of 3 rows.
fn refused(shell: &str) -> String {
    let e = own(shell).score(&rows(3)).unwrap_err().to_string();
    assert!(e.starts_with("--reward-command `") && e.contains("; ") && !e.contains('\n'), "{e}");
    e
}

#[test]
fn the_process_is_kept_between_batches() {
    // Each line is answered with the number of lines so far.
    let mut own = own("n=0; while read -r line; do n=$((n + 1)); echo $n; done");
    assert_eq!(own.score(&rows(3)).unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(own.score(&[]).unwrap(), [0.0; 0]);
    assert_eq!(own.score(&rows(2)).unwrap(), [4.0, 5.0]);
}

#[test]
fn rows_arrive_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let mut own =
        own(&format!("tee '{}' | while read -r line; do echo '{{\"reward\": -2.5e-1}}'; done", seen.display()));
    assert_eq!(own.score(&rows(2)).unwrap(), [-0.25, -0.25]);
    let text = std::fs::read_to_string(seen).unwrap();
    let got: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut want = rows(2);
    for (i, row) in want.iter_mut().enumerate() {
        row["_batch"] = json!({"index": i, "size": 2});
    }
    assert_eq!(got, want);
}

#[test]
fn a_large_batch_does_not_lock_up() {
    // Each side writes more than a pipe holds: whoever waits for the other to read would wait for ever.
    let wide: Vec<Value> = (0..2000).map(|i| json!({"completion": "y".repeat(500), "i": i})).collect();
    let mut own = own("while read -r line; do printf '%100s\\n' 1; done");
    assert_eq!(own.score(&wide).unwrap(), vec![1.0; 2000]);
}

#[test]
fn what_is_no_reward_is_named() {
    for (answer, named) in [
        ("NaN", "line 1 of its output is `NaN`"),
        ("3e38", "beyond what a reward can be"),
        ("inf", "`inf`"),
        ("1e39", "is 1e39"),
        ("-Infinity", "`-Infinity`"),
        ("null", "null"),
        ("\\\"1\\\"", "no number"),
        ("[1]", "[1]"),
        ("true", "true"),
        ("{\\\"score\\\": 1}", "no `reward`"),
        ("{\\\"reward\\\": null}", "null"),
        ("hello world", "`hello world`"),
        ("", "``"),
    ] {
        let e = refused(&format!("while read -r line; do echo \"{answer}\"; done"));
        assert!(e.contains(named), "{answer}: {e}");
    }
    // serde_json reads no number that is infinite in f64.
    assert!(refused("while read -r l; do echo 1e999; done").contains("1e999"));
    assert!(refused("read -r l; printf '\\377\\n'; cat > /dev/null").contains("not UTF-8"));
    assert!(refused("read -r l; echo 1; echo x; cat > /dev/null").contains("line 2 of its output is `x`"));
    assert!(refused("read -r l; head -c 3000000 /dev/zero | tr '\\0' 1; cat > /dev/null").contains("longer than"));
}

#[test]
fn ends_are_told_with_the_last_words() {
    assert!(
        refused("echo 'no such module: foo' >&2; exit 7")
            .contains("ended with exit code 7 (no such module: foo) after 0 of 3")
    );
    assert!(refused("read -r l; echo 1; kill -9 $$").contains("was ended by signal 9 after 1 of 3"));
    assert!(refused("exec >&-; cat > /dev/null; sleep 100").contains("closed its output"));
    assert!(refused("/no/such/program").contains("exit code 127"));
    // Too few lines of a program that goes on, and of one that ends.
    assert!(refused("head -n 2 > /dev/null; echo 1; echo 1").contains("ended with exit code 0 after 2 of 3"));
}

#[test]
fn too_many_lines_are_noticed() {
    // Within the batch, unless the machine is so busy that the next batch is the first to see them.
    let mut twice = own("while read -r line; do echo 1; echo 1; done");
    let e = (0..50).find_map(|_| twice.score(&rows(3)).err()).expect("an error").to_string();
    assert!(e.contains("more lines than the 3 rows") || e.contains("nobody had asked"), "{e}");
    // After the batch, and before the next.
    let mut own = own("while :; do echo 1; sleep 0.05; done");
    let later = || thread::sleep(Duration::from_millis(200));
    let e = (0..50).find_map(|_| own.score(&rows(1)).inspect(|_| later()).err()).expect("an error").to_string();
    assert!(e.contains("nobody had asked"), "{e}");
}

#[test]
fn a_hang_costs_its_deadline_and_its_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("child");
    let shell = format!("sh -c 'echo $$ > {}; exec sleep 1000' & read -r l; echo 1; sleep 1000", mark.display());
    let began = Instant::now();
    let mut own = CustomReward::command(&shell, SHORT).unwrap();
    let e = own.score(&rows(2)).unwrap_err().to_string();
    assert!(e.contains("gave 1 of 2 rewards in 0.5 s and was stopped"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let child = std::fs::read_to_string(mark).unwrap();
    gone(child.trim());
}

#[test]
fn a_wait_can_be_given_up() {
    let began = Instant::now();
    let e = own("sleep 1000").score_or_stop(&rows(2), &AtomicBool::new(true)).unwrap_err().to_string();
    assert!(e.contains("was not waited for") && began.elapsed() < Duration::from_secs(15), "{e}");
}

#[test]
fn the_end_ends_the_command_and_lets_it_finish() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("done");
    let mut own = own(&format!("while read -r line; do echo $$; done; echo bye > {}", mark.display()));
    let pid = own.score(&rows(1)).unwrap()[0];
    drop(own);
    assert_eq!(std::fs::read_to_string(mark).unwrap(), "bye\n");
    gone(&format!("{pid}"));
}

/// Waits until a process is no more than a name.
fn gone(pid: &str) {
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let alive = || state().is_some_and(|stat| !stat.contains(") Z "));
    let until = Instant::now() + Duration::from_secs(10);
    while alive() {
        assert!(Instant::now() < until, "{pid} is alive");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn after_an_error_it_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("second");
    let mark = mark.display();
    let mut own =
        own(&format!("if [ -e {mark} ]; then while read -r l; do echo 5; done; else touch {mark}; exit 1; fi"));
    own.score(&rows(2)).unwrap_err();
    assert_eq!(own.score(&rows(2)).unwrap(), [5.0, 5.0]);
}

#[test]
fn what_cannot_be_asked_is_refused() {
    for shell in ["", "  ", "a\0b"] {
        let e = CustomReward::command(shell, SHORT).unwrap_err();
        assert!(e.is_usage() && e.to_string().starts_with("--reward-command: "), "{e}");
    }
    let e = own("cat").score(&[json!({"_batch": 1})]).unwrap_err().to_string();
    assert!(e.starts_with("_batch: "), "{e}");
    assert!(own("cat").score(&[json!(3)]).unwrap_err().to_string().contains("not an object"));
}

/// In the process that [`nothing_outlives_a_kill`] kills: where its command writes who it is.
const HELD: &str = "REEL_TEST_HELD_COMMAND";

#[test]
fn nothing_outlives_a_kill() {
    if let Some(mark) = std::env::var_os(HELD) {
        let mark = mark.into_string().unwrap();
        // Neither the shell nor what it has started looks at its input, or minds a signal that can be ignored.
        let stubborn = "trap '' HUP INT PIPE TERM; sh -c 'echo $$; exec sleep 1000 >&-' > MARK & echo $$ >> MARK.sh; read -r l; echo 1; sleep 1000; true";
        let mut own = own(&stubborn.replace("MARK", &mark));
        own.score(&rows(1)).unwrap();
        std::fs::write(format!("{mark}.ready"), "").unwrap();
        thread::sleep(Duration::from_secs(1000));
    }
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("child");
    let at = |ending: &str| folder.path().join(format!("child{ending}"));
    let name = concat!(module_path!(), "::nothing_outlives_a_kill");
    let name = name.split_once("::").unwrap().1;
    let reel = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(HELD, &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut reel = Killed(reel.unwrap());
    let until = Instant::now() + Duration::from_secs(30);
    while !at(".ready").exists() {
        assert!(Instant::now() < until && reel.0.try_wait().unwrap().is_none(), "the command was not started");
        thread::sleep(Duration::from_millis(5));
    }
    let pids = ["", ".sh"].map(|ending| std::fs::read_to_string(at(ending)).unwrap());
    assert!(pids.iter().all(|pid| Path::new(&format!("/proc/{}/stat", pid.trim())).exists()), "{pids:?}");
    drop(reel);
    pids.iter().for_each(|pid| gone(pid.trim()));
}

/// A process that is killed when it is dropped, as by `kill -9`.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}
