//! Rules that translate the options for the training data and for the name of the model.

use serde_json::{Map, Value};

use super::environment::MEDIA_VARIABLES;
use super::rules::listed_values;
use super::translation::{CommandTranslation, PartValue};
use super::words::GivenOption;

/// Applies a rule for data options; returns `false` if `rule` is not one of them.
pub fn apply_data_rule(rule: &str, value: &str, given: &GivenOption, t: &mut CommandTranslation) -> bool {
    match rule {
        "datasets" => data_sets(value, given, t),
        // The data set that this configuration or split belongs to may come later on the command line.
        "dataset_part" => {
            let part = if given.name.ends_with("split") { "data_split" } else { "data_config" };
            t.keep(part, listed_values(given).join(","), given);
        }
        // VLM-R1's list of data files, separated by colons. VLM-R1 ignores --dataset-name if this list is given.
        "data_files" => t.keep("data_files", value.replace(':', ","), given),
        // The data file of Open-R1-Video and Time-R1, which then ignore --dataset_name.
        "data_file" => t.keep("data_files", value.to_string(), given),
        // A list of files in Hydra's or Python's syntax, or one file.
        "data_list" => t.set_option("data", vec![listed_values(given).join(",")], given),
        "media_folders" => {
            let mut folders: Vec<&str> = value.split(':').collect();
            folders.dedup();
            match folders[..] {
                [folder] => t.set_option("media_root", vec![folder.to_string()], given),
                _ => {
                    let help = "give one --media-root, the folder that all media paths are relative to";
                    t.refuse_option(&given.text_for_messages(), "has several folders", help);
                }
            }
        }
        // If the command also names a model, this is a name for the served model; otherwise it is the model.
        "model_name" => t.keep("model_name", value.to_string(), given),
        "dataset_dir" => t.keep("dataset_dir", value.to_string(), given),
        "dataset_kwargs" => dataset_kwargs(value, given, t),
        _ => return false,
    }
    true
}

/// Translates TRL's `dataset_kwargs`. The field `skip_prepare_dataset` has no effect, because reel never changes the
/// rows of the file.
fn dataset_kwargs(value: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let fields = serde_json::from_str::<Map<String, Value>>(value).ok();
    let unknown = fields.as_ref().map(|fields| fields.keys().find(|name| *name != "skip_prepare_dataset"));
    match unknown {
        Some(None) => t.harmless.push((given.written.clone(), "loading and preprocessing of data")),
        Some(Some(name)) => {
            let what = format!("has {name}: reel does not read the data in this way");
            t.refuse_option(&given.written, &what, "convert the rows (docs/data.md), and leave it out");
        }
        None => t.refuse_option(&given.text_for_messages(), "is not a JSON object", "leave it out"),
    }
}

/// Translates ms-swift's `model_kwargs`, whose fields ms-swift passes on as environment variables such as
/// `FPS_MAX_FRAMES`.
pub fn translate_model_kwargs(value: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(value) else {
        let help = "give the options themselves, such as --max-frames and --max-pixels";
        return t.refuse_option(&given.text_for_messages(), "is not a JSON object", help);
    };
    for (name, value) in &fields {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let variable = MEDIA_VARIABLES.iter().find(|(variable, _)| variable.eq_ignore_ascii_case(name));
        match variable.filter(|(_, option)| t.has_option(option)) {
            Some((_, option)) => {
                let written = format!("{} {name}", given.written);
                t.set_option(option, vec![value.clone()], &GivenOption { written, ..given.clone() });
            }
            None => {
                let what = format!("has {name}: reel reads config.json of the model folder");
                t.refuse_option(&given.written, &what, "change it there");
            }
        }
    }
}

