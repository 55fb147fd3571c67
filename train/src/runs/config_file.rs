//! Reads the file of `--config FILE`: any options of a command, under the names of their flags, in TOML, YAML or JSON.
//! Flags on the command line override the file. The file may also be the `run.json` of a run: its options are those
//! of that run.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::options::StepRange;
use reel_support::diagnostic::input;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::runs::option_names;
use crate::runs::paste::table::option_of_alias;

/// The options of a configuration file that determine how the command starts and what it prints and traces. They do
/// not describe the run, so they are not written to `run.json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartFlags {
    /// Whether to overwrite an earlier run in OUT.
    pub overwrite: bool,
    /// The checkpoint folder to resume from; `last` is the newest checkpoint in OUT.
    pub resume_from_checkpoint: Option<String>,
    /// Number of processes to start on this machine.
    pub gpus: Option<u32>,
    /// The range of steps to trace.
    pub profile_steps: Option<StepRange>,
    /// Whether to print the result as JSON.
    pub json: bool,
    /// Whether to print no progress.
    pub quiet: bool,
    /// Whether to print more details.
    pub verbose: bool,
    /// Whether to work without downloads.
    pub offline: bool,
    /// File to which a trace of the run is written.
    pub trace: Option<PathBuf>,
}

/// The option names of the fields of [`StartFlags`], which [`ConfigFile::apply`] ignores.
const START: [&str; 9] =
    ["overwrite", "resume_from_checkpoint", "gpus", "profile_steps", "json", "quiet", "verbose", "offline", "trace"];

/// Options that earlier versions recorded in `run.json` and that changed no result. A run without them is the same.
const OPTIONS_OF_EARLIER_VERSIONS: [&str; 3] = ["serve", "serve_kv_memory", "serve_share"];

/// A configuration file: its keys and values, not yet checked.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: String,
    entries: Vec<ConfigEntry>,
    record: Option<RunRecord>,
}

/// What the `run.json` of a run says beside the run's options.
#[derive(Clone, Debug)]
struct RunRecord {
    command: String,
    /// The folder that relative paths in the options are relative to.
    working_directory: Option<PathBuf>,
}

/// One key of a configuration file with its value.
#[derive(Clone, Debug)]
struct ConfigEntry {
    /// The key as it is written in the file.
    key: String,
    /// The key in the form of a field name: `learning_rate` for `learning-rate`.
    field: String,
    value: Value,
}

/// The format of a configuration file. The file's extension determines it; any other extension means TOML.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Toml,
    Yaml,
    Json,
}

impl Format {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("yaml" | "yml") => Self::Yaml,
            Some("json") => Self::Json,
            _ => Self::Toml,
        }
    }
}

impl ConfigFile {
    /// Reads a configuration file. Its extension determines the format: YAML for .yaml or .yml, JSON for .json, else
    /// TOML.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or is not valid in its format.
    pub fn read(path: &Path) -> Result<Self> {
        let text = input::read_text(path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(path, e))?;
        Self::parse(&path.display().to_string(), Format::of(path), &text)
    }

    fn parse(path: &str, format: Format, text: &str) -> Result<Self> {
        let mut options = match format {
            Format::Toml => toml_options(path, text),
            Format::Yaml => yaml_options(path, text),
            Format::Json => json_options(path, text),
        }?;
        let record = (format == Format::Json).then(|| take_run_record(path, &mut options)).flatten();
        // A key with the value null counts as absent, as in the configuration files of other trainers.
        let entries = options.into_iter().filter(|(_, value)| !value.is_null());
        let entries =
            entries.map(|(key, value)| ConfigEntry { field: option_names::field_name(&key), key, value }).collect();
        Ok(Self { path: path.to_string(), entries, record })
    }

    /// Whether the file is the `run.json` of a run.
    pub fn is_run_record(&self) -> bool {
        self.record.is_some()
    }

