//! The number of floating-point operations that the model itself needs for a batch, as the model FLOPs utilization
//! (MFU) counts them: products with weights and attention, each multiply-add as two operations.
//!
//! ```text
//! forward  = tokens · 2 · weights of the decoder's layers  +  rows · 2 · H · V        (rows: positions with logits)
//!          + pairs · 4 · layers · query heads · head size                             (pairs: query and visible key)
//!          + the same of the vision tower for its patches, windows and frames, and of its DeepStack mergers
//! training = forward + gradients of inputs (as many) + gradients of trained weights (as many)
//! ```
//!
//! Other computations do not count: recomputation, embeddings, norms, activations, sampling, products of LoRA
//! adapters, the optimizer. A causal mask is counted exactly: a token sees itself and the tokens before it.

use reel_input::config::{ModelConfig, Tower};
use reel_input::window::{GridThw, WindowOrder};

use crate::batch::Batch;

/// Operations of a forward pass, by part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ForwardFlops {
    /// Products with the weights of the decoder's layers.
    pub decoder: f64,
    /// Products with the output layer.
    pub head: f64,
    /// Attention of the decoder.
    pub attention: f64,
    /// Products with the weights of the vision tower and its merger.
    pub vision: f64,
    /// Attention of the vision tower.
    pub vision_attention: f64,
}

/// Which weights of a model are trained. With LoRA, no part counts as trained, because the weights themselves get no
/// gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainedParts {
    /// Whether the weights of the decoder get gradients.
    pub decoder: bool,
    /// Whether the weights of the vision tower get gradients. A merger that is trained alone counts as not trained.
    pub vision: bool,
    /// Whether the backward pass goes through the vision tower, because its weights or adapters of them are trained.
    pub through_vision: bool,
}

impl ForwardFlops {
    /// Operations of a forward pass over `batch` that computes logits for `rows` positions.
    pub fn for_batch(config: &ModelConfig, batch: &Batch, rows: usize) -> Self {
        let decoder = Self::for_tokens(config, batch.token_count() as f64, batch.seqs.attention_pairs(), rows as f64);
        Self::for_grids(config, &batch.grids()).plus(decoder)
    }

    /// Operations of the decoder for `tokens` tokens. All tokens together attend to `pairs` keys; logits are computed
    /// for `rows` positions.
    pub fn for_tokens(config: &ModelConfig, tokens: f64, pairs: f64, rows: f64) -> Self {
        let text = &config.text;
        let (hidden, layers) = (text.hidden_size as f64, text.num_hidden_layers as f64);
        let (queries, keys) = (text.query_width() as f64, text.key_value_width() as f64);
        let layer = hidden * (2.0 * queries + 2.0 * keys + 3.0 * text.intermediate_size as f64);
        Self {
            decoder: 2.0 * tokens * layers * layer,
            head: 2.0 * rows * hidden * text.vocab_size as f64,
            attention: 4.0 * pairs * layers * queries,
            ..Self::default()
        }
    }

    /// Operations of the vision tower for images and videos with these grids.
    pub fn for_grids(config: &ModelConfig, grids: &[GridThw]) -> Self {
        let v = &config.vision;
        let patches = grids.iter().map(|grid| grid.iter().product::<usize>()).sum::<usize>() as f64;
        let (width, depth) = (v.hidden_size as f64, v.depth as f64);
        let square = v.patches_per_vision_token() as f64;
        let merger = square * width * (square * width + v.out_hidden_size as f64);
        let pairs = |ends: &[usize]| ends.windows(2).map(|w| (w[1] - w[0]) as f64).map(|n| n * n).sum::<f64>();
        let (matrices_of_mlp, mergers, all_pairs) = match &v.tower {
            Tower::Qwen25(tower) => {
                let windows = WindowOrder::from_grids(grids, v, tower.window_size);
                let full = tower.fullatt_block_indexes.len() as f64;
                let all = full * pairs(&windows.cu_seqlens) + (depth - full) * pairs(&windows.cu_window_seqlens);
                (3.0, 1.0, all)
            }
            Tower::Qwen3(tower) => {
                let of_grids: f64 = grids.iter().map(|&[t, h, w]| t as f64 * ((h * w) as f64).powi(2)).sum();
                (2.0, 1.0 + tower.deepstack_block_indexes.len() as f64, depth * of_grids)
            }
        };
        let block = width * (4.0 * width + matrices_of_mlp * v.intermediate_size as f64);
        Self {
            vision: 2.0 * patches * (v.patch_dim() as f64 * width + depth * block + mergers * merger / square),
            vision_attention: 4.0 * all_pairs * (v.num_heads * v.head_dim) as f64,
            ..Self::default()
        }
    }

    /// The sum of two counts, part by part.
    pub fn plus(self, other: Self) -> Self {
        Self {
            decoder: self.decoder + other.decoder,
            head: self.head + other.head,
            attention: self.attention + other.attention,
            vision: self.vision + other.vision,
            vision_attention: self.vision_attention + other.vision_attention,
        }
    }

