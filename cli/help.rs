//! `reel help`: prints the help text of a command.

use anyhow::Result;
use clap::{Args, Command};

use crate::fail::usage_error;
use crate::output;

/// Print the help text of a command, as `reel COMMAND --help` does.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel help sim run")]
pub struct HelpArgs {
    /// Command, such as sft or sim run [default: the list of commands]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl HelpArgs {
    /// Prints the help text; `parser` is the parser of the whole command line.
    pub fn run(&self, parser: &Command) -> Result<()> {
        output::print_text(&help_text(parser, &self.command)?)
    }
}

/// Returns what `reel PATH --help` prints.
fn help_text(parser: &Command, path: &[String]) -> Result<String> {
    refuse_unknown_command(parser, "reel", path)?;
    let words = ["reel"].into_iter().chain(path.iter().map(String::as_str)).chain(["--help"]);
    match parser.clone().try_get_matches_from(words) {
        Err(help) => Ok(help.render().to_string()),
        Ok(_) => Err(usage_error("help", "is not available for this command", "try reel --help")),
    }
}

/// Returns an error if `path` names no subcommand of `parser`; the error lists the available commands. `parent` is
/// the name of the command that `parser` parses.
fn refuse_unknown_command(parser: &Command, parent: &str, path: &[String]) -> Result<()> {
    let Some((name, rest)) = path.split_first() else { return Ok(()) };
    if let Some(inner) = parser.find_subcommand(name) {
        return refuse_unknown_command(inner, &format!("{parent} {name}"), rest);
    }
    let known: Vec<&str> = parser.get_subcommands().map(Command::get_name).collect();
    let help = match known.is_empty() {
        true => format!("{parent} has no subcommands; see {parent} --help"),
        false => format!("give one of {}", known.join(", ")),
    };
    Err(usage_error(name, format!("is not a command of {parent}"), help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_nested_commands() {
        let help = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(ToString::to_string).collect();
            help_text(&crate::cli::command(), &path).map_err(|e| e.to_string())
        };
        assert!(help(&[]).unwrap().contains("Commands:"));
        assert!(help(&["sim", "run"]).unwrap().contains("Usage: reel sim run"));
        let e = help(&["sim", "walk"]).unwrap_err();
        assert!(e.starts_with("walk: is not a command of reel sim; give one of run, mutants"), "{e}");
        assert!(help(&["sft", "x"]).unwrap_err().contains("reel sft has no subcommands; see reel sft --help"));
    }
}