/// Translates the data sets of an Axolotl or TRL configuration file: objects with `path`, `name` and `split`.
fn data_sets(value: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let entries: Vec<Value> = match serde_json::from_str(value) {
        Ok(Value::Array(entries)) => entries,
        _ => return t.set_option("data", vec![value.to_string()], given),
    };
    let mut places = Vec::new();
    for entry in &entries {
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        // A `path` such as `json` is a file format; the files are then listed in `data_files`.
        let is_format = |path: &&str| ["json", "parquet", "csv", "arrow"].contains(path);
        let path = match (field("path").filter(|path| !is_format(path)), entry.get("data_files")) {
            (Some(path), Some(_)) => {
                let what = format!("names files of {path}");
                t.refuse_option(&given.written, &what, "give them as --data hf://datasets/ORG/NAME/FILE instead");
                continue;
            }
            (None, Some(Value::Array(files))) => {
                let what = format!("has {} files in one data set", files.len());
                t.refuse_option(&given.written, &what, "give them as --data FILE,FILE instead");
                continue;
            }
            (path, files) => path.or(files.and_then(Value::as_str)).or(entry.as_str()),
        };
        let Some(path) = path else {
            t.refuse_option(&given.written, "has a data set without a path", "give its file as --data");
            continue;
        };
        let known = ["path", "name", "split", "type", "ds_type", "data_files", "trust_remote_code"];
        let others = entry.as_object().into_iter().flatten();
        let others = others.filter(|(name, value)| !known.contains(&name.as_str()) && !is_reels_own(name, value));
        let others: Vec<&str> = others.map(|(name, _)| name.as_str()).collect();
        if !others.is_empty() {
            let what = format!("has {} for {path}, which reel does not read", others.join(", "));
            t.refuse_option(&given.written, &what, "convert the rows (docs/data.md), and leave these fields out");
        }
        let kind = entry.get("type").filter(|kind| !["chat_template", "sharegpt"].map(Value::from).contains(kind));
        if let Some(kind) = kind {
            let what = format!("has type {kind} for {path}, but reel reads chat messages");
            t.refuse_option(&given.written, &what, "convert the rows (docs/data.md), and leave the type out");
        }
        places.push(with_parts(path, field("name"), field("split"), &given.written, t));
    }
    t.set_option("data", vec![places.join(",")], given);
}

/// Returns true if a field of an Axolotl data set asks for what reel does anyway: the usual field names of rows and
/// messages, and training on every answer.
fn is_reels_own(name: &str, value: &Value) -> bool {
    match (name, value) {
        (_, Value::Null) => true,
        ("field_messages", Value::String(field)) => ["messages", "conversations"].contains(&field.as_str()),
        ("message_property_mappings", Value::Object(fields)) => fields.iter().all(|(own, field)| {
            field == own
                || [("role", "from"), ("content", "value")].contains(&(own, field.as_str().unwrap_or_default()))
        }),
        ("message_field_role", Value::String(field)) => ["role", "from"].contains(&field.as_str()),
        ("message_field_content", Value::String(field)) => ["content", "value"].contains(&field.as_str()),
        ("roles_to_train", Value::Array(roles)) => *roles == ["assistant"].map(Value::from),
        ("train_on_eos", Value::String(when)) => when == "turn",
        _ => false,
    }
}

/// Returns a data set in reel's syntax, `PATH#CONFIG@SPLIT`. Refuses a slice of a split, such as `train[:1%]`.
fn with_parts(
    path: &str,
    config: Option<&str>,
    split: Option<&str>,
    shown: &str,
    t: &mut CommandTranslation,
) -> String {
    let (split, slice) = split.map_or((None, None), |split| match split.split_once('[') {
        Some((split, slice)) => (Some(split), Some(slice)),
        None => (Some(split), None),
    });
    if let Some(slice) = slice {
        let what = format!("takes a part of the split ([{slice}) of {path}");
        t.refuse_option(shown, &what, "give --max-samples N, the number of rows");
    }
    let config = config.map(|config| format!("#{config}")).unwrap_or_default();
    let split = split.filter(|split| *split != "train").map(|split| format!("@{split}")).unwrap_or_default();
    format!("{path}{config}{split}")
}

/// Combines options that belong together: the data set with its configuration and split, and the model with its
/// names.
pub fn combine_data_set_options(t: &mut CommandTranslation) {
    if let Some(files) = t.parts.remove("data_files") {
        t.replace_option("data", &files.value, &files.shown);
    }
    let (config, split) = (t.parts.remove("data_config"), t.parts.remove("data_split"));
    let shown = split.as_ref().or(config.as_ref()).map(|part| part.shown.clone()).unwrap_or_default();
    let (config, split) = (config.map(|part| part.value), split.map(|part| part.value));
    let split = split.filter(|split| split != "train");
    if config.is_some() || split.is_some() {
        let data = t.settings.iter().find(|setting| setting.name == "data").cloned();
        let path = data.as_ref().map(|data| data.values.join(",")).unwrap_or_default();
        if path.is_empty() || path.contains([',', '#', '@']) || std::path::Path::new(&path).is_file() {
            let help = "leave this option out, or write its value after the path: --data DIR#CONFIG@SPLIT";
            t.refuse_option(&shown, "names a part of a data set, but --data is not one data set", help);
        } else if let Some(data) = data {
            let place = with_parts(&path, config.as_deref(), split.as_deref(), &shown, t);
            t.replace_option("data", &place, &data.shown);
        }
    }
    let Some(PartValue { value: name, shown }) = t.parts.remove("model_name") else { return };
    match t.command.as_str() {
        _ if !t.is_set("model") => t.add_option("model", vec![name], &shown),
        "serve" => t.add_option("served_model_name", vec![name], &shown),
        _ => {
            let help = "write the name into the rows, and leave this option out";
            t.refuse_option(&shown, "fills placeholders in the rows of a data set", help);
        }
    }
}
