//! The hyperparameters of a run: learning rate and weight decay of each parameter in each step, gradient clipping,
//! gradient accumulation.

use reel_input::config::{Family, ModelConfig};
use reel_model::flops::TrainedParts;
use reel_model::lora::LoraSpec;
use reel_model::quantization::Quantization;
use reel_runtime::optim::{AdamWParams, LearningRateSchedule, MomentFormat, ScheduleKind};

use crate::options::{GradientCheckpointing, LossMean, LrScheduler, RunOptions};

/// The hyperparameters of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Schedule of the decoder's learning rate. The vision tower and its merger have the same schedule with their own
    /// peak rates.
    pub schedule: LearningRateSchedule,
    /// Number of micro-batches per step.
    pub gradient_accumulation_steps: usize,
    /// Over what the loss of a step of SFT is a mean.
    pub loss_mean: LossMean,
    /// Maximum L2 norm of all gradients together; larger gradients are scaled down to it.
    pub max_grad_norm: f32,
    /// Which activations the backward pass recomputes instead of keeping them.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Whether the vision tower without its merger is frozen.
    pub freeze_vision: bool,
    /// Whether the merger between vision tower and decoder is frozen.
    pub freeze_merger: bool,
    /// Whether the decoder with its embeddings and head is frozen.
    pub freeze_llm: bool,
    /// The LoRA adapter to train; `None` trains the model's own weights.
    pub lora: Option<LoraSpec>,
    /// How the weights of the decoder's linear layers are kept.
    pub quantization: Quantization,
    /// How the optimizer stores its moments.
    pub moments: MomentFormat,
    /// Whether each of several ranks keeps only a part of the weights (ZeRO-3).
    pub shards_weights: bool,
    /// Seed of the stochastic rounding of bf16 moments.
    pub seed: u64,
    vision: f64,
    merger: f64,
    weight_decay: f64,
    no_decay_norms: bool,
    betas: [f64; 2],
    epsilon: f64,
}

impl Hyperparameters {
    /// Returns the hyperparameters by the options, for a run of `steps` steps, with seed 0.
    pub fn new(options: &RunOptions, steps: u64) -> Self {
        let kind = match options.lr_scheduler_type {
            LrScheduler::Linear => ScheduleKind::Linear,
            LrScheduler::Cosine => ScheduleKind::Cosine,
            LrScheduler::Constant => ScheduleKind::Constant,
            LrScheduler::ConstantWithWarmup => ScheduleKind::ConstantWithWarmup,
        };
        let learning_rate = options.learning_rate;
        Self {
            schedule: LearningRateSchedule {
                kind,
                learning_rate,
                warmup_steps: options.warmup_step_count(steps),
                max_steps: steps,
            },
            gradient_accumulation_steps: options.gradient_accumulation_steps,
            loss_mean: LossMean::default(),
            max_grad_norm: options.gradient_norm_limit(),
            gradient_checkpointing: options.gradient_checkpointing,
            freeze_vision: options.freeze_vision,
            freeze_merger: options.is_merger_frozen(),
            freeze_llm: options.freeze_llm,
            lora: options.lora_spec(),
            quantization: options.quantization(),
            moments: options.optim.moment_format(),
            shards_weights: options.zero_stage == 3,
            seed: 0,
            vision: options.learning_rate_vision.unwrap_or(learning_rate),
            merger: options.learning_rate_merger.unwrap_or(learning_rate),
            weight_decay: options.weight_decay,
            no_decay_norms: options.no_decay_norms,
            betas: [options.adam_beta1, options.adam_beta2],
            epsilon: options.adam_epsilon,
        }
    }

    /// Returns the hyperparameters with the loss of a step as a mean over `loss_mean`.
    pub fn with_loss_mean(self, loss_mean: LossMean) -> Self {
        Self { loss_mean, ..self }
    }

    /// Returns the hyperparameters with another seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Returns the hyperparameters for a model of `family`. All versions of transformers that know Qwen3-VL exclude its
    /// norms from weight decay.
    pub fn for_family(self, family: Family) -> Self {
        Self { no_decay_norms: self.no_decay_norms || family == Family::Qwen3Vl, ..self }
    }

