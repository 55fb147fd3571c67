//! `adapter_config.json` in the format of PEFT. Fields that change the results of an adapter are applied or rejected.
//! Other fields (how it was initialised and trained) are ignored.

use std::io;
use std::path::Path;

use reel_input::config::Family;
use reel_support::diagnostic::input;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::LoraSpec;
use crate::error::{Error, Result};

/// The file that marks a folder as an adapter.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";

/// Whether a folder holds an adapter instead of a model.
pub fn is_adapter_folder(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG_FILE).is_file()
}

/// The fields of `adapter_config.json` that affect results.
#[derive(Clone, Debug)]
pub(super) struct AdapterConfig {
    /// The base model, as a folder or a hub id.
    pub(super) base: Option<String>,
    r: usize,
    alpha: f64,
    /// Ranks and alphas of single layers, by patterns of their names; the first pattern that matches applies.
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Whether the scale is alpha / √r (rank-stabilised LoRA) instead of alpha / r.
    rslora: bool,
    /// The modules that were trained in full: each whose name ends with one of these texts.
    pub(super) modules_to_save: Vec<String>,
}

/// Fields of unsupported kinds of LoRA, each with what it means if it is set. Every one must be absent, null, false
/// or empty.
const UNSUPPORTED: [(&str, &str); 13] = [
    ("use_dora", "asks for DoRA, which is not supported"),
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

const COPY_AGAIN: &str = "copy or download the adapter again";

/// The largest accepted rank; a larger one is surely a mistake in the file.
const MAX_RANK: u64 = 1 << 16;

impl AdapterConfig {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(ADAPTER_CONFIG_FILE);
        let location = path.display().to_string();
        let text = input::read_text(&path, input::MAX_CONFIG_BYTES).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound if !folder.exists() => {
                Error::input(folder.display().to_string(), "does not exist", "check the path")
            }
            io::ErrorKind::NotFound => Error::input(
                folder.display().to_string(),
                format!("is not an adapter (it has no {ADAPTER_CONFIG_FILE})"),
                "use a folder that `reel sft --lora-r` or PEFT wrote",
            ),
            _ => Error::cannot_read(&path, e),
        })?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => Self::parse(&location, &fields),
            Ok(_) => Err(Error::input(location, "is not a JSON object", COPY_AGAIN)),
            Err(e) => Err(Error::input(location, format!("is not JSON ({e})"), COPY_AGAIN)),
        }
    }

    pub(super) fn parse(location: &str, fields: &Map<String, Value>) -> Result<Self> {
        let refuse = |key: &str, what: String, help: &str| Err(Error::input(format!("{location}: {key}"), what, help));
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
        let rank = |value: &Value| match value.as_u64().filter(|r| (1..=MAX_RANK).contains(r)) {
            Some(r) => Ok(r as usize),
            None => Err(format!("is {value}, expected a rank from 1 to {MAX_RANK}")),
        };
        // A scale is at most alpha, because ranks are 1 or more.
        let alpha = |value: &Value| match value.as_f64() {
            Some(alpha) if (alpha as f32).is_finite() => Ok(alpha),
            Some(_) => Err(format!("is {value}; the factor computed from it is outside the range of f32")),
            None => Err(format!("is {value}, expected a number")),
        };
        let missing = |key: &str| Error::input(format!("{location}: {key}"), "is missing", COPY_AGAIN);
        let field = |key| fields.get(key).ok_or_else(|| missing(key));
        let wrong = |key: &str| {
            let location = format!("{location}: {key}");
            move |what: String| Error::input(location, what, COPY_AGAIN)
        };
        let base = fields.get("base_model_name_or_path").and_then(Value::as_str).filter(|base| !base.is_empty());
        Ok(Self {
            base: base.map(str::to_string),
            r: rank(field("r")?).map_err(wrong("r"))?,
            alpha: alpha(field("lora_alpha")?).map_err(wrong("lora_alpha"))?,
            rank_pattern: patterns(fields.get("rank_pattern"), rank).map_err(wrong("rank_pattern"))?,
            alpha_pattern: patterns(fields.get("alpha_pattern"), alpha).map_err(wrong("alpha_pattern"))?,
            rslora: fields.get("use_rslora").is_some_and(is_set),
            modules_to_save: names(fields.get("modules_to_save")).map_err(wrong("modules_to_save"))?,
        })
    }

    /// The rank of the layer `name`, and the factor by which its `B A x` is multiplied. `name` is the layer's name in
    /// the adapter's own naming scheme, because the patterns were written for it.
    pub(super) fn rank_and_scale(&self, name: &str) -> (usize, f64) {
        let r = first_match(&self.rank_pattern, name).unwrap_or(self.r);
        let alpha = first_match(&self.alpha_pattern, name).unwrap_or(self.alpha);
        (r, alpha / if self.rslora { (r as f64).sqrt() } else { r as f64 })
    }
}

/// The value of the first pattern that matches the layer `name`.
fn first_match<T: Copy>(patterns: &[(Regex, T)], name: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(name)).map(|&(_, value)| value)
}

/// Parses an object whose keys are patterns of layer names: by PEFT's rule (`get_pattern_key`) a regular expression for
/// the whole name of a layer, or for its end after a point.
fn patterns<T>(field: Option<&Value>, parse: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<(Regex, T)>, String> {
    let Some(field) = field.filter(|field| is_set(field)) else { return Ok(Vec::new()) };
    let entries = field.as_object().ok_or_else(|| format!("is {field}, expected an object"))?;
    let parse = |(key, value): (&String, &Value)| {
        let pattern = Regex::new(&format!(r"^(?:(?:.*\.)?(?:{key}))$"));
        let pattern =
            pattern.map_err(|_| format!("has the key {key:?}, which is not a supported regular expression"))?;
        Ok((pattern, parse(value).map_err(|what| format!("has the key {key:?}, whose value {what}"))?))
    };
    entries.iter().map(parse).collect()
}

/// Parses a list of names of modules.
fn names(field: Option<&Value>) -> Result<Vec<String>, String> {
    let Some(field) = field.filter(|field| is_set(field)) else { return Ok(Vec::new()) };
    let names = field.as_array().and_then(|names| names.iter().map(|name| Some(name.as_str()?.to_string())).collect());
    names.ok_or_else(|| format!("is {field}, expected a list of names"))
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

/// The adapter_config.json of an adapter that this program trained. The field `exclude_modules` keeps the adapter out
/// of the vision tower, where layers may match the target names too. Old versions of PEFT know all fields except
/// `exclude_modules`. They add adapters of zeros to the vision tower, which do not change results.
pub(super) fn adapter_config_json(spec: &LoraSpec, family: Family, base: &str) -> Value {
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
        "target_modules": spec.target_names(family),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    if !spec.vision {
        fields["exclude_modules"] = json!(r"(.*\.)?visual\..*");
    }
    fields
}