    /// Refuses the `run.json` of a run that cannot be continued or repeated here: it is of another command than
    /// `command`, or options that the command line leaves unset have paths relative to another folder.
    ///
    /// # Errors
    /// As above.
    pub fn check_run_record(&self, command: &str, on_command_line: impl Fn(&str) -> bool) -> Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        if record.command != command {
            let what = format!("is the record of a run of reel {}", record.command);
            return Err(Error::usage(&self.path, what, format!("run reel {} --config {}", record.command, self.path)));
        }
        let real = |folder: &Path| folder.canonicalize().ok();
        let Some(folder) = record.working_directory.as_deref().filter(|folder| folder.is_dir()) else { return Ok(()) };
        if real(folder) == real(Path::new(".")) {
            return Ok(());
        }
        let unset = self.entries.iter().filter(|entry| !on_command_line(&entry.field));
        let relative = unset.filter_map(|entry| Some((entry, relative_path_in(folder, &entry.value)?))).next();
        relative.map_or(Ok(()), |(entry, path)| {
            let what = format!("is {path}, relative to {}, where the run was started", folder.display());
            Err(self.error(entry, what, "start the command there, or give the option with an absolute path"))
        })
    }

    /// Returns the keys and values of the file, in its order. Nested objects are values.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// Returns the options of the file that determine how the command starts.
    ///
    /// # Errors
    /// The value of one of these options has a wrong type.
    pub fn start_flags(&self) -> Result<StartFlags> {
        let mut options = Map::new();
        for entry in &self.entries {
            let field = option_of(&entry.field, |name| START.contains(&name));
            if START.contains(&field) {
                let value = self.fitting_value::<StartFlags>(&options, entry, field)?;
                options.insert(field.to_string(), value);
            }
        }
        serde_json::from_value(Value::Object(options)).map_err(|e| self.defect(e.to_string()))
    }

    /// Returns the options of the command line. Options that the command line leaves unset get their values from this
    /// file.
    ///
    /// `parsed` has the options of the command line; `on_command_line(name)` is true if the command line sets the
    /// option `name`, such as `learning_rate`. Keys in the file may be written with `-` or `_`, or as an alias of an
    /// option.
    ///
    /// # Errors
    /// An unknown or repeated key, or a value of the wrong type; the error names the key.
    pub fn apply<T: Serialize + DeserializeOwned>(
        &self,
        parsed: &T,
        on_command_line: impl Fn(&str) -> bool,
    ) -> Result<T> {
        let mut options = match serde_json::to_value(parsed).map_err(|e| self.defect(e.to_string()))? {
            Value::Object(map) => map,
            _ => return Err(self.defect("the options are not a table".into())),
        };
        let mut seen: Vec<(String, &str)> = Vec::new();
        for entry in &self.entries {
            let is_option = |name: &str| options.contains_key(name) || START.contains(&name);
            let field = option_of(&entry.field, is_option).to_string();
            if entry.field == "config" {
                let help = "put that file's options into this one";
                return Err(self.error(entry, "is not allowed in a configuration file", help));
            }
            if !is_option(&field) {
                return Err(self.unknown_key(entry, &options));
            }
            if let Some((_, before)) = seen.iter().find(|(set, _)| *set == field) {
                let what = format!("sets the same option as {before}");
                return Err(self.error(entry, what, "keep one of the two"));
            }
            seen.push((field.clone(), &entry.key));
            if START.contains(&field.as_str()) {
                continue;
            }
            let value = self.fitting_value::<T>(&options, entry, &field)?;
            if !on_command_line(&field) {
                options.insert(field, value);
            }
        }
        serde_json::from_value(Value::Object(options)).map_err(|e| self.defect(e.to_string()))
    }

    /// The error for a key that is not an option. It suggests the most similar option.
    fn unknown_key(&self, entry: &ConfigEntry, options: &Map<String, Value>) -> Error {
        let spelled = |field: &str| if entry.key.contains('_') { field.to_string() } else { field.replace('_', "-") };
        let similar = option_names::most_similar_option(&entry.field, options.keys().map(String::as_str).chain(START));
        let help =
            similar.map_or("see --help for the options".into(), |name| format!("did you mean {}?", spelled(name)));
        self.error(entry, "is not an option of this command", help)
    }

    /// Returns the value of a key in a type that the option accepts. A type is tested by deserializing the options
    /// with only this value changed, so that an error is about this key. As on the command line, a text may stand for
    /// a list, number or boolean if the option needs one, and `true` for the text "true".
    fn fitting_value<T: DeserializeOwned>(
        &self,
        options: &Map<String, Value>,
        entry: &ConfigEntry,
        field: &str,
    ) -> Result<Value> {
        let fits = |value: &Value| {
            let mut tried = options.clone();
            tried.insert(field.to_string(), value.clone());
            serde_json::from_value::<T>(Value::Object(tried)).map(drop)
        };
        let Err(e) = fits(&entry.value) else { return Ok(entry.value.clone()) };
        let other_forms = match &entry.value {
            Value::String(text) => vec![
                text.parse::<i64>().map_or(Value::Null, Value::from),
                text.parse::<f64>().map_or(Value::Null, Value::from),
                text.parse::<bool>().map_or(Value::Null, Value::from),
                text.split(',').map(|part| Value::from(part.trim())).collect(),
            ],
            Value::Bool(_) | Value::Number(_) => vec![Value::from(entry.value.to_string())],
            // A list of texts is the same as its texts with commas between them.
            Value::Array(list) => list
                .iter()
                .map(Value::as_str)
                .collect::<Option<Vec<_>>>()
                .map(|texts| vec![Value::from(texts.join(","))])
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let fitting = other_forms.into_iter().find(|form| !form.is_null() && fits(form).is_ok());
        fitting.ok_or_else(|| {
            let what = format!("{} is not a valid value: {}", entry.value, in_plain_words(&e.to_string()));
            self.error(entry, what, "see --help for its values")
        })
    }

    fn error(&self, entry: &ConfigEntry, what: impl Into<String>, help: impl Into<String>) -> Error {
        Error::usage(format!("{}: {}", self.path, entry.key), what, help)
    }

    fn defect(&self, what: String) -> Error {
        defect(&self.path, what)
    }
}

