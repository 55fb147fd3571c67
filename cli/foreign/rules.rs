//! The rules that the option table names with `@`. A rule translates an option whose meaning depends on its value or
//! on other options. Rules for training options are in `rules_train` and `rules_data`, for evaluation and load tests
//! in `rules_eval`, for servers in `rules_serve`.

use serde_json::Value;

use super::translation::CommandTranslation;
use super::words::GivenOption;
use super::{rules_data, rules_eval, rules_serve, rules_train};

/// Whether the options that follow a rule in its row of the option table are set as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOutcome {
    /// The rule has set everything; the rest of the row is ignored.
    Stop,
    /// The rest of the row applies.
    Continue,
}

/// Applies the rule `rule` of the option table to a given option.
pub fn apply_rule(rule: &str, given: &GivenOption, t: &mut CommandTranslation) -> RuleOutcome {
    let value = given.joined_values().unwrap_or_else(|| "true".into());
    let number = value.parse::<f64>().ok();
    match rule {
        "model_kwargs" => rules_data::translate_model_kwargs(&value, given, t),
        "base_interval" => base_interval(number, given, t),
        // A value of 0 or less means "no limit", and "auto" means the default, so the option is left out.
        "no_limit" | "positive" => {
            return if number.is_some_and(|n| n > 0.0) { RuleOutcome::Continue } else { RuleOutcome::Stop };
        }
        "top_k" => {
            // A top-k of -1 means all tokens; reel writes this as 0.
            t.is_changed |= number == Some(-1.0);
            t.set_option("top_k", vec![if number == Some(-1.0) { "0".into() } else { value }], given);
        }
        "max_model_len" => max_model_len(&value, given, t),
        "api_keys" => each(given, t, |key, t| t.set_option("api_key", vec![key], given)),
        "allowed_origins" => {
            listed_values(given).into_iter().for_each(|origin| t.set_option("allow_origin", vec![origin], given))
        }
        "lora_modules" => lora_modules(given, t),
        "adapters" => adapters(given, t),
        "served_names" => served_names(given, t),
        _ if rules_train::apply_train_rule(rule, &value, given, t)
            || rules_eval::apply_eval_rule(rule, &value, given, t) => {}
        _ if rules_data::apply_data_rule(rule, &value, given, t)
            || rules_serve::apply_serve_rule(rule, &value, given, t) => {}
        _ => debug_assert!(false, "the table names the rule {rule}, which does not exist"),
    }
    RuleOutcome::Stop
}

/// Returns the list items of an option that has several values, or one value in list syntax (JSON or Python).
pub fn listed_values(given: &GivenOption) -> Vec<String> {
    let one = |text: &str| match serde_json::from_str::<Value>(&text.replace('\'', "\"")) {
        Ok(Value::Array(items)) => items.iter().map(|v| v.as_str().map_or(v.to_string(), String::from)).collect(),
        // Hydra's list ['console','wandb'] arrives without its quotes, because the shell removes them.
        _ if text.starts_with('[') && text.ends_with(']') => {
            let items = text[1..text.len() - 1].split(',');
            items.map(|item| item.trim().trim_matches(['"', '\'']).to_string()).collect()
        }
        _ => vec![text.trim_end_matches(',').trim_matches(['"', '\'']).to_string()],
    };
    given.values.iter().flat_map(|text| one(text)).filter(|text| !text.is_empty()).collect()
}

/// Translates `base_interval` of QwenLM's script, the seconds between two frames of a video, into `--fps`.
fn base_interval(seconds: Option<f64>, given: &GivenOption, t: &mut CommandTranslation) {
    match seconds.filter(|seconds| *seconds > 0.0) {
        Some(seconds) => t.set_option("fps", vec![format!("{}", 1.0 / seconds)], given),
        None => {
            let what = "is not a number of seconds between two frames";
            t.refuse_option(&given.text_for_messages(), what, "give --fps, the frames of a second");
        }
    }
}

fn each(given: &GivenOption, t: &mut CommandTranslation, set: impl Fn(String, &mut CommandTranslation)) {
    t.is_changed |= given.values.len() > 1;
    given.values.iter().for_each(|value| set(value.clone(), t));
}

/// Translates vLLM's `--max-model-len`: a number of tokens, with an optional suffix `k` (1000) or `K` (1024), or
/// `auto` (-1).
fn max_model_len(value: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let scaled = |text: &str, factor: f64| text.parse::<f64>().ok().map(|n| (n * factor).round());
    let tokens = match value {
        "auto" | "-1" => {
            t.is_changed = true;
            return;
        }
        _ => scaled(value, 1.0)
            .or(value.strip_suffix('k').and_then(|n| scaled(n, 1e3)))
            .or(value.strip_suffix('K').and_then(|n| scaled(n, 1024.0)))
            .or(value.strip_suffix('m').and_then(|n| scaled(n, 1e6)))
            .or(value.strip_suffix('M').and_then(|n| scaled(n, 1024.0 * 1024.0))),
    };
    t.is_changed |= value.parse::<u64>().is_err();
    match tokens.filter(|tokens| *tokens >= 1.0) {
        Some(tokens) => t.set_option("max_model_len", vec![format!("{tokens}")], given),
        None => t.refuse_option(
            &given.text_for_messages(),
            "is not a number of tokens",
            "give a number, such as 4096 or 32k",
        ),
    }
}

/// Translates vLLM's `--lora-modules`: `NAME=PATH`, or a JSON object with `name` and `path`.
fn lora_modules(given: &GivenOption, t: &mut CommandTranslation) {
    for text in listed_values(given) {
        let object: Option<Value> = serde_json::from_str(&text).ok();
        let field = |name: &str| Some(object.as_ref()?.get(name)?.as_str()?.to_string());
        match field("name").zip(field("path")) {
            Some((name, path)) => t.set_option("lora", vec![format!("{name}={path}")], given),
            None => t.set_option("lora", vec![text], given),
        }
    }
}

/// Translates the adapters of `swift deploy` and LLaMA-Factory: named ones (`NAME=PATH`), or the path of one that
/// answers every request.
fn adapters(given: &GivenOption, t: &mut CommandTranslation) {
    let listed = listed_values(given);
    let adapters = listed.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty());
    let (named, unnamed): (Vec<&str>, Vec<&str>) =
        adapters.partition(|adapter| t.command == "serve" && adapter.contains('='));
    for adapter in named {
        t.set_option("lora", vec![adapter.to_string()], given);
    }
    if let Some(first) = unnamed.first() {
        t.set_option("adapter", vec![first.to_string()], given);
    }
    if unnamed.len() > 1 {
        let (what, help) = match t.command.as_str() {
            "merge" => ("names several adapters, and reel merges one", "merge them one after the other"),
            _ => (
                "names several adapters without names, and one adapter answers all requests",
                "write NAME=PATH for each, as in --lora NAME=PATH",
            ),
        };
        t.refuse_option(&given.text_for_messages(), what, help);
    }
}

/// Translates vLLM's `--served-model-name`, which takes several names.
fn served_names(given: &GivenOption, t: &mut CommandTranslation) {
    t.is_changed |= given.values.len() > 1;
    for name in given.values.clone() {
        t.set_option("served_model_name", vec![name], given);
    }
}