    /// Whether the model weight `name` is trained. With LoRA, no model weight is trained. Names have the form used
    /// before transformers 4.52 (`visual.…`, `model.…`).
    pub fn is_trained(&self, name: &str) -> bool {
        let is_frozen = if is_of_merger(name) {
            self.freeze_merger
        } else if name.starts_with("visual.") {
            self.freeze_vision
        } else {
            self.freeze_llm
        };
        self.lora.is_none() && !is_frozen
    }

    /// Whether any weight of the vision tower or its merger is trained, or an adapter on such a weight.
    pub fn trains_vision(&self, config: &ModelConfig) -> bool {
        match &self.lora {
            Some(spec) => {
                let layers = spec.target_layers(config).unwrap_or_default();
                layers.iter().any(|layer| layer.name.starts_with("visual."))
            }
            None => !self.freeze_vision || !self.freeze_merger,
        }
    }

    /// Which parts of the model get gradients.
    pub fn trained_parts(&self, config: &ModelConfig) -> TrainedParts {
        let own_weights = self.lora.is_none();
        TrainedParts {
            decoder: own_weights && !self.freeze_llm,
            vision: own_weights && !self.freeze_vision,
            through_vision: self.trains_vision(config) && (self.lora.is_some() || !self.freeze_vision),
        }
    }

    /// Whether weights may be padded with zeros on a GPU. False for 8-bit moments, which have one scale per block of
    /// weights: with padding, these blocks would differ from the blocks of the unpadded weights in files.
    pub fn may_pad_weights(&self) -> bool {
        self.moments != MomentFormat::Int8
    }

    /// Learning rate of the decoder in step `step`, counted from 1.
    pub fn decoder_learning_rate(&self, step: u64) -> f64 {
        self.schedule.learning_rate_at(step)
    }

    /// The AdamW hyperparameters of one parameter in step `step`.
    pub fn adamw_params_of(&self, name: &str, step: u64) -> AdamWParams {
        let peak = if is_of_merger(name) {
            self.merger
        } else if name.starts_with("visual.") {
            self.vision
        } else {
            self.schedule.learning_rate
        };
        AdamWParams {
            learning_rate: LearningRateSchedule { learning_rate: peak, ..self.schedule }.learning_rate_at(step),
            beta1: self.betas[0],
            beta2: self.betas[1],
            epsilon: self.epsilon,
            weight_decay: if self.has_weight_decay(name) { self.weight_decay } else { 0.0 },
        }
    }

    /// Whether weight decay applies to the weight `name`. transformers' Trainer excludes names that contain bias,
    /// layernorm or rmsnorm. Some norm weights of this model have other names, so they are decayed unless
    /// `no_decay_norms` excludes all norms.
    fn has_weight_decay(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        let spared = ["bias", "layernorm", "rmsnorm"].iter().any(|part| name.contains(part));
        let a_norm =
            || ["norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight"].iter().any(|end| name.ends_with(end));
        !(spared || self.no_decay_norms && a_norm())
    }
}

/// Whether a weight belongs to the mergers between vision tower and decoder, which include the DeepStack mergers of
/// Qwen3-VL.
fn is_of_merger(name: &str) -> bool {
    name.starts_with("visual.merger.") || name.starts_with("visual.deepstack_merger_list.")
}

#[cfg(test)]
mod tests {
    use reel_model::checkpoint::expected_tensors;
    use reel_model::init::{InitOptions, Preset, preset_config};

    use super::*;

    fn hyperparameters(change: impl FnOnce(&mut RunOptions)) -> Hyperparameters {
        let mut options = RunOptions { weight_decay: 0.1, learning_rate: 1.0, ..Default::default() };
        change(&mut options);
        Hyperparameters::new(&options, 4)
    }

    const NORMS: [&str; 4] = [
        "model.norm.weight",
        "visual.merger.ln_q.weight",
        "visual.blocks.0.norm1.weight",
        "visual.blocks.31.norm2.weight",
    ];

