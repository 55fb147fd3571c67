//! `config.json` of a SigLIP folder. Keys that are missing have the defaults of transformers' `SiglipTextConfig` and
//! `SiglipVisionConfig`, which published folders rely on.

use std::path::Path;

use reel_input::config::fields::JsonFields;
use reel_support::diagnostic::input;

use crate::error::{Error, Result};

/// The config of a SigLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    /// The text tower.
    pub text: SiglipTextConfig,
    /// The vision tower.
    pub vision: SiglipVisionConfig,
}

/// The sizes of the text tower, in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipTextConfig {
    /// The number of rows of the token embedding.
    pub vocab_size: usize,
    /// The number of tokens that every text is padded or cut to (64 in all published models).
    pub positions: usize,
    /// The width of an embedding; equals the hidden size of the vision tower.
    pub projection_size: usize,
    /// The sizes of the tower's layers.
    pub encoder: EncoderConfig,
}

/// The sizes of the vision tower, in elements; `image_size` and `patch_size` are in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipVisionConfig {
    /// The side of the square that every image is resized to, in pixels.
    pub image_size: usize,
    /// The side of a patch in pixels. If it does not divide the image's side, the remaining pixels at the right and
    /// bottom edge are ignored.
    pub patch_size: usize,
    /// The sizes of the tower's layers.
    pub encoder: EncoderConfig,
}

/// The sizes of the layers of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The width of the residual (C).
    pub hidden_size: usize,
    /// The width of the MLP.
    pub intermediate_size: usize,
    /// The number of layers.
    pub layers: usize,
    /// The number of attention heads; divides `hidden_size`.
    pub heads: usize,
    /// The epsilon of all layer norms.
    pub eps: f32,
}

impl SiglipVisionConfig {
    /// The number of patches along each side.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// The number of patches of an image.
    pub fn patch_count(&self) -> usize {
        self.patches_per_side() * self.patches_per_side()
    }

    /// The number of values of a patch.
    pub fn patch_dim(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }
}

impl EncoderConfig {
    /// The number of elements of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }
}

const HELP: &str = "use the config.json that was published with these weights";
const KIND: &str = "use a SigLIP model such as google/siglip-so400m-patch14-384";

/// The largest accepted number of layers; a larger one is surely a mistake in the file.
const MAX_LAYERS: usize = 4096;
/// The largest accepted side of an image, in pixels; all published models have sides below 600.
const MAX_SIDE: usize = 8192;

impl SiglipConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read; the errors of [`SiglipConfig::parse`].
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = input::read_text(&path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(&path, e))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses the text of a config.json; `file` names its source in error messages.
    ///
    /// # Errors
    /// A key of the wrong type; another model; unsupported sizes.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let root = JsonFields::parse(file, text, HELP)?;
        match root.opt_str("model_type")? {
            Some("siglip") => {}
            Some(other) => return Err(root.error_with_help("model_type", format!("is `{other}`, not siglip"), KIND)),
            None => return Err(root.error_with_help("model_type", "is missing", KIND)),
        }
        if root.has_key("quantization_config") {
            let what = "quantised weights are not supported";
            return Err(root.error_with_help("quantization_config", what, "use the unquantised model"));
        }
        let vision = vision(&root.object_or_empty("vision_config")?)?;
        let text = text_tower(&root.object_or_empty("text_config")?)?;
        if text.projection_size != vision.encoder.hidden_size {
            let what = format!(
                "is {}, but must equal vision_config.hidden_size, which is {}",
                text.projection_size, vision.encoder.hidden_size
            );
            return Err(root.error("text_config.projection_size", what));
        }
        Ok(Self { text, vision })
    }
}

fn encoder(tower: &JsonFields) -> Result<EncoderConfig> {
    let eps = if tower.has_key("layer_norm_eps") { tower.positive_f64("layer_norm_eps")? } else { 1e-6 };
    let config = EncoderConfig {
        hidden_size: tower.opt_positive_int("hidden_size")?.unwrap_or(768),
        intermediate_size: tower.opt_positive_int("intermediate_size")?.unwrap_or(3072),
        layers: tower.opt_int_up_to("num_hidden_layers", MAX_LAYERS)?.unwrap_or(12),
        heads: tower.opt_positive_int("num_attention_heads")?.unwrap_or(12),
        eps: eps as f32,
    };
    if !config.hidden_size.is_multiple_of(config.heads) {
        let what = format!("is {}, which does not divide hidden_size {}", config.heads, config.hidden_size);
        return Err(tower.error("num_attention_heads", what));
    }
    match tower.opt_str("hidden_act")? {
        None | Some("gelu_pytorch_tanh") => Ok(config),
        Some(other) => Err(tower.error("hidden_act", format!("is `{other}`; only gelu_pytorch_tanh is supported"))),
    }
}

