//! `--config FILE.toml`: a file with any options of a command, under the names of their flags. Flags on the command
//! line override it.

use std::path::Path;

use reel_diagnostic::input;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Result, TrainError};

/// The options of a configuration file that say how the command starts: by overwriting an earlier run, or by resuming
/// it. They do not describe the run, so `run.json` does not have them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartFlags {
    /// Overwrite an earlier run in OUT.
    pub overwrite: bool,
    /// Resume from this checkpoint folder, or from the `last` one.
    pub resume_from_checkpoint: Option<String>,
}

impl StartFlags {
    /// Reads the start flags of a configuration file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = input::read_text(file, input::MAX_CONFIG_BYTES).map_err(|e| TrainError::cannot_read(file, e))?;
        Self::parse(&file.display().to_string(), &text)
    }

    fn parse(file: &str, text: &str) -> Result<Self> {
        let mut options = Map::new();
        for (key, value) in &table(file, text)? {
            let field = key.replace('-', "_");
            if START.contains(&field.as_str()) {
                let value = json(file, value)?;
                check_kind::<Self>(&options, file, key, &field, &value)?;
                options.insert(field, value);
            }
        }
        serde_json::from_value(Value::Object(options)).map_err(|e| broken(file, e.to_string()))
    }
}

/// The keys of the fields of [`StartFlags`], which [`apply_config_file`] ignores.
const START: [&str; 2] = ["overwrite", "resume_from_checkpoint"];

/// Takes the value of each option that the command line leaves unset from the configuration file.
///
/// `parsed` has the options of the command line; `on_command_line(name)` is true if the command line sets the option
/// `name`, such as `learning_rate`. Keys may be written with `-` or `_`. An unknown key, or a value of the wrong type,
/// is an error that names the key.
pub fn apply_config_file<T: Serialize + DeserializeOwned>(
    parsed: &T,
    file: &Path,
    on_command_line: impl Fn(&str) -> bool,
) -> Result<T> {
    let text = input::read_text(file, input::MAX_CONFIG_BYTES).map_err(|e| TrainError::cannot_read(file, e))?;
    merge(parsed, &file.display().to_string(), &text, on_command_line)
}

fn merge<T: Serialize + DeserializeOwned>(
    parsed: &T,
    file: &str,
    text: &str,
    on_command_line: impl Fn(&str) -> bool,
) -> Result<T> {
    let mut options = match serde_json::to_value(parsed).map_err(|e| broken(file, e.to_string()))? {
        Value::Object(map) => map,
        _ => return Err(broken(file, "the options are not a table".into())),
    };
    for (key, value) in &table(file, text)? {
        let field = key.replace('-', "_");
        if START.contains(&field.as_str()) {
            continue;
        }
        if field == "config" {
            return Err(TrainError::option(
                format!("{file}: {key}"),
                "is not allowed in a configuration file",
                "put that file's options into this one",
            ));
        }
        if !options.contains_key(&field) {
            return Err(TrainError::option(
                format!("{file}: {key}"),
                "is not an option of this command",
                "see --help for the options",
            ));
        }
        let value = json(file, value)?;
        check_kind::<T>(&options, file, key, &field, &value)?;
        if !on_command_line(&field) {
            options.insert(field, value);
        }
    }
    serde_json::from_value(Value::Object(options)).map_err(|e| broken(file, e.to_string()))
}

fn table(file: &str, text: &str) -> Result<toml::Table> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        TrainError::option(
            format!("{file}:{line}"),
            format!("is not TOML: {}", e.message()),
            "write one option per line: name = value",
        )
    })
}

fn json(file: &str, value: &toml::Value) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| broken(file, e.to_string()))
}

fn broken(file: &str, what: String) -> TrainError {
    TrainError::option(file, what, "report this as a defect")
}

/// Checks the type of one value: deserializes the options with only this value changed, so that an error is about its
/// key.
fn check_kind<T: DeserializeOwned>(
    options: &Map<String, Value>,
    file: &str,
    key: &str,
    field: &str,
    value: &Value,
) -> Result<()> {
    let mut tried = options.clone();
    tried.insert(field.to_string(), value.clone());
    match serde_json::from_value::<T>(Value::Object(tried)) {
        Ok(_) => Ok(()),
        Err(e) => Err(TrainError::option(
            format!("{file}: {key}"),
            format!("{value} is not a valid value: {e}"),
            "see --help for its values",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{LabelRule, RunOptions, SftOptions};

    fn merged(text: &str, flags: &[&str]) -> Result<SftOptions> {
        let parsed = SftOptions { run: RunOptions { learning_rate: 0.5, ..Default::default() }, ..Default::default() };
        merge(&parsed, "c.toml", text, |name| flags.contains(&name))
    }

    #[test]
    fn file_sets_options_without_flags() {
        let text = "learning-rate = 0.25\nmax_steps = 9\nlabels = \"text\"\nno-shuffle = true\ndata = \"d.jsonl\"\n";
        let o = merged(text, &["learning_rate"]).unwrap();
        assert_eq!((o.learning_rate, o.max_steps, o.labels, o.no_shuffle), (0.5, Some(9), Some(LabelRule::Text), true));
        assert_eq!(o.data, Path::new("d.jsonl"));
        assert_eq!(merged(text, &[]).unwrap().learning_rate, 0.25);
    }

    #[test]
    fn integers_are_valid_rates() {
        assert_eq!(merged("weight-decay = 1", &[]).unwrap().weight_decay, 1.0);
    }

    #[test]
    fn file_may_contain_start_flags() {
        let text = "overwrite = true\nresume-from-checkpoint = \"last\"\nmax-steps = 3\n";
        let start = StartFlags { overwrite: true, resume_from_checkpoint: Some("last".into()) };
        assert_eq!(StartFlags::parse("c.toml", text).unwrap(), start);
        assert_eq!(StartFlags::parse("c.toml", "max-steps = 3").unwrap(), StartFlags::default());
        // The two start flags do not become options of the run.
        let o = merged(text, &[]).unwrap();
        assert_eq!((o.max_steps, o.overwrite, o.resume_from_checkpoint.as_deref()), (Some(3), false, None));
        for (text, start) in [
            ("overwrite = 1", "c.toml: overwrite: 1 is not a valid value"),
            ("resume_from_checkpoint = true", "c.toml: resume_from_checkpoint: true is not a valid value"),
        ] {
            let message = StartFlags::parse("c.toml", text).unwrap_err().to_string();
            assert!(message.starts_with(start) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (text, start) in [
            ("learning-rat = 1.0", "c.toml: learning-rat: is not an option"),
            ("config = \"d.toml\"", "c.toml: config: is not allowed"),
            ("max-steps = \"many\"", "c.toml: max-steps: \"many\" is not a valid value"),
            ("labels = \"all\"", "c.toml: labels: \"all\" is not a valid value"),
            ("[sft]\nlabels = \"text\"", "c.toml: sft: is not an option"),
            ("seed = 1\nlabels = ", "c.toml:2: is not TOML"),
        ] {
            let e = merged(text, &[]).unwrap_err();
            let message = e.to_string();
            assert!(e.is_usage_error() && message.starts_with(start) && !message.contains('\n'), "{message}");
        }
    }
}
