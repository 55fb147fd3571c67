//! The settings of the run that writes a predictions file. A run that continues the file must have the same settings,
//! which are stored in a JSON file beside it.

use std::path::Path;

use reel_support::diagnostic::{input, redact_urls};
use reel_support::files::digest::ModelFiles;
use reel_support::files::json::redact_urls_in_json;
use reel_support::ranks::Fact;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An input of a run: its path, and the fingerprint by which a later run recognises the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FingerprintedInput {
    path: String,
    fingerprint: String,
    /// The files of a model folder; empty for a data file.
    #[serde(default, skip_serializing_if = "ModelFiles::is_empty")]
    files: ModelFiles,
}

impl FingerprintedInput {
    /// An input that is not a folder: a data file, or the weights of a model during its training.
    pub fn new(path: &Path, fingerprint: impl Into<String>) -> Self {
        Self { path: path.display().to_string(), fingerprint: fingerprint.into(), files: ModelFiles::default() }
    }

    /// A model folder or an adapter's folder.
    ///
    /// # Errors
    /// A file of the folder cannot be read.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let files = ModelFiles::read(folder)?;
        Ok(Self { path: folder.display().to_string(), fingerprint: files.fingerprint(), files })
    }

    /// The model `model` of the server at `url`.
    pub fn of_endpoint(url: &str, model: &str) -> Self {
        Self { path: redact_urls(url), fingerprint: model.into(), files: ModelFiles::default() }
    }
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
    /// The settings of a run of `command` with a model and its adapter. `data` is the data file, or the name of the
    /// data, with its fingerprint and its number of rows. `device` is the device with its batch size, which is stored
    /// for a GPU only; `None` if a server answers the rows. User names, passwords and queries of URLs in the options
    /// are left out.
    pub fn new(
        command: &str,
        (model, adapter): (FingerprintedInput, Option<FingerprintedInput>),
        data: (&Path, String, usize),
        mut options: Map<String, Value>,
        device: Option<(&reel_device::Device, usize)>,
    ) -> Self {
        options.values_mut().for_each(redact_urls_in_json);
        let batch_size = device.and_then(|(device, size)| device.capabilities().fixed_decode_batch.then_some(size));
        Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            model,
            adapter,
            data: FingerprintedInput::new(data.0, data.1),
            rows: data.2,
            options,
            device: device.map_or("endpoint", |(device, _)| device.name()).into(),
            instruction_set: device.and_then(|(device, _)| device.instruction_set()).map(String::from),
            batch_size,
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
                Error::failed(file.display().to_string(), what, help)
            }
            _ => Error::cannot_read(file, e),
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::failed(
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
            Err(Error::usage(format!("--{}", option.replace('_', "-")), what, help))
        };
        let files =
            |input: &Option<FingerprintedInput>| input.as_ref().map(|input| input.files.clone()).unwrap_or_default();
        if self.model.fingerprint != earlier.model.fingerprint {
            let which = self.model.files.differences_from(&earlier.model.files);
            return refuse("model", of("is not the model of") + &which);
        }
        if self.adapter_fingerprint() != earlier.adapter_fingerprint() {
            let which = files(&self.adapter).differences_from(&files(&earlier.adapter));
            return refuse("adapter", of("is not the adapter of") + &which);
        }
        if self.data.fingerprint != earlier.data.fingerprint || self.rows != earlier.rows {
            return refuse("data", of("differs from the data of"));
        }
        match self.first_different_option(earlier) {
            Some((name, now, then)) => {
                refuse(name, format!("is {now}, but it was {then} in the run that --resume continues"))
            }
            None => Ok(()),
        }
    }

    /// Returns the settings that must be the same on all ranks, which answer the same questions in the same way.
    pub(super) fn facts(&self) -> Vec<Fact> {
        let inputs = [
            ("version of reel", self.version.as_str()),
            ("--device", &self.device),
            ("instruction set", self.instruction_set.as_deref().unwrap_or_default()),
            ("fingerprint of --model", &self.model.fingerprint),
            ("fingerprint of --adapter", self.adapter_fingerprint().unwrap_or_default()),
            ("fingerprint of the rows of --data", &self.data.fingerprint),
        ];
        let inputs = inputs.into_iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let option = |(name, value): (&String, &Value)| (format!("--{}", name.replace('_', "-")), value.to_string());
        inputs.chain(self.options.iter().map(option)).collect()
    }

    fn adapter_fingerprint(&self) -> Option<&str> {
        self.adapter.as_ref().map(|adapter| adapter.fingerprint.as_str())
    }

    /// Returns the name of an option that differs from `other`'s, with both values; `None` if none differs. An option
    /// that is not set has the value null.
    fn first_different_option<'s>(&'s self, other: &'s Self) -> Option<(&'s str, &'s Value, &'s Value)> {
        let value = |settings: &'s Self, name: &str| settings.options.get(name).unwrap_or(&Value::Null);
        let names = self.options.keys().chain(other.options.keys());
        names.map(|name| (name.as_str(), value(self, name), value(other, name))).find(|(_, own, others)| own != others)
    }

    /// Returns a warning if the results of a run with these settings may differ bit by bit from those of a run with the
    /// settings `earlier`.
    pub(super) fn bit_difference_warning(&self, earlier: &Self, device: &reel_device::Device) -> Option<String> {
        let described = serde_json::to_value(earlier).unwrap_or_default();
        if let Some(said) = reel_train::runs::run::device_change_warning(&described, device) {
            return Some(said);
        }
        let (now, then) = (self.batch_size?, earlier.batch_size?);
        (now != then).then(|| {
            format!("the run used --batch-size {then} and this process uses {now}, so results may differ in bits")
        })
    }
}
