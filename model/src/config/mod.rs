//! What a model folder says about itself: `config.json`, `generation_config.json`, `preprocessor_config.json`.
//!
//! Read as transformers 4.49 to 4.57 write them: text keys at the top level or in `text_config`, `torch_dtype` or
//! `dtype`, and vision keys left out where they equal `Qwen2_5_VLVisionConfig`'s defaults. A value that this program
//! would compute something else with is refused here, once, so that nothing downstream has to ask again.

pub(crate) mod fields;
mod generation;
mod preprocessor;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;

use crate::checkpoint::StoredDType;
use crate::error::{ModelError, Result};
use fields::Fields;

pub use generation::GenerationConfig;
pub use preprocessor::PreprocessorConfig;

/// A whole Qwen2.5-VL: decoder, vision tower, and the ids that tie text and media together.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Ids with a meaning of their own.
    pub tokens: TokenIds,
    /// The output projection is the embedding table (no `lm_head.weight` in the files).
    pub tie_word_embeddings: bool,
    /// The dtype that the folder says its weights have, where it says so.
    pub dtype: Option<StoredDType>,
}

/// The decoder's shape. Lengths in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table (V).
    pub vocab_size: usize,
    /// Width of the residual stream (H).
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm of the decoder.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Frequencies that turn with time, height and width; sums to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// The longest sequence that the model was made for.
    pub max_position_embeddings: usize,
}

/// The vision tower's shape. Lengths in elements, but `patch_size` and `window_size` in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Heads of each block.
    pub num_heads: usize,
    /// `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Colour channels of a pixel (3).
    pub in_channels: usize,
    /// Sides of a patch, in pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Patches along each side of the square that becomes one token.
    pub spatial_merge_size: usize,
    /// Sides of an attention window, in pixels.
    pub window_size: usize,
    /// Blocks that attend over the whole frame instead of windows; sorted, all below `depth`.
    pub fullatt_block_indexes: Vec<usize>,
    /// Width of a token that the tower gives out; equals the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// Time positions that one second takes.
    pub tokens_per_second: f32,
    /// Epsilon of every RMSNorm of the tower (fixed in the model's code, not in the file).
    pub rms_norm_eps: f64,
}

impl VisionConfig {
    /// Values of one patch: channels × frames × side².
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that become one token: the square of `spatial_merge_size`.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Whether block `index` attends over the whole frame.
    pub fn is_full_attention(&self, index: usize) -> bool {
        self.fullatt_block_indexes.binary_search(&index).is_ok()
    }
}

/// Token ids that the code must know. All are below `vocab_size`.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenIds {
    /// `bos_token_id`, which Qwen uses for padding.
    pub bos: Option<u32>,
    /// `eos_token_id` of config.json (generation_config.json may name more).
    pub eos: Vec<u32>,
    /// `<|vision_start|>`.
    pub vision_start: u32,
    /// `<|vision_end|>`.
    pub vision_end: u32,
    /// `<|image_pad|>`: one for each image token.
    pub image: u32,
    /// `<|video_pad|>`: one for each video token.
    pub video: u32,
}

/// A config with more is a slip of the pen, and would make a list of tensors without end.
const MOST_LAYERS: usize = 4096;

const TAKE_THE_FOLDERS: &str = "use the config.json that was published with these weights";

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| ModelError::read(&path, e))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads the text of a config.json; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let root = Fields::parse(file, text, TAKE_THE_FOLDERS)?;
        check_kind(&root)?;
        let nested = root.child("text_config")?;
        let fields = nested.as_ref().unwrap_or(&root);
        let text = text_config(fields, &root)?;
        let vision = match root.child("vision_config")? {
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
        Ok(Self { text, vision, tokens, tie_word_embeddings, dtype })
    }
}

