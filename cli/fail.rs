//! Exit codes, and how errors are printed: one line on stderr, `error: location: what is wrong; what to do`.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use reel_support::diagnostic::{Diagnostic, escape_controls, is_panic_caught, redact_urls};
use reel_support::error::Error;
use reel_train::runs::number_kind::{NumberKind, number_kind};
use reel_train::runs::option_names;

/// An error in the command line: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Makes a [`UsageError`] with the text `location: what; help`; the exit code is 2.
pub fn usage_error(location: &str, what: impl Display, help: impl Display) -> anyhow::Error {
    UsageError(format!("{location}: {what}; {help}")).into()
}

/// Makes an error with the text `location: what; help` for failed work; the exit code is 1.
pub fn failed(location: impl Display, what: impl Display, help: impl Display) -> anyhow::Error {
    Diagnostic::new(location.to_string(), what.to_string(), help.to_string()).into()
}

/// Installs a panic hook that reports a panic in one line: as a defect of reel with its source location, or as a lack
/// of threads. The hook prints nothing about a panic that is converted to an error
/// ([`reel_support::diagnostic::catch_panic`]).
pub fn report_panics_in_one_line() {
    std::panic::set_hook(Box::new(|info| {
        if is_panic_caught() {
            return;
        }
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        // A closed stderr (`2>&1 | head`) must not cause a second panic, which would abort the process.
        let _ = writeln!(io::stderr(), "error: {}", describe_panic(what, &location));
    }));
}

/// Returns the error message of a panic. The standard library, Rayon and Tokio panic if a thread cannot be created.
/// That is not a defect of reel, and only the text of the panic identifies it.
fn describe_panic(what: &str, location: &str) -> String {
    const EAGAIN: i32 = 11;
    let contains = |texts: &[&str]| texts.iter().any(|text| what.contains(text));
    let is_of_thread = contains(&["failed to spawn thread", "ThreadPoolBuildError", "OS can't spawn worker thread"]);
    if is_of_thread && contains(&["Os { code: 11,", "(os error 11)"]) {
        let error = io::Error::from_raw_os_error(EAGAIN);
        return Diagnostic::cannot_start_thread("this command", &error).to_string();
    }
    format!(
        "internal: {} (at {location}); this is a defect of reel, please report it with the command",
        escape_to_one_line(what)
    )
}

/// The exit code of a process that has done its work.
const SUCCESS: u8 = 0;
/// The exit code after a failure.
const FAILURE: u8 = 1;
/// The exit code after an error in the command line.
pub const USAGE_ERROR_EXIT_CODE: u8 = 2;
/// The exit code of a process that a signal has stopped is this number plus the number of the signal.
pub const SIGNAL_EXIT_CODE_BASE: u8 = 128;

/// An error that another process of the job has already printed. This process prints nothing and exits with `code`.
#[derive(Debug, thiserror::Error)]
#[error("another process of the command has ended with exit code {code}")]
pub struct ErrorReportedByOtherProcess {
    pub code: u8,
}

/// Runs a command, prints its error, and returns the process's exit code.
pub fn run_and_exit_code(command: impl FnOnce() -> anyhow::Result<()>, verbose: bool) -> u8 {
    // A panic gives the exit code 1, as other failures do; the panic hook has already printed the message.
    catch_unwind(AssertUnwindSafe(command)).map_or(FAILURE, |result| print_error_and_exit_code(result, verbose))
}

fn print_error_and_exit_code(result: anyhow::Result<()>, verbose: bool) -> u8 {
    let Err(e) = result else { return SUCCESS };
    crate::interrupt::block_if_process_is_ending();
    if closed_pipe(&e) {
        return SUCCESS;
    }
    if let Some(ErrorReportedByOtherProcess { code }) = e.downcast_ref() {
        return crate::interrupt::signal_exit_code().unwrap_or(*code);
    }
    let _ = writeln!(io::stderr(), "error: {}", redact_urls(&escape_to_one_line(&e.to_string())));
    if verbose {
        for cause in e.chain().skip(1) {
            let _ = writeln!(io::stderr(), "  caused by: {}", redact_urls(&escape_to_one_line(&cause.to_string())));
        }
    }
    let wrong_options = e.is::<UsageError>()
        || e.is::<reel_sim::kernel_check::InputError>()
        || e.downcast_ref::<Error>().is_some_and(Error::is_usage_error);
    crate::interrupt::signal_exit_code().unwrap_or(if wrong_options { USAGE_ERROR_EXIT_CODE } else { FAILURE })
}

