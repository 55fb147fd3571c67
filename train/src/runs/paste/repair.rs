//! Checks a translated command as reel itself would, and collects all errors about values and combinations of
//! options, so that one message shows them all. The corrected command leaves out each refused option; a missing
//! option gets a placeholder.

use crate::error::Error;
use crate::options::{GrpoOptions, SftOptions, TrainingOptions};
use crate::runs::option_names;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, FromArgMatches};

use super::state::CommandTranslation;

/// Maximum number of errors of one command that are collected.
const MAX_PROBLEMS: usize = 40;

/// Parses and validates the command as reel would. After each error, changes the command so that the error does not
/// occur again, until reel accepts the command.
pub fn repair_until_accepted(t: &mut CommandTranslation, root: &Command) {
    for _ in 0..MAX_PROBLEMS {
        let words: Vec<String> = std::iter::once("reel".to_string()).chain(t.translated_words()).collect();
        let mended = match root.clone().try_get_matches_from(&words) {
            Err(e) => mend_usage(t, &e, &(t.surroundings.usage_error)(&e, root, &words[1..])),
            Ok(matches) => validation_error(t, &matches).is_some_and(|line| mend_option(t, &line)),
        };
        if !mended {
            return;
        }
    }
}

/// Divides an error message into its location, what is wrong, and what to do.
fn message_parts(line: &str) -> (&str, &str, &str) {
    let (location, rest) = line.split_once(": ").unwrap_or(("", line));
    let (what, help) = rest.split_once("; ").unwrap_or((rest, "see --help"));
    (location, what, help)
}

/// Corrects the command after an error of the argument parser, whose message is `line`. Returns false if the error
/// names no option of the command.
fn mend_usage(t: &mut CommandTranslation, e: &clap::Error, line: &str) -> bool {
    let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
        (e.kind(), e.get(ContextKind::InvalidArg))
    else {
        return mend_option(t, line);
    };
    let mut mended = false;
    for argument in missing {
        let (option, placeholder) = argument.split_once(' ').unwrap_or((argument, ""));
        let name = option_names::field_name(option);
        if option.starts_with("--") && !t.is_set(&name) {
            let help = "give the value in place of the placeholder in the command below";
            t.refuse_option(option, "is missing", help);
            t.add_option(&name, vec![placeholder.trim_matches(['<', '>', '[', ']']).to_string()], option);
            mended = true;
        }
    }
    mended
}

/// Removes the option that an error message names and records the error. If the option is missing, adds it with a
/// placeholder; if the command does not set it, removes the other option that the message names.
fn mend_option(t: &mut CommandTranslation, line: &str) -> bool {
    let (location, what, help) = message_parts(line);
    let Some(option) = location.split([' ', ',']).next().filter(|option| option.starts_with("--")) else {
        return false;
    };
    let name = option_names::field_name(option);
    let shown = t.setting(&name).map(|setting| setting.shown.clone());
    let is_small = t.option_value(&name).and_then(|value| value.parse::<f64>().ok()).is_some_and(|number| number < 2.0);
    let value = match name.as_str() {
        "data" if what == "is missing" => "DATA",
        "out" if what == "is missing" => "OUT",
        _ if what == "is missing" => "MODEL",
        // The smallest group has two completions. The option is not removed, because the batch size must be a multiple
        // of the group.
        "num_generations" if is_small => "2",
        "per_device_train_batch_size" if shown.is_none() => {
            &t.option_value("num_generations").unwrap_or("8").to_string()
        }
        _ => "",
    };
    if !value.is_empty() {
        let shown = shown.filter(|_| what != "is missing").unwrap_or_else(|| option.to_string());
        t.refuse_option(&shown, what, help);
        t.replace_option(&name, value, option);
        return true;
    }
    if let Some(removed) = t.remove_option(&name) {
        t.refuse_option(&removed.shown, what, help);
        return true;
    }
    // The error message names both options of a pair that contradict each other.
    let text = format!("{what} {help}");
    let mut others = text.split([' ', ',', '.']).filter(|word| word.starts_with("--")).map(option_names::field_name);
    let Some(removed) = others.find_map(|other| t.remove_option(&other)) else { return false };
    t.refuse_option(&removed.shown, &format!("{option} {what}"), help);
    true
}

/// Returns the first validation error of a training command's options.
fn validation_error(t: &CommandTranslation, matches: &ArgMatches) -> Option<String> {
    let [name] = &t.line.path[..] else { return None };
    let matches = matches.subcommand_matches(name)?;
    let error = match t.command.as_str() {
        "sft" => check(t, &SftOptions::from_arg_matches(matches).ok()?),
        "grpo" => check(t, &GrpoOptions::from_arg_matches(matches).ok()?),
        _ => None,
    }?;
    Some(error.to_string()).filter(|line| line.contains(": "))
}

fn check<O: TrainingOptions>(t: &CommandTranslation, options: &O) -> Option<Error> {
    // The configuration file may set the missing options and change the other ones, so the options alone cannot be
    // checked.
    if t.is_set("config") { None } else { options.validate().err() }
}