fn check_kind(root: &Fields) -> Result<()> {
    match root.opt_str("model_type")? {
        Some("qwen2_5_vl") => {}
        Some(other) => {
            let what = format!("is `{other}`; only qwen2_5_vl can be run");
            return Err(root.fault("model_type", what, "give a Qwen2.5-VL folder"));
        }
        None => return Err(root.fault("model_type", "is missing", "give a Qwen2.5-VL folder")),
    }
    if root.has("quantization_config") {
        return Err(root.fault(
            "quantization_config",
            "quantised weights are not supported",
            "use the bf16 folder of this model",
        ));
    }
    Ok(())
}

fn text_config(fields: &Fields, root: &Fields) -> Result<TextConfig> {
    let hidden_size = fields.count("hidden_size")?;
    let num_attention_heads = fields.count("num_attention_heads")?;
    let num_key_value_heads = fields.count("num_key_value_heads")?;
    let Some(num_hidden_layers) = fields.opt_count_to("num_hidden_layers", MOST_LAYERS)? else {
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
    if let Some(given) = fields.opt_count("head_dim")?
        && given != head_dim
    {
        return Err(fields.error("head_dim", format!("is {given} but hidden_size / num_attention_heads is {head_dim}")));
    }
    if head_dim % 2 != 0 {
        return Err(fields.error(
            "num_attention_heads",
            format!("gives heads of {head_dim}, an odd number, which cannot be rotated"),
        ));
    }
    check_act(fields)?;
    check_sliding_window(fields, num_hidden_layers)?;
    Ok(TextConfig {
        vocab_size: fields.count("vocab_size")?,
        hidden_size,
        intermediate_size: fields.count("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: fields.positive("rms_norm_eps")?,
        rope_theta: fields.positive("rope_theta")?,
        mrope_section: mrope_section(if fields.has("rope_scaling") { fields } else { root }, head_dim)?,
        max_position_embeddings: fields.opt_count("max_position_embeddings")?.unwrap_or(32768),
    })
}

fn check_act(fields: &Fields) -> Result<()> {
    match fields.opt_str("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(other) => Err(fields.error("hidden_act", format!("is `{other}`; only silu can be computed"))),
    }
}

/// A window on the decoder's attention is refused where a layer would really have one.
fn check_sliding_window(fields: &Fields, layers: usize) -> Result<()> {
    let help = "set use_sliding_window to false, or use a model with full attention";
    if let Some(kinds) = fields.opt_strings("layer_types")?
        && let Some(kind) = kinds.iter().take(layers).find(|kind| *kind != "full_attention")
    {
        return Err(fields.fault("layer_types", format!("has a layer of kind `{kind}`, which is not supported"), help));
    }
    if !fields.opt_bool("use_sliding_window")?.unwrap_or(false) || fields.opt_count("sliding_window")?.is_none() {
        return Ok(());
    }
    let first = fields.opt_index("max_window_layers")?.unwrap_or(80);
    if first < layers {
        let what = format!(
            "is true and would limit the attention of layers {first} to {}, which is not supported",
            layers - 1
        );
        return Err(fields.fault("use_sliding_window", what, help));
    }
    Ok(())
}

/// `rope_scaling.mrope_section`; the kind (`type`, `rope_type`) may be `mrope` or `default`, which mean the same here.
fn mrope_section(fields: &Fields, head_dim: usize) -> Result<[usize; 3]> {
    let Some(scaling) = fields.child("rope_scaling")? else {
        return Err(fields.error("rope_scaling", "is missing, and with it mrope_section"));
    };
    for key in ["type", "rope_type"] {
        if let Some(kind) = scaling.opt_str(key)?
            && kind != "mrope"
            && kind != "default"
        {
            return Err(scaling.error(key, format!("is `{kind}`; only mrope and default can be computed")));
        }
    }
    let parts = scaling.indexes("mrope_section")?;
    let Ok(section) = <[usize; 3]>::try_from(parts.as_slice()) else {
        return Err(scaling.error("mrope_section", format!("has {} numbers, not 3 (time, height, width)", parts.len())));
    };
    let sum: usize = section.iter().sum();
    if sum != head_dim / 2 {
        return Err(
            scaling.error("mrope_section", format!("sums to {sum}, not to half the head_dim, {}", head_dim / 2))
        );
    }
    Ok(section)
}

/// Absent keys have the defaults of transformers' `Qwen2_5_VLVisionConfig`, which 4.49 and 4.50 leave out when saving.
fn vision_config(fields: &Fields) -> Result<VisionConfig> {
    let or = |key: &str, default: usize| Ok::<usize, ModelError>(fields.opt_count(key)?.unwrap_or(default));
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
            format!("gives heads of {head_dim}, not a multiple of 4, which cannot be rotated in height and width");
        return Err(fields.error("num_heads", what));
    }
    check_act(fields)?;
    for key in ["in_channels", "in_chans"] {
        let channels = or(key, 3)?;
        if channels != 3 {
            return Err(fields.error(key, format!("is {channels}; pictures have 3 channels")));
        }
    }
    let up_to = |key: &str, default: usize, most: usize| {
        Ok::<usize, ModelError>(fields.opt_count_to(key, most)?.unwrap_or(default))
    };
    let depth = up_to("depth", 32, MOST_LAYERS)?;
    let patch_size = up_to("patch_size", 14, 1024)?;
    let spatial_merge_size = up_to("spatial_merge_size", 2, 64)?;
    let window_size = or("window_size", 112)?;
    if window_size / spatial_merge_size / patch_size == 0 {
        let what =
            format!("is {window_size} pixels, less than one merged patch of {}", patch_size * spatial_merge_size);
        return Err(fields.error("window_size", what));
    }
    let full = if fields.has("fullatt_block_indexes") {
        fields.indexes("fullatt_block_indexes")?
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
        tokens_per_second: if fields.has("tokens_per_second") {
            fields.positive("tokens_per_second")? as f32
        } else {
            4.0
        },
        rms_norm_eps: 1e-6,
    })
}

