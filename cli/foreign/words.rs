//! Splits the words of a command line into options with their values, and writes options as words of a command line.

use clap::{Arg, ArgAction, Command};
use reel_train::runs::option_names;

/// An option of a command line or configuration file, which may not be an option of reel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenOption {
    /// The name as a field name: `learning_rate` for `--learning-rate`; the whole key for `data.train_files=…`.
    pub name: String,
    /// The name as the user wrote it, for messages: `--use_vllm`, or `run.yaml: use_vllm`.
    pub written: String,
    /// The values; empty for a switch without a value.
    pub values: Vec<String>,
}

/// A command line, split into the command's name, options and arguments.
#[derive(Debug)]
pub struct CommandLine<'a> {
    /// The words before the command's name: options that all commands share.
    pub before: Vec<String>,
    /// The words of the command's name, such as `bench` and `serve`.
    pub path: Vec<String>,
    /// The parser of the whole command line.
    pub root: &'a Command,
    /// The parser of the subcommand.
    pub command: &'a Command,
    /// The options and their values, in the order of the command line.
    pub given: Vec<GivenOption>,
    /// Arguments that are not options.
    pub arguments: Vec<String>,
}

impl GivenOption {
    /// Returns all values as one text, separated by commas; `None` for a switch without a value.
    pub fn joined_values(&self) -> Option<String> {
        match &self.values[..] {
            [] => None,
            [one] => Some(one.clone()),
            several => {
                let parts = several.iter().map(|value| value.trim_end_matches(',')).filter(|value| !value.is_empty());
                Some(parts.collect::<Vec<_>>().join(","))
            }
        }
    }

    /// Returns the option with its values as messages show it.
    pub fn text_for_messages(&self) -> String {
        match self.joined_values() {
            // API keys, tokens and passwords must not appear in messages.
            Some(_) if ["api_key", "token", "password"].iter().any(|end| self.name.ends_with(end)) => {
                format!("{} …", self.written)
            }
            Some(value) if self.written.contains('.') && !self.written.starts_with("--") => {
                let separator = if self.written.contains(": ") { ": " } else { "=" };
                format!("{}{separator}{}", self.written, shortened(&value))
            }
            Some(value) => format!("{} {}", self.written, shortened(&value)),
            None => self.written.clone(),
        }
    }
}

fn shortened(value: &str) -> String {
    const MAX: usize = 60;
    let mut text: String = value.chars().take(MAX).collect();
    if value.chars().count() > MAX {
        text.push('…');
    }
    text
}

/// Returns true if a word begins an option: `--name`, or one dash and a letter. Negative numbers are not options.
fn is_option(word: &str) -> bool {
    let name = word.trim_start_matches('-');
    word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !["inf", "nan"].contains(&name)
}

/// Returns true if a word is a `key=value` pair of verl or EasyR1, such as `trainer.nnodes=1`.
fn is_nested_key(word: &str) -> bool {
    let Some((key, _)) = word.split_once('=') else { return false };
    let (root, rest) = key.trim_start_matches('+').split_once('.').unwrap_or_default();
    let roots =
        ["data", "actor_rollout_ref", "worker", "algorithm", "trainer", "critic", "reward_model", "model", "optim"];
    roots.contains(&root) && rest.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Returns true if the command trains a model.
fn trains(path: &[String]) -> bool {
    path.first().is_some_and(|name| ["sft", "grpo"].contains(&name.as_str()))
}

/// Returns the letter of an option such as `-v`; `None` for other words.
fn single_letter(word: &str) -> Option<char> {
    let mut letters = word.strip_prefix('-')?.chars();
    letters.next().filter(|letter| letter.is_ascii_alphabetic() && letters.next().is_none())
}

/// Returns true if reel has a one-letter option with this letter (`-v`), in the command or for all commands.
fn has_short_option(root: &Command, command: &Command, letter: char) -> bool {
    let has = |command: &Command| command.get_arguments().any(|argument| argument.get_short() == Some(letter));
    letter == 'h' || letter == 'V' || has(command) || has(root)
}

/// Returns the argument of `command` whose long name, as a field name, is `name`.
pub fn reel_argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| argument.get_long().is_some_and(|long| long.replace('-', "_") == name))
}

