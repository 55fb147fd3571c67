//! The program that computes a custom reward or runs a tool: a shell command, or a Python function run by an embedded
//! script.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::{BASIC_ENVIRONMENT, FUNCTION_FLAG};
use super::Purpose;
use crate::error::{Error, Result};

/// The Python script that runs a function. It uses the same line protocol as commands.
const SCRIPT: &str = include_str!("../rewards.py");

/// The Python script that looks for a function without running the code of its module.
const FIND_SCRIPT: &str = include_str!("../find_function.py");

/// Python code that runs before [`SCRIPT`]. Given `-c`, Python searches modules in the current folder first, so `import
/// json` would run a file json.py there. (`-I` would also leave out `PYTHONPATH` and the user's packages.)
const WITHOUT_CURRENT_FOLDER: &str = "import sys\nif sys.path[:1] == ['']: del sys.path[0]\n";

/// Shell code that begins the script of each command. Slurm sends SIGUSR1 to all processes of a job step. The command
/// and all processes that it starts inherit that the signal is ignored.
const IGNORE_SIGUSR1: &str = "trap '' USR1; ";

/// Limits the environment of a command to [`BASIC_ENVIRONMENT`] and the variables `names`; `None` passes on the whole
/// environment.
pub(super) fn limit_environment(command: &mut Command, names: Option<&[String]>) {
    if let Some(names) = names {
        let given = BASIC_ENVIRONMENT.into_iter().chain(names.iter().map(String::as_str));
        let set = given.filter_map(|name| Some((name, std::env::var_os(name)?))).collect::<Vec<_>>();
        command.env_clear().envs(set);
    }
}

/// A program that computes rewards or runs tools.
#[derive(Debug)]
pub(super) struct UserProgram {
    source: Source,
    purpose: Purpose,
}

#[derive(Debug)]
enum Source {
    /// A command for `sh -c`.
    Shell(String),
    /// The name of a Python function, `FILE.py:NAME` or `MODULE:NAME`.
    Function(String),
}

impl UserProgram {
    /// Creates a program from a shell command.
    ///
    /// # Errors
    /// The command is empty or contains a zero byte.
    pub fn from_shell_command(command_line: &str, purpose: Purpose) -> Result<Self> {
        if command_line.trim().is_empty() || command_line.contains('\0') {
            let what = "is empty or contains a zero byte";
            return Err(Error::usage(purpose.command_flag(), what, "give a command for `sh -c`"));
        }
        Ok(Self { source: Source::Shell(command_line.to_string()), purpose })
    }

    /// Creates a program from a Python function.
    ///
    /// # Errors
    /// The function's file does not exist, or `python3` is not on the path.
    pub fn from_python_function(function: &str, purpose: Purpose) -> Result<Self> {
        let file = function.rsplit_once(':').map(|(file, _)| Path::new(file));
        if let Some(file) = file.filter(|file| file.extension().is_some_and(|end| end == "py") && !file.is_file()) {
            let what = format!("there is no file {}", file.display());
            return Err(Error::usage(purpose.function_flag(), what, "give FILE.py:NAME"));
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&folders).any(|folder| folder.join("python3").is_file()) {
            let what = "needs the program python3, which is in no folder of PATH";
            return Err(Error::usage(purpose.function_flag(), what, "install Python 3.8 or newer"));
        }
        Ok(Self { source: Source::Function(function.to_string()), purpose })
    }

    /// Looks for a Python function without running the code of its module. `environment` limits the environment of the
    /// process that looks ([`limit_environment`]).
    ///
    /// # Errors
    /// Those of [`UserProgram::from_python_function`]; the module does not exist or has a syntax error; it does not
    /// define the function.
    pub fn find_python_function(function: &str, environment: Option<&[String]>) -> Result<()> {
        Self::from_python_function(function, Purpose::Reward)?;
        let mut command = Command::new("python3");
        command.args(["-c", &format!("{WITHOUT_CURRENT_FOLDER}{FIND_SCRIPT}"), function]);
        limit_environment(&mut command, environment);
        // If this fails, the program that computes the rewards fails in the same way and has the better message.
        let Ok(done) = command.stdin(Stdio::null()).output() else { return Ok(()) };
        let found = String::from_utf8_lossy(&done.stdout);
        match found.lines().collect::<Vec<_>>()[..] {
            [what, help] => Err(Error::usage(FUNCTION_FLAG, what, help)),
            _ => Ok(()),
        }
    }

    /// The command line option that specifies the program.
    pub fn flag(&self) -> &'static str {
        match self.source {
            Source::Shell(_) => self.purpose.command_flag(),
            Source::Function(_) => self.purpose.function_flag(),
        }
    }

    /// The shell command, or the name of the Python function, as the option gives it.
    pub fn command_or_function(&self) -> &str {
        match &self.source {
            Source::Shell(text) | Source::Function(text) => text,
        }
    }

    /// Help text of the error if the program has ended.
    pub fn help_after_exit(&self) -> &'static str {
        match self.source {
            Source::Shell(_) => "run the command by hand with one row on its standard input",
            Source::Function(_) => "correct the function; -v or reward.log of the run has the whole traceback",
        }
    }

    /// Returns the command that starts the program.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        match &self.source {
            Source::Shell(line) => command.args(["-c", &format!("{IGNORE_SIGUSR1}{line}")]),
            Source::Function(function) => {
                let script = format!("{IGNORE_SIGUSR1}exec python3 -c \"$0\" \"$1\"");
                command.args(["-c", &script, &format!("{WITHOUT_CURRENT_FOLDER}{SCRIPT}"), function])
            }
        };
        command
    }
}
