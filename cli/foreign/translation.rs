//! Translates the options of a command line and of its configuration file into options of reel, by the rows of the
//! option table.

use std::collections::BTreeMap;

use clap::{ArgAction, Command};
use reel_train::runs::foreign_options::{self, OptionClass, OptionRow};
use reel_train::runs::option_names;

use super::words::{CommandLine, GivenOption, option_words, reel_argument};
use super::{CommandEnvironment, config, rules, rules_serve, rules_train};
use crate::number_kind::number_kind;

/// An option of reel with the values that the command gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionSetting {
    /// The name of the option as a field name, such as `learning_rate`.
    pub name: String,
    /// The values of the option; empty for a switch.
    pub values: Vec<String>,
    /// The option as the user gave it, for messages.
    pub shown: String,
}

/// An option of the command that reel refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedOption {
    /// The option as the user gave it.
    pub shown: String,
    /// What is wrong with the option.
    pub what: String,
    /// What the user can do instead.
    pub help: String,
}

/// A value that `totals` combines with others after all options are read, with the option as the user gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartValue {
    pub value: String,
    pub shown: String,
}

/// Whether a part of the model is frozen, with the option that says so, for a message; `None` if no option does.
pub type FrozenPart = Option<(bool, String)>;

/// What all options together say about the weights that are trained.
#[derive(Clone, Debug, Default)]
pub struct TrainedWeights {
    /// Whether an option switches LoRA on or off; `None` if no option does.
    pub lora: Option<bool>,
    pub tower: FrozenPart,
    pub merger: FrozenPart,
    pub decoder: FrozenPart,
}

impl TrainedWeights {
    /// Fills the fields that are not set from `below`, the settings with lower priority. Adds to `lost` the options
    /// of `below` that are overridden by different values.
    pub fn with_fallback(self, below: Self, lost: &mut Vec<String>) -> Self {
        if self.lora.zip(below.lora).is_some_and(|(own, below)| own != below) {
            lost.push("LoRA or all weights".into());
        }
        let mut merge = |own: FrozenPart, below: FrozenPart| match (own, below) {
            (Some(own), Some((frozen, shown))) => {
                lost.extend(Some(shown).filter(|_| own.0 != frozen));
                Some(own)
            }
            (own, below) => own.or(below),
        };
        Self {
            lora: self.lora.or(below.lora),
            tower: merge(self.tower, below.tower),
            merger: merge(self.merger, below.merger),
            decoder: merge(self.decoder, below.decoder),
        }
    }
}

/// Whether options freeze a part of the model; `None` if no option says so.
pub fn is_frozen(part: &FrozenPart) -> Option<bool> {
    part.as_ref().map(|(frozen, _)| *frozen)
}

/// The state of a translation from another program's options to reel's.
pub struct CommandTranslation<'a> {
    pub line: CommandLine<'a>,
    /// The command's name in the option table.
    pub command: String,
    pub surroundings: &'a CommandEnvironment<'a>,
    /// Whether the command has an option, value or argument that reel does not have.
    pub is_foreign: bool,
    /// Whether an option of reel has a value in the syntax of another program.
    pub is_changed: bool,
    pub settings: Vec<OptionSetting>,
    pub problems: Vec<RefusedOption>,
    /// Options that have no effect in reel, each with the kind of option as text for the note.
    pub harmless: Vec<(String, &'static str)>,
    /// The last value of each option that has no effect. It may be a positional argument that follows a switch.
    pub harmless_values: Vec<String>,
    pub notes: Vec<String>,
    /// The number of the command's options that each program has.
    pub votes: BTreeMap<&'static str, usize>,
    pub weights: TrainedWeights,
    /// Values that `totals` combines after all options are read, by internal names.
    pub parts: BTreeMap<&'static str, PartValue>,
    /// The names and values of all options that have been read.
    pub read: Vec<(String, Option<String>)>,
    /// Options with values that are used only if the command does not set these options.
    pub fallbacks: Vec<OptionSetting>,
    /// The options that the configuration file sets, if the command still names that file.
    pub set_by_file: Vec<String>,
    /// The options of reel that were given by reel's own names.
    own_names: Vec<String>,
    /// Whether option names are written with underscores, as is usual in Python programs.
    pub has_underscores: bool,
}

/// The values by which other programs switch an option off.
const OFF: [&str; 7] = ["false", "no", "none", "null", "off", "", "{}"];