fn vision(tower: &JsonFields) -> Result<SiglipVisionConfig> {
    let config = SiglipVisionConfig {
        image_size: tower.opt_int_up_to("image_size", MAX_SIDE)?.unwrap_or(224),
        patch_size: tower.opt_positive_int("patch_size")?.unwrap_or(16),
        encoder: encoder(tower)?,
    };
    if config.patch_size > config.image_size {
        let what = format!("is {}, more than image_size {}", config.patch_size, config.image_size);
        return Err(tower.error("patch_size", what));
    }
    let channels = tower.opt_positive_int("num_channels")?.unwrap_or(3);
    if channels != 3 {
        return Err(tower.error("num_channels", format!("is {channels}; images have 3 channels")));
    }
    if tower.opt_bool("vision_use_head")? == Some(false) {
        return Err(tower.error("vision_use_head", "is false; only models with a pooling head are supported"));
    }
    Ok(config)
}

fn text_tower(tower: &JsonFields) -> Result<SiglipTextConfig> {
    let encoder = encoder(tower)?;
    Ok(SiglipTextConfig {
        vocab_size: tower.opt_positive_int("vocab_size")?.unwrap_or(32_000),
        positions: tower.opt_int_up_to("max_position_embeddings", 1 << 16)?.unwrap_or(64),
        projection_size: tower.opt_positive_int("projection_size")?.unwrap_or(encoder.hidden_size),
        encoder,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The config of the published so400m-patch14-384.
    fn published() -> Value {
        let tower = |kind: &str| {
            json!({"hidden_size": 1152, "intermediate_size": 4304, "model_type": kind, "num_attention_heads": 16,
                "num_hidden_layers": 27})
        };
        let mut vision = tower("siglip_vision_model");
        (vision["image_size"], vision["patch_size"]) = (json!(384), json!(14));
        json!({"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip", "text_config": tower("siglip_text_model"),
            "torch_dtype": "float32", "vision_config": vision})
    }

    fn parse(value: &Value) -> Result<SiglipConfig> {
        SiglipConfig::parse("c", &value.to_string())
    }

    #[test]
    fn missing_keys_have_the_class_defaults() {
        let so400m = parse(&published()).unwrap();
        assert_eq!((so400m.text.vocab_size, so400m.text.positions, so400m.text.projection_size), (32_000, 64, 1152));
        assert_eq!(
            (so400m.vision.patches_per_side(), so400m.vision.patch_count(), so400m.vision.encoder.head_dim()),
            (27, 729, 72)
        );
        assert_eq!((so400m.text.encoder.layers, so400m.text.encoder.eps), (27, 1e-6));
        let base = parse(&json!({"model_type": "siglip"})).unwrap();
        assert_eq!((base.vision.image_size, base.vision.patch_size, base.vision.patch_count()), (224, 16, 196));
        let encoder = EncoderConfig { hidden_size: 768, intermediate_size: 3072, layers: 12, heads: 12, eps: 1e-6 };
        assert_eq!((&base.vision.encoder, &base.text.encoder), (&encoder, &encoder));
    }

    #[test]
    fn other_models_and_shapes_are_refused_by_name() {
        for (section, key, value) in [
            ("", "model_type", json!("siglip2")),
            ("", "model_type", Value::Null),
            ("", "quantization_config", json!({})),
            ("", "vision_config", json!([])),
            ("vision_config", "hidden_act", json!("gelu")),
            ("vision_config", "num_channels", json!(1)),
            ("vision_config", "patch_size", json!(385)),
            ("vision_config", "patch_size", json!(0)),
            ("vision_config", "image_size", json!(1 << 20)),
            ("vision_config", "vision_use_head", json!(false)),
            ("vision_config", "num_attention_heads", json!(15)),
            ("vision_config", "layer_norm_eps", json!(0)),
            ("text_config", "num_hidden_layers", json!("27")),
            ("text_config", "num_hidden_layers", json!(5000)),
            ("text_config", "vocab_size", json!(-1)),
            ("text_config", "projection_size", json!(1024)),
        ] {
            let mut config = published();
            let location = if section.is_empty() { &mut config } else { &mut config[section] };
            location[key] = value.clone();
            let error = parse(&config).unwrap_err().to_string();
            let dot = if section.is_empty() { "" } else { "." };
            assert!(
                error.starts_with(&format!("c: {section}{dot}{key}: ")) && error.contains("; "),
                "{key} {value}: {error}"
            );
        }
        for text in ["", "[]", "{\"model_type\": "] {
            assert!(SiglipConfig::parse("c", text).unwrap_err().to_string().starts_with("c: is not"), "{text}");
        }
    }
}
