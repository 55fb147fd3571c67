//! Runs the built binary and checks its output.
#![allow(dead_code, reason = "no test program uses all of this module")]

pub mod http;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

use signal_hook::consts::SIGINT;

/// Exit code and output of a finished command.
pub struct FinishedRun {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Returns a command that runs the built binary with all GPUs hidden. For tests that were copied to another machine,
/// the environment variable `REEL_TEST_BIN` names the binary.
pub fn reel() -> Command {
    let mut command = Command::new(std::env::var_os("REEL_TEST_BIN").unwrap_or(env!("CARGO_BIN_EXE_reel").into()));
    // Tests download no models. GPUs are hidden, so that results do not depend on the machine.
    command.env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// Returns a command that runs the built binary with at most `kib` KiB of address space.
pub fn reel_with_address_space(kib: u32) -> Command {
    let reel = reel();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v \"$0\"; exec \"$@\""]).arg(kib.to_string()).arg(reel.get_program());
    command.envs(reel.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Returns a command that runs the built binary with the machine's GPUs visible.
pub fn reel_on_gpu() -> Command {
    let mut command = reel();
    command.env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// Runs the binary with arguments.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> FinishedRun {
    finished_run(reel().args(args).output().expect("the binary starts"))
}

/// Runs the binary with arguments in a folder.
pub fn run_in<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> FinishedRun {
    finished_run(reel().current_dir(folder).args(args).output().expect("the binary starts"))
}

/// Returns the words of a command line. Options in `more` replace options of the same name in `args`, because the
/// program refuses an option that is given twice. An option is a word that begins with `--`; its value, if any, is
/// the next word.
pub fn with_options<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let mut words = Vec::new();
    let mut at = 0;
    while at < args.len() {
        let is_option = args[at].starts_with("--");
        let has_value = is_option && args.get(at + 1).is_some_and(|value| !value.starts_with("--"));
        let end = at + 1 + usize::from(has_value);
        if !(is_option && more.contains(&args[at])) {
            words.extend(&args[at..end]);
        }
        at = end;
    }
    words.extend(more);
    words
}

/// Converts the output of a finished process.
pub fn finished_run(out: Output) -> FinishedRun {
    FinishedRun {
        code: out.status.code(),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

impl FinishedRun {
    /// Checks that the command succeeded; returns its stdout.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        &self.stdout
    }

    /// Checks that the command succeeded; returns its stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Returns the plan that `reel plan --json` printed. Checks the exit code: 0 if the plan fits or its memory is not
    /// known, 1 if it does not fit or no micro-batch does.
    #[track_caller]
    pub fn plan_json(&self) -> serde_json::Value {
        let plan: serde_json::Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr));
        let fits = if plan["job"].is_null() { &plan["fits"] } else { &plan["job"]["fits"] };
        let nothing_fits = !plan["find_batch_size"].is_null() && plan["find_batch_size"]["largest"].is_null();
        let code = i32::from(*fits == false || nothing_fits);
        assert_eq!(self.code, Some(code), "{fits} {}", self.stderr);
        if code == 1 {
            self.assert_refused(1, &["fit"]);
        }
        plan
    }

    /// Checks that the command failed with exit code `code`, and with a one-line error that contains each of `words`
    /// and says what to do.
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "not one line: {}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(self.stderr.contains("; "), "no help text: {}", self.stderr);
        assert!(!self.stderr.contains("internal:") && !self.stderr.contains("panicked"), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
        self
    }
}

/// Makes children of this process receive SIGINT, even if this process was started with SIGINT ignored, as background
/// jobs of a shell script are. A child inherits an ignored signal, and `reel` then keeps ignoring it. A child does
/// not inherit a handler, so installing an empty handler restores the default action in children.
pub fn let_children_receive_sigint() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask of ignored signals");
        let ignored = u64::from_str_radix(mask.trim(), 16).expect("a hexadecimal number");
        if ignored >> (SIGINT - 1) & 1 == 1 {
            signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false))).expect("a handler");
        }
    });
}

/// Sends a signal (`-INT`, `-KILL`, …) to a process. Uses the `kill` built into the shell, because a minimal system
/// lacks the program `kill`.
#[allow(dead_code)] // not every test program sends signals
pub fn send_signal(pid: u32, name: &str) {
    let script = format!("kill {name} {pid}");
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh starts").success());
}

/// Returns the ids of the processes that `parent` has started, in the order of their starts.
pub fn child_processes(parent: &Child) -> Vec<u32> {
    let id = parent.id();
    let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("a list of processes");
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// Returns the path of `tests/golden/NAME`. For tests that were copied to another machine, the environment variable
/// `REEL_TEST_GOLDEN` names the folder in place of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("REEL_TEST_GOLDEN").map_or_else(here, PathBuf::from).join(name)
}

/// Returns the preset of the tests' tiny models. The environment variable `REEL_TEST_PRESET` names another one, such as
/// `qwen3-tiny`; tests that count tokens, pixels or parameters then fail.
pub fn tiny_preset() -> String {
    std::env::var("REEL_TEST_PRESET").unwrap_or_else(|_| "tiny".to_string())
}

/// Creates a tiny model folder inside `parent`.
pub fn tiny_model(parent: &Path) -> PathBuf {
    tiny_model_of(parent, &tiny_preset())
}

/// Creates a tiny model folder of this preset inside `parent`; its name is `tiny`.
pub fn tiny_model_of(parent: &Path, preset: &str) -> PathBuf {
    let folder = parent.join("tiny");
    run(["init", "--preset", preset, "--out", &folder.display().to_string()]).ok();
    folder
}

/// Returns the sorted names of all files and folders in a folder.
pub fn file_names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Reads the lines of metrics.jsonl in an output folder.
pub fn read_metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Reads the lines of metrics.jsonl, without the fields that depend on the time or on the machine's state.
pub fn metrics_without_times(out: &Path) -> Vec<serde_json::Value> {
    let mut lines = read_metrics(out);
    for line in lines.iter_mut().filter_map(serde_json::Value::as_object_mut) {
        let of_machine = |name: &str| name == "mfu" || name == "host_memory_bytes" || name.starts_with("gpu_");
        line.retain(|name, _| !name.ends_with("second") && !name.ends_with("_seconds") && !of_machine(name));
    }
    lines
}

/// Computes the CRC-32 (IEEE 802.3) of bytes, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    let bit = |c: u32| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 };
    !bytes.iter().fold(!0u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| bit(c)))
}

/// Checks an HTML page: it loads no files, its content security policy forbids loading, and the data of its charts is
/// valid JSON. Returns the data of the charts.
pub fn check_page(html: &str) -> Vec<serde_json::Value> {
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    assert!(html.contains("default-src 'none'"), "the page may load other files");
    for part in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!html.contains(part), "the page has {part}");
    }
    let blocks = html.split("<script type=\"application/json\">").skip(1);
    let charts: Vec<serde_json::Value> = blocks
        .map(|rest| rest.split("</script>").next().expect("the end of the data"))
        .map(|json| serde_json::from_str(json).unwrap_or_else(|e| panic!("{e} in {json}")))
        .collect();
    for chart in &charts {
        assert!(!chart.to_string().contains("null"), "a value is missing in {chart}");
    }
    charts
}
