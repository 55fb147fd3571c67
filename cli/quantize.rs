//! `reel quantize`: writes a model with quantised weights, and measures what that does to the loss of held-out rows.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;
use reel_input::config::ModelConfig;
use reel_model::linear_inputs::LinearInputs;
use reel_model::quantization::Quantization;
use reel_model::save::ModelQuantizer;
use reel_support::diagnostic::note;
use reel_train::SftOptions;
use reel_train::metrics::ValidationLoss;
use reel_train::options::RunOptions;
use reel_train::runs::sft;
use reel_train::setup::{DataSetup, RunControl};
use reel_train::step::validation::ValidationLossPass;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags, check_fits_model};
use crate::model::LoadedModel;
use crate::{hub, output, prompt};

/// Write a model with quantised weights, as transformers and vLLM read it, and report the perplexity of held-out rows
/// before and after.
///
/// The linear layers of the decoder are quantised. The vision tower, embeddings, output layer, norms and biases keep
/// their dtype. The report is also written to quantize.json in the output folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel quantize --model tiny --format fp8 --out tiny-fp8
  reel quantize --model tiny --format awq --out tiny-awq --data rows.json")]
pub struct QuantizeArgs {
    /// Model folder with plain weights, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// fp8: 8-bit floats (e4m3) with a scale for each block of 128 x 128 weights, by absolute maximum. awq: 4 bits with
    /// a scale and a zero point for each 128 inputs of an output, calibrated on the rows of --data
    #[arg(long, value_parser = ["fp8", "awq"])]
    format: String,
    /// Model folder to write: the weights, config.json with quantization_config, and all other files of the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Calibration rows of awq, in the forms of reel sft --data
    #[arg(long, value_name = "FILE", required_if_eq("format", "awq"))]
    data: Option<PathBuf>,
    /// Use only the first N rows of --data
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_samples: u32,
    /// Held-out rows for the perplexity, in the forms of reel sft --data [default: none is computed]
    #[arg(long, value_name = "FILE")]
    eval_file: Option<PathBuf>,
    /// Folder that media paths in the rows are relative to [default: the folder of the first file of rows]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl QuantizeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let is_awq = self.format == "awq";
        if self.data.is_some() && !is_awq {
            let help = "leave it out; --eval-file names rows for the perplexity";
            return Err(usage_error("--data", "has calibration rows, but fp8 needs none", help));
        }
        let base = prompt::find_or_download_model(&self.model)?;
        let quantizer = ModelQuantizer::open(&base, &self.out, is_awq)?;
        let held_out = |folder: &Path| {
            let file = self.eval_file.as_deref();
            file.map(|file| self.loss(&open(folder, common)?, folder, ("--eval-file", file, None), common)).transpose()
        };
        let before = held_out(&base)?;
        let (mut calibration, mut inputs) = (None, LinearInputs::new());
        if let Some(file) = &self.data {
            let mut model = open(&base, common)?;
            inputs = model.weights.text.record_linear_inputs();
            let rows = self.loss(&model, &base, ("--data", file, Some(self.max_samples as usize)), common)?.eval_rows;
            calibration = Some(json!({"rows": rows, "tokens": inputs.values().next().map(|input| input.means().0)}));
        }
        let bytes = quantizer.write(&inputs, &self.out)?;
        let after = held_out(&self.out)?;
        let perplexity = [&before, &after].map(|loss| loss.as_ref().map(|loss| loss.eval_loss.exp()));
        let report = json!({"out": self.out, "format": self.format, "bytes": bytes, "calibration": calibration,
            "before": before, "after": after, "perplexity_before": perplexity[0], "perplexity_after": perplexity[1]});
        output::write_file(&self.out.join("quantize.json"), format!("{report:#}\n").as_bytes())?;
        if common.json {
            return output::print_json(&report);
        }
        if common.quiet {
            return Ok(());
        }
        let (out, megabytes) = (self.out.display(), bytes as f64 / 1e6);
        output::print_line(format!("{out}: {megabytes:.1} MB of weights written in {}", self.format))?;
        let (Some(loss), [Some(before), Some(after)]) = (before, perplexity) else { return Ok(()) };
        let (tokens, rows) = (loss.eval_tokens, loss.eval_rows);
        output::print_line(format!("perplexity {before:.4} before, {after:.4} after ({tokens} tokens of {rows} rows)"))
    }

    /// Computes the loss of the rows of `file`, the value of the option `flag`.
    fn loss(
        &self,
        model: &LoadedModel,
        folder: &Path,
        (flag, file, max_rows): (&'static str, &Path, Option<usize>),
        common: &CommonOptions,
    ) -> Result<ValidationLoss> {
        let file = hub::local_data_path(flag, file)?;
        let media_root = self.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(&file));
        let media = self.media.training_options(&self.access, &self.worker, &media_root, common)?;
        check_fits_model(&media, &model.weights.config)?;
        let run = RunOptions { media_root: Some(media_root), ..RunOptions::default() };
        let options = SftOptions { run, ..SftOptions::default() };
        let data = DataSetup { model: folder, media: &media, seed: 0 };
        // No signal sets it: Ctrl-C ends this command at once and removes the unfinished folder.
        let stop = AtomicBool::new(false);
        let rows = sft::open_rows(&options, &data, RunControl::one_process(&stop), (flag, &file), max_rows)?;
        let print = |text: &str| {
            if !common.quiet && !common.json {
                note!("{flag}: {text}");
            }
        };
        Ok(rows.loss(ValidationLossPass::of_model(&model.weights, &model.cx), &print)?)
    }
}

/// Opens a model to compute the loss of rows. Quantised weights stay quantised in memory.
fn open(folder: &Path, common: &CommonOptions) -> Result<LoadedModel> {
    let config = ModelConfig::open(folder)?;
    LoadedModel::open_with_adapter(folder, None, &config, Quantization::OfFiles, common)
}