/// Prints an error of the argument parser in one line. Help and version texts are printed as they are, with exit code
/// 0.
pub fn print_usage_error(e: &clap::Error, parser: &Command) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let printed = e.print().context("stdout: cannot be written; check where it is redirected to");
        return ExitCode::from(print_error_and_exit_code(printed, false));
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return ExitCode::from(USAGE_ERROR_EXIT_CODE);
    }
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    reel_support::diagnostic::note!("error: {}", redact_urls(&usage_error_message(e, parser, &words)));
    ExitCode::from(USAGE_ERROR_EXIT_CODE)
}

/// Returns the message of a parser error in the form `location: what; help`. `words` are the words of the command line
/// after the program's name.
pub fn usage_error_message(e: &clap::Error, parser: &Command, words: &[String]) -> String {
    let (command, path) = named_command(parser, words);
    let context = |kind| match e.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (argument, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    let misplaced = misplaced_option_line(parser, command, &path, argument, words);
    let line = match e.kind() {
        ErrorKind::UnknownArgument if misplaced.is_some() => misplaced,
        ErrorKind::UnknownArgument if e.get(ContextKind::Suggested).is_none() => {
            let other = option_of_other_command(parser, &path, argument);
            let line = || unknown_argument_line(command, &path, argument);
            Some(other.unwrap_or_else(line))
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            Some(format!("{}: has no value; give one after it", option_name(argument)))
        }
        ErrorKind::InvalidValue => {
            let Some(ContextValue::Strings(known)) = e.get(ContextKind::ValidValue) else {
                return joined_paragraphs(e);
            };
            let similar = match context(ContextKind::SuggestedValue) {
                "" => String::new(),
                similar => format!(" (did you mean {similar}?)"),
            };
            let name = option_name(argument);
            Some(format!("{name}: {value:?} is not a possible value; give one of {}{similar}", known.join(", ")))
        }
        ErrorKind::InvalidSubcommand if command_for(context(ContextKind::InvalidSubcommand)).is_some() => {
            let name = context(ContextKind::InvalidSubcommand);
            let advice = command_for(name).unwrap_or_default();
            Some(format!("{name}: is not a command of {path}; {advice} (see 'reel --help')"))
        }
        ErrorKind::InvalidSubcommand => {
            let similar = match e.get(ContextKind::SuggestedSubcommand) {
                Some(ContextValue::Strings(names)) => format!("did you mean {}? ", names.join(" or ")),
                _ => String::new(),
            };
            let name = context(ContextKind::InvalidSubcommand);
            Some(format!("{name}: is not a command of {path}; {similar}see '{path} --help'"))
        }
        ErrorKind::MissingRequiredArgument => match e.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => Some(missing_arguments_line(missing, &path)),
            _ => None,
        },
        ErrorKind::ArgumentConflict if !argument.is_empty() => {
            let other = match e.get(ContextKind::PriorArg) {
                Some(ContextValue::String(other)) => option_name(other).to_string(),
                Some(ContextValue::Strings(others)) => {
                    others.iter().map(|other| option_name(other)).collect::<Vec<_>>().join(", ")
                }
                _ => return joined_paragraphs(e),
            };
            let name = option_name(argument);
            Some(match other == name {
                true => format!("{name}: is given more than once; give it once"),
                false => format!("{name}: cannot be used with {other}; remove one of them"),
            })
        }
        ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            let number = |kind| match e.get(kind) {
                Some(ContextValue::Number(number)) => *number,
                _ => 0,
            };
            let least = number(ContextKind::ExpectedNumValues).max(number(ContextKind::MinValues));
            let given = number(ContextKind::ActualNumValues);
            let name = option_name(argument);
            Some(format!("{name}: has {given} of {least} values; give {least} after it (see '{path} --help')"))
        }
        ErrorKind::TooManyValues => {
            Some(format!("{}: has the value {value:?}, and takes none; remove it", option_name(argument)))
        }
        ErrorKind::MissingSubcommand => {
            let names: Vec<&str> = command.get_subcommands().map(Command::get_name).filter(|n| *n != "help").collect();
            Some(format!("{path}: needs the name of a command; give one of {}", names.join(", ")))
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(e).map(ToString::to_string).unwrap_or_default();
            let (what, help) = invalid_value_text(number_kind_of(command, option_name(argument)), value, &reason);
            Some(format!("{}: {what}; {help}", option_name(argument)))
        }
        _ => None,
    };
    line.map_or_else(|| joined_paragraphs(e), |line| escape_to_one_line(&line))
}

