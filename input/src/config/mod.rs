//! The config files of a model folder: `config.json`, `generation_config.json`, `preprocessor_config.json`.
//!
//! Accepts the files of transformers 4.49 to 5: text keys at the top level or in `text_config`, `torch_dtype` or
//! `dtype`, `rope_theta` and `rope_scaling` or `rope_parameters`, and vision keys left out if they equal the defaults
//! of `Qwen2_5_VLVisionConfig`. Unsupported values, and values that contradict each other, are rejected here, so the
//! rest of the program does not check them again.
//!
//! `model_type` names the model family ([`Family`]). What the families do differently is data of the config: whether
//! the decoder has biases and norms of heads, how it divides the rotary frequencies, and which [`Tower`] it has.

mod difference;
pub mod fields;
mod generation;
mod preprocessor;
mod quantization;
mod rope;
#[cfg(test)]
pub(crate) mod tests;
mod vision;

use std::path::Path;

use reel_support::diagnostic::{input, print_note_once};

use crate::error::{Error, Result};
use crate::tensor_file::{StoredDType, foreign_checkpoint};
use fields::JsonFields;

pub use crate::family::Family;
pub use generation::GenerationConfig;
pub use preprocessor::{open_preprocessor_config, parse_preprocessor_config};
pub use quantization::{Scales, WeightFormat, WeightQuantization};
pub use vision::{Qwen3Tower, Qwen25Tower, Tower, VisionConfig};

/// The config of a model: decoder, vision tower, and the ids of special tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The sizes of the decoder.
    pub text: TextConfig,
    /// The sizes of the vision tower.
    pub vision: VisionConfig,
    /// The ids of special tokens.
    pub tokens: SpecialTokenIds,
    /// Whether the output layer uses the embedding table, so that the files have no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// The dtype of the weights according to the config, if it names one.
    pub dtype: Option<StoredDType>,
    /// How the weights of the decoder's linear layers are quantised, if they are.
    pub quantization: Option<WeightQuantization>,
}

/// The sizes of the decoder; widths are in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// The number of rows of the embedding table (V).
    pub vocab_size: usize,
    /// The width of the residual (H).
    pub hidden_size: usize,
    /// The width of the gated MLP.
    pub intermediate_size: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key-value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// The number of elements of a head. In Qwen2.5-VL it is `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Whether the projections of queries, keys and values have biases (Qwen2.5-VL).
    pub has_qkv_bias: bool,
    /// Whether each head of the queries and keys has an RMSNorm before the rotation (Qwen3-VL).
    pub has_head_norms: bool,
    /// The epsilon of all RMSNorms of the decoder.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// The number of rotary frequencies for time, height and width (M-RoPE); their sum is `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Whether the frequencies of the three sections alternate (Qwen3-VL) instead of following each other.
    pub mrope_interleaved: bool,
    /// The longest sequence that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// The width of the queries of a token: that of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// The width of the keys of a token, and of its values.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The axis by whose position each rotary frequency rotates: 0 is time, 1 height, 2 width. `[head_dim / 2]`
    pub fn frequency_axes(&self) -> Vec<i32> {
        let [_, height, width] = self.mrope_section;
        let of_interleaved = |j: usize| match j % 3 {
            1 if j < 3 * height => 1,
            2 if j < 3 * width => 2,
            _ => 0,
        };
        match self.mrope_interleaved {
            true => (0..self.head_dim / 2).map(of_interleaved).collect(),
            false => (0..3).flat_map(|axis| std::iter::repeat_n(axis as i32, self.mrope_section[axis])).collect(),
        }
    }
}

/// The ids of special tokens, all below `vocab_size`.
#[derive(Debug, Clone, PartialEq)]
pub struct SpecialTokenIds {
    /// The id of `bos_token_id`, which Qwen uses for padding.
    pub bos: Option<u32>,
    /// The ids of `eos_token_id` in config.json. `generation_config.json` may name other ids.
    pub eos: Vec<u32>,
    /// The id of `<|vision_start|>`, which stands before the pad tokens of an image or video.
    pub vision_start: u32,
    /// The id of `<|vision_end|>`, which stands after the pad tokens of an image or video.
    pub vision_end: u32,
    /// The id of `<|image_pad|>`, which stands for one vision token of an image.
    pub image: u32,
    /// The id of `<|video_pad|>`, which stands for one vision token of a video.
    pub video: u32,
}

/// The largest accepted number of layers; a larger one is surely a mistake in the file.
const MAX_LAYERS: usize = 4096;

const HELP: &str = "use the config.json that was published with these weights";

impl ModelConfig {
    /// The model family.
    pub fn family(&self) -> Family {
        match self.vision.tower {
            Tower::Qwen25(_) => Family::Qwen25Vl,
            Tower::Qwen3(_) => Family::Qwen3Vl,
        }
    }

