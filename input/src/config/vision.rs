//! `vision_config`: the sizes of the vision tower, and what the tower of each model family has of its own.

use super::fields::JsonFields;
use super::{Family, MAX_LAYERS, check_act, rope};
use crate::error::{Error, Result};

/// The sizes of the vision tower; widths are in elements, `patch_size` in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The number of transformer blocks.
    pub depth: usize,
    /// The width of the residual.
    pub hidden_size: usize,
    /// The width of the MLP.
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
    /// The width of a vision token; equals the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// The epsilon of all norms of the tower; config.json does not contain it, because transformers hard-codes it.
    pub norm_eps: f64,
    /// What only the towers of the model's family have.
    pub tower: Tower,
}

/// What only the vision towers of one model family have.
#[derive(Debug, Clone, PartialEq)]
pub enum Tower {
    /// The tower of Qwen2.5-VL: RMSNorms, gated MLPs, and most blocks attend within windows.
    Qwen25(Qwen25Tower),
    /// The tower of Qwen3-VL: LayerNorms, MLPs of two layers, learned positions, and features for several layers of
    /// the decoder.
    Qwen3(Qwen3Tower),
}

/// What only the vision towers of Qwen2.5-VL have.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen25Tower {
    /// The side of an attention window, in pixels.
    pub window_size: usize,
    /// The indices of the blocks that attend over whole frames; all other blocks attend within windows. Sorted, all
    /// below `depth`.
    pub fullatt_block_indexes: Vec<usize>,
    /// By how much the M-RoPE time position grows per second of video.
    pub tokens_per_second: f32,
}

/// What only the vision towers of Qwen3-VL have.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Tower {
    /// The table of learned positions has `position_side²` rows, one for each cell of a square. It is resampled to the
    /// grid of each image.
    pub position_side: usize,
    /// The blocks whose output becomes a DeepStack feature: feature i, of the block with this index, is added to the
    /// hidden states after layer i of the decoder. Ascending, all below `depth`.
    pub deepstack_block_indexes: Vec<usize>,
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

    /// The blocks whose output becomes a DeepStack feature. Empty for Qwen2.5-VL.
    pub fn deepstack_blocks(&self) -> &[usize] {
        match &self.tower {
            Tower::Qwen25(_) => &[],
            Tower::Qwen3(tower) => &tower.deepstack_block_indexes,
        }
    }
}

impl Qwen25Tower {
    /// Whether block `block` attends over whole frames.
    pub fn is_full_attention(&self, block: usize) -> bool {
        self.fullatt_block_indexes.binary_search(&block).is_ok()
    }
}

/// The value of `key`, a number of at least 1, or `default`.
fn positive_or(fields: &JsonFields, key: &str, default: usize) -> Result<usize> {
    Ok(fields.opt_positive_int(key)?.unwrap_or(default))
}

/// Reads `vision_config`. An absent key gets its default value in transformers' `Qwen2_5_VLVisionConfig` or
/// `Qwen3VLVisionConfig`, because transformers 4.49 and 4.50 do not save values that are equal to their defaults.
pub(super) fn vision_config(family: Family, fields: &JsonFields) -> Result<VisionConfig> {
    struct Defaults {
        hidden_size: usize,
        intermediate_size: usize,
        depth: usize,
        patch_size: usize,
        act: &'static str,
    }
    let default = match family {
        Family::Qwen25Vl => {
            Defaults { hidden_size: 3584, intermediate_size: 3420, depth: 32, patch_size: 14, act: "silu" }
        }
        Family::Qwen3Vl => {
            Defaults { hidden_size: 1152, intermediate_size: 4304, depth: 27, patch_size: 16, act: "gelu_pytorch_tanh" }
        }
    };
    let hidden_size = positive_or(fields, "hidden_size", default.hidden_size)?;
    let num_heads = positive_or(fields, "num_heads", 16)?;
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
    check_act(fields, default.act)?;
    rope::check_vision_rope(fields)?;
    for key in ["in_channels", "in_chans"] {
        let channels = positive_or(fields, key, 3)?;
        if channels != 3 {
            return Err(fields.error(key, format!("is {channels}; images have 3 channels")));
        }
    }
    let up_to = |key: &str, default: usize, most: usize| {
        Ok::<usize, Error>(fields.opt_int_up_to(key, most)?.unwrap_or(default))
    };
    let depth = up_to("depth", default.depth, MAX_LAYERS)?;
    let patch_size = up_to("patch_size", default.patch_size, 1024)?;
    let spatial_merge_size = up_to("spatial_merge_size", 2, 64)?;
    // qwen-vl-utils computes the sizes of frames for vision tokens of 32 x 32 pixels.
    for (key, size, only) in [("patch_size", patch_size, 16), ("spatial_merge_size", spatial_merge_size, 2)] {
        if family == Family::Qwen3Vl && size != only {
            return Err(fields.error(key, format!("is {size}; only {only} is supported for Qwen3-VL")));
        }
    }
    Ok(VisionConfig {
        depth,
        hidden_size,
        intermediate_size: positive_or(fields, "intermediate_size", default.intermediate_size)?,
        num_heads,
        head_dim,
        in_channels: 3,
        patch_size,
        temporal_patch_size: up_to("temporal_patch_size", 2, 64)?,
        spatial_merge_size,
        out_hidden_size: positive_or(fields, "out_hidden_size", 3584)?,
        norm_eps: 1e-6,
        tower: match family {
            Family::Qwen25Vl => Tower::Qwen25(qwen25_tower(fields, depth, patch_size * spatial_merge_size)?),
            Family::Qwen3Vl => Tower::Qwen3(qwen3_tower(fields, depth)?),
        },
    })
}

/// `square` is the side in pixels of the square that becomes one vision token.
fn qwen25_tower(fields: &JsonFields, depth: usize, square: usize) -> Result<Qwen25Tower> {
    let window_size = positive_or(fields, "window_size", 112)?;
    if window_size < square {
        let what = format!(
            "is {window_size} pixels; it must be at least {square}, the side of the square of patches that becomes one \
             vision token"
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
    let tokens_per_second = match fields.has_key("tokens_per_second") {
        true => fields.positive_f64("tokens_per_second")? as f32,
        false => 4.0,
    };
    Ok(Qwen25Tower { window_size, fullatt_block_indexes, tokens_per_second })
}

fn qwen3_tower(fields: &JsonFields, depth: usize) -> Result<Qwen3Tower> {
    let positions = positive_or(fields, "num_position_embeddings", 2304)?;
    let position_side = positions.isqrt();
    if position_side * position_side != positions {
        let what = format!("is {positions}, which is not a square; the learned positions form a square");
        return Err(fields.error("num_position_embeddings", what));
    }
    const KEY: &str = "deepstack_visual_indexes";
    let deepstack_block_indexes = if fields.has_key(KEY) { fields.int_list(KEY)? } else { vec![8, 16, 24] };
    if let Some(index) = deepstack_block_indexes.iter().find(|&&index| index >= depth) {
        return Err(fields.error(KEY, format!("has {index}, but the tower has {depth} blocks, numbered from 0")));
    }
    if !deepstack_block_indexes.is_sorted_by(|a, b| a < b) {
        return Err(fields.error(KEY, format!("is {deepstack_block_indexes:?}; the numbers must ascend")));
    }
    Ok(Qwen3Tower { position_side, deepstack_block_indexes })
}