/// Returns the command of reel that does the work of a command of other programs, such as `sft` for `train`.
fn command_for(name: &str) -> Option<&'static str> {
    Some(match name {
        "train" | "finetune" | "fine-tune" | "fit" => "use sft or grpo",
        "dpo" | "ppo" | "rl" | "rlhf" => "use grpo for reinforcement learning from rewards",
        "chat" | "infer" | "inference" | "predict" | "run" | "complete" => "use generate",
        "evaluate" => "use eval",
        "export" | "merge-lora" | "merge_and_unload" => "use merge",
        "server" | "api" => "use serve",
        "benchmark" | "loadgen" | "load-test" => "use bench; bench serve measures a server",
        "env" | "info" | "status" => "use doctor",
        "version" => "use --version",
        _ => return None,
    })
}

/// Returns the message about an option of `reel grpo` that is given to `reel sft`, or the other way around.
fn option_of_other_command(parser: &Command, path: &str, argument: &str) -> Option<String> {
    let name = option_names::field_name(argument);
    let other = match path {
        "reel sft" => "grpo",
        "reel grpo" => "sft",
        _ => return None,
    };
    let command = parser.find_subcommand(other)?;
    let has = command.get_arguments().filter_map(|a| a.get_long()).any(|long| long.replace('-', "_") == name);
    has.then(|| format!("{argument}: is an option of reel {other}, not of {path}; leave it out"))
}

/// Returns the parser of the subcommand that the words name, and its full name, such as `reel sim run`.
fn named_command<'p>(parser: &'p Command, words: &[String]) -> (&'p Command, String) {
    words.iter().fold((parser, "reel".to_string()), |(command, path), word| match command.find_subcommand(word) {
        Some(inner) => (inner, format!("{path} {word}")),
        None => (command, path),
    })
}

/// Returns the message about an option of `command` that is given before the command's name, such as `--model` in `reel
/// --model tiny sft`. `path` is the full name of the command.
fn misplaced_option_line(
    parser: &Command,
    command: &Command,
    path: &str,
    argument: &str,
    words: &[String],
) -> Option<String> {
    let name = argument.split(['=', ' ']).next().unwrap_or(argument);
    let long = name.strip_prefix("--")?;
    let own = |a: &clap::Arg| a.get_long() == Some(long) || a.get_all_aliases().is_some_and(|all| all.contains(&long));
    let at = words.iter().position(|word| word.split('=').next() == Some(name))?;
    let is_before = named_command(parser, &words[..at]).1 != path;
    (is_before && command.get_arguments().any(own))
        .then(|| format!("{name}: is an option of {path}; give it after the name of the command: {path} {name} …"))
}

/// Returns the name in the parser's text for an option, such as `--out` in `--out <DIR>`.
fn option_name(argument: &str) -> &str {
    argument.split([' ', '[']).next().unwrap_or(argument)
}

fn number_kind_of(command: &Command, option: &str) -> Option<NumberKind> {
    let long = option.strip_prefix("--")?;
    let argument = command.get_arguments().find(|a| a.get_long() == Some(long))?;
    number_kind(argument.get_value_parser())
}

/// Returns the message about an option that a command does not have. The message suggests a similar option.
fn unknown_argument_line(command: &Command, path: &str, argument: &str) -> String {
    if !argument.starts_with("--") {
        let what = if argument.starts_with('-') { "is not an option of" } else { "is not an argument of" };
        return format!("{argument}: {what} {path}; see '{path} --help'");
    }
    let longs: Vec<String> = command.get_arguments().filter_map(|a| Some(a.get_long()?.replace('-', "_"))).collect();
    match option_names::most_similar_option(&option_names::field_name(argument), longs.iter().map(String::as_str)) {
        None => format!("{argument}: is not an option of {path}; see '{path} --help'"),
        Some(similar) => {
            format!("{argument}: is not an option of {path}; did you mean --{}?", similar.replace('_', "-"))
        }
    }
}

/// Returns the message about required arguments that are not given, such as `--out <DIR>`.
fn missing_arguments_line(missing: &[String], path: &str) -> String {
    let names: Vec<&str> = missing.iter().map(|argument| option_name(argument)).collect();
    let are = if names.len() == 1 { "is" } else { "are" };
    format!("{}: {are} missing; give {} (see '{path} --help')", names.join(", "), missing.join(" "))
}

