//! `reel dequantize`: writes the plain model of a folder with quantised weights.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_input::tensor_file::StoredDType;
use serde_json::json;

use crate::common::{CommonOptions, DtypeName};
use crate::{output, prompt};

/// Write the model of a folder with quantised weights (AWQ, GPTQ, compressed-tensors, fp8, nf4) with all weights in one
/// dtype: (code - zero point) * scale in f32, rounded once to --dtype.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel dequantize --model Qwen2.5-VL-3B-Instruct-AWQ --dtype bf16 --out plain")]
pub struct DequantizeArgs {
    /// Model folder with quantised weights, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Model folder to write: the weights under their published names, config.json without quantization_config, and all
    /// other files of the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl DequantizeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let base = prompt::find_or_download_model(&self.model)?;
        let dtype = match common.dtype {
            Some(DtypeName::F32) => StoredDType::F32,
            Some(DtypeName::Bf16) | None => StoredDType::Bf16,
        };
        let bytes = reel_model::save::dequantize_model(&base, &self.out, dtype)?;
        if common.json {
            return output::print_json(&json!({"out": self.out, "bytes": bytes, "dtype": dtype.torch_dtype_name()}));
        }
        if common.quiet {
            return Ok(());
        }
        let megabytes = bytes as f64 / 1e6;
        output::print_line(format!(
            "{}: {megabytes:.1} MB of weights written in {}",
            self.out.display(),
            dtype.torch_dtype_name()
        ))
    }
}
