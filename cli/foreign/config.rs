//! Configuration files of other programs: flat YAML of LLaMA-Factory, TRL and Axolotl, nested YAML of verl and
//! EasyR1, and the file of `vllm serve --config`. The keys of such a file are translated into options of reel's
//! command line, and the command then no longer names the file.

use std::collections::BTreeMap;
use std::path::Path;

use reel_train::runs::config_file::ConfigFile;
use reel_train::runs::{foreign_options, option_names};
use serde_json::Value;

use super::rules_train;
use super::translation::{CommandTranslation, OptionSetting, PartValue, TrainedWeights};
use super::words::GivenOption;

/// Translates the file of `--config`. A file of sft or grpo is left for the command to read if it cannot be read
/// here, or if neither the file nor the command line has an option of another program.
pub fn read_config_file(t: &mut CommandTranslation) {
    let trains = ["sft", "grpo"].contains(&t.command.as_str());
    let path = if trains {
        t.option_value("config").map(str::to_string)
    } else {
        t.parts.remove("config_file").map(|part| part.value)
    };
    let Some(path) = path else { return };
    let file = match ConfigFile::read(Path::new(&path)) {
        Ok(file) => file,
        Err(_) if trains => return,
        Err(e) => {
            return t.refuse_option(
                &format!("--config {path}"),
                &e.to_string(),
                "check the file, or leave --config out",
            );
        }
    };
    let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or(path);
    let mut entries = Vec::new();
    for (key, value) in file.entries() {
        // A server's option with a mapping is one option with a JSON object, as on a command line:
        // `limit-mm-per-prompt: {image: 2}`.
        if value.is_object() && !trains {
            let written = format!("{name}: {key}");
            entries.push(GivenOption { name: option_names::field_name(key), written, values: vec![value.to_string()] });
            continue;
        }
        flatten(&name, key, value, &mut entries);
    }
    let own_keys = ["overwrite", "resume_from_checkpoint"];
    let is_own = |given: &GivenOption| t.has_option(&given.name) || own_keys.contains(&given.name.as_str());
    // In sft and grpo, a file is translated only if it has an option of another program. A file whose only fault is a
    // misspelled key stays a file: the command then reports the key with its line number.
    let has_foreign_keys =
        entries.iter().any(|given| (!is_own(given) && is_known(t, given)) || rules_train::names_other_tracker(given));
    // The command names the faults of a run's own record.
    if trains && !t.is_foreign && (!has_foreign_keys || file.is_run_record()) {
        t.set_by_file = entries.into_iter().map(|given| given.name).collect();
        return;
    }
    t.remove_option("config");
    t.is_foreign = true;
    let command_line = CommandLineSettings {
        settings: std::mem::take(&mut t.settings),
        parts: std::mem::take(&mut t.parts),
        weights: std::mem::take(&mut t.weights),
    };
    let above = t.read.clone();
    let without_effect: Vec<String> = t.harmless.iter().map(|(option, _)| option_names::field_name(option)).collect();
    let mut lost = Vec::new();
    for given in &entries {
        let same_name: Vec<_> = above.iter().filter(|(name, _)| *name == given.name).collect();
        let is_same = |value: &Option<String>| match value.as_deref().zip(given.joined_values().as_deref()) {
            Some((above, below)) => foreign_options::are_equal_option_values(above, below),
            None => *value == given.joined_values(),
        };
        match same_name.is_empty() {
            true => t.read_option(given),
            false if without_effect.contains(&given.name) || same_name.iter().any(|(_, value)| is_same(value)) => {}
            false => lost.push(given.text_for_messages()),
        }
    }
    command_line.cover(t, &mut lost);
    if !lost.is_empty() {
        let keys: Vec<&str> =
            lost.iter().map(|shown| shown.split_once(": ").map_or(&**shown, |(_, key)| key)).collect();
        t.notes.push(format!("note: the command line overrides {name}: {}", keys.join(", ")));
    }
}

/// The settings from the command line. They override those of the configuration file.
struct CommandLineSettings {
    settings: Vec<OptionSetting>,
    parts: BTreeMap<&'static str, PartValue>,
    weights: TrainedWeights,
}

impl CommandLineSettings {
    /// Lets the settings of the command line override those that the configuration file has set. Adds to `lost` each
    /// overridden key whose name in the file differs from the name on the command line.
    fn cover(self, t: &mut CommandTranslation, lost: &mut Vec<String>) {
        let CommandLineSettings { settings, parts, weights } = self;
        let above = |name: &str| settings.iter().find(|setting| setting.name == name);
        let loses = |s: &&OptionSetting| above(&s.name).is_some_and(|setting| setting.values != s.values);
        lost.extend(t.settings.iter().filter(loses).map(|setting| setting.shown.clone()));
        t.settings.retain(|setting| above(&setting.name).is_none());
        t.settings.extend(settings);
        for (name, part) in &parts {
            if let Some(below) = t.parts.get(name).filter(|below| below.value != part.value) {
                lost.push(below.shown.clone());
            }
        }
        t.parts.extend(parts);
        t.weights = weights.with_fallback(std::mem::take(&mut t.weights), lost);
    }
}

/// Returns true if the option table has a row for this key of a configuration file.
fn is_known(t: &CommandTranslation, given: &GivenOption) -> bool {
    let value = given.joined_values();
    foreign_options::find_row(&given.name, value.as_deref(), &t.command, |_, _| true).is_some()
}

/// Flattens a nested value into entries whose keys have dots (`data.train_files`). A list is one value.
fn flatten(file: &str, key: &str, value: &Value, entries: &mut Vec<GivenOption>) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match value {
        // A value such as `gradient_checkpointing_kwargs: {use_reentrant: false}` is not flattened: it is one option
        // with a JSON object, as on a command line.
        Value::Object(fields) if key.contains('.') || !key.ends_with("_kwargs") => {
            for (inner, value) in fields {
                flatten(file, &format!("{key}.{inner}"), value, entries);
            }
        }
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            let values = vec![items.iter().map(text).collect::<Vec<_>>().join(",")];
            entries.push(GivenOption {
                name: option_names::field_name(key),
                written: format!("{file}: {key}"),
                values,
            });
        }
        value => {
            let values = vec![text(value)];
            entries.push(GivenOption {
                name: option_names::field_name(key),
                written: format!("{file}: {key}"),
                values,
            });
        }
    }
}
