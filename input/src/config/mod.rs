//! The config files of a model folder: `config.json`, `generation_config.json`, `preprocessor_config.json`.
//!
//! Accepts the files of transformers 4.49 to 5: text keys at the top level or in `text_config`, `torch_dtype` or
//! `dtype`, `rope_theta` and `rope_scaling` or `rope_parameters`, and vision keys left out if they equal the defaults
//! of `Qwen2_5_VLVisionConfig`. Unsupported values, and values that contradict each other, are rejected here, so the
//! rest of the program does not check them again.

mod difference;
pub mod fields;
mod generation;
mod preprocessor;
mod rope;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;

use reel_support::diagnostic::{input, print_note_once};

use crate::error::{Error, Result};
use crate::tensor_file::{StoredDType, foreign_checkpoint};
use fields::JsonFields;

pub use generation::GenerationConfig;
pub use preprocessor::{open_preprocessor_config, parse_preprocessor_config};

/// The config of a Qwen2.5-VL model: decoder, vision tower, and the ids of special tokens.
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
    /// The number of elements of a head: `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The epsilon of all RMSNorms of the decoder.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// The number of rotary frequencies for time, height and width (M-RoPE); their sum is `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// The longest sequence that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
}

/// The sizes of the vision tower; widths are in elements, `patch_size` and `window_size` in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The number of transformer blocks.
    pub depth: usize,
    /// The width of the residual.
    pub hidden_size: usize,
    /// The width of the gated MLP.
    pub intermediate_size: usize,
    /// The number of attention heads of each block.
    pub num_heads: usize,
    /// The number of elements of a head: `hidden_size / num_heads`.
    pub head_dim: usize,
    /// The number of colour channels (3).
    pub in_channels: usize,
    /// The side of a square patch, in pixels.
    pub patch_size: usize,
    /// The number of frames in a patch.
    pub temporal_patch_size: usize,
    /// The number of patches along each side of the square that becomes one vision token.
    pub spatial_merge_size: usize,
    /// The side of an attention window, in pixels.
    pub window_size: usize,
    /// The indices of the blocks that attend over whole frames; all other blocks attend within windows. Sorted, all
    /// below `depth`.
    pub fullatt_block_indexes: Vec<usize>,
    /// The width of a vision token; equals the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// By how much the M-RoPE time position grows per second of video.
    pub tokens_per_second: f32,
    /// The epsilon of all RMSNorms of the tower; config.json does not contain it, because transformers hard-codes it.
    pub rms_norm_eps: f64,
}

