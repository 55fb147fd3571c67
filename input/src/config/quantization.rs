//! `quantization_config` of config.json: how the files store the weights of the decoder's linear layers. Read are AWQ,
//! GPTQ, compressed-tensors, fp8 as Qwen publishes it, and nf4 of bitsandbytes. What a format computes, and which
//! tensors it stores, is in `model/src/checkpoint/quantized`.

use std::path::Path;

use reel_support::diagnostic::input;
use serde_json::Value;

use super::fields::JsonFields;
use crate::error::{Error, Result};

const KEY: &str = "quantization_config";
const GROUPS: &str = "config_groups";
const UNQUANTISED: &str = "use the unquantised bf16 model";

/// How the weights of the decoder's linear layers are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightQuantization {
    /// The format of the quantised weights.
    pub format: WeightFormat,
    /// Where the config lists the modules that are stored plainly: the key's path, for messages.
    pub plain_key: String,
    /// A note for the user, if the config asks for quantised activations: they are not quantised.
    pub note: Option<String>,
    plain: Vec<ModulePattern>,
}

/// The format of quantised weights. A weight is `(value of its code − zero point) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightFormat {
    /// AWQ, layout `gemm`: 4 bits, with zero points.
    Awq(Scales),
    /// GPTQ: 4 or 8 bits, with zero points. In version 1 files store each zero point minus 1.
    Gptq {
        /// The size of a code.
        bits: u32,
        /// Which weights share a scale.
        scales: Scales,
        /// Whether files store zero points minus 1.
        is_version_1: bool,
        /// Whether the inputs of a group are not consecutive (`desc_act`).
        reorders: bool,
    },
    /// compressed-tensors, `pack-quantized`: 4 or 8 bits, packed into words.
    Packed {
        /// The size of a code.
        bits: u32,
        /// Which weights share a scale.
        scales: Scales,
        /// Whether there are no zero points.
        is_symmetric: bool,
    },
    /// compressed-tensors, `int-quantized`: i8.
    Int8 {
        /// Which weights share a scale.
        scales: Scales,
        /// Whether there are no zero points.
        is_symmetric: bool,
    },
    /// 8-bit floats, e4m3.
    Fp8 {
        /// Which weights share a scale.
        scales: Scales,
        /// The last part of the name of the scales.
        scale_name: &'static str,
    },
    /// bitsandbytes, nf4: 4 bits, by a table of 16 values.
    Nf4,
}

/// Which weights of a matrix `[out, in]` share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// All.
    Tensor,
    /// Those of a row.
    Row,
    /// So many inputs of a row.
    Group(usize),
    /// A block of so many rows and columns.
    Block([usize; 2]),
}

impl Scales {
    /// The rows and columns that share a scale, in a matrix of `shape`.
    pub fn block(self, shape: [usize; 2]) -> [usize; 2] {
        match self {
            Scales::Tensor => shape,
            Scales::Row => [1, shape[1]],
            Scales::Group(columns) => [1, columns],
            Scales::Block(block) => block,
        }
    }
}

/// What names modules in a list of modules that are stored plainly.
#[derive(Debug, Clone, PartialEq)]
enum ModulePattern {
    /// A part of the name.
    Part(String),
    /// The whole name.
    Name(String),
    /// A regular expression that matches from the beginning of the name.
    Expression(String),
}

