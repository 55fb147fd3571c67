//! The state of a translation: the options of reel that the command gets, its problems and its notes.

use std::collections::BTreeMap;

use crate::runs::option_names;
use clap::{ArgAction, Command};

use super::CommandEnvironment;
use super::table::ORDER;
use super::words::{CommandLine, GivenOption, option_words, reel_argument};

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
    /// Whether option names are written with underscores, as is usual in Python programs.
    pub has_underscores: bool,
    pub settings: Vec<OptionSetting>,
    pub problems: Vec<RefusedOption>,
    /// Options that have no effect in reel, each with the kind of option as text for the note.
    pub harmless: Vec<(String, String)>,
    /// The last value of each option that has no effect. It may be a positional argument that follows a switch.
    pub harmless_values: Vec<String>,
    pub notes: Vec<String>,
    /// The number of the command's options that each program has.
    votes: BTreeMap<&'static str, usize>,
    /// Values that rules combine after all options are read, with the option as the user gave it.
    pub parts: BTreeMap<String, (String, String)>,
    /// The names and values of all options that have been read.
    pub read: Vec<(String, Option<String>)>,
    /// Options with values that are used only if the command does not set these options.
    pub fallbacks: Vec<OptionSetting>,
    /// The options that the configuration file sets, if the command still names that file.
    pub set_by_file: Vec<String>,
    /// The options of reel that were given by reel's own names.
    own_names: Vec<String>,
}

impl<'a> CommandTranslation<'a> {
    pub fn new(line: CommandLine<'a>, command: String, surroundings: &'a CommandEnvironment<'a>) -> Self {
        Self {
            has_underscores: line.given.iter().any(|given| given.written.contains('_')),
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
            parts: BTreeMap::new(),
            read: Vec::new(),
            fallbacks: Vec::new(),
            set_by_file: Vec::new(),
            own_names: Vec::new(),
        }
    }

    /// Returns true if the command trains a model.
    pub fn trains(&self) -> bool {
        ["sft", "grpo"].contains(&self.command.as_str())
    }

    /// Returns true if the command of reel has the option `name` (in the form of a field name: `learning_rate`).
    pub fn has_option(&self, name: &str) -> bool {
        reel_argument(self.line.command, name).is_some()
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.setting(name).is_some() || self.set_by_file.iter().any(|set| set == name)
    }

    pub fn setting(&self, name: &str) -> Option<&OptionSetting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// Returns the first value of an option that the command sets.
    pub fn option_value(&self, name: &str) -> Option<&str> {
        self.setting(name)?.values.first().map(String::as_str)
    }

    /// Removes an option from the command and returns it.
    pub fn remove_option(&mut self, name: &str) -> Option<OptionSetting> {
        let at = self.settings.iter().position(|setting| setting.name == name)?;
        Some(self.settings.remove(at))
    }

    /// Sets an option; an earlier value is replaced.
    pub fn replace_option(&mut self, name: &str, value: &str, shown: &str) {
        let setting = OptionSetting { name: name.into(), values: vec![value.into()], shown: shown.into() };
        match self.settings.iter_mut().find(|setting| setting.name == name) {
            Some(earlier) => *earlier = setting,
            None => self.settings.push(setting),
        }
    }

    pub fn add_option(&mut self, name: &str, values: Vec<String>, shown: &str) {
        self.settings.push(OptionSetting { name: name.to_string(), values, shown: shown.to_string() });
    }

    pub fn refuse_option(&mut self, shown: &str, what: &str, help: &str) {
        self.problems.push(RefusedOption { shown: shown.to_string(), what: what.to_string(), help: help.to_string() });
    }

    /// Sets an option of reel, shown as `shown`. If the option already has another value, records an error.
    pub fn set_option(&mut self, name: &str, values: Vec<String>, given: &GivenOption, shown: &str) {
        let argument = reel_argument(self.line.command, name);
        let is_list = argument.is_some_and(|a| matches!(a.get_action(), ArgAction::Append));
        match self.setting(name).filter(|_| !is_list).cloned() {
            Some(_) if given.name == name && self.own_names.contains(&given.name) => {
                self.refuse_option(&given.written, "is given more than once", "give it once");
            }
            Some(earlier) if earlier.values == values => {}
            Some(earlier) => {
                let what = format!("sets the same option as {}", earlier.shown);
                let help = format!("keep one of the two (the command below has {})", earlier.shown);
                self.refuse_option(shown, &what, &help);
            }
            None => self.add_option(name, values, shown),
        }
        if option_names::field_name(&given.written) == name {
            self.own_names.push(name.to_string());
        }
    }

    pub fn count_option_of_programs(&mut self, programs: impl IntoIterator<Item = &'static str>) {
        let programs = programs.into_iter().filter(|program| *program != "guess");
        programs.for_each(|program| *self.votes.entry(program).or_default() += 1);
    }

    /// Returns the program that the command was most likely written for: the one that has the most of its options; if
    /// several have equally many, the first one in `ORDER`.
    pub fn most_likely_program(&self) -> &'static str {
        let is_given = |name: &str| self.read.iter().any(|(given, _)| given == name);
        let votes = |name: &str| {
            let own = self.votes.get(name).copied().unwrap_or_default();
            match name {
                // These options belong to ms-swift and VLM-R1 alone.
                "video-r1" if is_given("rlhf_type") || is_given("data_file_paths") => 0,
                // These options of Video-R1 are options of reel, too, and so have no row in the table.
                "video-r1" if self.is_foreign => {
                    own + 2 * ["temporal", "len_control"].iter().filter(|option| is_given(option)).count()
                }
                // The table has joint rows for verl and EasyR1; these keys are of EasyR1 alone.
                "easyr1" => own + self.read.iter().filter(|(option, _)| option.starts_with("worker.")).count(),
                _ => own,
            }
        };
        let most = ORDER.split(' ').map(votes).max().unwrap_or_default();
        ORDER.split(' ').find(|name| most > 0 && votes(name) == most).unwrap_or_default()
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