/// Returns the option for which the key `field` is an alias in a training command, else `field` itself.
fn option_of(field: &str, is_option: impl Fn(&str) -> bool) -> &str {
    let of = |command: &str| option_of_alias(field, command, &is_option);
    Some(of("sft")).filter(|option| *option != field).unwrap_or_else(|| of("grpo"))
}

fn defect(path: &str, what: String) -> Error {
    Error::usage(path, what, "report this as a defect")
}

/// The keys and values of a configuration file, in the order of the file.
type KeysAndValues = Vec<(String, Value)>;

fn toml_options(path: &str, text: &str) -> Result<KeysAndValues> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        not_of_format(path, Some(line), "TOML", e.message(), "write one option per line: name = value")
    })?;
    // NaN and infinity are refused. JSON has no such numbers, and null would mean that the option is not set.
    let is_finite = |value: &toml::Value| value.as_float().is_none_or(f64::is_finite);
    let json = |key: &str, value: toml::Value| {
        let all_finite = is_finite(&value) && value.as_array().is_none_or(|values| values.iter().all(is_finite));
        match all_finite {
            true => serde_json::to_value(value).map_err(|e| defect(path, e.to_string())),
            false => Err(Error::usage(format!("{path}: {key}"), format!("is {value}"), "give a finite number")),
        }
    };
    table.into_iter().map(|(key, value)| Ok((key.clone(), json(&key, value)?))).collect()
}

fn json_options(path: &str, text: &str) -> Result<KeysAndValues> {
    let error =
        |line, what: &str| not_of_format(path, line, "a JSON object of options", what, "write {\"name\": value, …}");
    let ObjectEntries(options) = serde_json::from_str(text).map_err(|e| error(Some(e.line()), &e.to_string()))?;
    let mut keys = BTreeSet::new();
    match options.iter().find(|(key, _)| !keys.insert(key)) {
        None => Ok(options),
        Some((key, _)) => Err(Error::usage(format!("{path}: {key}"), "is given twice", "remove one of the two")),
    }
}