/// Returns what is wrong with an option's value, and what to do. `reason` is the error of the value's parser.
fn invalid_value_text(kind: Option<NumberKind>, value: &str, reason: &str) -> (String, String) {
    let number = value.parse::<f64>().ok();
    let range = reason.split_once(" is not in ").map(|(_, range)| range);
    match (kind, range) {
        (Some(_), Some(range)) => {
            let range = range.replace("..=", " to ");
            // The parser prints a range without an upper end with the largest number of the type; this suffix is
            // removed.
            let ends = ["..".to_string(), format!("..{}", i64::MAX), format!(" to {}", u32::MAX)];
            let largest = range.rsplit_once(['.', ' ']).and_then(|(_, end)| end.parse::<f64>().ok());
            let is_above = number.zip(largest).is_some_and(|(number, largest)| number > largest);
            let help = match ends.iter().find_map(|end| range.strip_suffix(end)).filter(|_| !is_above) {
                Some(least) => format!("give {least} or more"),
                None => format!("give {range}"),
            };
            (format!("is {value}"), help)
        }
        (Some(NumberKind::Unsigned), None) if number.is_some_and(|x| x < 0.0) => {
            (format!("is {value}, a negative number"), "give a whole number that is not negative".into())
        }
        (Some(NumberKind::Unsigned | NumberKind::Signed), None) => match value.parse::<i128>() {
            Ok(_) => (format!("is {value}, which is out of range"), "give a number closer to 0".into()),
            Err(_) => (format!("is {value:?}, which is not a whole number"), "give a whole number".into()),
        },
        (Some(NumberKind::Float), None) if number.is_some() => (format!("is {value}"), reason.to_string()),
        (Some(NumberKind::Float), None) => {
            (format!("is {value:?}, which is not a number"), "give a number, such as 0.5 or 1e-6".into())
        }
        (None, _) if value.is_empty() => ("is empty".into(), reason.to_string()),
        (None, _) if reason == "value was not a boolean" => (format!("is {value:?}"), "give true or false".into()),
        (None, _) => (format!("is {value:?}"), reason.to_string()),
    }
}

