//! The program that computes a custom reward: a shell command, or a Python function run by an embedded script.

use std::path::Path;
use std::process::Command;

use super::super::FUNCTION_FLAG;
use crate::{Result, RewardError};

const COMMAND_FLAG: &str = "--reward-command";

/// The Python script that runs a function. It uses the same line protocol as commands.
const SCRIPT: &str = include_str!("../rewards.py");

/// Shell code that begins the script of each command. Slurm sends SIGUSR1 to all processes of a job step. The command
/// and all processes that it starts inherit that the signal is ignored.
const IGNORE_SIGUSR1: &str = "trap '' USR1; ";

/// A program that computes rewards.
#[derive(Debug)]
pub(super) enum RewardProgram {
    /// A command for `sh -c`.
    Shell(String),
    /// The name of a Python function, `FILE.py:NAME` or `MODULE:NAME`.
    Function(String),
}

impl RewardProgram {
    /// Creates a program from a shell command.
    ///
    /// # Errors
    /// The command is empty or contains a zero byte.
    pub fn from_shell_command(command_line: &str) -> Result<Self> {
        if command_line.trim().is_empty() || command_line.contains('\0') {
            let what = "is empty or contains a zero byte";
            return Err(RewardError::bad_option(COMMAND_FLAG, what, "give a command for `sh -c`"));
        }
        Ok(Self::Shell(command_line.to_string()))
    }

    /// Creates a program from a Python function.
    ///
    /// # Errors
    /// The function's file does not exist, or `python3` is not on the path.
    pub fn from_python_function(function: &str) -> Result<Self> {
        let file = function.rsplit_once(':').map(|(file, _)| Path::new(file));
        if let Some(file) = file.filter(|file| file.extension().is_some_and(|end| end == "py") && !file.is_file()) {
            let what = format!("there is no file {}", file.display());
            return Err(RewardError::bad_option(FUNCTION_FLAG, what, "give FILE.py:NAME"));
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&folders).any(|folder| folder.join("python3").is_file()) {
            let what = "needs the program python3, which is in no folder of PATH";
            return Err(RewardError::bad_option(FUNCTION_FLAG, what, "install Python 3.8 or newer"));
        }
        Ok(Self::Function(function.to_string()))
    }

    /// The command line option that specifies the program.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Shell(_) => COMMAND_FLAG,
            Self::Function(_) => FUNCTION_FLAG,
        }
    }

    /// The shell command, or the name of the Python function, as the option gives it.
    pub fn command_or_function(&self) -> &str {
        match self {
            Self::Shell(text) | Self::Function(text) => text,
        }
    }

    /// Help text of the error if the program has ended.
    pub fn help_after_exit(&self) -> &'static str {
        match self {
            Self::Shell(_) => "run the command by hand with one row on its standard input",
            Self::Function(_) => "correct the function; reward.log of the run has the whole traceback",
        }
    }

    /// Returns the command that starts the program.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        match self {
            Self::Shell(line) => command.args(["-c", &format!("{IGNORE_SIGUSR1}{line}")]),
            Self::Function(function) => {
                let script = format!("{IGNORE_SIGUSR1}exec python3 -c \"$0\" \"$1\"");
                command.args(["-c", &script, SCRIPT, function])
            }
        };
        command
    }
}
