//! Terms and conditions of `rules.txt`. A term is a value with functions behind it, such as `option.fps~number~or:2`.

use std::collections::BTreeMap;
use std::path::Path;

use reel_samples::rewards::BuiltInReward;
use serde_json::{Map, Value};

use super::state::CommandTranslation;
use super::table::{are_equal_option_values, matches};
use super::words::{GivenOption, shortened};

/// The values by which other programs switch an option off.
pub const OFF: [&str; 7] = ["false", "no", "none", "null", "off", "", "{}"];

/// Returns true if a value switches an option on in Python programs (`true`, `yes`, `1`, …).
pub fn is_python_true(value: &str) -> bool {
    ["true", "yes", "on", "1", "y", "t"].contains(&value.to_ascii_lowercase().as_str())
}

/// Returns true if a value, such as `None` in Python, means that the option is not given.
pub fn is_none_value(value: &str) -> bool {
    ["none", "null", ""].contains(&value.to_ascii_lowercase().as_str())
}

/// What the rows of a rule refer to, beside the command itself.
#[derive(Clone, Default)]
pub struct Scope {
    /// The option that the rule translates.
    pub given: GivenOption,
    /// What messages name instead of that option.
    pub subject: Option<String>,
    /// The item of a list, or the field of an object and its name, for which the rule is done.
    pub item: Option<String>,
    pub key: Option<String>,
    /// The text of the row.
    pub text: &'static str,
    /// The values that `let` has named.
    pub names: BTreeMap<String, String>,
}

impl Scope {
    pub fn new(given: &GivenOption) -> Self {
        Self { given: given.clone(), ..Self::default() }
    }

    /// Returns the option as messages name it.
    pub fn shown(&self) -> String {
        self.subject.clone().unwrap_or_else(|| self.given.text_for_messages())
    }

    /// Returns `template` with the values of its terms. A term without a value is empty text; `{{` is a brace.
    pub fn fill(&self, template: &str, t: &CommandTranslation) -> String {
        let Some((before, rest)) = template.split_once('{') else { return template.to_string() };
        if let Some(rest) = rest.strip_prefix('{') {
            return format!("{before}{{{}", self.fill(rest, t));
        }
        let end = outside_of_braces(rest, &['}']).unwrap_or(rest.len());
        let value = self.term(&rest[..end], t).unwrap_or_default();
        format!("{before}{value}{}", self.fill(rest.get(end + 1..).unwrap_or_default(), t))
    }

    /// Whether the condition holds: `TERM`, `TERM=A,B`, `TERM<TERM`, each with `!` before it for the contrary.
    pub fn holds(&self, condition: &str, t: &CommandTranslation) -> bool {
        if let Some(contrary) = condition.strip_prefix('!') {
            return !self.holds(contrary, t);
        }
        let Some(at) = outside_of_braces(condition, &['=', '<', '>']) else { return self.term(condition, t).is_some() };
        let (term, operator, other) = (&condition[..at], &condition[at..at + 1], &condition[at + 1..]);
        let or_equal = other.starts_with('=');
        let other = self.fill(other.trim_start_matches('='), t);
        let Some(value) = self.term(term, t) else { return false };
        if operator == "=" {
            let equals = if ["name", "key"].contains(&term) { matches } else { are_equal_option_values };
            return value == other || other.split(',').any(|one| equals(one, &value));
        }
        let limit = other.parse().ok().or_else(|| self.term(&other, t)?.parse::<f64>().ok());
        value.parse::<f64>().ok().zip(limit).is_some_and(|(value, limit)| match operator {
            "<" => value < limit || or_equal && value == limit,
            _ => value > limit || or_equal && value == limit,
        })
    }

    /// Returns the value of a term, if it has one.
    pub fn term(&self, term: &str, t: &CommandTranslation) -> Option<String> {
        let mut rest = term;
        let mut value = None;
        let mut is_base = true;
        loop {
            let end = outside_of_braces(rest, &['~']).unwrap_or(rest.len());
            let (function, argument) = rest[..end].split_once(':').unwrap_or((&rest[..end], ""));
            value = match function {
                _ if is_base => self.base(&self.fill(&rest[..end], t), t),
                "shown" => self.shown_of(&self.fill(term.split('~').next()?, t), t),
                "or" => value.or_else(|| Some(self.fill(argument, t)).filter(|text| !text.is_empty())),
                _ => value.and_then(|value| apply(function, &self.fill(argument, t), &value)),
            };
            is_base = false;
            match rest.get(end + 1..) {
                Some(further) => rest = further,
                None => return value,
            }
        }
    }

