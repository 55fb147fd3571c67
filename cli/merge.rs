//! `reel merge`: merges a LoRA adapter into the weights of its base model.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_device::Device;
use reel_model::lora::{self, is_adapter_folder};
use reel_train::options::FolderFormatName;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::media::TrainingMediaSettings;
use crate::{output, prompt};

/// Merge a LoRA adapter into the weights of its base model: W + (alpha / r) B A in f32, rounded once to the dtype of W.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out adapter --max-steps 5 \\
    --lora-r 4 --learning-rate 1e-4
  reel merge --model tiny --adapter adapter --out merged")]
pub struct MergeArgs {
    /// Model folder of the base model, or Hugging Face model id
    #[arg(long, value_name = "BASE")]
    model: String,
    /// Folder of the LoRA adapter, as reel sft --lora-r or PEFT writes it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Model folder to write: the merged weights, all other files of the base model, and the record of the adapter's
    /// training run (run.json)
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Version of transformers whose layout config.json, chat template and processor files get [default: as in the base
    /// model]
    #[arg(long, value_enum, value_name = "FORMAT")]
    folder_format: Option<FolderFormatName>,
}

impl MergeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        if is_adapter_folder(Path::new(&self.model)) {
            let help = match prompt::base_model_of_adapter(Path::new(&self.model)) {
                Some(base) => format!("give its base model, {base}"),
                None => "give its base model".to_string(),
            };
            return Err(failed("--model", format!("{} is an adapter, not a model", self.model), help));
        }
        let base = prompt::find_or_download_model(&self.model)?;
        // The merged folder gets the adapter's run.json, from which `generate`, `score` and `eval` read the frame and
        // pixel settings of the training run.
        let trained = TrainingMediaSettings::read_from_run_folder(&self.adapter).map(|settings| settings.file);
        let more_files: Vec<&Path> = trained.iter().map(PathBuf::as_path).collect();
        let format = self.folder_format.map(FolderFormatName::format);
        let device = Device::cpu(common.threads()?);
        let merged = lora::merge_adapter(&base, &self.adapter, &self.out, &more_files, format, &device)?;
        if common.json {
            return output::print_json(&json!({"out": self.out, "layers": merged.layers, "bytes": merged.bytes}));
        }
        if common.quiet {
            return Ok(());
        }
        let megabytes = merged.bytes as f64 / 1e6;
        output::print_line(format!(
            "{}: adapter merged into {} layers, {megabytes:.1} MB written",
            self.out.display(),
            merged.layers
        ))
    }
}
