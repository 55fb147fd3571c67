//! The settings of the run that writes a predictions file. A run that continues the file must have the same settings,
//! which are stored in a JSON file beside it.

use std::path::Path;

use reel_diagnostic::{input, redact_urls};
use reel_files::digest::ModelFiles;
use reel_files::json::redact_urls_in_json;
use reel_train::{Result, TrainError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An input of a run: its path, and the fingerprint by which a later run recognises the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FingerprintedInput {
    path: String,
    fingerprint: String,
    /// The files of a model folder; empty for a data file.
    #[serde(default, skip_serializing_if = "ModelFiles::is_empty")]
    files: ModelFiles,
}

/// The inputs and options that determine the bytes of a predictions file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionSettings {
    command: String,
    /// Version of reel.
    version: String,
    model: FingerprintedInput,
    adapter: Option<FingerprintedInput>,
    data: FingerprintedInput,
    /// Number of rows of the data.
    rows: usize,
    /// The options that influence the lines, by name.
    options: Map<String, Value>,
    /// Device and instruction set. On another device or with another instruction set, the bits may differ.
    device: String,
    instruction_set: Option<String>,
    /// Maximum number of sequences that decode together; `None` on a device where it does not change the bits of
    /// results.
    batch_size: Option<usize>,
    /// The folder that paths of media are relative to. The report page finds the videos there. A run that continues on
    /// another machine may have a different folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_root: Option<String>,
}