/// Returns the maximum number of words that follow an option of reel as its values. Python programs write a list as
/// several words. Therefore the options of training commands, and the server options that may be repeated, take all
/// words up to the next option.
fn max_values(argument: &Arg, path: &[String]) -> usize {
    // VLMEvalKit's --data and --model take several values.
    let names_several = path == ["eval"] && argument.get_long().is_some_and(|long| ["data", "model"].contains(&long));
    let is_repeated = matches!(argument.get_action(), ArgAction::Append);
    match argument.get_action().takes_values() {
        false => 0,
        true if trains(path) || names_several || (is_repeated && path.first().is_some_and(|name| name == "serve")) => {
            usize::MAX
        }
        true => argument.get_num_args().map_or(1, |range| range.max_values()),
    }
}

/// Splits the words of a command line after the program's name. Returns `None` if they name no command, or only a
/// group of commands such as `sim`.
pub fn split_command_line<'a>(root: &'a Command, words: &[String]) -> Option<CommandLine<'a>> {
    let start = words.iter().position(|word| root.find_subcommand(word).is_some())?;
    let (mut command, mut path, mut at) = (root, Vec::new(), start);
    while let Some(inner) = words.get(at).and_then(|word| command.find_subcommand(word)) {
        command = inner;
        path.push(words[at].clone());
        at += 1;
    }
    if command.is_subcommand_required_set() {
        return None;
    }
    let before = words[..start].to_vec();
    let mut line = CommandLine { before, path, root, command, given: Vec::new(), arguments: Vec::new() };
    while at < words.len() {
        let word = &words[at];
        at += 1;
        if word == "--" {
            line.arguments.extend(words[at..].iter().cloned());
            break;
        }
        if !is_option(word) {
            line.arguments.push(word.clone());
            continue;
        }
        let letter = single_letter(word);
        if letter.is_some_and(|letter| has_short_option(root, command, letter)) {
            line.before.push(word.clone());
            continue;
        }
        let (written, joined) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => match word.as_bytes() {
                // A number right after a one-letter option is its value: `-O3`.
                [b'-', letter, rest @ ..]
                    if letter.is_ascii_alphabetic() && !rest.is_empty() && rest.iter().all(u8::is_ascii_digit) =>
                {
                    (&word[..2], Some(word[2..].to_string()))
                }
                _ => (word.as_str(), None),
            },
        };
        let name = option_names::field_name(written);
        let mut values: Vec<String> = joined.into_iter().collect();
        let has_joined_value = !values.is_empty();
        let most = reel_argument(command, &name).map_or(usize::MAX, |argument| max_values(argument, &line.path));
        let is_nested = |next: &str| trains(&line.path) && is_nested_key(next);
        let is_value = |next: &String| !(is_option(next) || is_nested(next));
        while !has_joined_value && values.len() < most && words.get(at).is_some_and(is_value) {
            values.push(words[at].clone());
            at += 1;
        }
        line.given.push(GivenOption { name, written: written.to_string(), values });
    }
    Some(line)
}

/// Returns the words that set an option of reel to these values on a command line.
pub fn option_words(command: &Command, name: &str, values: &[String]) -> Vec<String> {
    let long = format!("--{}", name.replace('_', "-"));
    let argument = reel_argument(command, name);
    let is_switch =
        argument.is_some_and(|argument| matches!(argument.get_action(), ArgAction::SetTrue | ArgAction::Count));
    match values {
        [] => vec![long],
        [value] if is_switch => match value.to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" | "on" => vec![long],
            _ => Vec::new(),
        },
        [value] if value.starts_with('-') => vec![format!("{long}={value}")],
        values => std::iter::once(long).chain(values.iter().cloned()).collect(),
    }
}

/// Quotes a word for a shell if it has special characters.
pub fn quoted_for_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
