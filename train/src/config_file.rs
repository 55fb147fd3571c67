//! `--config FILE.toml`: any option of a command in a file, under the flag's name; a flag on the command line wins.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Result, TrainError};

/// Options that say how a run is started, not what it is.
const ONLY_FLAGS: [&str; 3] = ["config", "overwrite", "resume_from_checkpoint"];

/// `parsed` with the file's values in place of those that the command line left to their defaults.
///
/// `on_command_line` tells by an option's field name (`learning_rate`) whether its flag was given. Keys may be written
/// with `-` or `_`. A key that `parsed` has no field for, or a value of the wrong kind, is an error that names it.
pub fn apply<T: Serialize + DeserializeOwned>(
    parsed: &T,
    file: &Path,
    on_command_line: impl Fn(&str) -> bool,
) -> Result<T> {
    let text = std::fs::read_to_string(file).map_err(|e| TrainError::read(file, e))?;
    merge(parsed, &file.display().to_string(), &text, on_command_line)
}

fn merge<T: Serialize + DeserializeOwned>(
    parsed: &T,
    file: &str,
    text: &str,
    on_command_line: impl Fn(&str) -> bool,
) -> Result<T> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        TrainError::option(
            format!("{file}:{line}"),
            format!("is not TOML: {}", e.message()),
            "write a line an option: name = value",
        )
    })?;
    let broken = |what: String| TrainError::option(file, what, "report this as a defect");
    let mut options = match serde_json::to_value(parsed).map_err(|e| broken(e.to_string()))? {
        Value::Object(map) => map,
        _ => return Err(broken("the options are not a table".into())),
    };
    for (key, value) in &table {
        let field = key.replace('-', "_");
        if ONLY_FLAGS.contains(&field.as_str()) {
            return Err(TrainError::option(
                format!("{file}: {key}"),
                "belongs on the command line: it is about one start of a run",
                "leave it out of the file, and give the flag",
            ));
        }
        if !options.contains_key(&field) {
            return Err(TrainError::option(
                format!("{file}: {key}"),
                "is no option of this command",
                "see --help for those there are",
            ));
        }
        let value = serde_json::to_value(value).map_err(|e| broken(e.to_string()))?;
        check_kind::<T>(&options, file, key, &field, &value)?;
        if !on_command_line(&field) {
            options.insert(field, value);
        }
    }
    serde_json::from_value(Value::Object(options)).map_err(|e| broken(e.to_string()))
}

/// Tries the one value alone, so that the error can name its key.
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
            format!("{value} does not fit: {e}"),
            "see --help for what it takes",
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
    fn a_file_sets_what_no_flag_does() {
        let text = "learning-rate = 0.25\nmax_steps = 9\nlabels = \"text\"\nno-shuffle = true\ndata = \"d.jsonl\"\n";
        let o = merged(text, &["learning_rate"]).unwrap();
        assert_eq!((o.learning_rate, o.max_steps, o.labels, o.no_shuffle), (0.5, Some(9), Some(LabelRule::Text), true));
        assert_eq!(o.data, Path::new("d.jsonl"));
        assert_eq!(merged(text, &[]).unwrap().learning_rate, 0.25);
    }

    #[test]
    fn whole_numbers_serve_as_rates() {
        assert_eq!(merged("weight-decay = 1", &[]).unwrap().weight_decay, 1.0);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, start) in [
            ("learning-rat = 1.0", "c.toml: learning-rat: is no option"),
            ("resume-from-checkpoint = \"last\"", "c.toml: resume-from-checkpoint: belongs on the command line"),
            ("overwrite = true", "c.toml: overwrite: belongs on the command line"),
            ("max-steps = \"many\"", "c.toml: max-steps: \"many\" does not fit"),
            ("labels = \"all\"", "c.toml: labels: \"all\" does not fit"),
            ("[sft]\nlabels = \"text\"", "c.toml: sft: is no option"),
            ("seed = 1\nlabels = ", "c.toml:2: is not TOML"),
        ] {
            let e = merged(text, &[]).unwrap_err();
            let said = e.to_string();
            assert!(e.is_usage() && said.starts_with(start) && !said.contains('\n'), "{said}");
        }
    }
}