impl PredictionSettings {
    /// The settings of a run of `command` on `device`. `model` and `adapter` are folders. `data` is the data file
    /// with its fingerprint and its number of rows. `batch_size` is stored for a GPU only. User names, passwords and
    /// queries of URLs in the options are left out.
    ///
    /// # Errors
    /// A file of the model or of the adapter cannot be read.
    pub fn new(
        command: &str,
        (model, adapter): (&Path, Option<&Path>),
        data: (&Path, String, usize),
        mut options: Map<String, Value>,
        device: &reel_device::Device,
        batch_size: usize,
    ) -> Result<Self> {
        let input = |path: &Path, fingerprint, files| FingerprintedInput {
            path: path.display().to_string(),
            fingerprint,
            files,
        };
        let folder = |path: &Path| {
            let files = ModelFiles::read(path)?;
            Ok::<_, TrainError>(input(path, files.fingerprint(), files))
        };
        options.values_mut().for_each(redact_urls_in_json);
        Ok(Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            model: folder(model)?,
            adapter: adapter.map(folder).transpose()?,
            data: input(data.0, data.1, ModelFiles::default()),
            rows: data.2,
            options,
            device: device.name().into(),
            instruction_set: device.instruction_set().map(String::from),
            batch_size: device.capabilities().fixed_decode_batch.then_some(batch_size),
            media_root: None,
        })
    }

    /// The settings of a run of `command` in which the model `model` of the server at `url` answers the rows. `data`
    /// is the data file with its fingerprint and its number of rows.
    pub fn for_endpoint(
        command: &str,
        (url, model): (&str, &str),
        data: (&Path, String, usize),
        mut options: Map<String, Value>,
    ) -> Self {
        let input = |path: String, fingerprint| FingerprintedInput { path, fingerprint, files: ModelFiles::default() };
        options.values_mut().for_each(redact_urls_in_json);
        Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            model: input(redact_urls(url), model.to_string()),
            adapter: None,
            data: input(data.0.display().to_string(), data.1),
            rows: data.2,
            options,
            device: "endpoint".into(),
            instruction_set: None,
            batch_size: None,
            media_root: None,
        }
    }

    /// The settings of a run of `command` in which a model answers during its training. `model` is the name of the
    /// checkpoint of the present step, with the fingerprint of the weights; `data` is the name of the data with its
    /// fingerprint and its number of rows. `batch_size` is stored for a GPU only.
    pub fn for_training_model(
        command: &str,
        model: (&Path, &str),
        data: (&Path, String, usize),
        mut options: Map<String, Value>,
        device: &reel_device::Device,
        batch_size: usize,
    ) -> Self {
        let input = |path: &Path, fingerprint| FingerprintedInput {
            path: path.display().to_string(),
            fingerprint,
            files: ModelFiles::default(),
        };
        options.values_mut().for_each(redact_urls_in_json);
        Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            model: input(model.0, model.1.to_string()),
            adapter: None,
            data: input(data.0, data.1),
            rows: data.2,
            options,
            device: device.name().into(),
            instruction_set: device.instruction_set().map(String::from),
            batch_size: device.capabilities().fixed_decode_batch.then_some(batch_size),
            media_root: None,
        }
    }

    /// Returns these settings with `folder` as the folder that media paths are relative to.
    #[must_use]
    pub fn with_media_root(self, folder: &Path) -> Self {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        Self { media_root: Some(absolute.display().to_string()), ..self }
    }

    /// Number of rows of the data.
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Reads the settings of the predictions in the file `predictions`.
    pub(super) fn read(file: &Path, predictions: &Path) -> Result<Self> {
        let help = "restore it, or start again with --overwrite";
        let text = input::read_file(file, input::MAX_CONFIG_BYTES).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let what = format!("is missing, so the settings of {} are unknown", predictions.display());
                TrainError::output(file.display().to_string(), what, help)
            }
            _ => TrainError::cannot_read(file, e),
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            TrainError::output(
                file.display().to_string(),
                format!("does not hold the settings of a prediction run: {e}"),
                help,
            )
        })
    }

    /// The settings as the text of their file.
    pub(super) fn to_text(&self) -> Vec<u8> {
        // Serialization cannot fail: all fields are strings, numbers or JSON values.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Refuses to continue predictions that were made with the settings `earlier`.
    ///
    /// # Errors
    /// Model, adapter, data or an option differs; the error names the option.
    pub(super) fn check_equal(&self, earlier: &Self, predictions: &Path) -> Result<()> {
        let of = |what: &str| format!("{what} the run that --resume continues ({})", predictions.display());
        let refuse = |option: &str, what: String| {
            let help = "give the value of the earlier run, or start again with --overwrite";
            Err(TrainError::option(format!("--{}", option.replace('_', "-")), what, help))
        };
        let fingerprint = |input: &Option<FingerprintedInput>| input.as_ref().map(|input| input.fingerprint.clone());
        let files =
            |input: &Option<FingerprintedInput>| input.as_ref().map(|input| input.files.clone()).unwrap_or_default();
        if self.model.fingerprint != earlier.model.fingerprint {
            let which = self.model.files.differences_from(&earlier.model.files);
            return refuse("model", of("is not the model of") + &which);
        }
        if fingerprint(&self.adapter) != fingerprint(&earlier.adapter) {
            let which = files(&self.adapter).differences_from(&files(&earlier.adapter));
            return refuse("adapter", of("is not the adapter of") + &which);
        }
        if self.data.fingerprint != earlier.data.fingerprint || self.rows != earlier.rows {
            return refuse("data", of("differs from the data of"));
        }
        let names = self.options.keys().chain(earlier.options.keys());
        let value = |options: &Map<String, Value>, name: &str| options.get(name).cloned().unwrap_or_default();
        for name in names {
            let (now, then) = (value(&self.options, name), value(&earlier.options, name));
            if now != then {
                return refuse(name, format!("is {now}, but it was {then} in the run that --resume continues"));
            }
        }
        Ok(())
    }

    /// Returns the name of a setting that differs from rank 0's settings, such as `--model`; `None` if none differs.
    /// All ranks must answer the same questions in the same way.
    pub(super) fn difference_from_rank_0(&self, rank_0: &Self) -> Option<String> {
        let fingerprint = |input: &Option<FingerprintedInput>| input.as_ref().map(|input| input.fingerprint.clone());
        let differs = [
            ("version of reel", self.version != rank_0.version),
            ("--model", self.model.fingerprint != rank_0.model.fingerprint),
            ("--adapter", fingerprint(&self.adapter) != fingerprint(&rank_0.adapter)),
            ("--data", self.data.fingerprint != rank_0.data.fingerprint || self.rows != rank_0.rows),
            ("--device", self.device != rank_0.device),
            ("instruction set", self.instruction_set != rank_0.instruction_set),
        ];
        let option = || {
            let mut names = self.options.keys().chain(rank_0.options.keys());
            names.find(|name| self.options.get(*name) != rank_0.options.get(*name)).map(|name| name.replace('_', "-"))
        };
        match differs.iter().find(|(_, differs)| *differs) {
            Some((name, _)) => Some(name.to_string()),
            None => option().map(|name| format!("--{name}")),
        }
    }

    /// Returns a warning if the results of a run with these settings may differ bit by bit from those of a run with the
    /// settings `earlier`.
    pub(super) fn bit_difference_warning(&self, earlier: &Self, device: &reel_device::Device) -> Option<String> {
        let described = serde_json::to_value(earlier).unwrap_or_default();
        if let Some(said) = reel_runs::run::device_change_warning(&described, device) {
            return Some(said);
        }
        let (now, then) = (self.batch_size?, earlier.batch_size?);
        (now != then).then(|| {
            format!("the run used --batch-size {then} and this process uses {now}, so results may differ in bits")
        })
    }
}
