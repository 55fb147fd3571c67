//! `--report-command`: a shell command that gets the metrics of each reported step on its standard input, one JSON
//! object per line, such as `{"step": 3, "train/loss": 1.25}`. A short script can send these lines to MLflow,
//! SwanLab, trackio or any other service (`docs/examples/report.py`).
//!
//! The command cannot delay or end the training: a thread writes the lines. If the command cannot be started or exits
//! early, a note says so once.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use reel_support::diagnostic::note;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Maximum time that the command may take to exit after the last line.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval at which the end of the command is polled.
const EXIT_INTERVAL: Duration = Duration::from_millis(20);

/// The running command of `--report-command`.
#[derive(Debug)]
pub struct ReportCommand {
    child: Child,
    /// Lines for the writer thread, which ends when this sender is dropped.
    lines: Option<Sender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl ReportCommand {
    /// Starts `sh -c command`. The command's output goes to the standard error of this process.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn start(command: &str) -> Result<Self> {
        let failed = |e: io::Error| {
            let what = format!("cannot be started: {e}");
            Error::usage("--report-command", what, "check that the shell `sh` is installed")
        };
        let output = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
        let mut child = Command::new("sh")
            // Slurm sends SIGUSR1 to all processes of a job step. Programs that the command starts inherit that the
            // signal is ignored.
            .args(["-c", &format!("trap '' USR1; {command}")])
            .stdin(Stdio::piped())
            .stdout(output)
            // The command has its own process group, so that Ctrl-C ends only the training, and the command still
            // gets its last lines.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (sender, receiver) = channel::<String>();
        let writer = child.stdin.take().map(|mut input| {
            thread::spawn(move || {
                let written = receiver.iter().try_for_each(|line| write_line(&mut input, &line));
                if let Err(e) = written {
                    note!("--report-command: gets no more metrics, because it closed its input ({e})");
                }
            })
        });
        Ok(Self { child, lines: Some(sender), writer })
    }

    /// Sends the named numbers of a step to the command.
    pub fn report_step(&self, step: u64, values: &[(String, f64)]) {
        let mut line = Map::from_iter([("step".to_string(), json!(step))]);
        line.extend(values.iter().map(|(name, value)| (name.clone(), json!(value))));
        if let Some(lines) = &self.lines {
            // If the line cannot be sent, the writer thread has already ended and printed the reason.
            let _ = lines.send(format!("{}\n", Value::Object(line)));
        }
    }

    /// Closes the command's input and waits until it has ended. After [`EXIT_TIMEOUT`] it is killed with its children.
    pub fn finish(mut self) {
        self.end(EXIT_TIMEOUT);
    }

    fn end(&mut self, timeout: Duration) {
        self.lines = None;
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => break,
                Ok(Some(status)) => {
                    note!("--report-command: ended with {status}");
                    break;
                }
                Ok(None) if begun.elapsed() < timeout => thread::sleep(EXIT_INTERVAL),
                Ok(None) | Err(_) => {
                    note!("--report-command: was ended, because it ran for {timeout:?} after its last line");
                    // The children of the command are also killed, because they could keep the standard error of this
                    // process open.
                    if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    let _ = self.child.wait();
                    break;
                }
            }
        }
        // A child of the command may hold the pipe open and read nothing, so a blocked thread is not waited for.
        if let Some(writer) = self.writer.take().filter(JoinHandle::is_finished) {
            let _ = writer.join();
        }
    }
}

impl Drop for ReportCommand {
    fn drop(&mut self) {
        // `lines` is still set only if the run failed before its end while the command was running.
        if self.lines.is_some() {
            self.end(Duration::from_secs(1));
        }
    }
}

fn write_line(input: &mut ChildStdin, line: &str) -> io::Result<()> {
    input.write_all(line.as_bytes())?;
    input.flush()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn command_gets_each_step_as_a_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lines");
        let command = ReportCommand::start(&format!("cat > '{}'", file.display())).unwrap();
        for step in 1..=3 {
            command.report_step(step, &[("train/loss".to_string(), 0.5 * step as f64)]);
        }
        command.finish();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2], json!({"step": 3, "train/loss": 1.5}));
    }

    #[test]
    fn command_that_does_not_end_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let line = format!("exec 3> '{}'; (sleep 5; echo alive >&3) & wait", fifo.display());
        let mut command = ReportCommand::start(&line).unwrap();
        // Opening the FIFO waits until the command has opened it. Reading ends when no process has it open for
        // writing.
        let mut from_child = File::open(&fifo).unwrap();
        command.end(Duration::from_millis(10));
        let mut text = String::new();
        from_child.read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "a child of the command has outlived it");
    }

    #[test]
    fn command_that_exits_or_reads_nothing_delays_nothing() {
        for command in ["exit 3", "head -n 1 > /dev/null", "exec sleep 100"] {
            let mut command = ReportCommand::start(command).unwrap();
            let begun = Instant::now();
            // These lines are more than a pipe can buffer.
            for step in 0..20_000 {
                command.report_step(step, &[("train/loss".to_string(), 0.5)]);
            }
            command.end(Duration::from_millis(200));
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }
}