/// If the keys are those of a run's `run.json`, replaces them by the options of the run. The run's output folder is
/// that of the file, wherever the run was started.
fn take_run_record(path: &str, entries: &mut KeysAndValues) -> Option<RunRecord> {
    let get = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let (command, Value::Object(options)) = (get("command")?.as_str()?.to_string(), get("options")?) else {
        return None;
    };
    let is_known = |(key, _): &(String, Value)| !OPTIONS_OF_EARLIER_VERSIONS.contains(&key.as_str());
    let mut options: KeysAndValues = options.clone().into_iter().filter(is_known).collect();
    let working_directory = get("working_directory").and_then(Value::as_str).map(PathBuf::from);
    let folder = Path::new(path).parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    options.iter_mut().filter(|(key, _)| key == "out").for_each(|(_, out)| *out = folder.display().to_string().into());
    *entries = options;
    Some(RunRecord { command, working_directory })
}

/// Returns the first relative path of an existing file or folder in the text of an option, or in its texts. Several
/// paths may be divided by commas, and have a weight or the name of a function after a colon.
fn relative_path_in(folder: &Path, value: &Value) -> Option<String> {
    if let Value::Array(values) = value {
        return values.iter().find_map(|value| relative_path_in(folder, value));
    }
    let pieces = value.as_str()?.split(',').map(str::trim);
    let paths = pieces.flat_map(|piece| [Some(piece), piece.rsplit_once([':', '@']).map(|(path, _)| path)]).flatten();
    let mut relative = paths.filter(|path| !path.is_empty() && Path::new(path).is_relative());
    relative.find(|path| folder.join(path).exists()).map(str::to_string)
}

/// The entries of a JSON object in file order. A repeated key gives several entries.
struct ObjectEntries(KeysAndValues);

impl<'de> Deserialize<'de> for ObjectEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = ObjectEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<ObjectEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(ObjectEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn yaml_options(path: &str, text: &str) -> Result<KeysAndValues> {
    let error =
        |line, what: &str| not_of_format(path, line, "YAML with one option per line", what, "write name: value");
    match serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false }) {
        Ok(Value::Object(map)) => Ok(map.into_iter().collect()),
        Ok(Value::Null) => Ok(Vec::new()),
        Ok(_) => Err(error(None, "it has another value")),
        Err(e) => {
            let text = e.to_string();
            // The library's text names functions of its own.
            let what = match text.contains("multiple YAML documents") {
                true => "it has several documents (a line `---`), of which a configuration is one",
                false => text.as_str(),
            };
            Err(error(e.location().map(|at| at.line() as usize), what))
        }
    }
}

/// The error of a value's type without the names of Rust's types.
fn in_plain_words(error: &str) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("u64", "a whole number of 0 or more"),
        ("u32", "a whole number of 0 or more"),
        ("usize", "a whole number of 0 or more"),
        ("i64", "a whole number"),
        ("f64", "a number"),
        ("f32", "a number"),
        ("path string", "a path"),
    ];
    let expected =
        WORDS.iter().find_map(|(name, words)| Some((error.strip_suffix(&format!("expected {name}"))?, words)));
    expected.map_or(error.to_string(), |(start, words)| format!("{start}expected {words}"))
}

fn not_of_format(path: &str, line: Option<usize>, format: &str, what: &str, help: &str) -> Error {
    let location = line.map_or(path.to_string(), |line| format!("{path}:{line}"));
    Error::usage(location, format!("is not {format}: {what}"), help)
}

#[cfg(test)]
mod tests {
    use crate::options::{GradientCheckpointing, ReportTo, RunOptions, SftOptions};
    use reel_samples::labels::LabelRule;

    use super::*;

    fn parse(text: &str) -> Result<ConfigFile> {
        ConfigFile::parse("c.toml", Format::Toml, text)
    }

    fn merged_from(file: &ConfigFile, flags: &[&str]) -> Result<SftOptions> {
        let parsed = SftOptions { run: RunOptions { learning_rate: 0.5, ..Default::default() }, ..Default::default() };
        file.apply(&parsed, |name| flags.contains(&name))
    }

