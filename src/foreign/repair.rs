//! Finds what reel refuses about the values and combinations of a translated command, so that one message has it all.
//! Each problem is mended in the corrected command: the option is left out, or a missing one gets a placeholder.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, FromArgMatches};
use reel_runs::option_names;
use reel_train::TrainError;
use reel_train::options::{GrpoOptions, SftOptions, TrainingOptions};

use super::translation::{RefusedOption, Translation};
use crate::fail;

/// The most problems of one command that are looked for.
const MAX_PROBLEMS: usize = 40;

/// Parses the command as reel would, and mends it until it is accepted.
pub fn repair_until_accepted(t: &mut Translation, root: &Command) {
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

/// Mends an error of the parser. False if the error names no option that the command has.
fn mend_usage(t: &mut Translation, e: &clap::Error, root: &Command, words: &[String]) -> bool {
    let line = fail::usage_line(e, root, words.iter().cloned());
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

/// Leaves an option out, and keeps what is wrong with it. A missing option gets a placeholder.
fn mend_option(t: &mut Translation, location: &str, what: &str, help: &str) -> bool {
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
    // A group of one becomes the smallest one: the batch consists of whole groups.
    if name == "num_generations" && t.number_of(&name).is_some_and(|n| n < 2.0) {
        let shown = t.settings.iter().find(|setting| setting.name == name).map(|setting| setting.shown.clone());
        t.refuse_option(&shown.unwrap_or_default(), what, help);
        t.replace_option(&name, "2", option);
        return true;
    }
    let Some(removed) = t.remove_option(&name) else { return mend_by_combination(t, &name, option, what, help) };
    t.problems.push(RefusedOption { shown: removed.shown, what: what.into(), help: help.into() });
    true
}

/// An error about an option that is not given has its cause in another option.
fn mend_by_combination(t: &mut Translation, name: &str, option: &str, what: &str, help: &str) -> bool {
    let group = t.value_of("num_generations").unwrap_or("8").to_string();
    match name {
        "per_device_train_batch_size" => {
            t.refuse_option(option, what, help);
            t.replace_option(name, &group, option);
            true
        }
        _ => {
            // The other option of the pair, which the message names.
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

/// The first error of the values of a training command's options: where, what is wrong, and what to do.
fn validation_error(t: &Translation, matches: &ArgMatches) -> Option<(String, String, String)> {
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

fn check<O: TrainingOptions>(t: &Translation, options: &O) -> Option<TrainError> {
    // A configuration file may have the options that are missing here, and may change the others.
    if t.is_set("config") {
        return None;
    }
    options.validate().err()
}
