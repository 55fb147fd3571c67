//! Rules for the options of servers: vLLM, SGLang, LMDeploy.

use serde_json::{Map, Value};

use super::translation::Translation;
use super::words::GivenOption;

/// Applies a rule; `false` if the rule is not one of these.
pub fn apply_serve_rule(rule: &str, value: &str, given: &GivenOption, t: &mut Translation) -> bool {
    match rule {
        // Whether it is the model's own tokenizer is known when all options are read.
        "tokenizer" => {
            t.parts.insert("tokenizer", value.to_string());
            t.parts.insert("tokenizer_shown", given.text_for_messages());
        }
        "config_file" => drop(t.parts.insert("config_file", value.to_string())),
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
fn each_field(given: &GivenOption, t: &mut Translation, set: impl Fn(&str, &Value, &mut Translation)) {
    let text = given.joined_values().unwrap_or_default();
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(fields) => fields.iter().for_each(|(name, value)| set(name, value, t)),
        Err(_) => {
            t.refuse_option(&given.text_for_messages(), "is not a JSON object", "give --max-pixels, --nframes or --fps")
        }
    }
}

/// A field of the processor of Qwen2.5-VL: `{"min_pixels": N, "max_pixels": N, "fps": N}`.
fn processor_field(name: &str, value: &Value, given: &GivenOption, t: &mut Translation) {
    match (name, value) {
        (_, Value::Null) | ("use_fast" | "do_resize" | "do_sample_frames", Value::Bool(true)) => {}
        ("min_pixels" | "max_pixels" | "fps" | "min_frames" | "max_frames", Value::Number(n)) => {
            t.set_option(name, vec![n.to_string()], given);
        }
        ("num_frames" | "nframes", Value::Number(n)) => t.set_option("nframes", vec![n.to_string()], given),
        _ => refuse_field(given, &format!("{name} {value}"), t),
    }
}

/// A field of vLLM's reader of videos. A number of frames of -1 means all frames.
fn reader_field(name: &str, value: &Value, given: &GivenOption, t: &mut Translation) {
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

fn refuse_field(given: &GivenOption, field: &str, t: &mut Translation) {
    let help = "use --min-pixels, --max-pixels, --nframes, --fps, --min-frames and --max-frames";
    t.refuse_option(&given.written, &format!("has {field}, a limit that reel does not have"), help);
}
