//! Configuration files of other programs: flat YAML of LLaMA-Factory, TRL and Axolotl, nested YAML of verl and EasyR1,
//! and vLLM's file for a server. Their keys become options of the command line; the file itself is then left out.

use std::collections::BTreeMap;
use std::path::Path;

use reel_runs::config_file::ConfigFile;
use reel_runs::{foreign_options, option_names};
use serde_json::Value;

use super::translation::{OptionSetting, TrainedWeights, Translation};
use super::words::GivenOption;

/// Reads the file of `--config` if it has keys that are not options of reel. A file that cannot be read, or that has
/// only options of reel, is left to the command.
pub fn read_config_file(t: &mut Translation) {
    let trains = ["sft", "grpo"].contains(&t.command.as_str());
    let path = if trains { t.value_of("config").map(str::to_string) } else { t.parts.remove("config_file") };
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
        flatten(&name, key, value, &mut entries);
    }
    let own_keys = ["overwrite", "resume_from_checkpoint"];
    let is_own = |given: &GivenOption| t.has_option(&given.name) || own_keys.contains(&given.name.as_str());
    // A file with one misspelled key and nothing else of another program is reported by the command, with its line.
    let has_foreign_keys = entries.iter().any(|given| !is_own(given) && is_known(t, given));
    if trains && !t.is_foreign && !has_foreign_keys {
        t.set_by_file = entries.into_iter().map(|given| given.name).collect();
        return;
    }
    t.remove_option("config");
    t.is_foreign = true;
    let command_line = Layer {
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

/// What the options of the command line say, which stands above the file.
struct Layer {
    settings: Vec<OptionSetting>,
    parts: BTreeMap<&'static str, String>,
    weights: TrainedWeights,
}

impl Layer {
    /// Puts the command line over what the file has set. `lost` gets the keys of the file that lose by another name.
    fn cover(self, t: &mut Translation, lost: &mut Vec<String>) {
        let Layer { settings, parts, weights } = self;
        let above = |name: &str| settings.iter().find(|setting| setting.name == name);
        let loses = |s: &&OptionSetting| above(&s.name).is_some_and(|setting| setting.values != s.values);
        lost.extend(t.settings.iter().filter(loses).map(|setting| setting.shown.clone()));
        t.settings.retain(|setting| above(&setting.name).is_none());
        t.settings.extend(settings);
        for (part, value) in &parts {
            let below = t.parts.get(part).filter(|below| *below != value && !part.ends_with("_shown"));
            if below.is_some() {
                let shown = t.parts.iter().find(|(name, _)| **name == format!("{part}_shown"));
                lost.push(shown.map_or(part.to_string(), |(_, shown)| shown.clone()));
            }
        }
        t.parts.extend(parts);
        t.weights = weights.with_fallback(std::mem::take(&mut t.weights), lost);
    }
}

/// Whether the table has a row for a key.
fn is_known(t: &Translation, given: &GivenOption) -> bool {
    let value = given.joined_values();
    foreign_options::find_row(&given.name, value.as_deref(), &t.command, |_, _| true).is_some()
}

/// Turns a key with a nested value into keys with dots. Lists are one value.
fn flatten(file: &str, key: &str, value: &Value, entries: &mut Vec<GivenOption>) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match value {
        // `gradient_checkpointing_kwargs: {use_reentrant: false}` is one option, as on a command line.
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
