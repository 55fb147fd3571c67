//! How a run ends: exit codes, and errors as one line on stderr.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;

/// A mistake in the command line itself: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A [`Usage`] error as `field: what; cure`.
pub fn bad_usage(field: &str, what: impl std::fmt::Display, cure: impl std::fmt::Display) -> anyhow::Error {
    Usage(format!("{field}: {what}; {cure}")).into()
}

/// A failure of the work as `field: what; cure`: exit code 1.
pub fn failed(
    field: impl std::fmt::Display,
    what: impl std::fmt::Display,
    cure: impl std::fmt::Display,
) -> anyhow::Error {
    anyhow::anyhow!("{field}: {what}; {cure}")
}

/// A panic is a defect: it is reported in one line, with the place, and never with a backtrace.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        eprintln!(
            "error: internal: {} (at {place}); this is a defect of reel, please report it with the command",
            one_line(what)
        );
    }));
}

/// The exit code of a run, after printing its error.
pub fn exit(result: anyhow::Result<()>, verbose: bool) -> ExitCode {
    let Err(e) = result else { return ExitCode::SUCCESS };
    crate::interrupt::give_way();
    if closed_pipe(&e) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", one_line(&e.to_string()));
    if verbose {
        for cause in e.chain().skip(1) {
            eprintln!("  caused by: {}", one_line(&cause.to_string()));
        }
    }
    if e.is::<Usage>() || crate::training::is_usage(&e) || crate::eval::is_usage(&e) {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

/// What clap says about a command line, in our form. Help and version are no errors.
pub fn usage(e: &clap::Error) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that closes the pipe has seen enough.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return ExitCode::from(2);
    }
    eprintln!("error: {}", usage_line(&e.render().to_string()));
    ExitCode::from(2)
}

/// Folds clap's paragraphs into one line: what is wrong, its tip if it has one, and where to look.
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

/// Text on one line, whatever was in it.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the reader of our output went away, as `head` does: not worth a message.
fn closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_errors_fold_into_one_line() {
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
