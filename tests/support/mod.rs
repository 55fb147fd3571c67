//! Runs the built binary.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run left.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary, on the processor unless it is told otherwise: `REEL_TEST_BIN` where the tests were carried to another machine.
pub fn reel() -> Command {
    let mut command = Command::new(std::env::var_os("REEL_TEST_BIN").unwrap_or(env!("CARGO_BIN_EXE_reel").into()));
    // No test asks the network for a model. A GPU is hidden, so that results do not depend on the machine.
    command.env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The binary on a machine's GPU.
pub fn reel_on_gpu() -> Command {
    let mut command = reel();
    command.env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// Runs the binary with these arguments.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    done(reel().args(args).output().expect("the binary starts"))
}

/// The same, from another folder.
pub fn run_in<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Run {
    done(reel().current_dir(folder).args(args).output().expect("the binary starts"))
}

/// What a finished process left.
pub fn done(out: Output) -> Run {
    Run {
        code: out.status.code(),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

impl Run {
    /// The run worked; its stdout.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        &self.stdout
    }

    /// The run worked; its stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// The run was refused with this code and one line that has each of `words`, a fault and a cure.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "not one line: {}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(self.stderr.contains("; "), "no cure: {}", self.stderr);
        assert!(!self.stderr.contains("internal:") && !self.stderr.contains("panicked"), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
        self
    }
}

/// Sends a signal, named as `kill` has it; by the shell's own `kill`, since a bare system has no other.
#[allow(dead_code)] // not every test program sends signals
pub fn signal(pid: u32, name: &str) {
    let script = format!("kill {name} {pid}");
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh starts").success());
}

/// `tests/golden/NAME`, or in the folder `REEL_TEST_GOLDEN` where the tests were carried to another machine.
pub fn golden(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("REEL_TEST_GOLDEN").map_or_else(here, PathBuf::from).join(name)
}

/// A tiny model folder.
pub fn tiny_model(parent: &Path) -> PathBuf {
    let folder = parent.join("tiny");
    run(["init", "--preset", "tiny", "--out", &folder.display().to_string()]).ok();
    folder
}

/// Names of what lies in a folder, sorted.
pub fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