impl VisionConfig {
    /// The number of values of one patch: channels × frames × side², with the side in pixels.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// The number of patches that become one vision token: the square of `spatial_merge_size`.
    pub fn patches_per_vision_token(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Whether block `block` attends over whole frames.
    pub fn is_full_attention(&self, block: usize) -> bool {
        self.fullatt_block_indexes.binary_search(&block).is_ok()
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
        check_kind(&root)?;
        let nested = root.opt_object("text_config")?;
        let fields = nested.as_ref().unwrap_or(&root);
        let text = text_config(fields, &root)?;
        let vision = match root.opt_object("vision_config")? {
            Some(fields) => vision_config(&fields)?,
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
        Ok(Self { text, vision, tokens, tie_word_embeddings, dtype })
    }
}

fn check_kind(root: &JsonFields) -> Result<()> {
    match root.opt_str("model_type")? {
        Some("qwen2_5_vl") => {}
        Some(other) => {
            let what = format!("is `{other}`; only qwen2_5_vl is supported");
            return Err(root.error_with_help("model_type", what, "use a Qwen2.5-VL model folder"));
        }
        None => return Err(root.error_with_help("model_type", "is missing", "use a Qwen2.5-VL model folder")),
    }
    if root.has_key("quantization_config") {
        return Err(root.error_with_help(
            "quantization_config",
            "quantised weights are not supported",
            "use the unquantised bf16 model",
        ));
    }
    Ok(())
}

fn text_config(fields: &JsonFields, root: &JsonFields) -> Result<TextConfig> {
    let hidden_size = fields.positive_int("hidden_size")?;
    let num_attention_heads = fields.positive_int("num_attention_heads")?;
    let num_key_value_heads = fields.positive_int("num_key_value_heads")?;
    let Some(num_hidden_layers) = fields.opt_int_up_to("num_hidden_layers", MAX_LAYERS)? else {
        return Err(fields.error("num_hidden_layers", "is missing"));
    };
    if hidden_size % num_attention_heads != 0 {
        return Err(fields.error(
            "num_attention_heads",
            format!("is {num_attention_heads}, which does not divide hidden_size {hidden_size}"),
        ));
    }
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(fields.error(
            "num_key_value_heads",
            format!("is {num_key_value_heads}, which does not divide num_attention_heads {num_attention_heads}"),
        ));
    }
    let head_dim = hidden_size / num_attention_heads;
    if let Some(given) = fields.opt_positive_int("head_dim")?
        && given != head_dim
    {
        return Err(fields.error("head_dim", format!("is {given} but hidden_size / num_attention_heads is {head_dim}")));
    }
    if head_dim % 2 != 0 {
        return Err(fields.error(
            "num_attention_heads",
            format!("gives attention heads of {head_dim} elements; rotary embedding needs an even number"),
        ));
    }
    check_act(fields)?;
    check_sliding_window(fields, num_hidden_layers)?;
    let (rope_theta, mrope_section) = rope::rope_theta_and_mrope_section(fields, root, head_dim)?;
    Ok(TextConfig {
        vocab_size: fields.positive_int("vocab_size")?,
        hidden_size,
        intermediate_size: fields.positive_int("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: fields.positive_f64("rms_norm_eps")?,
        rope_theta,
        mrope_section,
        max_position_embeddings: fields.opt_positive_int("max_position_embeddings")?.unwrap_or(32768),
    })
}

fn check_act(fields: &JsonFields) -> Result<()> {
    match fields.opt_str("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(other) => Err(fields.error("hidden_act", format!("is `{other}`; only silu is supported"))),
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

/// Reads `vision_config`. An absent key gets its default value in transformers' `Qwen2_5_VLVisionConfig`, because
/// transformers 4.49 and 4.50 do not save values that are equal to their defaults.
fn vision_config(fields: &JsonFields) -> Result<VisionConfig> {
    let or = |key: &str, default: usize| Ok::<usize, Error>(fields.opt_positive_int(key)?.unwrap_or(default));
    let hidden_size = or("hidden_size", 3584)?;
    let num_heads = or("num_heads", 16)?;
    if hidden_size % num_heads != 0 {
        return Err(
            fields.error("num_heads", format!("is {num_heads}, which does not divide hidden_size {hidden_size}"))
        );
    }
    let head_dim = hidden_size / num_heads;
    if head_dim % 4 != 0 {
        let what =
            format!("gives attention heads of {head_dim} elements; rotary embedding in two axes needs a multiple of 4");
        return Err(fields.error("num_heads", what));
    }
    check_act(fields)?;
    rope::check_vision_rope(fields)?;
    for key in ["in_channels", "in_chans"] {
        let channels = or(key, 3)?;
        if channels != 3 {
            return Err(fields.error(key, format!("is {channels}; images have 3 channels")));
        }
    }
    let up_to = |key: &str, default: usize, most: usize| {
        Ok::<usize, Error>(fields.opt_int_up_to(key, most)?.unwrap_or(default))
    };
    let depth = up_to("depth", 32, MAX_LAYERS)?;
    let patch_size = up_to("patch_size", 14, 1024)?;
    let spatial_merge_size = up_to("spatial_merge_size", 2, 64)?;
    let window_size = or("window_size", 112)?;
    if window_size / spatial_merge_size / patch_size == 0 {
        let what = format!(
            "is {window_size} pixels; it must be at least {}, the side of the square of patches that becomes one vision token",
            patch_size * spatial_merge_size
        );
        return Err(fields.error("window_size", what));
    }
    let full = if fields.has_key("fullatt_block_indexes") {
        fields.int_list("fullatt_block_indexes")?
    } else {
        vec![7, 15, 23, 31]
    };
    let mut fullatt_block_indexes: Vec<usize> = full.into_iter().filter(|&index| index < depth).collect();
    fullatt_block_indexes.sort_unstable();
    fullatt_block_indexes.dedup();
    Ok(VisionConfig {
        depth,
        hidden_size,
        intermediate_size: or("intermediate_size", 3420)?,
        num_heads,
        head_dim,
        in_channels: 3,
        patch_size,
        temporal_patch_size: up_to("temporal_patch_size", 2, 64)?,
        spatial_merge_size,
        window_size,
        fullatt_block_indexes,
        out_hidden_size: or("out_hidden_size", 3584)?,
        tokens_per_second: if fields.has_key("tokens_per_second") {
            fields.positive_f64("tokens_per_second")? as f32
        } else {
            4.0
        },
        rms_norm_eps: 1e-6,
    })
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