impl<'a> CommandTranslation<'a> {
    pub fn new(line: CommandLine<'a>, command: String, surroundings: &'a CommandEnvironment<'a>) -> Self {
        Self {
            line,
            command,
            surroundings,
            is_foreign: false,
            is_changed: false,
            settings: Vec::new(),
            problems: Vec::new(),
            harmless: Vec::new(),
            harmless_values: Vec::new(),
            notes: Vec::new(),
            votes: BTreeMap::new(),
            weights: TrainedWeights::default(),
            parts: BTreeMap::new(),
            read: Vec::new(),
            fallbacks: Vec::new(),
            set_by_file: Vec::new(),
            own_names: Vec::new(),
            has_underscores: false,
        }
    }

    /// Reads all arguments and options, and the configuration file if it has options of another program.
    pub fn read_options(&mut self) {
        self.read_arguments();
        self.has_underscores = self.line.given.iter().any(|given| given.written.contains('_'));
        let mut all_given = std::mem::take(&mut self.line.given);
        if self.command == "serve" {
            all_given = rules_serve::fold_dotted_options(all_given);
        }
        if all_given.iter().any(|given| ["benchmark", "score_only"].contains(&given.name.as_str())) {
            self.mark("benchmark_given");
        }
        all_given.iter().for_each(|given| self.read_option(given));
        config::read_config_file(self);
    }

    /// Returns true if the command of reel has the option `name` (in the form of a field name: `learning_rate`).
    pub fn has_option(&self, name: &str) -> bool {
        reel_argument(self.line.command, name).is_some()
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.settings.iter().any(|setting| setting.name == name) || self.set_by_file.iter().any(|set| set == name)
    }