    /// Returns the value at the start of a term.
    fn base(&self, base: &str, t: &CommandTranslation) -> Option<String> {
        let given = &self.given;
        let when = |holds: bool| holds.then(|| "true".to_string());
        let (kind, name) = base.split_once('.').unwrap_or((base, ""));
        match kind {
            "value" => Some(given.joined_values().unwrap_or_else(|| "true".into())),
            "name" => Some(given.name.clone()),
            "written" => Some(given.written.clone()),
            "shown" => Some(given.text_for_messages()),
            "subject" => Some(self.shown()),
            "several" => when(given.values.len() > 1),
            "first" => given.values.first().cloned(),
            "list" => Some(given.listed_values().join(",")).filter(|list| !list.is_empty()),
            "paths" => when(given.values.iter().all(|v| v.contains('/') || v == "." || Path::new(v).exists())),
            "item" => self.item.clone(),
            "key" => self.key.clone(),
            "text" => Some(self.fill(self.text, t)),
            "option" => t.setting(name).map(|setting| setting.values.join(",")),
            "set" => when(t.is_set(name)),
            "has" => when(t.has_option(name)),
            "part" => t.parts.get(name).map(|(value, _)| value.clone()),
            "rewards" => Some(BuiltInReward::listed_names().collect::<Vec<_>>().join(",")),
            "env" => (t.surroundings.variable)(name),
            "read" => read(t, name).map(|(_, value)| value),
            "command" => Some(t.command.clone()),
            "subcommand" => {
                let path = t.line.path.join(" ");
                Some(path.strip_prefix("plan ").unwrap_or(&path).to_string())
            }
            "program" => Some(t.most_likely_program().to_string()),
            "processes" => Some(t.surroundings.processes.to_string()),
            "foreign" => when(t.is_foreign),
            "underscores" => when(t.has_underscores),
            "stray_path" => t.harmless_values.iter().find(|v| v.contains('/') || Path::new(v).exists()).cloned(),
            _ => self.names.get(base).filter(|value| !value.is_empty()).cloned(),
        }
    }

    /// Returns how the user gave the value at the start of a term.
    fn shown_of(&self, base: &str, t: &CommandTranslation) -> Option<String> {
        match base.split_once('.')? {
            ("option", name) => t.setting(name).map(|setting| setting.shown.clone()),
            ("part", name) => t.parts.get(name).map(|(_, shown)| shown.clone()),
            ("read", pattern) => read(t, pattern).map(|(name, value)| format!("{name}={value}")),
            _ => None,
        }
    }
}

/// Returns the first option of the command whose name matches the pattern, with its value.
fn read<'t>(t: &'t CommandTranslation, pattern: &str) -> Option<(&'t str, String)> {
    let (name, value) = t.read.iter().find(|(name, _)| are_equal_option_values(pattern, name))?;
    Some((name, value.clone().unwrap_or_else(|| "true".into())))
}

