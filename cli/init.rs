//! `reel init`: creates a model folder with random weights.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_input::tensor_file::StoredDType;
use reel_model::init::{InitOptions, InitReport, Preset, init_model_folder, init_siglip};
use reel_model::save::ConfigAndTokenizerFiles;
use reel_train::options::FolderFormatName;

use crate::common::{CommonOptions, DtypeName};
use crate::fail::usage_error;
use crate::output;

/// The preset of the SigLIP model that computes the semantic reward; all other presets are models that see video.
const SIGLIP_TINY: &str = "siglip-tiny";

/// The default dtype of the weights of [`SIGLIP_TINY`].
const SIGLIP_DTYPE: StoredDType = StoredDType::F32;

/// Maximum number of decoder layers, and of rows of the embedding table. Larger numbers are mistakes, and the names
/// of so many tensors would fill the memory.
const MAX_LAYERS: usize = 1000;
const MAX_VOCAB: usize = 1 << 24;

/// Create a model folder with random weights, in the layout of the Hugging Face hub.
#[derive(Args, Debug)]
#[command(mut_arg("preset", |a| {
    a.required(true).help("Model size: tiny (1 M parameters, f32), 3b, 7b, 32b or 72b of Qwen2.5-VL (as published, bf16); \
        qwen3-tiny, qwen3-2b, qwen3-4b, qwen3-8b or qwen3-32b of Qwen3-VL; or siglip-tiny (a SigLIP for --siglip, f32)")
}))]
#[command(after_help = "Example:\n  reel init --preset tiny --out tiny")]
pub struct InitArgs {
    #[command(flatten)]
    shape: ModelSizeFlags,
    /// Model folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Version of transformers whose layout config.json, chat template and processor files get
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FolderFormatName::Transformers4)]
    folder_format: FolderFormatName,
}

/// Options for the size of a model. With them, `reel plan` needs no model folder.
#[derive(Args, Clone, Debug)]
pub struct ModelSizeFlags {
    /// Model size: tiny (1 M parameters, f32), 3b, 7b, 32b or 72b of Qwen2.5-VL (as published, bf16); qwen3-tiny,
    /// qwen3-2b, qwen3-4b, qwen3-8b or qwen3-32b of Qwen3-VL
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Number of decoder layers [default: the preset's]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Vocabulary size: rows of the embedding table [default: the preset's]
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
}

impl ModelSizeFlags {
    /// Refuses the options that change the size of a preset, for a command whose `--model` has its own size.
    pub fn refuse_beside_model(&self) -> Result<()> {
        let given = [("--layers", self.layers.is_some()), ("--vocab", self.vocab.is_some())];
        given.iter().find(|(_, is_given)| *is_given).map_or(Ok(()), |(name, _)| {
            Err(usage_error(
                name,
                "changes the size of a preset, but --model has its own size",
                "give --preset instead",
            ))
        })
    }

    /// Converts these options to those of `reel_model::init`.
    pub fn options(&self, common: &CommonOptions) -> Result<InitOptions> {
        let dtype = stored(common);
        let name = self.preset.as_deref().unwrap_or("tiny");
        let help = || format!("choose {}", Preset::NAMES);
        let unknown = |_| usage_error("--preset", format!("there is no preset `{name}`"), help());
        let preset = Preset::parse(name).map_err(unknown)?;
        for (flag, given, most) in [("--layers", self.layers, MAX_LAYERS), ("--vocab", self.vocab, MAX_VOCAB)] {
            if let Some(n) = given.filter(|n| !(1..=most).contains(n)) {
                return Err(usage_error(flag, format!("is {n}"), format!("give 1 to {most}")));
            }
        }
        Ok(InitOptions { preset, layers: self.layers, vocab: self.vocab, dtype, seed: common.seed() })
    }
}

/// Converts `--dtype` to the dtype of weight files; `None` if the option is not given.
fn stored(common: &CommonOptions) -> Option<StoredDType> {
    common.dtype.map(|d| match d {
        DtypeName::F32 => StoredDType::F32,
        DtypeName::Bf16 => StoredDType::Bf16,
    })
}

/// Returns the help text of `--dtype` for `reel init`. The default is the preset's dtype on every device.
pub fn dtype_help() -> String {
    let presets = Preset::ALL.map(|preset| (preset.name(), preset.default_dtype()));
    let of = |wanted: StoredDType| {
        let all = presets.into_iter().chain([(SIGLIP_TINY, SIGLIP_DTYPE)]);
        let names: Vec<&str> = all.filter(|(_, dtype)| *dtype == wanted).map(|(name, _)| name).collect();
        match names.split_last() {
            Some((last, names @ [_, ..])) => format!("{} and {last}", names.join(", ")),
            _ => names.concat(),
        }
    };
    let (f32, bf16) = (of(StoredDType::F32), of(StoredDType::Bf16));
    format!("Data type of the weights [default: f32 for {f32}, bf16 for {bf16}]")
}

impl InitArgs {
    fn create(&self, common: &CommonOptions) -> Result<InitReport> {
        let preset = self.shape.preset.as_deref().unwrap_or_default();
        if preset != SIGLIP_TINY {
            let help = format!("choose {}", Preset::NAMES.replace(" or", ",") + " or " + SIGLIP_TINY);
            Preset::parse(preset)
                .map_err(|_| usage_error("--preset", format!("there is no preset `{preset}`"), help))?;
            let report = init_model_folder(&self.shape.options(common)?, &self.out)?;
            if self.folder_format != FolderFormatName::Transformers4 {
                ConfigAndTokenizerFiles::convert_folder(&self.out, self.folder_format.format())?;
            }
            return Ok(report);
        }
        let format = self.folder_format != FolderFormatName::Transformers4;
        let given = [
            ("--layers", self.shape.layers.is_some()),
            ("--vocab", self.shape.vocab.is_some()),
            ("--folder-format", format),
        ];
        for (flag, is_given) in given {
            if is_given {
                return Err(usage_error(
                    flag,
                    format!("the preset {SIGLIP_TINY} has a fixed size and layout, which this flag cannot change"),
                    "leave the flag out",
                ));
            }
        }
        Ok(init_siglip(stored(common).unwrap_or(SIGLIP_DTYPE), common.seed(), &self.out)?)
    }

    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let made = self.create(common)?;
        if common.json {
            return output::print_json(
                &serde_json::json!({"parameters": made.parameters, "bytes": made.bytes, "out": self.out}),
            );
        }
        let millions = made.parameters as f64 / 1e6;
        output::print_line(format!(
            "{}: {millions:.1} M parameters, {:.1} MB",
            self.out.display(),
            made.bytes as f64 / 1e6
        ))
    }
}
