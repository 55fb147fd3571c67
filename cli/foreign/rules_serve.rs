//! Rules that translate the options of inference servers: vLLM, SGLang, LMDeploy.

use serde_json::{Map, Value};

use super::translation::{CommandTranslation, is_none_value};
use super::words::GivenOption;

/// Applies a rule for server options; returns `false` if `rule` is not one of them.
pub fn apply_serve_rule(rule: &str, value: &str, given: &GivenOption, t: &mut CommandTranslation) -> bool {
    match rule {
        // Only the tokenizer of the model's own folder is accepted. The model may come later on the command line, so
        // the check is made after all options are read.
        "tokenizer" => {
            let part = match given.name.as_str() {
                "data.tokenizer" => "data_tokenizer",
                name if name.ends_with("hf_config_path") => "config_path",
                _ => "tokenizer",
            };
            if !is_none_value(value) {
                t.keep(part, value.to_string(), given);
            }
        }
        "structured_outputs" => each_field(given, t, |name, value, t| {
            let is_default = [Value::Null, Value::Bool(false), Value::from("")].contains(value);
            if !is_default && !["backend", "disable_fallback"].contains(&name) {
                let what = format!("has {name} {value}, which reel does not have");
                t.refuse_option(&given.written, &what, "leave it out");
            }
        }),
        "config_file" => t.keep("config_file", value.to_string(), given),
        "mm_processor_kwargs" => each_field(given, t, |name, value, t| processor_field(name, value, given, t)),
        "media_io_kwargs" => each_field(given, t, |kind, value, t| match (kind, value) {
            ("video", Value::Object(fields)) => {
                fields.iter().for_each(|(name, value)| reader_field(name, value, given, t))
            }
            _ => refuse_field(given, &format!("{kind} {value}"), t),
        }),
        _ => return false,
    }
    true
}

/// Calls `set` for each field of an option whose value is a JSON object.
fn each_field(given: &GivenOption, t: &mut CommandTranslation, set: impl Fn(&str, &Value, &mut CommandTranslation)) {
    let text = given.joined_values().unwrap_or_default();
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(fields) => fields.iter().for_each(|(name, value)| set(name, value, t)),
        Err(_) => t.refuse_option(&given.text_for_messages(), "is not a JSON object", "write {\"NAME\": VALUE}"),
    }
}

/// Translates a field of `--mm-processor-kwargs`, the settings of Qwen2.5-VL's processor:
/// `{"min_pixels": N, "max_pixels": N, "fps": N}`.
fn processor_field(name: &str, value: &Value, given: &GivenOption, t: &mut CommandTranslation) {
    match (name, value) {
        (_, Value::Null) | ("use_fast" | "do_resize" | "do_sample_frames", Value::Bool(true)) => {}
        ("min_pixels" | "max_pixels" | "fps" | "min_frames" | "max_frames", Value::Number(n)) => {
            t.set_option(name, vec![n.to_string()], given);
        }
        ("num_frames" | "nframes", Value::Number(n)) => t.set_option("nframes", vec![n.to_string()], given),
        _ => refuse_field(given, &format!("{name} {value}"), t),
    }
}

/// Translates a field of vLLM's `--media-io-kwargs` for videos. A `num_frames` of -1 means all frames.
fn reader_field(name: &str, value: &Value, given: &GivenOption, t: &mut CommandTranslation) {
    match (name, value) {
        ("num_frames", Value::Number(n)) if n.as_f64().is_some_and(|n| n > 0.0) => {
            t.set_option("nframes", vec![n.to_string()], given);
        }
        ("num_frames", Value::Number(_)) => {
            t.refuse_option(
                &given.text_for_messages(),
                "takes all frames of a video",
                "give --fps, or --nframes with a number",
            );
        }
        ("fps", Value::Number(n)) => t.set_option("fps", vec![n.to_string()], given),
        _ => refuse_field(given, &format!("{name} {value}"), t),
    }
}

fn refuse_field(given: &GivenOption, field: &str, t: &mut CommandTranslation) {
    let help = "use --min-pixels, --max-pixels, --nframes, --fps, --min-frames and --max-frames";
    t.refuse_option(&given.written, &format!("has {field}, a limit that reel does not have"), help);
}

/// Joins vLLM's options with dots in their names, such as `--limit-mm-per-prompt.image 4`, into one option whose
/// value is a JSON object. Keeps the fields that the option itself sets; if a field is given twice, the last value
/// counts.
pub fn fold_dotted_options(all_given: Vec<GivenOption>) -> Vec<GivenOption> {
    let is_dotted = |given: &GivenOption| given.written.starts_with("--") && given.name.contains('.');
    let mut folded: Vec<GivenOption> = Vec::new();
    for given in all_given {
        let Some((name, field)) = given.name.split_once('.').filter(|_| is_dotted(&given)) else {
            folded.push(given);
            continue;
        };
        let text = given.joined_values().unwrap_or_else(|| "true".into());
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let written = given.written.split('.').next().unwrap_or_default();
        let earlier = folded.iter_mut().find(|earlier| earlier.name == name && earlier.written.starts_with("--"));
        match earlier.and_then(|earlier| Some((object_of(earlier)?, earlier))) {
            Some((mut fields, earlier)) => {
                set_field(&mut fields, field, value);
                earlier.values = vec![Value::Object(fields).to_string()];
            }
            None => {
                let mut fields = Map::new();
                set_field(&mut fields, field, value);
                let values = vec![Value::Object(fields).to_string()];
                folded.push(GivenOption { name: name.into(), written: written.into(), values });
            }
        }
    }
    folded
}

/// Returns the JSON object that is the value of an option.
fn object_of(given: &GivenOption) -> Option<Map<String, Value>> {
    serde_json::from_str(&given.joined_values()?).ok()
}

/// Sets a field of a JSON object; dots in `path` separate the nested levels: `video.num_frames`.
fn set_field(fields: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(fields.insert(path.into(), value)),
        Some((name, rest)) => {
            let inner = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                set_field(inner, rest, value);
            }
        }
    }
}