impl WeightQuantization {
    /// Reads `quantization_config` of the model folder `folder`; `None` if its weights are not quantised, or if it has no
    /// config.json.
    ///
    /// # Errors
    /// The format is not supported, or config.json cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("config.json");
        match input::read_text(&path, input::MAX_CONFIG_BYTES) {
            Ok(text) => Self::parse(&JsonFields::parse(&path.display().to_string(), &text, super::HELP)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::cannot_read(&path, e)),
        }
    }

    /// Reads the key from the fields of a config.json, or of its `text_config`.
    pub(super) fn parse(root: &JsonFields) -> Result<Option<Self>> {
        let nested = root.opt_object("text_config")?;
        let found = match root.opt_object(KEY)? {
            Some(fields) => Some(fields),
            None => nested.map(|text| text.opt_object(KEY)).transpose()?.flatten(),
        };
        let Some(fields) = found else { return Ok(None) };
        let unsupported = |key: &str, what: String| fields.error_with_help(key, what, UNQUANTISED);
        let (format, plain_key) = match fields.opt_str("quant_method")? {
            Some("awq") => (awq(&fields)?, "modules_to_not_convert"),
            Some("gptq") => (gptq(&fields)?, "modules_to_not_convert"),
            Some("compressed-tensors") => (compressed_tensors(&fields)?, "ignore"),
            Some("fp8") => (fp8(&fields)?, "modules_to_not_convert"),
            Some("bitsandbytes") => (bitsandbytes(&fields)?, "llm_int8_skip_modules"),
            Some(other) => {
                let what = format!(
                    "is `{other}`; the supported methods are awq, gptq, compressed-tensors, fp8 and bitsandbytes (nf4)"
                );
                return Err(unsupported("quant_method", what));
            }
            None => return Err(unsupported("quant_method", "is missing".to_string())),
        };
        let names = fields.opt_strings(plain_key)?.unwrap_or_default();
        let is_whole = plain_key == "ignore";
        let plain = names.into_iter().map(|name| match (is_whole, name.strip_prefix("re:")) {
            (false, _) => Ok(ModulePattern::Part(name)),
            (true, None) => Ok(ModulePattern::Name(name)),
            (true, Some(text)) => match regex::Regex::new(&format!("^(?:{text})")) {
                Ok(_) => Ok(ModulePattern::Expression(format!("^(?:{text})"))),
                Err(_) => {
                    let what = format!("has `{name}`, which is not a regular expression that this program can read");
                    Err(fields.error_with_help(plain_key, what, "list the names of the modules"))
                }
            },
        });
        let plain = plain.collect::<Result<_>>()?;
        let note = activation_note(&fields)?;
        Ok(Some(Self { format, plain_key: fields.path_of(plain_key), note, plain }))
    }

    /// Whether the config lists the module `name` as stored plainly.
    pub fn is_listed_as_plain(&self, name: &str) -> bool {
        self.plain.iter().any(|pattern| match pattern {
            ModulePattern::Part(part) => name.contains(part.as_str()),
            ModulePattern::Name(whole) => name == whole,
            ModulePattern::Expression(text) => regex::Regex::new(text).is_ok_and(|pattern| pattern.is_match(name)),
        })
    }
}

/// Fails unless the key, if it is there, has one of the values `allowed`; strings are compared without case.
fn require(fields: &JsonFields, key: &str, allowed: &[Value]) -> Result<()> {
    let Some(value) = fields.value(key) else { return Ok(()) };
    let same = |other: &Value| match (value.as_str(), other.as_str()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => value == other,
    };
    if allowed.iter().any(same) {
        return Ok(());
    }
    let named: Vec<String> = allowed.iter().map(Value::to_string).collect();
    let what = format!("is {value}; only {} is supported", named.join(" or "));
    Err(fields.error_with_help(key, what, UNQUANTISED))
}

