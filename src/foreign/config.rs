//! Configuration files of other programs: flat YAML of LLaMA-Factory and TRL, nested YAML of verl and EasyR1. Their keys
//! become options of the command line; the file itself is then left out.

use std::path::Path;

use reel_runs::config_file::ConfigFile;
use reel_runs::option_names;
use serde_json::Value;

use super::translation::Translation;
use super::words::Given;

/// Reads the file of `--config` if it has keys that are not options of reel. A file that cannot be read, or that has
/// only options of reel, is left to the command.
pub fn read_file(t: &mut Translation) {
    if !["sft", "grpo"].contains(&t.command.as_str()) {
        return;
    }
    let Some(path) = t.value_of("config").map(str::to_string) else { return };
    let Ok(file) = ConfigFile::read(Path::new(&path)) else { return };
    let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or(path);
    let mut entries = Vec::new();
    for (key, value) in file.entries() {
        flatten(&name, key, value, &mut entries);
    }
    let own_keys = ["overwrite", "resume_from_checkpoint"];
    let is_own = |given: &Given| t.has_option(&given.name) || own_keys.contains(&given.name.as_str());
    // The command line wins over the file.
    let on_command_line: Vec<String> = t.settings.iter().map(|setting| setting.name.clone()).collect();
    if entries.iter().all(is_own) && !t.is_foreign {
        t.set_by_file = entries.into_iter().map(|given| given.name).collect();
        return;
    }
    // A file with one misspelled key and nothing else of another program is reported by the command, with its line.
    let known = |given: &Given| is_own(given) || is_known(t, given);
    if !t.is_foreign && entries.iter().all(|given| is_own(given) || !known(given)) {
        t.set_by_file = entries.into_iter().map(|given| given.name).collect();
        return;
    }
    t.remove("config");
    t.is_foreign = true;
    // Rules keep values outside the settings, so keys of the command line are not read from the file.
    let (names, parts) = (t.read_names.clone(), t.parts.clone());
    let before = t.settings.clone();
    t.settings.clear();
    for given in entries.iter().filter(|given| !names.contains(&given.name)) {
        t.read(given);
    }
    t.parts.extend(parts);
    // Options of the command line replace those of the file.
    t.settings.retain(|setting| !on_command_line.contains(&setting.name));
    t.settings.extend(before);
}

/// Whether the table has a row for a key.
fn is_known(t: &Translation, given: &Given) -> bool {
    let value = given.value();
    reel_runs::foreign_options::find(&given.name, value.as_deref(), &t.command, |_, _| true).is_some()
}

/// Turns a key with a nested value into keys with dots. Lists are one value.
fn flatten(file: &str, key: &str, value: &Value, entries: &mut Vec<Given>) {
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
            entries.push(Given { name: option_names::field_name(key), written: format!("{file}: {key}"), values });
        }
        value => {
            let values = vec![text(value)];
            entries.push(Given { name: option_names::field_name(key), written: format!("{file}: {key}"), values });
        }
    }
}