    /// Returns the value of an option that the command sets.
    pub fn option_value(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|setting| setting.name == name)?.values.first().map(String::as_str)
    }

    pub fn option_number(&self, name: &str) -> Option<f64> {
        self.option_value(name)?.parse().ok()
    }

    /// Removes an option from the command and returns it.
    pub fn remove_option(&mut self, name: &str) -> Option<OptionSetting> {
        let at = self.settings.iter().position(|setting| setting.name == name)?;
        Some(self.settings.remove(at))
    }

    /// Sets an option; an earlier value is replaced.
    pub fn replace_option(&mut self, name: &str, value: &str, shown: &str) {
        let setting =
            OptionSetting { name: name.to_string(), values: vec![value.to_string()], shown: shown.to_string() };
        match self.settings.iter_mut().find(|setting| setting.name == name) {
            Some(earlier) => *earlier = setting,
            None => self.settings.push(setting),
        }
    }

    pub fn add_option(&mut self, name: &str, values: Vec<String>, shown: &str) {
        self.settings.push(OptionSetting { name: name.to_string(), values, shown: shown.to_string() });
    }

    /// Keeps the value of a given option until all options are read.
    pub fn keep(&mut self, part: &'static str, value: String, given: &GivenOption) {
        self.parts.insert(part, PartValue { value, shown: given.text_for_messages() });
    }

    /// Notes a fact about the command until all options are read.
    pub fn mark(&mut self, fact: &'static str) {
        self.parts.insert(fact, PartValue::default());
    }

    pub fn refuse_option(&mut self, shown: &str, what: &str, help: &str) {
        self.problems.push(RefusedOption { shown: shown.to_string(), what: what.to_string(), help: help.to_string() });
    }

    /// Returns true if an option of reel can be given several times.
    fn is_list(&self, name: &str) -> bool {
        reel_argument(self.line.command, name).is_some_and(|a| matches!(a.get_action(), ArgAction::Append))
    }

    /// Sets an option of reel. If the option already has another value, records an error.
    pub fn set_option(&mut self, name: &str, values: Vec<String>, given: &GivenOption) {
        let earlier = self.settings.iter().find(|setting| setting.name == name).cloned();
        match earlier.filter(|_| !self.is_list(name)) {
            Some(_) if given.name == name && self.own_names.contains(&given.name) => {
                self.refuse_option(&given.written, "is given more than once", "give it once");
            }
            Some(earlier) if earlier.values == values => {}
            Some(earlier) => {
                let what = format!("sets the same option as {}", earlier.shown);
                self.refuse_option(
                    &given.text_for_messages(),
                    &what,
                    &format!("keep one of the two (the command below has {})", earlier.shown),
                );
            }
            None => self.add_option(name, values, &given.text_for_messages()),
        }
        if option_names::field_name(&given.written) == name {
            self.own_names.push(name.to_string());
        }
    }

    /// Reads arguments that are not options: the model of `vllm serve MODEL`, Hydra's `key=value`, and a
    /// configuration file.
    fn read_arguments(&mut self) {
        let mut others = Vec::new();
        let positionals = self.line.command.get_positionals().count();
        for word in std::mem::take(&mut self.line.arguments) {
            let trains = ["sft", "grpo"].contains(&self.command.as_str()) && positionals == 0;
            let key = word.split_once('=').map(|(key, value)| (key.trim_start_matches('+'), value));
            match key {
                Some(("config", value)) if trains => self.given_as_argument("config", &word, value),
                Some((key, value)) if trains && key.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) => {
                    let written = key.to_string();
                    let given = GivenOption { name: key.to_string(), written, values: vec![value.to_string()] };
                    self.is_foreign = true;
                    self.read_option(&given);
                }
                // The script of the other program, which a pasted line may still name.
                _ if trains && word.ends_with(".py") => {
                    self.is_foreign = true;
                    self.harmless.push((word, "scripts of the other program: reel has its own trainer"));
                }
                _ if trains && [".yaml", ".yml"].iter().any(|end| word.ends_with(end)) => {
                    self.given_as_argument("config", &word, &word);
                }
                _ if self.command == "serve" && positionals == 0 && !self.is_set("model") => {
                    self.given_as_argument("model", &word, &word);
                    self.count_option_of_programs(&["vllm", "lmdeploy"]);
                }
                _ => others.push(word),
            }
        }
        self.line.arguments = others;
    }

    fn given_as_argument(&mut self, name: &str, word: &str, value: &str) {
        self.is_foreign = true;
        self.add_option(name, vec![value.to_string()], word);
    }

    pub fn count_option_of_programs(&mut self, programs: &[&'static str]) {
        for program in programs.iter().filter(|program| **program != "guess") {
            *self.votes.entry(program).or_default() += 1;
        }
    }

    /// Reads one given option, which is an option of reel, a row of the option table, or unknown.
    pub fn read_option(&mut self, given: &GivenOption) {
        self.read.push((given.name.clone(), given.joined_values()));
        let is_own = self.has_option(&given.name);
        let value = given.joined_values();
        let name = given.name.clone();
        let usable = |row: &OptionRow, wanted: Option<&str>| {
            let has_rule = row.becomes.first().is_some_and(|becomes| becomes.starts_with('@'));
            let fits = row.target_option_names().all(|target| self.has_option(target));
            fits && (!is_own || wanted.is_some() || has_rule)
        };
        let row = foreign_options::find_row(&name, value.as_deref(), &self.command, usable);
        match row {
            None if is_own => self.read_own(given),
            None => self.read_unknown(given),
            Some(row) => self.read_row(row, given, is_own),
        }
    }

    fn read_own(&mut self, given: &GivenOption) {
        let argument = reel_argument(self.line.command, &given.name);
        let takes_none = argument.is_some_and(|a| {
            let names = a.get_possible_values();
            let is = |value: &String| names.iter().any(|own| own.matches(value, true));
            number_kind(a.get_value_parser()).is_some() || (!names.is_empty() && !given.values.iter().any(is))
        });
        let is_none =
            given.joined_values().is_some_and(|value| ["none", "null"].contains(&value.to_ascii_lowercase().as_str()));
        if takes_none && is_none {
            self.is_changed = true;
            return;
        }
        let is_one_list = argument.is_some_and(|a| a.get_value_delimiter().is_some());
        let values = match given.joined_values().filter(|_| is_one_list && given.values.len() > 1) {
            Some(joined) => {
                self.is_changed = true;
                vec![joined]
            }
            None => given.values.clone(),
        };
        self.set_option(&given.name, values, given);
    }

    fn read_row(&mut self, row: &'static OptionRow, given: &GivenOption, is_own: bool) {
        let value = given.joined_values();
        let is_off = value.as_deref().is_some_and(|value| OFF.contains(&value.to_ascii_lowercase().as_str()));
        if !is_own {
            self.is_foreign = true;
            self.count_option_of_programs(&row.programs);
        } else if row.class != OptionClass::Same {
            self.is_foreign = true;
        } else {
            self.is_changed |= !row.becomes.iter().any(|becomes| becomes.starts_with('@'));
        }
        let names_off =
            row.names.iter().any(|(name, value)| *name == given.name && value.is_some_and(|v| OFF.contains(&v)));
        match row.class {
            OptionClass::Off => {}
            _ if row.class != OptionClass::Same && is_off && !names_off => {}
            OptionClass::Harmless => {
                self.harmless.push((given.written.clone(), row.reason));
                self.harmless_values.extend(given.values.last().cloned());
                self.set_targets(row, given);
            }
            OptionClass::Result => {
                let (what, help) = row.problem_and_help();
                self.refuse_option(&given.text_for_messages(), what, help);
                self.set_targets(row, given);
            }
            OptionClass::Same => self.set_targets(row, given),
        }
    }

    /// Sets the options of reel that a row of the option table names.
    fn set_targets(&mut self, row: &'static OptionRow, given: &GivenOption) {
        let value = given.joined_values();
        for becomes in &row.becomes {
            if let Some(rule) = becomes.strip_prefix('@') {
                match rules::apply_rule(rule, given, self) {
                    rules::RuleOutcome::Stop => return,
                    rules::RuleOutcome::Continue => continue,
                }
            }
            let (target, wanted) =
                becomes.split_once('=').map_or((*becomes, None), |(name, value)| (name, Some(value)));
            let (target, only_if_unset) = target.strip_suffix('?').map_or((target, false), |target| (target, true));
            if only_if_unset {
                let value = wanted.filter(|wanted| *wanted != "$").map(str::to_string).or(value.clone());
                let values = value.into_iter().collect();
                self.fallbacks.push(OptionSetting {
                    name: target.to_string(),
                    values,
                    shown: given.text_for_messages(),
                });
                continue;
            }
            let value = match wanted {
                Some("$") => value.clone(),
                other => other.map(str::to_string),
            };
            // The row only renames an option of reel, so the value is read by the rules of that option.
            match value {
                Some(value) if target != given.name && wanted == Some("$") && is_none_value(&value) => {}
                Some(value) if target != given.name && wanted == Some("$") => {
                    let renamed =
                        GivenOption { name: target.to_string(), written: given.written.clone(), values: vec![value] };
                    self.read_option(&renamed);
                }
                value => self.set_option(target, value.into_iter().collect(), given),
            }
        }
    }

    /// Returns another command of reel that has the option `name`.
    fn reel_command_with(&self, name: &str) -> Option<&'static str> {
        ["sft", "grpo", "serve", "eval", "generate", "bench serve"].into_iter().find(|path| {
            let command = path.split(' ').try_fold(self.line.root, |command, name| command.find_subcommand(name));
            command.is_some_and(|command| reel_argument(command, name).is_some())
        })
    }

    fn read_unknown(&mut self, given: &GivenOption) {
        let path = self.line.path.join(" ");
        let what = format!("is not an option of reel {path}");
        // If another command of reel has this option, no similar option is suggested.
        if let Some(command) = self.reel_command_with(&given.name) {
            let what = format!("{what} (it is an option of reel {command})");
            return self.refuse_option(&given.text_for_messages(), &what, "leave it out");
        }
        if let Some(command) = foreign_options::other_command_with(&given.name, &self.command) {
            let belongs = format!("other programs have it for what `reel {command}` does");
            return self.refuse_option(&given.text_for_messages(), &format!("{what} ({belongs})"), "leave it out");
        }
        let value = given.joined_values();
        let fits = |argument: &&clap::Arg| is_of_kind(argument, value.as_deref());
        let longs = self.line.command.get_arguments().filter(fits).filter_map(clap::Arg::get_long);
        let names: Vec<String> = longs.map(|long| long.replace('-', "_")).collect();
        let similar = option_names::most_similar_option(&given.name, names.iter().map(String::as_str));
        match similar {
            Some(similar) => {
                self.refuse_option(
                    &given.text_for_messages(),
                    &what,
                    &format!("did you mean --{}?", similar.replace('_', "-")),
                );
                if !self.is_set(similar) {
                    self.add_option(similar, given.values.clone(), &given.text_for_messages());
                }
            }
            None => self.refuse_option(
                &given.text_for_messages(),
                &format!("{what}, nor known as an option of another program"),
                "leave it out",
            ),
        }
    }

    /// Returns the words of the translated command after the program's name.
    pub fn translated_words(&self) -> Vec<String> {
        let options = self.settings.iter().flat_map(|s| option_words(self.line.command, &s.name, &s.values));
        let own = self.line.before.iter().chain(&self.line.path).cloned();
        own.chain(options).chain(self.line.arguments.iter().cloned()).collect()
    }

    /// Returns the parser of the command.
    pub fn parser(&self) -> &'a Command {
        self.line.command
    }
}

/// Returns true if `value` is of the kind that an option takes: none (a switch), a boolean, a number, one of a few
/// names, or text.
fn is_of_kind(argument: &clap::Arg, value: Option<&str>) -> bool {
    let takes_values = argument.get_action().takes_values();
    let Some(value) = value else {
        return !takes_values || argument.get_num_args().is_some_and(|range| range.min_values() == 0);
    };
    let names = argument.get_possible_values();
    let is_truth_value = OFF.contains(&value.to_ascii_lowercase().as_str()) || rules_train::is_python_true(value);
    match number_kind(argument.get_value_parser()) {
        _ if !takes_values => is_truth_value,
        _ if names.iter().any(|own| own.matches(value, true)) => true,
        Some(_) => value.parse::<f64>().is_ok(),
        None => names.is_empty() && !is_truth_value && value.parse::<f64>().is_err(),
    }
}

/// Returns true if a value, such as `None` in Python, means that the option is not given.
pub fn is_none_value(value: &str) -> bool {
    ["none", "null", ""].contains(&value.to_ascii_lowercase().as_str())
}