    #[test]
    fn weight_decay_excludes_the_names_that_the_trainer_excludes() {
        let decay =
            |hyperparameters: &Hyperparameters, name: &str| hyperparameters.adamw_params_of(name, 1).weight_decay;
        let plain = hyperparameters(|_| ());
        for name in [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.input_layernorm.weight",
            "a.LayerNorm.weight",
            "x.RMSNorm.y",
        ] {
            assert_eq!(decay(&plain, name), 0.0, "{name}");
        }
        for name in ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"] {
            assert_eq!(decay(&plain, name), 0.1, "{name}");
        }
        let spared = hyperparameters(|o| o.no_decay_norms = true);
        for name in NORMS {
            assert_eq!((decay(&plain, name), decay(&spared, name)), (0.1, 0.0), "{name}");
        }
        assert_eq!(decay(&spared, "model.layers.0.mlp.up_proj.weight"), 0.1);
    }

    /// In Qwen3-VL neither norms nor biases have weight decay; all tables and matrices have.
    #[test]
    fn weight_decay_of_qwen3_excludes_all_vectors() {
        let options = InitOptions { preset: Preset::Qwen3Tiny, layers: None, vocab: None, dtype: None, seed: 0 };
        let hyperparameters = hyperparameters(|_| ()).for_family(Family::Qwen3Vl);
        for (name, shape) in expected_tensors(&preset_config(&options).unwrap()) {
            let decay = hyperparameters.adamw_params_of(&name, 1).weight_decay;
            assert_eq!(decay, if shape.len() == 1 { 0.0 } else { 0.1 }, "{name}");
        }
    }

    /// The DeepStack mergers of Qwen3-VL are frozen and trained with the merger.
    #[test]
    fn deepstack_mergers_count_as_merger() {
        let name = "visual.deepstack_merger_list.1.linear_fc1.weight";
        for (freeze_vision, freeze_merger, is_trained) in
            [(true, None, false), (true, Some(false), true), (false, Some(true), false)]
        {
            let hyperparameters =
                hyperparameters(|o| (o.freeze_vision, o.freeze_merger) = (freeze_vision, freeze_merger));
            assert_eq!(hyperparameters.is_trained(name), is_trained);
            assert_eq!(hyperparameters.is_trained("visual.pos_embed.weight"), !freeze_vision);
        }
        let own = hyperparameters(|o| o.learning_rate_merger = Some(2.0));
        assert_eq!(own.adamw_params_of(name, 1), own.adamw_params_of("visual.merger.linear_fc1.weight", 1));
    }

    #[test]
    fn vision_and_merger_have_their_own_peak_rates() {
        let hyperparameters = hyperparameters(|o| {
            o.learning_rate_vision = Some(0.5);
            o.learning_rate_merger = Some(2.0);
        });
        let rate = |name: &str, step| hyperparameters.adamw_params_of(name, step).learning_rate;
        assert_eq!(
            (rate("visual.blocks.0.attn.qkv.weight", 1), rate("visual.blocks.0.attn.qkv.weight", 3)),
            (0.5, 0.25)
        );
        assert_eq!((rate("visual.merger.mlp.0.weight", 1), rate("visual.merger.mlp.0.weight", 3)), (2.0, 1.0));
        assert_eq!(
            (rate("lm_head.weight", 1), rate("lm_head.weight", 3), hyperparameters.decoder_learning_rate(3)),
            (1.0, 0.5, 0.5)
        );
    }

    #[test]
    fn tower_merger_and_decoder_are_frozen_one_by_one() {
        let names = ["visual.blocks.0.attn.qkv.weight", "visual.merger.mlp.0.weight", "model.embed_tokens.weight"];
        for (tower, merger, decoder, trained) in [
            (true, Some(false), false, [false, true, true]),
            (false, Some(true), false, [true, false, true]),
            (false, None, true, [true, true, false]),
            (true, Some(false), true, [false, true, false]),
        ] {
            let own = hyperparameters(|o| (o.freeze_vision, o.freeze_merger, o.freeze_llm) = (tower, merger, decoder));
            assert_eq!(names.map(|name| own.is_trained(name)), trained);
        }
    }

    #[test]
    fn freeze_vision_includes_the_merger() {
        let hyperparameters = hyperparameters(|o| o.freeze_vision = true);
        assert!(
            !hyperparameters.is_trained("visual.merger.mlp.0.weight")
                && !hyperparameters.is_trained("visual.patch_embed.proj.weight")
        );
        assert!(hyperparameters.is_trained("model.embed_tokens.weight"));
    }
}
