//! Translates the options of a command line and of its configuration file into options of reel, by the rows of the
//! option table.

use std::path::Path;

use crate::runs::option_names;
use clap::Arg;
use serde_json::Value;

use super::rules::run_rule;
use super::state::{CommandTranslation, OptionSetting};
use super::table::{OptionClass, OptionRow, are_equal_option_values, find_row, other_command_with};
use super::terms::{OFF, Scope, is_none_value, is_python_true};
use super::words::{GivenOption, fold_dotted_options, is_key, reel_argument};
use crate::runs::number_kind::number_kind;

impl CommandTranslation<'_> {
    /// Reads all arguments and options, and the configuration file if it has options of another program.
    pub fn read_options(&mut self) {
        let mut all_given = std::mem::take(&mut self.line.given);
        self.read_arguments();
        if self.command == "serve" {
            all_given = fold_dotted_options(all_given);
        }
        if all_given.iter().any(|given| ["benchmark", "score_only"].contains(&given.name.as_str())) {
            self.parts.insert("benchmark_given".into(), Default::default());
        }
        all_given.iter().for_each(|given| self.read_option(given));
        self.read_config_file();
    }

    /// Reads arguments that are not options: the model of `vllm serve MODEL`, Hydra's `key=value`, a configuration
    /// file, and the script of the other program, which a pasted line may still name.
    fn read_arguments(&mut self) {
        let takes_arguments = self.line.command.get_positionals().count() > 0;
        let trains = self.trains() && !takes_arguments;
        for word in std::mem::take(&mut self.line.arguments) {
            let pair = word.split_once('=').map(|(key, value)| (key.trim_start_matches('+'), value));
            let is_file = |ends: &[&str]| trains && ends.iter().any(|end| word.ends_with(end));
            let mut add = |name: &str, value: &str| self.add_option(name, vec![value.to_string()], &word);
            match pair.filter(|(key, _)| trains && is_key(key)) {
                Some(("config", value)) => add("config", value),
                Some((key, value)) => {
                    self.is_foreign = true;
                    let given = GivenOption { name: key.into(), written: key.into(), values: vec![value.into()] };
                    self.read_option(&given);
                }
                None if is_file(&[".py"]) => {
                    self.harmless.push((word, "scripts of the other program: reel has its own trainer".into()));
                }
                None if is_file(&[".yaml", ".yml"]) => add("config", &word),
                None if self.command == "serve" && !takes_arguments && !self.is_set("model") => {
                    self.add_option("model", vec![word.clone()], &word);
                    self.count_option_of_programs(["vllm", "lmdeploy"]);
                }
                None => {
                    self.line.arguments.push(word);
                    continue;
                }
            }
            self.is_foreign = true;
        }
    }

    /// Reads one given option, which is an option of reel, a row of the option table, or unknown.
    fn read_option(&mut self, given: &GivenOption) {
        let value = given.joined_values();
        self.read.push((given.name.clone(), value.clone()));
        let is_own = self.has_option(&given.name);
        let usable = |row: &OptionRow, wanted: Option<&str>| {
            let has_rule = row.becomes.first().is_some_and(|becomes| becomes.starts_with('@'));
            let fits = row.target_option_names().all(|target| self.has_option(target));
            fits && (!is_own || wanted.is_some() || has_rule)
        };
        match find_row(&given.name, value.as_deref(), &self.command, usable) {
            None if is_own => self.read_own(given),
            None => self.read_unknown(given),
            Some(row) => self.read_row(row, given, is_own),
        }
    }

    fn read_own(&mut self, given: &GivenOption) {
        let argument = reel_argument(self.line.command, &given.name);
        let takes_none = argument.is_some_and(|a| {
            let names = a.get_possible_values();
            let is_name = |value: &String| names.iter().any(|own| own.matches(value, true));
            number_kind(a.get_value_parser()).is_some() || (!names.is_empty() && !given.values.iter().any(is_name))
        });
        let joined = given.joined_values();
        if takes_none && joined.as_ref().is_some_and(|value| !value.is_empty() && is_none_value(value)) {
            self.is_changed = true;
            return;
        }
        let is_one_list = argument.is_some_and(|a| a.get_value_delimiter().is_some()) && given.values.len() > 1;
        self.is_changed |= is_one_list;
        let values = if is_one_list { joined.into_iter().collect() } else { given.values.clone() };
        self.set_option(&given.name, values, given, &given.text_for_messages());
    }

    fn read_row(&mut self, row: &'static OptionRow, given: &GivenOption, is_own: bool) {
        let is_off = given.joined_values().is_some_and(|value| OFF.contains(&value.to_ascii_lowercase().as_str()));
        if !is_own {
            self.count_option_of_programs(row.programs.iter().copied());
        }
        match is_own && row.class == OptionClass::Same {
            true => self.is_changed |= !row.becomes.iter().any(|becomes| becomes.starts_with('@')),
            false => self.is_foreign = true,
        }
        let names_off =
            row.names.iter().any(|(name, value)| *name == given.name && value.is_some_and(|v| OFF.contains(&v)));
        match row.class {
            OptionClass::Off => return,
            OptionClass::Same => {}
            _ if is_off && !names_off => return,
            OptionClass::Harmless => {
                self.harmless.push((given.written.clone(), row.reason.to_string()));
                self.harmless_values.extend(given.values.last().cloned());
            }
            OptionClass::Result => {
                let (what, help) = row.reason.split_once("; ").unwrap_or((row.reason, "leave it out"));
                self.refuse_option(&given.text_for_messages(), what, help);
            }
        }
        self.set_targets(row, given);
    }

    /// Sets the options of reel that a row of the option table names.
    fn set_targets(&mut self, row: &'static OptionRow, given: &GivenOption) {
        let shown = given.text_for_messages();
        for becomes in &row.becomes {
            if let Some(rule) = becomes.strip_prefix('@') {
                match run_rule(rule, &mut Scope::new(given), self) {
                    true => continue,
                    false => return,
                }
            }
            let (target, wanted) = becomes.split_once('=').map_or((*becomes, None), |(name, v)| (name, Some(v)));
            let is_renamed = wanted == Some("$");
            let value = if is_renamed { given.joined_values() } else { wanted.map(str::to_string) };
            if let Some(target) = target.strip_suffix('?') {
                let values = value.or(given.joined_values()).into_iter().collect();
                self.fallbacks.push(OptionSetting { name: target.into(), values, shown: shown.clone() });
                continue;
            }
            // If the row only renames an option of reel, the value is read by the rules of that option.
            match value {
                Some(value) if is_renamed && target != given.name && is_none_value(&value) => {}
                Some(value) if is_renamed && target != given.name => {
                    self.read_option(&GivenOption { name: target.into(), values: vec![value], ..given.clone() });
                }
                value => self.set_option(target, value.into_iter().collect(), given, &shown),
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
        let (shown, value) = (given.text_for_messages(), given.joined_values());
        let what = format!("is not an option of reel {}", self.line.path.join(" "));
        // If another command has this option, no similar option is suggested.
        if let Some(command) = self.reel_command_with(&given.name) {
            let what = format!("{what} (it is an option of reel {command})");
            return self.refuse_option(&shown, &what, "leave it out");
        }
        if let Some(command) = other_command_with(&given.name, &self.command) {
            let what = format!("{what} (other programs have it for what `reel {command}` does)");
            return self.refuse_option(&shown, &what, "leave it out");
        }
        let fits = |argument: &&Arg| is_of_kind(argument, value.as_deref());
        let longs = self.line.command.get_arguments().filter(fits).filter_map(Arg::get_long);
        let names: Vec<String> = longs.map(|long| long.replace('-', "_")).collect();
        let Some(similar) = option_names::most_similar_option(&given.name, names.iter().map(String::as_str)) else {
            let what = format!("{what}, nor known as an option of another program");
            return self.refuse_option(&shown, &what, "leave it out");
        };
        self.refuse_option(&shown, &what, &format!("did you mean --{}?", similar.replace('_', "-")));
        if !self.is_set(similar) {
            self.add_option(similar, given.values.clone(), &shown);
        }
    }

    /// Translates the file of `--config`: flat YAML of LLaMA-Factory, TRL and Axolotl, nested YAML of verl and EasyR1,
    /// or the file of `vllm serve --config`. The command then no longer names the file. A file of sft or grpo is left
    /// for the command to read if it cannot be read here, or if neither it nor the command line has an option of
    /// another program.
    fn read_config_file(&mut self) {
        let trains = self.trains();
        let path = match trains {
            true => self.option_value("config").map(str::to_string),
            false => self.parts.remove("config_file").map(|(path, _)| path),
        };
        let Some(path) = path else { return };
        let file = match (self.surroundings.read_config_file)(Path::new(&path)) {
            Ok(file) => file,
            Err(_) if trains => return,
            Err(e) => {
                return self.refuse_option(&format!("--config {path}"), &e, "check the file, or leave --config out");
            }
        };
        let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or(path);
        let mut entries = Vec::new();
        for (key, value) in &file.entries {
            // A server's option with a mapping is one option with a JSON object, as on a command line.
            match value.is_object() && !trains {
                true => entries.push(entry(&name, key, value.to_string())),
                false => flatten(&name, key, value, &mut entries),
            }
        }
        // A file whose only fault is a misspelled key stays a file: the command reports the key with its line number.
        // The command also names the faults of a run's own record.
        let is_own = |name: &str| self.has_option(name) || ["overwrite", "resume_from_checkpoint"].contains(&name);
        let is_known = |given: &GivenOption| {
            find_row(&given.name, given.joined_values().as_deref(), &self.command, |_, _| true).is_some()
        };
        let has_foreign_keys = entries.iter().any(|given| !is_own(&given.name) && is_known(given));
        let trackers = entries.iter().find(|given| given.name == "report_to");
        let has_foreign_keys =
            has_foreign_keys || trackers.is_some_and(|given| run_rule("other_trackers", &mut Scope::new(given), self));
        if trains && !self.is_foreign && (!has_foreign_keys || file.is_run_record) {
            self.set_by_file = entries.into_iter().map(|given| given.name).collect();
            return;
        }
        self.remove_option("config");
        self.is_foreign = true;
        self.read_entries(&entries, &name);
    }

    /// Reads the entries of a configuration file, which the options of the command line override. A note lists those
    /// that are lost.
    fn read_entries(&mut self, entries: &[GivenOption], file: &str) {
        let (settings, parts) = (std::mem::take(&mut self.settings), std::mem::take(&mut self.parts));
        let above = self.read.clone();
        let without_effect: Vec<String> = self.harmless.iter().map(|(o, _)| option_names::field_name(o)).collect();
        let mut lost = Vec::new();
        for given in entries {
            let value = given.joined_values();
            let is_same = |above: &Option<String>| match above.as_deref().zip(value.as_deref()) {
                Some((above, below)) => are_equal_option_values(above, below),
                None => *above == value,
            };
            let same_name: Vec<_> = above.iter().filter(|(name, _)| *name == given.name).collect();
            match same_name.is_empty() {
                true => self.read_option(given),
                false if without_effect.contains(&given.name) || same_name.iter().any(|(_, v)| is_same(v)) => {}
                false => lost.push(given.text_for_messages()),
            }
        }
        let same = |own: &OptionSetting| settings.iter().find(|setting| setting.name == own.name);
        let loses = |own: &&OptionSetting| same(own).is_some_and(|setting| setting.values != own.values);
        lost.extend(self.settings.iter().filter(loses).map(|own| own.shown.clone()));
        self.settings.retain(|own| same(own).is_none());
        self.settings.extend(settings);
        let below = |(name, (value, _)): (&String, &(String, String))| {
            Some(self.parts.get(name).filter(|(below, _)| below != value)?.1.clone())
        };
        lost.extend(parts.iter().filter_map(below));
        self.parts.extend(parts);
        if !lost.is_empty() {
            let keys: Vec<&str> = lost.iter().map(|s| s.split_once(": ").map_or(&**s, |(_, key)| key)).collect();
            self.notes.push(format!("note: the command line overrides {file}: {}", keys.join(", ")));
        }
    }
}

fn entry(file: &str, key: &str, value: String) -> GivenOption {
    GivenOption { name: option_names::field_name(key), written: format!("{file}: {key}"), values: vec![value] }
}

/// Flattens a nested value into entries whose keys have dots (`data.train_files`). A list is one value, and so is an
/// object such as `gradient_checkpointing_kwargs: {use_reentrant: false}`, as on a command line.
fn flatten(file: &str, key: &str, value: &Value, entries: &mut Vec<GivenOption>) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match value {
        Value::Object(fields) if key.contains('.') || !key.ends_with("_kwargs") => {
            fields.iter().for_each(|(inner, value)| flatten(file, &format!("{key}.{inner}"), value, entries));
        }
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            entries.push(entry(file, key, items.iter().map(text).collect::<Vec<_>>().join(",")));
        }
        value => entries.push(entry(file, key, text(value))),
    }
}

/// Returns true if `value` is of the kind that an option takes: none (a switch), a boolean, a number, one of a few
/// names, or text.
fn is_of_kind(argument: &Arg, value: Option<&str>) -> bool {
    let takes_values = argument.get_action().takes_values();
    let Some(value) = value else {
        return !takes_values || argument.get_num_args().is_some_and(|range| range.min_values() == 0);
    };
    let names = argument.get_possible_values();
    let is_truth_value = OFF.contains(&value.to_ascii_lowercase().as_str()) || is_python_true(value);
    match number_kind(argument.get_value_parser()) {
        _ if !takes_values => is_truth_value,
        _ if names.iter().any(|own| own.matches(value, true)) => true,
        Some(_) => value.parse::<f64>().is_ok(),
        None => names.is_empty() && !is_truth_value && value.parse::<f64>().is_err(),
    }
}
