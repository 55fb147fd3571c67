//! `reel bench … --with PROGRAM`: runs the same measurement by this program and by another one in turns, and says which
//! one is faster.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;
use reel_measure::stats::MIN_TURNS;
use reel_measure::turns::ProgramTurns;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::output;

/// How two programs are compared.
#[derive(Args, Debug)]
pub struct ProgramComparisonArgs {
    /// Say whether PROGRAM, another build of reel, is faster than this one at the measurement
    ///
    /// Each turn runs one process of either program with the same command; the order changes from turn to turn (A B,
    /// B A, …). A process counts with the median of its rounds. PROGRAM is faster or slower if the signed-rank test of
    /// the ratios has p < 0.002 and the ratio differs from 1 by more than 1 %.
    #[arg(long, value_name = "PROGRAM", global = true)]
    with: Option<PathBuf>,
    /// Number of turns of --with: 10 to 100
    #[arg(long, value_name = "N", global = true, requires = "with", default_value_t = 16)]
    turns: usize,
}

/// Maximum number of turns: the cost of the exact test grows with the cube of this number.
const MAX_TURNS: usize = 100;

impl ProgramComparisonArgs {
    /// Whether another program is given (`--with`).
    pub fn has_other_program(&self) -> bool {
        self.with.is_some()
    }

    /// Runs the two programs in turns, compares them and prints the result. Returns false if `--with` is not given.
    pub fn run(&self, common: &CommonOptions) -> Result<bool> {
        let Some(other) = &self.with else { return Ok(false) };
        if !(MIN_TURNS..=MAX_TURNS).contains(&self.turns) {
            let help = format!("give {MIN_TURNS} to {MAX_TURNS}; with fewer turns, two programs cannot be told apart");
            return Err(usage_error("--turns", format!("is {}", self.turns), help));
        }
        let words: Vec<String> = std::env::args().skip(1).collect();
        if let Some(option) = ["--html", "--trace", "--perfetto", "--folded"]
            .into_iter()
            .find(|option| value_at(&words, option).is_some())
        {
            return Err(usage_error(
                option,
                "cannot be used with --with, which runs several processes: the file would describe only one of them",
                "leave it out",
            ));
        }
        let words = without_options(words, &["--with", "--turns"]);
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let programs: [&Path; 2] = [&own, other];
        let mut turns = ProgramTurns::default();
        for turn in 0..self.turns {
            let mut results = [Value::Null, Value::Null];
            for which in [turn % 2, 1 - turn % 2] {
                results[which] = measure(programs[which], &words)?;
            }
            let [a, b] = &results;
            turns.add([(programs[0], a), (programs[1], b)])?;
            if !turns.has_common_times() {
                let what = "reported no time for anything that this program measured";
                return Err(failed(other.display(), what, "give a build of reel with the same command"));
            }
            if !common.quiet {
                reel_diagnostic::note!("turn {} of {}", turn + 1, self.turns);
            }
        }
        match common.json {
            true => {
                let mut result = turns.json();
                (result["a"], result["b"]) = (json!(own), json!(other));
                output::print_json(&result)?;
            }
            false => output::print_line(turns.text())?,
        }
        Ok(true)
    }
}

/// Runs the benchmark command `words` with the program `program` and returns its JSON result.
fn measure(program: &Path, words: &[String]) -> Result<Value> {
    let help = "run this program alone with the same options to see why";
    let cannot = |what: String| failed(program.display(), what, help);
    let mut command = Command::new(program);
    command.args(words).arg("--json").stdin(Stdio::null()).stderr(Stdio::piped());
    let done = command.output().map_err(|e| cannot(format!("cannot be started: {e}")))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last = said.lines().last().unwrap_or_default().trim_start_matches("error: ");
        return Err(cannot(format!("failed ({}): {last}", done.status)));
    }
    serde_json::from_slice(&done.stdout).map_err(|e| cannot(format!("printed no result in JSON: {e}")))
}

/// Returns the index in `words` of an option that stands before `--`, also in the form `OPTION=VALUE`.
fn value_at(words: &[String], option: &str) -> Option<usize> {
    let is_option =
        |word: &String| word.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='));
    words.iter().take_while(|word| *word != "--").position(is_option)
}

/// Returns the words of a command line without `options` and their values.
fn without_options(mut words: Vec<String>, options: &[&str]) -> Vec<String> {
    for option in options {
        if let Some(at) = value_at(&words, option) {
            let has_own_value = words[at].contains('=');
            words.drain(at..(at + if has_own_value { 1 } else { 2 }).min(words.len()));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_get_the_command_line_without_the_comparison() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        for line in ["bench --with b prefill --turns 10 --model m", "bench prefill --model m --turns=10 --with=b"] {
            assert_eq!(without_options(words(line), &["--with", "--turns"]), words("bench prefill --model m"));
        }
        assert_eq!(value_at(&words("bench op --html=x"), "--html"), Some(2));
        assert_eq!(value_at(&words("bench op --htmlx -- --html"), "--html"), None);
    }
}
