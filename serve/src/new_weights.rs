//! Weights that replace the weights in service. Their files are checked before the engine's thread loads them. If
//! several processes serve the model, only rank 0 checks the values, while its engine continues. The other ranks read
//! only their part of the weights.

use std::path::Path;

use reel_device::{DType, Device};
use reel_input::config::ModelConfig;
use reel_input::tokenizer::Tokenizer;
use reel_model::checkpoint::Checkpoint;
use reel_model::lora::{Adapter, AdapterSource, is_adapter_folder};
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::QwenVl;
use reel_model::tensor_parallel::TensorParallel;

use crate::error::{Error, Result};
use crate::settings::ServedModel;

const HELP: &str = "give a model of the same architecture with the same tokenizer";

/// The checked files of a model folder, or of an adapter and its base model. They fit the model in service.
#[derive(Debug)]
pub(crate) struct CheckedWeightFiles {
    config: ModelConfig,
    files: Checkpoint,
    adapter: Option<Adapter>,
    quantization: Quantization,
    parallel: Option<TensorParallel>,
}

impl CheckedWeightFiles {
    /// Checks the files of `folder`: config.json and tokenizer.json fit those of `served`, and the weight files have
    /// exactly the tensors of config.json. Reads no values of weights.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit; the error names the file and the field or tensor.
    pub(crate) fn open(folder: &Path, served: &ServedModel) -> Result<Self> {
        let (base, adapter) = match is_adapter_folder(folder) {
            true => {
                let adapter = Adapter::open(folder)?;
                (adapter.local_base_model(folder, "merge the adapter with its base (reel merge)")?, Some(adapter))
            }
            false => (folder.to_path_buf(), None),
        };
        let config = ModelConfig::open(&base)?;
        if let Some((key, other, own)) = served.folder.config.first_difference(&config) {
            let location = format!("{}: {key}", base.join("config.json").display());
            return Err(Error::input(location, differs(&other, &own), HELP));
        }
        let tokenizer = Tokenizer::open(&base)?;
        tokenizer.check_fits(&config)?;
        if let Some((id, other, own)) = served.folder.tokenizer.first_difference(&tokenizer) {
            let location = format!("{}: token {id}", base.join("tokenizer.json").display());
            let what = differs(&format!("{other:?}"), &format!("{own:?}"));
            return Err(Error::input(location, what, HELP));
        }
        let files = Checkpoint::open(&base)?.with_copied_weights(served.is_copied);
        files.check(&config)?;
        let (files, config) = match &adapter {
            Some(adapter) => {
                adapter.check(&config)?;
                adapter.replace_tensors(files, &config)?
            }
            None => (files, config),
        };
        let parallel = served.divided.as_ref().map(|divided| divided.parallel.clone());
        Ok(Self { config, files, adapter, quantization: served.quantization, parallel })
    }

    /// Checks that every weight is finite. Reading all values also brings the files into the page cache, so that
    /// loading the weights takes less time.
    ///
    /// # Errors
    /// The first tensor with a value that is NaN or infinite.
    pub(crate) fn check_values(&self) -> Result<()> {
        self.files.check_values()
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(crate) fn load(&self, device: &Device, dtype: DType) -> Result<QwenVl> {
        let parallel = self.parallel.as_ref();
        let base = QwenVl::open_quantized(device, &self.files, &self.config, dtype, self.quantization, parallel)?;
        match &self.adapter {
            Some(adapter) => base.with_adapter(device, dtype, AdapterSource::Files(adapter), false),
            None => Ok(base),
        }
    }
}

/// A text about a value that differs from the value of the model in service.
fn differs(other: &str, own: &str) -> String {
    match other == own {
        true => format!("is {other} in both models, but a special token in only one of them"),
        false => format!("is {other}, but the model that is served has {own}"),
    }
}