    /// Reads `config.json` of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = input::read_text(&path, input::MAX_CONFIG_BYTES).map_err(|e| {
            let is_missing = e.kind() == std::io::ErrorKind::NotFound;
            match foreign_checkpoint(folder).filter(|_| is_missing) {
                Some((what, help)) => Error::input(folder.display().to_string(), what, help),
                None => Error::cannot_read(&path, e),
            }
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses the text of a config.json; `file` names its source in error messages.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let root = JsonFields::parse(file, text, HELP)?;
        let family = family(&root)?;
        let nested = root.opt_object("text_config")?;
        let fields = nested.as_ref().unwrap_or(&root);
        let text = text_config(family, fields, &root)?;
        let vision = match root.opt_object("vision_config")? {
            Some(fields) => vision::vision_config(family, &fields)?,
            None => return Err(root.error("vision_config", "is missing")),
        };
        if vision.out_hidden_size != text.hidden_size {
            let what = format!("is {} but the decoder's hidden_size is {}", vision.out_hidden_size, text.hidden_size);
            return Err(root.error("vision_config.out_hidden_size", what));
        }
        let tokens = token_ids(&root, fields, text.vocab_size)?;
        let tie_word_embeddings = match root.opt_bool("tie_word_embeddings")? {
            Some(tie) => tie,
            None => fields.opt_bool("tie_word_embeddings")?.unwrap_or(false),
        };
        let dtype = dtype(&root, fields)?;
        check_levels(&root, fields)?;
        let quantization = WeightQuantization::parse(&root)?;
        Ok(Self { text, vision, tokens, tie_word_embeddings, dtype, quantization })
    }
}

/// The family that `model_type` names.
fn family(root: &JsonFields) -> Result<Family> {
    let help = "use the folder of a Qwen2.5-VL model, or of a dense Qwen3-VL model";
    let family = match root.opt_str("model_type")? {
        Some("qwen2_5_vl") => Family::Qwen25Vl,
        Some("qwen3_vl") => Family::Qwen3Vl,
        Some("qwen3_vl_moe") => {
            let what = "is `qwen3_vl_moe`; mixtures of experts are not supported";
            return Err(root.error_with_help("model_type", what, help));
        }
        Some(other) => {
            let what = format!("is `{other}`; only qwen2_5_vl and qwen3_vl are supported");
            return Err(root.error_with_help("model_type", what, help));
        }
        None => return Err(root.error_with_help("model_type", "is missing", help)),
    };
    Ok(family)
}

fn text_config(family: Family, fields: &JsonFields, root: &JsonFields) -> Result<TextConfig> {
    let hidden_size = fields.positive_int("hidden_size")?;
    let num_attention_heads = fields.positive_int("num_attention_heads")?;
    let num_key_value_heads = fields.positive_int("num_key_value_heads")?;
    let Some(num_hidden_layers) = fields.opt_int_up_to("num_hidden_layers", MAX_LAYERS)? else {
        return Err(fields.error("num_hidden_layers", "is missing"));
    };
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(fields.error(
            "num_key_value_heads",
            format!("is {num_key_value_heads}, which does not divide num_attention_heads {num_attention_heads}"),
        ));
    }
    let (head_dim, head_dim_key) = match family {
        Family::Qwen25Vl => (quotient_head_dim(fields, hidden_size, num_attention_heads)?, "num_attention_heads"),
        // The default of transformers' `Qwen3VLTextConfig`.
        Family::Qwen3Vl => (fields.opt_positive_int("head_dim")?.unwrap_or(128), "head_dim"),
    };
    if head_dim % 2 != 0 {
        return Err(fields.error(
            head_dim_key,
            format!("gives attention heads of {head_dim} elements; rotary embedding needs an even number"),
        ));
    }
    // transformers' class for Qwen2.5-VL has these biases, whatever the config says.
    if family == Family::Qwen3Vl && fields.opt_bool("attention_bias")? == Some(true) {
        return Err(fields.error("attention_bias", "is true, which is not supported"));
    }
    check_act(fields, "silu")?;
    check_sliding_window(fields, num_hidden_layers)?;
    let rope = rope::TextRope::read(family, fields, root, head_dim)?;
    Ok(TextConfig {
        vocab_size: fields.positive_int("vocab_size")?,
        hidden_size,
        intermediate_size: fields.positive_int("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        has_qkv_bias: family == Family::Qwen25Vl,
        has_head_norms: family == Family::Qwen3Vl,
        rms_norm_eps: fields.positive_f64("rms_norm_eps")?,
        rope_theta: rope.theta,
        mrope_section: rope.section,
        mrope_interleaved: rope.interleaved,
        max_position_embeddings: fields.opt_positive_int("max_position_embeddings")?.unwrap_or(32768),
    })
}