/// Returns the position of the first of these characters that is not between braces.
pub fn outside_of_braces(text: &str, wanted: &[char]) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            c if depth == 0 && wanted.contains(&c) => return Some(at),
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Applies a function of a term to its value.
fn apply(function: &str, argument: &str, value: &str) -> Option<String> {
    let when = |holds: bool| holds.then(|| value.to_string());
    let number = value.parse::<f64>().ok();
    let other = argument.parse::<f64>().ok();
    let computed = |compute: fn(f64, f64) -> f64| Some(compute(number?, other?).to_string());
    let items = || value.split(',').filter(|item| !item.is_empty());
    let list = |items: Vec<&str>| Some(items.join(",")).filter(|list| !list.is_empty());
    let is_listed = |item: &&str| argument.split(',').any(|one| are_equal_option_values(one, item));
    let suffixed = |end: char, factor: f64| Some((value.strip_suffix(end)?.parse::<f64>().ok()? * factor).round());
    match function {
        "true" => when(is_python_true(value)),
        "bool" => Some(is_python_true(value).to_string()),
        "not" => Some((value != "true").to_string()),
        "some" => when(!value.is_empty()),
        "text" => serde_json::from_str::<String>(value).ok().or_else(|| when(true)),
        "short" => Some(shortened(value)),
        "number" => number.map(|number| number.to_string()),
        "whole" => when(value.parse::<u64>().is_ok()),
        "floor" => number.map(|number| number.floor().to_string()),
        "inverse" => number.map(|number| (1.0 / number).to_string()),
        "times" => computed(|a, b| a * b),
        "plus" => computed(|a, b| a + b),
        "over" => computed(|a, b| (a / b.max(1.0)).ceil()),
        "mod" => computed(|a, b| a % b),
        "max" => computed(f64::max),
        "tokens" => {
            let scaled = suffixed('k', 1e3).or(suffixed('K', 1024.0)).or(suffixed('m', 1e6));
            let tokens = number.map(f64::round).or(scaled).or(suffixed('M', 1024.0 * 1024.0));
            tokens.map(|tokens| tokens.to_string())
        }
        "strip" => Some(value.trim_end_matches(argument).to_string()),
        "unclosed" => Some(value.trim_end_matches('}').to_string()),
        "before_last" => value.rsplit_once(argument).map(|(before, _)| before.to_string()),
        "after_last" => value.rsplit_once(argument).map(|(_, after)| after.to_string()),
        "before" => value.split_once(argument).map(|(before, _)| before.to_string()),
        "after" => value.split_once(argument).map(|(_, after)| after.to_string()),
        "then" => Some(format!("{value}{argument}")),
        "prefixed" => Some(format!("{argument}{value}")),
        "in" => Path::new(argument).join(value).to_str().map(String::from),
        "word" => value.split([' ', ':']).next().map(String::from),
        "dashes" => Some(value.replace('_', "-")),
        "colons" => Some(value.replace(':', ",")),
        "and" => Some(value.replace(',', " and ")),
        "spaced" => Some(value.replace(',', ", ")),
        "plain" => Some(value.chars().filter(char::is_ascii_alphanumeric).collect()),
        "regex" => when(value.contains(['[', '(', '|', '*', '+', '^', '$', '\\'])),
        "trimmed" => list(items().map(str::trim).filter(|item| !item.is_empty()).collect()),
        "first" => items().next().map(String::from),
        "rest" => value.split_once(',').map(|(_, rest)| rest.to_string()),
        "count" => {
            let array = serde_json::from_str::<Vec<Value>>(value).map(|array| array.len());
            Some(array.unwrap_or_else(|_| items().count()).to_string())
        }
        "contained" => argument.split(',').find(|one| value.contains(one)).map(String::from),
        "with" => list(items().filter(is_listed).collect()),
        "without" => list(items().filter(|item| !is_listed(item)).collect()),
        "dedup" => {
            let mut all: Vec<&str> = items().collect();
            all.dedup();
            list(all)
        }
        // The names in a list of layers, which may be a regular expression.
        "layers" => {
            let names = value.split([',', '|']);
            list(
                names
                    .map(|name| name.trim_matches(|c: char| "()^$.*\\ ".contains(c)))
                    .filter(|n| !n.is_empty())
                    .collect(),
            )
        }
        // The number of frames or the frame rate in a benchmark's name.
        "frames" => value.split('_').find_map(|part| {
            let number = |end: &str| part.strip_suffix(end).filter(|number| number.parse::<f64>().is_ok());
            let frames = number("frame").or(number("frames")).map(|frames| format!("nframes={frames}"));
            frames.or(number("fps").map(|rate| format!("fps={rate}")))
        }),
        // A data set id of a hub, followed by its subsets: `ID:SUBSET/SUBSET`.
        "subsets" => {
            let (id, subsets) = value.rsplit_once(':')?;
            let is_list =
                id.contains('/') && !id.contains(':') && !subsets.is_empty() && subsets.parse::<f64>().is_err();
            let listed: Vec<String> = subsets.split('/').map(|subset| format!("{id}#{subset}")).collect();
            let is_all = subsets == "all" || subsets == "default";
            is_list.then(|| if is_all { id.to_string() } else { listed.join(",") })
        }
        "array" => when(serde_json::from_str::<Vec<Value>>(value).is_ok()),
        "object" => when(serde_json::from_str::<Map<String, Value>>(value).is_ok()),
        "json" | "raw" => {
            let object: Value = serde_json::from_str(value).ok()?;
            let field = object.pointer(&format!("/{argument}")).filter(|field| !field.is_null())?;
            Some(field.as_str().filter(|_| function == "json").map_or_else(|| field.to_string(), String::from))
        }
        "read" => std::fs::read_to_string(value).ok(),
        "path" => when(Path::new(value).exists()),
        "file" => when(Path::new(value).is_file()),
        "folder" => when(Path::new(value).is_dir()),
        "checkpoints" => {
            let mut entries = std::fs::read_dir(value).into_iter().flatten().flatten();
            when(entries.any(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-")))
        }
        _ => {
            debug_assert!(false, "rules.txt has the function {function}, which does not exist");
            None
        }
    }
}
