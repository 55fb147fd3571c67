//! Splits the words of a command line into options with their values, and writes options as words of a command line.

use crate::runs::option_names;
use clap::{Arg, ArgAction, Command};
use serde_json::{Value, json};

/// An option of a command line or configuration file, which may not be an option of reel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

    /// Returns the items of an option that has several values, or one value in list syntax (JSON, Python or Hydra's,
    /// whose quotes the shell has removed: `[console,wandb]`).
    pub fn listed_values(&self) -> Vec<String> {
        let parsed =
            |text: &str| serde_json::from_str(text).or_else(|_| serde_json::from_str(&text.replace('\'', "\"")));
        let one = |text: &str| match parsed(text) {
            Ok(Value::Array(items)) => items.iter().map(|v| v.as_str().map_or(v.to_string(), String::from)).collect(),
            _ if text.starts_with('[') && text.ends_with(']') => {
                let items = text[1..text.len() - 1].split(',');
                items.map(|item| item.trim().trim_matches(['"', '\'']).to_string()).collect()
            }
            _ => vec![text.trim_end_matches(',').trim_matches(['"', '\'']).to_string()],
        };
        self.values.iter().flat_map(|text| one(text)).filter(|text| !text.is_empty()).collect()
    }

    /// Returns the option with its values as messages show it. Keys, tokens and passwords do not appear in messages.
    pub fn text_for_messages(&self) -> String {
        let is_secret = ["api_key", "token", "password"].iter().any(|end| self.name.ends_with(end));
        let is_key = self.written.contains('.') && !self.written.starts_with("--");
        match self.joined_values() {
            Some(_) if is_secret => format!("{} …", self.written),
            Some(value) if is_key && self.written.contains(": ") => format!("{}: {}", self.written, shortened(&value)),
            Some(value) if is_key => format!("{}={}", self.written, shortened(&value)),
            Some(value) => format!("{} {}", self.written, shortened(&value)),
            None => self.written.clone(),
        }
    }
}

/// Returns a value as messages show it: at most 60 characters.
pub fn shortened(value: &str) -> String {
    match value.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &value[..at]),
        None => value.to_string(),
    }
}

/// Returns true if a word begins an option: `--name`, or one dash and a letter. Negative numbers are not options.
fn is_option(word: &str) -> bool {
    let name = word.trim_start_matches('-');
    word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !["inf", "nan"].contains(&name)
}

/// Returns true if a text has only characters of nested keys, such as `trainer.nnodes`.
pub fn is_key(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Returns true if a word is a `key=value` pair of verl or EasyR1, such as `trainer.nnodes=1`.
fn is_nested_key(word: &str) -> bool {
    let Some((key, _)) = word.split_once('=') else { return false };
    let (root, rest) = key.trim_start_matches('+').split_once('.').unwrap_or_default();
    let roots = "data actor_rollout_ref worker algorithm trainer critic reward_model model optim";
    roots.split(' ').any(|own| own == root) && is_key(rest)
}

/// Returns true if the command trains a model.
fn trains(path: &[String]) -> bool {
    path.first().is_some_and(|name| ["sft", "grpo"].contains(&name.as_str()))
}

/// Returns true if a word is a one-letter option of reel (`-v`), of the command or of all commands.
fn is_short_option(word: &str, root: &Command, command: &Command) -> bool {
    let &[b'-', letter] = word.as_bytes() else { return false };
    let is = |argument: &Arg| argument.get_short() == Some(char::from(letter));
    b"hV".contains(&letter) || command.get_arguments().any(is) || root.get_arguments().any(is)
}

/// Returns the argument of `command` whose long name, as a field name, is `name`.
pub fn reel_argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| argument.get_long().is_some_and(|long| long.replace('-', "_") == name))
}

/// Returns the maximum number of words that follow an option of reel as its values. Python programs write a list as
/// several words. Therefore the options of training commands, the server options that may be repeated, and
/// VLMEvalKit's --data and --model take all words up to the next option.
fn max_values(argument: &Arg, path: &[String]) -> usize {
    let names_several = path == ["eval"] && argument.get_long().is_some_and(|long| ["data", "model"].contains(&long));
    let is_repeated = matches!(argument.get_action(), ArgAction::Append) && path.first().is_some_and(|p| p == "serve");
    match argument.get_action().takes_values() {
        false => 0,
        true if trains(path) || names_several || is_repeated => usize::MAX,
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
        if is_short_option(word, root, command) {
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
        let most = reel_argument(command, &name).map_or(usize::MAX, |argument| max_values(argument, &line.path));
        let most = if joined.is_some() { 0 } else { most };
        let is_value = |next: &&String| !(is_option(next) || trains(&line.path) && is_nested_key(next));
        let following = words[at..].iter().take(most).take_while(is_value).cloned();
        let values: Vec<String> = joined.iter().cloned().chain(following).collect();
        at += values.len() - usize::from(joined.is_some());
        line.given.push(GivenOption { name, written: written.to_string(), values });
    }
    Some(line)
}

/// Joins vLLM's options with dots in their names, such as `--limit-mm-per-prompt.image 4`, into one option whose
/// value is a JSON object, with the fields that the option itself sets. Of a field that is given twice, the last value
/// counts.
pub fn fold_dotted_options(all_given: Vec<GivenOption>) -> Vec<GivenOption> {
    let mut folded: Vec<GivenOption> = Vec::new();
    for mut given in all_given {
        if let Some((name, path)) = given.name.split_once('.').filter(|_| given.written.starts_with("--")) {
            let text = given.joined_values().unwrap_or_else(|| "true".into());
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            let mut object = path.rsplit('.').fold(value, |value, name| json!({ name: value }));
            let is_same = |earlier: &GivenOption| earlier.name == name && earlier.written.starts_with("--");
            if let Some(earlier) = folded.iter_mut().find(|earlier| is_same(earlier))
                && let Ok(fields @ Value::Object(_)) =
                    serde_json::from_str(&earlier.joined_values().unwrap_or_default())
            {
                object = merged(fields, object);
                earlier.values = vec![object.to_string()];
                continue;
            }
            let written = given.written.split('.').next().unwrap_or_default().to_string();
            given = GivenOption { name: name.into(), written, values: vec![object.to_string()] };
        }
        folded.push(given);
    }
    folded
}

/// Returns `below` with the fields of `above`.
fn merged(below: Value, above: Value) -> Value {
    match (below, above) {
        (Value::Object(mut below), Value::Object(above)) => {
            for (name, value) in above {
                let value = merged(below.get(&name).cloned().unwrap_or_default(), value);
                below.insert(name, value);
            }
            Value::Object(below)
        }
        (_, above) => above,
    }
}

/// Returns the words that set an option of reel to these values on a command line.
pub fn option_words(command: &Command, name: &str, values: &[String]) -> Vec<String> {
    let long = format!("--{}", name.replace('_', "-"));
    let argument = reel_argument(command, name);
    let is_switch = argument.is_some_and(|a| matches!(a.get_action(), ArgAction::SetTrue | ArgAction::Count));
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