/// Joins the paragraphs of the parser's own text into one line: what is wrong, the tip if there is one, and which
/// `--help` to read.
fn joined_paragraphs(e: &clap::Error) -> String {
    let rendered = e.render().to_string();
    let mut paragraphs = rendered.split("\n\n").map(escape_to_one_line);
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
pub fn escape_to_one_line(text: &str) -> String {
    escape_controls(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

/// Returns true if the error is a write to a closed stdout, which a reader such as `head` causes. This error is not
/// printed.
fn closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn message(line: &str) -> String {
        let parser = crate::cli::command();
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let all = ["reel"].into_iter().chain(words.iter().map(String::as_str)).map(OsString::from);
        let e = parser.clone().try_get_matches_from(crate::arguments::join_negative_numbers(all)).expect_err(line);
        usage_error_message(&e, &parser, &words)
    }

    /// [`the_panic_hook_prints_each_panic_once`] runs this test in its own process, because a process has only one
    /// panic hook.
    #[test]
    #[ignore = "another test runs it"]
    fn panics_for_the_hook() {
        report_panics_in_one_line();
        assert_eq!(reel_support::diagnostic::catch_panic(|| panic!("caught")), Err::<(), _>("caught".into()));
        std::thread::spawn(|| panic!("a thread's")).join().expect_err("it panics");
    }

    /// Runs an ignored test of this module in its own process and returns the process's output.
    fn run_in_process(test: &str) -> std::process::Output {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        let name = format!("fail::tests::{test}");
        child.args(["--exact", &name, "--ignored", "--nocapture"]).output().expect("it starts")
    }

    /// The test [`a_panic_of_the_engine_of_a_server_ends_the_process_with_code_1`] runs this test in a process of its
    /// own. It does what `main` does when the engine's thread panics: `reel_serve::serve` returns this error.
    #[test]
    #[ignore = "another test runs it"]
    fn panics_as_the_engine_of_a_server() {
        report_panics_in_one_line();
        let command = || {
            let engine = std::thread::spawn(|| panic!("a step failed"));
            Ok(engine.join().map_err(|_| reel_serve::ServeError::EnginePanicked)?)
        };
        std::process::exit(run_and_exit_code(command, false).into());
    }

    #[test]
    fn a_panic_of_the_engine_of_a_server_ends_the_process_with_code_1() {
        let done = run_in_process("panics_as_the_engine_of_a_server");
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{stderr}");
        let [panic, error] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
        assert!(panic.starts_with("error: internal: a step failed (at "), "{stderr}");
        let wanted =
            "error: engine: its thread has panicked; requests were answered with errors; start the server again";
        assert_eq!(error, wanted);
    }

    #[test]
    fn a_lack_of_threads_is_no_defect() {
        let os = "Os { code: 11, kind: WouldBlock, message: \"Resource temporarily unavailable\" }";
        for text in [
            format!("failed to spawn thread: {os}"),
            format!("The global thread pool has not been initialized.: ThreadPoolBuildError {{ kind: IOError({os}) }}"),
            "OS can't spawn worker thread: Resource temporarily unavailable (os error 11)".to_string(),
        ] {
            let said = describe_panic(&text, "a.rs:1");
            assert!(said.starts_with("this command: a thread cannot be created: "), "{said}");
            assert!(said.contains("ulimit -u") && !said.contains("defect"), "{said}");
        }
        let said = describe_panic("failed to spawn thread: Os { code: 1, kind: PermissionDenied }", "a.rs:1");
        assert!(said.starts_with("internal: failed to spawn thread") && said.contains("(at a.rs:1)"), "{said}");
    }

    #[test]
    fn the_panic_hook_prints_each_panic_once() {
        let done = run_in_process("panics_for_the_hook");
        let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].starts_with("error: internal: a thread's (at "), "{stderr}");
        assert!(!stderr.contains("caught"), "{stderr}");
    }

    #[test]
    fn parser_errors_name_location_problem_and_help() {
        for (line, wanted) in [
            ("resize --hight 3", "--hight: is not an option of reel resize; did you mean --height?"),
            ("resize --height x --width 3", "--height: is \"x\", which is not a whole number; give a whole number"),
            ("sft --save-steps -1", "--save-steps: is -1, a negative number; give a whole number that is not negative"),
            (
                "sft --learning-rate x",
                "--learning-rate: is \"x\", which is not a number; give a number, such as 0.5 or 1e-6",
            ),
            ("demo --seeds 0", "--seeds: is 0; give 1 to 1000"),
            ("demo --steps 0", "--steps: is 0; give 1 or more"),
            ("serve --model m --request-timeout 0", "--request-timeout: is 0; give 1 or more"),
            ("sim run k.ptx --gird 1", "--gird: is not an option of reel sim run; did you mean --grid?"),
            (
                "--model tiny sft",
                "--model: is an option of reel sft; give it after the name of the command: reel sft --model …",
            ),
            (
                "--max_steps=3 sft --model m",
                "--max_steps: is an option of reel sft; give it after the name of the command: reel sft --max_steps …",
            ),
            (
                "bench --model m train",
                "--model: is an option of reel bench train; give it after the name of the command: reel bench train --model …",
            ),
            ("--packing grpo", "--packing: is an option of reel sft, not of reel grpo; leave it out"),
            ("resize 7", "7: is not an argument of reel resize; see 'reel resize --help'"),
            ("resize --height 3", "--width: is missing; give --width <W> (see 'reel resize --help')"),
            (
                "reward",
                "--input, --output: are missing; give --input <R.jsonl> --output <O.jsonl> (see 'reel reward --help')",
            ),
            ("sft --learning-rate", "--learning-rate: has no value; give one after it"),
            ("train", "train: is not a command of reel; use sft or grpo (see 'reel --help')"),
            ("server", "server: is not a command of reel; use serve (see 'reel --help')"),
            ("sft --num_generations 4", "--num_generations: is an option of reel grpo, not of reel sft; leave it out"),
            ("grpo --packing", "--packing: is an option of reel sft, not of reel grpo; leave it out"),
            ("gneerate", "gneerate: is not a command of reel; did you mean generate? see 'reel --help'"),
        ] {
            assert_eq!(message(line), wanted, "{line}");
        }
        let wrong_name = message("grpo --loss-type grppo");
        assert!(
            wrong_name.starts_with("--loss-type: \"grppo\" is not a possible value; ")
                && wrong_name.contains("did you mean grpo?"),
            "{wrong_name}"
        );
        assert!(
            message("sim run k.ptx --grid x --block 1").starts_with("--grid: is \"x\"; give one to three integers")
        );
    }
}