/// The size of a head in Qwen2.5-VL: hidden_size / num_attention_heads.
fn quotient_head_dim(fields: &JsonFields, hidden_size: usize, heads: usize) -> Result<usize> {
    if !hidden_size.is_multiple_of(heads) {
        let what = format!("is {heads}, which does not divide hidden_size {hidden_size}");
        return Err(fields.error("num_attention_heads", what));
    }
    let head_dim = hidden_size / heads;
    match fields.opt_positive_int("head_dim")? {
        Some(given) if given != head_dim => {
            Err(fields.error("head_dim", format!("is {given} but hidden_size / num_attention_heads is {head_dim}")))
        }
        _ => Ok(head_dim),
    }
}

/// Checks that the activation function, if stated, is the one that the family has here.
fn check_act(fields: &JsonFields, supported: &str) -> Result<()> {
    match fields.opt_str("hidden_act")? {
        Some(other) if other != supported => {
            Err(fields.error("hidden_act", format!("is `{other}`; only {supported} is supported")))
        }
        _ => Ok(()),
    }
}

/// Rejects a config in which a layer of the decoder has sliding-window attention.
fn check_sliding_window(fields: &JsonFields, layers: usize) -> Result<()> {
    let help = "set use_sliding_window to false, or use a model with full attention";
    if let Some(kinds) = fields.opt_strings("layer_types")?
        && let Some(kind) = kinds.iter().take(layers).find(|kind| *kind != "full_attention")
    {
        return Err(fields.error_with_help(
            "layer_types",
            format!("has a layer of kind `{kind}`, which is not supported"),
            help,
        ));
    }
    if !fields.opt_bool("use_sliding_window")?.unwrap_or(false) || fields.opt_positive_int("sliding_window")?.is_none()
    {
        return Ok(());
    }
    let first = fields.opt_int("max_window_layers")?.unwrap_or(80);
    if first < layers {
        let what = format!(
            "is true, so layers {first} to {} would use sliding-window attention, which is not supported",
            layers - 1
        );
        return Err(fields.error_with_help("use_sliding_window", what, help));
    }
    Ok(())
}

/// Rejects a config with `text_config` and a different size at the top level: one of the two sizes must belong to
/// another model.
fn check_levels(root: &JsonFields, text: &JsonFields) -> Result<()> {
    const SIZES: [&str; 7] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
    ];
    for key in SIZES {
        if let (Some(outer), Some(inner)) = (root.value(key), text.value(key))
            && outer.as_f64() != inner.as_f64()
        {
            return Err(root.error(key, format!("is {outer}, but {} is {inner}", text.path_of(key))));
        }
    }
    Ok(())
}

/// Reads token ids, which are at the top level or in `text_config`.
fn token_ids(root: &JsonFields, text: &JsonFields, vocab_size: usize) -> Result<SpecialTokenIds> {
    let home = |key: &str| if root.has_key(key) { root } else { text };
    let below = |fields: &JsonFields, key: &str, id: usize| {
        if id < vocab_size {
            return Ok(id as u32);
        }
        Err(fields.error(key, format!("is {id}, expected an id below vocab_size {vocab_size}")))
    };
    let need = |key: &str| below(home(key), key, home(key).int(key)?);
    let eos_home = home("eos_token_id");
    let eos = eos_home.int_or_int_list("eos_token_id")?;
    Ok(SpecialTokenIds {
        bos: home("bos_token_id")
            .opt_int("bos_token_id")?
            .map(|id| below(home("bos_token_id"), "bos_token_id", id))
            .transpose()?,
        eos: eos.into_iter().map(|id| below(eos_home, "eos_token_id", id)).collect::<Result<_>>()?,
        vision_start: need("vision_start_token_id")?,
        vision_end: need("vision_end_token_id")?,
        image: need("image_token_id")?,
        video: need("video_token_id")?,
    })
}

/// The dtype that the config states. transformers writes it at up to two levels. The outer dtype counts. A different
/// inner dtype only causes a note, because weights are always read in the dtype of their files.
fn dtype(root: &JsonFields, text: &JsonFields) -> Result<Option<StoredDType>> {
    let mut stated: Option<(String, StoredDType)> = None;
    for (fields, key) in [(root, "dtype"), (root, "torch_dtype"), (text, "dtype"), (text, "torch_dtype")] {
        let found = match fields.opt_str(key)? {
            None => continue,
            Some("float32") => StoredDType::F32,
            Some("bfloat16") => StoredDType::Bf16,
            Some("float16") => StoredDType::F16,
            Some(other) => {
                return Err(
                    fields.error(key, format!("is `{other}`; only float32, bfloat16 and float16 are supported"))
                );
            }
        };
        match &stated {
            Some((first, dtype)) if *dtype != found => {
                let (outer, inner) = (dtype.torch_dtype_name(), found.torch_dtype_name());
                print_note_once(format!("{}, but {first} is {outer}", fields.error_text(key, &format!("is {inner}"))));
            }
            Some(_) => {}
            None => stated = Some((fields.path_of(key), found)),
        }
    }
    Ok(stated.map(|(_, dtype)| dtype))
}
