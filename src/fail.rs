//! Exit codes, and how errors are printed: one line on stderr, `error: location: what is wrong; what to do`.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use reel_diagnostic::{Diagnostic, escape_controls, redact_urls};
use reel_eval::EvalError;
use reel_measure::MeasureError;
use reel_train::TrainError;

/// An error in the command line: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Makes a [`UsageError`] with the text `location: what; help`; the exit code is 2.
pub fn bad_usage(location: &str, what: impl Display, help: impl Display) -> anyhow::Error {
    UsageError(format!("{location}: {what}; {help}")).into()
}

/// Makes an error with the text `location: what; help` for failed work; the exit code is 1.
pub fn failed(location: impl Display, what: impl Display, help: impl Display) -> anyhow::Error {
    Diagnostic::new(location.to_string(), what.to_string(), help.to_string()).into()
}

/// Installs a panic hook that reports a panic in one line with its source location, as a defect of reel.
pub fn report_panics_in_one_line() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        // A closed stderr (`2>&1 | head`) must not cause a second panic, which would abort the process.
        let _ = writeln!(
            io::stderr(),
            "error: internal: {} (at {location}); this is a defect of reel, please report it with the command",
            one_line(what)
        );
    }));
}

/// Prints the error of a command, if `result` is one, and returns the process's exit code.
pub fn print_error_and_exit_code(result: anyhow::Result<()>, verbose: bool) -> ExitCode {
    let Err(e) = result else { return ExitCode::SUCCESS };
    crate::interrupt::wait_if_ending();
    if closed_pipe(&e) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "error: {}", redact_urls(&one_line(&e.to_string())));
    if verbose {
        for cause in e.chain().skip(1) {
            let _ = writeln!(io::stderr(), "  caused by: {}", redact_urls(&one_line(&cause.to_string())));
        }
    }
    let wrong_options = e.is::<UsageError>()
        || e.downcast_ref::<TrainError>().is_some_and(TrainError::is_usage_error)
        || e.downcast_ref::<EvalError>().is_some_and(EvalError::is_usage_error)
        || e.downcast_ref::<MeasureError>().is_some_and(MeasureError::is_usage_error);
    if wrong_options { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Prints an error of the argument parser in one line. Help and version texts are printed as they are, with exit code
/// 0.
pub fn print_usage_error(e: &clap::Error) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Ignore a failure to print: it only means that the reader has closed the pipe.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return ExitCode::from(2);
    }
    eprintln!("error: {}", redact_urls(&usage_line(&e.render().to_string())));
    ExitCode::from(2)
}

/// Joins clap's paragraphs into one line: what is wrong, the tip if there is one, and which `--help` to read.
fn usage_line(rendered: &str) -> String {
    let mut paragraphs = rendered.split("\n\n").map(one_line);
    let what = paragraphs.next().unwrap_or_default();
    let mut line = what.trim_start_matches("error: ").trim_end_matches(':').to_string();
    let mut help = "try '--help'".to_string();
    for p in paragraphs {
        if let Some(tip) = p.strip_prefix("tip: ") {
            let _ = write!(line, "; {tip}");
        } else if let Some(usage) = p.strip_prefix("Usage: ") {
            let command: Vec<&str> = usage.split(' ').take_while(|w| !w.starts_with(['-', '<', '['])).collect();
            help = format!("try '{} --help'", command.join(" "));
        }
    }
    format!("{line}; {help}")
}

/// Returns the text as one line, with one space between its words and control characters escaped.
pub fn one_line(text: &str) -> String {
    escape_controls(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

/// Returns true if the error is that the reader closed stdout early, as `head` does; such an error is not printed.
fn closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_errors_become_one_line() {
        let unknown = "error: unexpected argument '--hight' found\n\n  tip: a similar argument exists: '--height'\n\nUsage: \
                       reel resize --height <H> --width <W>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(unknown),
            "unexpected argument '--hight' found; a similar argument exists: '--height'; try 'reel resize --help'"
        );
        let missing = "error: the following required arguments were not provided:\n  --height <H>\n  --width <W>\n\nUsage: reel \
                       resize --height <H> --width <W>\n";
        assert_eq!(
            usage_line(missing),
            "the following required arguments were not provided: --height <H> --width <W>; try 'reel resize --help'"
        );
    }
}