    /// Operations of the forward pass alone.
    pub fn total(&self) -> f64 {
        self.decoder + self.head + self.attention + self.vision + self.vision_attention
    }

    /// Operations of the forward and the backward pass.
    pub fn training_flops(&self, trained: TrainedParts) -> f64 {
        let passes = |weights_are_trained| if weights_are_trained { 3.0 } else { 2.0 };
        let decoder = passes(trained.decoder) * (self.decoder + self.head) + 3.0 * self.attention;
        let vision = match trained.through_vision {
            true => passes(trained.vision) * self.vision + 3.0 * self.vision_attention,
            false => self.vision + self.vision_attention,
        };
        decoder + vision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_config;

    /// Compares with a hand calculation for Qwen2.5-VL-7B at 8192 tokens: 6 · 7.07e9 · 8192 operations for weights
    /// and 6 · 8192² · 3584 · 28 for attention.
    #[test]
    fn training_step_of_qwen_7b_agrees_with_a_hand_calculation() {
        let mut config = tiny_config();
        config.text = reel_input::config::TextConfig {
            vocab_size: 152_064,
            hidden_size: 3584,
            intermediate_size: 18_944,
            num_hidden_layers: 28,
            num_attention_heads: 28,
            num_key_value_heads: 4,
            head_dim: 128,
            ..config.text
        };
        let tokens = 8192.0;
        let flops = ForwardFlops::for_tokens(&config, tokens, tokens * (tokens + 1.0) / 2.0, tokens);
        let all = TrainedParts { decoder: true, ..TrainedParts::default() };
        assert!((flops.training_flops(all) / 1e12 - (347.5 + 40.4)).abs() < 0.5, "{flops:?}");
        assert_eq!(
            flops.training_flops(TrainedParts::default()),
            2.0 * (flops.decoder + flops.head) + 3.0 * flops.attention
        );
    }

    /// The operations of products are twice the weights of all matrices, times the rows that each of them multiplies.
    #[test]
    fn products_multiply_all_matrices() {
        for config in [tiny_config(), crate::testing::qwen3_config()] {
            let (tokens, grids) = (7.0, [[2, 4, 8], [1, 2, 2]]);
            let (mut decoder, mut head, mut vision) = (0.0, 0.0, 0.0);
            for (name, shape) in crate::checkpoint::expected_tensors(&config) {
                let weights = 2.0 * shape.iter().product::<usize>() as f64;
                match &name[..] {
                    _ if shape.len() == 1 || name == "visual.pos_embed.weight" => {}
                    "lm_head.weight" | "model.embed_tokens.weight" => head = weights,
                    // A merger has a row for four patches.
                    _ if name.contains("merger") => vision += weights * 68.0 / 4.0,
                    _ if name.starts_with("visual.") => vision += weights * 68.0,
                    _ => decoder += weights * tokens,
                }
            }
            let of_tokens = ForwardFlops::for_tokens(&config, tokens, 1.0, 1.0);
            assert_eq!((of_tokens.decoder, of_tokens.head), (decoder, head));
            assert_eq!(ForwardFlops::for_grids(&config, &grids).vision, vision, "{:?}", config.family());
        }
    }

    /// The vision tower has one windowed and one full block. A frame of 4 × 8 patches has two windows of 4 × 4.
    #[test]
    fn vision_counts_windows_and_frames() {
        let mut config = tiny_config();
        let v = &mut config.vision;
        v.depth = 2;
        v.tower = Tower::Qwen25(reel_input::config::Qwen25Tower {
            window_size: 4 * v.patch_size,
            fullatt_block_indexes: vec![1],
            tokens_per_second: 2.0,
        });
        let (width, inner, out) = (v.hidden_size as f64, v.intermediate_size as f64, v.out_hidden_size as f64);
        let (dim, queries) = (v.patch_dim() as f64, (v.num_heads * v.head_dim) as f64);
        assert_eq!(v.spatial_merge_size, 2);
        let flops = ForwardFlops::for_grids(&config, &[[3, 4, 8]]);
        let of_patch = dim * width + 2.0 * width * (4.0 * width + 3.0 * inner) + width * (4.0 * width + out);
        assert_eq!(flops.vision, 2.0 * 96.0 * of_patch);
        assert_eq!(flops.vision_attention, 4.0 * 3.0 * (2.0 * 16.0 * 16.0 + 32.0 * 32.0) * queries);
        let trained = |vision, through_vision| {
            flops.training_flops(TrainedParts { vision, through_vision, ..TrainedParts::default() })
        };
        assert_eq!(trained(false, false), flops.total());
        assert_eq!(trained(true, true), 3.0 * flops.total());
        assert_eq!(trained(false, true), 2.0 * flops.vision + 3.0 * flops.vision_attention);
    }
}
