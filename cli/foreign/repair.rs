//! Checks a translated command as reel itself would, and collects all errors about values and combinations of
//! options, so that one message shows them all. The corrected command leaves out each refused option; a missing
//! option gets a placeholder.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, FromArgMatches};
use reel_train::TrainError;
use reel_train::options::{GrpoOptions, SftOptions, TrainingOptions};
use reel_train::runs::option_names;

use super::translation::{CommandTranslation, RefusedOption};
use crate::fail;

/// Maximum number of errors of one command that are collected.
const MAX_PROBLEMS: usize = 40;

/// Parses and validates the command as reel would. After each error, changes the command so that the error does not
/// occur again, until reel accepts the command.
pub fn repair_until_accepted(t: &mut CommandTranslation, root: &Command) {
    for _ in 0..MAX_PROBLEMS {
        let words: Vec<String> = std::iter::once("reel".to_string()).chain(t.translated_words()).collect();
        let mended = match root.clone().try_get_matches_from(&words) {
            Err(e) => mend_usage(t, &e, root, &words[1..]),
            Ok(matches) => match validation_error(t, &matches) {
                Some((location, what, help)) => mend_option(t, &location, &what, &help),
                None => return,
            },
        };
        if !mended {
            return;
        }
    }
}

/// Corrects the command after an error of the argument parser. Returns false if the error names no option of the
/// command.
fn mend_usage(t: &mut CommandTranslation, e: &clap::Error, root: &Command, words: &[String]) -> bool {
    let line = fail::usage_error_message(e, root, words);
    let (location, rest) = line.split_once(": ").unwrap_or(("", &line));
    let (what, help) = rest.split_once("; ").unwrap_or((rest, "see --help"));
    match (e.kind(), e.get(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => {
            let mut mended = false;
            for argument in missing {
                let (option, placeholder) = argument.split_once(' ').unwrap_or((argument, ""));
                let name = option_names::field_name(option);
                if option.starts_with("--") && !t.is_set(&name) {
                    let placeholder = placeholder.trim_matches(['<', '>', '[', ']']);
                    t.refuse_option(
                        option,
                        "is missing",
                        "give the value in place of the placeholder in the command below",
                    );
                    t.add_option(&name, vec![placeholder.to_string()], option);
                    mended = true;
                }
            }
            mended
        }
        _ => mend_option(t, location, what, help),
    }
}

/// Removes the option that an error names and records the error. If the option is missing, adds it with a
/// placeholder.
fn mend_option(t: &mut CommandTranslation, location: &str, what: &str, help: &str) -> bool {
    let Some(option) = location.split([' ', ',']).next().filter(|option| option.starts_with("--")) else {
        return false;
    };
    let name = option_names::field_name(option);
    if what == "is missing" {
        let placeholder = if name == "data" { "DATA" } else { "MODEL" };
        let placeholder = if name == "out" { "OUT" } else { placeholder };
        t.refuse_option(option, what, help);
        t.replace_option(&name, placeholder, option);
        return true;
    }
    // The smallest group has two completions. The option is not removed, because the batch size must be a multiple of
    // the group.
    if name == "num_generations" && t.option_number(&name).is_some_and(|n| n < 2.0) {
        let shown = t.settings.iter().find(|setting| setting.name == name).map(|setting| setting.shown.clone());
        t.refuse_option(&shown.unwrap_or_default(), what, help);
        t.replace_option(&name, "2", option);
        return true;
    }
    let Some(removed) = t.remove_option(&name) else { return mend_by_combination(t, &name, option, what, help) };
    t.problems.push(RefusedOption { shown: removed.shown, what: what.into(), help: help.into() });
    true
}

/// Corrects an error about an option that the command does not set: removes the other option that causes the error.
fn mend_by_combination(t: &mut CommandTranslation, name: &str, option: &str, what: &str, help: &str) -> bool {
    let group = t.option_value("num_generations").unwrap_or("8").to_string();
    match name {
        "per_device_train_batch_size" => {
            t.refuse_option(option, what, help);
            t.replace_option(name, &group, option);
            true
        }
        _ => {
            // The error message names both options of a pair that contradict each other.
            let text = format!("{what} {help}");
            let others: Vec<String> = text
                .split([' ', ',', '.'])
                .filter(|word| word.starts_with("--"))
                .map(option_names::field_name)
                .collect();
            let Some(removed) = others.iter().find_map(|other| t.remove_option(other)) else { return false };
            t.problems.push(RefusedOption {
                shown: removed.shown,
                what: format!("{option} {what}"),
                help: help.into(),
            });
            true
        }
    }
}

/// Returns the first validation error of a training command's options: the location, what is wrong, and how to
/// correct it.
fn validation_error(t: &CommandTranslation, matches: &ArgMatches) -> Option<(String, String, String)> {
    let mut inner = matches;
    for name in &t.line.path {
        inner = inner.subcommand_matches(name)?;
    }
    if t.line.path.len() != 1 {
        return None;
    }
    let error = match t.command.as_str() {
        "sft" => check(t, &SftOptions::from_arg_matches(inner).ok()?),
        "grpo" => check(t, &GrpoOptions::from_arg_matches(inner).ok()?),
        _ => None,
    }?;
    let line = error.to_string();
    let (location, rest) = line.split_once(": ")?;
    let (what, help) = rest.split_once("; ").unwrap_or((rest, "see --help"));
    Some((location.to_string(), what.to_string(), help.to_string()))
}

fn check<O: TrainingOptions>(t: &CommandTranslation, options: &O) -> Option<TrainError> {
    // The configuration file may set the missing options and change the other ones, so the options alone cannot be
    // checked.
    if t.is_set("config") {
        return None;
    }
    options.validate().err()
}
