//! `adapter_config.json` in the format of PEFT. Fields that change the results of an adapter are applied or rejected.
//! Other fields (how it was initialised and trained) are ignored.

use std::io;
use std::path::Path;

use reel_diagnostic::input;
use serde_json::{Map, Value, json};

use super::LoraSpec;
use crate::error::{ModelError, Result};

/// The file that marks a folder as an adapter.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";

/// Whether a folder holds an adapter instead of a model.
pub fn is_adapter_folder(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG_FILE).is_file()
}

/// The fields of `adapter_config.json` that affect results.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AdapterConfig {
    /// The base model, as a folder or a hub id.
    pub(super) base: Option<String>,
    pub(super) r: usize,
    pub(super) scale: f64,
}

/// Fields of unsupported kinds of LoRA, each with what it means if it is set. Every one must be absent, null, false
/// or empty.
const UNSUPPORTED: [(&str, &str); 16] = [
    ("use_dora", "asks for DoRA, which is not supported"),
    ("modules_to_save", "lists modules that were trained in full (not by LoRA), which is not supported"),
    ("rank_pattern", "sets ranks of single layers, which is not supported"),
    ("alpha_pattern", "sets alpha of single layers, which is not supported"),
    ("fan_in_fan_out", "says that weights are stored transposed, which is not supported"),
    ("lora_bias", "adds biases to the adapter, which is not supported"),
    ("layer_replication", "repeats layers of the base model, which is not supported"),
    ("trainable_token_indices", "says that rows of the embedding table were trained, which is not supported"),
    ("target_parameters", "puts the adapter on parameters outside of linear layers, which is not supported"),
    ("alora_invocation_tokens", "applies the adapter to only a part of the tokens, which is not supported"),
    ("use_qalora", "asks for QALoRA, which is not supported"),
    ("use_bdlora", "asks for block-diagonal LoRA, which is not supported"),
    ("arrow_config", "mixes several adapters, which is not supported"),
    ("velora_config", "asks for VeLoRA, which is not supported"),
    ("kasa_config", "asks for KaSA, which is not supported"),
    ("monteclora_config", "asks for MonteCLoRA, which is not supported"),
];

/// The values of `init_lora_weights` that are supported, because they leave the weights of the base model unchanged.
const PLAIN_INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// The largest accepted rank; a larger one is surely a mistake in the file.
const MAX_RANK: u64 = 1 << 16;

impl AdapterConfig {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(ADAPTER_CONFIG_FILE);
        let location = path.display().to_string();
        let text = input::read_text(&path, input::MAX_CONFIG_BYTES).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound if !folder.exists() => {
                ModelError::config(folder.display().to_string(), "does not exist", "check the path")
            }
            io::ErrorKind::NotFound => ModelError::config(
                folder.display().to_string(),
                format!("is not an adapter (it has no {ADAPTER_CONFIG_FILE})"),
                "use a folder that `reel sft --lora-r` or PEFT wrote",
            ),
            _ => ModelError::cannot_read(&path, e),
        })?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => Self::parse(&location, &fields),
            Ok(_) => Err(ModelError::config(location, "is not a JSON object", "copy or download the adapter again")),
            Err(e) => {
                Err(ModelError::config(location, format!("is not JSON ({e})"), "copy or download the adapter again"))
            }
        }
    }

    fn parse(location: &str, fields: &Map<String, Value>) -> Result<Self> {
        let refuse =
            |key: &str, what: String, help: &str| Err(ModelError::config(format!("{location}: {key}"), what, help));
        match fields.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => {
                let what = format!("is {}, not LORA", other.unwrap_or("missing"));
                return refuse("peft_type", what, "use a LoRA adapter");
            }
        }
        if let Some((key, what)) = UNSUPPORTED.iter().find(|(key, _)| fields.get(*key).is_some_and(is_set)) {
            let help = "only plain LoRA is supported; merge this adapter with PEFT (merge_and_unload)";
            return refuse(key, format!("{what}: {}", fields[*key]), help);
        }
        if let Some(bias) = fields.get("bias").filter(|bias| is_set(bias) && *bias != "none") {
            let help = "only plain LoRA is supported; merge this adapter with PEFT (merge_and_unload)";
            return refuse(
                "bias",
                format!("is {bias}: biases of the base model were trained too, which is not supported"),
                help,
            );
        }
        if let Some(start) = fields.get("init_lora_weights").and_then(Value::as_str)
            && !PLAIN_INITS.contains(&start)
        {
            let help = "convert it to plain LoRA with PEFT (path_initial_model_for_weight_conversion)";
            return refuse(
                "init_lora_weights",
                format!("is {start}, which changed the weights of the base model too"),
                help,
            );
        }
        let r = match fields.get("r").and_then(Value::as_u64).filter(|r| (1..=MAX_RANK).contains(r)) {
            Some(r) => r as usize,
            None => {
                let what = format!("is {}, expected a rank from 1 to {MAX_RANK}", shown(fields.get("r")));
                return refuse("r", what, "copy or download the adapter again");
            }
        };
        let alpha = match fields.get("lora_alpha").and_then(Value::as_f64) {
            Some(alpha) => alpha,
            None => {
                let what = format!("is {}, expected a number", shown(fields.get("lora_alpha")));
                return refuse("lora_alpha", what, "copy or download the adapter again");
            }
        };
        let rslora = fields.get("use_rslora").is_some_and(is_set);
        let by = if rslora { (r as f64).sqrt() } else { r as f64 };
        if !((alpha / by) as f32).is_finite() {
            return refuse(
                "lora_alpha",
                format!("is {alpha}; the factor computed from it is outside the range of f32"),
                "copy or download the adapter again",
            );
        }
        let base = fields.get("base_model_name_or_path").and_then(Value::as_str).filter(|base| !base.is_empty());
        Ok(Self { base: base.map(str::to_string), r, scale: alpha / by })
    }
}

/// Whether a field has a value other than null, false or empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("missing".to_string(), Value::to_string)
}

/// The adapter_config.json of an adapter that this program trained. The field `exclude_modules` keeps the adapter out
/// of the vision tower, where layers may match the target names too. Old versions of PEFT know all fields except
/// `exclude_modules`. They add adapters of zeros to the vision tower, which do not change results.
pub(super) fn adapter_config_json(spec: &LoraSpec, base: &str) -> Value {
    let alpha = match spec.alpha.fract() == 0.0 && spec.alpha.abs() < 1e15 {
        true => json!(spec.alpha as i64),
        false => json!(spec.alpha),
    };
    let mut fields = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": spec.r,
        "target_modules": spec.target_names(),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    if !spec.vision {
        fields["exclude_modules"] = json!(r"(.*\.)?visual\..*");
    }
    fields
}