/// Fails if the key has a value other than null, false, or an empty list or object: it would change the results.
fn refuse(fields: &JsonFields, key: &str) -> Result<()> {
    let is_empty = |value: &Value| match value {
        Value::Bool(flag) => !flag,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match fields.value(key) {
        Some(value) if !is_empty(value) => {
            Err(fields.error_with_help(key, "is set, which is not supported", UNQUANTISED))
        }
        _ => Ok(()),
    }
}

/// The note that the activations of the model are not quantised, if the config asks for it.
fn activation_note(fields: &JsonFields) -> Result<Option<String>> {
    let what = "asks for quantised activations; they are not quantised, only the weights are";
    if fields.has_key("activation_scheme") {
        return Ok(Some(fields.error_text("activation_scheme", what)));
    }
    let groups = fields.object_or_empty(GROUPS)?;
    let group = groups.keys().next().map(|name| groups.object_or_empty(name)).transpose()?;
    let asks = |group: &JsonFields| group.has_key("input_activations");
    Ok(group.filter(asks).map(|group| group.error_text("input_activations", what)))
}

/// The size of a group of inputs: −1 means all inputs.
fn group_size(fields: &JsonFields) -> Result<Scales> {
    const GROUP: &str = "group_size";
    match fields.value(GROUP).and_then(Value::as_i64) {
        Some(-1) => Ok(Scales::Row),
        _ => Ok(Scales::Group(fields.positive_int(GROUP)?)),
    }
}

/// The size of a code in bits: 4 or 8.
fn code_bits(fields: &JsonFields, key: &str) -> Result<u32> {
    require(fields, key, &[4.into(), 8.into()])?;
    Ok(if fields.int(key)? == 8 { 8 } else { 4 })
}

fn awq(fields: &JsonFields) -> Result<WeightFormat> {
    require(fields, "bits", &[4.into()])?;
    require(fields, "zero_point", &[true.into()])?;
    require(fields, "version", &["gemm".into()])?;
    require(fields, "format", &["gemm".into()])?;
    Ok(WeightFormat::Awq(group_size(fields)?))
}

fn gptq(fields: &JsonFields) -> Result<WeightFormat> {
    refuse(fields, "lm_head")?;
    require(fields, "checkpoint_format", &["gptq".into(), "gptq_v2".into()])?;
    require(fields, "pack_dtype", &["int32".into()])?;
    // gptqmodel's rules for single modules: `-:pattern` leaves them unquantised, others change bits or group size.
    if let Some(rules) = fields.opt_object("dynamic")?
        && let Some(rule) = rules.keys().find(|rule| !rule.starts_with("-:"))
    {
        let what = "gives these modules other settings, which is not supported";
        return Err(rules.error_with_help(rule, what, UNQUANTISED));
    }
    Ok(WeightFormat::Gptq {
        bits: code_bits(fields, "bits")?,
        scales: group_size(fields)?,
        is_version_1: fields.opt_str("checkpoint_format")? != Some("gptq_v2"),
        reorders: fields.opt_bool("desc_act")?.unwrap_or(false),
    })
}

fn fp8(fields: &JsonFields) -> Result<WeightFormat> {
    require(fields, "fmt", &["e4m3".into()])?;
    refuse(fields, "scale_fmt")?;
    let scales = match fields.has_key("weight_block_size") {
        true => Scales::Block(two_sizes(fields, "weight_block_size")?),
        false => Scales::Tensor,
    };
    Ok(WeightFormat::Fp8 { scales, scale_name: "weight_scale_inv" })
}

fn two_sizes(fields: &JsonFields, key: &str) -> Result<[usize; 2]> {
    match fields.int_list(key)?[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(fields.error(key, "is not a list of two sizes")),
    }
}

fn bitsandbytes(fields: &JsonFields) -> Result<WeightFormat> {
    for key in ["load_in_8bit", "_load_in_8bit"] {
        refuse(fields, key)?;
    }
    require(fields, "bnb_4bit_quant_type", &["nf4".into()])?;
    require(fields, "bnb_4bit_quant_storage", &["uint8".into()])?;
    match fields.opt_str("bnb_4bit_quant_type")? {
        Some(_) => Ok(WeightFormat::Nf4),
        None => Err(fields.error_with_help("bnb_4bit_quant_type", "is missing; its default is fp4", UNQUANTISED)),
    }
}

fn compressed_tensors(fields: &JsonFields) -> Result<WeightFormat> {
    require(fields, "quantization_status", &["compressed".into()])?;
    for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
        refuse(fields, key)?;
    }
    let groups = fields.object_or_empty(GROUPS)?;
    let names: Vec<&str> = groups.keys().collect();
    let [name] = names[..] else {
        let what = format!("has {} groups; exactly one is supported", names.len());
        return Err(fields.error_with_help(GROUPS, what, UNQUANTISED));
    };
    let group = groups.object_or_empty(name)?;
    refuse(&group, "output_activations")?;
    let weights = group.object_or_empty("weights")?;
    refuse(&weights, "dynamic")?;
    refuse(&weights, "actorder")?;
    let scales = match weights.opt_str("strategy")? {
        Some("tensor") => Scales::Tensor,
        Some("channel") => Scales::Row,
        Some("group") => group_size(&weights)?,
        Some("block") => Scales::Block(two_sizes(&weights, "block_structure")?),
        other => {
            let what =
                format!("is {}; only tensor, channel, group and block are supported", other.unwrap_or("missing"));
            return Err(weights.error_with_help("strategy", what, UNQUANTISED));
        }
    };
    let own = group.opt_str("format")?;
    let (of, format) = if own.is_some() { (&group, own) } else { (fields, fields.opt_str("format")?) };
    let is_symmetric = weights.opt_bool("symmetric")?.unwrap_or(true);
    let kind = weights.opt_str("type")?.unwrap_or("int");
    match (format, kind) {
        (Some("float-quantized" | "naive-quantized"), "float") => {
            require(&weights, "num_bits", &[8.into()])?;
            require(&weights, "symmetric", &[true.into()])?;
            Ok(WeightFormat::Fp8 { scales, scale_name: "weight_scale" })
        }
        (Some("int-quantized" | "naive-quantized"), "int") => {
            require(&weights, "num_bits", &[8.into()])?;
            Ok(WeightFormat::Int8 { scales, is_symmetric })
        }
        (Some("pack-quantized"), "int") => {
            Ok(WeightFormat::Packed { bits: code_bits(&weights, "num_bits")?, scales, is_symmetric })
        }
        _ => {
            let what = format!(
                "is {} with weights of type {kind}; only float-quantized, int-quantized and pack-quantized are supported",
                format.unwrap_or("missing")
            );
            Err(of.error_with_help("format", what, UNQUANTISED))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(quantization: Value) -> Result<WeightQuantization> {
        let text = json!({KEY: quantization}).to_string();
        let parsed = WeightQuantization::parse(&JsonFields::parse("config.json", &text, "help")?)?;
        Ok(parsed.expect("the key is there"))
    }

    fn awq() -> Value {
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "GEMM"})
    }

    fn gptq() -> Value {
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true})
    }

    fn fp8() -> Value {
        json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})
    }

    fn nf4() -> Value {
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})
    }

    fn packed() -> Value {
        let weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32});
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
    }

    #[test]
    fn formats_are_read() {
        let format = |config| parse(config).unwrap().format;
        assert_eq!(format(awq()), WeightFormat::Awq(Scales::Group(128)));
        let (bits, scales) = (4, Scales::Group(128));
        assert_eq!(format(gptq()), WeightFormat::Gptq { bits, scales, is_version_1: true, reorders: true });
        let with = |mut config: Value, key: &str, value: Value| {
            config[key] = value;
            config
        };
        let all = with(with(gptq(), "group_size", json!(-1)), "checkpoint_format", json!("gptq_v2"));
        assert_eq!(format(all), WeightFormat::Gptq { bits, scales: Scales::Row, is_version_1: false, reorders: true });
        let block = Scales::Block([128, 128]);
        assert_eq!(format(fp8()), WeightFormat::Fp8 { scales: block, scale_name: "weight_scale_inv" });
        assert_eq!(format(nf4()), WeightFormat::Nf4);
        let scales = Scales::Group(32);
        assert_eq!(format(packed()), WeightFormat::Packed { bits: 4, scales, is_symmetric: true });
        assert_eq!(parse(awq()).unwrap().note, None);
        assert!(parse(fp8()).unwrap().note.unwrap().contains("activation_scheme"));
        // Qwen3-VL has the key at the top level too; both places are read.
        let nested = json!({"text_config": {KEY: awq()}}).to_string();
        let root = JsonFields::parse("config.json", &nested, "help").unwrap();
        assert!(WeightQuantization::parse(&root).unwrap().is_some());
        let none = JsonFields::parse("config.json", r#"{"text_config": {}}"#, "help").unwrap();
        assert_eq!(WeightQuantization::parse(&none).unwrap(), None);
    }

    /// A setting that changes the values of weights is supported, or refused by its name.
    #[test]
    fn other_settings_are_refused_by_name() {
        let refused = |mut config: Value, pointer: &str, value: Value| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
            let Err(e) = parse(config) else { panic!("{pointer} = {value} is accepted") };
            let error = e.to_string();
            assert!(error.contains(key) && !error.contains('\n'), "{pointer} = {value}: {error}");
        };
        for (key, value) in [("quant_method", json!("exl3")), ("quant_method", Value::Null), ("quant_method", json!(4))]
        {
            refused(awq(), &format!("/{key}"), value);
        }
        for (key, value) in [
            ("bits", json!(3)),
            ("zero_point", json!(false)),
            ("version", json!("gemv")),
            ("group_size", json!(0)),
            ("group_size", json!(-2)),
            ("modules_to_not_convert", json!([1])),
        ] {
            refused(awq(), &format!("/{key}"), value);
        }
        for (key, value) in [
            ("bits", json!(3)),
            ("bits", Value::Null),
            ("checkpoint_format", json!("marlin")),
            ("pack_dtype", json!("int16")),
            ("lm_head", json!(true)),
            ("group_size", Value::Null),
        ] {
            refused(gptq(), &format!("/{key}"), value);
        }
        let rule = json!({"+:.*k_proj": {"bits": 8}});
        let with_rule = parse(json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": rule}));
        assert!(with_rule.unwrap_err().to_string().contains("+:.*k_proj"));
        for (key, value) in [
            ("fmt", json!("e5m2")),
            ("scale_fmt", json!("ue8m0")),
            ("weight_block_size", json!([128])),
            ("weight_block_size", json!([0, 128])),
        ] {
            refused(fp8(), &format!("/{key}"), value);
        }
        for (key, value) in [
            ("load_in_8bit", json!(true)),
            ("bnb_4bit_quant_type", json!("fp4")),
            ("bnb_4bit_quant_type", Value::Null),
            ("bnb_4bit_quant_storage", json!("bfloat16")),
        ] {
            refused(nf4(), &format!("/{key}"), value);
        }
        for (pointer, value) in [
            ("/format", json!("marlin-24")),
            ("/format", json!("nvfp4-pack-quantized")),
            ("/kv_cache_scheme", json!({"num_bits": 8})),
            ("/sparsity_config", json!({"format": "sparse-24"})),
            ("/transform_config", json!({"config_groups": {}, "x": 1})),
            ("/quantization_status", json!("frozen")),
            ("/config_groups", json!({})),
            ("/config_groups/group_0/output_activations", json!({"num_bits": 8})),
            ("/config_groups/group_0/weights/num_bits", json!(3)),
            ("/config_groups/group_0/weights/strategy", json!("tensor_group")),
            ("/config_groups/group_0/weights/strategy", Value::Null),
            ("/config_groups/group_0/weights/group_size", json!(0)),
            ("/config_groups/group_0/weights/actorder", json!("group")),
            ("/config_groups/group_0/weights/dynamic", json!(true)),
            ("/ignore", json!(["re:("])),
        ] {
            refused(packed(), pointer, value);
        }
        let mut two = packed();
        two["config_groups"]["group_1"] = json!({});
        assert!(parse(two).unwrap_err().to_string().contains("config_groups: has 2 groups"));
        let mut float = packed();
        float["config_groups"]["group_0"]["weights"]["type"] = json!("float");
        assert!(parse(float).unwrap_err().to_string().contains("with weights of type float"));
    }

    #[test]
    fn modules_that_are_stored_plainly() {
        let mut config = packed();
        config["ignore"] = json!(["lm_head", "re:.*mlp.*"]);
        let packed = parse(config).unwrap();
        let listed = |name: &str| packed.is_listed_as_plain(name);
        assert!(listed("lm_head") && listed("model.layers.0.mlp.up_proj"));
        assert!(!listed("model.lm_head") && !listed("model.layers.0.self_attn.k_proj"));
        let mut config = awq();
        config["modules_to_not_convert"] = json!(["visual", "layers.1."]);
        let awq = parse(config).unwrap();
        assert!(awq.is_listed_as_plain("visual.blocks.0") && awq.is_listed_as_plain("model.layers.1.mlp.up_proj"));
        assert!(!awq.is_listed_as_plain("model.layers.11.mlp.up_proj"));
    }
}