    fn merged(text: &str, flags: &[&str]) -> Result<SftOptions> {
        merged_from(&parse(text)?, flags)
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
    fn numbers_that_are_not_finite_and_repeated_keys_are_refused() {
        for value in ["nan", "inf", "-inf", "+nan"] {
            let error = parse(&format!("max-grad-norm = {value}")).unwrap_err().to_string();
            assert!(
                error.starts_with("c.toml: max-grad-norm: is ") && error.ends_with("give a finite number"),
                "{error}"
            );
        }
        assert!(parse("reward-weights = [1.0, inf]").is_err());
        let repeated = ConfigFile::parse("c.json", Format::Json, r#"{"max_steps": 1, "max_steps": 2}"#);
        assert_eq!(repeated.unwrap_err().to_string(), "c.json: max_steps: is given twice; remove one of the two");
    }

    #[test]
    fn options_of_earlier_versions_are_ignored_in_a_record_and_refused_elsewhere() {
        let options = r#"{"max_steps": 7, "serve": 8000, "serve_kv_memory": 512, "serve_share": 0.2}"#;
        let record = format!(r#"{{"command": "sft", "options": {options}}}"#);
        let file = ConfigFile::parse("out/run.json", Format::Json, &record).unwrap();
        assert_eq!(merged_from(&file, &[]).unwrap().max_steps, Some(7));
        let file = ConfigFile::parse("c.json", Format::Json, options).unwrap();
        let error = merged_from(&file, &[]).unwrap_err().to_string();
        assert!(error.starts_with("c.json: serve: is not an option of this command"), "{error}");
    }

    #[test]
    fn integers_are_valid_rates() {
        assert_eq!(merged("weight-decay = 1", &[]).unwrap().weight_decay, 1.0);
    }

    #[test]
    fn toml_yaml_and_json_give_the_same_options() {
        let files = [
            (Format::Toml, "learning_rate = 1e-5\nreport-to = [\"wandb\"]\nmax-steps = 3\npacking = true\n"),
            (
                Format::Yaml,
                "# a run\nlearning_rate: 1e-5\nreport_to: wandb\nmax_steps: 3\npacking: true\nlabels: null\n",
            ),
            (Format::Json, r#"{"learning_rate": 1e-5, "report_to": ["wandb"], "max_steps": 3, "packing": true}"#),
        ];
        for (format, text) in files {
            let o = merged_from(&ConfigFile::parse("c", format, text).unwrap(), &[]).unwrap();
            assert_eq!((o.learning_rate, o.max_steps, o.packing), (1e-5, Some(3), true), "{format:?}");
            assert_eq!(o.report_to, [ReportTo::Wandb], "{format:?}");
        }
        let formats = ["a.yml", "b.YAML", "c.json", "d.toml", "e"].map(|path| Format::of(Path::new(path)));
        assert_eq!(formats, [Format::Yaml, Format::Yaml, Format::Json, Format::Toml, Format::Toml]);
        for (format, text) in [
            (Format::Yaml, "a: [1"),
            (Format::Yaml, "- 1\n- 2\n"),
            (Format::Yaml, "a: &a [*a, *a]"),
            (Format::Json, "{\"a\": }"),
            (Format::Json, "[1]"),
        ] {
            let e = ConfigFile::parse("c", format, text).unwrap_err();
            assert!(e.is_usage_error() && e.to_string().contains("is not "), "{e}");
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }

    #[test]
    fn several_data_files_may_be_a_list() {
        for text in ["data = [\"a.jsonl:0.7\", \"b.jsonl:0.3\"]", "data = \"a.jsonl:0.7,b.jsonl:0.3\""] {
            assert_eq!(merged(text, &[]).unwrap().data.to_str(), Some("a.jsonl:0.7,b.jsonl:0.3"), "{text}");
        }
    }

    #[test]
    fn wrong_types_are_named_without_types_of_rust() {
        for (text, words) in [
            ("max-steps = 1.5", "expected a whole number; "),
            ("gradient-accumulation-steps = -1", "expected a whole number of 0 or more; "),
            ("learning-rate = []", "expected a number; "),
            ("data = [1]", "expected a path; "),
        ] {
            let e = merged(text, &[]).unwrap_err().to_string();
            assert!(e.contains(words), "{text}: {e}");
        }
        let e = ConfigFile::parse("c", Format::Yaml, "a: 1\n---\na: 2\n").unwrap_err().to_string();
        assert!(e.contains("several documents") && !e.contains("from_str"), "{e}");
    }

    #[test]
    fn names_of_trl_are_taken() {
        let o = merged("model_name_or_path = \"m\"\noutput_dir = \"o\"\ndataset_name = \"d\"\nmax_length = 9", &[]);
        let o = o.unwrap();
        assert_eq!((o.model.as_str(), o.out.to_str(), o.data.to_str()), ("m", Some("o"), Some("d")));
        assert_eq!(o.max_length, Some(9));
        // TRL's files have a boolean for gradient checkpointing.
        for (value, want) in [
            ("true", Some(GradientCheckpointing::Full)),
            ("false", Some(GradientCheckpointing::None)),
            ("\"selective\"", Some(GradientCheckpointing::Selective)),
            ("7", None),
        ] {
            let o = merged(&format!("gradient_checkpointing = {value}"), &[]);
            assert_eq!(o.map(|o| o.gradient_checkpointing).ok(), want, "{value}");
        }
        assert!(parse("overwrite_output_dir = true").unwrap().start_flags().unwrap().overwrite);
    }

    #[test]
    fn file_may_contain_start_flags() {
        let text = "overwrite = true\nresume-from-checkpoint = \"last\"\nmax-steps = 3\n";
        let start =
            StartFlags { overwrite: true, resume_from_checkpoint: Some("last".into()), ..StartFlags::default() };
        assert_eq!(parse(text).unwrap().start_flags().unwrap(), start);
        assert_eq!(parse("max-steps = 3").unwrap().start_flags().unwrap(), StartFlags::default());
        let output = "json = true\nquiet = true\nverbose = true\noffline = true\ntrace = \"t\"\n\
                      gpus = 2\nprofile-steps = 3\n";
        let found = parse(output).unwrap().start_flags().unwrap();
        assert_eq!([found.json, found.quiet, found.verbose, found.offline], [true; 4]);
        assert_eq!(found.trace, Some("t".into()));
        assert_eq!((found.gpus, found.profile_steps), (Some(2), Some(StepRange { first: 3, last: 3 })));
        merged(output, &[]).unwrap();
        // The keys `overwrite` and `resume_from_checkpoint` of the file are not merged into the options of the run.
        let o = merged(text, &[]).unwrap();
        assert_eq!((o.max_steps, o.overwrite, o.resume_from_checkpoint.as_deref()), (Some(3), false, None));
        for (text, start) in [
            ("overwrite = 1", "c.toml: overwrite: 1 is not a valid value"),
            ("resume_from_checkpoint = [1]", "c.toml: resume_from_checkpoint: [1] is not a valid value"),
        ] {
            let message = parse(text).unwrap().start_flags().unwrap_err().to_string();
            assert!(message.starts_with(start) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (text, words) in [
            ("learning-rat = 1.0", &["c.toml: learning-rat: is not an option", "did you mean learning-rate?"][..]),
            ("config = \"d.toml\"", &["c.toml: config: is not allowed"]),
            ("max-steps = \"many\"", &["c.toml: max-steps: \"many\" is not a valid value"]),
            ("labels = \"all\"", &["c.toml: labels: \"all\" is not a valid value"]),
            ("[sft]\nlabels = \"text\"", &["c.toml: sft: is not an option"]),
            ("seed = 1\nlabels = ", &["c.toml:2: is not TOML"]),
            ("out = \"a\"\noutput_dir = \"b\"", &["c.toml: output_dir: sets the same option as out"]),
            ("max-steps = 1\nmax_steps = 2", &["c.toml: max_steps: sets the same option as max-steps"]),
        ] {
            let e = merged(text, &[]).unwrap_err();
            let message = e.to_string();
            assert!(e.is_usage_error() && !message.contains('\n'), "{message}");
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
