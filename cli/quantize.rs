//! `reel quantize`: writes a model with quantised weights, and measures what that does to the loss of held-out rows.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::{Args, ValueEnum};
use reel_input::config::ModelConfig;
use reel_model::linear_inputs::{InputMoments, LinearInputs};
use reel_model::quantization::Quantization;
use reel_model::save::{ModelQuantizer, QuantizedFormat};
use reel_support::diagnostic::note;
use reel_train::SftOptions;
use reel_train::metrics::ValidationLoss;
use reel_train::options::RunOptions;
use reel_train::runs::sft;
use reel_train::setup::{DataSetup, RunControl};
use reel_train::step::validation::ValidationLossPass;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags, check_fits_model};
use crate::model::LoadedModel;
use crate::{hub, output, prompt};

/// The report in the output folder.
const REPORT_FILE: &str = "quantize.json";

/// Write a model with quantised weights, as transformers and vLLM read it, and report the perplexity of held-out rows
/// before and after.
///
/// The linear layers of the decoder are quantised. The vision tower, embeddings, output layer, norms and biases keep
/// their dtype. The report is printed and written to quantize.json in the output folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel quantize --model tiny --format fp8 --out tiny-fp8 --eval-file rows.json
  reel quantize --model tiny --format awq --out tiny-awq --data rows.json")]
pub struct QuantizeArgs {
    /// Model folder with plain weights, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Format of the weights
    #[arg(long, value_enum)]
    format: FormatName,
    /// Model folder to write: the weights, config.json with quantization_config, all other files of the model, and the
    /// report
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Calibration rows of awq, in the forms of reel sft --data
    #[arg(long, value_name = "FILE", required_if_eq("format", "awq"))]
    data: Option<PathBuf>,
    /// Use only the first N rows of --data for calibration
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_samples: u32,
    /// Held-out rows for the perplexity, in the forms of reel sft --data [default: the next N rows of --data]
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

/// A format of quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    /// 8-bit floats (e4m3) with a scale for each block of 128 x 128 weights, by absolute maximum
    Fp8,
    /// 4 bits with a scale and a zero point for each 128 inputs of an output, calibrated on rows (--data)
    Awq,
}

impl QuantizeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let format = match self.format {
            FormatName::Fp8 => QuantizedFormat::Fp8,
            FormatName::Awq => QuantizedFormat::Awq,
        };
        if self.data.is_some() && format == QuantizedFormat::Fp8 {
            let help = "leave it out; --eval-file names rows for the perplexity";
            return Err(usage_error("--data", "has calibration rows, but fp8 needs none", help));
        }
        let local = |flag: &'static str, file: &Option<PathBuf>| -> Result<_> {
            Ok(file.as_deref().map(|file| hub::local_data_path(flag, file)).transpose()?.map(|file| (flag, file)))
        };
        let (data, eval_file) = (local("--data", &self.data)?, local("--eval-file", &self.eval_file)?);
        let base = prompt::find_or_download_model(&self.model)?;
        let quantizer = ModelQuantizer::open(&base, &self.out, format)?;
        let calibrated = 0..self.max_samples as usize;
        let held_out = match &eval_file {
            Some(rows) => Some((rows, 0..usize::MAX)),
            None => data.as_ref().map(|rows| (rows, calibrated.end..2 * calibrated.end)),
        };
        let loss = |model: &LoadedModel, rows: Option<(&(&'static str, PathBuf), Range<usize>)>| match rows {
            Some(((flag, file), range)) => self.loss(model, &base, (flag, file), range, common),
            None => Ok(None),
        };
        let (mut before, mut calibration, mut inputs) = (None, Value::Null, LinearInputs::new());
        if data.is_some() || eval_file.is_some() {
            let mut model = open(&base, common)?;
            before = loss(&model, held_out.clone())?;
            if data.is_some() {
                inputs = model.weights.record_linear_inputs();
                let rows = loss(&model, data.as_ref().map(|rows| (rows, calibrated)))?.map_or(0, |loss| loss.eval_rows);
                calibration = json!({"rows": rows, "tokens": inputs.values().next().map_or(0, |of| InputMoments::tokens(of))});
            }
        }
        let bytes = quantizer.write(&inputs)?;
        let after = match &before {
            Some(_) => loss(&open(&self.out, common)?, held_out)?,
            None => None,
        };
        let perplexity = before.zip(after).map(|(before, after)| {
            json!({
                "rows": before.eval_rows, "tokens": before.eval_tokens, "skipped": before.eval_skipped,
                "loss_before": before.eval_loss, "loss_after": after.eval_loss,
                "perplexity_before": before.eval_loss.exp(), "perplexity_after": after.eval_loss.exp(),
            })
        });
        let name = self.format.to_possible_value().map_or(String::new(), |value| value.get_name().to_string());
        let report = json!({
            "out": self.out, "format": name, "bytes": bytes, "calibration": calibration, "held_out": perplexity,
        });
        output::write_file(&self.out.join(REPORT_FILE), format!("{report:#}\n").as_bytes())?;
        if common.json {
            return output::print_json(&report);
        }
        if common.quiet {
            return Ok(());
        }
        output::print_line(format!("{}: {:.1} MB of weights written in {name}", self.out.display(), bytes as f64 / 1e6))?;
        let Some(held_out) = perplexity else { return Ok(()) };
        let number = |key: &str| held_out[key].as_f64().unwrap_or(f64::NAN);
        output::print_line(format!(
            "held-out rows: perplexity {:.4} before, {:.4} after; loss {:.4} before, {:.4} after ({} tokens of {} rows)",
            number("perplexity_before"),
            number("perplexity_after"),
            number("loss_before"),
            number("loss_after"),
            held_out["tokens"],
            held_out["rows"]
        ))
    }

    /// Computes the loss of the rows `range` of `file`, the value of the option `flag`. `None` if the file has none of
    /// these rows.
    fn loss(
        &self,
        model: &LoadedModel,
        folder: &Path,
        (flag, file): (&'static str, &Path),
        range: Range<usize>,
        common: &CommonOptions,
    ) -> Result<Option<ValidationLoss>> {
        let root = self.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(file));
        let media = self.media.training_options(&self.access, &self.worker, &root, common)?;
        check_fits_model(&media, &model.weights.config)?;
        let run = RunOptions { media_root: Some(root), ..RunOptions::default() };
        let options = SftOptions { run, ..SftOptions::default() };
        let data = DataSetup { model: folder, media: &media, seed: 0 };
        // No signal sets it: Ctrl-C ends this command at once and removes the unfinished folder.
        let stop = AtomicBool::new(false);
        let rows = sft::open_rows(&options, &data, RunControl::one_process(&stop), (flag, file), range)?;
        let print = |text: &str| {
            if !common.quiet && !common.json {
                note!("{flag}: {text}");
            }
        };
        let pass = ValidationLossPass::of_model(&model.weights, &model.cx);
        Ok(rows.map(|rows| rows.loss(pass, &print)).transpose()?)
    }
}

/// Opens a model to compute the loss of rows. Quantised weights stay quantised in memory.
fn open(folder: &Path, common: &CommonOptions) -> Result<LoadedModel> {
    let config = ModelConfig::open(folder)?;
    LoadedModel::open_with_adapter(folder, None, &config, Quantization::OfFiles, common)
}