/// Ids stand at the top level; some writers left them in `text_config`.
fn token_ids(root: &Fields, text: &Fields, vocab_size: usize) -> Result<TokenIds> {
    let home = |key: &str| if root.has(key) { root } else { text };
    let below = |fields: &Fields, key: &str, id: usize| {
        if id < vocab_size {
            return Ok(id as u32);
        }
        Err(fields.error(key, format!("is {id}, which is not below vocab_size {vocab_size}")))
    };
    let need = |key: &str| below(home(key), key, home(key).index(key)?);
    let eos_home = home("eos_token_id");
    let eos = eos_home.one_or_more("eos_token_id")?;
    Ok(TokenIds {
        bos: home("bos_token_id")
            .opt_index("bos_token_id")?
            .map(|id| below(home("bos_token_id"), "bos_token_id", id))
            .transpose()?,
        eos: eos.into_iter().map(|id| below(eos_home, "eos_token_id", id)).collect::<Result<_>>()?,
        vision_start: need("vision_start_token_id")?,
        vision_end: need("vision_end_token_id")?,
        image: need("image_token_id")?,
        video: need("video_token_id")?,
    })
}

fn dtype(root: &Fields, text: &Fields) -> Result<Option<StoredDType>> {
    for (fields, key) in [(root, "dtype"), (root, "torch_dtype"), (text, "dtype"), (text, "torch_dtype")] {
        match fields.opt_str(key)? {
            None => {}
            Some("float32") => return Ok(Some(StoredDType::F32)),
            Some("bfloat16") => return Ok(Some(StoredDType::Bf16)),
            Some("float16") => return Ok(Some(StoredDType::F16)),
            Some(other) => {
                return Err(fields.error(key, format!("is `{other}`; only float32, bfloat16 and float16 can be read")));
            }
        }
    }
    Ok(None)
}
