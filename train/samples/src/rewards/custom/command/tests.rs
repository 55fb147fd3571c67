//! Tests with correct and broken commands, which use only `sh` and standard tools.

use super::super::{BASIC_ENVIRONMENT, CustomReports, CustomReward};
use super::*;
use std::path::Path;

const SHORT: Duration = Duration::from_millis(500);

fn rows(n: usize) -> Vec<Value> {
    (0..n).map(|i| json!({"prompt": "p", "completion": "x".repeat(i), "solution": "é\n\"", "index": i})).collect()
}

fn command_reward(shell: &str) -> CustomReward {
    CustomReward::from_command(shell, Duration::from_secs(30)).unwrap()
}

/// Returns the error of the shell command `shell` that scores a batch of 3 rows.
fn error_of(shell: &str) -> String {
    let e = command_reward(shell).score(&rows(3)).unwrap_err().to_string();
    assert!(e.starts_with("--reward-command `") && e.contains("; ") && !e.contains('\n'), "{e}");
    e
}

#[test]
fn process_is_kept_between_batches() {
    // The reply to each line is the number of lines that the command has read so far.
    let mut own = command_reward("n=0; while read -r line; do n=$((n + 1)); echo $n; done");
    assert_eq!(own.score(&rows(3)).unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(own.score(&[]).unwrap(), [0.0; 0]);
    assert_eq!(own.score(&rows(2)).unwrap(), [4.0, 5.0]);
}

#[test]
fn command_receives_rows_unchanged_with_batch_field() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let mut own = command_reward(&format!(
        "tee '{}' | while read -r line; do echo '{{\"reward\": -2.5e-1}}'; done",
        seen.display()
    ));
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
fn command_gets_the_environment_or_the_named_variables() {
    // Picks any variable of this process that is not in `BASIC_ENVIRONMENT`; cargo always sets some variables.
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let mut others = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let Some((name, value)) = others
        .find(|(name, v)| is_name(name) && !BASIC_ENVIRONMENT.contains(&name.as_str()) && name != "_" && !v.is_empty())
    else {
        return;
    };
    let seen = |limit: Option<Vec<String>>| {
        let own = command_reward(&format!("while read -r line; do echo ${{{name}:+1}}${{PATH:+1}}; done"));
        let mut own = if let Some(names) = limit { own.with_environment(names) } else { own };
        own.score(&rows(1)).unwrap()[0]
    };
    assert_eq!((seen(None), seen(Some(vec![])), seen(Some(vec![name.clone()]))), (11.0, 1.0, 11.0), "{value:?}");
}

#[test]
fn batch_larger_than_a_pipe_does_not_deadlock() {
    // Program and test each write more bytes than a pipe buffers. If either wrote everything before reading, both
    // would block forever.
    let wide: Vec<Value> = (0..2000).map(|i| json!({"completion": "y".repeat(500), "i": i})).collect();
    let mut own = command_reward("while read -r line; do printf '%100s\\n' 1; done");
    assert_eq!(own.score(&wide).unwrap(), vec![1.0; 2000]);
}

#[test]
fn invalid_output_is_quoted_in_the_error() {
    for (answer, named) in [
        ("3e38", "but the largest reward is 1e18"),
        ("inf", "`inf`"),
        ("1e39", "is 1e39"),
        ("-Infinity", "`-Infinity`"),
        ("\\\"1\\\"", "not a number"),
        ("[1]", "[1]"),
        ("true", "true"),
        ("{\\\"score\\\": 1}", "no field `reward`"),
        ("hello world", "`hello world`"),
        ("", "``"),
    ] {
        let e = error_of(&format!("while read -r line; do echo \"{answer}\"; done"));
        assert!(e.contains(named), "{answer}: {e}");
    }
    // 1e999 overflows f64, and serde_json refuses such numbers.
    assert!(error_of("while read -r l; do echo 1e999; done").contains("1e999"));
    assert!(error_of("read -r l; printf '\\377\\n'; cat > /dev/null").contains("not UTF-8"));
    assert!(error_of("read -r l; echo 1; echo x; cat > /dev/null").contains("line 2 of its output is `x`"));
    assert!(error_of("read -r l; head -c 3000000 /dev/zero | tr '\\0' 1; cat > /dev/null").contains("longer than"));
}

#[test]
fn null_and_nan_do_not_apply() {
    let mut own = command_reward(
        "read -r a; printf 'null\\nNaN\\n-nan\\n{\"reward\": NaN, \"metrics\": {\"m\": 2}}\\n'; cat > /dev/null",
    );
    own.send_batch(&rows(4), None).unwrap();
    let replies = own.finish(&AtomicBool::new(false)).unwrap();
    assert!(replies.iter().all(|reply| reply.reward.is_nan()), "{replies:?}");
    let mut reports = CustomReports::default();
    reports.add(&replies);
    assert_eq!((reports.nan_count, reports.extra.len(), reports.metrics), (3, 0, vec![("m".to_string(), 2.0)]));
}

#[test]
fn exit_is_reported_with_last_line_of_stderr() {
    assert!(
        error_of("echo 'no such module: foo' >&2; exit 7")
            .contains("exited with code 7 (no such module: foo) after 0 of 3")
    );
    assert!(error_of("read -r l; echo 1; kill -9 $$").contains("was killed by signal 9 after 1 of 3"));
    assert!(error_of("exec >&-; cat > /dev/null; sleep 100").contains("closed its standard output"));
    assert!(error_of("/no/such/program").contains("exited with code 127"));
    // The program ends after too few lines.
    assert!(error_of("head -n 2 > /dev/null; echo 1; echo 1").contains("exited with code 0 after 2 of 3"));
}

#[test]
fn exit_is_noticed_although_a_child_holds_the_output() {
    let begun = Instant::now();
    let e = error_of("sleep 60 & exit 3");
    assert!(e.contains("exited with code 3 after 0 of 3 rewards"), "{e}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the timeout is 30 s: {:?}", begun.elapsed());
}

#[test]
fn extra_lines_are_detected() {
    // The program writes two lines per row. On a busy machine the extra lines may be noticed only at the next batch.
    let mut twice = command_reward("while read -r line; do echo 1; echo 1; done");
    let e = (0..50).find_map(|_| twice.score(&rows(3)).err()).expect("an error").to_string();
    assert!(e.contains("more lines than the 3 rows") || e.contains("before it was given a batch"), "{e}");
    // The program writes extra lines between two batches.
    let mut own = command_reward("while :; do echo 1; sleep 0.05; done");
    let later = || thread::sleep(Duration::from_millis(200));
    let e = (0..50).find_map(|_| own.score(&rows(1)).inspect(|_| later()).err()).expect("an error").to_string();
    assert!(e.contains("before it was given a batch"), "{e}");
}

#[test]
fn hanging_command_is_killed_with_its_group_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("child");
    let shell = format!("sh -c 'echo $$ > {}; exec sleep 1000' & read -r l; echo 1; sleep 1000", mark.display());
    let began = Instant::now();
    let mut own = CustomReward::from_command(&shell, SHORT).unwrap();
    let e = own.score(&rows(2)).unwrap_err().to_string();
    assert!(e.contains("timed out after 0.5 s with 1 of 2 rewards"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let child = std::fs::read_to_string(mark).unwrap();
    wait_until_exited(child.trim());
}

#[test]
fn stop_flag_ends_the_wait() {
    let began = Instant::now();
    let e = command_reward("sleep 1000").score_or_stop(&rows(2), &AtomicBool::new(true)).unwrap_err().to_string();
    assert!(e.contains("was stopped before") && began.elapsed() < Duration::from_secs(15), "{e}");
}

#[test]
fn drop_closes_input_and_lets_the_command_finish() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("done");
    let mut own = command_reward(&format!("while read -r line; do echo $$; done; echo bye > {}", mark.display()));
    let pid = own.score(&rows(1)).unwrap()[0];
    drop(own);
    assert_eq!(std::fs::read_to_string(mark).unwrap(), "bye\n");
    wait_until_exited(&format!("{pid}"));
}

/// Waits until a process has exited (a zombie counts as exited).
fn wait_until_exited(pid: &str) {
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let alive = || state().is_some_and(|stat| !stat.contains(") Z "));
    let until = Instant::now() + Duration::from_secs(10);
    while alive() {
        assert!(Instant::now() < until, "process {pid} is still running");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn command_is_restarted_after_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("second");
    let mark = mark.display();
    let mut own = command_reward(&format!(
        "if [ -e {mark} ]; then while read -r l; do echo 5; done; else touch {mark}; exit 1; fi"
    ));
    own.score(&rows(2)).unwrap_err();
    assert_eq!(own.score(&rows(2)).unwrap(), [5.0, 5.0]);
}

#[test]
fn invalid_commands_and_rows_are_refused() {
    for shell in ["", "  ", "a\0b"] {
        let e = CustomReward::from_command(shell, SHORT).unwrap_err();
        assert!(e.is_usage_error() && e.to_string().starts_with("--reward-command: "), "{e}");
    }
    let e = command_reward("cat").score(&[json!({"_batch": 1})]).unwrap_err().to_string();
    assert!(e.starts_with("_batch: "), "{e}");
    assert!(command_reward("cat").score(&[json!(3)]).unwrap_err().to_string().contains("not an object"));
}

/// Environment variable that is set in the child process of [`killing_this_process_kills_the_command`], which the test
/// kills. Its value is the path to which the child's command writes its process id.
const HELD: &str = "REEL_TEST_HELD_COMMAND";

#[test]
fn killing_this_process_kills_the_command() {
    if let Some(mark) = std::env::var_os(HELD) {
        let mark = mark.into_string().unwrap();
        // The shell and its child ignore all signals that can be ignored, and do not read their input.
        let stubborn = "trap '' HUP INT PIPE TERM; sh -c 'echo $$; exec sleep 1000 >&-' > MARK & echo $$ >> MARK.sh; read -r l; echo 1; sleep 1000; true";
        let mut own = command_reward(&stubborn.replace("MARK", &mark));
        own.score(&rows(1)).unwrap();
        std::fs::write(format!("{mark}.ready"), "").unwrap();
        thread::sleep(Duration::from_secs(1000));
    }
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("child");
    let at = |ending: &str| folder.path().join(format!("child{ending}"));
    let name = concat!(module_path!(), "::killing_this_process_kills_the_command");
    let name = name.split_once("::").unwrap().1;
    let reel = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(HELD, &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut reel = KilledOnDrop(reel.unwrap());
    let until = Instant::now() + Duration::from_secs(30);
    while !at(".ready").exists() {
        assert!(Instant::now() < until && reel.0.try_wait().unwrap().is_none(), "the command did not start");
        thread::sleep(Duration::from_millis(5));
    }
    let pids = ["", ".sh"].map(|ending| std::fs::read_to_string(at(ending)).unwrap());
    assert!(pids.iter().all(|pid| Path::new(&format!("/proc/{}/stat", pid.trim())).exists()), "{pids:?}");
    drop(reel);
    pids.iter().for_each(|pid| wait_until_exited(pid.trim()));
}

/// Slurm sends SIGUSR1 to all processes of a job step. The signal must not end the command, programs that the command
/// has started, or the guard.
#[test]
fn sigusr1_does_not_disturb_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("pid");
    // `cat` is a program that does not know the signal.
    let shell = format!("echo $$ > '{}'; cat | while read -r line; do echo 2; done", mark.display());
    let mut own = command_reward(&shell);
    assert_eq!(own.score(&rows(2)).unwrap(), [2.0, 2.0]);
    let group = std::fs::read_to_string(&mark).unwrap().trim().to_string();
    let command_line = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_guard = |pid: &String| command_line(pid).ends_with(format!("\0{group}\0").as_bytes());
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let guard = all.filter(|name| name.bytes().all(|b| b.is_ascii_digit())).find(is_guard).unwrap();
    let script = format!("kill -s USR1 -- -{group} -{guard}");
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    thread::sleep(Duration::from_millis(50));
    assert_eq!(own.score(&rows(3)).unwrap(), [2.0; 3]);
    assert!(is_guard(&guard), "the guard was killed");
}

/// A process that is killed with SIGKILL when dropped.
struct KilledOnDrop(std::process::Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_wait_may_end_before_the_batch_and_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("go");
    let wait = format!("until test -e '{}'; do sleep 0.01; done", mark.display());
    let mut own = command_reward(&format!("while read -r line; do echo 1; {wait}; done"));
    let never = AtomicBool::new(false);
    own.send_batch(&rows(3), None).unwrap();
    assert!(own.finish_by(Instant::now() + Duration::from_millis(50), &never).is_none());
    std::fs::write(&mark, "").unwrap();
    assert!(own.finish(&never).unwrap().iter().all(|reply| reply.reward == 1.0));
    // The batch's rewards have already been returned.
    assert!(own.finish(&never).unwrap_err().to_string().contains("was not sent"));
    assert!(own.finish_by(Instant::now() + Duration::from_secs(20), &never).is_none());
}

#[test]
fn a_batch_whose_rewards_were_not_read_does_not_mix_with_the_next_one() {
    let mut own = command_reward("n=0; while read -r line; do n=$((n + 1)); echo $n; done");
    own.send_batch(&rows(3), None).unwrap();
    // The command is started again.
    assert_eq!(own.score(&rows(2)).unwrap(), [1.0, 2.0]);
}
